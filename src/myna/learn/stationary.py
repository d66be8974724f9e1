"""One basis for all cuts: histories of mixed lengths in one table.

A stationary copy exists where the futures' laws after all histories, of whatever
length, span a space of finite dimension S: an HMM or an automaton whose tables do not
change with time. The basis is closed when every child h_i o lies in its span:

    P(. | h_i o) = sum_j G[i, o, j] P(. | h_j),

as rows of Angluin's table are closed. Whether the teacher is stationary is not
assumed: fresh histories of all lengths are checked against it.
"""

import math

import torch

from myna.learn.hypothesis import (
    change_of_basis,
    cut_report,
    find_splits,
    frozen_step,
    telling_words,
)
from myna.learn.report import CutReport, ExactSettings
from myna.learn.table import Basis, History, Table, children
from myna.learn.verify import Check
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.teachers.ledger import LawsView

_SPLITS_A_ROUND = 20


class Stationary:
    """The hypothesis with one table; see `Hypothesis`."""

    def __init__(self, view: LawsView, settings: ExactSettings):
        """Start from the empty history and one-token futures."""
        self._view = view
        self._settings = settings
        self._table = Table(view)
        self._sampled: list[History] = []
        self._basis = Basis(((),), {}, 1.0)
        self._closed = False

    def close(self) -> LowRankModel:
        """Add children until the basis explains them all, then balance it.

        A member's children are asked as well, so what has no room for children before the
        horizon is only explained.

        Raises:
            InputError: where a history with no room for children is not explained.
        """
        candidates = dict.fromkeys(filter(self._has_room, [(), *self._sampled]))
        kept = tuple(filter(self._has_room, self._basis.histories))  # words may have grown
        basis, self._closed = Basis(kept, {}, 1.0), False
        bound = math.inf
        while True:
            laws = self._table.laws(basis.histories)
            candidates |= dict.fromkeys(children(basis.histories, laws, self._view.spec.stop))
            grown = self._span(list(candidates), basis.histories, bound)
            if set(grown.histories) != set(basis.histories):
                basis = grown  # its new members' children are to be asked
            elif bound == math.inf:
                bound = self._settings.spanner_bound  # closed: now swap for small coefficients
            else:
                break
            self._basis = basis
        for history in grown.outside:
            self._table.require_room(len(history) + 1, self._table.longest_future)
        self._basis, self._closed = grown, True
        return self._model(grown)

    def _span(
        self, candidates: list[History], preferred: tuple[History, ...], bound: float
    ) -> Basis:
        return self._table.span(
            list(filter(self._has_room, candidates)),
            preferred,
            bound=bound,
            tolerance=self._settings.tolerance,
            max_rank=self._settings.max_rank,
            others=[h for h in candidates if not self._has_room(h)],
        )

    def _has_room(self, history: History) -> bool:
        """Whether a history's children can be asked; the empty one's must be."""
        return not history or self._table.fits(len(history) + 1, self._table.longest_future)

    def _model(self, basis: Basis) -> LowRankModel:
        spec = self._view.spec
        change = change_of_basis(basis.histories, spec.num_tokens, basis)
        step = Step(self._table.laws(basis.histories), change, basis.histories)
        return LowRankModel.of(spec, basis.coefficients[()], (step,))

    def repair(self, model: LowRankModel, check: Check) -> bool:
        """Add a splitting word, and the history it splits, for each counterexample."""
        splits = find_splits(
            model,
            check.counterexamples[:_SPLITS_A_ROUND],
            lambda _: self._table,
            lambda _: self._basis,
            self._settings.mismatch,
        )
        if not splits:
            return False
        words = telling_words(splits, self._table, self._basis, self._settings.mismatch)
        # past this length not even the empty history's children could be asked
        grew = self._table.add_futures([w for w in words if self._table.fits(1, len(w))])
        known = {(), *self._sampled}
        fresh = [
            h
            for h in dict.fromkeys(split.history for split in splits)
            if h not in known and self._has_room(h)
        ]
        self._sampled += fresh
        return grew or bool(fresh)

    def partial(self) -> LowRankModel | None:
        """The law of the empty history, repeated: all that an unclosed basis supports."""
        if () not in self._table.index:
            return None
        spec = self._view.spec
        step = frozen_step(self._table.laws([()]), ((),))
        return LowRankModel.of(spec, torch.ones(1, dtype=torch.float64), (step,))

    def reports(self) -> tuple[CutReport, ...]:
        """One entry, over all cuts together; none where the basis is not closed."""
        if not self._closed:
            return ()
        return (cut_report(None, self._table, self._basis, self._settings),)
