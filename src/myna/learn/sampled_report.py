"""Settings of the learner from samples, and what it reports."""

import dataclasses
import enum

from myna.errors import InputError
from myna.learn.report import Structure
from myna.lowrank.student import Student
from myna.teachers.ledger import Account


class Kind(enum.Enum):
    """What the student is."""

    LOW_RANK = "low-rank"
    HMM = "hmm"


class Projection(enum.Enum):
    """The set K onto which generation projects its coefficients."""

    NONE = "none"
    TRUNCATE = "truncate"
    BOX = "box"
    HULL = "hull"


@dataclasses.dataclass(frozen=True)
class SampledSettings:
    """What the learner from samples may choose; the defaults serve every teacher.

    budget: tokens to spend in all, learning and checking together: those that the teacher
        generates and, with `count_prompts`, those of the prompts
    structure: one basis per cut or one for all; None takes time-varying where the teacher
        has a horizon and stationary where it has none
    count_prompts: whether prompts count against the budget
    kind: a low-rank model, or hidden Markov parameters started at it
    states: hidden states of the hidden Markov student; None takes the largest rank
    projection: what generation projects its coefficients onto
    level: of each test that a singular value is noise (one of 0.05, 0.01, 0.001)
    max_rank: the cap S
    spanner_bound: C, the largest coefficient that a basis may need
    refine: whether likelihood is maximised over all answers, from the spanner's copy
    max_rounds: how many times words found by checking may be added
    max_tokens: without a horizon, cut plain completions at this length
    plain, table, words, check: shares of the budget for plain completions at first, for
        histories and their children, for words that checking asked for, and for checking;
        what is left in the end buys further plain completions
    """

    budget: int
    structure: Structure | None = None
    count_prompts: bool = False
    kind: Kind = Kind.LOW_RANK
    states: int | None = None
    projection: Projection = Projection.NONE
    level: float = 0.001
    max_rank: int = 64
    spanner_bound: float = 2.0
    refine: bool = True
    max_rounds: int = 4
    max_tokens: int = 100
    plain: float = 0.45
    table: float = 0.2
    words: float = 0.2
    check: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if self.level not in (0.05, 0.01, 0.001):
            raise InputError(f"the level of the rank test is 0.05, 0.01 or 0.001, got {self.level}")
        if self.spanner_bound <= 1:
            raise InputError(f"the spanner bound must exceed 1, got {self.spanner_bound}")
        for name in ("budget", "max_rank", "max_rounds", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.states is not None and self.states < 1:
            raise InputError(f"states must be at least 1, got {self.states}")
        shares = (self.plain, self.table, self.words, self.check)
        if min(shares) <= 0 or sum(shares) > 1:
            raise InputError(
                f"shares of the budget must be positive and at most 1 in all, got {shares}"
            )


@dataclasses.dataclass(frozen=True)
class SampledCut:
    """What samples showed at one cut (for a stationary copy: over all cuts together).

    cut: t, the length of the histories, or None for all lengths
    rank: the first r at which what is left looks like noise
    singular_values: of the whitened table that showed it, largest first
    noise_edges: what the next one was held against at rank 0, 1, ..., rank
    histories: basis histories of the copy
    rows: histories with draws of their own
    draws: completions a history, the median
    words: futures longer than the table's own that checking asked for
    """

    cut: int | None
    rank: int
    singular_values: tuple[float, ...]
    noise_edges: tuple[float, ...]
    histories: tuple[tuple[int, ...], ...]
    rows: int
    draws: float
    words: int


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """Fresh prefixes of another stream, several next tokens each, against the copy.

    prefixes: prefixes drawn from the teacher, over all cuts
    draws: next tokens a prefix
    kl_nats: half of the sum over cuts of the mean chi-square distance of the laws over
        distinct prefixes, near KL(P || Q) a string to second order; it may be below zero
    standard_error: of kl_nats
    contradicted: prefixes whose draws the copy makes all but impossible
    """

    prefixes: int
    draws: int
    kl_nats: float
    standard_error: float
    contradicted: int


@dataclasses.dataclass(frozen=True)
class SampledReport:
    """What learning from samples found and what it cost.

    reason: one sentence for people
    structure: one basis per cut, or one for all
    rounds: times that tables were read
    cuts: one entry a cut
    check: the last check; the estimated error
    mean_log_likelihood: of held-out strings under the copy, nats a token
    stages: that figure after each stage: spanner, then each stage of refinement
    outside: share of fresh histories whose coefficients lie outside K, None without K
    accounts: what each purpose spent
    sampled_tokens: tokens that the teacher generated
    prompt_tokens: tokens of prompts sent
    seconds: wall-clock time
    """

    reason: str
    structure: Structure
    rounds: int
    cuts: tuple[SampledCut, ...]
    check: CheckReport | None
    mean_log_likelihood: float
    stages: tuple[tuple[str, float], ...]
    outside: float | None
    accounts: dict[str, Account]
    sampled_tokens: int
    prompt_tokens: int
    seconds: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank at each cut."""
        return tuple(cut.rank for cut in self.cuts)


@dataclasses.dataclass(frozen=True)
class SampledResult:
    """A student and the report on it."""

    student: Student
    report: SampledReport
