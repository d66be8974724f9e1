"""What the commands open: saved copies, teachers, and files of strings."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from myna.errors import FormatError, InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings, strings
from myna.spec import Spec
from myna.teachers.compiled import CompiledModel
from myna.teachers.copies import CopyTeacher, SavedCopy, load_copy
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.uri import open_teacher


def open_saved(folder: str) -> SavedCopy:
    """A saved copy, with its provenance."""
    return load_copy(Path(folder))


def plain_copy(folder: str, saved: SavedCopy) -> LowRankModel:
    """The low-rank model of a copy that is nothing else, or is that compiled.

    Raises:
        InputError: for copies in log-probability space and projected ones.
    """
    if isinstance(saved.model, CompiledModel):
        return saved.model.model
    if not isinstance(saved.model, LowRankModel):
        raise InputError(
            f"{folder} is no plain copy in probability space, whose rows are what is read; "
            "learn without --space logits and --projection, and with operators of its own for each token"
        )
    return saved.model


@contextlib.contextmanager
def writing(what: str, out: Path) -> Iterator[None]:
    """Say what could not be written where.

    Raises:
        InputError: for what the system refused.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"the {what} cannot be written to {out}: {error.strerror}") from error


def open_model(name: str) -> SteppedTeacher:
    """A saved copy or a teacher that can be stepped here.

    Raises:
        InputError: for a name that is neither, or a teacher behind queries only.
    """
    if Path(name).is_dir() or ":" not in name:
        return CopyTeacher(open_saved(name).model)
    teacher = open_teacher(name)
    if not isinstance(teacher, SteppedTeacher):
        raise InputError(f"{name} can only be queried; learn a copy of it first")
    return teacher


def generator_of(seed: int) -> torch.Generator:
    """A generator for this command's own random choices."""
    return torch.Generator().manual_seed(seed)


def read_strings(path: str, spec: Spec, *, whole: bool) -> Strings:
    """Lines of token names: separated by blanks, or run together if all are one letter.

    whole: append the stop token where a line lacks it

    Raises:
        FormatError: naming the line and the token.
    """
    try:
        text = _standard_input() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"strings cannot be read from {path}: {why}") from error
    place = {name: token for token, name in enumerate(spec.alphabet)}
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        names = line.split()
        if len(names) == 1 and names[0] not in place:
            names = list(names[0])
        for name in names:
            if name not in place:
                raise FormatError(
                    f"{path}, line {number}: {name!r} is no token of this model; its tokens are "
                    f"{', '.join(spec.alphabet[:12])}{', ...' if spec.num_tokens > 12 else ''}"
                )
        row = [place[name] for name in names]
        full = spec.horizon is not None and len(row) >= spec.horizon
        if whole and spec.stop is not None and not full and row[-1:] != [spec.stop]:
            row.append(spec.stop)
        if spec.horizon is not None and len(row) > spec.horizon:
            raise FormatError(
                f"{path}, line {number}: strings of this model have at most {spec.horizon} tokens, "
                f"and this one has {len(row)}"
            )
        if spec.stop in row[:-1]:
            raise FormatError(
                f"{path}, line {number}: the stop token {spec.alphabet[spec.stop]!r} ends a string, "
                "and tokens follow it"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"no strings in {path}; give one a line")
    return strings(rows)


def _standard_input() -> str:
    if sys.stdin is None:
        raise InputError("standard input is closed; name a file of strings, or open it")
    return sys.stdin.read()


def describe(spec: Spec) -> dict[str, Any]:
    """A spec for people and for JSON."""
    return {
        "tokens": spec.num_tokens,
        "alphabet": list(spec.alphabet),
        "stop": None if spec.stop is None else spec.alphabet[spec.stop],
        "horizon": spec.horizon,
        "fingerprint": spec.fingerprint,
    }
