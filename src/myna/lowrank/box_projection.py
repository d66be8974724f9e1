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

import torch
from jaxtyping import Float
from torch import Tensor

from myna.c_source import built
from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope

_WAYS = {Divergence.KL: 0, Divergence.L1: 1, Divergence.L2: 2}
_LONG, _POINTER, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, _LONG) for name in ("rank", "futures", "rows", "way")),
        *((name, _POINTER) for name in ("sketch", "floor", "targets")),
        *((name, _DOUBLE) for name in ("low", "high")),
        *((name, _POINTER) for name in ("weights", "multipliers")),
    ]


def box_proposal(
    targets: Float[Tensor, "batch future"], k: Polytope, divergence: Divergence
) -> tuple[Float[Tensor, "batch rank"], Float[Tensor, "batch future"]] | None:
    """Weights within their bounds, and multipliers, NaN where a row has no answer.

    None where there is no compiler, off the CPU, and for sets with vertices.
    """
    if k.vertices is not None or targets.device.type != "cpu":
        return None
    passes = built("lowrank/box_projection.c")
    if passes is None:
        return None
    tables = (k.sketch.contiguous(), k.floor.contiguous(), targets.contiguous())
    x = targets.new_full((len(targets), k.size), 1 / k.size)
    y = torch.empty_like(tables[2])
    task = _Task(
        *(k.size, targets.shape[1], len(targets), _WAYS[divergence]),
        *(table.data_ptr() for table in tables),
        *(k.low, k.high, x.data_ptr(), y.data_ptr()),
    )
    if passes.myna_box(ctypes.byref(task)):
        return None
    return x, y
