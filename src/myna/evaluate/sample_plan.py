"""How a budget of tokens is spent on a certificate from samples: M strings, n draws a prefix.

A block is one string for each of the T positions with its n - 1 further next-token draws;
prompts and completions both counted, it costs at most

    T^2 + (n - 1) T (T + 1) / 2   tokens.

Many draws make V and D tight, many strings their means; a high floor phi makes D small and moves
the student (`raised`). n and phi are chosen from grids, before the teacher is asked, as the pair
whose upper end would be least were the teacher the student itself. That rehearsal
costs nothing: with p = q, D has the mean KL(q || r) + sum_{k>=n} (1/k) sum_o q_o (1-q_o)^k,
computed on laws along the student's own strings; its variance, and V's mean and variance, are
those of simulated draws. The upper end of a mean is then about

    mean + sqrt(2 variance L / M) + b L / M,    L as in `betting.price`, b the largest value.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.betting import price
from myna.evaluate.distance import usable_law
from myna.evaluate.next_tokens import DrawnLaws, divergence_excess, variation_excess
from myna.evaluate.raised import most_surprise, raised, raising_distance
from myna.lowrank.student import Strings, Student
from myna.spec import Spec

USEFUL = 0.9  # a plan whose upper end would be above this for a perfect copy is refused
DRAWS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FLOORS = tuple(4.0**-k for k in (1, 2, 3, 5, 7, 9))  # phi in units of 1 / O
_MOST_TOKENS = 2**60  # a budget that is out of reach
_REHEARSAL = 256  # prefixes of the student on which n is chosen
_REHEARSAL_ENTRIES = 2**20  # of their laws


class Plan(NamedTuple):
    """How a budget is spent.

    width: T, tokens compared of each string
    draws: n, next-token draws a prefix
    per_position: strings at each position; M = width x per_position
    floor: phi, below which the student's laws are raised
    expected_high: the upper end that a perfect copy would get, about
    """

    width: int
    draws: int
    per_position: int
    floor: float
    expected_high: float


def plan_samples(
    student: Student, width: int, budget_tokens: int, delta: float, generator: torch.Generator
) -> Plan:
    """The number of draws a prefix with the least upper end, were the teacher the student.

    Raises:
        InputError: where that end is above USEFUL, with the least budget that would do.
    """
    rehearsed = _rehearse(student, width, generator)

    def best(budget: int) -> Plan:
        return min((_plan(r, student.spec, width, budget, delta) for r in rehearsed), key=_high)

    plan = best(budget_tokens)
    if plan.expected_high <= USEFUL:
        return plan
    asked = f"even a perfect copy could not be certified from samples with {budget_tokens:,} tokens"
    if best(_MOST_TOKENS).expected_high > USEFUL:
        raise InputError(
            f"{asked}, nor with more: its next-token laws spread over too many tokens for "
            f"{DRAWS[-1]:,} draws a prefix; compare fewer tokens (max_tokens)"
        )
    short, enough = budget_tokens, 2 * max(budget_tokens, width * width)
    while best(enough).expected_high > USEFUL:
        short, enough = enough, 2 * enough
    while enough - short > max(1, short // 1000):
        middle = (short + enough) // 2
        useful = best(middle).expected_high <= USEFUL
        short, enough = (short, middle) if useful else (middle, enough)
    raise InputError(
        f"{asked} (its interval would reach above {USEFUL}); at least {enough:,} tokens would do"
    )


def _high(plan: Plan) -> float:
    return plan.expected_high


class _Rehearsed(NamedTuple):
    """Where p = q, with n draws and a floor: means and variances of V and D, and TV(q, r)."""

    draws: int
    floor: float
    variation: tuple[float, float]
    divergence: tuple[float, float]
    raising: float


def _rehearse(student: Student, width: int, generator: torch.Generator) -> list[_Rehearsed]:
    """V and D on prefixes of the student's own strings, for each n and floor of the grids.

    D's mean is small beside its spread, so it is computed, not sampled.
    """
    num_tokens = student.spec.num_tokens
    units = max(32, min(_REHEARSAL, _REHEARSAL_ENTRIES // num_tokens))
    strings = student.sample(units, generator, width)
    strings = Strings(strings.tokens.cpu(), strings.lengths.cpu())
    positions = torch.arange(units) * width // units
    laws, alive = _laws_at(student, strings, positions), strings.lengths > positions
    tokens = torch.multinomial(laws.exp(), DRAWS[-1], replacement=True, generator=generator)
    log_q, remainders, found = laws.gather(1, tokens), _law_remainders(laws, alive), []
    plain = {n: DrawnLaws(tokens[:, :n], log_q[:, :n], log_q[:, :n], alive) for n in DRAWS}
    v = {n: variation_excess(drawn) for n, drawn in plain.items()}
    d = {n: divergence_excess(drawn) for n, drawn in plain.items()}
    for floor in (part / num_tokens for part in FLOORS):
        lifted = raised(laws, floor)
        raising = float((raising_distance(laws, floor) * alive).mean())
        gap = float((torch.special.xlogy(laws.exp(), (laws - lifted).exp()).sum(1) * alive).mean())
        moved = (log_q - lifted.gather(1, tokens)) * alive[:, None]
        for n in DRAWS:
            spread = float((d[n] + moved[:, :n].mean(1)).var())
            hybrid = (float(v[n].mean()), float(v[n].var()))
            found.append(_Rehearsed(n, floor, hybrid, (gap + remainders[n], spread), raising))
    return found


def _laws_at(
    student: Student, strings: Strings, positions: Int[Tensor, " unit"]
) -> Float[Tensor, "unit token"]:
    """Q's log-law after positions[i] tokens of string i; uniform where it had ended."""
    laws = torch.zeros((len(positions), student.spec.num_tokens), dtype=torch.float64)
    laws -= math.log(student.spec.num_tokens)
    rows, state = torch.arange(len(positions)), student.initial(len(positions))
    for t in range(strings.tokens.shape[1]):
        kept = ((strings.lengths[rows] > t) & (positions[rows] >= t)).nonzero()[:, 0]
        if not len(kept):
            break
        rows, state = rows[kept], state.take(kept.to(state.vector.device))
        here = positions[rows] == t
        laws[rows[here]] = usable_law(student, state)[here]
        state, _ = student.step(state, strings.tokens[rows, t].to(state.vector.device))
    return laws


def _law_remainders(laws: Float[Tensor, "unit token"], alive: Tensor) -> dict[int, float]:
    """sum_{k>=n} (1/k) sum_o q_o (1-q_o)^k, the mean of D where p = q = r, for each n."""
    q = laws.exp()
    left, power, found = -torch.special.xlogy(q, q), q.clone(), {}
    for k in range(1, DRAWS[-1] + 1):
        if k in DRAWS:
            found[k] = float((left.sum(1) * alive).mean())
        power *= 1 - q
        left -= power / k
    return found


def _plan(rehearsed: _Rehearsed, spec: Spec, width: int, budget: int, delta: float) -> Plan:
    """Spend a budget with n given: per position one whole string and n - 1 draws of t + 1 tokens."""
    n = rehearsed.draws
    cost = width * width + (n - 1) * width * (width + 1) // 2
    per_position = budget // cost
    if per_position < 4:  # a string of each position for every quarter of the classifier
        return Plan(width, n, per_position, rehearsed.floor, math.inf)
    samples = width * per_position

    def high(moments: tuple[float, float], largest: float) -> float:
        rate = price(samples, delta) / samples
        return width * (moments[0] + math.sqrt(2 * moments[1] * rate) + largest * rate)

    kl = high(rehearsed.divergence, most_surprise(rehearsed.floor, spec.num_tokens))
    from_kl = width * rehearsed.raising + variation_from_kl(kl)
    expected = min(from_kl, high(rehearsed.variation, 1.0))
    return Plan(width, n, per_position, rehearsed.floor, expected)


def variation_from_kl(kl: float) -> float:
    """The lesser of Pinsker's bound on TV and Bretagnolle & Huber's: sqrt(K/2), sqrt(1 - e^-K)."""
    return min(math.sqrt(kl / 2), math.sqrt(-math.expm1(-kl)))
