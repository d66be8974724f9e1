"""The set K that sketches are projected onto, in the one form that the solver knows.

    K = { z = c R :  c = x V,  sum_i x_i = 1,  low <= x_i <= high,  z >= floor }

R (rank, future) is the sketch of the basis histories and V (vertex, rank) holds points of
coefficient space. Two sets of Liu and Moitra's kind have this form: the box (V the
identity, -b <= x <= b) and the convex hull of many histories' coefficients (x >= 0).
Either way z lies in a space of dimension `rank`, so Newton systems have that size.
"""

import dataclasses
import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError


@dataclasses.dataclass(frozen=True)
class Polytope:
    """K, see the module.

    sketch: (rank, future), R
    vertices: (vertex, rank), V; None for the identity
    low, high: the bounds on each weight; high may be infinite
    floor: (future,), the least sketch allowed

    Raises:
        InputError: shapes that disagree, numbers that are not finite, or bounds that no
            weights of sum one satisfy.
    """

    sketch: Float[Tensor, "rank future"]
    vertices: Float[Tensor, "vertex _"] | None
    low: float
    high: float
    floor: Float[Tensor, " future"]

    def __post_init__(self) -> None:
        """Check what can be checked without solving."""
        if self.vertices is not None and self.vertices.shape[1] != len(self.sketch):
            raise InputError(
                f"vertices have {self.vertices.shape[1]} coefficients and the sketch has "
                f"{len(self.sketch)} rows; they must be equal"
            )
        for name, table in (("sketch", self.sketch), ("floor", self.floor)):
            if not bool(torch.isfinite(table).all()):
                raise InputError(f"the {name} must be finite; some entry is NaN or infinite")
        if self.vertices is not None and not bool(torch.isfinite(self.vertices).all()):
            raise InputError("the vertices must be finite; some entry is NaN or infinite")
        if not self.low < self.high or not self.low * self.size <= 1 <= self.high * self.size:
            raise InputError(
                f"{self.size} weights between {self.low:g} and {self.high:g} cannot sum to one; "
                f"allow weights of at least {1 / max(1, self.size):g}"
            )

    @property
    def size(self) -> int:
        """How many weights x there are."""
        return len(self.sketch if self.vertices is None else self.vertices)

    @property
    def bounded(self) -> bool:
        """Whether weights have an upper bound to watch."""
        return math.isfinite(self.high)

    @property
    def single(self) -> bool:
        """Whether the weights can only be uniform: one vertex, or bounds that leave no room."""
        return self.size == 1 or self.high * self.size - 1 <= 1e-12

    def to(self, device: torch.device | str) -> "Polytope":
        """The same set on another device."""
        vertices = None if self.vertices is None else self.vertices.to(device)
        return Polytope(
            self.sketch.to(device), vertices, self.low, self.high, self.floor.to(device)
        )

    def coefficients(self, x: Float[Tensor, "batch vertex"]) -> Float[Tensor, "batch rank"]:
        """C = x V."""
        return x if self.vertices is None else x @ self.vertices

    def sketched(self, x: Float[Tensor, "batch vertex"]) -> Float[Tensor, "batch future"]:
        """Z = x V R."""
        return self.coefficients(x) @ self.sketch

    def pulled(self, y: Float[Tensor, "batch future"]) -> Float[Tensor, "batch vertex"]:
        """The adjoint of `sketched`: y R' V'."""
        moved = y @ self.sketch.T
        return moved if self.vertices is None else moved @ self.vertices.T

    def lowest(self, g: Float[Tensor, "batch vertex"]) -> Float[Tensor, " batch"]:
        """The least <g, x> over weights in their bounds (z >= floor apart).

        Without an upper bound: all on the least entry. With one: fill from the least up.
        """
        if not self.bounded:
            return self.low * g.sum(1) + (1 - self.low * self.size) * g.amin(1)
        room, width = 1 - self.low * self.size, self.high - self.low
        filled = width * torch.arange(self.size, dtype=g.dtype, device=g.device)
        return self.low * g.sum(1) + g.sort(1).values @ (room - filled).clamp(0, width)

    @functools.cached_property
    def sketch_products(self) -> Float[Tensor, "future pair"]:
        """R_aj R_bj for a <= b: then R diag(d) R' is one product with d, for all rows."""
        return products(self.sketch.T)

    @functools.cached_property
    def vertex_products(self) -> Float[Tensor, "vertex pair"]:
        """The same for [V | 1]."""
        assert self.vertices is not None
        return products(self.extended)

    @functools.cached_property
    def extended(self) -> Float[Tensor, "vertex columns"]:
        """[V | 1]."""
        assert self.vertices is not None
        return torch.cat([self.vertices, torch.ones_like(self.vertices[:, :1])], 1)


def products(rows: Float[Tensor, "row column"]) -> Float[Tensor, "row pair"]:
    """All products of two entries of a row, in the order of the upper triangle."""
    i, j = torch.triu_indices(rows.shape[1], rows.shape[1], device=rows.device)
    return rows[:, i] * rows[:, j]


def symmetric(
    packed: Float[Tensor, "batch pair"], size: int
) -> Float[Tensor, "batch {size} {size}"]:
    """Matrices from their upper triangles, as `products` orders them."""
    i, j = torch.triu_indices(size, size, device=packed.device)
    place = torch.empty((size, size), dtype=torch.int64, device=packed.device)
    order = torch.arange(len(i), device=packed.device)
    place[i, j] = order
    place[j, i] = order
    return packed[:, place.reshape(-1)].reshape(-1, size, size)
