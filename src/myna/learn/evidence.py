"""Recorded answers: completions with their prompts, and how often each came.

The evidence of a run is a bag of rows x = (prompt, completion). A completion is a draw
from P(. | prompt), so a model Q has log-likelihood

    l(Q) = sum_i counts_i (log Q(x_i) - log Q(x_i[: given_i])),

which holds for any choice of prompts that looked at earlier answers only.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.student import Strings


class Evidence(NamedTuple):
    """Rows x_i = tokens[i, : lengths[i]], of which the first given[i] were the prompt.

    tokens: (row, width), padded with -1
    lengths: (row,), prompt and completion together
    given: (row,), tokens of the prompt; at most lengths
    counts: (row,), how many draws gave this row
    """

    tokens: Int[Tensor, "row width"]
    lengths: Int[Tensor, " row"]
    given: Int[Tensor, " row"]
    counts: Float[Tensor, " row"]

    @property
    def strings(self) -> Strings:
        """Prompts and completions run together."""
        return Strings(self.tokens, self.lengths)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the teacher generated: sum of counts x (lengths - given)."""
        return int((self.counts * (self.lengths - self.given)).sum())
