"""Sets K of coefficients that generation is kept within, and how a point is put back.

A history's true coefficients c lie in K; an estimate that has left K is replaced by the
point of K whose sketch is nearest (`projection`). With R the sketch of the basis histories
and u its mean row, the choices are

    Box        |c_i| <= b,                           sum c = 1,   c R >= floor u
    Hull       c = sum_h x_h (m + (1 + margin) (c_h - m)), x a law,   c R >= floor u
    Truncate   |c_i| <= b by clipping, then scaled to sum one: no projection at all

where c_h are the coefficients of sampled histories and m their mean. The Box is Liu and
Moitra's (arXiv 2411.07536, section 7, with b = 3 rank); the true laws lie in the convex hull
of all histories' laws, which a finite sample's hull does not hold surely, hence the margin.

A point is put back only where it is outside by more than a stated tolerance, else it is left
exactly as it is: with exact laws a K that holds the truth changes nothing. Scaling c changes
neither Q nor the next step (both divide by a sum), so a point is judged by c / sum c.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.projection import Status, project

# distance between sketches, in l1 (so twice a total variation), that counts as none
TOLERANCE = 1e-4
# below this share of the mean sketch a KL target is cut off (papers: 1e-8 to 1e-6)
CUT_OFF = 1e-6
# by how much a hull is dilated, and a box widened, where nothing else is asked
MARGIN, SLACK = 1.0, 3.0
# the margins that `Hull.holding` tries
MARGINS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# a point known to be outside is put back where at least this gap is certified
_GOOD_ENOUGH = 1e-6
# certified gaps that still locate a point to within TOLERANCE
_SOLVER = {Divergence.KL: 1e-10, Divergence.L1: 1e-9, Divergence.L2: 1e-11}


class Settled(NamedTuple):
    """Points put back into a region.

    coefficients: (batch, rank); rows that were inside are the rows that came, bit for bit
    outside: (batch,), which rows were outside by more than the tolerance
    failed: (batch,), which of those could not be projected; they are left as they came
    """

    coefficients: Float[Tensor, "batch rank"]
    outside: Bool[Tensor, " batch"]
    failed: Bool[Tensor, " batch"]


@runtime_checkable
class Region(Protocol):
    """A set of coefficients over one cut's basis."""

    @property
    def rank(self) -> int | None:
        """The rank it is for; None for any."""
        ...

    def settle(self, points: Float[Tensor, "batch rank"], divergence: Divergence) -> Settled:
        """Put back the points that are outside."""
        ...

    def to(self, device: torch.device | str) -> "Region":
        """The same region on another device."""
        ...


def fraction_outside(region: Region, points: Float[Tensor, "batch rank"]) -> float:
    """The share of points outside by more than the tolerance (judged in L2)."""
    if not len(points):
        raise InputError("the share of points outside needs at least one point, got none")
    return float(region.settle(points, Divergence.L2).outside.double().mean())


@dataclasses.dataclass(frozen=True)
class Truncate:
    """Clip each coefficient to [-bound, bound] and scale to sum one; no projection.

    bound: b > 0
    """

    bound: float

    def __post_init__(self) -> None:
        """Refuse a bound that leaves nothing."""
        if not self.bound > 0:
            raise InputError(f"coefficients can be cut at a bound > 0 only, got {self.bound}")

    @property
    def rank(self) -> int | None:
        """Any."""
        return None

    def settle(self, points: Float[Tensor, "batch rank"], divergence: Divergence) -> Settled:
        """Clip; the divergence plays no part."""
        scaled, alive = _sum_one(points)
        outside = alive & (scaled.abs().amax(1) > self.bound * (1 + TOLERANCE))
        clipped, fine = _sum_one(scaled.clamp(-self.bound, self.bound))
        moved = (outside & fine)[:, None]
        return Settled(torch.where(moved, clipped, points), outside, outside & ~fine)

    def to(self, device: torch.device | str) -> "Truncate":
        """Itself; it holds no tensors."""
        return self


@dataclasses.dataclass(frozen=True)
class Box:
    """Coefficients of at most `bound` that sum to one, and whose sketch reaches the floor.

    sketch: (rank, future), R
    bound: b >= 1 / rank
    floor: times the mean row of R
    """

    sketch: Float[Tensor, "rank future"]
    bound: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check by building the polytope."""
        self.polytope  # noqa: B018 - its constructor checks

    @classmethod
    def around(
        cls,
        points: Float[Tensor, "history rank"],
        sketch: Float[Tensor, "rank future"],
        slack: float = SLACK,
    ) -> "Box":
        """The box `slack` times as large as sampled histories need, and at least 1."""
        scaled, alive = _sum_one(points)
        return cls(sketch, max(1.0, slack * float(scaled[alive].abs().max())))

    @property
    def rank(self) -> int | None:
        """The number of basis histories."""
        return len(self.sketch)

    @functools.cached_property
    def polytope(self) -> Polytope:
        """The set as the solver takes it."""
        return Polytope(
            self.sketch, None, -self.bound, self.bound, self.floor * self.sketch.mean(0)
        )

    def settle(self, points: Float[Tensor, "batch rank"], divergence: Divergence) -> Settled:
        """Project what breaks the bound or the floor."""
        scaled, alive = _sum_one(points)
        below = (self.polytope.floor - scaled @ self.sketch).clamp(min=0).sum(1)
        above = (scaled.abs() - self.bound).clamp(min=0) * self.sketch.sum(1)
        suspect = alive & ((below > TOLERANCE) | (above.sum(1) > TOLERANCE))
        return _put_back(points, scaled, suspect, self.polytope, divergence, judge=False)

    def to(self, device: torch.device | str) -> "Box":
        """The same box on another device."""
        return Box(self.sketch.to(device), self.bound, self.floor)


@dataclasses.dataclass(frozen=True)
class Hull:
    """The convex hull of sampled histories, dilated about their mean by a margin.

    points: (history, rank), coefficients that sum to one
    sketch: (rank, future), R
    margin: 0 for the hull itself
    floor: times the mean row of R
    """

    points: Float[Tensor, "history rank"]
    sketch: Float[Tensor, "rank future"]
    margin: float = MARGIN
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check by building the polytope."""
        if not self.margin >= 0 or not len(self.points):
            raise InputError(
                "a hull needs at least one history and a margin >= 0, got "
                f"{len(self.points)} and {self.margin}"
            )
        self.polytope  # noqa: B018 - its constructor checks

    @classmethod
    def holding(
        cls,
        points: Float[Tensor, "history rank"],
        fresh: Float[Tensor, "other rank"],
        sketch: Float[Tensor, "rank future"],
        margins: Sequence[float] = MARGINS,
    ) -> "Hull":
        """The hull with the least of the margins that holds all of `fresh`.

        Where points and n fresh ones are draws of the same law, one more draw is outside
        with probability at most 1 / (n + 1), unless the largest margin was too small.
        """
        for margin in margins:
            hull = cls(points, sketch, margin)
            if fraction_outside(hull, fresh) == 0:
                return hull
        return cls(points, sketch, margins[-1])

    @property
    def rank(self) -> int | None:
        """The number of basis histories."""
        return len(self.sketch)

    @functools.cached_property
    def polytope(self) -> Polytope:
        """The set as the solver takes it; repeated histories count once."""
        scaled, alive = _sum_one(self.points)
        unique = torch.unique(scaled[alive], dim=0)
        middle = unique.mean(0)
        vertices = middle + (1 + self.margin) * (unique - middle)
        return Polytope(self.sketch, vertices, 0.0, torch.inf, self.floor * self.sketch.mean(0))

    def settle(self, points: Float[Tensor, "batch rank"], divergence: Divergence) -> Settled:
        """Project all, and leave alone what the projection hardly moves."""
        scaled, alive = _sum_one(points)
        return _put_back(points, scaled, alive, self.polytope, divergence, judge=True)

    def to(self, device: torch.device | str) -> "Hull":
        """The same hull on another device."""
        return Hull(self.points.to(device), self.sketch.to(device), self.margin, self.floor)


def _sum_one(
    points: Float[Tensor, "batch rank"],
) -> tuple[Float[Tensor, "batch rank"], Bool[Tensor, " batch"]]:
    """Points scaled to sum one, and for which that can be done; others come back as zeros."""
    total = points.sum(1)
    size = points.abs().sum(1)
    alive = torch.isfinite(points).all(1) & (total > 1e-12 * size) & (size > 0)
    safe = total.where(alive, 1.0)[:, None]
    return torch.where(alive[:, None], points / safe, 0.0), alive


def _put_back(
    points: Float[Tensor, "batch rank"],
    scaled: Float[Tensor, "batch rank"],
    suspect: Bool[Tensor, " batch"],
    k: Polytope,
    divergence: Divergence,
    *,
    judge: bool,
) -> Settled:
    """Project the suspects, equal ones once; `judge`: only those that it moves are outside."""
    outside, failed = suspect.clone(), torch.zeros_like(suspect)
    rows = suspect.nonzero()[:, 0]
    result = points.clone()
    if not len(rows):
        return Settled(result, outside, failed)
    unique, place = torch.unique(scaled[rows], dim=0, return_inverse=True)
    raw = unique @ k.sketch
    target = raw.clamp(min=0) if divergence is not Divergence.L2 else raw
    if divergence is Divergence.KL:
        target = torch.maximum(target, CUT_OFF * k.sketch.mean(0))
    found = project(target, k, divergence, tolerance=_SOLVER[divergence])
    moves = (found.sketches - raw).abs().sum(1) > TOLERANCE
    if not judge:
        moves = torch.ones_like(moves)
    bad = moves & ~(found.solved | ((found.gap <= _GOOD_ENOUGH) & (found.status == Status.STALLED)))
    result[rows] = torch.where(
        (moves & ~bad)[place][:, None], found.coefficients[place], points[rows]
    )
    outside[rows], failed[rows] = moves[place], bad[place]
    return Settled(result, outside, failed)
