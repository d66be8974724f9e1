"""Teachers that are a state stepped token by token.

A hidden Markov model, an automaton and every learned student answer from a state:
laws follow from stepping the distinct nodes of the batch's prefix tree once each,
completions from stepping each draw.
"""

import abc

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import (
    State,
    StepInfo,
    Stepper,
    Strings,
    draw,
    sample_by_steps,
    score_by_steps,
)
from myna.spec import Spec
from myna.teachers.draws import Dice, check_draws, draw_limits, going, widened
from myna.teachers.oracle import Completions, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes, check_prefixes, tree_levels


def states_of(model: Stepper, prefixes: Prefixes) -> State:
    """The state each prefix leads to, all shared parts stepped once.

    The result's rows are in the batch's order; its position is the longest prefix's,
    so it serves reading laws of prefixes that have one length, or vectors.
    """
    vectors, position = None, 0
    state = model.initial(1)
    for level in tree_levels(prefixes):
        if level.depth:
            device = state.vector.device
            state, _ = model.step(state.take(level.parents.to(device)), level.tokens.to(device))
        if vectors is None:
            vectors = state.vector.new_empty((len(prefixes.lengths), state.vector.shape[1]))
        vectors[level.rows] = state.vector[level.nodes]
        position = level.depth
    return State(model.initial(0).vector if vectors is None else vectors, position)


def laws_by_steps(model: Stepper, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
    """Next-token log-probabilities of each prefix, shared prefixes stepped once.

    Raises:
        InputError: for a prefix of probability zero.
    """
    spec = model.spec
    check_prefixes(spec, prefixes)
    state = model.initial(1)
    device = state.vector.device
    laws = torch.empty(
        (len(prefixes.lengths), spec.num_tokens), dtype=state.vector.dtype, device=device
    )
    possible = torch.ones(1, dtype=torch.bool, device=device)
    for level in tree_levels(prefixes):
        if level.depth:
            parents = level.parents.to(device)
            state, info = model.step(state.take(parents), level.tokens.to(device))
            possible = possible[parents] & (info.log_prob > -torch.inf)
        if not len(level.rows):
            continue
        nodes, rows = level.nodes.to(device), level.rows.to(device)
        if not bool(possible[nodes].all()):
            row = int(rows[~possible[nodes]][0])
            raise InputError(
                "a law was asked after a prefix of probability zero, which has none: "
                f"{prefixes.rows()[row]}; ask only about prefixes the model can produce"
            )
        laws[rows] = model.law(state.take(nodes))
    return laws


class SteppedTeacher(abc.ABC):
    """All three levels of access, from `initial`, `step` and `law`."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""

    @abc.abstractmethod
    def initial(self, batch: int) -> State:
        """The state of the empty prefix, repeated `batch` times."""

    @abc.abstractmethod
    def step(
        self, state: State, tokens: Int[Tensor, " batch"]
    ) -> tuple[State, StepInfo]:
        """The state after one more token, and the token's log-probability."""

    @abc.abstractmethod
    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats)."""

    @property
    def k(self) -> int:
        """Everything can be shown: k = O."""
        return self.spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats) of each prefix."""
        return laws_by_steps(self, prefixes)

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
        """log P(x) in nats, one a sequence."""
        return score_by_steps(self, strings)

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences (outside any ledger: for tests and benchmarks)."""
        return sample_by_steps(self, count, generator, max_tokens)


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
    spec = model.spec
    check_draws(count, first_draw)
    check_prefixes(spec, prefixes)
    shape = (len(prefixes.lengths), count)
    drawn = torch.empty((shape[0] * count, 0), dtype=torch.int64)
    lengths = torch.zeros(shape[0] * count, dtype=torch.int64)
    dice = Dice(prefixes, stream, first_draw, count)
    for length in prefixes.lengths.unique().tolist():
        group = (prefixes.lengths == length).nonzero()[:, 0]
        state = states_of(model, prefixes.take(group))
        alive = (group[:, None] * count + torch.arange(count)).reshape(-1)
        index = torch.arange(len(group)).repeat_interleave(count)
        state = state.take(index.to(state.vector.device))
        limit = int(draw_limits(spec, prefixes.lengths[group[:1]], max_tokens)[0])
        position = 0
        while len(alive) and position < limit:
            tokens = draw(model.law(state).cpu(), dice.roll(alive, position))
            drawn = widened(drawn, position)
            drawn[alive, position] = tokens
            position += 1
            lengths[alive] = position
            kept = going(spec, tokens).nonzero()[:, 0]
            alive, tokens = alive[kept], tokens[kept]
            if len(alive) and position < limit:
                device = state.vector.device
                state, _ = model.step(state.take(kept.to(device)), tokens.to(device))
    width = int(lengths.max()) if len(lengths) else 0
    return Completions(drawn[:, :width].reshape(*shape, width), lengths.reshape(shape))
