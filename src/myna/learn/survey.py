"""Which tables are read, in what order, and with how many draws: the plan of a budget.

    time-varying   for t = 0, 1, ...: rows are the children of the basis at t - 1 and
                   histories of plain draws; the basis at t is read off them
    stationary     one table: the empty history, short histories, histories of plain draws,
                   then the children of the basis until all of them were measured

The table's share of the budget is split evenly over cuts and then over rows, each
completion as long as the short futures look. In later rounds new rows get a third of
that, and words that checking asked for share their own part by their number.
"""

import itertools
from collections.abc import Sequence

from myna.errors import InputError
from myna.learn.asker import Asker
from myna.learn.report import Structure
from myna.learn.sampled_report import SampledCut, SampledSettings
from myna.learn.sweep import CutBasis, Rows, Surveyor, operators
from myna.learn.table import History
from myna.lowrank.likelihood import Operators
from myna.lowrank.student import Strings

_PASSES = 3  # times that a stationary table may ask for its basis' children
_SHORT_ROWS = 64  # short histories in a stationary table


class Survey:
    """The tables of one run; reading them again after more draws costs only what is new."""

    def __init__(
        self, asker: Asker, plain: Strings, settings: SampledSettings, structure: Structure
    ):
        """Empty tables."""
        self._asker, self._settings, self.structure = asker, settings, structure
        spec = asker.spec
        self.stationary = structure is Structure.STATIONARY
        if not self.stationary and spec.horizon is None:
            raise InputError(
                "one basis per cut needs a teacher with a horizon, and this one has none; "
                "learn it as stationary"
            )
        self._surveyor = Surveyor(
            asker,
            plain,
            level=settings.level,
            max_rank=settings.max_rank,
            spanner_bound=settings.spanner_bound,
        )
        self._longest = spec.horizon or settings.max_tokens
        self._tables = [Rows() for _ in range(1 if self.stationary else self._longest)]
        self._bases: list[CutBasis] = []
        self.rounds = 0
        self.extra = 0

    @property
    def rank(self) -> int:
        """The largest rank of the last reading."""
        return max((len(basis.histories) for basis in self._bases), default=1)

    def add_plain(self, plain: Strings) -> None:
        """More plain draws for the classes."""
        self._surveyor.use_plain(plain)

    def add_word(self, string: History) -> bool:
        """The law after `string` was wrong: its suffixes become words; whether any is new."""
        new = False
        for r in range(1, len(string)):
            word, table = string[r:], self._tables[0 if self.stationary else r]
            if self.stationary and len(word) > len(string) // 2 + 1:
                continue  # histories and words together have to fit before the horizon
            for j in range(1, len(word) + 1):
                if word[:j] not in table.words:
                    table.words.append(word[:j])
                    new = True
        return new

    def smaller(self, bases: list[CutBasis], extra: int) -> None:
        """Back to bases that were read before."""
        self._bases, self.extra = bases, extra

    @property
    def bases(self) -> list[CutBasis]:
        """What was read last, one a stored cut."""
        return self._bases

    def read(self, kept: int = 0) -> None:
        """Ask what the tables lack, then find ranks, bases and coefficients.

        kept: tokens that are left for later readings

        Raises:
            BudgetExhausted: where that does not fit; the bases stay what they were.
        """
        purse = self._settings.table * self._settings.budget
        share = 1.0 if not self.rounds else 0.3
        words = self._settings.words * self._settings.budget / 2 if self.rounds else 0.0
        reserve = 0.5 if self.rounds else 1.0
        left = max(0, self._asker.left - kept)
        if self.stationary:
            left *= _PASSES / (_PASSES + 1)  # one pass more, for the children of the last basis
        purse = min(share * purse, reserve * left)
        words = min(words, 0.5 * left)
        self._bases = (
            [self._read_one(purse, words)] if self.stationary else self._read_cuts(purse, words)
        )
        self.rounds += 1

    def _read_cuts(self, purse: float, words: float) -> list[CutBasis]:
        total = sum(len(table.words) for table in self._tables)
        bases: list[CutBasis] = []
        before = self._bases
        for t, table in enumerate(self._tables):
            born = self._children(bases[-1], self._tables[t - 1]) if t else [()]
            rows = list(dict.fromkeys([*born, *self._surveyor.sampled_histories(t)]))
            part = words * len(table.words) / max(1, total)
            self._surveyor.measure(table, rows, purse / len(self._tables), part)
            preferred = before[t].histories if before else ()
            bases.append(self._surveyor.basis(table, rows, [t], preferred))
        return bases

    def _read_one(self, purse: float, words: float) -> CutBasis:
        surveyor, table = self._surveyor, self._tables[0]
        tokens = [o for o in range(self._asker.spec.num_tokens) if o != self._asker.spec.stop]
        cuts = range(self._longest - surveyor.look + 1)
        sampled = [h for t in cuts[1:5] for h in surveyor.sampled_histories(t, 12)]
        seen = set(surveyor.sampled_histories(1, _SHORT_ROWS))
        short = [(o,) for o in tokens if (o,) in seen][:_SHORT_ROWS]
        rows = list(dict.fromkeys([(), *short, *sampled, *table.short]))
        preferred = self._bases[0].histories if self._bases else ()
        for _ in range(_PASSES):
            surveyor.measure(table, rows, purse / _PASSES, words / _PASSES)
            basis = surveyor.basis(table, rows, list(cuts), preferred, self.extra)
            preferred = basis.histories
            lacking = [h for h in self._children(basis, table) if h not in rows]
            if not lacking:
                break
            rows += lacking
        else:
            surveyor.measure(table, rows, purse / _PASSES, words / _PASSES)
            basis = surveyor.basis(table, rows, list(cuts), preferred, self.extra)
        return basis

    def _children(self, basis: CutBasis, table: Rows) -> list[History]:
        """One-token extensions that the draws saw, the stop token's left out."""
        size = self._asker.spec.num_tokens
        room = self._longest - (self._surveyor.look if self.stationary else 0)
        found = []
        for history, o in itertools.product(basis.histories, range(size)):
            counts = table.short[history].reshape(size + 1, -1).sum(1)
            if o != self._asker.spec.stop and counts[o] > 0 and len(history) < room:
                found.append((*history, o))
        return found

    def operators(self, share: float) -> Operators:
        """The spanner's copy; with share 1 all coefficients are convex."""
        bases = self._bases
        after: Sequence[CutBasis | None] = bases if self.stationary else [*bases[1:], None]
        start = bases[0]
        first = (1 - share) * start.coefficients[()] + share * start.convex[()]
        steps = tuple(
            operators(here, there, share) for here, there in zip(bases, after, strict=True)
        )
        return Operators(first, steps)

    def histories(self) -> tuple[tuple[History, ...], ...]:
        """The spanner at each stored cut."""
        return tuple(basis.histories for basis in self._bases)

    def reports(self) -> tuple[SampledCut, ...]:
        """One entry a cut."""
        return tuple(
            SampledCut(
                cut=None if self.stationary else t,
                rank=basis.rank.rank,
                singular_values=basis.rank.singular_values[:32],
                noise_edges=basis.rank.edges,
                histories=basis.histories,
                rows=basis.rows,
                draws=basis.draws,
                words=len(table.words),
            )
            for t, (basis, table) in enumerate(zip(self._bases, self._tables, strict=True))
        )
