"""Hidden Markov models in numpy archives: keys pi, T and E, or the names that hmmlearn gives them.

    pi  startprob_      initial      (state,)
    T   transmat_       transition   (state, state) or (step, state, state)
    E   emissionprob_   emission     (state, token) or (step, state, token)
    symbols                          (token,) names of tokens, where they have some

hmmlearn's names are also read without their underscore. Emissions of thousands of tokens are mostly
zero, so E may also stand as its other entries,

    E[emission_rows[n], emission_cols[n]] = emission_values[n],    (S, O) = emission_shape,

each entry once. The archive does not say how long sequences are, so the horizon is given beside it,
or there is none. Nothing is pickled: an archive holds numbers and names.
"""

import math
import sys
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.teachers.files import check_plain, check_table
from myna.teachers.hmm import Hmm

# What each table may be called; the first two are what is written.
_NAMES = {
    "pi": ("pi", "startprob_", "startprob", "initial"),
    "T": ("T", "transmat_", "transmat", "transition"),
    "E": ("E", "emissionprob_", "emissionprob", "emission"),
}
_SPARSE = ("emission_rows", "emission_cols", "emission_values", "emission_shape")
_ZIP, _ARRAY = b"PK", b"\x93NUMPY"  # how the files that numpy writes begin
_NUMBERS, _WHOLE, _TEXT = "fiub", "iu", "U"  # numpy's kinds of entries
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


def _check_member(path: Path, archive: np.lib.npyio.NpzFile, key: str, kinds: str) -> None:
    """Refuse a table of other entries, or larger than the archive says or we hold.

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
    if kind.kind not in kinds:
        wanted = {_NUMBERS: "numbers", _WHOLE: "whole numbers", _TEXT: "names"}[kinds]
        raise FormatError(f"{path}: {key!r} must hold {wanted}, and holds {kind}")
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
            f"emissionprob_, or {', '.join(_SPARSE)} for E; got {found}"
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


class _Members:
    """The tables of an open archive, each looked at before it is made."""

    def __init__(self, path: Path, archive: np.lib.npyio.NpzFile):
        self._path, self._archive = path, archive

    def take(self, key: str, kinds: str) -> np.ndarray:
        """One table, of entries of these kinds."""
        _check_member(self._path, self._archive, key, kinds)
        return self._archive[key]

    def table(self, name: str) -> Float[Tensor, "..."]:
        """A table of probabilities by any of its names."""
        key = _key(self._path, self._archive.files, _NAMES[name])
        return torch.from_numpy(self.take(key, _NUMBERS).astype(np.float64))

    def emission(self) -> Float[Tensor, "..."]:
        """E, written whole or as its entries.

        Raises:
            FormatError: for both forms at once, or half of one.
        """
        found = self._archive.files
        if not any(key in found for key in _SPARSE):
            return self.table("E")
        whole = [name for name in _NAMES["E"] if name in found]
        if whole:
            raise FormatError(
                f"{self._path} has E twice, as {whole[0]} and as {', '.join(_SPARSE)}; drop one"
            )
        for key in _SPARSE:
            _key(self._path, found, (key,))
        rows, columns = (self.take(key, _WHOLE).astype(np.int64) for key in _SPARSE[:2])
        values = self.take(_SPARSE[2], _NUMBERS).astype(np.float64)
        shape = self.take(_SPARSE[3], _WHOLE).astype(np.int64)
        return _filled(self._path, rows, columns, values, shape)

    def alphabet(self, size: int) -> tuple[str, ...] | None:
        """Names of the tokens, None where the archive has none.

        Raises:
            FormatError: for other than one name a token.
        """
        if "symbols" not in self._archive.files:
            return None
        names = self.take("symbols", _TEXT)
        if names.shape != (size,):
            raise FormatError(
                f"{self._path}: wanted one name in symbols for each of {size} tokens, "
                f"got the shape {names.shape}"
            )
        # numpy makes text of any four bytes, and ends in an error of its own on these
        letters = np.ascontiguousarray(names, names.dtype.newbyteorder("=")).view(np.uint32)
        if letters.max(initial=0) > sys.maxunicode:
            raise FormatError(f"{self._path}: symbols holds what is no text; is the file damaged?")
        return tuple(map(str, names))


def _filled(
    path: Path,
    rows: Int[np.ndarray, "..."],
    columns: Int[np.ndarray, "..."],
    values: Float[np.ndarray, "..."],
    shape: Int[np.ndarray, "..."],
) -> Float[Tensor, "state token"]:
    """The table with these entries, and zero elsewhere.

    Raises:
        FormatError: lists that disagree, an entry outside of the table or given twice.
    """
    if shape.shape != (2,) or bool((shape < 1).any()):
        raise FormatError(f"{path}: emission_shape must be two sizes, (S, O), got {shape.tolist()}")
    if rows.ndim != 1 or not rows.shape == columns.shape == values.shape:
        raise FormatError(
            f"{path}: emission_rows, emission_cols and emission_values must be lists of one length, "
            f"got {rows.shape}, {columns.shape} and {values.shape}"
        )
    states, tokens = shape.tolist()
    check_table(path, "'emission_shape'", states, tokens)
    outside = (rows < 0) | (rows >= states) | (columns < 0) | (columns >= tokens)
    if outside.any():
        n = int(outside.argmax())
        raise FormatError(
            f"{path}: entry {n} of the emission is at [{rows[n]}, {columns[n]}], outside of "
            f"{states} x {tokens}"
        )
    places, first = np.unique(rows * tokens + columns, return_index=True)
    if len(places) < len(rows):
        n = int(np.setdiff1d(np.arange(len(rows)), first)[0])
        raise FormatError(
            f"{path}: entry [{rows[n]}, {columns[n]}] of the emission is given twice; keep one"
        )
    table = torch.zeros((states, tokens), dtype=torch.float64)
    table.view(-1)[torch.from_numpy(rows * tokens + columns)] = torch.from_numpy(values)
    return table


def _check_beginning(file: BinaryIO) -> None:
    """Refuse what is no archive before numpy takes it for a pickle, and says to trust it.

    Raises:
        ValueError: for a file that begins neither as a zip file nor as one array.
    """
    begins = file.read(len(_ARRAY))
    file.seek(0)
    if begins and not begins.startswith((_ZIP, _ARRAY)):
        raise ValueError("it does not begin as a zip file, which an .npz is")


def read_hmm(path: Path, horizon: int | None) -> Hmm:
    """The HMM of an archive, over sequences of exactly `horizon` tokens, or that never end.

    Raises:
        FormatError: naming the key that is missing or has the wrong shape.
    """
    check_plain(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that it reads with more effort
            _check_beginning(file)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise FormatError(f"{path} holds one array; wanted an archive with pi, T and E")
            members = _Members(path, archive)
            pi, moves, emits = members.table("pi"), members.table("T"), members.emission()
            names = members.alphabet(emits.shape[-1] if emits.ndim else 0)
    except _UNREADABLE as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} does not read as a numpy archive: {error}") from error
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
            alphabet=names,
        )
    except InputError as error:
        raise FormatError(f"{path}: {error}") from error
