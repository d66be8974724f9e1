"""A primal-dual interior point for many projections at once, in float64.

    minimise  sum_j phi_j(z_j)   over   z = x V R,  1 x = 1,  low <= x <= high,  z >= floor

With multipliers y for z = x V R, nu for the sum, and (s, l) the slack and multiplier of
each inequality, the optimality conditions are

    phi'(z) - y - l_z = 0,    y R' V' - l_low + l_high - nu = 0,    s l = 0,

of which s l = sigma mu is aimed at with Newton steps (Mehrotra's predictor and corrector,
SIAM J. Optim. 2, 1992; for separable objectives Saunders' PDCO). L1 is split as
z - w = p - q with p, q >= 0, whose multipliers are 1 - t and 1 + t for phi' = t.

Where we differ from a general solver. Eliminating everything but the coefficients leaves,
for each row, a system of size rank in M = R D R' (the box: D = phi'' + l/s) or, for a hull
of many vertices, one of size 2 rank + 1 that couples M with K = V' T^-1 V, T = l/s,

    [ M   -I    0  ] [dc ]        dx = T^-1 (r - V tau + dnu)
    [ I    K  -k_1 ] [tau]
    [ 0  -k_1' k_0 ] [dnu]

since near a vertex of K both M and K grow like 1/mu, in complementary directions: neither
I + K M nor a Schur complement survives that in double precision, the coupled form with one
step of iterative refinement does. For the same reason residuals at rounding level count as
zero: a curvature of 1e13 would turn them into steps.
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope, symmetric

_ROUNDING = 1e-15  # residuals below this are rounding
_KEEP = 0.995  # how much of the way to the boundary a step may go
_PROXIMAL = 1e-14  # relative, keeps Cholesky factors of singular matrices defined


@dataclasses.dataclass
class Iterate:
    """Where a batch of projections stands; rows leave it as they finish.

    w: (batch, future), the targets
    x, z, y, nu: weights, sketch, multipliers of z = x V R and of the sum
    slack, dual: (batch, pair), s and l > 0 of z - floor | x - low | high - x | p | q
    """

    w: Float[Tensor, "batch future"]
    x: Float[Tensor, "batch vertex"]
    z: Float[Tensor, "batch future"]
    y: Float[Tensor, "batch future"]
    nu: Float[Tensor, " batch"]
    slack: Float[Tensor, "batch pair"]
    dual: Float[Tensor, "batch pair"]

    def take(self, rows: Int[Tensor, " rows"]) -> "Iterate":
        """The chosen rows."""
        return Iterate(*(table[rows] for table in vars(self).values()))

    @property
    def complementarity(self) -> Float[Tensor, " batch"]:
        """Sum of s l: the duality gap where all residuals are zero."""
        return (self.slack * self.dual).sum(1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each kind of inequality lies among the pairs."""

    z: slice
    low: slice
    high: slice
    p: slice
    q: slice

    @classmethod
    def of(cls, k: Polytope, divergence: Divergence) -> "Layout":
        """For this set and divergence; absent kinds are empty slices."""
        futures = k.sketch.shape[1]
        split = futures if divergence is Divergence.L1 else 0
        sizes = [futures, k.size, k.size if k.bounded else 0, split, split]
        edges = [sum(sizes[:i]) for i in range(6)]
        return cls(*(slice(edges[i], edges[i + 1]) for i in range(5)))


def start(k: Polytope, divergence: Divergence, w: Float[Tensor, "batch future"]) -> Iterate:
    """Uniform weights, and multipliers that satisfy every equation but s l = 0."""
    x = w.new_full((len(w), k.size), 1 / k.size)
    z = k.sketched(x)
    scale = z.abs().mean(1, keepdim=True).clamp(min=1e-12)
    z = torch.maximum(z, k.floor + 1e-3 * scale)
    split, ones = [], []
    if divergence is Divergence.L1:
        t, gap = torch.zeros_like(z), z - w
        size, slope = gap.abs().mean(1, keepdim=True) / 2 + 1e-3 * scale, 1.0
        split = [gap.clamp(min=0) + size, (-gap).clamp(min=0) + size]
        ones = [torch.ones_like(z), torch.ones_like(z)]
    else:
        t, _ = divergence.slope(z, w)
        slope = t.abs().mean(1, keepdim=True) + (
            1.0 if divergence is Divergence.KL else 1e-3 * scale
        )
    above = z - k.floor
    l_z = 0.1 * slope * above.mean(1, keepdim=True) / above
    y = t - l_z
    g = k.pulled(y)
    push = 0.1 * (g.amax(1, keepdim=True) - g.amin(1, keepdim=True)) + 0.01 * slope * scale
    if k.bounded:
        nu = g.mean(1)
        r = g - nu[:, None]
        slack = torch.cat([above, x - k.low, k.high - x, *split], 1)
        dual = torch.cat([l_z, r.clamp(min=0) + push, (-r).clamp(min=0) + push, *ones], 1)
    else:
        nu = g.amin(1) - push[:, 0]
        slack = torch.cat([above, x - k.low, *split], 1)
        dual = torch.cat([l_z, g - nu[:, None], *ones], 1)
    return Iterate(w, x, z, y, nu, slack, dual)


@dataclasses.dataclass
class _System:
    """One Newton system: residuals, curvatures, and a solver for the reduced equations."""

    at: Layout
    ratio: Tensor  # l / s
    curvature: Tensor  # phi''
    weight: Tensor  # D = phi'' + l_z / s_z
    r_z: Tensor  # x V R - z
    r_t: Tensor  # phi' - y - l_z
    r_x: Tensor  # y R' V' - l_low + l_high - nu
    r_split: Tensor  # p - q - (z - w)
    reduced: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def advance(k: Polytope, divergence: Divergence, now: Iterate, at: Layout) -> Iterate:
    """One predictor and corrector step; rows whose step is not finite stay put."""
    system = _system(k, divergence, now, at)
    s, dual_s = now.slack, now.dual
    product = s * dual_s
    mu = product.sum(1)
    # 1. predictor: aim at s l = 0, and see how far that goes
    *_, ds, dl = _direction(k, now, system, -product)
    primal, dual = _lengths(s, ds, 1.0), _lengths(dual_s, dl, 1.0)
    if divergence is not Divergence.L1:  # a curved phi ties both steps together
        primal = dual = torch.minimum(primal, dual)
    left = ((s + primal * ds) * (dual_s + dual * dl)).sum(1) / mu
    # 2. corrector: aim at sigma mu, less the predictor's second-order term
    sigma = left.clamp(1e-6, 1) ** 3
    aim = (sigma * mu / s.shape[1])[:, None] - product - ds * dl
    dx, dz, dy, dnu, ds, dl = _direction(k, now, system, aim)
    primal, dual = _lengths(s, ds, _KEEP), _lengths(dual_s, dl, _KEEP)
    if divergence is not Divergence.L1:
        primal = dual = torch.minimum(primal, dual)
    fine = torch.isfinite(ds.sum(1) + dl.sum(1) + dy.sum(1) + dnu)[:, None]
    if not bool(fine.all()):
        primal, dual = primal.where(fine, 0.0), dual.where(fine, 0.0)
        dx, dz, dy, ds, dl = (d.where(fine, 0.0) for d in (dx, dz, dy, ds, dl))
        dnu = dnu.where(fine[:, 0], 0.0)
    return Iterate(
        now.w,
        now.x + primal * dx,
        now.z + primal * dz,
        now.y + dual * dy,
        now.nu + dual[:, 0] * dnu,
        s + primal * ds,
        dual_s + dual * dl,
    )


def _lengths(
    value: Float[Tensor, "batch pair"], change: Float[Tensor, "batch pair"], keep: float
) -> Float[Tensor, "batch 1"]:
    """The longest step of at most one that keeps value + step * change > 0."""
    steepest = (change / value).amin(1, keepdim=True).clamp(max=-1e-12)
    return (-keep / steepest).clamp(max=1)


def _settled(residual: Tensor) -> Tensor:
    """Residuals, with rounding taken for zero."""
    return residual * (residual.abs() > _ROUNDING)


def _system(k: Polytope, divergence: Divergence, now: Iterate, at: Layout) -> _System:
    """Residuals and the factorised Newton system at an iterate."""
    s, dual_s = now.slack, now.dual
    ratio = dual_s / s
    r_split = now.z[:, :0]
    if divergence is Divergence.L1:
        t = (dual_s[:, at.q] - dual_s[:, at.p]) / 2
        curvature = (1 / ratio[:, at.p] + 1 / ratio[:, at.q]).reciprocal()
        r_split = _settled(s[:, at.p] - s[:, at.q] - now.z + now.w)
    else:
        t, curvature = divergence.slope(now.z, now.w)
    weight = curvature + ratio[:, at.z]
    diagonal = ratio[:, at.low]
    r_x = k.pulled(now.y) - dual_s[:, at.low] - now.nu[:, None]
    if k.bounded:
        diagonal = diagonal + ratio[:, at.high]
        r_x = r_x + dual_s[:, at.high]
    r_sum = _settled((1 - now.x.sum(1)) / 10)  # a sum rounds more than its terms
    factor = _direct if k.vertices is None else _coupled
    return _System(
        at,
        ratio,
        curvature,
        weight,
        _settled(k.sketched(now.x) - now.z),
        t - now.y - dual_s[:, at.z],
        r_x,
        r_split,
        factor(k, weight, diagonal, 10 * r_sum),
    )


def _direction(
    k: Polytope, now: Iterate, system: _System, aim: Float[Tensor, "batch pair"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The Newton step whose products change by `aim`: dx, dz, dy, dnu, ds, dl."""
    at, ratio = system.at, system.ratio
    e = aim / now.slack
    split = system.r_split.shape[1] > 0
    # 1. dy = D dz + r, the linearised phi'(z) = y + l_z
    r, offset = system.r_t - e[:, at.z], None
    by_p = by_q = e[:, :0]
    if split:
        by_p, by_q = (aim[:, part] / now.dual[:, part] for part in (at.p, at.q))
        offset = by_p - by_q + system.r_split
        r = r - system.curvature * offset
    # 2. the reduced equations
    load = e[:, at.low] - system.r_x
    if k.bounded:
        load = load - e[:, at.high]
    dc, dx, dnu = system.reduced(r + system.weight * system.r_z, load)
    # 3. everything else follows
    dz = dc @ k.sketch + system.r_z
    dy = system.weight * dz + r
    parts = [dz, dx, -dx] if k.bounded else [dz, dx]
    if offset is None:
        ds = torch.cat(parts, 1)
        return dx, dz, dy, dnu, ds, e - ratio * ds
    dt = system.curvature * (dz - offset)
    ds = torch.cat([*parts, by_p + dt / ratio[:, at.p], by_q - dt / ratio[:, at.q]], 1)
    dl = torch.cat([(e - ratio * ds)[:, : at.p.start], -dt, dt], 1)
    return dx, dz, dy, dnu, ds, dl


def _direct(
    k: Polytope,
    weight: Float[Tensor, "batch future"],
    diagonal: Float[Tensor, "batch rank"],
    r_sum: Float[Tensor, " batch"],
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Solver of (R D R' + T) dx - dnu 1 = load - R g, 1 dx = r_sum; here c is x.

    Adding kappa 1 1' to the matrix and kappa r_sum to the right changes nothing, and keeps
    it definite where the constraints but for the sum already fix x.
    """
    h = symmetric(weight @ k.sketch_products, k.size)
    h.diagonal(dim1=1, dim2=2).add_(diagonal)
    kappa = h.diagonal(dim1=1, dim2=2).amax(1)
    h = h + kappa[:, None, None]
    jittered = h.clone()
    jittered.diagonal(dim1=1, dim2=2).add_(_PROXIMAL * kappa[:, None])
    factor = torch.linalg.cholesky_ex(jittered).L
    ones = torch.cholesky_solve(torch.ones_like(diagonal)[:, :, None], factor)[:, :, 0]

    def once(right: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        dnu = (total - u.sum(1)) / ones.sum(1)
        return u + ones * dnu[:, None], dnu

    def solve(g: Tensor, load: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right = load - g @ k.sketch.T + (kappa * r_sum)[:, None]
        dx, dnu = once(right, r_sum)
        rest = right + dnu[:, None] - (h @ dx[:, :, None])[:, :, 0]
        more, extra = once(rest, r_sum - dx.sum(1))
        dx = dx + more
        return dx, dx, dnu + extra

    return solve


def _coupled(
    k: Polytope,
    weight: Float[Tensor, "batch future"],
    diagonal: Float[Tensor, "batch vertex"],
    r_sum: Float[Tensor, " batch"],
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Solver of the system of size 2 rank + 1 that the module shows, scaled to unit diagonal."""
    assert k.vertices is not None
    rank, inverse, extended = len(k.sketch), diagonal.reciprocal(), k.extended
    vertices = k.vertices
    matrix = weight.new_zeros((len(weight), 2 * rank + 1, 2 * rank + 1))
    matrix[:, :rank, :rank] = symmetric(weight @ k.sketch_products, rank)
    matrix[:, rank:, rank:] = symmetric(inverse @ k.vertex_products, rank + 1)
    matrix[:, rank:-1, -1] *= -1
    matrix[:, -1, rank:-1] *= -1
    index = torch.arange(rank, device=weight.device)
    matrix[:, index, rank + index] = -1
    matrix[:, rank + index, index] = 1
    scale = matrix.diagonal(dim1=1, dim2=2).clamp(min=1e-200).rsqrt()
    matrix = matrix.mul_(scale[:, :, None]).mul_(scale[:, None, :])
    factor, pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def once(right: Tensor) -> Tensor:
        return torch.linalg.lu_solve(factor, pivots, (right * scale)[:, :, None])[:, :, 0] * scale

    def apply(v: Tensor) -> Tensor:
        dc, tau, dnu = v[:, :rank], v[:, rank:-1], v[:, -1:]
        back = (inverse * (tau @ vertices.T - dnu)) @ extended
        curved = (weight * (dc @ k.sketch)) @ k.sketch.T
        return torch.cat([curved - tau, dc + back[:, :rank], -back[:, rank:]], 1)

    def solve(g: Tensor, load: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alone = inverse * load
        moved = alone @ extended
        right = torch.cat([-(g @ k.sketch.T), moved[:, :rank], r_sum[:, None] - moved[:, rank:]], 1)
        v = once(right)
        v = v + once(right - apply(v))
        dc, tau, dnu = v[:, :rank], v[:, rank:-1], v[:, -1]
        return dc, alone - inverse * (tau @ vertices.T - dnu[:, None]), dnu

    return solve
