"""A deterministic machine as a teacher: a state number, a law and moves for each state.

    state(x o) = moves[state(x), o],      P(o | x) = laws[state(x), o],      state(empty) = 0

A copy with one coordinate a state is the same language at the cost of matrices; this looks rows up.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.machine import Machine
from myna.lowrank.student import State, StepInfo
from myna.spec import Spec, fingerprint
from myna.teachers.hmm import check_stochastic
from myna.teachers.stepped import SteppedTeacher


class MachineTeacher(SteppedTeacher):
    """A machine that answers at all three levels; the state is a number.

    machine: without a horizon; a move of -1 stands where the token cannot come or ends the string

    Raises:
        InputError: laws that do not add up to one, or a possible token that leads nowhere.
    """

    def __init__(self, machine: Machine):
        """Check and keep the tables."""
        spec = machine.spec
        if spec.horizon is not None:
            raise InputError(f"a machine with states alone has no horizon, got {spec.horizon}")
        check_stochastic("laws", machine.laws)
        ends = torch.zeros(spec.num_tokens, dtype=torch.bool)
        if spec.stop is not None:
            ends[spec.stop] = True
        lost = (machine.laws > 0) & (machine.moves < 0) & ~ends
        if bool(lost.any()):
            state, token = lost.nonzero()[0].tolist()
            raise InputError(
                f"in state {state} the token {spec.alphabet[token]!r} may come and leads nowhere; "
                "give it a state to lead to"
            )
        self._laws, self._moves = machine.laws.double().log(), machine.moves
        mark = fingerprint("machine", spec.alphabet, spec.stop, machine.laws, machine.moves)
        self._spec = Spec(spec.alphabet, spec.stop, None, mark)

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, fingerprint; no horizon."""
        return self._spec

    def initial(self, batch: int) -> State:
        """State 0."""
        return State(torch.zeros((batch, 1), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log P(token | prefix)."""
        return self._laws[state.vector[:, 0].long()]

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Look the next state up; a token that leads nowhere leaves the state as it was."""
        number = state.vector[:, 0].long()
        moved = self._moves[number, tokens]
        moved = torch.where(moved < 0, number, moved)
        log_prob = self._laws[number, tokens]
        return State(moved[:, None].double(), state.position + 1), StepInfo(log_prob)
