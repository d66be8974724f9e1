"""Probabilistic automata with a stop: weighted automata whose weights are laws.

    P(x_1 ... x_T stop) = I' M(x_1) ... M(x_T) F,    M(a)[q, q'] = P(a, q' | q)

with F(q) + sum over a, q' of P(a, q' | q) = 1. The state is the law of q given the
prefix. The stop is an ordinary token, the last of the alphabet.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import State, StepInfo
from myna.spec import Spec, fingerprint, numbered
from myna.teachers.hmm import check_stochastic
from myna.teachers.stepped import SteppedTeacher, bytes_of


class Automaton(SteppedTeacher):
    """A probabilistic automaton; token O-1 stops.

    initial_law: (state,)
    moves: (letter, state, state), P(letter, next state | state)
    stopping: (state,), F

    Raises:
        InputError: where a state's moves and stop do not add up to one.
    """

    def __init__(
        self,
        initial_law: Float[Tensor, " state"],
        moves: Float[Tensor, "letter state state"],
        stopping: Float[Tensor, " state"],
        *,
        letters: tuple[str, ...] | None = None,
    ):
        """Check and keep the parameters."""
        check_stochastic("initial law", initial_law)
        letters = letters or numbered(len(moves))
        # (state, token): P(token | state), the stop last
        emitted = torch.cat([moves.sum(2).T, stopping[:, None]], 1)
        check_stochastic("moves and stop of each state", emitted)
        if "<stop>" in letters:
            raise InputError("a letter may not be called '<stop>', the name of the stop token")
        self._initial, self._moves, self._emitted = initial_law, moves, emitted
        self._spec = Spec(
            alphabet=(*letters, "<stop>"),
            stop=len(letters),
            horizon=None,
            fingerprint=fingerprint("automaton", initial_law, moves, stopping, letters),
        )

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    @property
    def num_states(self) -> int:
        """Number of states: a bound on the rank."""
        return len(self._initial)

    @property
    def num_bytes(self) -> int | None:
        """Of the three tables."""
        return bytes_of((self._initial, self._moves, self._emitted))

    def initial(self, batch: int) -> State:
        """The law of the first state."""
        return State(self._initial.expand(batch, -1).clone(), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log P(token | prefix)."""
        return (state.vector @ self._emitted).log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Rows are grouped by letter, so each letter costs one matrix product."""
        moved = torch.zeros_like(state.vector)
        for letter in tokens.unique().tolist():
            rows = (tokens == letter).nonzero()[:, 0]
            if letter == self._spec.stop:
                continue
            moved[rows] = state.vector[rows] @ self._moves[letter]
        mass = (state.vector * self._emitted.T[tokens]).sum(1)
        total = moved.sum(1, keepdim=True)
        moved = torch.where(total > 0, moved / total, moved)
        return State(moved, state.position + 1), StepInfo(mass.log())
