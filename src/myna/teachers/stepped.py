"""Teachers that are a state stepped token by token.

A hidden Markov model, an automaton and every learned student answer from a state:
laws follow from stepping the distinct nodes of the batch's prefix tree once each,
completions from stepping each draw.
"""

import abc
import functools
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import (
    State,
    StepInfo,
    Stepper,
    Strings,
    sample_by_steps,
    score_by_steps,
)
from myna.spec import Spec
from myna.teachers.draws import Dice, check_draws, draw_at, draw_limits, going
from myna.teachers.oracle import Completions, Stream, TopLaw, top_of
from myna.teachers.prefixes import TOKEN_BYTES, Prefixes, check_prefixes, tree_levels


def states_of(model: Stepper, prefixes: Prefixes) -> State:
    """The states of prefixes that have one length, all shared parts stepped once.

    Raises:
        InputError: for a prefix of probability zero, which leads to no state.
    """
    state = model.initial(1)
    device = state.vector.device
    if not len(prefixes.lengths):
        return State(state.vector[:0], 0)
    rows = nodes = torch.empty(0, dtype=torch.int64)
    for level in tree_levels(prefixes):
        rows, nodes = level.rows, level.nodes
        if level.depth:
            state, info = model.step(state.take(level.parents.to(device)), level.tokens.to(device))
            require_possible(info, prefixes, level.below)
    order = torch.empty_like(nodes)
    order[rows] = nodes
    return state.take(order.to(device))


def require_possible(info: StepInfo, prefixes: Prefixes, row_of: Int[Tensor, " nodes"]) -> None:
    """Refuse a step of probability zero, naming a prefix that takes it.

    Raises:
        InputError: with the first such prefix.
    """
    impossible = info.log_prob.cpu() == -torch.inf
    if bool(impossible.any()):
        row = int(row_of[impossible][0])
        raise InputError(
            "a law was asked after a prefix of probability zero, which has none: "
            f"{list(prefixes.rows()[row])}; ask only about prefixes the model can produce"
        )


class RecentStates:
    """The states of the prefixes asked last: a child costs one step, not a walk.

    Learners ask breadth first, a prefix before its extensions. A bounded number of
    states is kept; the oldest make room. Only speed depends on what is kept.
    """

    def __init__(self, capacity_bytes: int = 2**28):
        """An empty store of at most `capacity_bytes` of state vectors."""
        self._capacity_bytes = capacity_bytes
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0

    def find(self, keys: list[bytes]) -> list[Tensor | None]:
        """The state vector of each prefix, or None where it is not kept."""
        return [self._rows.get(key) for key in keys]

    def keep(self, keys: list[bytes], vectors: Float[Tensor, "batch width"]) -> None:
        """Store states, then forget the oldest beyond the capacity."""
        for key, row in zip(keys, vectors.unbind(0), strict=True):
            self._forget(key)
            self._rows[key] = row
            self._bytes += row.numel() * row.element_size()
        while self._bytes > self._capacity_bytes and self._rows:
            self._forget(next(iter(self._rows)))

    def clear(self) -> None:
        """Forget all states."""
        self._rows.clear()
        self._bytes = 0

    def _forget(self, key: bytes) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._bytes -= row.numel() * row.element_size()


def laws_by_steps(
    model: Stepper, prefixes: Prefixes, recent: RecentStates
) -> Float[Tensor, "batch token"]:
    """Next-token log-probabilities (nats) of each prefix.

    A prefix whose parent was asked lately takes one step from there; others are
    walked from the root along their prefix tree.

    Raises:
        InputError: for a prefix of probability zero.
    """
    check_prefixes(model.spec, prefixes)
    keys = prefixes.keys()
    laws = model.initial(0).vector.new_empty((len(keys), model.spec.num_tokens))
    for length in prefixes.lengths.unique().tolist():
        rows = (prefixes.lengths == length).nonzero()[:, 0]
        parents = recent.find([keys[i][:-TOKEN_BYTES] for i in rows.tolist()] if length else [])
        found = torch.tensor([vector is not None for vector in parents], dtype=torch.bool)
        near, far = (rows[found], rows[~found]) if length else (rows[:0], rows)
        for group in (near, far):
            if not len(group):
                continue
            batch = prefixes.take(group)
            if group is near:
                vectors = torch.stack([vector for vector in parents if vector is not None])
                tokens = batch.tokens[:, length - 1].to(vectors.device)
                state, info = model.step(State(vectors, length - 1), tokens)
                require_possible(info, batch, torch.arange(len(group)))
            else:
                state = states_of(model, batch)
            laws[group.to(laws.device)] = model.law(state)
            recent.keep([keys[i] for i in group.tolist()], state.vector)
    return laws


class SteppedTeacher(abc.ABC):
    """All three levels of access, from `initial`, `step` and `law`."""

    @functools.cached_property
    def _recent(self) -> RecentStates:
        return RecentStates()

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""

    @abc.abstractmethod
    def initial(self, batch: int) -> State:
        """The state of the empty prefix, repeated `batch` times."""

    @abc.abstractmethod
    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """The state after one more token, and the token's log-probability."""

    @abc.abstractmethod
    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats)."""

    @property
    def num_bytes(self) -> int | None:
        """Of the tables that the model is; None where that is not known."""
        return None

    @property
    def k(self) -> int:
        """Everything can be shown: k = O."""
        return self.spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats) of each prefix."""
        return laws_by_steps(self, prefixes, self._recent)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The whole law, most likely tokens first."""
        return top_of(self.laws(prefixes), self.k)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion."""
        return complete_by_steps(
            self, prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log P(x) in nats, one a sequence."""
        return score_by_steps(self, strings)

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences (outside any ledger: for tests and benchmarks)."""
        return sample_by_steps(self, count, generator, max_tokens)


def bytes_of(tables: Iterable[Tensor]) -> int:
    """What tables take, as they stand."""
    return sum(table.numel() * table.element_size() for table in tables)


_CHUNK = 2**15  # draws stepped together: few enough that their tables stay in cache


def complete_by_steps(
    model: Stepper,
    prefixes: Prefixes,
    count: int,
    *,
    stream: Stream,
    max_tokens: int | None = None,
    first_draw: int = 0,
) -> Completions:
    """Completions drawn by stepping; prefixes of one length are drawn together."""
    check_draws(count, first_draw)
    check_prefixes(model.spec, prefixes)
    limits = draw_limits(model.spec, prefixes.lengths, max_tokens)
    dice = Dice.of(prefixes, stream, first_draw, count)
    lengths = torch.zeros(len(limits) * count, dtype=torch.int64)
    pieces: list[tuple[Tensor, Tensor]] = []
    for length in prefixes.lengths.unique().tolist():
        group = (prefixes.lengths == length).nonzero()[:, 0]
        states = states_of(model, prefixes.take(group))
        limit = int(limits[group[0]])
        for chunk in torch.arange(len(group) * count).split(_CHUNK):
            # Row i * count + j of the group is draw j of its prefix i.
            member = chunk // count
            rows = group[member] * count + chunk % count
            members = torch.arange(int(member[0]), int(member[-1]) + 1)
            state = states.take(members.to(states.vector.device))
            tokens, lengths[rows] = _drawn(
                model, state, member - members[0], dice.take(rows), limit
            )
            pieces.append((rows, tokens))
    width = max((tokens.shape[1] for _, tokens in pieces), default=0)
    drawn = torch.full((len(lengths), width), -1, dtype=torch.int64)
    for rows, tokens in pieces:
        drawn[rows, : tokens.shape[1]] = tokens
    shape = (len(limits), count)
    return Completions(drawn.reshape(*shape, width), lengths.reshape(shape))


def _drawn(
    model: Stepper, state: State, node: Int[Tensor, " row"], dice: Dice, limit: int
) -> Strings:
    """One completion a row: row i goes on from state node[i], for at most `limit` tokens."""
    alive = torch.arange(len(node))
    lengths = torch.zeros_like(alive)
    columns: list[Tensor] = []
    while len(alive) and len(columns) < limit:
        tokens = draw_at(model.law(state).cpu(), node, dice.roll(len(columns)))
        column = torch.full_like(lengths, -1)
        column[alive] = tokens
        columns.append(column)
        lengths[alive] += 1
        kept = going(model.spec, tokens)
        if not bool(kept.all()):
            alive, node, tokens = alive[kept], node[kept], tokens[kept]
            dice = dice.take(kept.nonzero()[:, 0])
        if len(alive) and len(columns) < limit:
            state, node = _children(model, state, node, tokens)
    drawn = torch.stack(columns, 1) if columns else lengths.new_empty((len(lengths), 0))
    return Strings(drawn, lengths)


def _children(
    model: Stepper, state: State, node: Int[Tensor, " row"], tokens: Int[Tensor, " row"]
) -> tuple[State, Int[Tensor, " row"]]:
    """The states after one more token, and which of them each row is in.

    Rows that read the same from the same node share the new one, as long as counting
    nodes costs less than stepping rows; from then on every row has its own.
    """
    size = model.spec.num_tokens
    edge = node * size + tokens
    if len(state.vector) * size <= len(edge):
        taken = torch.zeros(len(state.vector) * size, dtype=torch.bool)
        taken[edge] = True
        below = (taken.cumsum(0) - 1)[edge]
        edge = taken.nonzero()[:, 0]
    else:
        below = torch.arange(len(edge))
    device = state.vector.device
    parents, read = (edge // size).to(device), (edge % size).to(device)
    return model.step(state.take(parents), read)[0], below
