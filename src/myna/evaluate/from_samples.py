"""Certificates of total variation where the teacher only completes prefixes.

No probability of P is known, so TV(P, Q) is caught between what can be proved of it. From M
fresh strings of P, each with a position t (every position equally often), and n
next-token draws after its first t tokens, with the statistics V, D, W of `next_tokens`:

    TV(P, Q) <= sum_t E_{x~P} TV(P(.|x_<t), Q(.|x_<t))       <= T E V             (hybrid)
    TV(P, Q) <= TV(R, Q) + g(KL(P || R)),  KL(P || R)        <= T E D             (chain rule)
    TV(P, Q) >= P(A) - Q(A)                                  any set A of strings
    TV(P, Q) >= 1/2 E_{x~P} TV(P(.|x_<t), Q(.|x_<t))         >= 1/2 E W, any position t

with T the horizon, g(K) = min(sqrt(K/2), sqrt(1 - e^-K)) (Pinsker; Bretagnolle & Huber), and R the
student above a floor, whose distance from Q its own strings bound (`raised`). The first line is Liu & Moitra's (arXiv 2411.07536), the last
follows from it by the triangle inequality through P's prefix and Q's token. All four are
limits that hold for every P and Q at a finite number of samples; their errors
add up to 1 - confidence (union bound), a quarter each.

The second line is ours, and mostly the better: an error e at every step costs T e in
the first and about sqrt(T) e here; and V exceeds TV by sqrt(O/n), D hardly exceeds KL. The
number n and the floor are chosen before the teacher is asked (`sample_plan`). The upper end of
even a perfect copy falls only about as T sqrt(log(1/delta) / tokens): a certificate from laws falls as
1 / strings.
"""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.betting import mean_upper_limit
from myna.evaluate.certify import Estimate, check_language
from myna.evaluate.interval import check_confidence, mean_interval
from myna.evaluate.next_tokens import (
    DrawnLaws,
    divergence_excess,
    drawn_laws,
    next_token_draws,
    split_witness,
    variation_excess,
)
from myna.evaluate.raised import most_surprise, raising_distances
from myna.evaluate.sample_plan import Plan, plan_samples, variation_from_kl
from myna.evaluate.string_classifier import fit_classifier, part
from myna.lowrank.student import Strings, Student
from myna.spec import Spec
from myna.teachers.ledger import Account, SamplesView
from myna.teachers.prefixes import Prefixes

STUDENT_STRINGS = 4  # strings of the student for each of the teacher's: they cost no query
_MOST_STUDENT_STRINGS = 400_000
RAISING_SHARE = 0.1  # of the second line's error, spent on TV(R, Q)


@dataclasses.dataclass(frozen=True)
class PositionPart:
    """What was seen of one position's next-token laws: plain means, no guarantee.

    position: t, tokens before the one compared
    prefixes: fresh teacher strings looked at there
    total_variation: mean of V; too large by about sqrt(O/n) even for a perfect copy
    kl_nats: mean of D, KL to the student above its floor; may be below 0 by sampling error
    """

    position: int
    prefixes: int
    total_variation: float
    kl_nats: float


@dataclasses.dataclass(frozen=True)
class Upper:
    """The two upper bounds.

    hybrid: sum_t of the parts' total variation, and its upper limit (may exceed 1)
    kl_nats: sum_t of the parts' KL, and its upper limit
    floor: phi, below which the student's laws were raised
    raising_high: upper limit of TV(R, Q), what the floor costs
    from_kl: TV's limit by the chain rule, raising_high + g(kl_high)
    parts: one a position
    """

    hybrid: float
    hybrid_high: float
    kl_nats: float
    kl_high: float
    floor: float
    raising_high: float
    from_kl: float
    parts: tuple[PositionPart, ...]


@dataclasses.dataclass(frozen=True)
class Witness:
    """A difference between teacher and student, found on one half of the strings, judged on the other.

    what: the set or the position, for people
    teacher_share, student_share: P(A) and Q(A) on the judging half
    low: TV(P, Q) exceeds it, 0 where nothing was proved
    samples: teacher strings in the judging half
    """

    what: str
    teacher_share: float
    student_share: float
    low: float
    samples: int


@dataclasses.dataclass(frozen=True)
class SampledCertificate:
    """What conditional samples prove of the distance between teacher and student.

    total_variation: TV(P, Q); its estimate is the larger difference that a witness shows, which
        tends to be below the truth
    upper: how the upper end was found
    strings_witness, next_token_witness: the lower ends; the interval takes the larger
    draws_per_prefix: n, the string's own token included
    queries: what certifying cost; prompts are tokens sent, completions tokens received
    """

    total_variation: Estimate
    upper: Upper
    strings_witness: Witness
    next_token_witness: Witness
    draws_per_prefix: int
    queries: Account

    @property
    def tokens(self) -> int:
        """Prompts and completions together."""
        return self.queries.tokens

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**dataclasses.asdict(self), "tokens": self.tokens}


def certify_from_samples(
    view: SamplesView,
    student: Student,
    *,
    budget_tokens: int,
    confidence: float = 0.99,
    generator: torch.Generator,
    max_tokens: int | None = None,
) -> SampledCertificate:
    """Bound TV between a teacher that only completes prefixes and a student.

    view: the teacher's completions, charged to a purpose whose stream learning never used
    budget_tokens: most tokens to spend, prompts and completions together
    generator: of the student's strings
    max_tokens: compare only the first tokens (needed where there is no horizon)

    Raises:
        InputError: for a student of another language, settings out of range, or a budget with
            which even a perfect copy would get no useful interval, naming the least that would do.
    """
    check_confidence(confidence)
    check_language(view.spec, student.spec)
    width = _width(view.spec, max_tokens)
    delta, before = (1 - confidence) / 4, view.spent()
    plan = plan_samples(student, width, budget_tokens, delta, generator)
    count = width * plan.per_position
    own = _student_strings(student, count, width, generator)
    answer = view.complete(Prefixes.of([[]]), count, max_tokens=width)
    strings = Strings(answer.tokens[0], answer.lengths[0])
    positions = torch.arange(width).repeat(plan.per_position)
    tokens = next_token_draws(view, strings, positions, plan.draws)
    drawn = drawn_laws(student, strings, positions, tokens, plan.floor)
    upper = _upper(drawn, raising_distances(student, own, plan.floor), plan, student.spec, delta)
    by_token = _next_token_witness(drawn, width, delta)
    by_string = _strings_witness(student, strings, own, plan, delta)
    variation = _combine(upper, (by_string, by_token), confidence, count)
    return SampledCertificate(
        variation, upper, by_string, by_token, plan.draws, view.spent() - before
    )


def _width(spec: Spec, max_tokens: int | None) -> int:
    """T."""
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"at least the first token must be compared, got max_tokens={max_tokens}")
    limits = [limit for limit in (spec.horizon, max_tokens) if limit is not None]
    if not limits:
        raise InputError(
            "this teacher has no horizon, and samples can only bound a distance over finitely many "
            "tokens; say how many to compare (max_tokens)"
        )
    return min(limits)


def _student_strings(
    student: Student, count: int, width: int, generator: torch.Generator
) -> Strings:
    """Strings of Q, several for each of the teacher's."""
    own = student.sample(min(STUDENT_STRINGS * count, _MOST_STUDENT_STRINGS), generator, width)
    return Strings(own.tokens.cpu(), own.lengths.cpu())


def _upper(
    drawn: DrawnLaws, raising: Float[Tensor, " string"], plan: Plan, spec: Spec, delta: float
) -> Upper:
    """Both upper limits, each wrong with probability at most delta."""
    width, floor, raisable = plan.width, plan.floor, spec.num_tokens * plan.floor
    v, d = variation_excess(drawn), divergence_excess(drawn)
    largest = most_surprise(floor, spec.num_tokens)
    kl_high = width * mean_upper_limit(d, largest, (1 - RAISING_SHARE) * delta)
    most = width * raisable / (1 + raisable)
    raising_high = mean_upper_limit(raising.clamp(max=most), most, RAISING_SHARE * delta)
    by_position = [x.reshape(-1, width).mean(0).tolist() for x in (v, d)]
    parts = tuple(
        PositionPart(t, len(v) // width, variation, kl)
        for t, (variation, kl) in enumerate(zip(*by_position, strict=True))
    )
    return Upper(
        hybrid=width * float(v.mean()),
        hybrid_high=width * mean_upper_limit(v, 1.0, delta),
        kl_nats=width * float(d.mean()),
        kl_high=kl_high,
        floor=floor,
        raising_high=raising_high,
        from_kl=raising_high + variation_from_kl(kl_high),
        parts=parts,
    )


def _next_token_witness(drawn: DrawnLaws, width: int, delta: float) -> Witness:
    """The position that looks worst on the first half, judged on the second."""
    share, mass = (x.reshape(-1, width) for x in split_witness(drawn))
    half = len(share) // 2
    seen = (share - mass)[:half]
    error = seen.std(0) / math.sqrt(half) if half > 1 else torch.zeros(width)
    position = int((seen.mean(0) - error).argmax())
    share, mass = share[half:, position], mass[half:, position]
    # W >= -1, so 1 - W has its values in [0, 2]
    low = (1 - mean_upper_limit(1 - (share - mass), 2.0, delta)) / 2
    what = f"half the difference in next tokens that drawn laws predict, at position {position}"
    return Witness(what, float(share.mean()), float(mass.mean()), max(low, 0.0), len(share))


def _strings_witness(
    student: Student, strings: Strings, own: Strings, plan: Plan, delta: float
) -> Witness:
    """A classifier fitted on the first half, judged on the second."""
    train = [part(s, 0, len(s.lengths) // 2) for s in (strings, own)]
    judge = [part(s, len(s.lengths) // 2, len(s.lengths)) for s in (strings, own)]
    classifier = fit_classifier(student, train[0], train[1], plan.floor, plan.width)
    ends, shares = [], []
    for side in judge:
        share = classifier.chosen(student, side, plan.floor).double().mean()[None]
        # a two-sided interval at 1 - delta has delta / 2 on each side; one side is used
        ends.append(mean_interval(share, len(side.lengths), 1 - delta))
        shares.append(float(share))
    low = float(ends[0][0]) - float(ends[1][1])
    what = "strings that a classifier on the student's likelihood takes for the teacher's"
    return Witness(what, shares[0], shares[1], max(low, 0.0), len(judge[0].lengths))


def _combine(
    upper: Upper, witnesses: tuple[Witness, Witness], confidence: float, samples: int
) -> Estimate:
    """The tighter upper and the tighter lower end."""
    by_string, by_token = witnesses
    high = min(1.0, upper.hybrid_high, upper.from_kl)
    # ends that cross, an event of probability below 1 - confidence, are not let cross
    low = min(high, max(by_string.low, by_token.low))
    shown = max(
        by_string.teacher_share - by_string.student_share,
        (by_token.teacher_share - by_token.student_share) / 2,
    )
    how = "summed KL of next-token laws" if upper.from_kl <= upper.hybrid_high else "hybrid sum"
    method = (
        "from conditional samples alone, which is much weaker than from laws: upper end by the "
        f"{how} over drawn next tokens, lower end by the best difference that a witness showed; "
        "a copy without error keeps a wide interval"
    )
    return Estimate(min(max(shown, low), high), low, high, confidence, samples, method)
