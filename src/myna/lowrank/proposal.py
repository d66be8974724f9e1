"""What the passes of C for projections have in common: who is called, and the rooms for answers."""

import ctypes
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from myna.c_source import built
from myna.lowrank.divergence import Divergence

LONG, POINTER, DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
WAYS = {Divergence.KL: 0, Divergence.L1: 1, Divergence.L2: 2}


def proposed(
    name: str,
    targets: Float[Tensor, "batch future"],
    size: int,
    task_of: Callable[[Tensor, Tensor], ctypes.Structure],
) -> tuple[Float[Tensor, "batch weight"], Float[Tensor, "batch future"]] | None:
    """Weights and multipliers; None where there is no compiler, off the CPU, or without memory.

    name: "box" or "hull"
    task_of: the task of C whose answers go to the two rooms
    """
    passes = built(f"lowrank/{name}_projection.c") if targets.device.type == "cpu" else None
    if passes is None:
        return None
    x = targets.new_full((len(targets), size), 1 / size)
    y = targets.new_empty(targets.shape)
    failed = passes[f"myna_{name}"](ctypes.byref(task_of(x, y)))
    return None if failed else (x, y)
