"""Three ways to be far from a target: what a projection minimises.

    KL   sum_j z_j log(z_j / w_j) - z_j + w_j,    z >= 0        (the variable comes first)
    L1   sum_j |z_j - w_j|
    L2   sum_j (z_j - w_j)^2 / 2

Each is a sum of convex phi_j(z_j). A lower bound of it over a set needs the least of
phi_j(z) - y z over z >= floor, which lies at

    KL   max(floor, w e^y)      L2   max(floor, w + y)
    L1   max(floor, w) for -1 <= y <= 1, floor below; above 1 there is none

KL and L2 are Bregman divergences, so projections in them obey the Pythagorean inequality
d(z, z*) + d(z*, w) <= d(z, w) for every z of the set; L1 does not (Liu and Moitra, arXiv
2411.07536, section 7; the talk, "Taming the blowup"). KL is generalised here to targets
that do not sum to one, since a sketch does so only in expectation.
"""

import enum

import torch
from jaxtyping import Float
from torch import Tensor

# stands for a target of zero: log 1e-300 = -691 forbids the coordinate without an infinity
TINY = 1e-300


class Divergence(enum.Enum):
    """What a projection minimises, between a point z of the set and a target w."""

    KL = "kl"
    L1 = "l1"
    L2 = "l2"

    def between(
        self, z: Float[Tensor, "*batch future"], w: Float[Tensor, "*batch future"]
    ) -> Float[Tensor, "*batch"]:
        """d(z, w), one value a row; in KL negative entries count as zero (nats)."""
        if self is Divergence.KL:
            z, w = z.clamp(min=TINY), w.clamp(min=TINY)
            return (z * (z.log() - w.log()) - z + w).sum(-1)
        if self is Divergence.L1:
            return (z - w).abs().sum(-1)
        return (z - w).square().sum(-1) / 2

    def least(
        self,
        y: Float[Tensor, "batch future"],
        w: Float[Tensor, "batch future"],
        floor: Float[Tensor, " future"],
    ) -> Float[Tensor, " batch"]:
        """Sum over j of the least phi_j(z) - y_j z over z >= floor_j; L1 needs y <= 1."""
        if self is Divergence.KL:
            z = torch.maximum(floor, w.clamp(min=TINY) * y.clamp(max=700).exp())
        elif self is Divergence.L1:
            z = torch.where(y < -1, floor, torch.maximum(floor, w))
        else:
            z = torch.maximum(floor, w + y)
        return self.between(z, w) - (y * z).sum(1)

    def slope(
        self, z: Float[Tensor, "batch future"], w: Float[Tensor, "batch future"]
    ) -> tuple[Float[Tensor, "batch future"], Float[Tensor, "batch future"]]:
        """The derivatives phi' and phi'' at z > 0, of the two that have them."""
        if self is Divergence.KL:
            return (z / w.clamp(min=TINY)).log(), z.reciprocal()
        return z - w, torch.ones_like(z)
