"""Laws along strings that a teacher draws: what a student in logit space is fitted to.

For strings x of the teacher, cut at `length` tokens, p_t = P(. | x_<t) for t = 0 ... |x| - 1.
A string of n tokens costs n next-token queries, counted by the ledger and kept here alone, in
single precision: two million laws over 65 characters are half a gigabyte.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

_TOGETHER = 256  # strings crossed at once


class TextLaws(NamedTuple):
    """Strings, and the law before each of their tokens.

    tokens: (string, time), -1 after the end
    laws: (string, time, token) probabilities, single precision; zeros after the end
    entropy: (string, time) of the laws, nats
    """

    tokens: Int[Tensor, "string time"]
    laws: Float[Tensor, "string time token"]
    entropy: Float[Tensor, "string time"]

    @property
    def total(self) -> int:
        """How many laws."""
        return int((self.tokens >= 0).sum())


def text_laws(view: LawsView, laws: int, length: int, first_draw: int = 0) -> TextLaws:
    """Strings drawn by the teacher until `laws` laws stand before their tokens, at most.

    length: strings are cut here
    first_draw: of the view's stream; other draws are other strings

    Raises:
        BudgetExhausted: where the ledger allows fewer laws.
    """
    root = Prefixes.of([[]])
    drawn = view.complete(root, max(1, laws // length), first_draw=first_draw, max_tokens=length)
    tokens, lengths = drawn.tokens[0], drawn.lengths[0]
    shape = (*tokens.shape, view.spec.num_tokens)
    probabilities = torch.zeros(shape, dtype=torch.float32)
    entropy = torch.zeros(tokens.shape, dtype=torch.float64)
    for rows in torch.arange(len(tokens)).split(_TOGETHER):
        futures = Prefixes(tokens[rows], lengths[rows])
        tree = FutureTree.of(futures)
        found = crossed(view, root, futures, tree.pairs).laws[0]
        surprise = torch.where(found > -torch.inf, -found.exp() * found, 0.0).sum(1)
        inside = tree.node_of >= 0
        here = tree.node_of.clamp(min=0)
        probabilities[rows] = found.exp().float()[here] * inside[:, :, None]
        entropy[rows] = surprise[here] * inside
    return TextLaws(tokens, probabilities, entropy)
