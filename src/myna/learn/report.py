"""Settings of the exact learner, and what it reports."""

import dataclasses
import enum
import math

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.teachers.ledger import Account


class Structure(enum.Enum):
    """One basis per cut, or one for all cuts."""

    TIME_VARYING = "time-varying"
    STATIONARY = "stationary"


class Claim(enum.Enum):
    """What is known of stationarity."""

    NOT_USED = "not used"
    CLAIMED = "claimed by the caller or by the lack of a horizon; checked on fresh histories"
    TESTED = "tested: the one-basis copy passed on fresh histories"
    REJECTED = "tested: the one-basis copy failed, so one basis per cut was learned"


class Outcome(enum.Enum):
    """How learning ended."""

    VERIFIED = "verified"
    MISMATCH_LEFT = "mismatch left"
    NOT_LOW_RANK = "not low rank"
    BUDGET_EXHAUSTED = "budget exhausted"


@dataclasses.dataclass(frozen=True)
class ExactSettings:
    """What the exact learner may choose.

    structure: one basis per cut or one for all; None takes time-varying where the
        teacher has a horizon and stationary where it has none
    tolerance: a row whose scaled residual is below this lies in the span
    mismatch: a law that differs by more than this (in any entry) is a counterexample
    spanner_bound: C, the largest coefficient that a basis may need
    max_rank: the cap S; above it the result is "not low rank"
    verify_histories: fresh histories to check, from the teacher and again from the student
    verify_strings: the fewest whole strings these come from, on each side; histories of
        one string are not independent, so long strings alone would check little
    max_tokens: without a horizon, cut fresh sequences at this length
    max_rounds: how many times to repair and verify again
    """

    structure: Structure | None = None
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
        if not 0 < self.tolerance <= self.mismatch < 1:
            raise InputError(
                "tolerances must satisfy 0 < tolerance <= mismatch < 1, got "
                f"{self.tolerance} and {self.mismatch}"
            )
        if self.spanner_bound <= 1:
            raise InputError(f"the spanner bound must exceed 1, got {self.spanner_bound}")
        for name in ("max_rank", "verify_histories", "verify_strings", "max_tokens", "max_rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class CutReport:
    """What was found at one cut (for a stationary copy: over all cuts together).

    cut: t, the length of the histories, or None for all lengths
    rank: of the Hankel block, rows P(future | history): the rank that learning needs
    next_token_rank: of the next-token laws alone, rows P(token | history); at most rank
    candidates: histories looked at
    futures: words in the table (a row costs one query a word)
    longest_future: tokens in the longest word
    condition: of the scaled basis rows
    singular_values: of the scaled basis rows, largest first
    """

    cut: int | None
    rank: int
    next_token_rank: int
    candidates: int
    futures: int
    longest_future: int
    condition: float
    singular_values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Verification:
    """A check on fresh strings.

    teacher_strings: whole strings drawn from the teacher
    student_strings: whole strings drawn from the student
    histories: prefixes of both whose laws were compared, repeats counted
    worst: largest |P(o | x) - Q(o | x)| seen
    clean: whether worst <= the mismatch setting
    """

    teacher_strings: int
    student_strings: int
    histories: int
    worst: float
    clean: bool

    def bad_string_bound(self, confidence: float = 0.99) -> float:
        """An upper bound on the share of strings with a law off by more than `mismatch`.

        n clean strings drawn from the teacher: P(all clean) = (1 - b)^n, so with the
        given confidence b <= 1 - (1 - confidence)^(1/n). One where nothing was clean.
        """
        if not self.clean or not self.teacher_strings:
            return 1.0
        return -math.expm1(math.log1p(-confidence) / self.teacher_strings)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why no compact copy exists.

    cut: where the cap was exceeded, or None for a stationary copy
    at_least: rank found there (one more than the cap)
    singular_values: of the scaled independent rows, largest first
    """

    cut: int | None
    at_least: int
    singular_values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LearnReport:
    """What learning found and what it cost.

    outcome: how it ended
    reason: one sentence for people
    structure: one basis per cut, or one for all
    stationarity: whether that was claimed or tested
    rounds: hypotheses that were checked
    cuts: one entry a cut
    verification: the last check, or None where there was none
    refusal: evidence, where the teacher is not low rank
    accounts: what each purpose spent
    queries_by_cut: each purpose's next-token queries by length of the prefix
    seconds: wall-clock time
    """

    outcome: Outcome
    reason: str
    structure: Structure
    stationarity: Claim
    rounds: int
    cuts: tuple[CutReport, ...]
    verification: Verification | None
    refusal: Refusal | None
    accounts: dict[str, Account]
    queries_by_cut: dict[str, tuple[int, ...]]
    seconds: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The Hankel rank at each cut."""
        return tuple(cut.rank for cut in self.cuts)


@dataclasses.dataclass(frozen=True)
class LearnResult:
    """A student and the report on it; no student where the teacher is not low rank."""

    student: LowRankModel | None
    report: LearnReport
