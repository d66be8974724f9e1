"""Any teacher that shows laws, stepped: its state is the prefix itself.

The default for teachers that have no state of their own to step, a function or a model
behind an interface: each step only remembers one more token, and `law` asks.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.student import State, StepInfo
from myna.spec import Spec
from myna.teachers.oracle import Laws
from myna.teachers.prefixes import Prefixes
from myna.teachers.stepped import SteppedTeacher


class PrefixState(SteppedTeacher):
    """A teacher stepped through its laws.

    teacher: every `law` and every `step` asks it about the prefixes so far
    """

    def __init__(self, teacher: Laws):
        """Wrap a teacher, or a ledger's view of one."""
        self._teacher = teacher

    @property
    def spec(self) -> Spec:
        """The teacher's own."""
        return self._teacher.spec

    def initial(self, batch: int) -> State:
        """No token read yet: vectors of width zero."""
        return State(torch.empty((batch, 0), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """The teacher's laws (nats)."""
        lengths = torch.full((len(state.vector),), state.position)
        return self._teacher.laws(Prefixes(state.vector.long(), lengths))

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Append the token; its probability is read from the law before it."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        vector = torch.cat([state.vector, tokens[:, None].double()], 1)
        return State(vector, state.position + 1), StepInfo(log_prob)
