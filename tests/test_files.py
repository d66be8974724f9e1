"""Files that are not trusted: near misses of every format, bombs, and what is no file at all."""

import io
import json
import os
import resource
import struct
import zipfile

import fuzz_files
import numpy as np
import pytest

from myna.errors import FormatError
from myna.teachers import files
from myna.teachers.copies import load_copy
from myna.teachers.npz import read_hmm
from myna.teachers.pautomac import read_automaton


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return fuzz_files.good_files(tmp_path_factory.mktemp("good"))


KINDS = ("pautomac", "strings", "solution", "hmmer3", "npz", "sparse npz", "student", "rnn")


@pytest.mark.parametrize("kind", KINDS)
def test_near_misses_are_read_or_refused(kind, good, tmp_path):
    parts, reader = good[kind]
    assert fuzz_files.survive(reader, fuzz_files.written(tmp_path, parts))
    read = sum(
        fuzz_files.survive(
            reader, fuzz_files.written(tmp_path, fuzz_files.nearly(kind, parts, seed))
        )
        for seed in range(300)
    )
    assert 0 < read < 150  # some changes are harmless, most are not


def test_every_format_is_fuzzed(good):
    assert set(good) == set(KINDS)


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, body in members.items():
            out.writestr(f"{name}.npy", body)
    return path


def header(shape, kind="<f8"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def body(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"pi": header((2**40,))}, "at most 134,217,728"),
        ({"pi": header((2**20, 2**20))}, "1,048,576 x 1,048,576"),
        ({"pi": header((2**20,))}, "holds fewer numbers"),
        ({"pi": header((-1,))}, "declares the shape"),
        ({"pi": header((2,), "|O") + b"x" * 16}, "must hold numbers"),
        ({"pi": body(np.array(["a", "b"]))}, "must hold numbers"),
        ({"pi": b"not numpy"}, "does not read"),
    ],
)
def test_archives_are_not_believed(tmp_path, members, message):
    with pytest.raises(FormatError, match=message):
        read_hmm(archive(tmp_path / "a.npz", **members), 4)


def test_a_zip_bomb_takes_no_memory(tmp_path):
    zeros = header((2**28,)) + bytes(2**28)  # a quarter of what it declares; 260 kB packed
    path = archive(tmp_path / "bomb.npz", pi=zeros)
    del zeros
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="asks for a table"):
        read_hmm(path, 4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000  # kilobytes


@pytest.mark.parametrize(
    "line", ["(999999999) 1.0", "(" + "1" * 5000 + ") 1.0", "(\u0661) 1.0", "() 1.0", "(0,) 1.0"]
)
def test_an_automaton_of_huge_or_no_numbers_is_refused(tmp_path, line):
    path = tmp_path / "m.pautomac_model.txt"
    path.write_text(fuzz_files.AUTOMATON.replace("(1) 0.5", line, 1), encoding="utf-8")
    with pytest.raises(FormatError, match=r"asks for a table|wanted \(number\) value"):
        read_automaton(path)


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", tmp_path / "nul\0l"):
        with pytest.raises(FormatError, match="cannot be read"):
            files.read_text(path)
    with pytest.raises(FormatError, match="no plain file"):
        read_hmm(tmp_path / "pipe", 3)


def test_large_text_is_refused_unread(tmp_path):
    with (tmp_path / "large").open("wb") as out:
        out.truncate(files.MOST_BYTES + 1)  # sparse: takes no room
    with pytest.raises(FormatError, match="at most"):
        files.read_text(tmp_path / "large")


def test_links_are_followed(tmp_path):
    (tmp_path / "real").write_text("[1]", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert files.read_json(tmp_path / "link") == [1]
    with pytest.raises(FormatError, match="cannot be read"):
        files.read_json(tmp_path / "loop")


def test_json_of_any_depth_is_refused_in_words(good, tmp_path):
    folder = fuzz_files.written(tmp_path, good["student"][0])
    text = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="does not read as JSON"):
        load_copy(folder)
    (folder / "model.json").write_text(json.dumps(text | {"ranks": [1] * 10_000_000}))
    with pytest.raises(FormatError):
        load_copy(folder)
