"""Representative vectors: histories as short vectors that keep l1 distances.

For futures f_1 ... f_m drawn from a distribution D,

    v_h[j] = P(f_j | h) / (m D(f_j))

has E || sum_h c_h v_h ||_1 = || sum_h c_h P(. | h) ||_1 for every c, by importance
weighting. Vectors are gamma-representative when the two norms differ by at most gamma
for all |c_h| <= 1. With D the mean of the histories' own laws every entry of
sum_h c_h v_h is bounded, which gives concentration.

Source: Liu and Moitra (arXiv 2411.07536), representative vectors; the talk, "Sketching
norms". The bound below is derived here, by Hoeffding and a net, not quoted.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError


def representative_vectors(
    log_probs: Float[Tensor, "history future"], log_proposal: Float[Tensor, " future"]
) -> Float[Tensor, "history future"]:
    """v_h[j] = P(f_j | h) / (m D(f_j)), one row a history.

    log_probs: log P(f_j | h), nats
    log_proposal: log D(f_j), nats, finite because f_j was drawn from D

    Raises:
        InputError: where D(f_j) = 0, which no drawn future has.
    """
    if not bool(torch.isfinite(log_proposal).all()):
        raise InputError("every future must have positive proposal probability; draw them from D")
    return (log_probs - log_proposal - math.log(max(1, len(log_proposal)))).exp()


def stratified_log_proposal(
    log_probs: Float[Tensor, "history future"],
) -> Float[Tensor, " future"]:
    """Log D for futures drawn k from each history: D(f) = (1/s) sum_h P(f | h).

    With m = k s futures, v_h[j] = P(f_j | h) / (k sum_i P(f_j | h_i)) lies in [0, 1/k],
    and each column sums to 1/k over the histories.
    """
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def futures_needed(histories: int, gamma: float, delta: float) -> int:
    """k, the futures to draw from each of s histories for gamma-representative vectors.

    For a fixed c with |c_h| <= 1 the sketched norm is a sum of m = k s independent
    terms in [0, 1/k], since |sum_h c_h P(f | h)| <= sum_h P(f | h); its mean is the true
    norm. Hoeffding: it misses by gamma/2 with probability at most
    2 exp(-2 (gamma/2)^2 k^2 / m) = 2 exp(-gamma^2 k / (2 s)). A grid of at most
    (4 s / gamma + 1)^s points comes within gamma / (4 s) of every c in each coordinate.
    Moving there changes either norm by at most gamma/4: the true one because laws have
    mass one, the sketched one because every column sums to 1/k over the histories. So

        k >= (2 s / gamma^2) (s log(4 s / gamma + 1) + log(2 / delta)).

    >>> futures_needed(4, 0.5, 0.01)
    618

    Raises:
        InputError: outside histories >= 1, gamma > 0, 0 < delta < 1.
    """
    if histories < 1 or not gamma > 0 or not 0 < delta < 1:
        raise InputError(
            "the bound needs histories >= 1, gamma > 0 and 0 < delta < 1, "
            f"got {histories}, {gamma} and {delta}"
        )
    net = histories * math.log(4 * histories / gamma + 1)
    return math.ceil(2 * histories / gamma**2 * (net + math.log(2 / delta)))


def l1_distortion(
    sketch: Float[Tensor, "history future"],
    laws: Float[Tensor, "history every"],
    combinations: Float[Tensor, "row history"],
) -> Float[Tensor, " row"]:
    """| ||c v||_1 - ||c P||_1 | for each row c, with P over all futures."""
    return ((combinations @ sketch).abs().sum(1) - (combinations @ laws).abs().sum(1)).abs()
