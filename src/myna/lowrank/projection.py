"""Projections of sketches onto a convex set K of sketches, many at once, with certificates.

    z* = argmin over z in K of d(z, w)

w is the estimated sketch of a history, K a set that the true one lies in (`Polytope`),
and d one of three divergences (`Divergence`). Liu and Moitra (arXiv 2411.07536, section 7,
Algorithm 6) project at every generated token, in KL, since

    d(z, z*) + d(z*, w) <= d(z, w)   for all z in K    (KL and L2),

so the error never grows, while in L1 it may double at every step.

Certificate. For every y, weak duality gives

    min over K of d(., w)  >=  sum_j min over z_j >= floor_j of (phi_j(z_j) - y_j z_j)
                               + min over weights x of <x, V R y>,

and both terms have closed forms. The reported gap is the value at the returned point,
recomputed from its weights, less this bound at the solver's multipliers: an upper limit on
the suboptimality that trusts nothing about how they were found.

Where we differ from the paper: it asks for any solver; ours is a batched interior point
(`interior`), with cheaper first attempts that are kept only where their certificate holds:
a pass of C where one can be compiled (`box_projection`, `hull_projection`), and for a box the
minimum that leaves out the inequalities. A failure is a status with a reason, never a NaN.
"""

import enum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.affine import affine_minimum
from myna.lowrank.box_projection import box_proposal
from myna.lowrank.divergence import TINY, Divergence
from myna.lowrank.hull_projection import hull_proposal
from myna.lowrank.interior import Iterate, Layout, advance, start
from myna.lowrank.polytope import Polytope

_ROWS = 1024  # solved at once: larger batches leave the processor's cache
_SPENT = 1e-3
_FEASIBLE = 1e-10  # how far below the floor a sketch may be, whatever the tolerance
_SUM = 1e-12  # how far from one weights may sum
_EMPTY = 1e-7  # what no rounding explains: a floor missed, or mass where the target has none


class Status(enum.IntEnum):
    """How a row's projection ended."""

    SOLVED = 0
    STALLED = 1
    EMPTY = 2
    INFINITE = 3
    BAD_TARGET = 4

    @property
    def reason(self) -> str:
        """One sentence."""
        return _REASONS[self]


_REASONS = {
    Status.SOLVED: "the gap is certified to be within the tolerance",
    Status.STALLED: "the iterations ended before the gap was within the tolerance; it is reported",
    Status.EMPTY: "no point of the set reaches the floor; lower the floor or widen the set",
    Status.INFINITE: "the target is zero where no point of the set can be; floor the target",
    Status.BAD_TARGET: "the target holds NaN, infinite or (in KL) negative entries; floor the target",
}


class Projection(NamedTuple):
    """Projections, one a row.

    weights: (batch, vertex), x; the uniform weights where the status says nothing was found
    coefficients: (batch, rank), c = x V
    sketches: (batch, future), z = c R
    value: (batch,), d(z, w), in nats for KL; infinite for BAD_TARGET and INFINITE
    gap: (batch,), at most this far above the least value; infinite where unknown
    violation: (batch,), the largest floor - z, or zero
    iterations: (batch,), interior-point steps; zero where the first attempt sufficed
    status: (batch,), values of `Status`
    """

    weights: Float[Tensor, "batch vertex"]
    coefficients: Float[Tensor, "batch rank"]
    sketches: Float[Tensor, "batch future"]
    value: Float[Tensor, " batch"]
    gap: Float[Tensor, " batch"]
    violation: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    status: Int[Tensor, " batch"]

    @property
    def solved(self) -> torch.Tensor:
        """(batch,), which rows are certified."""
        return self.status == Status.SOLVED

    def reasons(self) -> tuple[str, ...]:
        """One sentence a row."""
        return tuple(Status(int(code)).reason for code in self.status)


class _Point(NamedTuple):
    """A feasible point with its certificate."""

    weights: Tensor
    value: Tensor
    gap: Tensor
    violation: Tensor


def project(
    targets: Float[Tensor, "batch future"],
    k: Polytope,
    divergence: Divergence = Divergence.KL,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 80,
) -> Projection:
    """Project each target onto K.

    tolerance: SOLVED means gap <= tolerance * max(1, value), and a violation of at most
        tolerance or 1e-10

    Raises:
        InputError: for a target of another width than the sketch, not in float64, or a
            tolerance that double precision cannot reach.
    """
    _check(targets, k, tolerance)
    least, most = targets.aminmax(dim=1)  # NaN where there is any
    good = torch.isfinite(least) & torch.isfinite(most)
    if divergence is Divergence.KL:
        good &= least >= 0
    result = _uniform(targets, k, good)
    if _out_of_reach(k):
        result.status[good] = Status.EMPTY
        result.value[good] = divergence.between(result.sketches[good], targets[good])
        return result
    inner, alive = _lifted(k)
    rows = good.nonzero()[:, 0]
    for chunk in rows.split(_ROWS if targets.device.type == "cpu" else max(1, len(rows))):
        part, w = chunk, _taken(targets, chunk)
        for form in (inner, _spelled_out(inner)):
            if form is None or not len(part):
                continue
            found = _solve(w[:, alive], form, divergence, tolerance, max_iterations)
            better = (found.gap <= result.gap[part]).nonzero()[:, 0]
            found = _Found(*(_taken(table, better) for table in found))
            part, w = _taken(part, better), _taken(w, better)
            _write(result, part, found, w, k, divergence, tolerance)
            left = (result.status[part] == Status.STALLED).nonzero()[:, 0]
            part, w = part[left], w[left]
    return result


def _taken(table: Tensor, rows: Int[Tensor, " rows"]) -> Tensor:
    """The chosen rows, in order; no copy where these are all."""
    return table if len(rows) == len(table) else table[rows]


def _check(targets: Float[Tensor, "batch future"], k: Polytope, tolerance: float) -> None:
    """Refuse what no projection of this set can take."""
    if targets.shape[1] != k.sketch.shape[1] or targets.dtype != torch.float64:
        raise InputError(
            f"targets must be float64 with {k.sketch.shape[1]} futures, as the sketch has; "
            f"got {targets.dtype} with {targets.shape[1]}"
        )
    if not 1e-13 <= tolerance < 1:
        raise InputError(f"the tolerance must lie in [1e-13, 1), got {tolerance}")


def _uniform(w: Float[Tensor, "batch future"], k: Polytope, good: Tensor) -> Projection:
    """The answer before anything is solved: uniform weights, nothing certified."""
    x = w.new_full((len(w), k.size), 1 / k.size)
    c = k.coefficients(x)
    z = (c[:1] @ k.sketch).repeat(len(w), 1)
    value = w.new_full((len(w),), torch.inf)
    status = torch.where(good, int(Status.STALLED), int(Status.BAD_TARGET))
    below = (k.floor - z[:1]).amax(1).clamp(min=0).repeat(len(w))
    return Projection(x, c, z, value, value.clone(), below, torch.zeros_like(status), status)


def _lifted(k: Polytope) -> tuple[Polytope, Tensor | slice]:
    """K without futures that no point has, and which are left; few vertices become the basis."""
    alive = (k.sketch != 0).any(0)
    if bool(alive.all()) or not bool(alive.any()):
        alive = slice(None)  # takes no copies of targets; some must stay
    sketch, vertices = k.sketch[:, alive], k.vertices
    if vertices is not None and len(vertices) <= 2 * len(sketch) + 1:
        sketch, vertices = vertices @ sketch, None
    return Polytope(sketch, vertices, k.low, k.high, k.floor[alive]), alive


def _spelled_out(k: Polytope) -> Polytope | None:
    """The same set with its identity written out: a slower Newton system, and a finer one."""
    if k.vertices is not None:
        return None
    unit = torch.eye(k.size, dtype=k.sketch.dtype, device=k.sketch.device)
    return Polytope(k.sketch, unit, k.low, k.high, k.floor)


def _out_of_reach(k: Polytope) -> bool:
    """Whether some future's floor is above every point's entry, so that K is empty."""
    units = torch.eye(len(k.floor), dtype=k.floor.dtype, device=k.floor.device)
    most = -k.lowest(-k.pulled(units))
    return bool((most < k.floor - 1e-12 * (1 + k.floor.abs())).any())


class _Found(NamedTuple):
    """Weights with the certified gap, and the interior-point steps taken."""

    weights: Float[Tensor, "batch vertex"]
    gap: Float[Tensor, " batch"]
    steps: Int[Tensor, " batch"]


def _write(
    result: Projection,
    rows: Int[Tensor, " rows"],
    found: _Found,
    w: Float[Tensor, "rows future"],
    k: Polytope,
    divergence: Divergence,
    tolerance: float,
) -> None:
    """Put what was found into the result, with a status for each row."""
    z = k.sketched(found.weights)
    value = divergence.between(z, w)
    below = (k.floor - z).amax(1).clamp(min=0)
    ok = (found.gap <= tolerance * value.clamp(min=1)) & (below <= max(tolerance, _FEASIBLE))
    status = torch.where(ok, int(Status.SOLVED), int(Status.STALLED))
    status[~ok & (below > _EMPTY)] = Status.EMPTY
    if divergence is Divergence.KL:
        forbidden = ((w == 0) & (z > _EMPTY)).any(1)
        status[forbidden] = Status.INFINITE
        value = value.masked_fill(forbidden, torch.inf)
    gap = found.gap.masked_fill((status == Status.EMPTY) | (status == Status.INFINITE), torch.inf)
    answers = (found.weights, k.coefficients(found.weights), z, value, gap, below)
    for table, answer in zip(result[:-1], (*answers, found.steps), strict=True):
        _put(table, rows, answer)
    _put(result.status, rows, status)


def _put(table: Tensor, rows: Int[Tensor, " rows"], answer: Tensor) -> None:
    """Into the chosen rows, in order; as a plain copy where these are all."""
    if len(rows) == len(table):
        table.copy_(answer)
    else:
        table[rows] = answer


def _solve(
    w: Float[Tensor, "batch future"],
    k: Polytope,
    divergence: Divergence,
    tolerance: float,
    max_iterations: int,
) -> _Found:
    """Weights of every row; rows leave the iteration as their certificates hold."""
    weights = w.new_full((len(w), k.size), 1 / k.size)
    gap = w.new_full((len(w),), torch.inf)
    count = torch.zeros(len(w), dtype=torch.int64, device=w.device)
    if k.single:
        return _Found(weights, torch.zeros_like(gap), count)
    left = torch.arange(len(w), device=w.device)
    for attempt in (_proposed, _first_attempt):
        point = attempt(_taken(w, left), k, divergence) if len(left) else None
        if point is not None:
            done = _accepted(point, tolerance)
            rows, left = left[done], left[~done]
            weights[rows], gap[rows] = point.weights[done], point.gap[done]
    if not len(left):
        return _Found(weights, gap, count)
    at, now = Layout.of(k, divergence), start(k, divergence, w[left])
    for iteration in range(max_iterations + 1):
        last = iteration == max_iterations
        near = (now.complementarity < tolerance / 3) | last
        if bool(near.any()):
            index = near.nonzero()[:, 0]
            point = _certified(k, divergence, now.take(index))
            # far below the tolerance only rounding is left to change
            spent = now.complementarity[index] < _SPENT * tolerance
            done = _accepted(point, tolerance) | spent | last
            rows = left[index[done]]
            weights[rows], gap[rows], count[rows] = point.weights[done], point.gap[done], iteration
            near[index[~done]] = False
            keep = (~near).nonzero()[:, 0]
            now, left = now.take(keep), left[keep]
        if not len(left):
            break
        now = advance(k, divergence, now, at)
    return _Found(weights, gap, count)


def _accepted(point: _Point, tolerance: float) -> Tensor:
    """Which points are feasible and certified."""
    enough = point.gap <= tolerance * point.value.clamp(min=1)
    return enough & (point.violation <= max(tolerance, _FEASIBLE))


def _proposed(
    w: Float[Tensor, "batch future"], k: Polytope, divergence: Divergence
) -> _Point | None:
    """The compiled pass's answers, certified; None where it has none."""
    propose = box_proposal if k.vertices is None else hull_proposal
    answer = propose(w, k, divergence)
    if answer is None:
        return None
    x, y = answer
    least, most = x.aminmax(dim=1)
    inside = (least >= k.low) & (most <= k.high) & ((x.sum(1) - 1).abs() < _SUM)
    return _bounded(k, divergence, w, x, y, inside & torch.isfinite(y[:, 0]))


def _first_attempt(
    w: Float[Tensor, "batch future"], k: Polytope, divergence: Divergence
) -> _Point | None:
    """The minimum without inequalities, certified as if it were the answer; not for hulls or L1."""
    if not k.bounded or k.vertices is not None or divergence is Divergence.L1:
        return None
    x = affine_minimum(w, k.sketch, divergence)
    z = x @ k.sketch
    outside = (x.abs().amax(1) > k.high) | (x.amin(1) < k.low) | ((z <= 0) & (w > 0)).any(1)
    y, _ = divergence.slope(z.clamp(min=TINY) if divergence is Divergence.KL else z, w)
    return _bounded(k, divergence, w, x, y, ~outside)


def _certified(k: Polytope, divergence: Divergence, now: Iterate) -> _Point:
    """The iterate's weights, put exactly within their bounds, and their certificate."""
    x = now.x.clamp(k.low, k.high)
    x = x / x.sum(1, keepdim=True)
    return _bounded(k, divergence, now.w, x, now.y, torch.isfinite(now.y).all(1))


def _bounded(
    k: Polytope, divergence: Divergence, w: Tensor, x: Tensor, y: Tensor, fit: Tensor
) -> _Point:
    """Value, violation, and the gap to the bound that the module states; `fit` rows only."""
    y = y.clamp(max=1) if divergence is Divergence.L1 else y  # above one there is no bound
    z = k.sketched(x)
    value = divergence.between(z, w)
    bound = divergence.least(y, w, k.floor) + k.lowest(k.pulled(y))
    gap = (value - bound).clamp(min=0).where(fit, torch.inf).nan_to_num(nan=torch.inf)
    return _Point(x, value, gap, (k.floor - z).amax(1).clamp(min=0))
