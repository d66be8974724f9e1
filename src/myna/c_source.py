"""C inside this package, compiled at run time by the machine's C compiler, once a process.

Compiling runs a program and writes a file for a moment, so it is done here, below `lowrank`, whose
mathematics knows neither: it names a source and gets functions. Each process compiles into a folder
of its own that is gone once the library is loaded, so processes cannot meet each other's files.
Where there is no compiler, callers go without.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

# no -ffast-math: linked into a library, it would round denormals to zero in the whole process
_ALWAYS = ("-O3", "-march=native", "-shared", "-fPIC", "-ffp-contract=fast")
_QUIET = ("-fno-math-errno", "-fno-trapping-math")


@functools.cache
def built(name: str, *options: str) -> ctypes.CDLL | None:
    """The library that a file of the package compiles to, or None where nothing compiles it.

    name: the file's path from this folder, with slashes
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source = str(Path(__file__).parent / name)
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "passes.so")
        command = [compiler, *_ALWAYS, *_QUIET, *options, source, "-o", target, "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
            return ctypes.CDLL(target)
        except (OSError, subprocess.SubprocessError):
            return None
