"""The exact learner: a low-rank copy from next-token laws, checked before it stops.

    close    grow a basis of histories until the table explains every child
    verify   compare laws along fresh strings from the teacher and from the copy
    repair   each counterexample names a future that the table lacked; close again

Every repair raises the rank at some cut, so there are at most rank x cuts of them.
Exact case of Kakade, Krishnamurthy, Mahajan and Zhang (arXiv 2302.14753), which
generalises Angluin's L*, with barycentric spanners for bases (Liu and Moitra, arXiv
2411.07536). We differ in three ways: futures start at one token and grow only where a
counterexample demands it; bases are spanners, so coefficients stay at most C; and the
copy reports what its own verification certifies.
"""

import dataclasses
import time
from collections.abc import Callable

import torch

from myna.errors import BudgetExhausted, InputError
from myna.learn.hypothesis import Hypothesis
from myna.learn.report import (
    Claim,
    CutReport,
    ExactSettings,
    LearnReport,
    LearnResult,
    Outcome,
    Refusal,
    Structure,
    Verification,
)
from myna.learn.stationary import Stationary
from myna.learn.table import NotLowRank
from myna.learn.varying import CutNotLowRank, TimeVarying, uniform_student
from myna.learn.verify import Verifier
from myna.lowrank.model import LowRankModel
from myna.teachers.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where learning stands, for whoever shows it.

    stage: "close", "verify" or "repair"
    round: hypotheses closed so far
    rank: the largest rank over the cuts of the last hypothesis
    queries: next-token queries spent
    """

    stage: str
    round: int
    rank: int
    queries: int


@dataclasses.dataclass
class _Run:
    """What a run has reached; the budget may end it anywhere.

    cuts: of the student, as the hypothesis may be half changed since
    """

    student: LowRankModel | None = None
    cuts: tuple[CutReport, ...] = ()
    verification: Verification | None = None
    rounds: int = 0


def learn_exact(
    ledger: Ledger,
    settings: ExactSettings,
    generator: torch.Generator,
    progress: Callable[[Progress], None] = lambda _: None,
) -> LearnResult:
    """Learn a copy of the ledger's teacher from its laws.

    ledger: the teacher, its budget, and the account
    generator: draws the student's own strings for verification

    Raises:
        TeacherError: where the teacher does not show laws, or shows no laws.
        InputError: where the chosen structure cannot fit the teacher.
    """
    started = time.perf_counter()
    structure = settings.structure or (
        Structure.STATIONARY if ledger.spec.horizon is None else Structure.TIME_VARYING
    )
    view = ledger.laws("learn")
    kind = Stationary if structure is Structure.STATIONARY else TimeVarying
    hypothesis: Hypothesis = kind(view, settings)
    verifier = Verifier(ledger.laws("verify"), settings, generator)
    run, refusal = _Run(), None
    try:
        outcome, reason = _rounds(hypothesis, verifier, settings, ledger, run, progress)
    except BudgetExhausted as stop:
        outcome, left = Outcome.BUDGET_EXHAUSTED, "this is the best copy so far"
        if run.student is None:
            run.student = hypothesis.partial()
            run.cuts = hypothesis.reports()
        if run.student is None:
            run.student = uniform_student(view)
            left = "nothing was learned before, and this copy takes all tokens for equally likely"
        reason = f"{stop}; {left}"
    except NotLowRank as stop:
        outcome, run.student = Outcome.NOT_LOW_RANK, None
        refusal = _refusal(stop)
        reason = _not_low_rank(refusal, settings.max_rank)
    report = LearnReport(
        outcome=outcome,
        reason=reason,
        structure=structure,
        stationarity=Claim.CLAIMED if structure is Structure.STATIONARY else Claim.NOT_USED,
        rounds=run.rounds,
        cuts=() if refusal else run.cuts,
        verification=run.verification,
        refusal=refusal,
        accounts=ledger.accounts(),
        queries_by_cut={p: ledger.queries_by_cut(p) for p in ledger.accounts()},
        seconds=time.perf_counter() - started,
    )
    return LearnResult(run.student, report)


def learn_testing_stationarity(
    ledger: Ledger,
    settings: ExactSettings,
    generator: torch.Generator,
    progress: Callable[[Progress], None] = lambda _: None,
) -> LearnResult:
    """Try one basis for all cuts; where fresh histories refute it, one basis per cut.

    The second attempt pays nothing for what the first one asked. A teacher without a
    horizon has no second form, so its first result stands.
    """
    stationary = dataclasses.replace(settings, structure=Structure.STATIONARY)
    try:
        first = learn_exact(ledger, stationary, generator, progress)
    except InputError:
        if ledger.spec.horizon is None:
            raise
        first = None  # the horizon is too short for histories of mixed lengths
    refuting = (Outcome.MISMATCH_LEFT, Outcome.NOT_LOW_RANK)
    if first is not None and (first.report.outcome not in refuting or ledger.spec.horizon is None):
        return _claiming(first, Claim.TESTED)
    varying = dataclasses.replace(settings, structure=Structure.TIME_VARYING)
    return _claiming(learn_exact(ledger, varying, generator, progress), Claim.REJECTED)


def _claiming(result: LearnResult, claim: Claim) -> LearnResult:
    return LearnResult(result.student, dataclasses.replace(result.report, stationarity=claim))


def _rounds(
    hypothesis: Hypothesis,
    verifier: Verifier,
    settings: ExactSettings,
    ledger: Ledger,
    run: _Run,
    progress: Callable[[Progress], None],
) -> tuple[Outcome, str]:
    """Close, verify, repair, until nothing is wrong or nothing can be mended."""

    def tell(stage: str) -> None:
        rank = max(run.student.ranks) if run.student else 1
        progress(Progress(stage, run.rounds, rank, ledger.total().next_token_queries))

    while run.rounds < settings.max_rounds:
        tell("close")
        closed = hypothesis.close()
        run.student, run.cuts, run.verification = closed, hypothesis.reports(), None
        run.rounds += 1
        tell("verify")
        check = verifier.check(closed)
        run.verification = check.verification
        if check.verification.clean:
            return Outcome.VERIFIED, _clean(check.verification, settings)
        tell("repair")
        if not hypothesis.repair(closed, check):
            break
    worst = run.verification.worst if run.verification else float("nan")
    return Outcome.MISMATCH_LEFT, (
        f"after {run.rounds} rounds fresh histories still show laws that differ by {worst:.2g}, "
        "and no future in reach tells the histories apart; a smaller tolerance may"
    )


def _clean(verification: Verification, settings: ExactSettings) -> str:
    bound = verification.bad_string_bound()
    return (
        f"all laws agreed to {settings.mismatch:g} on {verification.histories:,} fresh histories; "
        f"with 99% confidence at most {bound:.1%} of the teacher's strings have a law that does not"
    )


def _refusal(stop: NotLowRank) -> Refusal:
    cut = stop.cut if isinstance(stop, CutNotLowRank) else None
    return Refusal(cut, stop.at_least, tuple(stop.singular_values.tolist()))


def _not_low_rank(refusal: Refusal, cap: int) -> str:
    where = "over all cuts" if refusal.cut is None else f"at cut {refusal.cut}"
    return (
        f"{where} the rank is at least {refusal.at_least}, above the cap of {cap}; "
        "raise the cap if a copy of that size is wanted"
    )
