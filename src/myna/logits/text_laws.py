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
    """Strings drawn by the teacher until `laws` laws stand before their tokens.

    Never more laws, but that one whole string is read where `laws` < `length`. What may lack is
    less than the mean string has: strings that all reach the cut are laws // length.

    length: strings are cut here
    first_draw: of the view's stream; other draws are other strings

    Raises:
        BudgetExhausted: where the ledger allows fewer laws.
        TeacherError: where a string has no token, not even the stop token.
    """
    root = Prefixes.of([[]])
    tokens, lengths = _drawn(view, laws, length, first_draw)
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


def _drawn(view: LawsView, laws: int, length: int, first_draw: int) -> Prefixes:
    """Strings of `laws` tokens together, in rounds.

    A round is as many strings as would fit if all reached the cut; where less than one cut is
    left, a round is one string, cut at what is left. The last round is the one after which the
    mean string no longer fits; the view refuses empty strings, so one comes.
    """
    root, rounds = Prefixes.of([[]]), list[Prefixes]()
    count, left, cut = max(1, laws // length), laws, length
    strings = total = 0
    while not strings or left * strings >= total:
        found = view.complete(root, count, first_draw=first_draw + strings, max_tokens=cut)
        rounds.append(Prefixes(found.tokens[0], found.lengths[0]))
        strings, total = strings + count, total + int(found.lengths.sum())
        left = laws - total
        count, cut = max(1, left // length), min(length, left)
    width = max(part.tokens.shape[1] for part in rounds)
    padded = [
        torch.nn.functional.pad(part.tokens, (0, width - part.tokens.shape[1]), value=-1)
        for part in rounds
    ]
    return Prefixes(torch.cat(padded), torch.cat([part.lengths for part in rounds]))
