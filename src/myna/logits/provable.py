"""The provable learner in logit space: futures grown by witnesses, coefficients bounded.

    rows      at each cut s, strings of the teacher give histories; a spanner of their logits on
              F_s and on all y F_s+1 is kept
    check     the program's laws (`lowrank.program`) against the teacher's, on fresh strings
    witness   where they differ, the cut whose residual on the rest of the string is largest
              gets that rest as a new future; then the next epoch
    restart   where a program has no solution within the bound, twice as many histories are drawn

The error after y_1 ... y_p telescopes into one residual a cut, so a wrong law has a witness:

    z^(o) - z(o) = sum_s [ sum_i c_s,i z(g o | h_s,i) - sum_i c_s-1,i z(y_s g o | h_s-1,i) ],
    g = y_s+1 ... y_p,    which vanishes at s for every future in F_s.

Source: Golowich, Liu and Shetty (arXiv 2512.09892), algorithms 1 and 2, as corrected later
(all one-token futures from the start, entries of two-token futures kept, no c_t+1). We
differ in checking the law first, one query a prefix, and looking for a witness only where
it is off; in taking several witnesses an epoch, each with every last token, as one law shows
them all, and trying them at the other cuts; in spanners of less than the programs' bound; and in keeping only as many histories as the
rank, which makes the constants of the proof (in their form, thousands of epochs) needless
where the rank is exact.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import BudgetExhausted, InputError
from myna.logits.check import FreshStrings, Miss, compare
from myna.logits.exact import LogitProgress
from myna.logits.report import LogitOutcome, LogitRefusal, LogitVerification
from myna.logits.table import History, LogitRankExceeded, LogitTable
from myna.lowrank.program import CutRows, ProgramModel, require_solver
from myna.lowrank.spanner import spanned_rank
from myna.lowrank.student import Strings
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes

_FIRST_STRINGS = 16
_SPANNER_BOUND = 1.1  # below the programs' bound: the slack is what fresh histories may need
_MISSES_AN_EPOCH = 4


@dataclasses.dataclass(frozen=True)
class ProvableSettings:
    """What the provable learner may choose.

    tolerance: rows of centred logits within this Euclidean distance (nats) of a span lie in it
    allowed: the largest error e (nats) of a program that counts as solved
    mismatch: a law off by more than this (total variation) is wrong
    bound: the largest |coefficient| in programs, doubled at a prefix without a solution
    shortcut: skip the solver where a change of basis is an optimum already
    max_rank: the cap on histories kept at a cut
    verify_histories, verify_strings: the fewest prefixes and the fewest fresh strings of each
        check, from the teacher and again from the copy
    max_strings: the most strings that histories are taken from
    max_epochs: how often futures may grow or histories be drawn again
    """

    tolerance: float = 1e-9
    allowed: float = 1e-7
    mismatch: float = 1e-6
    bound: float = 2.0
    shortcut: bool = True
    max_rank: int = 256
    verify_histories: int = 1000
    verify_strings: int = 32
    max_strings: int = 1024
    max_epochs: int = 200

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if not (self.tolerance > 0 and self.allowed > 0 and 0 < self.mismatch < 1):
            raise InputError(
                "tolerance and allowed error must be positive and the mismatch lie between 0 and "
                f"1, got {self.tolerance}, {self.allowed} and {self.mismatch}"
            )
        if self.bound <= _SPANNER_BOUND:
            raise InputError(
                f"the bound on coefficients must exceed {_SPANNER_BOUND}, got {self.bound}"
            )
        for name in (
            "max_rank",
            "verify_histories",
            "verify_strings",
            "max_strings",
            "max_epochs",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class ProvableReport:
    """What learning found and what it cost.

    outcome, reason: how it ended, and one sentence for people
    epochs, restarts: rounds of checking, and those that only drew more histories
    ranks: histories kept at each cut
    futures: words at each cut; with every last token they are F_s
    strings: strings of the teacher that histories were taken from
    programs, solves, widened: prefixes of the last check, the solver's runs for these, and how
        many needed a wider bound
    worst_error: the largest e (nats) of these
    verification: the last check, or None where there was none
    refusal: evidence, where a rank exceeds the cap
    accounts: what each purpose spent
    seconds: wall-clock time
    """

    outcome: LogitOutcome
    reason: str
    epochs: int
    restarts: int
    ranks: tuple[int, ...]
    futures: tuple[tuple[History, ...], ...]
    strings: int
    programs: int
    solves: int
    widened: int
    worst_error: float
    verification: LogitVerification | None
    refusal: LogitRefusal | None
    accounts: dict[str, Account]
    seconds: float


@dataclasses.dataclass(frozen=True)
class ProvableResult:
    """A student and the report on it; no student where nothing could be made."""

    student: ProgramModel | None
    report: ProvableReport


def learn_provably(
    ledger: Ledger,
    settings: ProvableSettings,
    generator: torch.Generator,
    progress: Callable[[LogitProgress], None] = lambda _: None,
) -> ProvableResult:
    """Learn a model whose coefficients are bounded along every string.

    generator: draws the copy's own strings for verification

    Raises:
        TeacherError: where the teacher shows no laws.
        InputError: a law with a zero; a teacher without a horizon; no HiGHS.
    """
    started = time.perf_counter()
    require_solver()
    run = _Run(ledger, settings, generator, progress)
    refusal = None
    try:
        outcome, reason = run.epochs()
    except BudgetExhausted as stop:
        left = "this is the best copy so far" if run.model else "it ended before the first copy"
        outcome, reason = LogitOutcome.BUDGET_EXHAUSTED, f"{stop}; {left}"
    except LogitRankExceeded as stop:
        outcome, run.model = LogitOutcome.NOT_LOW_RANK, None
        refusal = LogitRefusal(stop.cut, stop.at_least, tuple(stop.singular_values.tolist()))
        reason = f"at cut {stop.cut} the logit rank is at least {stop.at_least}; raise the cap"
    model = run.model
    report = ProvableReport(
        outcome=outcome,
        reason=reason,
        epochs=run.epoch,
        restarts=run.restarts,
        ranks=model.ranks if model else (),
        futures=run.futures,
        strings=run.drawn,
        programs=model.prefixes if model else 0,
        solves=model.solves if model else 0,
        widened=model.widened if model else 0,
        worst_error=model.worst_error if model else 0.0,
        verification=run.verification,
        refusal=refusal,
        accounts=ledger.accounts(),
        seconds=time.perf_counter() - started,
    )
    return ProvableResult(model, report)


class _Run:
    """What a run has reached; the budget may end it anywhere."""

    def __init__(self, ledger: Ledger, settings: ProvableSettings, generator, progress):
        spec = ledger.spec
        if spec.horizon is None:
            raise InputError("the provable learner needs a teacher with a horizon; this has none")
        self._ledger, self._settings, self._progress = ledger, settings, progress
        self._view, self._check = ledger.laws("learn"), ledger.laws("verify")
        self._fresh = FreshStrings(
            self._check,
            generator,
            histories=settings.verify_histories,
            strings=settings.verify_strings,
            max_tokens=None,
        )
        self._tokens = [o for o in range(spec.num_tokens) if o != spec.stop]
        self._tables = [LogitTable(self._view, t) for t in range(spec.horizon)]
        self.words: list[list[History]] = [[()] for _ in self._tables]
        self._seen: list[dict[History, None]] = [{} for _ in self._tables]
        self.drawn, self.epoch, self.restarts = 0, 0, 0
        self.model: ProgramModel | None = None
        self.futures: tuple[tuple[History, ...], ...] = ()  # the model's words
        self.verification: LogitVerification | None = None

    def epochs(self) -> tuple[LogitOutcome, str]:
        """Rows, check, witness or restart, until nothing is wrong or nothing can be mended."""
        settings = self._settings
        self._draw(_FIRST_STRINGS)
        while self.epoch < settings.max_epochs:
            self.epoch += 1
            self._tell("rows")
            self.model = ProgramModel(
                self._view.spec,
                self._rows(),
                settings.bound,
                settings.allowed,
                shortcut=settings.shortcut,
            )
            self.futures = tuple(map(tuple, self.words))
            self.verification = None
            self._tell("check")
            misses = self._verified()
            if self.model.widened and self.drawn < settings.max_strings:
                self.restarts += 1
                self._draw(self.drawn)
            elif not misses:
                return LogitOutcome.VERIFIED, (
                    f"all laws agreed to {settings.mismatch:g} in total variation on fresh strings"
                )
            elif not self._witnessed(misses):
                break
        return LogitOutcome.MISMATCH_LEFT, (
            f"after {self.epoch} epochs laws still differ and no future in reach tells why"
        )

    def _tell(self, stage: str) -> None:
        rank = max(self.model.ranks) if self.model else 1
        queries = self._ledger.total().next_token_queries
        self._progress(LogitProgress(stage, self.epoch, rank, queries))

    def _draw(self, count: int) -> None:
        """More strings of the teacher; their prefixes are histories to choose among.

        After one token all histories are, once they cost no more than the draws: a rare first
        token is no small part of the few there are.
        """
        drawn = self._view.draw_by_laws(count, self.drawn, None)
        self.drawn += count
        for row in Prefixes(*Strings(drawn.tokens[0], drawn.lengths[0])).rows():
            for t in range(len(row)):
                self._seen[t][row[:t]] = None
        if len(self._tables) > 1 and len(self._tokens) <= self.drawn:
            self._seen[1] |= dict.fromkeys((y,) for y in self._tokens)

    def _extended(self, t: int) -> list[History]:
        """The words of F_t and of all y F_t+1."""
        if t + 1 == len(self._tables):
            return self.words[t]
        longer = [(y, *w) for y in self._tokens for w in self.words[t + 1]]
        return list(dict.fromkeys([*self.words[t], *longer]))

    def _rows(self) -> tuple[CutRows, ...]:
        """Spanners at every cut, with enough histories to trust their ranks."""
        for t, table in enumerate(self._tables):
            table.add_words(self._extended(t))
        chosen = [self._spanner(t) for t in range(len(self._tables))]
        while 2 * max(map(len, chosen)) > self.drawn < self._settings.max_strings:
            self._draw(self.drawn)
            chosen = [self._spanner(t) for t in range(len(self._tables))]
        bases = [self._span_of(t, chosen) for t in range(len(self._tables))]
        return tuple(self._cut(t, chosen[t], bases) for t in range(len(self._tables)))

    def _spanner(self, t: int) -> tuple[History, ...]:
        settings = self._settings
        basis = self._tables[t].span(
            list(self._seen[t]),
            (),
            bound=_SPANNER_BOUND,
            tolerance=settings.tolerance,
            max_rank=settings.max_rank,
        )
        return basis.histories if t else ((),)

    def _entries(
        self, t: int, histories: Sequence[History], words: Sequence[History]
    ) -> Float[Tensor, "history word token"]:
        """Kept entries; words are all in the table."""
        table = self._tables[t]
        place = {word: j for j, word in enumerate(table.words)}
        return table.rows(histories)[:, [place[w] for w in words]]

    def _children(self, t: int, histories: Sequence[History]) -> Float[Tensor, "row column"]:
        """Logits on y F_t of histories at cut t - 1, one row a history and y."""
        words = [(y, *w) for y in self._tokens for w in self.words[t]]
        values = self._entries(t - 1, histories, words)
        columns = len(self.words[t]) * self._view.spec.num_tokens
        return values.reshape(len(histories) * len(self._tokens), columns)

    def _span_of(
        self, t: int, chosen: list[tuple[History, ...]]
    ) -> Float[Tensor, "column constraint"]:
        """An orthonormal basis of the rows on F_t: of the cut's own and of its parents' children."""
        if t == 0:
            return torch.zeros((0, 0), dtype=torch.float64)
        own = self._entries(t, chosen[t], self.words[t]).flatten(1)
        rows = torch.cat([own, self._children(t, chosen[t - 1])])
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        scale = (len(rows) / max(1, len(own))) ** 0.5  # rows that repeat the same directions
        return right[values > self._settings.tolerance * scale].T

    def _cut(self, t: int, histories: tuple[History, ...], bases: list[Tensor]) -> CutRows:
        num_tokens, rank = self._view.spec.num_tokens, len(histories)
        logits = self._entries(t, histories, [()])[:, 0]
        following = torch.zeros((rank, num_tokens, num_tokens), dtype=torch.float64)
        if t + 1 < len(self._tables):
            after = torch.zeros((rank, num_tokens, bases[t + 1].shape[1]), dtype=torch.float64)
            longer = self._children(t + 1, histories) @ bases[t + 1]
            after[:, self._tokens] = longer.reshape(rank, len(self._tokens), longer.shape[1])
            words = [(y,) for y in self._tokens]
            following[:, self._tokens] = self._entries(t, histories, words)
        else:
            after = torch.zeros((rank, num_tokens, 0), dtype=torch.float64)
        own = torch.zeros((rank, 0), dtype=torch.float64)
        if t:
            own = self._entries(t, histories, self.words[t]).flatten(1) @ bases[t]
        return CutRows(histories, own, after, logits, following)

    def _verified(self) -> list[Miss]:
        """Compare along strings of both."""
        model, mismatch = self.model, self._settings.mismatch
        assert model is not None
        drawn = self._fresh.from_teacher()
        by_teacher = compare(self._check, model, drawn, mismatch)
        own = self._fresh.from_student(model)
        by_student = compare(self._check, model, own, mismatch)
        self.verification = LogitVerification(
            teacher_strings=len(drawn.lengths),
            student_strings=len(own.lengths),
            histories=by_teacher.histories + by_student.histories,
            teacher_worst=by_teacher.worst,
            student_worst=by_student.worst,
            clean=not (by_teacher.misses or by_student.misses),
        )
        return [*by_teacher.misses, *by_student.misses]

    def _witnessed(self, misses: Sequence[Miss]) -> bool:
        """Add the witnesses of a few misses, there and at other cuts where they add a rank."""
        grew = False
        for miss in misses[:_MISSES_AN_EPOCH]:
            found = self._witness(miss.string[: miss.position])
            if found is None or found[1] in self.words[found[0]]:
                continue
            cut, word = found
            self.words[cut].append(word)
            grew = True
            for t in range(1, len(self._tables) - len(word)):
                if t != cut and self._tells(t, word):
                    self.words[t].append(word)
        return grew

    def _witness(self, string: History) -> tuple[int, History] | None:
        """The cut and the rest of the string where the residual is largest."""
        model = self.model
        if len(string) < 2 or model is None:
            return None
        path = model.coefficients_after(string)
        combined = [
            c @ self._tables[s].peek(model.cuts[s].histories, [string[s:]])[:, 0]
            for s, c in enumerate(path)
        ]
        residuals = [float((b - a).abs().max()) for a, b in itertools.pairwise(combined)]
        worst = max(range(len(residuals)), key=residuals.__getitem__)
        cut = worst + 1
        return cut, string[cut:]

    def _tells(self, t: int, word: History) -> bool:
        """Whether a word raises the rank of the kept rows on F_t."""
        model = self.model
        assert model is not None
        histories = model.cuts[t].histories
        words = self.words[t]
        if word in words:
            return False
        table = self._tables[t]
        before = table.peek(histories, words).flatten(1)
        after = table.peek(histories, [*words, word]).flatten(1)
        tolerance = self._settings.tolerance
        return spanned_rank(after, tolerance) > spanned_rank(before, tolerance)
