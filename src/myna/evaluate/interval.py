"""Finite-sample confidence intervals for the mean of bounded values.

For independent X_1 ... X_n in [0, 1] with mean mu and sample mean m, Hoeffding (1963,
theorem 1) gives

    P(m >= a) <= exp(-n kl(a, mu)) for a >= mu,    kl(a, b) = a log(a/b) + (1-a) log((1-a)/(1-b)),

and the same for a <= mu. Inverting both sides, each at half of 1 - confidence, gives
{mu : n kl(m, mu) <= log(2 / (1 - confidence))}: no variance is estimated and no normal
limit assumed. At m = 0 its upper end is 1 - (delta/2)^(1/n), about log(2/delta)/n:
no sample of size n can certify less.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError

_BISECTIONS = 60  # halvings of [0, 1]: below float64 rounding


def check_confidence(confidence: float) -> None:
    """Refuse confidence levels outside (0, 1).

    Raises:
        InputError: naming the value.
    """
    if not 0 < confidence < 1:
        raise InputError(f"a confidence level lies between 0 and 1, got {confidence}")


def binary_kl(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """kl(a, b) between Bernoulli laws, in nats; 0 log 0 = 0."""
    return torch.special.xlogy(a, a / b) + torch.special.xlogy(1 - a, (1 - a) / (1 - b))


def mean_interval(
    means: Float[Tensor, " trial"], samples: int, confidence: float
) -> tuple[Float[Tensor, " trial"], Float[Tensor, " trial"]]:
    """Low and high ends for the means of values in [0, 1], one a trial.

    means: sample means of `samples` independent values each

    >>> low, high = mean_interval(torch.tensor([0.0, 0.5], dtype=torch.float64), 1000, 0.99)
    >>> [round(float(x), 5) for x in (*low, *high)]
    [0.0, 0.44867, 0.00528, 0.55133]

    Raises:
        InputError: where a mean is outside [0, 1], or there are no samples.
    """
    check_confidence(confidence)
    if samples < 1 or bool(((means < 0) | (means > 1) | means.isnan()).any()):
        raise InputError(f"means of at least one value in [0, 1] are needed, got {samples} values")
    level = math.log(2 / (1 - confidence)) / samples

    def end(outer: Tensor) -> Tensor:
        """The farthest mu between the mean and `outer` with kl(mean, mu) <= level."""
        inside, outside = means.clone(), outer
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            kept = binary_kl(means, middle).nan_to_num(nan=0.0) <= level
            inside = torch.where(kept, middle, inside)
            outside = torch.where(kept, outside, middle)
        return outside  # the outer side of the bracket: rounding only widens

    return end(torch.zeros_like(means)), end(torch.ones_like(means))
