"""Hidden Markov models in numpy archives: keys pi, T and E, or the names that hmmlearn gives them.

    pi  startprob_      (state,)
    T   transmat_       (state, state) or (step, state, state)
    E   emissionprob_   (state, token) or (step, state, token)

hmmlearn's names are also read without their underscore. The archive does not say how long
sequences are, so the horizon is given beside it. Nothing is pickled: an archive holds numbers.
"""

import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.teachers.files import check_plain, check_table
from myna.teachers.hmm import Hmm

# What each table may be called; the first two are what is written.
_NAMES = {
    "pi": ("pi", "startprob_", "startprob"),
    "T": ("T", "transmat_", "transmat"),
    "E": ("E", "emissionprob_", "emissionprob"),
}
# What zipfile, zlib and numpy's own parser of headers are known to raise on damaged archives.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def _check_member(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> None:
    """Refuse a table that is no numbers, or larger than the archive says or we hold.

    Raises:
        FormatError: before anything is made of it.
    """
    packed = archive.zip
    assert packed is not None  # open as long as `archive` is
    name = key if key in packed.namelist() else f"{key}.npy"
    with packed.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise FormatError(
                f"{path}: {key!r} has version {version} of numpy's format, not 1 or 2"
            )
        shape, _, kind = read(member)
    if kind.kind not in "fiub":
        raise FormatError(f"{path}: {key!r} must hold numbers, and holds {kind}")
    if any(size < 0 for size in shape):
        raise FormatError(f"{path}: {key!r} declares the shape {shape}")
    check_table(path, repr(key), *shape)
    if math.prod(shape) * kind.itemsize > packed.getinfo(name).file_size:
        raise FormatError(f"{path}: {key!r} declares the shape {shape} and holds fewer numbers")


def _key(path: Path, found: list[str], names: tuple[str, ...]) -> str:
    """The one of the names that the archive has.

    Raises:
        FormatError: where it has none of them, or several.
    """
    here = [name for name in names if name in found]
    if not here:
        raise FormatError(
            f"{path} lacks key {names[0]!r}; wanted pi, T and E, or startprob_, transmat_ and "
            f"emissionprob_; got {found}"
        )
    if len(here) > 1:
        raise FormatError(f"{path} has one table under two names, {' and '.join(here)}; drop one")
    return here[0]


def write_hmm(
    path: Path,
    initial_law: Float[Tensor, " state"],
    transition: Float[Tensor, "state state"],
    emission: Float[Tensor, "state token"],
    *,
    hmmlearn: bool = False,
) -> None:
    """Write a stationary model as an archive that `read_hmm` reads.

    hmmlearn: use hmmlearn's names of the tables for keys

    Raises:
        OSError: where the file cannot be written.
    """
    tables = (table.cpu().numpy() for table in (initial_law, transition, emission))
    names = (keys[1 if hmmlearn else 0] for keys in _NAMES.values())
    with path.open("wb") as file:
        np.savez(file, **dict(zip(names, tables, strict=True)))  # pyright: ignore[reportArgumentType]


def read_hmm(path: Path, horizon: int) -> Hmm:
    """The HMM of an archive, over sequences of exactly `horizon` tokens.

    Raises:
        FormatError: naming the key that is missing or has the wrong shape.
    """
    tables = {}
    check_plain(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that it reads with more effort
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise FormatError(f"{path} holds one array; wanted an archive with pi, T and E")
            for table, names in _NAMES.items():
                key = _key(path, archive.files, names)
                _check_member(path, archive, key)
                tables[table] = torch.from_numpy(archive[key].astype(np.float64))
    except _UNREADABLE as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} does not read as a numpy archive: {error}") from error
    pi, moves, emits = tables["pi"], tables["T"], tables["E"]
    states = pi.shape[0] if pi.ndim == 1 else 0
    if not states or moves.ndim not in (2, 3) or tuple(moves.shape[-2:]) != (states, states):
        raise FormatError(
            f"{path}: wanted pi (S,) and T (S, S) or (steps, S, S), got pi {tuple(pi.shape)}, T {tuple(moves.shape)}"
        )
    if emits.ndim not in (2, 3) or emits.shape[-2] != states:
        raise FormatError(
            f"{path}: wanted E ({states}, O) or (steps, {states}, O), got E {tuple(emits.shape)}"
        )
    try:
        return Hmm(
            pi,
            moves if moves.ndim == 3 else moves[None],
            emits if emits.ndim == 3 else emits[None],
            horizon=horizon,
        )
    except InputError as error:
        raise FormatError(f"{path}: {error}") from error
