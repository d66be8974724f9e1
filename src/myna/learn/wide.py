"""Stationary copies of teachers with thousands of tokens: children streamed, operators shared.

The exact stationary learner keeps a table of all children h_i o of its basis, S O rows of O numbers:
gigabytes to terabytes. Here a row is the next-token law alone, in the chi-square norm of the mean
law m, and each law is dropped as soon as it has been written over the basis:

    P(. | h_i o) ~ sum_j G[i, o, j] P(. | h_j)      in      |p|^2 = sum_a p_a^2 / m_a;

what remains are the operators A[i, o, j] = P(o | h_i) G[i, o, j], put over few shared matrices
at the end (`lowrank.mixed`). The basis starts from histories along the teacher's own strings and
grows by every child whose residual exceeds the tolerance, until none does.

An accepted residual r costs about r^2 / 2 nats, errors of T tokens add up to about (T r)^2 / 2
(more where the coefficients G exceed 1 in l1 norm), and the floor f costs at most f. So a copy of a
stationary teacher whose states single next tokens tell apart keeps about KL <= r + f nats a token as
long as T^2 < 2 / r. It is verified where the whole interval of the KL along fresh strings keeps that
limit, and else reported as a mismatch.

Limits: futures are one token long, so states that no single next token tells apart are one state
here; what that costs is in the fresh divergence of the report. A teacher with a stop token is
refused; laws that depend on the position show as a mismatch, and are for `learn.exact`. Without a
horizon nothing beyond `max_tokens` is measured.
"""

import dataclasses
import enum
import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.between import DivergenceRate, rate_of
from myna.evaluate.distance import step_kl
from myna.lowrank.mixed import MixedModel, few_parts
from myna.lowrank.spanner import barycentric_spanner
from myna.lowrank.student import State
from myna.teachers.ledger import Account, LawsView, Ledger
from myna.teachers.prefixes import Prefixes

_TOGETHER = 1024  # laws held at once
_PIVOTS = 4  # children added to the basis between two solves


class WideOutcome(enum.Enum):
    """How learning ended."""

    VERIFIED = "verified"
    MISMATCH_LEFT = "mismatch left"
    RANK_TOO_HIGH = "rank too high"


@dataclasses.dataclass(frozen=True)
class WideSettings:
    """What may be chosen.

    tolerance: residual in the chi-square norm (about the root of twice the KL) that is accepted
    max_rank: the cap S
    strings, max_tokens: drawn from the teacher for the first histories, and cut there; fresh
        strings run to the horizon, and are cut there only where there is none
    parts_tolerance: singular values of the operators below this share of the first are left out
    max_parts: shared matrices at most; None for as many as the rank
    floor: of the copy's laws, over the number of tokens (`lowrank.mixed`)
    fresh: strings along which the finished copy is measured; two or more, so that they vary
    """

    tolerance: float = 1e-6
    max_rank: int = 256
    strings: int = 500
    max_tokens: int = 24
    parts_tolerance: float = 1e-12
    max_parts: int | None = None
    floor: float = 1e-9
    fresh: int = 100

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        for name in ("max_rank", "strings", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.fresh < 2:
            raise InputError(
                f"one string has no interval, so fresh must be at least 2, got {self.fresh}"
            )
        if not 0 < self.tolerance < 1:
            raise InputError(f"the tolerance must lie between 0 and 1, got {self.tolerance}")
        if not 0 <= self.floor < 1:
            raise InputError(f"a floor lies in [0, 1), got {self.floor}")
        if self.max_parts is not None and self.max_parts < 1:
            raise InputError(f"max_parts must be at least 1, or None, got {self.max_parts}")


@dataclasses.dataclass(frozen=True)
class WideReport:
    """What was learned and what it cost.

    outcome: how it ended
    reason: one sentence for people
    rank, parts: S and K; where the rank was too high, the cap and no parts
    tolerance: that the rank was found with
    children: laws read of histories one token beyond the basis
    worst: largest residual among them
    left_out: share of the operators' norm that the shared matrices miss; NaN without a copy
    kl, half_width: KL(teacher || copy) along fresh strings, nats a token, 99% (normal
        approximation); NaN without a copy
    parameters: numbers stored
    accounts: what each purpose spent
    seconds: wall-clock time
    """

    outcome: WideOutcome
    reason: str
    rank: int
    parts: int
    tolerance: float
    children: int
    worst: float
    left_out: float
    kl: float
    half_width: float
    parameters: int
    accounts: dict[str, Account]
    seconds: float


@dataclasses.dataclass(frozen=True)
class WideResult:
    """A student and the report on it; no student where the rank was too high."""

    student: MixedModel | None
    report: WideReport


def learn_wide(
    ledger: Ledger,
    settings: WideSettings,
    generator: torch.Generator,
    progress: Callable[[str], None] = lambda _: None,
) -> WideResult:
    """Learn a stationary copy without ever holding all children.

    Raises:
        InputError: a language with a stop token, or a horizon that leaves no room for children.
        BudgetExhausted: where the ledger allows fewer laws.
    """
    began = time.perf_counter()
    if ledger.spec.stop is not None:
        raise InputError(
            "this learner is for strings that nothing ends, and this teacher has the stop token "
            f"{ledger.spec.alphabet[ledger.spec.stop]!r}; use the exact learner (no --learner)"
        )
    run = _Basis(ledger.laws("learn"), settings)
    student, left_out, kl = None, math.nan, DivergenceRate(math.nan, math.nan, 0, 0)
    try:
        run.grow(progress)
    except _RankTooHigh as error:
        outcome, reason = WideOutcome.RANK_TOO_HIGH, str(error)
    else:
        progress("shared matrices")
        student, left_out = run.model(generator)
        progress("measuring")
        kl = _measured(ledger.laws("verify"), student, settings)
        outcome, reason = _judged(student, kl, settings)
    report = WideReport(
        outcome=outcome,
        reason=reason,
        rank=len(run.histories),
        parts=len(student.parts) if student else 0,
        tolerance=settings.tolerance,
        children=run.children,
        worst=run.worst,
        left_out=left_out,
        kl=kl.mean,
        half_width=kl.half_width,
        parameters=student.num_parameters if student else 0,
        accounts=ledger.accounts(),
        seconds=time.perf_counter() - began,
    )
    return WideResult(student, report)


def _judged(
    student: MixedModel, kl: DivergenceRate, settings: WideSettings
) -> tuple[WideOutcome, str]:
    """Whether fresh strings bear the copy out, in a sentence."""
    said = (
        f"rank {student.ranks[0]} at tolerance {settings.tolerance:g}, {len(student.parts)} shared "
        f"matrices; {kl.mean:.3g} +- {kl.half_width:.2g} nats a token along {kl.strings:,} fresh strings"
    )
    limit = settings.tolerance + settings.floor
    if kl.high <= limit:  # the upper end: a wide interval must not pass for agreement
        return WideOutcome.VERIFIED, said
    low = kl.mean - kl.half_width  # NaN where both are infinite
    if low <= limit:
        return WideOutcome.MISMATCH_LEFT, (
            f"{said}: the interval from {max(low, 0.0):.3g} to {kl.high:.3g} contains the limit of "
            f"{limit:.3g}, so these strings do not settle it; more fresh strings (--verify) may"
        )
    return WideOutcome.MISMATCH_LEFT, (
        f"{said}, all of the interval more than {limit:.3g}: the teacher's laws depend on the "
        "position, or its states need more than one next token to be told apart; use the exact "
        "learner (no --learner)"
    )


class _RankTooHigh(Exception):
    """A child does not fit, and the basis may not grow."""


class _Basis:
    """Basis histories so far, their scaled laws, and the operators of those already read."""

    def __init__(self, view: LawsView, settings: WideSettings):
        self._view, self._settings = view, settings
        self.histories: list[tuple[int, ...]] = [()]
        self._operators: list[Float[Tensor, "token rank"]] = []
        self.children, self.worst = 0, 0.0

    def grow(self, progress: Callable[[str], None]) -> None:
        """First histories, then all children of each, until none is new.

        Raises:
            _RankTooHigh: where more histories are needed than the cap allows.
        """
        progress("first histories")
        self._begin()
        done = 0
        while done < len(self.histories):
            progress(f"children of {done + 1} of {len(self.histories)}")
            self._read_children(done)
            done += 1

    def _begin(self) -> None:
        """A spanner of histories along drawn strings, and the empty one's coefficients."""
        settings = self._settings
        limit = min(settings.max_tokens, self._longest())
        root = Prefixes.of([[]])
        drawn = self._view.complete(root, settings.strings, max_tokens=limit).tokens[0]
        rows = {(): None}
        for text in drawn.tolist():
            rows |= {tuple(text[:t]): None for t in range(1, limit + 1)}
        histories = list(rows)[: 8 * settings.max_rank + settings.strings]
        laws = torch.cat([self._laws(part) for part in _parts(histories)])
        mean = laws.mean(0)
        # tokens that no law here allows are weighed as the rarest that some law does
        self._scale = mean.clamp(min=float(mean[mean > 0].min())).sqrt()
        rows_scaled = laws / self._scale
        found = barycentric_spanner(
            rows_scaled,
            tolerance=settings.tolerance,
            max_rank=settings.max_rank,
            preferred=torch.tensor([0]),
        )
        self.histories = [histories[i] for i in found.indices.tolist()]
        self._set_rows(rows_scaled[found.indices])
        # the spanner may have exchanged the empty history for one of its combinations
        root_row = (rows_scaled[:1] @ self._q).T
        self._first = torch.linalg.solve_triangular(self._r, root_row, upper=True)[:, 0]

    def _longest(self) -> int:
        """Tokens of a basis history, at most: a token of it and one after that must fit."""
        horizon = self._view.spec.horizon
        if horizon is not None and horizon < 3:
            raise InputError(f"this learner needs a horizon of 3 tokens or more, got {horizon}")
        return 2**62 if horizon is None else horizon - 2

    def _set_rows(self, rows: Float[Tensor, "rank token"]) -> None:
        self._rows = rows
        self._q, self._r = torch.linalg.qr(rows.T)

    def _laws(self, histories: list[tuple[int, ...]]) -> Float[Tensor, "history token"]:
        """Probabilities after each history; counted, and not kept."""
        future, kept = Prefixes.of([[0]]), torch.tensor([[0, 0]])
        return self._view.cross(Prefixes.of(histories), future, kept).laws[:, 0].exp()

    def _read_children(self, member: int) -> None:
        """Operators of one basis history; children that do not fit join the basis."""
        if len(self.histories[member]) > self._longest():
            raise InputError(
                f"a basis history has {len(self.histories[member])} tokens, and the horizon of "
                f"{self._view.spec.horizon} leaves no room after it; use the exact learner (no --learner)"
            )
        own = self._rows[member] * self._scale
        tokens = (own > 0).nonzero()[:, 0]
        table = own.new_zeros((len(own), len(self.histories)))
        for part in tokens.split(_TOGETHER):
            parent = self.histories[member]
            rows = self._laws([(*parent, token) for token in part.tolist()]) / self._scale
            coefficients = self._fitted(rows, parent, part)
            table = torch.nn.functional.pad(table, (0, len(self.histories) - table.shape[1]))
            table[part] = own[part][:, None] * coefficients
            self.children += len(part)
        self._operators.append(table)

    def _fitted(
        self,
        rows: Float[Tensor, "child token"],
        parent: tuple[int, ...],
        tokens: Int[Tensor, " child"],
    ) -> Float[Tensor, "child rank"]:
        """Coefficients over the basis, which grows until all of these fit."""
        while True:
            projected = rows @ self._q
            residual = rows - projected @ self._q.T
            sizes = residual.norm(dim=1)
            worst = float(sizes.max())
            if worst <= self._settings.tolerance:
                self.worst = max(self.worst, worst)
                return torch.linalg.solve_triangular(self._r, projected.T, upper=True).T
            room = self._settings.max_rank - len(self.histories)
            if room < 1:
                self.worst = max(self.worst, worst)
                raise _RankTooHigh(
                    f"the teacher's rank exceeds the cap of {self._settings.max_rank}: a child's "
                    f"residual is {worst:.2g}, above the tolerance of {self._settings.tolerance:g}; "
                    "raise one of the two"
                )
            found = barycentric_spanner(
                residual, tolerance=self._settings.tolerance, max_rank=min(_PIVOTS, room)
            ).indices
            self.histories += [(*parent, token) for token in tokens[found].tolist()]
            self._set_rows(torch.cat([self._rows, rows[found]]))

    def model(self, generator: torch.Generator) -> tuple[MixedModel, float]:
        """All operators over few shared matrices; what those leave out."""
        rank = len(self.histories)
        for i, table in enumerate(self._operators):
            self._operators[i] = torch.nn.functional.pad(table, (0, rank - table.shape[1]))
        first = torch.nn.functional.pad(self._first, (0, rank - len(self._first)))
        settings = self._settings
        most = settings.max_parts or rank
        weights, parts, left_out = few_parts(
            self._operators, self._scale, settings.parts_tolerance, generator, most
        )
        language = self._view.spec
        model = MixedModel.of(
            language, first, weights, parts, settings.floor, tuple(self.histories)
        )
        return model, left_out


def _parts(histories: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    return [histories[i : i + _TOGETHER] for i in range(0, len(histories), _TOGETHER)]


def _measured(view: LawsView, student: MixedModel, settings: WideSettings) -> DivergenceRate:
    """KL(teacher || copy) a token along fresh strings, whole ones where there is a horizon."""
    limit = view.spec.horizon or settings.max_tokens
    drawn = view.complete(Prefixes.of([[]]), settings.fresh, max_tokens=limit).tokens[0]
    total = torch.zeros(len(drawn), dtype=torch.float64)
    future, kept = Prefixes.of([[0]]), torch.tensor([[0, 0]])
    state: State = student.initial(len(drawn))
    for t in range(drawn.shape[1]):
        here = Prefixes(drawn[:, :t], torch.full((len(drawn),), t))
        p = view.cross(here, future, kept).laws[:, 0]
        q = student.law(state)
        total += step_kl(p, q)
        state, _ = student.step(state, drawn[:, t])
    return rate_of(total, torch.full((len(drawn),), drawn.shape[1]))
