"""The passes of llama_passes.c, compiled once a process by the machine's C compiler.

Attention with heads of 8 numbers, softmax and gates cost plain tensor operations as much as
all matrix products; fused passes cost a quarter of that. Where there is no compiler, callers
go without.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

_SOURCE = Path(__file__).with_name("llama_passes.c")
# no -ffast-math: linked into a library, it would round denormals to zero in the whole process
_FLAGS = (
    *("-O3", "-march=native", "-shared", "-fPIC", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only"),
    *("-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The library, or None where nothing compiles it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "llama_passes.so"
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(target), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
            found = ctypes.CDLL(str(target))
        except (OSError, subprocess.SubprocessError):
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
