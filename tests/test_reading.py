"""What a page says of a copy is what the copy does."""

import html.parser
import itertools
import json

import pytest
import torch

from myna.app.cli import main
from myna.errors import InputError
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.lowrank.reading import read_cut
from myna.lowrank.student import strings
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher


def learned(uri):
    teacher = open_teacher(uri)
    return teacher, learn_exact(
        Ledger(teacher), ExactSettings(), torch.Generator().manual_seed(0)
    ).student


def test_futures_are_the_likeliest_by_enumeration():
    teacher, copy = learned("zoo:hmm?states=3&symbols=3&horizon=6&seed=2")
    reading = read_cut(copy, 2, depth=3, count=4)
    assert reading.cut == 2 and len(reading.basis) == copy.ranks[2]
    words = list(itertools.product(range(3), repeat=3))
    for one in reading.basis:
        before = teacher.score(strings([list(one.history)]))
        whole = teacher.score(strings([[*one.history, *word] for word in words]))
        law = (whole - before).exp()
        best = law.topk(4)
        assert [f.tokens for f in one.futures] == [words[i] for i in best.indices.tolist()]
        for future, p in zip(one.futures, best.values.tolist(), strict=True):
            assert abs(future.probability - p) < 1e-6
    assert reading.words == 3
    laws = []
    for one in reading.basis:
        before = teacher.score(strings([list(one.history)]))
        whole = teacher.score(strings([[*one.history, *word] for word in words]))
        laws.append((whole - before).exp())
    for i, one in enumerate(reading.basis):
        apart = [float((laws[i] - law).abs().sum() / 2) for law in laws]
        apart[i] = 2.0
        assert one.nearest is not None and one.nearest[0] == apart.index(min(apart))
        assert abs(one.nearest[1] - min(apart)) < 1e-6
    moved = reading.moves[0]
    torch.testing.assert_close(moved.change, copy.steps[2].change[:, moved.token])


def test_futures_stop_at_the_end():
    _, copy = learned("zoo:registers?k=2")
    reading = read_cut(copy, 0, depth=3, count=5)
    stop = copy.spec.stop
    for one in reading.basis:
        assert one.nearest is not None and one.nearest[1] > 1e-6  # a basis tells all apart
        for future in one.futures:
            assert stop not in future.tokens[:-1]
            assert len(future.tokens) == 3 or future.tokens[-1] == stop
    assert all(move.token != stop for move in reading.moves)
    _, bounded = learned("zoo:parity?bits=4")
    last = read_cut(bounded, 4)
    assert last.moves == () and all(len(f.tokens) == 1 for f in last.basis[0].futures)
    with pytest.raises(InputError, match=r"cuts 0\.\.4"):
        read_cut(bounded, 9)


class Cells(html.parser.HTMLParser):
    """Every tag closed, every cell's text."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("zoo:hmm?states=2&symbols=12&horizon=4", "4 other tokens are not shown"),
        ("zoo:copy?n=5&k=2", "Not shown: 32 by"),
    ],
)
def test_what_is_left_out_of_a_page_is_said(monkeypatch, tmp_path, uri, said):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
        with pytest.raises(SystemExit):
            main()

    run("learn", uri, "-o", tmp_path / "c")
    run("explain", tmp_path / "c", "-o", tmp_path / "p.html", "--cut", 5 if "copy" in uri else 1)
    assert said in (tmp_path / "p.html").read_text()


def test_the_command_writes_a_page(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        return done.value.code, capsys.readouterr()

    copy, page = tmp_path / "copy", tmp_path / "page.html"
    assert run("learn", "zoo:parity?bits=6", "-o", copy)[0] == 0
    code, said = run("explain", copy, "-o", page, "--cut", 0, "--cut", 6, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["cuts"] == [0, 6] and record["basis"][0] == ["(empty)"]
    read = Cells()
    read.feed(page.read_text())
    assert read.open == []
    law = [cell for cell in read.cells if "0.9" in cell and "0.1" in cell]
    assert law, read.cells
    assert "zoo:parity?bits=6" in read.cells and "<script" not in page.read_text()
    net = tmp_path / "net"
    assert (
        run("learn", "zoo:isan?dim=2&symbols=3&horizon=5", "-o", net, "--space", "logits")[0] == 0
    )
    code, said = run("explain", net)
    assert code == 2 and "probability space" in said.err
