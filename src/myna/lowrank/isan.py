"""The input-switched affine network: a low-rank model in log-probability space.

A state x of dimension d is moved by a matrix of the token read, and read out linearly:

    z = x B_t,        Q(o | x) = exp(z_o) / sum_o' exp(z_o'),        x' = x A_{t,o}.

P is such a model of dimension d at every cut exactly where its extended logit matrix
(histories against futures followed by a token) has rank at most d at every cut: Golowich,
Liu and Shetty (arXiv 2510.24966), theorem 4.3; the network is Foerster et al.'s (2017). In
the basis of histories h_1 ... h_d, x are the coefficients c(x) with

    z(o | x f) = sum_i c_i(x) z(o | h_i f)        for all futures f.

Beside the model in probability space (`lowrank.model`): both hold a table of the basis
histories' answers and, for each token, a change of basis. There the coefficients combine
conditional laws, so reading o multiplies by P(o | h_i) and divides by q_o (Bayes' rule).
Here they combine logits, which a softmax normalises only when they are read: the update is
the change of basis alone, the same for every x, and no coefficient sum or sign is special.
"""

import dataclasses
import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.batch import apply_by_token
from myna.lowrank.student import State, StepInfo, Stepped
from myna.spec import Spec, fingerprint


@dataclasses.dataclass(frozen=True)
class IsanStep:
    """What is stored at one cut.

    logits: (rank, token), B[i, o] = z(o | h_i), nats; a constant a row is without effect
    change: (rank, token, next_rank), A_o[i, j]: z(. | h_i o f) = sum_j A_o[i, j] z(. | h'_j f);
        zero where o ends the sequence
    histories: the basis histories h_i, for people to read; none where x has another basis
    """

    logits: Float[Tensor, "rank token"]
    change: Float[Tensor, "rank token next_rank"]
    histories: tuple[tuple[int, ...], ...] = ()

    @property
    def rank(self) -> int:
        """The dimension of x here."""
        return len(self.logits)

    @functools.cached_property
    def operators(self) -> Float[Tensor, "token rank next_rank"]:
        """A_o, token first, contiguous."""
        return self.change.transpose(0, 1).contiguous()


@dataclasses.dataclass(frozen=True)
class Isan(Stepped):
    """An input-switched affine network: a Student.

    spec: alphabet, stop token, horizon, fingerprint
    first: (rank,), x after the empty history
    steps: step t is steps[min(t, len(steps) - 1)], so one step means stationary

    Raises:
        InputError: where shapes disagree.
    """

    spec: Spec
    first: Float[Tensor, " rank"]
    steps: tuple[IsanStep, ...]

    def __post_init__(self) -> None:
        """Check that each step ends in the next one's dimension."""
        if not self.steps:
            raise InputError("a network needs at least one step, got none")
        ranks = [len(self.first), *(step.change.shape[2] for step in self.steps)]
        for t, step in enumerate(self.steps):
            if step.logits.shape[1] != self.spec.num_tokens:
                raise InputError(
                    f"step {t} has logits over {step.logits.shape[1]} tokens, and the alphabet "
                    f"has {self.spec.num_tokens}; they must be equal"
                )
            if ranks[t] != step.rank or step.change.shape[:2] != step.logits.shape:
                raise InputError(
                    f"step {t} has dimension {step.rank} and matrices "
                    f"{tuple(step.change.shape)}, but the step before ends in {ranks[t]}"
                )
        last = self.steps[-1]
        outlives = self.spec.horizon is None or self.spec.horizon > len(self.steps)
        if outlives and last.change.shape[2] != last.rank:
            raise InputError(
                "the last step serves all later positions, so its matrices must be square; "
                f"they go from dimension {last.rank} to {last.change.shape[2]}"
            )

    @classmethod
    def of(
        cls, language: Spec, first: Float[Tensor, " rank"], steps: tuple[IsanStep, ...]
    ) -> "Isan":
        """A network over a language, with a fingerprint of its own numbers."""
        tables = [table for step in steps for table in (step.logits, step.change)]
        mark = fingerprint(
            "isan", language.alphabet, language.stop, language.horizon, first, *tables
        )
        return cls(dataclasses.replace(language, fingerprint=mark), first, steps)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The dimension at each stored cut."""
        return tuple(step.rank for step in self.steps)

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored."""
        return len(self.first) + sum(s.logits.numel() + s.change.numel() for s in self.steps)

    def to(self, device: torch.device | str) -> "Isan":
        """The same network with its tensors on another device."""
        steps = tuple(
            IsanStep(s.logits.to(device), s.change.to(device), s.histories) for s in self.steps
        )
        return Isan(self.spec, self.first.to(device), steps)

    def step_at(self, position: int) -> IsanStep:
        """The step that reads the token at `position`."""
        return self.steps[min(position, len(self.steps) - 1)]

    def initial(self, batch: int) -> State:
        """The empty history's x, repeated."""
        return State(self.first.expand(batch, -1), 0)

    def logits(self, state: State) -> Float[Tensor, "batch token"]:
        """The read-out z = x B_t, nats, up to a constant a row."""
        return state.vector @ self.step_at(state.position).logits

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log Q(o | x): the logits through a softmax (nats)."""
        return self.logits(state).log_softmax(1)

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """One matrix product a row; rows that read the same token share it."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        operators = self.step_at(state.position).operators
        moved = apply_by_token(operators, state.vector, tokens)
        return State(moved, state.position + 1), StepInfo(log_prob)
