"""The exact-rank learner in logit space: a network from next-token laws, checked.

    close    grow bases of actual logit rows until the tables explain every child
    verify   compare laws along fresh strings from the teacher and from the copy
    repair   each miss names a future that the table lacked; close again

Every repair raises the logit rank at some cut, so there are at most rank x cuts of them.
The closed form of Golowich, Liu and Shetty's learner (arXiv 2512.09892) for exact rank:
maximum-volume rows, coefficients that evolve by the change of basis. Exact where the logit
rank is exact; noise in the logits may grow along a string, which their linear program
bounds (`logits.provable`). We differ in growing futures by witnesses here too, and in
the copy reporting its own verification. One shape of code with `myna.learn.exact`, where
tables hold probabilities; here no Bayes normaliser enters.
"""

import dataclasses
import time
from collections.abc import Callable

import torch

from myna.errors import BudgetExhausted
from myna.logits.check import FreshStrings, Miss, compare
from myna.logits.report import (
    LogitCut,
    LogitOutcome,
    LogitRefusal,
    LogitReport,
    LogitResult,
    LogitSettings,
    LogitVerification,
)
from myna.logits.structure import (
    LogitHypothesis,
    StationaryLogits,
    VaryingLogits,
)
from myna.logits.table import History, LogitRankExceeded
from myna.lowrank.isan import Isan, IsanStep
from myna.spec import Spec
from myna.teachers.ledger import LawsView, Ledger
from myna.teachers.prefixes import Prefixes


@dataclasses.dataclass(frozen=True)
class LogitProgress:
    """Where learning stands: stage, copies closed so far, the largest rank, queries spent."""

    stage: str
    round: int
    rank: int
    queries: int


@dataclasses.dataclass
class _Run:
    """What a run has reached; the budget may end it anywhere.

    cuts: of the student, as the hypothesis may be half changed since
    """

    student: Isan | None = None
    cuts: tuple[LogitCut, ...] = ()
    verification: LogitVerification | None = None
    rounds: int = 0


def learn_logits(
    ledger: Ledger,
    settings: LogitSettings,
    generator: torch.Generator,
    progress: Callable[[LogitProgress], None] = lambda _: None,
) -> LogitResult:
    """Learn a network that copies the ledger's teacher from its laws.

    generator: draws the copy's own strings for verification

    Raises:
        TeacherError: where the teacher does not show laws, or shows no laws.
        InputError: a law with a zero, which has no logits; a structure that cannot fit.
    """
    started = time.perf_counter()
    wanted = settings.stationary
    stationary = ledger.spec.horizon is None if wanted is None else wanted
    kind = StationaryLogits if stationary else VaryingLogits
    hypothesis: LogitHypothesis = kind(ledger.laws("learn"), settings)
    run, refusal = _Run(), None
    try:
        outcome, reason = _rounds(hypothesis, settings, ledger, generator, run, progress)
    except BudgetExhausted as stop:
        outcome = LogitOutcome.BUDGET_EXHAUSTED
        if run.student is None:
            run.student = hypothesis.partial() or uniform_network(ledger.spec)
            run.cuts = hypothesis.cuts()
        reason = f"{stop}; this is the best copy so far"
    except LogitRankExceeded as stop:
        outcome, run.student = LogitOutcome.NOT_LOW_RANK, None
        refusal = LogitRefusal(stop.cut, stop.at_least, tuple(stop.singular_values.tolist()))
        reason = _exceeded(refusal, settings.max_rank)
    report = LogitReport(
        outcome=outcome,
        reason=reason,
        stationary=stationary,
        rounds=run.rounds,
        cuts=() if refusal else run.cuts,
        verification=run.verification,
        refusal=refusal,
        accounts=ledger.accounts(),
        queries_by_cut={p: ledger.queries_by_cut(p) for p in ledger.accounts()},
        seconds=time.perf_counter() - started,
    )
    return LogitResult(run.student, report)


def _rounds(
    hypothesis: LogitHypothesis,
    settings: LogitSettings,
    ledger: Ledger,
    generator: torch.Generator,
    run: _Run,
    progress: Callable[[LogitProgress], None],
) -> tuple[LogitOutcome, str]:
    """Close, verify, repair, until nothing is wrong or nothing can be mended."""
    view = ledger.laws("verify")
    fresh = FreshStrings(
        view,
        generator,
        histories=settings.verify_histories,
        strings=settings.verify_strings,
        max_tokens=settings.max_tokens,
    )

    def tell(stage: str) -> None:
        rank = max(run.student.ranks) if run.student else 1
        progress(LogitProgress(stage, run.rounds, rank, ledger.total().next_token_queries))

    while run.rounds < settings.max_rounds:
        tell("close")
        closed = hypothesis.close()
        run.student, run.cuts, run.verification = closed, hypothesis.cuts(), None
        run.rounds += 1
        tell("verify")
        run.verification, misses, drawn = verify(view, closed, fresh, settings.mismatch)
        if run.verification.clean:
            return LogitOutcome.VERIFIED, (
                f"all laws agreed to {settings.mismatch:g} in total variation at "
                f"{run.verification.histories:,} prefixes of fresh strings"
            )
        tell("repair")
        if not hypothesis.repair(closed, misses, drawn):
            break
    found = run.verification
    worst = max(found.teacher_worst, found.student_worst) if found else float("nan")
    return LogitOutcome.MISMATCH_LEFT, (
        f"after {run.rounds} rounds fresh strings still show laws that differ by {worst:.2g}, "
        "and no future in reach tells the histories apart; a smaller tolerance may"
    )


def verify(
    view: LawsView, student: Isan, fresh: FreshStrings, mismatch: float
) -> tuple[LogitVerification, list[Miss], list[History]]:
    """Compare along strings of both; also the misses, and the teacher's strings."""
    drawn = fresh.from_teacher()
    own = fresh.from_student(student)
    by_teacher = compare(view, student, drawn, mismatch)
    by_student = compare(view, student, own, mismatch)
    misses = [*by_teacher.misses, *by_student.misses]
    verification = LogitVerification(
        teacher_strings=len(drawn.lengths),
        student_strings=len(own.lengths),
        histories=by_teacher.histories + by_student.histories,
        teacher_worst=by_teacher.worst,
        student_worst=by_student.worst,
        clean=not misses,
    )
    return verification, misses, Prefixes(*drawn).rows()


def uniform_network(spec: Spec) -> Isan:
    """What can be said before anything was asked: dimension zero, all tokens alike."""
    empty = torch.zeros((0, spec.num_tokens), dtype=torch.float64)
    return Isan.of(spec, empty[:, 0], (IsanStep(empty, empty[:, :, None][:, :, :0]),))


def _exceeded(refusal: LogitRefusal, cap: int) -> str:
    where = "over all cuts" if refusal.cut is None else f"at cut {refusal.cut}"
    return (
        f"{where} the logit rank is at least {refusal.at_least}, above the cap of {cap}; "
        "raise the cap if a copy of that size is wanted"
    )
