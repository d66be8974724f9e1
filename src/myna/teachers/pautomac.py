"""PAutomaC: the model, string and solution files of the competition (ICGI 2012), and its score.

A model file has four sections: I (state), F (state), S (state,symbol) and
T (state,symbol,state), each line "(key) value". The automaton is

    P(a, q' | q) = (1 - F[q]) S[q, a] T[q, a, q'],      P(stop | q) = F[q],

where states absent from F never stop. Values are printed with 12 digits, so rows miss
one by about 1e-11; each row of I, S and T is divided by its sum, which keeps laws
exact and moves probabilities far less than the competition's score resolves.

The score of a model Q on the distinct test strings X is the perplexity

    2^(-sum over x in X of p(x) log2 q(x)),     p = P / P(X),     q = Q / Q(X),

least where Q = P on X up to a factor.

Source: Verwer, Eyraud and de la Higuera, PAutomaC (2014). The data are free for
academic research; myna reads them and does not ship them.
"""

import math
import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import FormatError
from myna.lowrank.student import Strings, strings
from myna.spec import Spec, fingerprint, numbered
from myna.teachers.automaton import Automaton
from myna.teachers.files import check_table, read_text

_HEADER = re.compile(r"([IFST]):")
_ENTRY = re.compile(r"\(([0-9]{1,9}(?: *, *[0-9]{1,9}){0,2})\)\s+(\S+)$")
_KEYS = {"I": 1, "F": 1, "S": 2, "T": 3}
_ROUNDING = 1e-6  # a row that misses one by more is an error, not rounding

Entries = dict[tuple[int, ...], float]


def read_automaton(path: Path) -> Automaton:
    """The automaton of a `.pautomac_model.txt` file; symbols are named by their numbers.

    Raises:
        FormatError: naming line and field.
    """
    sections = _read_sections(path)
    states = 1 + max(
        k
        for name, part in sections.items()
        for key in part
        for k in (key[0], key[-1] if name == "T" else 0)
    )
    letters = 1 + max((key[1] for key in (*sections["S"], *sections["T"])), default=0)
    check_table(path, "moves by symbol", letters, states, states)
    initial = _dense(sections["I"], (states,))
    stopping = _dense(sections["F"], (states,))
    symbols = _dense(sections["S"], (states, letters))
    targets = _dense(sections["T"], (states, letters, states))
    lacking = (symbols > 0) & (targets.sum(2) == 0) & (stopping < 1)[:, None]
    if bool(lacking.any()):
        q, a = lacking.nonzero()[0].tolist()
        raise FormatError(
            f"{path}: section S gives state {q} symbol {a}, and section T has no target for it"
        )
    emitted = _normalised(path, "S", symbols, stopping < 1)
    moved = _normalised(path, "T", targets, symbols > 0)
    moves = ((1 - stopping)[:, None] * emitted)[:, :, None] * moved
    return Automaton(
        _normalised(path, "I", initial[None], torch.tensor([True]))[0],
        moves.transpose(0, 1).contiguous(),
        stopping,
    )


def _read_sections(path: Path) -> dict[str, Entries]:
    sections: dict[str, Entries] = {}
    name = None
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.strip()
        if header := _HEADER.match(line):
            name = header[1]
            sections[name] = {}
        elif line:
            key, value = _entry(path, number, name, line)
            sections[name or ""][key] = value
    for name in _KEYS:
        if name not in sections:
            raise FormatError(f"{path} lacks section {name}; is it a PAutomaC model file?")
    if not sections["I"]:
        raise FormatError(f"{path}: section I names no initial state")
    return sections


def _entry(path: Path, number: int, name: str | None, line: str) -> tuple[tuple[int, ...], float]:
    """One "(key) value" line."""
    match = _ENTRY.match(line)
    key = tuple(int(part) for part in match[1].split(",")) if match else ()
    if name is None or len(key) != _KEYS[name]:
        wanted = (
            f"({', '.join(['number'] * _KEYS[name])}) value"
            if name
            else "a section header such as 'I:'"
        )
        raise FormatError(f"{path}, line {number}, section {name}: wanted {wanted}, got {line!r}")
    assert match is not None
    try:
        value = float(match[2])
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1 + _ROUNDING:
        raise FormatError(
            f"{path}, line {number}, section {name}: wanted a probability, got {match[2]!r}"
        )
    return key, value


def _dense(entries: Entries, shape: tuple[int, ...]) -> Tensor:
    table = torch.zeros(shape, dtype=torch.float64)
    if entries:
        index = torch.tensor(list(entries)).unbind(1)
        table[index] = torch.tensor(list(entries.values()), dtype=torch.float64)
    return table


def _normalised(path: Path, name: str, table: Tensor, used: Tensor) -> Tensor:
    """Rows over their sums where they are used; the sums may miss one by rounding only."""
    sums = table.sum(-1)
    bad = used & ((sums - 1).abs() > _ROUNDING)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise FormatError(
            f"{path}, section {name}: the probabilities of row {where} must sum to 1, "
            f"and they sum to {float(sums[tuple(where)]):.6g}"
        )
    return table / sums.clamp(min=_ROUNDING)[..., None]


def read_strings(path: Path) -> tuple[Strings, int]:
    """The strings of a `.train` or `.test` file, without a stop, and the alphabet's size.

    Raises:
        FormatError: naming the line.
    """
    lines = read_text(path).splitlines()
    numbers: list[list[int]] = []
    for number, line in enumerate(lines, 1):
        try:
            numbers.append([int(part) for part in line.split()])
        except ValueError as error:
            raise FormatError(
                f"{path}, line {number}: wanted whole numbers, got {line!r}"
            ) from error
    if not numbers or len(numbers[0]) != 2:
        raise FormatError(f"{path}, line 1: wanted the number of strings and of symbols")
    count, letters = numbers[0]
    rows = [row for row in numbers[1:] if row]
    if len(rows) != count:
        raise FormatError(f"{path}: line 1 promises {count} strings, and there are {len(rows)}")
    for number, row in enumerate(rows, 2):
        if len(row) != row[0] + 1 or any(not 0 <= token < letters for token in row[1:]):
            raise FormatError(
                f"{path}, line {number}: wanted a length and that many symbols below {letters}"
            )
    return strings([row[1:] for row in rows]), letters


def read_solution(path: Path) -> Float[Tensor, " string"]:
    """The probabilities of a `_solution.txt` file, normalised over the test strings.

    Raises:
        FormatError: naming the line.
    """
    lines = read_text(path).splitlines()
    values = []
    for number, line in enumerate(lines[1:], 2):
        try:
            values.append(float(line))
        except ValueError as error:
            raise FormatError(
                f"{path}, line {number}: wanted a probability, got {line!r}"
            ) from error
    if not lines or lines[0].strip() != str(len(values)):
        raise FormatError(
            f"{path}: line 1 must give the number of probabilities, here {len(values)}"
        )
    return torch.tensor(values, dtype=torch.float64)


def read_sample(path: Path) -> tuple[Spec, Strings]:
    """The strings of a `.train` or `.test` file, each with its stop, and their language.

    The alphabet is the file's: a model file may lack its last symbols, and has another stop then.

    Raises:
        FormatError: naming the line.
    """
    batch, letters = read_strings(path)
    whole = with_stop(batch, letters)
    names = numbered(letters + 1, stop=True)
    return Spec(names, letters, None, fingerprint("strings", names, *whole)), whole


def with_stop(batch: Strings, stop: int) -> Strings:
    """Every string with the stop token behind it."""
    tokens = torch.nn.functional.pad(batch.tokens, (0, 1), value=-1)
    tokens = tokens.scatter(1, batch.lengths[:, None], stop)
    return Strings(tokens, batch.lengths + 1)


def perplexity(solution: Float[Tensor, " string"], log_q: Float[Tensor, " string"]) -> float:
    """The competition's score; infinite where Q gives a test string probability zero.

    solution: p, as `read_solution` gives it
    log_q: log Q of the test strings (nats), not normalised
    """
    return 2 ** float(-(solution * log_q.log_softmax(0)).sum() / math.log(2))
