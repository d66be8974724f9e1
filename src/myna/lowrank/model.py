"""The low-rank model: coefficients over basis histories that evolve by Bayes' rule.

At cut t a few histories h_1 ... h_S stand for all: every history x of length t has

    P(f | x) = sum_i c_i(x) P(f | h_i)        for all futures f.

A step stores what the talk ("Tracking the coefficients") says must be stored: the
next-token laws L[i, o] = P(o | h_i) and, for each token o, the change of basis G that
writes the law after h_i o in the next cut's basis. Reading a token o,

    q_o = sum_i c_i L[i, o],        c'_j = sum_i c_i L[i, o] G[i, o, j] / q_o,

which is Bayes' rule. Source: Liu and Moitra (arXiv 2411.07536), section "Tracking the
evolution of the coefficients" of the talk; Kakade et al. (arXiv 2302.14753).

What Q is. Rounding and truncation can leave q with small negative entries. Q is the
distribution that `sample` draws from, and that is defined by

    Q(o | x) = max(q_o, 0) / sum_o' max(q_o', 0),

with the uniform law where no entry is positive (a state that no sequence of positive
probability reaches). `law`, `score`, `sample` and enumeration all use this Q; the
coefficients themselves are divided by the unclipped q_o.
"""

import dataclasses
import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.batch import (
    alive_counts,
    apply_by_token,
    bayes,
    filter_columns,
    next_weights,
    score_columns,
)
from myna.lowrank.step import ROUNDING, Step
from myna.lowrank.student import (
    State,
    StepInfo,
    Strings,
    check_strings,
    sample_by_steps,
)
from myna.spec import Spec, fingerprint


@dataclasses.dataclass(frozen=True)
class LowRankModel:
    """A low-rank language model: a Student.

    spec: alphabet, stop token, horizon, fingerprint
    first: (rank,), the coefficients of the empty history over the first basis
    steps: step t is steps[min(t, len(steps) - 1)], so one step means stationary

    Raises:
        InputError: where shapes disagree.
    """

    spec: Spec
    first: Float[Tensor, " rank"]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Check that each step ends in the next one's basis."""
        if not self.steps:
            raise InputError("a low-rank model needs at least one step, got none")
        ranks = [len(self.first), *(step.change.shape[2] for step in self.steps)]
        for t, step in enumerate(self.steps):
            if step.laws.shape[1] != self.spec.num_tokens:
                raise InputError(
                    f"step {t} has laws over {step.laws.shape[1]} tokens, and the alphabet "
                    f"has {self.spec.num_tokens}; they must be equal"
                )
            if ranks[t] != step.rank or step.change.shape[:2] != step.laws.shape:
                raise InputError(
                    f"step {t} has rank {step.rank} and change of basis "
                    f"{tuple(step.change.shape)}, but the step before ends in rank {ranks[t]}"
                )
        last = self.steps[-1]
        outlives = self.spec.horizon is None or self.spec.horizon > len(self.steps)
        if outlives and last.change.shape[2] != last.rank:
            raise InputError(
                "the last step serves all later positions, so its change of basis must be "
                f"square; it goes from rank {last.rank} to {last.change.shape[2]}"
            )

    @classmethod
    def of(
        cls, language: Spec, first: Float[Tensor, " rank"], steps: tuple[Step, ...]
    ) -> "LowRankModel":
        """A model of a language, with a fingerprint of its own numbers."""
        tables = [table for step in steps for table in (step.laws, step.change)]
        mark = fingerprint(
            "low-rank model", language.alphabet, language.stop, language.horizon, first, *tables
        )
        return cls(dataclasses.replace(language, fingerprint=mark), first, steps)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank at each stored cut."""
        return tuple(step.rank for step in self.steps)

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored."""
        return len(self.first) + sum(s.laws.numel() + s.change.numel() for s in self.steps)

    @functools.cached_property
    def transitions(self) -> tuple[Float[Tensor, "_ _"], ...] | None:
        """T of every step where the model is a hidden Markov model as it stands, else None."""
        if bool((self.first < 0).any()) or abs(float(self.first.sum()) - 1) > ROUNDING:
            return None
        tables = tuple(step.transition for step in self.steps if step.transition is not None)
        return tables if len(tables) == len(self.steps) else None

    def to(self, device: torch.device | str) -> "LowRankModel":
        """The same model with its tensors on another device."""
        steps = tuple(Step(s.laws.to(device), s.change.to(device), s.histories) for s in self.steps)
        return LowRankModel(self.spec, self.first.to(device), steps)

    def step_at(self, position: int) -> Step:
        """The step that reads the token at `position`."""
        return self.steps[min(position, len(self.steps) - 1)]

    def initial(self, batch: int) -> State:
        """The coefficients of the empty history, repeated."""
        return State(self.first.expand(batch, -1), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log Q(o | x), clipped and normalised as the module says (nats)."""
        _, weights = next_weights(state.vector, self.step_at(state.position).summed)
        return (weights.values / weights.total[:, None]).log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Bayes' rule; an impossible token leaves no coefficients (all zero)."""
        here = self.step_at(state.position)
        q, weights = next_weights(state.vector, here.summed)
        log_prob = (weights.values.gather(1, tokens[:, None])[:, 0] / weights.total).log()
        moved = apply_by_token(here.operators, state.vector, tokens)
        coefficients = bayes(moved, q.gather(1, tokens[:, None])[:, 0])
        return State(coefficients, state.position + 1), StepInfo(log_prob)

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log Q(x) in nats, one a sequence."""
        check_strings(self.spec, strings)
        device = self.first.device
        by_length = torch.argsort(strings.lengths, descending=True, stable=True)
        columns = strings.tokens[by_length].T.contiguous().to(device)
        alive = alive_counts(strings.lengths, len(columns))
        result = self.first.new_empty(len(by_length))
        if self.transitions is None:
            scores = score_columns(self.first, self.steps, columns, alive)
        else:
            scores = filter_columns(self.first, self.steps, self.transitions, columns, alive)
        result[by_length.to(device)] = scores
        return result

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences from Q."""
        return sample_by_steps(self, count, generator, max_tokens)
