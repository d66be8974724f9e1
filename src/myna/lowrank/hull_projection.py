"""Answers to projections onto a convex hull of vertices, proposed row by row by a pass of C.

    minimise  sum_j phi_j(z_j)   over   z = x V R,  x >= 0,  sum_i x_i = 1

For each target the pass gives weights x and multipliers y = phi'(z) with <v_i R, y> least where x_i
is not zero: what the certificate of `projection` asks for. L2 asks for the point nearest to zero in
a hull (Wolfe, Mathematical Programming 11, 1976), here by the dual active set of boxes (Goldfarb and
Idnani, Mathematical Programming 27, 1983) on the dual, which has few coordinates and one inequality
a vertex. KL is Newton steps that are such programs, and L1 a linear program by the simplex method
that passes many sign changes in a step (Barrodale and Roberts, SIAM J. Numer. Anal. 10, 1973).

As for boxes (`box_projection`), rows are alone and nothing here is trusted. Floors are left out: an
answer below one is not certified, and the row is solved again.
"""

import ctypes

from jaxtyping import Float
from torch import Tensor

from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.proposal import LONG, POINTER, WAYS, proposed


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("rank", "futures", "vertices", "rows", "way")),
        *((name, POINTER) for name in ("sketch", "points", "targets", "weights", "multipliers")),
    ]


def hull_proposal(
    targets: Float[Tensor, "batch future"], k: Polytope, divergence: Divergence
) -> tuple[Float[Tensor, "batch vertex"], Float[Tensor, "batch future"]] | None:
    """Weights of sum one, and multipliers, NaN where a row has no answer.

    None where there is no compiler, off the CPU, and for other sets than hulls of vertices.
    """
    if k.vertices is None or k.low != 0 or k.bounded:
        return None
    tables = (k.sketch.contiguous(), k.vertices.contiguous(), targets.contiguous())

    def task(x: Tensor, y: Tensor) -> _Task:
        return _Task(
            *(len(k.sketch), targets.shape[1], k.size, len(targets), WAYS[divergence]),
            *(table.data_ptr() for table in (*tables, x, y)),
        )

    return proposed("hull", targets, k.size, task)
