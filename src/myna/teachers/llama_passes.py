"""The passes of llama_passes.c, compiled once a process by the machine's C compiler.

Attention with heads of 8 numbers, softmax and gates cost plain tensor operations as much as
all matrix products; fused passes cost a quarter of that. Where there is no compiler, callers
go without.
"""

import ctypes
import functools

from torch import Tensor

from myna.c_source import built

_OPTIONS = (
    *("-ffinite-math-only", "-fno-signed-zeros"),
    *("-fassociative-math", "-freciprocal-math"),
)


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The library, or None where nothing compiles it."""
    found = built("teachers/llama_passes.c", *_OPTIONS)
    if found is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_long
    found.myna_attend.argtypes = [pointer] * 7 + [size] * 6
    found.myna_norms.argtypes = [pointer] * 2 + [size] * 2 + [ctypes.c_float]
    found.myna_gate.argtypes = [pointer] * 3 + [size] * 2
    found.myna_read.argtypes = [pointer] * 4 + [size] * 2
    return found


def at(tensor: Tensor) -> int:
    """Where a contiguous tensor's numbers begin."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()
