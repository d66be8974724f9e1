"""One basis per cut: the time-varying form, which every low-rank model has.

At cut t the candidates are the children of the basis at cut t-1 and histories that
counterexamples showed; a spanner of them is the basis at t. Going forward once over
all cuts closes the tables, because each cut's candidates depend only on the cut
before. A future that splits histories at one cut is tried, longer by the tokens in
between, at every earlier cut: noisy parity shows its label only at the end, so each
of its cuts needs a future that reaches there.
"""

import torch

from myna.errors import InputError
from myna.learn.hypothesis import (
    Split,
    change_of_basis,
    cut_report,
    find_splits,
    frozen_step,
)
from myna.learn.report import CutReport, ExactSettings
from myna.learn.table import Basis, History, NotLowRank, Table, children
from myna.learn.verify import Check
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.teachers.ledger import LawsView

_SPLITS_A_ROUND = 20
_WITNESSES = 4  # fresh histories on which a longer future is tried
_PATIENCE = 8  # cuts in a row at which it may fail to help


class CutNotLowRank(NotLowRank):
    """The cap was exceeded at one cut."""

    def __init__(self, cut: int, cause: NotLowRank):
        """Add where it happened."""
        super().__init__(cause.at_least, cause.singular_values)
        self.cut = cut


class TimeVarying:
    """The hypothesis with one table a cut; see `Hypothesis`."""

    def __init__(self, view: LawsView, settings: ExactSettings):
        """One empty table for each of the H cuts."""
        if view.spec.horizon is None:
            raise InputError(
                "one basis per cut needs a teacher with a horizon, and this one has none; "
                "learn it as stationary"
            )
        self._view = view
        self._settings = settings
        self._tables = [Table(view) for _ in range(view.spec.horizon)]
        self._sampled: list[dict[History, None]] = [{} for _ in self._tables]
        self._bases: list[Basis] = []

    def close(self) -> LowRankModel:
        """One pass over the cuts; a cut that did not change asks nothing new."""
        before, self._bases = self._bases, []
        parents: tuple[History, ...] = ()
        for t, table in enumerate(self._tables):
            laws = self._tables[t - 1].laws(parents) if t else None
            born = [()] if laws is None else children(parents, laws, self._view.spec.stop)
            candidates = list(dict.fromkeys([*born, *self._sampled[t]]))
            preferred = before[t].histories if t < len(before) else ()
            basis = self._span(t, table, candidates, preferred)
            self._bases.append(basis)
            parents = basis.histories
        return self._model(self._bases)

    def _span(
        self, cut: int, table: Table, candidates: list[History], preferred: tuple[History, ...]
    ) -> Basis:
        if not candidates:
            return Basis((), {}, 1.0)  # every sequence has stopped before this cut
        try:
            return table.span(
                candidates,
                preferred,
                bound=self._settings.spanner_bound,
                tolerance=self._settings.tolerance,
                max_rank=self._settings.max_rank,
            )
        except NotLowRank as cause:
            raise CutNotLowRank(cut, cause) from cause

    def _steps(self, bases: list[Basis]) -> list[Step]:
        """The steps whose next basis is known; the last cut's leads nowhere."""
        spec = self._view.spec
        ends = [*bases[1:], Basis((), {}, 1.0)] if len(bases) == len(self._tables) else bases[1:]
        return [
            Step(
                table.laws(here.histories),
                change_of_basis(here.histories, spec.num_tokens, after),
                here.histories,
            )
            for table, here, after in zip(self._tables, bases, ends, strict=False)
        ]

    def _model(self, bases: list[Basis]) -> LowRankModel:
        first = bases[0].coefficients[()]
        return LowRankModel.of(self._view.spec, first, tuple(self._steps(bases)))

    def repair(self, model: LowRankModel, check: Check) -> bool:
        """Add splitting words where they split, and longer ones at earlier cuts."""
        splits = find_splits(
            model,
            check.counterexamples[:_SPLITS_A_ROUND],
            self._tables.__getitem__,
            self._bases.__getitem__,
            self._settings.mismatch,
        )
        grew = [self._add(split, check.teacher_strings) for split in splits]
        return any(grew)

    def _add(self, split: Split, witnesses: tuple[History, ...]) -> bool:
        """Walk back from the split's cut while longer words still raise the rank."""
        grew, idle = False, 0
        path = (*split.history, *split.word)
        for r in range(len(split.history), 0, -1):
            others = [w[:r] for w in witnesses if len(w) > r][: _WITNESSES - 1]
            helped = self._try(r, [path[:r], *others], path[r:])
            grew |= helped
            idle = 0 if helped else idle + 1
            if not grew or idle == _PATIENCE:
                break  # an earlier split of this round has mended this one, or its reach ended
        return grew

    def _try(self, r: int, histories: list[History], word: History) -> bool:
        """Add a word and histories at cut r if they raise the rank of what is there."""
        table = self._tables[r]
        known = [*self._bases[r].histories, *self._sampled[r]]
        rows = list(dict.fromkeys([*known, *histories]))
        before = self._rank(table, known)
        trial = table.scratch(rows)
        trial.add_futures([word])
        basis = self._span(r, trial, rows, self._bases[r].histories)
        if len(basis.histories) <= before:
            return False
        table.add_futures([word])
        kept = [h for h in histories if h in basis.histories]
        self._sampled[r] |= dict.fromkeys(kept)
        return True

    def _rank(self, table: Table, histories: list[History]) -> int:
        return len(self._span(0, table, histories, ()).histories)

    def partial(self) -> LowRankModel | None:
        """The closed steps, and a last one that no longer moves."""
        if not self._bases:
            return None
        last = self._bases[-1].histories
        laws = self._tables[len(self._bases) - 1].laws(last)
        steps = (*self._steps(self._bases), frozen_step(laws, last))
        return LowRankModel.of(self._view.spec, self._bases[0].coefficients[()], steps)

    def reports(self) -> tuple[CutReport, ...]:
        """One entry a cut."""
        return tuple(
            cut_report(t, table, basis, self._settings)
            for t, (table, basis) in enumerate(zip(self._tables, self._bases, strict=False))
        )


def uniform_student(view: LawsView) -> LowRankModel:
    """What can be said before anything was asked: all tokens alike."""
    spec = view.spec
    laws = torch.full((1, spec.num_tokens), 1 / spec.num_tokens, dtype=torch.float64)
    return LowRankModel.of(spec, torch.ones(1, dtype=torch.float64), (frozen_step(laws, ((),)),))
