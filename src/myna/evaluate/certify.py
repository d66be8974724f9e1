"""Certificates: total variation and KL between a teacher P and a student Q.

By enumeration where the language has at most a few million strings; then the figures
are exact. Otherwise from n strings of the teacher, drawn on a stream that learning
never saw: TV is the mean of (1 - Q/P)_+, which lies in [0, 1], so its interval holds
for every P and Q with no assumption. KL is unbounded, so it is certified for the
floored student Q_tau (see `distance`), whose divergence along a string of at most H
tokens lies in [0, H log(O / tau)].

Nothing below about log(2 / (1 - confidence)) / n can be certified; what was measured
stands apart.
"""

import dataclasses
import enum
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.distance import AlongStrings, along_strings, enumerate_distance
from myna.evaluate.interval import check_confidence, mean_interval
from myna.lowrank.student import Strings, Student
from myna.spec import Spec
from myna.teachers.ledger import Account, LawsView

MOST_ENUMERATED = 2_000_000


class Method(enum.Enum):
    """How distances are found."""

    AUTO = "auto"
    ENUMERATE = "enumerate"
    SAMPLE = "sample"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    estimate: the figure
    low, high: P(low <= truth <= high) >= confidence over the certifying draws
    confidence: 1 where the figure is exact
    samples: strings drawn, or strings enumerated
    method: what was done, for people
    """

    estimate: float
    low: float
    high: float
    confidence: float
    samples: int
    method: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """Plain means over the drawn strings: no guarantee, but no resolution limit either.

    total_variation: mean of |1 - Q(x)/P(x)| / 2
    kl_nats: mean of log P(x) - log Q(x), without a floor (inf where Q misses a string)
    kl_standard_error: of that mean
    largest_log_ratio: max |log Q(x) - log P(x)|, nats
    """

    total_variation: float
    kl_nats: float
    kl_standard_error: float
    largest_log_ratio: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of the distance between teacher and student.

    total_variation: TV(P, Q)
    kl_nats: KL(P || Q) by enumeration; KL(P || Q_tau) on samples
    measured: plain means, or None by enumeration
    floor: tau
    queries: what certifying cost, beyond what the ledger knew
    """

    total_variation: Estimate
    kl_nats: Estimate
    measured: Measured | None
    floor: float
    queries: Account

    def as_json(self) -> dict[str, Any]:
        """JSON types only; an infinite or undefined number becomes null."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def certify(
    view: LawsView,
    student: Student,
    *,
    samples: int = 10_000,
    confidence: float = 0.99,
    floor: float = 1e-6,
    method: Method = Method.AUTO,
    max_tokens: int | None = None,
) -> Certificate:
    """Certify a student against a teacher.

    view: the teacher's laws, charged to a purpose whose stream learning never used
    samples: strings to draw where the language is not enumerated
    floor: tau
    max_tokens: compare only the first tokens (needed where nothing ends a string)

    Raises:
        InputError: for a student of another language, or settings out of range.
    """
    check_confidence(confidence)
    _check(view, student, samples, floor, max_tokens)
    before = view.spent()
    strings = _language_size(view)
    small = strings <= MOST_ENUMERATED and max_tokens is None
    if method is Method.ENUMERATE and not small:
        raise InputError(_why_not_enumerated(strings, max_tokens))
    if method is not Method.SAMPLE and small:
        variation, divergence, measured = _enumerated(view, student)
    else:
        answer = view.draw_by_laws(samples, 0, max_tokens)
        drawn = Strings(answer.tokens[0], answer.lengths[0])
        along = along_strings(view, student, drawn, floor)
        variation = _variation(along, confidence, max_tokens)
        longest = max_tokens if view.spec.horizon is None else view.spec.horizon
        divergence = _divergence(along, view.spec.num_tokens, longest, floor, confidence)
        measured = _measured(along)
    return Certificate(variation, divergence, measured, floor, view.spent() - before)


def check_language(teacher: Spec, student: Spec) -> None:
    """Refuse a student of another language than the teacher's.

    Raises:
        InputError: naming both.
    """
    if not teacher.same_language(student):
        raise InputError(
            "teacher and student must be models of one language, and they differ: "
            f"{_language(teacher)} against {_language(student)}; give the teacher the copy was made of"
        )


def _check(
    view: LawsView, student: Student, samples: int, floor: float, max_tokens: int | None
) -> None:
    check_language(view.spec, student.spec)
    if samples < 2:
        raise InputError(f"a certificate needs at least 2 strings, got {samples}")
    if not 0 < floor < 1:
        raise InputError(f"the floor on Q must lie between 0 and 1, got {floor}")
    if max_tokens is None and not view.spec.ends:
        raise InputError(
            "nothing ends this teacher's strings; say how many tokens to compare (max_tokens)"
        )


def _language(spec: Spec) -> str:
    stop = "no stop" if spec.stop is None else f"stop {spec.alphabet[spec.stop]!r}"
    return f"{spec.num_tokens} tokens ({', '.join(spec.alphabet[:5])}...), {stop}, horizon {spec.horizon}"


def _why_not_enumerated(strings: float, max_tokens: int | None) -> str:
    if strings <= MOST_ENUMERATED:
        return (
            f"enumeration goes through whole strings, and they were to be cut at {max_tokens} tokens; "
            "leave max_tokens out, or certify by sampling"
        )
    many = "no longest string" if math.isinf(strings) else f"up to {strings:.3g}"
    return (
        f"enumeration needs a horizon and at most {MOST_ENUMERATED:,} strings, and this language "
        f"has {many}; certify by sampling"
    )


def _language_size(view: LawsView) -> float:
    """An upper bound on the number of strings; inf without a horizon."""
    spec = view.spec
    if spec.horizon is None:
        return math.inf
    try:
        return float(spec.num_tokens) ** spec.horizon
    except OverflowError:
        return math.inf


def _enumerated(view: LawsView, student: Student) -> tuple[Estimate, Estimate, None]:
    found = enumerate_distance(view, student)
    method = f"exact: all {found.strings:,} strings enumerated"
    figures = [
        Estimate(value, value, value, 1.0, found.strings, method)
        for value in (found.total_variation, found.kl_nats)
    ]
    return figures[0], figures[1], None


def _variation(along: AlongStrings, confidence: float, max_tokens: int | None) -> Estimate:
    values = -torch.expm1((along.log_q - along.log_p).clamp(max=0))
    cut = "" if max_tokens is None else f" cut at {max_tokens:,} tokens, and of no more"
    method = (
        f"mean of (1 - Q/P)+ over fresh teacher strings{cut}; Hoeffding's bound in its KL form, "
        f"nothing below {_resolution(len(values), confidence):.2g} can be certified"
    )
    return _estimate(values, 1.0, confidence, method)


def _divergence(
    along: AlongStrings, num_tokens: int, longest: int | None, floor: float, confidence: float
) -> Estimate:
    step = math.log(num_tokens / floor)
    values = along.floored_kl
    what = f"mean over fresh teacher strings of the laws' exact divergences, Q floored at {floor:g} per token"
    if longest is None:
        # E min(X, 1) <= E X, so its lower end is one for E X; no upper end exists.
        low = _estimate(values.clamp(max=1.0), 1.0, confidence, "").low
        method = f"{what}; strings have no longest length, so there is no upper end"
        return Estimate(float(values.mean()), low, math.inf, confidence, len(values), method)
    method = f"{what}; Hoeffding's bound in its KL form on [0, {longest} x {step:.3g}]"
    return _estimate(values, longest * step, confidence, method)


def _estimate(
    values: Float[Tensor, " string"], largest: float, confidence: float, method: str
) -> Estimate:
    """The mean of values in [0, largest] with its interval."""
    mean = (values / largest).mean()[None].clamp(0, 1)
    low, high = mean_interval(mean, len(values), confidence)
    return Estimate(
        float(values.mean()),
        float(low) * largest,
        float(high) * largest,
        confidence,
        len(values),
        method,
    )


def _resolution(samples: int, confidence: float) -> float:
    return math.log(2 / (1 - confidence)) / samples


def _measured(along: AlongStrings) -> Measured:
    gap = along.log_p - along.log_q
    return Measured(
        total_variation=float(torch.expm1(-gap).abs().mean()) / 2,
        kl_nats=float(gap.mean()),
        kl_standard_error=float(gap.std() / math.sqrt(len(gap))),
        largest_log_ratio=float(gap.abs().max()),
    )
