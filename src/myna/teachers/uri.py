"""Teachers by name: scheme:rest, with parameters after a question mark.

zoo:parity?bits=64&noise=0.1&seed=7      a family of known rank
pautomac:FILE                            a PAutomaC model file
hmmer3:FILE                              a HMMER3 profile
hmm:FILE.npz?horizon=64                  an HMM in a numpy archive
student:FOLDER                           a saved copy
openai:MODEL?base_url=http://...         a model behind a server; see endpoint_settings
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from myna.errors import InputError
from myna.teachers.copies import open_copy
from myna.teachers.endpoint_open import open_endpoint
from myna.teachers.hmmer3 import read_profile
from myna.teachers.npz import read_hmm
from myna.teachers.oracle import Samples
from myna.teachers.pautomac import read_automaton
from myna.teachers.zoo import FAMILIES, Family

Parameters = dict[str, str]


def open_teacher(uri: str) -> Samples:
    """The teacher that a URI names.

    Raises:
        InputError: unknown scheme, name or parameter, or a value out of range.
    """
    scheme, name, parameters = split_uri(uri)
    return _SCHEMES[scheme](name, parameters)


def split_uri(uri: str) -> tuple[str, str, Parameters]:
    """Scheme, name and parameters.

    Raises:
        InputError: unknown scheme, or a parameter given twice.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _SCHEMES:
        raise InputError(
            f"a teacher is named scheme:rest with one of the schemes {', '.join(_SCHEMES)}; got {uri!r}"
        )
    name, _, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        # The URI itself is not shown: it may hold what should have been an API key.
        raise InputError(f"each parameter may be given once; {scheme}:{name} has one twice")
    return scheme, name, parameters


def _zoo(name: str, parameters: Parameters) -> Samples:
    if name not in FAMILIES:
        raise InputError(f"the zoo has {', '.join(FAMILIES)}; got {name!r}")
    return family_of(name, parameters).teacher()


def family_of(name: str, parameters: Parameters) -> Family:
    """A zoo family with its parameters read from text.

    Raises:
        InputError: naming the parameter, what was wanted and what came.
    """
    kind = FAMILIES[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore
    _only(parameters, tuple(fields), f"zoo:{name}")
    values = {key: _value(fields[key], text) for key, text in parameters.items()}
    return kind(**values)


def _value(field: dataclasses.Field, text: str) -> Any:
    """One parameter, converted to its type and checked against its range."""
    if field.type is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"{field.name} must be true or false, got {text!r}")
        return text.lower() in ("true", "1")
    low, high = field.metadata["low"], field.metadata["high"]
    kind = "a whole number" if field.type is int else "a number"
    try:
        value = int(text) if field.type is int else float(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise InputError(f"{field.name} must be {kind} of at least {low:g}{upper}, got {text!r}")
    return value


def _only(parameters: Parameters, known: tuple[str, ...], what: str) -> None:
    for key in parameters:
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise InputError(f"{what} {takes}; got {key!r}")


def _file(reader: Callable[[Path], Samples], scheme: str) -> Callable[[str, Parameters], Samples]:
    def opened(name: str, parameters: Parameters) -> Samples:
        _only(parameters, (), scheme)
        return reader(Path(name))

    return opened


def _npz(name: str, parameters: Parameters) -> Samples:
    _only(parameters, ("horizon",), "hmm")
    text = parameters.get("horizon", "")
    if not text.isdigit() or int(text) < 1:
        raise InputError(
            f"hmm:FILE needs ?horizon=N, the length of its sequences (at least 1), got {text!r}"
        )
    return read_hmm(Path(name), int(text))


_SCHEMES: dict[str, Callable[[str, Parameters], Samples]] = {
    "zoo": _zoo,
    "pautomac": _file(read_automaton, "pautomac"),
    "hmmer3": _file(read_profile, "hmmer3"),
    "hmm": _npz,
    "student": _file(open_copy, "student"),
    "openai": open_endpoint,
}


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """A line of the zoo's table.

    name: as in zoo:NAME
    parameters: "name=default" of each
    summary, rank: what it is, and its exact rank
    """

    name: str
    parameters: tuple[str, ...]
    summary: str
    rank: str


def zoo_table() -> list[ZooEntry]:
    """All families, from the declarations that also parse their parameters."""
    return [
        ZooEntry(
            name,
            tuple(f"{f.name}={f.default}" for f in dataclasses.fields(kind)),  # pyright: ignore
            kind.summary,
            kind.rank_text,
        )
        for name, kind in FAMILIES.items()
    ]
