"""Files that are nearly files of a format, and what reading them may do: a model or a FormatError.

A mutant changes a good file's bytes, its lines, its numbers, or (of archives) the sizes that
its headers declare. Every reader must answer with a model or with the one error that says
what is wrong; anything else is for the fuzzer to find.
"""

import io
import json
import random
import shutil
import zipfile

import numpy as np
import torch

from myna.errors import FormatError, InputError
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.char_rnn import read_rnn
from myna.teachers.copies import load_copy, save_copy
from myna.teachers.hmmer3 import read_profile
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm
from myna.teachers.pautomac import read_automaton, read_solution, read_strings
from myna.teachers.uri import open_teacher

_WORDS = (
    b"", b"0", b"-1", b"1e999", b"nan", b"inf", b"99999999999", b"1" * 5000, b"(", b")", b",", b":",
    b"*", b"{", b"]", b'"', b"null", b"\x00", b"\xff", "\u00b2".encode(), b"LENG 999999", b"//\n", b"\n",
    b"[" * 5000, b"true", b"1.0", b"(99999999) 1.0\n", b"(2147483648,0,4294967296) 0.5\n",
)  # fmt: skip

AUTOMATON = """I: (state)
\t(0) 0.5
\t(1) 0.5
F: (state)
\t(0) 0.25
S: (state,symbol)
\t(0,0) 0.5
\t(0,1) 0.5
\t(1,0) 1.0
T: (state,symbol,state)
\t(0,0,1) 1.0
\t(0,1,0) 1.0
\t(1,0,0) 0.5
\t(1,0,1) 0.5
"""
STRINGS = "3 2\n2 0 1\n1 1\n0\n"
SOLUTION = "2\n0.5\n0.25\n"
PROFILE = """HMMER3/f [3.3 | 2019]
NAME  small
LENG  2
ALPH  amino
HMM          A        C
            m->m     m->i     m->d     i->m     i->i     d->m     d->d
          0.69315  0.69315
          0.10536  2.99573  2.99573  0.69315  0.69315  0.00000        *
      1   0.69315  0.69315      1 a - - -
          0.69315  0.69315
          0.10536  2.99573  2.99573  0.69315  0.69315  0.69315  0.69315
      2   0.69315  0.69315      2 a - - -
          0.69315  0.69315
          0.10536  2.30259        *  0.69315  0.69315  0.00000        *
//
"""


def _npz():
    out = io.BytesIO()
    np.savez_compressed(out, pi=[0.5, 0.5], T=np.full((2, 2), 0.5), E=np.full((2, 3), 1 / 3))
    return out.getvalue()


def _sparse_npz():
    """The same, with the emission as its entries and names for tokens."""
    out = io.BytesIO()
    states, tokens = np.divmod(np.arange(6), 3)
    np.savez_compressed(
        out,
        pi=[0.5, 0.5],
        T=np.full((2, 2), 0.5),
        emission_rows=states,
        emission_cols=tokens,
        emission_values=np.full(6, 1 / 3),
        emission_shape=[2, 3],
        symbols=["a", "b", "c"],
    )
    return out.getvalue()


def _rnn_files():
    import safetensors.torch  # noqa: PLC0415

    size, hidden = 3, 2
    tensors = {
        "embedding": torch.zeros(size, 2),
        "lstm.0.kernel": torch.zeros(2 + hidden, 4 * hidden),
        "lstm.0.bias": torch.zeros(4 * hidden),
        "softmax.weight": torch.zeros(hidden, size),
        "softmax.bias": torch.zeros(size),
    }
    vocabulary = json.dumps({"0": "\n", "1": "a", "2": "b"}).encode()
    return {"weights.safetensors": safetensors.torch.save(tensors), "vocab.json": vocabulary}


def good_files(folder):
    """Format -> (files by name, reader of the path they stand at)."""
    teacher = open_teacher("zoo:hmm?states=2&symbols=2&horizon=3")
    found = learn_exact(Ledger(teacher), ExactSettings(), torch.Generator().manual_seed(0))
    save_copy(folder / "good", found.student, {})
    copy = {part.name: part.read_bytes() for part in (folder / "good").iterdir()}
    shutil.rmtree(folder / "good")
    one = {
        "pautomac": (AUTOMATON, read_automaton),
        "strings": (STRINGS, read_strings),
        "solution": (SOLUTION, read_solution),
        "hmmer3": (PROFILE, read_profile),
    }
    singles = {name: ({"file": text.encode()}, reader) for name, (text, reader) in one.items()}
    return {
        **singles,
        "npz": ({"file": _npz()}, lambda path: read_hmm(path, 4)),
        "sparse npz": ({"file": _sparse_npz()}, lambda path: read_hmm(path, None)),
        "student": (copy, load_copy),
        "rnn": (_rnn_files(), lambda path: read_rnn(path, 4, "a")),
    }


def _nearly(data, random_):
    """Bytes near good ones."""
    choice = random_.random()
    if choice < 0.3:  # lines or words swapped, dropped, repeated, replaced
        parts = data.split(b"\n" if random_.random() < 0.5 else b" ")
        at = random_.randrange(len(parts))
        parts[at : at + 1] = random_.choice(
            ([], [parts[at]] * 2, [random_.choice(_WORDS)], [random_.choice(parts), parts[at]])
        )
        return (b"\n" if random_.random() < 0.5 else b" ").join(parts)
    for _ in range(random_.randint(1, 5)):
        at, size = random_.randint(0, len(data)), random_.choice((0, 1, 1, 2, 8))
        new = random_.choice((random_.choice(_WORDS), bytes([random_.randrange(256)]), b""))
        data = data[:at] + new + data[at + size :]
    return data[: random_.randint(0, len(data))] if random_.random() < 0.05 else data


def _archive(data, random_):
    """An archive with one member near a good one, so that its checksum does not say so."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random_.choice(list(members))
    body = members[name]
    if random_.random() < 0.3:
        shapes = (
            b"(99999999, 99999999)",
            b"(-1, 2)",
            b"(2,)",
            b"()",
            b"(2, 2, 2, 2)",
            b"2",
            b"(1e9,)",
        )
        body = body.replace(b"(2, 2)", random_.choice(shapes)).replace(
            b"<f8", random_.choice((b"|O8", b"<f2", b"|S9", b"<f8", b"<c8"))
        )
    else:
        body = _nearly(body, random_)
    members[name] = body
    if random_.random() < 0.1:
        del members[random_.choice(list(members))]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def nearly(kind, files, seed):
    """Files near good ones: one of them changed."""
    random_ = random.Random(f"{kind} {seed}")
    name = random_.choice(sorted(files))
    change = _archive if kind.endswith("npz") and random_.random() < 0.7 else _nearly
    return {**files, name: change(files[name], random_)}


def written(folder, files):
    """The path that a reader is given."""
    if list(files) == ["file"]:
        path = folder / "file"
        path.write_bytes(files["file"])
        return path
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def survive(reader, path):
    """Whether it was a model; anything but a model or its refusal is raised.

    A beginning character that a changed vocabulary lacks is the caller's, so an InputError.
    """
    try:
        reader(path)
    except InputError as error:
        assert isinstance(error, FormatError) or str(error).startswith("begin must")
        return False
    return True
