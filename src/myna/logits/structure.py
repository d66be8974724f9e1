"""From logit tables to networks: one basis per cut, or one for all cuts.

    candidates   the children h_i o of the basis before, and histories that misses showed
    basis        a spanner of their rows
    network      B: the basis histories' next-token logits; A_o: the children's coefficients

A miss is a string at which the copy's law is wrong. The coefficients c along it were exact
at the empty history, so there is a cut r where they still explain the table and a next one
where they do not: |z(o | x_1..x_r+1 w) - sum_i c_i z(o | h_i w)| > mismatch for a word w.
The changes of basis are exact on the table, so the word x_r+1 w tells x_1..x_r from its
combination at cut r; adding both raises the rank there. Bisection finds r with
log2(length) rows, and as ||P - Q|| <= max |z difference| no miss escapes the table. This is
the repair of the learner in probability space (Rivest and Schapire's step of L*), without
its products and normalisers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.logits.check import Miss
from myna.logits.report import LogitCut, LogitSettings
from myna.logits.table import History, LogitBasis, LogitTable, children
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.spanner import spanned_rank
from myna.teachers.ledger import LawsView

_MISSES_A_ROUND = 20
_WITNESSES = 4  # histories on which a longer future is tried
_PATIENCE = 8  # cuts in a row at which it may fail to help
_NOTHING = LogitBasis((), {}, 1.0)


@runtime_checkable
class LogitHypothesis(Protocol):
    """A structure that is closed into a network and repaired by misses."""

    def close(self) -> Isan:
        """Grow until every child of the basis is explained; the network of the tables."""
        ...

    def repair(self, network: Isan, misses: Sequence[Miss], others: Sequence[History]) -> bool:
        """Add what the misses show; False where nothing new was found."""
        ...

    def partial(self) -> Isan | None:
        """The best network of what is known when the budget ends."""
        ...

    def cuts(self) -> tuple[LogitCut, ...]:
        """What was found at each cut of the last network, closed or partial."""
        ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Where coefficients stop explaining: after `history` they do, on `word` they do not."""

    history: History
    word: History


def find_split(network: Isan, miss: Miss, table_at, basis_at, tolerance: float) -> Split | None:
    """Bisect one miss; None where the table explains it within the tolerance."""
    string = miss.string[: miss.position]
    path = coefficients_along(network, string)

    def worst(t: int) -> History | None:
        table, basis = table_at(t), basis_at(t)
        places = [j for j, word in enumerate(table.words) if table.fits(t, len(word))]
        words = [table.words[j] for j in places]
        truth = table.peek([string[:t]], words)[0]
        explained = torch.einsum("i,iwo->wo", path[t], table.rows(basis.histories)[:, places])
        error = (explained - truth).abs().amax(1)
        word = int(error.argmax())
        return words[word] if float(error[word]) > tolerance else None

    low, high = 0, len(string)
    word = worst(high)
    if word is None or high == 0:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = worst(middle)
        if found is None:
            low = middle
        else:
            high, word = middle, found
    return Split(string[: high - 1], (string[high - 1], *word))


def coefficients_along(network: Isan, history: History) -> list[Float[Tensor, " rank"]]:
    """The network's coefficients after each prefix of a history, the empty one first."""
    state = network.initial(1)
    path = [state.vector[0].cpu()]
    for token in history:
        state, _ = network.step(state, torch.tensor([token], device=state.vector.device))
        path.append(state.vector[0].cpu())
    return path


class VaryingLogits:
    """One table a cut; see `LogitHypothesis`."""

    def __init__(self, view: LawsView, settings: LogitSettings):
        """One empty table for each of the H cuts."""
        if view.spec.horizon is None:
            raise InputError(
                "one basis per cut needs a teacher with a horizon, and this one has none; "
                "learn it as stationary"
            )
        self._view = view
        self._settings = settings
        self._tables = [LogitTable(view, t) for t in range(view.spec.horizon)]
        self._sampled: list[dict[History, None]] = [{} for _ in self._tables]
        self._bases: list[LogitBasis] = []

    def close(self) -> Isan:
        """One pass over the cuts; a cut that did not change asks nothing new."""
        before, self._bases = self._bases, []
        spec = self._view.spec
        born: list[History] = [()]
        for t, table in enumerate(self._tables):
            candidates = list(dict.fromkeys([*born, *self._sampled[t]]))
            preferred = before[t].histories if t < len(before) else ()
            basis = self._span(table, candidates, preferred)
            while (word := self._unsettled(t, basis, candidates)) is not None:
                table.add_words([word])
                basis = self._span(table, candidates, basis.histories)
            self._bases.append(basis)
            born = children(basis.histories, spec.num_tokens, spec.stop)
        return self._network(frozen=False)

    def _unsettled(self, t: int, basis: LogitBasis, candidates: list[History]) -> History | None:
        """A further word, where the rank is all that the columns can show.

        Then more rows may be independent, and which are may show on rare strings alone. A rank
        below that, in general position, is the rank.
        """
        spec, words = self._view.spec, self._tables[t].words
        rank, columns = len(basis.histories), (spec.num_tokens - 1) * len(words)
        if rank < columns or rank == len(candidates) or t + 2 > len(self._tables):
            return None
        free = ((o,) for o in range(spec.num_tokens) if o != spec.stop and (o,) not in words)
        return next(free, None)

    def _span(
        self, table: LogitTable, candidates: list[History], preferred: tuple[History, ...]
    ) -> LogitBasis:
        return _span(table, candidates, preferred, self._settings.spanner_bound, self._settings)

    def _network(self, *, frozen: bool) -> Isan:
        """The steps whose next basis is known; the last leads nowhere, or stays (frozen)."""
        spec, steps = self._view.spec, []
        for t, here in enumerate(self._bases):
            after = self._bases[t + 1] if t + 1 < len(self._bases) else _NOTHING
            logits = self._tables[t].rows(here.histories)[:, 0]
            if frozen and after is _NOTHING:
                steps.append(frozen_step(logits, here.histories))
            else:
                change = change_of_basis(here.histories, spec.num_tokens, after)
                steps.append(IsanStep(logits, change, here.histories))
        return Isan.of(spec, self._bases[0].coefficients[()], tuple(steps))

    def repair(self, network: Isan, misses: Sequence[Miss], others: Sequence[History]) -> bool:
        """Add splitting words where they split, and longer ones at earlier cuts."""
        grew = False
        for miss in misses[:_MISSES_A_ROUND]:
            split = find_split(
                network,
                miss,
                self._tables.__getitem__,
                self._bases.__getitem__,
                self._settings.mismatch,
            )
            if split is not None and self._add(split, others):
                self._spread(split, others)
                grew = True
        return grew

    def _spread(self, split: Split, others: Sequence[History]) -> None:
        """Try the word at later cuts as well, which would show their lack one round each."""
        idle = 0
        for r in range(len(split.history) + 1, len(self._tables) - len(split.word)):
            helped = self._try(r, [h[:r] for h in others if len(h) > r][:_WITNESSES], split.word)
            idle = 0 if helped else idle + 1
            if idle == _PATIENCE:
                break

    def _add(self, split: Split, others: Sequence[History]) -> bool:
        """Walk back from the split's cut while longer words still raise the rank."""
        grew, idle = False, 0
        path = (*split.history, *split.word)
        for r in range(len(split.history), -1, -1):
            more = [h[:r] for h in others if len(h) > r][: _WITNESSES - 1]
            helped = self._try(r, [path[:r], *more], path[r:])
            grew |= helped
            idle = 0 if helped else idle + 1
            if not grew or idle == _PATIENCE:
                break  # an earlier miss of this round has mended this one, or its reach ended
        return grew

    def _try(self, r: int, histories: list[History], word: History) -> bool:
        """Add a word and histories at cut r if they raise the rank of what is there."""
        table = self._tables[r]
        if word in table.words:
            return False
        known = [*self._bases[r].histories, *self._sampled[r]]
        rows = list(dict.fromkeys([*known, *histories]))
        words = [*table.words, word]
        before = spanned_rank(table.rows(known).flatten(1), self._settings.tolerance)
        after = spanned_rank(table.peek(rows, words).flatten(1), self._settings.tolerance)
        if after <= before:
            return False
        table.add_words([word])
        self._sampled[r] |= dict.fromkeys(histories)
        return True

    def partial(self) -> Isan | None:
        """The closed steps, and a last one that no longer moves."""
        return self._network(frozen=True) if self._bases else None

    def cuts(self) -> tuple[LogitCut, ...]:
        """One entry a cut."""
        return tuple(
            _cut(t, self._tables[t], basis, self._settings) for t, basis in enumerate(self._bases)
        )


class StationaryLogits:
    """One table for histories of all lengths; see `LogitHypothesis`."""

    def __init__(self, view: LawsView, settings: LogitSettings):
        """Start from the empty history and one-token futures."""
        self._view = view
        self._settings = settings
        self._table = LogitTable(view, None)
        self._sampled: list[History] = []
        self._basis = LogitBasis(((),), {}, 1.0)
        self._closed = False

    def close(self) -> Isan:
        """Add children until the basis explains them all, then balance it.

        A member's children are asked as well, so what has no room for children is only
        explained.

        Raises:
            InputError: where a history with no room for children is not explained.
        """
        spec = self._view.spec
        kept = tuple(filter(self._has_room, self._basis.histories))  # words may have grown
        self._basis, self._closed = LogitBasis(kept, {}, 1.0), False
        candidates = dict.fromkeys(filter(self._has_room, [(), *self._sampled]))
        bound = math.inf
        while True:
            before = self._basis.histories
            candidates |= dict.fromkeys(children(before, spec.num_tokens, spec.stop))
            self._basis = self._span(list(candidates), before, bound)
            if set(self._basis.histories) != set(before):
                continue  # its new members' children are to be asked
            if bound == self._settings.spanner_bound:
                break
            bound = self._settings.spanner_bound  # closed: now swap for small coefficients
        for history in self._basis.outside:
            self._table.require_room(len(history) + 1, self._table.longest_future - 1)
        self._closed = True
        return self._network()

    def _span(
        self, candidates: list[History], preferred: tuple[History, ...], bound: float
    ) -> LogitBasis:
        members = list(filter(self._has_room, candidates))
        others = [h for h in candidates if not self._has_room(h)]
        return _span(self._table, members, preferred, bound, self._settings, others)

    def _has_room(self, history: History) -> bool:
        """Whether a history's children can be asked; the empty one's must be."""
        longest = self._table.longest_future - 1
        return not history or self._table.fits(len(history) + 1, longest)

    def _network(self) -> Isan:
        spec, basis = self._view.spec, self._basis
        change = change_of_basis(basis.histories, spec.num_tokens, basis)
        step = IsanStep(self._table.rows(basis.histories)[:, 0], change, basis.histories)
        return Isan.of(spec, basis.coefficients[()], (step,))

    def repair(self, network: Isan, misses: Sequence[Miss], others: Sequence[History]) -> bool:
        """Add a splitting word, and the history it splits, for the first miss that has one."""
        for miss in misses[:_MISSES_A_ROUND]:
            split = find_split(
                network, miss, lambda _: self._table, lambda _: self._basis, self._settings.mismatch
            )
            if split is None:
                continue
            if not self._table.fits(1, len(split.word)):
                continue  # the empty history's children could not be asked
            grew = self._table.add_words([split.word])
            if split.history not in self._sampled and self._has_room(split.history):
                self._sampled.append(split.history)
                grew = True
            if grew:
                return True
        return False

    def partial(self) -> Isan | None:
        """The law of the empty history, repeated: all that an unclosed basis supports."""
        if () not in self._table.index:
            return None
        step = frozen_step(self._table.rows([()])[:, 0], ((),))
        return Isan.of(self._view.spec, torch.ones(1, dtype=torch.float64), (step,))

    def cuts(self) -> tuple[LogitCut, ...]:
        """One entry, over all cuts together; none where the basis is not closed."""
        if not self._closed:
            return ()
        return (_cut(None, self._table, self._basis, self._settings),)


def _span(
    table: LogitTable,
    candidates: list[History],
    preferred: tuple[History, ...],
    bound: float,
    settings: LogitSettings,
    others: Sequence[History] = (),
) -> LogitBasis:
    return table.span(
        candidates,
        preferred,
        bound=bound,
        tolerance=settings.tolerance,
        max_rank=settings.max_rank,
        others=others,
    )


def change_of_basis(
    histories: Sequence[History], num_tokens: int, after: LogitBasis
) -> Float[Tensor, "rank token next_rank"]:
    """The coefficients of every child in the basis after it; zero where there is none."""
    change = torch.zeros((len(histories), num_tokens, len(after.histories)), dtype=torch.float64)
    for i, history in enumerate(histories):
        for o in range(num_tokens):
            coefficients = after.coefficients.get((*history, o))
            if coefficients is not None:
                change[i, o] = coefficients
    return change


def frozen_step(logits: Float[Tensor, "rank token"], histories: tuple[History, ...]) -> IsanStep:
    """A step that leaves the coefficients as they are: the law no longer moves."""
    rank, num_tokens = logits.shape
    still = torch.eye(rank, dtype=logits.dtype)[:, None, :].expand(rank, num_tokens, rank)
    return IsanStep(logits, still.contiguous(), histories)


def _cut(
    cut: int | None, table: LogitTable, basis: LogitBasis, settings: LogitSettings
) -> LogitCut:
    """The report on one closed cut."""
    rows = table.rows(basis.histories)
    values = torch.linalg.svdvals(rows.flatten(1)) if len(rows) else torch.zeros(0)
    return LogitCut(
        cut=cut,
        logit_rank=len(basis.histories),
        next_token_rank=spanned_rank(rows[:, 0], settings.tolerance),
        candidates=len(basis.coefficients),
        futures=len(table.words),
        longest_future=table.longest_future,
        condition=basis.condition,
        singular_values=tuple(values.tolist()),
    )
