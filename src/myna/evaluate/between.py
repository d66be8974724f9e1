"""How far one student is from another, a token at a time.

Along strings x that P draws, every law of both is at hand, so only the strings are random:

    r = E sum_t KL(P(. | x_<t) || Q(. | x_<t)) / E |x|        nats a token,

estimated by the ratio of sums, with the delta method's interval over n strings (normal
approximation; `certify` gives intervals that assume nothing). No floor: where Q excludes a token
that P allows, r is infinite. To allow is more than 1e-12: signed tables in double precision leave
1e-16 where nothing can come, and a form of them may leave 0.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.evaluate.distance import step_kl, usable_law
from myna.lowrank.student import State, Strings, Student

_ALLOWED = math.log(1e-12)  # P's log-probability of a token; less is rounding
_NORMAL = 2.576  # 99% of a normal law lies within so many standard deviations


class DivergenceRate(NamedTuple):
    """KL between two students along strings of the first.

    mean: r, nats a token
    half_width: of its 99% interval, unless `rate_of` was told another
    strings, tokens: that it was measured on
    """

    mean: float
    half_width: float
    strings: int
    tokens: int

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.mean + self.half_width


def divergence_rate(reference: Student, other: Student, drawn: Strings) -> DivergenceRate:
    """The rate, from strings that the reference drew."""
    order = torch.argsort(drawn.lengths, descending=True, stable=True)
    tokens, lengths = drawn.tokens[order], drawn.lengths[order]
    total = torch.zeros(len(order), dtype=torch.float64)
    states = [reference.initial(len(order)), other.initial(len(order))]
    for t in range(tokens.shape[1]):
        alive = int((lengths > t).sum())
        if not alive:
            break
        states = [State(state.vector[:alive], state.position) for state in states]
        p, q = (usable_law(m, s) for m, s in zip((reference, other), states, strict=True))
        total[:alive] += step_kl(p.masked_fill(p < _ALLOWED, -math.inf), q)
        here = tokens[:alive, t]
        states = [m.step(s, here)[0] for m, s in zip((reference, other), states, strict=True)]
    return rate_of(total, lengths)


def rate_of(
    total: Float[Tensor, " string"],
    lengths: Int[Tensor, " string"],
    deviations: float = _NORMAL,
) -> DivergenceRate:
    """The ratio of sums and its interval, from each string's divergence and tokens.

    deviations: standard deviations in the interval's half width
    """
    read, count = float(lengths.sum()), len(lengths)
    mean = float(total.sum()) / read if read else 0.0
    if not math.isfinite(mean) or count < 2:
        return DivergenceRate(mean, math.inf, count, int(read))
    spread = (total - mean * lengths).square().sum() / (count - 1) * count
    return DivergenceRate(mean, deviations * math.sqrt(float(spread)) / read, count, int(read))
