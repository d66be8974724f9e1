"""The nearest combination of rows whose coefficients sum to one, without inequalities.

    minimise d(c R, w)   over   c with 1 c = 1

In L2 this is one linear system, the same for every target. In KL it is a few Newton steps
with matrix R diag(1/z) R', which keep z > 0. A projection tries this first: where the
answer happens to lie inside the set it is the projection.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import products, symmetric

_STEPS = 8  # quadratic convergence: five or six suffice from the middle of the simplex
_PROXIMAL = 1e-13  # relative, for rows that depend on each other


def affine_minimum(
    w: Float[Tensor, "batch future"], sketch: Float[Tensor, "rank future"], divergence: Divergence
) -> Float[Tensor, "batch rank"]:
    """Coefficients of the minimum, as far as the steps got (the caller certifies).

    divergence: KL or L2
    """
    c = w.new_full((len(w), len(sketch)), 1 / len(sketch))
    pairs = products(sketch.T)
    if divergence is Divergence.L2:
        return _newton(c, (c @ sketch - w) @ sketch.T, pairs.sum(0, keepdim=True))[0]
    log_w = w.clamp(min=torch.finfo(w.dtype).tiny).log()
    z = c @ sketch
    for _ in range(_STEPS):
        if bool((z <= 0).any()):
            break
        moved, step = _newton(c, (z.log() - log_w) @ sketch.T, z.reciprocal() @ pairs)
        if float(step.abs().max()) < 1e-14:
            break
        dz = step @ sketch
        steepest = (dz / z).amin(1, keepdim=True).clamp(max=-1e-12)
        length = (-0.9 / steepest).clamp(max=1)
        c = torch.where(length == 1, moved, c + length * step)
        z = c @ sketch
    return c


def _newton(
    c: Float[Tensor, "batch rank"],
    gradient: Float[Tensor, "batch rank"],
    packed: Float[Tensor, "some pair"],
) -> tuple[Float[Tensor, "batch rank"], Float[Tensor, "batch rank"]]:
    """The Newton step along sum zero: H step - nu 1 = -gradient; the point and the step."""
    h = symmetric(packed, c.shape[1])
    kappa = h.diagonal(dim1=1, dim2=2).amax(1)
    h = h + kappa[:, None, None]
    h.diagonal(dim1=1, dim2=2).add_(_PROXIMAL * kappa[:, None])
    factor = torch.linalg.cholesky_ex(h).L
    if len(factor) == 1:  # one matrix for all targets
        solved = torch.cholesky_solve(torch.cat([gradient, torch.ones_like(c[:1])]).T, factor[0])
        u, ones = -solved.T[:-1], solved.T[-1:]
    else:
        both = torch.stack([-gradient, torch.ones_like(c)], 2)
        u, ones = torch.cholesky_solve(both, factor).unbind(2)
    step = u - ones * (u.sum(1, keepdim=True) / ones.sum(1, keepdim=True))
    return c + step, step
