"""The logit table of one cut: z(o | h w) for histories h and futures (w, o).

Rows are candidate histories, columns are pairs of a future word w and a next token o;
entries are centred logits (`logits.centred`). Unlike probabilities P(w o | h) they are no
products along w: one law after h w fills a word's columns, so a row costs one next-token
query a word, and words need not be closed under prefixes.

Source: the extended logit matrix of Golowich, Liu and Shetty (arXiv 2510.24966,
definition 2.2), restricted to the histories and futures that were needed.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.logits.centred import centred
from myna.lowrank.spanner import barycentric_spanner
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

History = tuple[int, ...]
_PAIRS_AT_ONCE = 16_384  # histories x words asked together: bounds the memory of one request


class LogitRankExceeded(Exception):
    """The cap on the rank was reached at one cut; carries the evidence."""

    def __init__(self, cut: int | None, at_least: int, singular_values: Float[Tensor, " values"]):
        """Keep where, the rank that was reached, and the rows' singular values (nats)."""
        super().__init__(f"logit rank at least {at_least}")
        self.cut = cut
        self.at_least = at_least
        self.singular_values = singular_values


@dataclasses.dataclass(frozen=True)
class LogitBasis:
    """Basis histories at one cut, and the coefficients of every candidate over them.

    condition: largest over smallest singular value of the basis rows
    outside: histories farther from the span than the tolerance; only such as could not be
        taken into the basis
    """

    histories: tuple[History, ...]
    coefficients: dict[History, Float[Tensor, " rank"]]
    condition: float
    outside: tuple[History, ...] = ()


class LogitTable:
    """Rows of centred logits at one cut, asked once each."""

    def __init__(self, view: LawsView, cut: int | None):
        """No rows, and the empty word: next-token logits.

        cut: the length of all histories, or None where they are of mixed lengths
        """
        self._view = view
        self._cut = cut
        self._horizon = view.spec.horizon
        self.words: list[History] = [()]
        self.index: dict[History, int] = {}
        self._values = torch.zeros((0, 1, view.spec.num_tokens), dtype=torch.float64)

    @property
    def longest_future(self) -> int:
        """Tokens in the longest future, its last token included."""
        return 1 + max(map(len, self.words))

    def rows(self, histories: Sequence[History]) -> Float[Tensor, "history word token"]:
        """The rows of histories, asking about new ones."""
        new = [h for h in dict.fromkeys(histories) if h not in self.index]
        if new:
            values = self._ask(new, self.words)
            start = len(self.index)
            self._values = torch.cat([self._values, values])
            self.index |= {h: start + i for i, h in enumerate(new)}
        return self._values[[self.index[h] for h in histories]]

    def fits(self, history: int, word: int) -> bool:
        """Whether a law is left after so many tokens of a history and of a word."""
        return self._horizon is None or history + word < self._horizon

    def add_words(self, words: Sequence[History]) -> bool:
        """Add words, asking every history that is in the table; say if any was new.

        Histories that leave no room for them before the horizon are dropped.
        """
        new = [w for w in dict.fromkeys(words) if w not in self.words]
        if not new:
            return False
        longest = max(map(len, new))
        kept = {h: i for h, i in self.index.items() if self.fits(len(h), longest)}
        if len(kept) < len(self.index):
            self._values = self._values[list(kept.values())]
            self.index = {h: i for i, h in enumerate(kept)}
        values = self._ask(list(self.index), new)
        self._values = torch.cat([self._values, values], 1)
        self.words += new
        return True

    def peek(
        self, histories: Sequence[History], words: Sequence[History] | None = None
    ) -> Float[Tensor, "history word token"]:
        """Entries that are asked but not kept here (the ledger keeps them)."""
        return self._ask(list(histories), self.words if words is None else list(words))

    def _ask(
        self, histories: list[History], words: list[History]
    ) -> Float[Tensor, "history word token"]:
        """Centred logits after every history and word, a piece of the histories at a time."""
        num_tokens = self._view.spec.num_tokens
        if not histories:
            return torch.zeros((0, len(words), num_tokens), dtype=torch.float64)
        self.require_room(max(map(len, histories)), max(map(len, words)))
        packed = Prefixes.of(words)
        size = max(1, _PAIRS_AT_ONCE // len(words))
        pieces = [
            centred(self._view.laws(Prefixes.of(histories[i : i + size]).extended(packed)))
            for i in range(0, len(histories), size)
        ]
        return torch.cat(pieces).reshape(len(histories), len(words), num_tokens)

    def require_room(self, history: int, word: int) -> None:
        """Refuse so many tokens of a history and of a word where no law is left after them."""
        if not self.fits(history, word):
            raise InputError(
                f"one basis for all cuts needs histories of {history} tokens followed by futures "
                f"of {word + 1}, and the horizon is {self._horizon}; learn with one basis per cut "
                "(time-varying), or from a teacher with a longer horizon"
            )

    def span(
        self,
        candidates: Sequence[History],
        preferred: Sequence[History],
        *,
        bound: float,
        tolerance: float,
        max_rank: int,
        others: Sequence[History] = (),
    ) -> LogitBasis:
        """Actual rows of locally maximal volume: a C-approximate barycentric spanner.

        others: written over the basis as well, but not taken into it
        tolerance: a row within this Euclidean distance (nats) of the span lies in it

        Raises:
            LogitRankExceeded: where more than `max_rank` rows are independent.
        """
        place = {h: i for i, h in enumerate(candidates)}
        every = [*candidates, *others]
        rows = self.rows(every).flatten(1)
        spanner = barycentric_spanner(
            rows,
            bound=bound,
            tolerance=tolerance,
            max_rank=max_rank + 1,
            preferred=torch.tensor([place[h] for h in preferred if h in place], dtype=torch.int64),
            choosable=len(candidates),
        )
        if len(spanner.indices) > max_rank:
            values = torch.linalg.svdvals(rows[spanner.indices])
            raise LogitRankExceeded(self._cut, len(spanner.indices), values)
        beyond = (spanner.residuals[len(candidates) :] > tolerance).tolist()
        return LogitBasis(
            histories=tuple(candidates[i] for i in spanner.indices.tolist()),
            coefficients=dict(zip(every, spanner.coefficients.unbind(0), strict=True)),
            condition=float(spanner.condition),
            outside=tuple(h for h, out in zip(others, beyond, strict=True) if out),
        )


def children(histories: Sequence[History], num_tokens: int, stop: int | None) -> list[History]:
    """The one-token extensions, the stop token's left out: no softmax excludes any other."""
    return [(*h, o) for h in histories for o in range(num_tokens) if o != stop]
