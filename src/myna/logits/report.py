"""Settings of the learners in logit space, and what they report."""

import dataclasses
import enum

from myna.errors import InputError
from myna.lowrank.isan import Isan
from myna.teachers.account import Account


class LogitOutcome(enum.Enum):
    """How learning ended."""

    VERIFIED = "verified"
    MISMATCH_LEFT = "mismatch left"
    NOT_LOW_RANK = "not low rank"
    BUDGET_EXHAUSTED = "budget exhausted"


@dataclasses.dataclass(frozen=True)
class LogitSettings:
    """What the exact-rank learner in logit space may choose.

    stationary: one basis for all cuts; None takes one per cut where there is a horizon
    tolerance: a row of centred logits within this Euclidean distance (nats) of the span
        lies in it
    mismatch: a law off by more than this (total variation) is a counterexample
    spanner_bound: C, the largest coefficient that a candidate may need
    max_rank: the cap; above it the result is "not low rank"
    verify_histories: fresh histories at which laws are compared, from the teacher and again
        from the copy: all prefixes of whole strings
    verify_strings: the fewest strings these come from, on each side
    max_tokens: without a horizon, cut fresh strings at this length
    max_rounds: how many times to repair and verify again
    """

    stationary: bool | None = None
    tolerance: float = 1e-9
    mismatch: float = 1e-8
    spanner_bound: float = 2.0
    max_rank: int = 256
    verify_histories: int = 1000
    verify_strings: int = 16
    max_tokens: int = 1000
    max_rounds: int = 200

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if not (self.tolerance > 0 and 0 < self.mismatch < 1):
            raise InputError(
                "the tolerance must be positive and the mismatch lie between 0 and 1, got "
                f"{self.tolerance} and {self.mismatch}"
            )
        if self.spanner_bound <= 1:
            raise InputError(f"the spanner bound must exceed 1, got {self.spanner_bound}")
        for name in ("max_rank", "verify_histories", "verify_strings", "max_tokens", "max_rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class LogitCut:
    """What was found at one cut (for a stationary copy: over all cuts together).

    cut: t, the length of the histories, or None for all lengths
    logit_rank: of the centred logits of histories against the futures in the table
    next_token_rank: of the next-token logits alone; at most logit_rank
    candidates: histories looked at
    futures: words in the table (a row costs one query a word)
    longest_future: tokens in the longest future
    condition: of the basis rows
    singular_values: of the basis rows, nats, largest first
    """

    cut: int | None
    logit_rank: int
    next_token_rank: int
    candidates: int
    futures: int
    longest_future: int
    condition: float
    singular_values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LogitVerification:
    """A check along fresh strings.

    teacher_strings, student_strings: whole strings drawn from each
    histories: prefixes of both whose laws were compared, repeats counted
    teacher_worst, student_worst: the largest total variation of two next-token laws at a
        prefix of a string from the teacher, and from the copy
    clean: whether both <= the mismatch setting
    """

    teacher_strings: int
    student_strings: int
    histories: int
    teacher_worst: float
    student_worst: float
    clean: bool


@dataclasses.dataclass(frozen=True)
class LogitRefusal:
    """Why no compact copy exists in logit space.

    cut: where the cap was exceeded, or None for a stationary copy
    at_least: logit rank found there (one more than the cap)
    singular_values: of the independent rows, nats, largest first
    """

    cut: int | None
    at_least: int
    singular_values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LogitReport:
    """What learning found and what it cost.

    outcome, reason: how it ended, and one sentence for people
    stationary: one basis for all cuts, or one per cut
    rounds: copies that were checked
    cuts: one entry a cut
    verification: the last check, or None where there was none
    refusal: evidence, where the logit rank exceeds the cap
    accounts: what each purpose spent
    queries_by_cut: each purpose's next-token queries by length of the prefix
    seconds: wall-clock time
    """

    outcome: LogitOutcome
    reason: str
    stationary: bool
    rounds: int
    cuts: tuple[LogitCut, ...]
    verification: LogitVerification | None
    refusal: LogitRefusal | None
    accounts: dict[str, Account]
    queries_by_cut: dict[str, tuple[int, ...]]
    seconds: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The logit rank at each cut."""
        return tuple(cut.logit_rank for cut in self.cuts)


@dataclasses.dataclass(frozen=True)
class LogitResult:
    """A student and the report on it; no student where the logit rank exceeds the cap."""

    student: Isan | None
    report: LogitReport
