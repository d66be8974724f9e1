"""An upper confidence limit for a mean, by bets that it is smaller than claimed.

Let X_1 ... X_n be independent, X_i <= b, with average mean mu = sum_i E X_i / n >= 0. For
0 <= lambda <= 1/b every factor 1 + lambda (mu - X_i) is nonnegative, and

    E prod_i (1 + lambda (mu - X_i)) = prod_i (1 + lambda (mu - E X_i)) <= 1,

by the inequality of arithmetic and geometric means; so the X_i need not have one law
(stratified samples), nor a lower bound. An average K(mu) over several lambda keeps E K <= 1,
and Markov's inequality gives P(K(mu) >= 1/delta) <= delta. K(m) grows with m, so

    mu < inf {m : K(m) >= 1/delta}    with probability at least 1 - delta.

Source: capital processes for bounded means, Waudby-Smith & Ramdas, arXiv 2010.09686; where
they choose each bet from the past, we average over a fixed grid of bets, so that the
limit does not depend on the order of the samples. With variance v the limit is about
sqrt(2 v L / n) + b L / n above the mean, L = log(1/delta) + log(number of bets).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError

_BISECTIONS = 50  # halvings of [0, b]: far below any width that samples can give


def bets(samples: int) -> Float[Tensor, " bet"]:
    """The grid of lambda b: 1, 1/2, 1/4 ... down to about 1 / sqrt(samples).

    A best bet is sqrt(2 L / (n v)), and v <= b^2 where 0 <= X, so none smaller is needed.
    """
    return 0.5 ** torch.arange(_num_bets(samples), dtype=torch.float64)


def _num_bets(samples: int) -> int:
    return 1 + math.ceil(math.log2(max(samples, 1)) / 2)


def price(samples: int, delta: float) -> float:
    """L = log(1/delta) + log(number of bets), nats: what the limit's width is made of."""
    return math.log(_num_bets(samples) / delta)


def mean_upper_limit(values: Float[Tensor, " sample"], largest: float, delta: float) -> float:
    """A number that exceeds the average mean with probability at least 1 - delta.

    values: independent, each at most `largest`, with a nonnegative average mean
    largest: b, positive
    delta: probability of error, in (0, 1)

    >>> round(mean_upper_limit(torch.zeros(1000, dtype=torch.float64), 1.0, 0.005), 4)
    0.0071

    Raises:
        InputError: without values, for values above `largest`, or for delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise InputError(f"a probability of error lies between 0 and 1, got {delta}")
    if not len(values) or not bool((values <= largest).all()):
        raise InputError(
            f"values of at most {largest:g} are needed, got {len(values)} with the largest "
            f"{float(values.max()) if len(values) else math.nan:g}"
        )
    scaled = values / largest
    stakes = bets(len(values))[:, None]

    def log_capital(m: float) -> float:
        logs = torch.log1p((stakes * (m - scaled)).clamp(min=-1)).sum(1)
        return float(logs.logsumexp(0)) - math.log(len(stakes))

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if log_capital(middle) < -math.log(delta):
            low = middle
        else:
            high = middle
    return high * largest  # the outer side of the bracket: rounding only widens
