"""A ledger over a file: answers and charges as one in memory, over openings and processes."""

import dataclasses
import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from counting import Counting
from hypothesis import example, given, settings
from hypothesis import strategies as st

from myna.errors import BudgetExhausted, InputError, LedgerError, TeacherError
from myna.teachers import ledger_blocks, ledger_file, ledger_schema
from myna.teachers.ledger import Account, Budget, Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.ledger_compact import compact
from myna.teachers.ledger_file import LedgerFile
from myna.teachers.ledger_replay import open_replay
from myna.teachers.oracle import Stream, TopLaw, as_samples
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

ENDING = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
STOPPING = open_teacher("zoo:registers?k=1&stop=0.3")
ROWS = [(), (0,), (1,), (0, 1), (0, 0, 0)]


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


@settings(max_examples=8)
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


EMPTY = Prefixes.of([[]])
TWO = Prefixes.of([[0], [1, 2]])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "l.ledger"


def states(path):
    """How many requests there are in each state."""
    found = {}
    for line in summarise(path).spending:
        for state, number in line.requests.items():
            found[state] = found.get(state, 0) + number
    return found


def test_a_second_opening_asks_nothing_and_counts_the_same(path):
    runs, asked = [], []
    for _ in range(2):
        teacher = Counting(ENDING)
        with Ledger(teacher, file=path, job="learn") as ledger:
            laws = ledger.laws("learn").laws(TWO)
            draws = ledger.samples("verify").complete(TWO, 3, first_draw=1)
            top = ledger.top_laws("learn").top_laws(EMPTY)
            runs.append((ledger.accounts(), ledger.paid()))
        asked.append(teacher.asked)
        assert equal((laws, *draws, *top), (ENDING.laws(TWO), *_drawn(TWO, 3, 1), *_top(EMPTY)))
    assert len(asked[0]) == 2 + 6 + 1 and asked[1] == []
    assert runs[0] == runs[1]
    accounts, paid = runs[0]
    assert accounts["learn"] == Account(next_token_queries=3, tokens_sent=3)
    assert accounts["verify"] == Account(completions=6, tokens_sent=9, tokens_received=6 * 6 - 9)
    assert paid == accounts["learn"] + accounts["verify"]


def _drawn(prefixes, count, first):
    stream = Stream("verify", 0)
    return ENDING.complete(prefixes, count, stream=stream, first_draw=first)


def _top(prefixes):
    return ENDING.top_laws(prefixes)


def test_answers_outlive_a_process_that_never_closes(path):
    ledger = Ledger(Counting(ENDING), file=path)
    ledger.laws("learn").laws(TWO)
    again = Counting(ENDING)
    assert torch.equal(Ledger(again, file=path).laws("x").laws(TWO), ENDING.laws(TWO))
    assert again.asked == [] and len(summarise(path).running) == 1


def test_a_budget_limits_a_job_over_several_openings(path):
    rows = [[0], [1], [2], [0, 0], [0, 1]]
    for opening, row in enumerate(rows):
        teacher = Counting(ENDING)
        with Ledger(teacher, Budget(queries=3), file=path, job="learn") as ledger:
            view = ledger.laws("learn")
            if opening < 3:
                view.laws(Prefixes.of([row]))
                continue
            with pytest.raises(BudgetExhausted, match=r"is 3 next-token queries over all that .*4"):
                view.laws(Prefixes.of([row]))
            assert ledger.total() == Account() and view.spent() == Account()
            assert ledger.queries_by_cut("learn") == (), "nothing was asked"
            assert ledger.paid().next_token_queries == 3 and teacher.asked == []
            view.laws(Prefixes.of(rows[:3]))  # the file holds them: there is room in this run
    with Ledger(ENDING, Budget(queries=1), file=path, job="certify") as ledger:
        ledger.laws("certify").laws(Prefixes.of([rows[3]]))  # another job's budget
        assert ledger.paid().next_token_queries == 1
    # what a run counts is limited too, though the file holds it
    with (
        Ledger(ENDING, Budget(queries=0), file=path, job="learn") as ledger,
        pytest.raises(BudgetExhausted),
    ):
        ledger.laws("learn").laws(Prefixes.of([rows[0]]))


def test_draws_are_reserved_at_their_most_and_charged_what_they_cost(path):
    teacher = Counting(STOPPING)
    spent = 0
    with Ledger(as_samples(teacher), Budget(sampled_tokens=40), file=path) as ledger:
        view = ledger.samples("learn")
        assert view.fits(EMPTY, 4, max_tokens=10) and not view.fits(EMPTY, 5, max_tokens=10)
        first = view.complete(EMPTY, 4, max_tokens=10)
        spent = int(first.lengths.sum())
        assert spent < 40 and ledger.paid().tokens_received == spent
    with Ledger(as_samples(teacher), Budget(sampled_tokens=40), file=path) as ledger:
        view, room = ledger.samples("other"), (40 - spent) // 10
        assert view.fits(EMPTY, room, max_tokens=10)
        assert not view.fits(EMPTY, room + 1, max_tokens=10), "the file's spending counts"
        assert not view.fits(EMPTY, 1) and ledger.samples("learn").fits(EMPTY, 4, max_tokens=10)
        with pytest.raises(BudgetExhausted, match=r"40 sampled tokens over all"):
            view.complete(EMPTY, room + 1, max_tokens=10)
        assert ledger.total() == Account()
    assert len(teacher.asked) == 4


def test_unbounded_draws_have_no_token_budget(path):
    with Ledger(STOPPING, Budget(tokens=10**6), file=path) as ledger:
        with pytest.raises(BudgetExhausted, match="unbounded length"):
            ledger.samples("learn").complete(EMPTY, 1)
        assert ledger.paid() == Account()


def test_a_budget_below_what_was_spent_still_reads(path):
    """Another process answered it meanwhile: nothing is lacking, so nothing need fit."""
    with Ledger(ENDING, file=path) as one, Ledger(ENDING, Budget(queries=1), file=path) as other:
        one.laws("learn").laws(TWO)
        assert torch.equal(
            other.laws("learn").laws(Prefixes.of([[0]])), ENDING.laws(Prefixes.of([[0]]))
        )


def test_another_teacher_is_refused(path):
    Ledger(ENDING, file=path).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"another teacher \(fingerprint .* give each teacher its"):
        Ledger(STOPPING, file=path)
    seeded = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6&seed=2")
    with pytest.raises(InputError, match="another teacher"):
        Ledger(seeded, file=path)
    assert path.read_bytes() == before


def test_a_failed_question_stays_spent_and_later_ones_cost_nothing(path):
    """Three runs of draws are lacking; the teacher fails at the second."""
    stream = Stream("learn", 0)
    held = [(Prefixes.of([[0]]), 2), (Prefixes.of([[0], [1]]), 5)]
    with Ledger(ENDING, file=path) as ledger:
        for prefixes, first in held:
            ledger.samples("learn").complete(prefixes, 1, first_draw=first)
    before = Ledger(ENDING, file=path).paid()
    dead = ("draw", (0,), stream, None, 3)
    teacher = Counting(ENDING, fail=[dead])
    with Ledger(teacher, file=path) as ledger:
        with pytest.raises(TeacherError, match="line is dead"):
            # draws 0-1, 3-4 and 6-8 of [0]; 0-4 and 6-8 of [1]
            ledger.samples("learn").complete(Prefixes.of([[0], [1]]), 9)
        paid = ledger.paid() - before
    asked = teacher.asked
    assert dead in teacher.calls[-1] and len(asked) == len(set(asked)) == paid.completions
    assert paid == Account(
        completions=len(asked), tokens_sent=len(asked), tokens_received=5 * len(asked)
    )
    found = states(path)
    assert found["failed"] == 1 and found["unsent"] >= 1
    assert verify(path).problems == ()
    again = Counting(ENDING)
    with Ledger(again, file=path) as ledger:
        whole = ledger.samples("learn").complete(Prefixes.of([[0], [1]]), 9)
        assert equal(whole, ENDING.complete(Prefixes.of([[0], [1]]), 9, stream=stream))
    assert len(teacher.calls) > 1 and set(teacher.calls[-1]) <= set(again.asked)
    assert not {question for call in teacher.calls[:-1] for question in call} & set(again.asked)


def test_wrong_answers_are_refused_and_stay_spent(path):
    class Wrong(Counting):
        def laws(self, prefixes):
            return super().laws(prefixes)[:, :2]

        def top_laws(self, prefixes):
            top = super().top_laws(prefixes)
            return TopLaw(top.tokens - 1, top.log_probs, top.log_rest)

    for file in (None, path):
        with Ledger(Wrong(ENDING), file=file) as ledger:
            with pytest.raises(TeacherError, match=r"1 laws of 3 tokens were asked .*\(1, 2\)"):
                ledger.laws("learn").laws(EMPTY)
            with pytest.raises(TeacherError, match=r"different tokens in 0\.\.2, but .*-1"):
                ledger.top_laws("learn").top_laws(EMPTY)
            assert ledger.total().next_token_queries == ledger.paid().next_token_queries == 2
    assert states(path) == {"failed": 2} and summarise(path).answers["laws"] == 0


class Slow(Counting):
    """Answers once it is let go; says when it was asked."""

    def __init__(self, teacher):
        super().__init__(teacher)
        self.reached, self.go, self.fails = threading.Event(), threading.Event(), False

    def laws(self, prefixes):
        self.reached.set()
        assert self.go.wait(30)
        if self.fails:
            raise TeacherError("no answer after all")
        return super().laws(prefixes)


def _in_thread(work):
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_one_question_in_two_threads_is_asked_once(path, monkeypatch, fails, relative):
    """The second waits; where the first gets no answer, it asks."""
    monkeypatch.chdir(path.parent)
    slow, quick = Slow(ENDING), Counting(ENDING)
    slow.fails = fails
    other = Path(path.name) if relative else path
    with Ledger(slow, file=path) as first, Ledger(quick, Budget(queries=2), file=other) as second:
        one, answers = _in_thread(lambda: first.laws("learn").laws(EMPTY))
        assert slow.reached.wait(30)
        two, waited = _in_thread(lambda: second.laws("learn").laws(Prefixes.of([[], [0]])))
        two.join(0.3)
        assert two.is_alive() and quick.asked == [], "it waits"
        slow.go.set()
        one.join(30)
        two.join(30)
        if fails:
            assert isinstance(answers[0], TeacherError)
            assert isinstance(waited[0], BudgetExhausted), "the failed question may have been paid"
        else:
            assert torch.equal(answers[0], ENDING.laws(EMPTY))
            assert torch.equal(waited[0], ENDING.laws(Prefixes.of([[], [0]])))
            assert quick.asked == [("law", (0,))]
            assert second.paid() == Account(next_token_queries=2, tokens_sent=1)


def test_many_threads_share_one_ledger(path):
    teacher = Counting(ENDING)
    rows = [[a, b] for a in range(3) for b in range(3)]
    with Ledger(teacher, file=path) as ledger:
        threads = [
            _in_thread(lambda i=i: ledger.laws(f"p{i % 2}").laws(Prefixes.of(rows[i:] + rows[:i])))
            for i in range(6)
        ]
        for i, (thread, found) in enumerate(threads):
            thread.join(60)
            assert torch.equal(found[0], ENDING.laws(Prefixes.of(rows[i:] + rows[:i])))
        assert (
            len(teacher.asked) == len(set(teacher.asked)) == 9 == ledger.paid().next_token_queries
        )


def test_an_answer_that_cannot_be_written_is_nowhere(path, monkeypatch):
    """The file fails as the answer is written; another's answer then takes its number."""
    teacher = Counting(ENDING)
    ledger = Ledger(teacher, file=path)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "insert_block", full)
        with pytest.raises((LedgerError, InputError)):
            ledger.laws("learn").laws(EMPTY)
    committed = ledger_file.transaction

    def failing(connection):
        """A transaction whose end fails, as on a full disk."""
        with committed(connection):
            yield
            if connection.execute("SELECT COUNT(*) FROM block").fetchone()[0]:
                raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "transaction", ledger_file.contextlib.contextmanager(failing))
        with pytest.raises((LedgerError, InputError)):
            ledger.laws("learn").laws(Prefixes.of([[0], [1]]))
    with Ledger(ENDING, file=path) as other:
        other.laws("learn").laws(Prefixes.of([[2], [1], [0, 0]]))
    wanted = Prefixes.of([[0], [0, 0], [1], [2], []])
    fresh = ledger._file.facing("learn")
    assert torch.equal(fresh.laws(wanted), ENDING.laws(wanted))
    assert states(path)["lost"] == 2 and verify(path).problems == ()
    ledger.close()


def test_closing_twice_is_nothing_and_asking_after_it_is_refused(path):
    with Ledger(ENDING, file=path) as ledger:
        view = ledger.laws("learn")
        view.laws(EMPTY)
        ledger.close()
        with pytest.raises(InputError, match="was closed; open it again"):
            view.laws(TWO)
        with pytest.raises(InputError, match="was closed"):
            ledger.paid()
    assert summarise(path).running == ()


def test_a_forked_process_is_refused_and_harms_nothing(path):
    """The child may neither ask nor, as it ends, give up its parent's hold."""
    ledger = Ledger(ENDING, file=path)
    view = ledger.laws("learn")
    view.laws(EMPTY)
    own = os.getpid()

    def pretend(pid):
        return lambda: pid

    with pytest.MonkeyPatch.context() as patch:  # as seen from a child
        patch.setattr(ledger_file.os, "getpid", pretend(own + 1))
        for question in (TWO, Prefixes.of([[2]])):
            with pytest.raises(InputError, match="before this process forked; open it again here"):
                view.laws(question)
        with pytest.raises(InputError, match="forked"):
            ledger.paid()
        ledger._file.close()
    assert summarise(path).running == (own,)
    assert torch.equal(view.laws(TWO), ENDING.laws(TWO))
    del view, ledger
    gc.collect()
    assert summarise(path).running == (), "a ledger that nobody holds gives its file up"


def old_ledger(path, monkeypatch):
    """A ledger as version 1 wrote it: no jobs, no hash of the language."""
    with monkeypatch.context() as patch:
        patch.setattr(ledger_schema, "VERSION", 1)
        patch.setattr(ledger_schema, "_seal", lambda _: None)
        connection = ledger_schema.connect(path, write=True)
        connection.execute("PRAGMA journal_mode = WAL")
        ledger_schema._make(connection, ENDING.spec)
    question = ledger_blocks.Question("law", TWO)
    cost = "2, 0, 3, 0"
    connection.execute(f"INSERT INTO spent VALUES ('learn', {cost})")
    connection.execute("INSERT INTO owner VALUES (1, 1, 'gone', 1.0, 2.0)")
    connection.execute(
        "INSERT INTO request VALUES (1, 1, 'learn', 'answered', 1.0, 2.0, 'law', 0, NULL, NULL, "
        f"NULL, 0, 0, 2, NULL, {cost})"
    )
    ledger_file.write_block(connection, question, ENDING.laws(TWO), 1, ENDING.spec)
    connection.close()


def test_version_1_is_brought_to_this_version(path, monkeypatch):
    old_ledger(path, monkeypatch)
    with pytest.raises(InputError, match="is a ledger of version 1; run `myna ledger compact"):
        open_replay(path)
    teacher = Counting(ENDING)
    with Ledger(teacher, file=path, job="learn") as ledger:
        assert torch.equal(ledger.laws("learn").laws(TWO), ENDING.laws(TWO))
        assert teacher.asked == [] and ledger.paid() == Account(), "no job's is this job's"
    with Ledger(teacher, file=path) as ledger:
        assert ledger.paid() == Account(next_token_queries=2, tokens_sent=3)
    assert verify(path).problems == () and summarise(path).version == 2
    assert torch.equal(open_replay(path).laws(TWO), ENDING.laws(TWO))


def test_compact_migrates_as_well(path, monkeypatch):
    old_ledger(path, monkeypatch)
    compact(path)
    assert verify(path).problems == ()
    assert torch.equal(open_replay(path).laws(TWO), ENDING.laws(TWO))


def test_a_ledger_facing_a_teacher_takes_repeated_and_no_prefixes(path):
    teacher = Counting(ENDING)
    file = LedgerFile(path, teacher, Budget(), "")
    facing = file.facing("learn")
    none, twice = Prefixes.of([]), Prefixes.of([[0], [], [0]])
    assert facing.laws(none).shape == (0, 3) and facing.top_laws(none).tokens.shape == (0, 3)
    assert torch.equal(facing.laws(twice), ENDING.laws(twice))
    assert equal(facing.top_laws(twice), ENDING.top_laws(twice))
    assert len(teacher.asked) == 4 and file.spent().next_token_queries == 4
    file.close()


def processes(*arguments):
    """What `ledger_runs` found."""
    command = [sys.executable, str(Path(__file__).with_name("ledger_runs.py"))]
    done = subprocess.run(
        command + [str(part) for part in arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_runs_resume_to_the_same_student(tmp_path):
    """kill -9 at six random moments of two runs."""
    found = processes("crash", tmp_path / "f", 1, 2)
    assert found["killed"] >= 4 and found["whole"] > 300
    assert found["identical"] == found["sound"] == found["runs"] == 2 and found["missing"] == 0
    assert found["recorded_asked_again"] == found["unexplained"] == 0
    assert found["lost_beyond_kills"] == 0


def test_processes_share_one_budget(tmp_path):
    """Four processes on one new file, of which one is killed; 120 laws may be asked."""
    found = processes("shared", tmp_path / "f", 1, 4, 120)
    assert found["failed"] == 0 and found["sound"] and found["ended"] == 3
    assert found["looks"] > 3 and found["most_seen_spent"] <= 120
    assert 118 <= found["spent"] <= 120, "a request of three laws is refused whole"
    assert found["asked"] <= found["spent"]
    assert found["asked"] - found["distinct"] <= found["unanswered"]
    assert found["spent"] - found["distinct"] <= found["unanswered"]
