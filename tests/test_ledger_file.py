"""A ledger over a file: answers and charges as one in memory, over openings and processes."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from myna.errors import TeacherError
from myna.teachers import ledger_blocks
from myna.teachers.ledger import Ledger
from myna.teachers.ledger_audit import verify
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

ENDING = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
STOPPING = open_teacher("zoo:registers?k=1&stop=0.3")
ROWS = [(), (0,), (1,), (0, 1), (0, 0, 0)]


class Counting:
    """A teacher that writes down every question: (kind, prefix) or (draw, prefix, ...)."""

    def __init__(self, teacher, fail=()):
        self.spec, self.k, self._teacher = teacher.spec, teacher.k, teacher
        self.asked, self._fail = [], set(fail)

    def _note(self, questions):
        self.asked += questions
        if self._fail & set(questions):
            raise TeacherError("the line is dead")

    def laws(self, prefixes):
        self._note([("law", row) for row in prefixes.rows()])
        return self._teacher.laws(prefixes)

    def top_laws(self, prefixes):
        self._note([("top", row) for row in prefixes.rows()])
        return self._teacher.top_laws(prefixes)

    def complete(self, prefixes, count, *, stream, max_tokens=None, first_draw=0):
        draws = range(first_draw, first_draw + count)
        self._note([("draw", r, stream, max_tokens, i) for r in prefixes.rows() for i in draws])
        return self._teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["law", "top", "draw", "reopen"]),
        st.lists(st.sampled_from(ROWS), min_size=1, max_size=6),
        st.integers(1, 6),  # count
        st.integers(0, 8),  # first draw
        st.sampled_from([None, 0, 1, 3]),
        st.sampled_from([None, Stream("other"), Stream("other", 2**64)]),
        st.sampled_from(["learn", "verify"]),
    ),
    min_size=1,
    max_size=9,
)

# Every kind before and after an opening, in another order, with draws that overlap.
OVERLAPPING = [
    ("law", [(0,), (), (0,)], 1, 0, None, None, "learn"),
    ("top", [(), (0, 1)], 1, 0, None, None, "verify"),
    ("draw", [(0,), ()], 3, 2, 3, None, "learn"),
    ("reopen", [()], 1, 0, None, None, "learn"),
    ("draw", [(), (1,), ()], 6, 0, 3, None, "learn"),
    ("law", [(0, 0, 0), (), (1,)], 1, 0, None, None, "verify"),
    ("reopen", [()], 1, 0, None, None, "learn"),
    ("draw", [(1,), (0,)], 6, 1, 3, None, "learn"),
    ("top", [(0, 1), (1,), ()], 1, 0, None, None, "learn"),
]


def ask(ledger, step):
    """One step's answer as a tuple of tensors."""
    kind, rows, count, first, max_tokens, stream, purpose = step
    prefixes = Prefixes.of(rows)
    if kind == "law":
        return (ledger.laws(purpose).laws(prefixes),)
    if kind == "top":
        return ledger.top_laws(purpose).top_laws(prefixes)
    return ledger.samples(purpose).complete(
        prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first
    )


def equal(one, other):
    pairs = list(zip(one, other, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@example(ENDING, OVERLAPPING, 2**22)
@example(STOPPING, OVERLAPPING, 100)
@given(st.sampled_from([ENDING, STOPPING]), STEPS, st.sampled_from([1, 100, 2**22]))
def test_a_file_answers_and_charges_as_memory_does(teacher, steps, block_bytes):
    """Also where it is opened again part of the way: then nothing is asked that was."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
    ):
        patch.setattr(ledger_blocks, "_BLOCK_BYTES", block_bytes)
        path = Path(folder) / "l.ledger"
        direct, behind = Counting(teacher), Counting(teacher)
        plain, kept = Ledger(direct, seed=3), Ledger(behind, seed=3, file=path)
        once = Ledger(Counting(teacher), seed=3)  # never opened again
        for step in steps:
            if step[0] == "reopen":
                kept.close()
                plain = Ledger(direct, seed=3)
                kept = Ledger(behind, seed=3, file=path)
                continue
            expected = ask(plain, step)
            assert equal(ask(kept, step), expected) and equal(ask(once, step), expected)
            assert kept.accounts() == plain.accounts()
            for purpose in ("learn", "verify"):
                assert kept.queries_by_cut(purpose) == plain.queries_by_cut(purpose)
            paid = dataclasses.replace(once.total(), cache_hits=0)
            assert kept.paid() == paid, "what the file holds is not paid again"
        assert len(behind.asked) == len(set(behind.asked))
        assert set(behind.asked) == set(direct.asked)
        kept.close()
        assert verify(path).problems == ()
