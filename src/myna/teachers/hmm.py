"""Hidden Markov models as teachers.

    P(x_1 ... x_T) = sum over s of  pi(s_1) E_1(s_1, x_1) T_1(s_1, s_2) E_2(s_2, x_2) ...

The state is the filtered belief a_t(s) = P(s_{t+1} = s | x_1 ... x_t), so

    P(o | x) = sum_s a(s) E(s, o),    a'(s') = sum_s a(s) E(s, o) T(s, s') / P(o | x).

Transitions and emissions may differ by time step. Every cut has rank at most the
number of states (talk, "Low rank language models").
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import State, StepInfo
from myna.spec import Spec, fingerprint, numbered
from myna.teachers.stepped import SteppedTeacher, bytes_of


class Hmm(SteppedTeacher):
    """A hidden Markov model, stationary or time-varying.

    initial_law: (state,), the law of the first hidden state
    transition: (step, state, state), rows sum to one; one step means stationary
    emission: (step, state, token), rows sum to one; one step means stationary

    Raises:
        InputError: shapes that disagree, negative entries, rows that do not sum to one.
    """

    def __init__(
        self,
        initial_law: Float[Tensor, " state"],
        transition: Float[Tensor, "step state state"],
        emission: Float[Tensor, "estep state token"],
        *,
        horizon: int | None = None,
        stop: int | None = None,
        alphabet: tuple[str, ...] | None = None,
    ):
        """Check and keep the parameters."""
        for name, table in [
            ("initial law", initial_law),
            ("transition", transition),
            ("emission", emission),
        ]:
            check_stochastic(name, table)
        self._initial, self._transition, self._emission = initial_law, transition, emission
        self._spec = Spec(
            alphabet=alphabet or numbered(emission.shape[-1]),
            stop=stop,
            horizon=horizon,
            fingerprint=fingerprint(
                "hmm", initial_law, transition, emission, horizon, stop, alphabet
            ),
        )

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    @property
    def num_states(self) -> int:
        """Number of hidden states: a bound on the rank at every cut."""
        return len(self._initial)

    @property
    def num_bytes(self) -> int | None:
        """Of the three tables."""
        return bytes_of((self._initial, self._transition, self._emission))

    @property
    def initial_law(self) -> Float[Tensor, " state"]:
        """The law of the first hidden state."""
        return self._initial

    @property
    def transition(self) -> Float[Tensor, "step state state"]:
        """Table t moves from position t to t + 1; the last serves all later."""
        return self._transition

    @property
    def emission(self) -> Float[Tensor, "estep state token"]:
        """Table t emits at position t; the last serves all later."""
        return self._emission

    def _at(self, table: Tensor, position: int) -> Tensor:
        return table[min(position, len(table) - 1)]

    def initial(self, batch: int) -> State:
        """The belief before any token."""
        return State(self._initial.expand(batch, -1).clone(), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log of a E."""
        return (state.vector @ self._at(self._emission, state.position)).log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Bayes' rule, then one transition."""
        emission = self._at(self._emission, state.position)
        joint = state.vector * emission.T[tokens]
        mass = joint.sum(1, keepdim=True)
        # An impossible token leaves no belief: all zeros rather than NaN.
        belief = torch.where(mass > 0, joint / mass, torch.zeros_like(joint))
        moved = belief @ self._at(self._transition, state.position)
        return State(moved, state.position + 1), StepInfo(mass[:, 0].log())


def check_stochastic(name: str, table: Tensor) -> None:
    """Refuse rows that are no probability laws.

    Raises:
        InputError: naming the table, the row and what it sums to.
    """
    if not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
        raise InputError(f"the {name} must hold finite probabilities >= 0; check its entries")
    sums = table.sum(-1)
    if bool(((sums - 1).abs() > 1e-6).any()):
        where = ((sums - 1).abs() > 1e-6).nonzero()[0].tolist()
        total = f"sums to {float(sums[tuple(where)]):.6g}"
        if not where:
            raise InputError(f"the {name} must sum to 1; it {total}")
        # tables of one step are often given without it
        row = where[1:] if table.dim() == 3 and len(table) == 1 else where
        raise InputError(f"each row of the {name} must sum to 1; row {row} {total}")
