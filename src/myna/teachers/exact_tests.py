"""Do counts agree with stated probabilities? Exact binomial tests, one a token, together at a level.

n draws of a token of probability p show it K ~ Binomial(n, p) times. The p-value of k is

    sum of P(K = j) over all j with P(K = j) <= P(K = k)

and by the union bound m tests at level a / m each are wrong together with probability at
most a, however the counts depend on each other.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEVEL = 1e-6  # of a family of tests: one honest teacher in a million is accused


class Disagreement(NamedTuple):
    """The least likely count.

    place: which token; came: how often; expected: n p
    p_value: of this count alone; tests: m; fails: whether p_value < level / m
    """

    place: int
    came: int
    expected: float
    p_value: float
    tests: int
    fails: bool


def binomial_p_value(count: int, draws: int, probability: float) -> float:
    """The exact two-sided p-value; 0 or 1 where the probability is 0 or 1."""
    if probability <= 0 or probability >= 1:
        return float(count == (0 if probability <= 0 else draws))
    k = torch.arange(draws + 1, dtype=torch.float64)
    p = torch.tensor(probability, dtype=torch.float64)
    n = torch.tensor(float(draws), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_mass = ways + k * p.log() + (n - k) * (-p).log1p()
    # A mass that ties but for rounding counts: the p-value may only err upwards.
    return min(1.0, float(log_mass[log_mass <= log_mass[count] + 1e-7].exp().sum()))


def worst_disagreement(
    counts: Int[Tensor, " token"],
    law: Float[Tensor, " token"],
    draws: int,
    tests: int,
    level: float = LEVEL,
) -> Disagreement:
    """The count that fits its probability least.

    counts: of some of the tokens, in so many draws; law: their probabilities
    tests: m, of the whole family that shares the level
    """
    values = [
        binomial_p_value(count, draws, probability)
        for count, probability in zip(counts.tolist(), law.tolist(), strict=True)
    ]
    place = values.index(min(values))
    expected = draws * float(law[place])
    fails = values[place] < level / tests
    return Disagreement(place, int(counts[place]), expected, values[place], tests, fails)
