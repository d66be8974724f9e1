"""The observation table of one cut: P(w o | h) for histories h and futures w o.

Rows are candidate histories, columns are pairs of a future word w and a next token o;
the words are closed under prefixes, so that every entry is a product of asked laws:

    P(w o | h) = P(w | h) P(o | h w),      P(w | h) = the entry (w', last token of w),

where w' is w without its last token. One row costs one next-token query a word
(fewer where P(w | h) = 0). This is the exact form of the sketch in Liu and Moitra
(arXiv 2411.07536): columns are scaled by their largest entry, which plays the part of
the proposal D, so rare futures count as much as common ones.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.spanner import barycentric_spanner
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

History = tuple[int, ...]
_PAIRS_AT_ONCE = 16_384  # histories x words asked together: bounds the memory of one request


class NotLowRank(Exception):
    """The cap on the rank was reached at one cut; carries the evidence."""

    def __init__(self, at_least: int, singular_values: Float[Tensor, " values"]):
        """Keep the rank that was reached and the scaled block's singular values."""
        super().__init__(f"rank at least {at_least}")
        self.at_least = at_least
        self.singular_values = singular_values


@dataclasses.dataclass(frozen=True)
class Basis:
    """A barycentric spanner of a table's rows.

    histories: h_1 ... h_S
    coefficients: (candidate, S), P(. | candidate) = sum_j coefficients[., j] P(. | h_j)
    condition: condition number of the scaled basis rows
    outside: candidates farther from the span than the tolerance; only such as could not be
        taken into the basis
    """

    histories: tuple[History, ...]
    coefficients: dict[History, Float[Tensor, " rank"]]
    condition: float
    outside: tuple[History, ...] = ()


class Table:
    """P(w o | h), filled by asking, kept as it grows.

    view: the teacher's laws, charged to one purpose
    """

    def __init__(self, view: LawsView):
        """An empty table whose only future is the next token."""
        self._view = view
        self.index: dict[History, int] = {}
        self.futures: list[History] = [()]
        self._values = torch.empty((0, 1, view.spec.num_tokens), dtype=torch.float64)
        horizon = view.spec.horizon
        self._longest = None if horizon is None else horizon - 1

    @property
    def longest_future(self) -> int:
        """Length of the longest word (tokens)."""
        return max(len(word) for word in self.futures)

    def add_histories(self, histories: Sequence[History]) -> None:
        """Ask about the histories that are new."""
        new = [h for h in dict.fromkeys(histories) if h not in self.index]
        if not new:
            return
        self.require_room(max(len(h) for h in new), self.longest_future)
        columns = range(len(self.futures))
        block = self._ask(
            new, columns, self._values.new_empty((len(new), 0, self._values.shape[2]))
        )
        self._values = torch.cat([self._values, block])
        self.index.update(zip(new, range(len(self.index), len(self.index) + len(new)), strict=True))

    def add_futures(self, words: Sequence[History]) -> bool:
        """Add words with all their prefixes; ask every history; say if any was new.

        Histories that leave no room for them before the horizon are dropped.
        """
        closed = {word[:n] for word in words for n in range(len(word) + 1)}
        new = sorted(closed - set(self.futures), key=lambda word: (len(word), word))
        if not new:
            return False
        longest = max(map(len, new))
        self.require_room(0, longest)
        kept = {h: i for h, i in self.index.items() if self.fits(len(h), longest)}
        if len(kept) < len(self.index):
            self._values = self._values[list(kept.values())]
            self.index = {h: i for i, h in enumerate(kept)}
        start = len(self.futures)
        self.futures += new
        try:
            columns = range(start, len(self.futures))
            block = self._ask(list(self.index), columns, self._values)
        except BaseException:
            del self.futures[start:]
            raise
        self._values = torch.cat([self._values, block], 1)
        return True

    def scratch(self, histories: Sequence[History]) -> "Table":
        """A table of its own with the same futures, starting from the rows known here."""
        copy = Table(self._view)
        copy.futures = list(self.futures)
        known = [h for h in histories if h in self.index]
        copy._values = self._values[[self.index[h] for h in known]]
        copy.index = {h: i for i, h in enumerate(known)}
        copy.add_histories(histories)
        return copy

    def with_futures(self, words: Sequence[History]) -> "Table":
        """An empty table of the same teacher with other futures (and their prefixes)."""
        other = Table(self._view)
        other.add_futures(words)
        return other

    def peek(self, histories: Sequence[History]) -> Float[Tensor, "history word token"]:
        """Rows that are asked but not kept; NaN where a word would pass the horizon."""
        columns = range(len(self.futures))
        empty = self._values.new_empty((len(histories), 0, self._values.shape[2]))
        return self._ask(list(histories), columns, empty)

    def fits(self, history: int, word: int) -> bool:
        """Whether a law is left after so many tokens of a history and of a word."""
        return self._longest is None or history + word <= self._longest

    def require_room(self, history: int, word: int) -> None:
        """Refuse so many tokens of a history and of a word where no law is left after them."""
        if self._longest is not None and not self.fits(history, word):
            raise InputError(
                f"one basis for all cuts needs histories of {history} tokens followed by "
                f"futures of {word + 1}, and the horizon is {self._longest + 1}; learn with one "
                "basis per cut (time-varying), or from a teacher with a longer horizon"
            )

    def rows(self, histories: Sequence[History]) -> Float[Tensor, "history word token"]:
        """The rows of histories, asking about new ones."""
        self.add_histories(histories)
        return self._values[[self.index[h] for h in histories]]

    def laws(self, histories: Sequence[History]) -> Float[Tensor, "history token"]:
        """P(o | h): the columns of the empty word."""
        return self.rows(histories)[:, 0]

    def _ask(
        self, histories: list[History], columns: range, known: Float[Tensor, "history word token"]
    ) -> Float[Tensor, "history new token"]:
        """The entries of the given columns, a piece of the histories at a time."""
        size = max(1, _PAIRS_AT_ONCE // len(columns))
        pieces = [
            self._ask_piece(histories[start : start + size], columns, known[start : start + size])
            for start in range(0, len(histories), size)
        ]
        return torch.cat(pieces) if pieces else known.new_empty((0, len(columns), known.shape[2]))

    def _ask_piece(
        self, histories: list[History], columns: range, known: Float[Tensor, "history word token"]
    ) -> Float[Tensor, "history new token"]:
        """Shorter words first, so that P(w | h) is known before P(o | h w) is asked."""
        num_tokens = self._view.spec.num_tokens
        values = torch.zeros((len(histories), len(columns), num_tokens), dtype=torch.float64)
        place = {word: j for j, word in enumerate(self.futures)}
        packed = Prefixes.of(histories)
        for length in sorted({len(self.futures[j]) for j in columns}):
            here = [j for j in columns if len(self.futures[j]) == length]
            mass = torch.ones((len(histories), len(here)), dtype=torch.float64)
            for k, j in enumerate(here if length else []):
                *parent, last = self.futures[j]
                up = place[tuple(parent)] - columns.start
                source = values[:, up] if up >= 0 else known[:, up + columns.start]
                mass[:, k] = source[:, last]
            fits = torch.ones_like(packed.lengths, dtype=torch.bool)
            if self._longest is not None:
                fits = packed.lengths + length <= self._longest
            words = Prefixes.of([self.futures[j] for j in here])
            laws = self._laws_where(packed, words, (mass > 0) & fits[:, None])
            laws[~fits] = torch.nan
            values[:, [j - columns.start for j in here]] = mass[:, :, None] * laws
        return values

    def _laws_where(
        self, histories: Prefixes, words: Prefixes, possible: Tensor
    ) -> Float[Tensor, "history word token"]:
        """P(o | h w) where the pair is possible, zero elsewhere."""
        laws = torch.zeros((*possible.shape, self._view.spec.num_tokens), dtype=torch.float64)
        asked = histories.extended(words).take(possible.reshape(-1).nonzero()[:, 0])
        laws[possible] = self._view.laws(asked).exp()
        return laws

    def scale(self, histories: Sequence[History]) -> Float[Tensor, "word token"]:
        """The largest entry of each column over some histories: D up to a factor."""
        return self.rows(histories).amax(0)

    def scaled(self, histories: Sequence[History]) -> Float[Tensor, "history column"]:
        """The rows over their scale, without the columns that are zero throughout."""
        rows = self.rows(histories).flatten(1)
        scale = rows.amax(0) if len(rows) else rows.sum(0)
        return rows[:, scale > 0] / scale[scale > 0]

    def span(
        self,
        candidates: Sequence[History],
        preferred: Sequence[History],
        *,
        bound: float,
        tolerance: float,
        max_rank: int,
        others: Sequence[History] = (),
    ) -> Basis:
        """A C-approximate barycentric spanner of the candidates' rows.

        others: written over the basis as well, but not taken into it

        Raises:
            NotLowRank: where more than `max_rank` rows are independent.
        """
        place = {h: i for i, h in enumerate(candidates)}
        every = [*candidates, *others]
        scaled = self.scaled(every)
        spanner = barycentric_spanner(
            scaled,
            bound=bound,
            tolerance=tolerance,
            max_rank=max_rank + 1,
            preferred=torch.tensor([place[h] for h in preferred if h in place], dtype=torch.int64),
            choosable=len(candidates),
        )
        if len(spanner.indices) > max_rank:
            values = torch.linalg.svdvals(scaled[spanner.indices])
            raise NotLowRank(len(spanner.indices), values)
        beyond = (spanner.residuals[len(candidates) :] > tolerance).tolist()
        return Basis(
            histories=tuple(candidates[i] for i in spanner.indices.tolist()),
            coefficients=dict(zip(every, spanner.coefficients.unbind(0), strict=True)),
            condition=float(spanner.condition),
            outside=tuple(h for h, out in zip(others, beyond, strict=True) if out),
        )

    def singular_values(self, histories: Sequence[History]) -> Float[Tensor, " values"]:
        """Of the scaled rows of some histories, largest first."""
        if not histories:
            return torch.empty(0, dtype=torch.float64)
        return torch.linalg.svdvals(self.scaled(histories))


def children(
    histories: Sequence[History], laws: Float[Tensor, "history token"], stop: int | None
) -> list[History]:
    """The one-token extensions of positive probability, the stop token's left out."""
    return [
        (*h, o)
        for h, row in zip(histories, laws.tolist(), strict=True)
        for o, p in enumerate(row)
        if p > 0 and o != stop
    ]
