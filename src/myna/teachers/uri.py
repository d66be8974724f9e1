"""Teachers by name: scheme:rest, with parameters after a question mark.

zoo:parity?bits=64&noise=0.1&seed=7      a family of known rank
pautomac:FILE                            a PAutomaC model file
hmmer3:FILE                              a HMMER3 profile
hmm:FILE.npz?horizon=64                  an HMM in a numpy archive, endless without ?horizon
student:FOLDER                           a saved copy
hf:FOLDER?horizon=12                     a causal language model of transformers
rnn:FOLDER?horizon=12                    a character LSTM
replay:FILE                              a recorded ledger, with no teacher behind it
openai:MODEL?base_url=http://...         a model behind a server; see endpoint_settings

Any of them restricted to a sub-alphabet: ?only=TOKEN,TOKEN,... (by name, or #N by number).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from myna.errors import InputError
from myna.teachers.char_rnn import read_rnn
from myna.teachers.copies import open_copy
from myna.teachers.endpoint_open import open_endpoint
from myna.teachers.hmmer3 import read_profile
from myna.teachers.ledger_replay import open_replay
from myna.teachers.npz import read_hmm
from myna.teachers.oracle import Samples
from myna.teachers.pautomac import read_automaton
from myna.teachers.restricted import restrict
from myna.teachers.zoo import FAMILIES, Family

Parameters = dict[str, str]


def open_teacher(uri: str) -> Samples:
    """The teacher that a URI names.

    Raises:
        InputError: unknown scheme, name or parameter, or a value out of range.
    """
    scheme, name, parameters = split_uri(uri)
    only = parameters.pop("only", None)
    teacher = _SCHEMES[scheme](name, parameters)
    return teacher if only is None else restrict(teacher, only.split(","))


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
    return read_hmm(Path(name), _horizon(parameters))


def _horizon(parameters: Parameters) -> int | None:
    """The length of sequences that was said, if it was."""
    text = parameters.get("horizon")
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise InputError(f"horizon must be a whole number of at least 1, got {text!r}")
    return None if text is None else int(text)


def _rnn(name: str, parameters: Parameters) -> Samples:
    _only(parameters, ("horizon", "begin"), "rnn")
    return read_rnn(Path(name), _horizon(parameters), parameters.get("begin"))


def _hf(name: str, parameters: Parameters) -> Samples:
    try:  # optional, and slow to import
        from myna.teachers import hf_folder  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "hf: needs the transformers library; install it with pip install 'myna[transformers]'"
        ) from error
    _only(parameters, hf_folder.PARAMETERS, "hf")
    return hf_folder.open_folder(hf_folder.folder_of(name), parameters)


_SCHEMES: dict[str, Callable[[str, Parameters], Samples]] = {
    "zoo": _zoo,
    "pautomac": _file(read_automaton, "pautomac"),
    "hmmer3": _file(read_profile, "hmmer3"),
    "hmm": _npz,
    "student": _file(open_copy, "student"),
    "hf": _hf,
    "rnn": _rnn,
    "replay": _file(open_replay, "replay"),
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
