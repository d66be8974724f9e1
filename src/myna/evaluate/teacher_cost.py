"""What a teacher takes beside its copies: bytes, and nanoseconds a token.

A teacher that is stepped here is scored as its copies are: the same strings, all at once, the best
of a few runs. Any other teacher answers law by law, so a token costs

    seconds of asking the laws along a few strings / laws asked,

each law once; what is asked is counted, and what the ledger knew is not. Bytes are those of the tables that the model is, as they
stand, and unknown for a function or behind an API.
"""

import dataclasses
import time

from myna.evaluate.speed import scoring_rate
from myna.lowrank.student import Strings
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import Samples
from myna.teachers.stepped import SteppedTeacher

_FEW = 50  # strings along which laws are asked one by one
_REPEATS = 2  # of scoring, after the run that makes tables


@dataclasses.dataclass(frozen=True)
class TeacherCost:
    """What one teacher takes.

    bytes: of its tables, None where they are not known
    nanoseconds: a token scored, or a law asked; None where the ledger knew every law
    asked: laws that were asked to find out; 0 where the teacher is stepped here as well
    """

    bytes: int | None
    nanoseconds: float | None
    asked: int


def teacher_cost(teacher: Samples, ledger: Ledger, drawn: Strings) -> TeacherCost:
    """The cost of a teacher along strings.

    ledger: of that teacher, best one that knows nothing yet; laws are charged to "time"
    drawn: strings of the teacher's language, none empty

    Raises:
        TeacherError: for a teacher that shows no laws.
        BudgetExhausted: where the ledger allows fewer laws.
    """
    if isinstance(teacher, SteppedTeacher):
        return TeacherCost(teacher.num_bytes, 1e9 / scoring_rate(teacher, drawn, _REPEATS), 0)
    view = ledger.laws("time")
    few = Strings(drawn.tokens[:_FEW], drawn.lengths[:_FEW])
    before, started = view.spent(), time.perf_counter()
    view.score(few)
    spent, asked = time.perf_counter() - started, (view.spent() - before).next_token_queries
    return TeacherCost(None, 1e9 * spent / asked if asked else None, asked)
