"""A smaller copy of a copy: what to leave out, each choice measured, the cheapest one kept.

Three means, and their combinations:

    ranks      basis histories that tell little of the future are left out, the same canonical
               correlation being the limit at every cut; signed weights or convex ones
               (`lowrank.truncate`)
    tying      one table for all positions, where the copy has such a form: it is asked as a teacher
               and learned again with one basis, and taken only if that copy passes its own check
    bits       entries as float64, float32 or bfloat16; zeros cost one bit (`lowrank.packed`)

A choice costs bytes and loses KL(copy || smaller), nats a token, measured along fresh strings
that the copy draws; where strings were drawn to find directions, others judge. Of all choices
that keep the limits asked for, that with the fewest bytes is taken (with a limit on bytes: the
nearest one). No query to the original teacher is made.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, Context
from typing import NamedTuple

import torch

from myna.errors import InputError
from myna.evaluate.between import DivergenceRate, divergence_rate
from myna.evaluate.speed import scoring_rate
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Outcome, Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision, rounded
from myna.lowrank.student import Strings, sampling_limit
from myna.lowrank.truncate import Cut, convex, cuts_of, truncated
from myna.teachers.copies import CopyTeacher
from myna.teachers.ledger import Ledger

_RUNGS = 24  # thresholds on correlations that are tried
_LEAST = 1e-9  # correlations below are rounding
_TIE_RANK = 256
_EQUAL = 1e-12  # nats a token: nearer copies are all as near
_REPEATS = 2  # of scoring, after the run that makes tables


@dataclasses.dataclass(frozen=True)
class CompressSettings:
    """What the smaller copy must keep, and how it is measured.

    max_kl: nats a token, the upper end of the measured interval; None for no limit
    max_rank: at every cut
    max_bytes: of all tensors
    strings: drawn to find directions, and as many to judge choices
    max_tokens: strings are cut here; needed where nothing ends them
    """

    max_kl: float | None = None
    max_rank: int | None = None
    max_bytes: int | None = None
    strings: int = 4000
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that say nothing."""
        if self.max_kl is None and self.max_rank is None and self.max_bytes is None:
            raise InputError(
                "say what the smaller copy must keep: a largest KL, a largest rank or a number of bytes"
            )
        for name in ("max_rank", "max_bytes", "strings", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise InputError(f"a largest KL must not be negative, got {self.max_kl}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to make the copy smaller, and what it costs.

    tied: whether one table serves all positions that had tables of their own
    convex: whether weights over kept histories are probabilities
    ranks: at each stored cut
    precision: of the entries
    parameters, bytes: numbers and bytes stored
    kl: KL(copy || choice), nats a token
    nanoseconds: to score a token, all judging strings at once; the best of two
    """

    tied: bool
    convex: bool
    ranks: tuple[int, ...]
    precision: Precision
    parameters: int
    bytes: int
    kl: DivergenceRate
    nanoseconds: float


@dataclasses.dataclass(frozen=True)
class CompressReport:
    """What was tried and what was taken.

    reason: one sentence for people
    chosen: the choice taken
    whole: the copy as it came, in double precision
    choices: all that were measured, the whole one first
    tying: what came of tying, for people
    seconds: wall-clock time
    """

    reason: str
    chosen: Choice
    whole: Choice
    choices: tuple[Choice, ...]
    tying: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What was chosen.

    student: the smaller student, as it reads back from its file
    unrounded: what is to be packed for that; packing the student would round it twice
    precision: of the file's entries
    report: on all that was tried
    """

    student: LowRankModel
    unrounded: LowRankModel
    precision: Precision
    report: CompressReport


def compress(
    copy: LowRankModel,
    settings: CompressSettings,
    generator: torch.Generator,
    progress: Callable[[str], None] = lambda _: None,
) -> Compressed:
    """The smallest of many smaller copies that keeps the limits.

    Raises:
        InputError: where no choice keeps them; the nearest one is named.
    """
    began = time.perf_counter()
    limit = sampling_limit(copy.spec, settings.max_tokens)
    drawn = copy.sample(settings.strings, generator, limit)
    fresh = copy.sample(settings.strings, generator, limit)
    progress("tying")
    tied, tying = _tied(copy, generator)
    whole = _Form(copy, tied=False, convex=False)
    choices, kept = [_measured(copy, whole, Precision.DOUBLE, fresh)], [copy]
    for form in [copy] if tied is None else [copy, tied]:
        for smaller in _rungs(form, drawn, settings.max_rank, tied=form is tied):
            progress(f"rank {max(smaller.model.ranks)}")
            for precision in Precision:
                choices.append(_measured(copy, smaller, precision, fresh))
                kept.append(smaller.model)
    best = _best(choices, settings)
    chosen = choices[best]
    student, _ = rounded(kept[best], chosen.precision)
    reason = (
        f"{chosen.bytes:,} of {choices[0].bytes:,} bytes, {chosen.kl.mean:.3g} +- "
        f"{chosen.kl.half_width:.2g} nats a token from the copy"
    )
    report = CompressReport(
        reason, chosen, choices[0], tuple(choices), tying, time.perf_counter() - began
    )
    return Compressed(student, kept[best], chosen.precision, report)


def _tied(copy: LowRankModel, generator: torch.Generator) -> tuple[LowRankModel | None, str]:
    """The copy with one table for all positions, or why there is none."""
    if len(copy.steps) == 1:
        return None, "one table serves all positions already"
    settings = ExactSettings(
        structure=Structure.STATIONARY, max_rank=min(_TIE_RANK, 2 * max(copy.ranks))
    )
    try:
        result = learn_exact(Ledger(CopyTeacher(copy)), settings, generator)
    except InputError as error:
        return None, f"not tried: {error}"
    if result.student is None or result.report.outcome is not Outcome.VERIFIED:
        return None, f"no one table serves all positions: {result.report.reason}"
    return result.student, f"one table of rank {result.student.ranks[0]} serves all positions"


class _Form(NamedTuple):
    """A smaller model before its entries are rounded."""

    model: LowRankModel
    tied: bool
    convex: bool


def _rungs(
    form: LowRankModel, drawn: Strings, max_rank: int | None, *, tied: bool
) -> Iterator[_Form]:
    """The form itself and ever smaller ones, each other ranks than the one before."""
    cuts = cuts_of(form, drawn)
    before: tuple[int, ...] = ()
    if max_rank is None or max(form.ranks) <= max_rank:
        yield _Form(form, tied, convex=False)
        before = form.ranks
    for threshold in _thresholds(cuts):
        ranks = tuple(min(cut.rank_above(threshold), max_rank or 2**62) for cut in cuts)
        if ranks != before:
            before = ranks
            yield _Form(truncated(form, cuts, ranks), tied, convex=False)
            yield _Form(convex(form, cuts, ranks), tied, convex=True)


def _thresholds(cuts: tuple[Cut, ...]) -> list[float]:
    """From all that is not rounding to all but the first direction, evenly in the logarithm."""
    inner = torch.cat([cut.correlations[1:] for cut in cuts])
    inner = inner[inner > _LEAST]
    if not len(inner):
        return [_LEAST]
    low, high = float(inner.min()), float(inner.max())
    steps = [low * (high / low) ** (i / (_RUNGS - 2)) for i in range(_RUNGS - 1)]
    return [0.999 * low, *(1.001 * step for step in steps)]


def _measured(copy: LowRankModel, form: _Form, precision: Precision, fresh: Strings) -> Choice:
    """What a choice costs and loses."""
    smaller = form.model
    student, size = rounded(smaller, precision)
    parameters = smaller.num_parameters
    kl = divergence_rate(copy, student, fresh)
    nanoseconds = 1e9 / scoring_rate(student, fresh, _REPEATS)
    return Choice(
        form.tied, form.convex, smaller.ranks, precision, parameters, size, kl, nanoseconds
    )


def _best(choices: list[Choice], settings: CompressSettings) -> int:
    """The place of the choice to take."""
    largest = math.inf if settings.max_kl is None else settings.max_kl
    rank = settings.max_rank or math.inf
    room = settings.max_bytes or math.inf
    ranked = [i for i, c in enumerate(choices) if max(c.ranks) <= rank]
    # the whole copy is itself: what rounding shows of it is not a loss
    fits = [
        i for i in ranked if choices[i].bytes <= room and (i == 0 or choices[i].kl.high <= largest)
    ]
    if fits and settings.max_kl is None:
        return min(fits, key=lambda i: (max(choices[i].kl.mean, _EQUAL), choices[i].bytes))
    if fits:
        return min(fits, key=lambda i: (choices[i].bytes, choices[i].kl.mean))
    small = min(ranked, key=lambda i: choices[i].bytes)
    near = min(
        (i for i in ranked if choices[i].bytes <= room),
        default=small,
        key=lambda i: choices[i].kl.high,
    )
    nearest = choices[near]
    raise InputError(
        f"no compression keeps these limits; the nearest has {nearest.bytes:,} bytes, rank "
        f"{max(nearest.ranks)} and {nearest.kl.mean:.3g} (at most {_above(nearest.kl.high)}) nats a "
        "token"
    )


def _above(value: float) -> str:
    """Three digits, rounded up: a limit of that is kept."""
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(value).normalize():g}"
