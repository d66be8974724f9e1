"""The automaton in a student: distinct reachable rows as states.

Where a student has finitely many reachable coefficient vectors, they are the states of a
deterministic machine

    state(x) = c(x),      Q(o | x) = law(state),      state(x o) = move(state, o),

which is what Angluin's L* would find: her rows are our rows on a spanner of futures, and distinct
states are distinct rows. Their number can exceed the rank without bound (k registers: 2^k + 2 rows
in k + 3 dimensions), so states are not asked for: they are read off the learned copy by following
every token from the empty history, at no query. Hidden Markov models with overlapping emissions
reach infinitely many beliefs and have no such machine.

Sources: Angluin (1987), "Learning regular sets from queries and counterexamples"; minimal machines
by partition refinement after Moore (1956).
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import State
from myna.spec import Spec


@dataclasses.dataclass(frozen=True)
class Machine:
    """A deterministic machine with a law in each state, state 0 first.

    spec: the language
    laws: (state, token) probabilities
    moves: (state, token) the next state; -1 where the token cannot come or ends the string
    histories: a shortest history that leads to each state
    rank: the largest rank of the student it was read from; the number of states where it was
        learned as a machine
    """

    spec: Spec
    laws: Float[Tensor, "state token"]
    moves: Int[Tensor, "state token"]
    histories: tuple[tuple[int, ...], ...]
    rank: int

    @property
    def num_states(self) -> int:
        """Distinct rows."""
        return len(self.laws)

    def model(self) -> LowRankModel:
        """The same machine as a Student, one coordinate a state."""
        size = self.num_states
        change = torch.zeros((size, self.spec.num_tokens, size), dtype=torch.float64)
        state, token = (self.moves >= 0).nonzero(as_tuple=True)
        change[state, token, self.moves[state, token]] = 1.0
        first = torch.zeros(size, dtype=torch.float64)
        first[0] = 1.0
        return LowRankModel.of(self.spec, first, (Step(self.laws, change, self.histories),))

    def dot(self) -> str:
        """Graphviz: a node a state, an edge a token, with probabilities."""
        lines = ["digraph machine {", "  rankdir=LR;", "  start [shape=point];", "  start -> 0;"]
        for i, history in enumerate(self.histories):
            name = self.spec.named(history)
            lines.append(f"  {i} [label={_quoted(f'{i}: {name}')}];")
        for i, (laws, moves) in enumerate(
            zip(self.laws.tolist(), self.moves.tolist(), strict=True)
        ):
            for token, (p, j) in enumerate(zip(laws, moves, strict=True)):
                if j >= 0:
                    said = _quoted(f"{self.spec.alphabet[token]} {p:.3g}")
                    lines.append(f"  {i} -> {j} [label={said}];")
        return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def read_machine(model: LowRankModel, max_states: int = 1000, tolerance: float = 1e-6) -> Machine:
    """Follow every token from the empty history until no new row appears.

    tolerance: rows (coefficients) this near, in each entry, are one; tokens less likely than
        this do not lead anywhere

    Raises:
        InputError: more than `max_states` rows.
    """
    found, moves = _reach(model, max_states, tolerance)
    laws = torch.cat(found.laws)
    block = _refine(laws, moves, tolerance)
    # number the blocks by their first state, so that state 0 and shortest histories stay
    count = int(block.max()) + 1
    first = torch.full((count,), len(block)).scatter_reduce(
        0, block, torch.arange(len(block)), "amin"
    )
    order = first.argsort()
    renamed = order.argsort()[block]
    kept = first[order]
    target = torch.where(moves[kept] >= 0, renamed[moves[kept].clamp(min=0)], -1)
    histories = tuple(found.histories[i] for i in kept.tolist())
    return Machine(model.spec, laws[kept], target, histories, max(model.ranks))


def shortest_first(
    spec: Spec, laws: Float[Tensor, "state token"], moves: Int[Tensor, "state token"]
) -> Machine:
    """A machine whose states are all reached from state 0, numbered by their shortest histories.

    Of histories equally short the one that comes first in the order of tokens counts.
    """
    histories: dict[int, tuple[int, ...]] = {0: ()}
    order, table = [0], moves.tolist()
    for state in order:  # it grows while it is read
        for token, target in enumerate(table[state]):
            if target >= 0 and target not in histories:
                histories[target] = (*histories[state], token)
                order.append(target)
    kept = torch.tensor(order)
    number = torch.full((len(laws),), -1)
    number[kept] = torch.arange(len(order))
    target = torch.where(moves[kept] >= 0, number[moves[kept].clamp(min=0)], -1)
    return Machine(spec, laws[kept], target, tuple(histories.values()), len(order))


@dataclasses.dataclass
class _Found:
    """Rows so far, in the order they were met.

    known: the coefficients that a next row may equal, the last ones met
    laws: of all rows, a tensor a position
    histories: of all rows
    edges: (row, token, row)
    """

    known: Float[Tensor, "known rank"]
    laws: list[Tensor] = dataclasses.field(default_factory=list)
    histories: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    edges: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


def _reach(
    model: LowRankModel, max_states: int, tolerance: float
) -> tuple[_Found, Int[Tensor, "state token"]]:
    """Breadth first, a position at a time; with a horizon every position has its own rows."""
    spec, horizon = model.spec, model.spec.horizon
    frontier, position = model.first[None].cpu(), 0
    found = _Found(known=frontier, histories=[()])
    while len(frontier):
        law = model.law(State(frontier, position)).exp()
        found.laws.append(law)
        if horizon is not None and position + 1 >= horizon:
            break
        leads = law > tolerance
        if spec.stop is not None:
            leads[:, spec.stop] = False
        row, token = leads.nonzero(as_tuple=True)
        moved = model.step(State(frontier[row], position), token)[0].vector
        position += 1
        if horizon is not None:
            found.known = moved[:0]
        sources = row + len(found.histories) - len(frontier)
        frontier = _new_rows(found, moved, sources.tolist(), token.tolist(), tolerance)
        if len(found.histories) > max_states:
            raise InputError(
                f"the copy reaches more than {max_states:,} distinct rows (rank "
                f"{max(model.ranks)}); {_would_take(spec)}"
            )
    moves = torch.full((len(found.histories), spec.num_tokens), -1, dtype=torch.int64)
    for source, token, target in found.edges:
        moves[source, token] = target
    return found, moves


def _would_take(spec: Spec) -> str:
    """What a higher limit could lead to."""
    if spec.horizon is None:
        return (
            "raise the limit, or it may have no finite machine, as hidden Markov models with "
            "overlapping emissions have none"
        )
    going_on = spec.num_tokens - (spec.stop is not None)
    most = sum(going_on**t for t in range(spec.horizon))
    size = f"{most:,}" if most < 10**12 else f"10^{len(str(most)) - 1}"
    return (
        f"with a horizon of {spec.horizon} tokens there are at most {size}, one for each history; "
        "raise the limit"
    )


def _new_rows(
    found: _Found, moved: Tensor, sources: list[int], tokens: list[int], tolerance: float
) -> Float[Tensor, "fresh rank"]:
    """Those rows that were not met before; their histories, and all edges, are noted."""
    before = len(found.known)
    for vector, source, token in zip(moved, sources, tokens, strict=True):
        near = ((found.known - vector).abs().amax(1) <= tolerance).nonzero()[:, 0]
        if not len(near):
            near = torch.tensor([len(found.known)])
            found.known = torch.cat([found.known, vector[None]])
            found.histories.append((*found.histories[source], token))
        target = len(found.histories) - len(found.known) + int(near[0])
        found.edges.append((source, token, target))
    return found.known[before:]


def _kinds(laws: Float[Tensor, "state token"], tolerance: float) -> Int[Tensor, " state"]:
    """Each law's kind: the first one met that no entry tells from it by more than the tolerance."""
    kinds, known = torch.empty(len(laws), dtype=torch.int64), laws[:0]
    for state, law in enumerate(laws):
        near = ((known - law).abs().amax(1) <= tolerance).nonzero()[:, 0]
        kinds[state] = near[0] if len(near) else len(known)
        if not len(near):
            known = torch.cat([known, law[None]])
    return kinds


def _refine(
    laws: Float[Tensor, "state token"], moves: Int[Tensor, "state token"], tolerance: float
) -> Int[Tensor, " state"]:
    """The coarsest partition whose blocks agree on laws and on where tokens lead."""
    block = _kinds(laws, tolerance)
    while True:
        leads = torch.where(moves >= 0, block[moves.clamp(min=0)], -1)
        finer = torch.cat([block[:, None], leads], 1).unique(dim=0, return_inverse=True)[1]
        if int(finer.max()) == int(block.max()):
            return block
        block = finer
