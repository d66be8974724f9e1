"""A ledger's file that is full, read-only, locked, damaged or no ledger: one clear sentence."""

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import fuzz_ledger
import pytest
import torch
from counting import Counting

from myna.errors import FormatError, LedgerError, MynaError, TeacherError
from myna.teachers import ledger_schema
from myna.teachers.ledger import Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.ledger_blocks import COLUMNS, hashed
from myna.teachers.ledger_compact import compact
from myna.teachers.ledger_export import export
from myna.teachers.ledger_replay import ReplayTopLaws, open_replay
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

TEACHER = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
TWO = Prefixes.of([[0], [1, 2]])
WRITING = (lambda p: Ledger(TEACHER, file=p), compact)
EVERYTHING = (summarise, verify, open_replay, compact, WRITING[0])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "l.ledger"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good ledger."""
    return fuzz_ledger.good(tmp_path_factory.mktemp("good") / "l.ledger")


def refused(path, sentence, actions=EVERYTHING):
    for action in actions:
        with pytest.raises(MynaError, match=sentence) as found:
            action(path)
        assert "\n" not in str(found.value)


@contextlib.contextmanager
def limited(*_):
    """No file may grow beyond 400,000 bytes, as on a disk that fills."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder, mounted):
    """A file system of 300,000 bytes that grows at the end, and goes when `mounted` does."""
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,size=10m", str(folder)], check=True)


@pytest.mark.parametrize("full", [limited, small_disk])
def test_a_full_disk_loses_nothing(full):
    """The run ends with one sentence; with room again, it goes on from what is there."""
    teacher, answered = Counting(TEACHER), 0
    rows = [[a, b, c, d] for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
    with contextlib.ExitStack() as mounted:
        folder = Path(mounted.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "l.ledger"
        with full(folder, mounted):
            ledger = Ledger(teacher, file=path)
            with pytest.raises(LedgerError, match=r"could not be written .*disk full\? Make room"):
                for row in rows:
                    ledger.laws("learn").laws(Prefixes.of([row]))
                    answered += 1
            assert 3 < answered < len(rows)
            in_flight = len(teacher.asked) - answered
            assert in_flight in (0, 1), "refused before asking, or asked and not written"
            held = Prefixes.of(rows[:answered])
            assert torch.equal(open_replay(path).laws(held), TEACHER.laws(held))
        whole = ledger.laws("again").laws(Prefixes.of(rows))
        assert torch.equal(whole, TEACHER.laws(Prefixes.of(rows)))
        ledger.close()
        assert len(teacher.asked) == len(rows) + in_flight
        assert verify(path).problems == ()
        last = Counting(TEACHER)
        with Ledger(last, file=path) as again:
            again.laws("last").laws(Prefixes.of(rows))
        assert last.asked == []


def test_a_read_only_file_is_named(path):
    """What cannot be written can be read: as root, by giving root's rights up for a while."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "l.ledger"
    with Ledger(TEACHER, file=path) as ledger:
        ledger.laws("learn").laws(TWO)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        with _nobody():
            refused(path, r"is read-only; make it and its folder writable, or use replay:", WRITING)
            assert torch.equal(open_replay(path).laws(TWO), TEACHER.laws(TWO))
            assert verify(path).problems == () and summarise(path).answers["laws"] == 2
            new = folder / "new.ledger"
            refused(new, "cannot be opened; check the path and its rights", WRITING[:1])
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _nobody():
    """Without root's rights, where this is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_another_program_locks_is_named(path, monkeypatch):
    with Ledger(TEACHER, file=path) as ledger:
        ledger.laws("learn").laws(TWO)
    monkeypatch.setattr(ledger_schema, "_PATIENCE", 0.6)
    teacher = Counting(TEACHER)
    with Ledger(teacher, file=path) as ledger, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"locked by another program for 1 s; end that"):
            ledger.laws("learn").laws(Prefixes.of([[2]]))
        assert teacher.asked == []
        refused(path, "locked by another program", WRITING)
        assert torch.equal(open_replay(path).laws(TWO), TEACHER.laws(TWO)), "reading goes on"
        assert torch.equal(ledger.laws("learn").laws(TWO), TEACHER.laws(TWO))
        other.execute("ROLLBACK")
        ledger.laws("learn").laws(Prefixes.of([[2]]))
        assert teacher.asked == [("law", (2,))]


def test_what_is_no_ledger_is_refused_and_stays(path, tmp_path):
    path.write_bytes(b"just some text, long enough to be looked at as a database" * 50)
    refused(path, "is no ledger .not an SQLite database.; name another file")
    assert path.read_bytes().startswith(b"just some text")
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = foreign.read_bytes()
    refused(foreign, "is no ledger of myna .another database.; name another file")
    numbered = tmp_path / "numbered.db"
    with contextlib.closing(sqlite3.connect(numbered)) as connection:
        connection.execute("PRAGMA user_version = 3")
    kept = numbered.read_bytes()
    refused(numbered, "is no ledger of myna")
    assert foreign.read_bytes() == before and numbered.read_bytes() == kept


def test_an_empty_database_is_begun_by_a_run_and_named_otherwise(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    refused(path, "is empty: a run ended before it wrote anything", EVERYTHING[:-1])
    with Ledger(TEACHER, file=path) as ledger:
        ledger.laws("learn").laws(TWO)
    assert verify(path).answers == 2


def test_what_is_no_plain_file_is_refused(path, tmp_path, whole):
    refused(tmp_path, "is no plain file; name the file of a ledger")
    target = tmp_path / "target"
    target.write_bytes(whole)
    path.symlink_to(target)
    refused(path, "is a symbolic link; name the ledger that it points to")
    beside = target.with_name("target-wal")
    beside.symlink_to(tmp_path / "elsewhere")
    refused(target, "target-wal is a symbolic link")
    assert target.read_bytes() == whole and not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no plain file")
    refused(tmp_path / "none" / "l", "does not exist; make it first|there is no ledger")
    refused(target / "l", "cannot be looked at: Not a directory|there is no ledger")
    refused(tmp_path / "absent", "there is no ledger .*; name the file", EVERYTHING[:-1])
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (x)",
        "CREATE VIEW more AS SELECT * FROM block",
        "CREATE INDEX more ON block (kind)",
        "CREATE TRIGGER more AFTER INSERT ON request BEGIN DELETE FROM block; END",
        "ALTER TABLE block ADD COLUMN more",
        "DROP TABLE spent",
    ],
)
def test_a_database_with_more_or_less_than_a_ledger_is_refused(path, whole, statement):
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    refused(path, "does not have the tables of a ledger, or has more; it was changed by another")


def test_a_newer_ledger_is_refused(path, whole):
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    refused(path, r"a ledger of version 3, newer than this myna reads \(2\); use the newer myna")


@pytest.mark.parametrize("part", [0, 60, 4096, 20_000])
def test_a_file_that_was_cut_is_named(path, whole, part):
    """Cut to nothing it is a new ledger; else it is damaged, and says so."""
    path.write_bytes(whole[: len(whole) - part if part else 0])
    if not part:
        refused(path, "is empty", EVERYTHING[:-1])
        return
    assert _problems(path)
    fuzz_ledger.survive(path, thorough=True)


def _problems(path):
    try:
        return verify(path).problems
    except FormatError as error:
        return (str(error),)


DECLARED = {
    "prefixes": "UPDATE block SET prefixes = 4611686018427387904",
    "draws": "UPDATE block SET count = 4294967296 WHERE kind = 'draw'",
    "k": "UPDATE block SET k = 4611686018427387904 WHERE kind = 'top'",
    "lengths": "UPDATE block SET keys = replace(hex(zeroblob(20)), '00', 'ff')",
}


@pytest.mark.parametrize("statement", DECLARED.values(), ids=DECLARED)
@pytest.mark.parametrize("hashed", [False, True])
def test_declared_sizes_take_no_memory(path, whole, statement, hashed):
    """Also where the hashes agree with what is declared, as only an attacker's do."""
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(statement)
        if hashed:
            _hash_again(connection)
        connection.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, hard))
    try:
        assert any("block" in problem for problem in verify(path).problems)
        with pytest.raises(
            (FormatError, TeacherError), match=r"block \d+ of .* is damaged \(|holds no top-3 law"
        ):
            teacher = open_replay(path)
            teacher.complete(fuzz_ledger.WHOLE, 6, stream=Stream("learn", 0))
            teacher.laws(fuzz_ledger.WHOLE)
            ReplayTopLaws.top_laws(teacher, fuzz_ledger.WHOLE)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hash_again(connection):
    query = f"SELECT id, {COLUMNS}, keys, body FROM block"
    for number, *rest in connection.execute(query).fetchall():
        *columns, keys, body = rest
        keys = keys if isinstance(keys, bytes) else keys.encode()
        connection.execute(
            "UPDATE block SET keys = ?, keys_hash = ?, body = ?, body_hash = ? WHERE id = ?",
            (*hashed(tuple(columns), keys, body), number),
        )


def test_a_damaged_block_is_named_and_the_rest_answers(path, whole):
    """Every byte of one law's blob in turn would be too many: some, and both hashes."""
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (body,) = connection.execute("SELECT body FROM block WHERE id = 1").fetchone()
        changed = bytearray(body)
        changed[7] ^= 1
        connection.execute("UPDATE block SET body = ? WHERE id = 1", (bytes(changed),))
        connection.commit()
    first, second = fuzz_ledger.HALVES
    teacher = open_replay(path)
    assert torch.equal(teacher.laws(second), TEACHER.laws(second))
    with pytest.raises(FormatError, match=r"block 1 of the ledger .* nothing of it is used"):
        teacher.laws(first)
    found = verify(path).problems
    assert len(found) == 1 and found[0].startswith("block 1: its answers do not have the hash")
    out = path.with_suffix(".jsonl")
    refused(path, "block 1 .*damaged .*nothing was", (compact, lambda p: export(p, out, "jsonl")))
    assert not out.exists() and list(path.parent.glob(".export-*")) == []


def test_answers_of_other_prefixes_are_refused(path):
    """Two blocks of one setting and size whose answers were exchanged, hashes and all."""
    other = Prefixes.of([[2], [0, 1]])
    with Ledger(TEACHER, file=path) as ledger:
        ledger.laws("learn").laws(TWO)
        ledger.laws("learn").laws(other)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT id, body, body_hash FROM block").fetchall()
        for number, body, body_hash in rows:
            connection.execute(
                "UPDATE block SET body = ?, body_hash = ? WHERE id = ?",
                (body, body_hash, 3 - number),
            )
        connection.commit()
    for prefixes in (TWO, other):
        with pytest.raises(FormatError, match="answers do not have the hash"):
            open_replay(path).laws(prefixes)
    assert len(verify(path).problems) == 2


@pytest.mark.parametrize("seed", [10_672, 23_330])
def test_what_long_runs_of_the_fuzzer_found(seed, tmp_path):
    """A block that is listed and cannot be found; two blocks of one number."""
    assert fuzz_ledger.fuzz(tmp_path, seed, 1, thorough=1)["inputs"] == 1


def test_a_fuzzed_ledger_answers_rightly_or_refuses(tmp_path):
    """A short version of the bench."""
    found = fuzz_ledger.fuzz(tmp_path, 10**6, 60, thorough=6)
    assert found["inputs"] == 60 and 10 < found["whole"] < 55
