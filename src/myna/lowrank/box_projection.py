"""Answers to projections onto a box, proposed row by row by a pass of C.

    minimise  sum_j phi_j(z_j)   over   z = x R,  sum_i x_i = 1,  low <= x_i <= high,  z >= floor

For each target the pass gives weights x and multipliers y with phi'(z) - y = l >= 0, <l, z - floor>
= 0, and R y in balance with the bounds: what the certificate of `projection` asks for. L2 is
a quadratic program by its dual active set (Goldfarb and Idnani, Mathematical Programming 27, 1983),
KL Newton steps that are such programs, and L1 a linear program by the simplex method that passes
many sign changes in a step (Barrodale and Roberts, SIAM J. Numer. Anal. 10, 1973).

The pass is compiled by `c_source`, below this package, since that runs a program. Where we
differ: a box has few coordinates, so each row is solved alone with all of its numbers in
the nearest caches, where passes over a batch of rows wait for memory. Every row starts from its own
target, so none depends on another. Nothing here is trusted: who asked certifies each row and solves
the others again.
"""

import ctypes

from jaxtyping import Float
from torch import Tensor

from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.proposal import DOUBLE, LONG, POINTER, WAYS, proposed


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("rank", "futures", "rows", "way")),
        *((name, POINTER) for name in ("sketch", "floor", "targets")),
        *((name, DOUBLE) for name in ("low", "high")),
        *((name, POINTER) for name in ("weights", "multipliers")),
    ]


def box_proposal(
    targets: Float[Tensor, "batch future"], k: Polytope, divergence: Divergence
) -> tuple[Float[Tensor, "batch rank"], Float[Tensor, "batch future"]] | None:
    """Weights within their bounds, and multipliers, NaN where a row has no answer.

    None where there is no compiler, off the CPU, and for sets with vertices.
    """
    if k.vertices is not None:
        return None
    tables = (k.sketch.contiguous(), k.floor.contiguous(), targets.contiguous())

    def task(x: Tensor, y: Tensor) -> _Task:
        return _Task(
            *(k.size, targets.shape[1], len(targets), WAYS[divergence]),
            *(table.data_ptr() for table in tables),
            *(k.low, k.high, x.data_ptr(), y.data_ptr()),
        )

    return proposed("box", targets, k.size, task)
