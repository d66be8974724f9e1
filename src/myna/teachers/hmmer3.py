"""Profile hidden Markov models in HMMER3's text format, as exact teachers.

A profile of length L has match states M_1..M_L, insert states I_0..I_L, and silent
delete states D_1..D_L. What is read is the core model of the file, from begin to end:

    begin -> M_1 | I_0 | D_1,     M_k, I_k, D_k -> M_k+1 | I_k | D_k+1,     node L -> end,

each M and I emitting one residue, then the stop token at the end. This is not
HMMER's search profile: no local entry or exit, no multiple hits, no null model.

Silent states are removed exactly. From node k+1 entered in D, the chain of deletes
reaches M_j, or the end, with probability

    D(k+1, j) = prod over i = k+1 .. j-2 of P(D_i -> D_i+1)  x  P(D_j-1 -> M_j),

a finite sum of products without subtraction, so nothing is lost. Values in the file
are -ln p with five decimals; each row is divided by its sum so that laws sum to one.
"""

import dataclasses
import math
import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import FormatError
from myna.lowrank.student import Strings, strings
from myna.teachers.files import check_table, read_text
from myna.teachers.hmm import Hmm

_ROUNDING = 1e-3  # five decimals of -ln p, summed over a row


@dataclasses.dataclass(frozen=True)
class Profile:
    """The numbers of a profile file, as probabilities.

    name, alphabet: from the file
    match: (L, letter), insert: (L + 1, letter)
    moves: (L + 1, 7), node k's transitions m->m m->i m->d i->m i->i d->m d->d, where
        node 0's "m" is begin, and node L's "->m" is the end
    """

    name: str
    alphabet: str
    match: Float[Tensor, "node letter"]
    insert: Float[Tensor, "slot letter"]
    moves: Float[Tensor, "slot move"]


class _Reader:
    """The file's lines, with the place for error messages."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = read_text(path).splitlines()
        self.at = 0

    def fail(self, wanted: str) -> FormatError:
        got = self.lines[self.at][:60] if self.at < len(self.lines) else "the end of the file"
        return FormatError(f"{self.path}, line {self.at + 1}: wanted {wanted}, got {got!r}")

    def fields(self, field: str, count: int, lead: str | None = None) -> list[float]:
        """The probabilities of one line, which may start with a given first word."""
        words = self.lines[self.at].split() if self.at < len(self.lines) else []
        if lead is not None:
            if not words or words[0] != lead:
                raise self.fail(f"node {lead} ({field})")
            words = words[1:]
        if len(words) < count:
            raise self.fail(f"{count} numbers of {field}")
        try:
            values = [0.0 if w == "*" else math.exp(-float(w)) for w in words[:count]]
            if any(math.isnan(value) for value in values):
                raise ValueError("not a number")
        except (ValueError, OverflowError) as error:
            raise self.fail(f"numbers or '*' in {field}") from error
        self.at += 1
        return values


def read_profile_numbers(path: Path) -> Profile:
    """Parse a file of one HMMER3 profile.

    Raises:
        FormatError: naming line and field.
    """
    reader = _Reader(path)
    if not reader.lines or not reader.lines[0].startswith("HMMER3/"):
        raise reader.fail("a HMMER3 profile ('HMMER3/f ...')")
    header: dict[str, str] = {}
    while reader.at < len(reader.lines) and not reader.lines[reader.at].startswith("HMM "):
        key, _, value = reader.lines[reader.at].partition(" ")
        header[key] = value.strip()
        reader.at += 1
    if reader.at >= len(reader.lines):
        raise reader.fail("the line 'HMM' with the alphabet")
    alphabet = "".join(reader.lines[reader.at].split()[1:])
    if not re.fullmatch("0*[1-9][0-9]{0,8}", header.get("LENG", "")):
        raise FormatError(
            f"{path}: wanted the length in a line 'LENG n', got {header.get('LENG')!r}"
        )
    length, letters = int(header["LENG"]), len(alphabet)
    check_table(path, "moves between states", 2 * length + 2, 2 * length + 2)
    reader.at += 2
    if reader.at < len(reader.lines) and reader.lines[reader.at].split()[:1] == ["COMPO"]:
        reader.at += 1
    match, insert, moves = [], [], []
    for node in range(length + 1):
        if node:
            match.append(reader.fields(f"match emissions of node {node}", letters, str(node)))
        insert.append(reader.fields(f"insert emissions of node {node}", letters))
        moves.append(reader.fields(f"transitions of node {node}", 7))
    if reader.at >= len(reader.lines) or reader.lines[reader.at].strip() != "//":
        raise reader.fail(f"'//' after node {length}")
    return Profile(
        header.get("NAME", path.stem),
        alphabet,
        _normalised(path, "match emissions", match),
        _normalised(path, "insert emissions", insert),
        _grouped(path, moves),
    )


def _normalised(path: Path, field: str, rows: list[list[float]]) -> Tensor:
    table = torch.tensor(rows, dtype=torch.float64)
    sums = table.sum(1, keepdim=True)
    if bool(((sums - 1).abs() > _ROUNDING).any()):
        row = int((sums - 1).abs().argmax())
        raise FormatError(
            f"{path}: {field}, row {row}, must sum to 1 and sum to {float(sums[row]):.6g}"
        )
    return table / sums


def _grouped(path: Path, rows: list[list[float]]) -> Tensor:
    """The seven transitions of each node, each of the three states' normalised."""
    table = torch.tensor(rows, dtype=torch.float64)
    parts = [
        _normalised(path, f"transitions from {state}", part.tolist())
        for state, part in zip("mid", (table[:, :3], table[:, 3:5], table[:, 5:]), strict=True)
    ]
    return torch.cat(parts, 1)


def read_profile(path: Path) -> Hmm:
    """The core model of a profile file as an HMM that emits residues, then stops.

    States: M_1..M_L, I_0..I_L, and an end that emits the stop token; the empty string
    is the end reached at once.

    Raises:
        FormatError: naming line and field.
    """
    return profile_hmm(read_profile_numbers(path))


def profile_hmm(profile: Profile) -> Hmm:
    """Remove the silent states and add the stop."""
    length, letters = profile.match.shape
    insert0, end = length, 2 * length + 1  # M_k is state k-1, I_k is state insert0 + k
    entered = _entering(profile)  # (L + 2, states): node k entered by "to M_k" / by D_k
    to_match, to_delete = entered
    states = 2 * length + 2
    transition = torch.zeros((states, states), dtype=torch.float64)
    begin = torch.zeros(states, dtype=torch.float64)
    for k in range(length + 1):
        mm, mi, md, im, ii, _, _ = profile.moves[k]
        row = mm * to_match[k + 1] + md * to_delete[k + 1]
        row[insert0 + k] += mi
        if k:
            transition[k - 1] = row
        else:
            begin = row
        transition[insert0 + k] = im * to_match[k + 1]
        transition[insert0 + k, insert0 + k] += ii
    transition[end, end] = 1.0
    emission = torch.zeros((states, letters + 1), dtype=torch.float64)
    emission[:length, :letters] = profile.match
    emission[insert0:end, :letters] = profile.insert
    emission[end, letters] = 1.0
    return Hmm(
        begin,
        transition[None],
        emission[None],
        stop=letters,
        alphabet=(*profile.alphabet, "<stop>"),
    )


def _entering(profile: Profile) -> tuple[Tensor, Tensor]:
    """Which emitting state follows "go to M_k" and "go to D_k", for k = 1 .. L + 1.

    Row L + 1 is the end for both: node L's "to M" and "to D" lead there.
    """
    length = len(profile.match)
    states, end = 2 * length + 2, 2 * length + 1
    to_match = torch.zeros((length + 2, states), dtype=torch.float64)
    to_delete = torch.zeros((length + 2, states), dtype=torch.float64)
    to_match[torch.arange(1, length + 1), torch.arange(length)] = 1.0
    to_match[length + 1, end] = to_delete[length + 1, end] = 1.0
    for k in range(length, 0, -1):  # back-substitution along the chain of deletes
        dm, dd = profile.moves[k, 5], profile.moves[k, 6]
        to_delete[k] = dm * to_match[k + 1] + dd * to_delete[k + 1]
    return to_match, to_delete


def read_fasta(path: Path, alphabet: tuple[str, ...]) -> Strings:
    """The sequences of a FASTA file as tokens, without a stop.

    Raises:
        FormatError: naming the sequence and the residue that is not in the alphabet.
    """
    place = {letter: token for token, letter in enumerate(alphabet)}
    names: list[str] = []
    rows: list[list[int]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith(">"):
            names.append(line[1:].strip())
            rows.append([])
        elif line.strip():
            if not rows:
                raise FormatError(f"{path}, line {number}: wanted a name ('>...') before residues")
            for letter in line.strip().upper():
                if letter not in place:
                    raise FormatError(
                        f"{path}, line {number}: sequence {names[-1]!r} has {letter!r}, "
                        "which is not in the profile's alphabet"
                    )
                rows[-1].append(place[letter])
    return strings(rows)
