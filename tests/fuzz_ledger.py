"""Files that are nearly ledgers, and what opening them may do: a right answer or a refusal.

    python fuzz_ledger.py FOLDER FIRST COUNT     for the bench; one JSON object

Bytes are flipped, copied, zeroed and cut; rows are given other values; tables, indexes and
triggers are added. Whatever is done, an answer that comes is the teacher's own, and what
cannot be read is named by `verify`.
"""

import contextlib
import json
import random
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from myna.errors import BudgetExhausted, FormatError, MynaError, TeacherError
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.ledger_compact import compact
from myna.teachers.ledger_export import export
from myna.teachers.ledger_replay import open_replay
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

TEACHER = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
_ROWS = [[a, b] for a in range(3) for b in range(3)]
HALVES = [Prefixes.of(_ROWS[:5]), Prefixes.of(_ROWS[5:])]
WHOLE = Prefixes.of(_ROWS)
STREAM = Stream("learn", 0)
_ALL = Prefixes.of([[a, b, c] for a in range(3) for b in range(3) for c in range(3)])

_VALUES = (
    "NULL",
    "0",
    "-1",
    "1",
    "3",
    "7",
    "9223372036854775807",
    "-9223372036854775808",
    "4294967296",
    "1e300",
    "9e999",
    "0.5",
    "''",
    "'x'",
    "'open'",
    "'answered'",
    "'law'",
    "'top'",
    "'draw'",
    "'[[1, 5]]'",
    "'[[1, 99999999999999]]'",
    "'[[1, -5]]'",
    "'[[[1]]]'",
    "CAST(replace(hex(zeroblob(9000)), '00', '[') AS TEXT)",
    "CAST(x'ff' AS TEXT)",
    "x''",
    "x'00'",
    "zeroblob(16)",
    "zeroblob(100000)",
    "randomblob(40)",
)
_SCHEMA = (
    "CREATE TRIGGER t AFTER INSERT ON request BEGIN DELETE FROM block; END",
    "CREATE TABLE more (x)",
    "CREATE VIEW v AS SELECT * FROM block",
    "CREATE INDEX i ON block (kind)",
    "ALTER TABLE block ADD COLUMN x",
    "DROP TABLE spent",
    "DROP INDEX request_open",
    "DELETE FROM meta",
    "DELETE FROM block",
    "DELETE FROM request",
    "DELETE FROM owner",
    "DELETE FROM spent",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = -5",
    "PRAGMA application_id = 7",
    "UPDATE block SET keys = zeroblob(1000000), prefixes = 250000",
    "UPDATE block SET prefixes = 4611686018427387904",
    "UPDATE block SET count = 9000000000000, first_draw = 0",
    "UPDATE block SET body = (SELECT body FROM block AS b WHERE b.id <> block.id LIMIT 1)",
    "UPDATE block SET (body, body_hash) = (SELECT body, body_hash FROM block AS b "
    "WHERE b.kind = block.kind AND b.id <> block.id LIMIT 1)",
    "UPDATE block SET (keys, keys_hash) = (SELECT keys, keys_hash FROM block AS b "
    "WHERE b.kind = block.kind AND b.id <> block.id LIMIT 1)",
    "UPDATE meta SET value = replace(value, '\"1\"', '\"x\"')",
    "UPDATE meta SET value = 'x'",
    "INSERT INTO block SELECT NULL, kind, k, stream, seed, max_tokens, first_draw, count, "
    "prefixes, sources, keys, keys_hash, body, body_hash FROM block",
)


def good(path):
    """A small ledger with every kind of answer, a failed request and two jobs, as bytes."""
    for job, half in zip(("learn", "certify"), HALVES, strict=True):
        with Ledger(TEACHER, file=path, job=job) as ledger:
            ledger.laws("learn").laws(half)
            ledger.top_laws("learn").top_laws(half)
            ledger.samples("learn").complete(half, 6)
            ledger.samples("learn").complete(half, 2, max_tokens=1)
    with Ledger(_Dead(), file=path) as ledger, contextlib.suppress(TeacherError):
        ledger.laws("dead").laws(Prefixes.of([[]]))
    with Ledger(TEACHER, file=path) as ledger:
        ledger.laws("large").laws(_ALL)
    return path.read_bytes()


class _Dead:
    """A teacher that gives no answer."""

    spec, k = TEACHER.spec, TEACHER.k

    def laws(self, prefixes):
        raise TeacherError("no answer")

    complete = top_laws = laws


def nearly(seed, whole, path):
    """Write a file near a ledger."""
    random_ = random.Random(seed)
    if random_.random() < 0.5:
        path.write_bytes(_bytes_changed(whole, random_))
        return
    path.write_bytes(whole)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        with contextlib.suppress(sqlite3.Error):
            connection.execute(_statement(connection, random_))
    connection.close()


def _bytes_changed(whole, random_):
    data = bytearray(whole)
    for _ in range(random_.choice((1, 1, 1, 2, 8, 64))):
        at, size = random_.randrange(len(data)), random_.choice((1, 1, 1, 4, 100, 4096))
        size = min(size, len(data) - at)
        kind = random_.random()
        if kind < 0.5:
            data[at] ^= 1 << random_.randrange(8)
        elif kind < 0.7:
            data[at : at + size] = random_.randbytes(size)
        elif kind < 0.8:
            data[at : at + size] = bytes(size)
        elif kind < 0.95:
            source = random_.randrange(len(data) - size + 1)
            if size == 4096:  # a page in the place of another
                at, source = at // 4096 * 4096, source // 4096 * 4096
            data[at : at + size] = data[source : source + size]
        else:
            del data[at:]
            data = data or bytearray(b"\0")
    return bytes(data)


def _statement(connection, random_):
    if random_.random() < 0.3:
        return random_.choice(_SCHEMA)
    table = random_.choice(("block", "block", "request", "spent", "meta", "owner"))
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    if not columns:  # an earlier statement dropped the table
        return "SELECT 1"
    column, value = random_.choice(columns), random_.choice(_VALUES)
    one = f" WHERE rowid = {random_.randint(1, 8)}" if random_.random() < 0.6 else ""
    return f"UPDATE OR IGNORE {table} SET {column} = {value}{one}"


def survive(path, thorough):
    """Open and read as everything does; whether all answers came.

    Anything but a right answer or a refusal is raised: that is what a fuzzer looks for.
    """
    whole = _replayed(path)
    problems = _refused(lambda: verify(path).problems)
    if whole != 4 and problems == ():
        gone = sqlite3.connect(path).execute("SELECT COUNT(*) FROM block").fetchone()[0] < 9
        assert gone, "something cannot be read and verify did not find it"
    _refused(lambda: summarise(path))
    if thorough:
        out = path.with_suffix(".jsonl")
        _refused(lambda: export(path, out, "jsonl"))
        if out.exists():
            for line in out.read_text().splitlines():
                json.loads(line)
            out.unlink()
        if _refused(lambda: _asked(path)) and not problems:
            assert not verify(path).problems
        _refused(lambda: compact(path))
        assert _replayed(path) >= 0
    return whole == 4


def _refused(action):
    """What comes, or None where it is refused in one sentence."""
    try:
        return action()
    except MynaError as error:
        assert str(error) and "\n" not in str(error)
        return None


def _replayed(path):
    """How many of four answers are there; each that is, is the teacher's."""
    try:
        teacher = open_replay(path)
    except MynaError:
        return 0
    questions = (
        lambda t: (t.laws(WHOLE),),
        lambda t: t.top_laws(WHOLE),
        lambda t: t.complete(WHOLE, 6, stream=STREAM),
        lambda t: t.complete(WHOLE, 2, stream=STREAM, max_tokens=1),
    )
    assert teacher.spec.alphabet == TEACHER.spec.alphabet
    found = 0
    for question in questions:
        try:
            answer = question(teacher)
        except (FormatError, TeacherError, AttributeError) as error:
            if isinstance(error, AttributeError):  # less was recorded: no such level
                assert "object has no attribute" in str(error)
            continue
        pairs = zip(answer, question(TEACHER), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "a wrong answer"
        found += 1
    return found


def _asked(path):
    """Go on with the file as a run does: every answer is right."""
    with Ledger(TEACHER, Budget(queries=10**6), file=path, job="learn") as ledger:
        try:
            laws = ledger.laws("learn").laws(WHOLE)
            top = ledger.top_laws("learn").top_laws(WHOLE)
            drawn = ledger.samples("learn").complete(WHOLE, 7)
        except BudgetExhausted:  # a damaged price
            return False
        ledger.paid()
    assert torch.equal(laws, TEACHER.laws(WHOLE))
    assert torch.equal(top.log_probs, TEACHER.top_laws(WHOLE).log_probs)
    assert torch.equal(drawn.tokens, TEACHER.complete(WHOLE, 7, stream=STREAM).tokens)
    return True


def fuzz(folder, first, count, thorough=4):
    """Many seeds; every `thorough`-th is also exported, gone on with and compacted."""
    whole, path, found = good(folder / "good.ledger"), folder / "near.ledger", Counter()
    started = time.monotonic()
    for seed in range(first, first + count):
        for old in folder.glob("near.*"):
            old.unlink()
        nearly(seed, whole, path)
        try:
            found["whole"] += survive(path, seed % thorough == 0)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        found["inputs"] += 1
    return {**found, "bytes": len(whole), "seconds": time.monotonic() - started}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, *numbers = sys.argv[1:]
    Path(place).mkdir(exist_ok=True)
    print(json.dumps(fuzz(Path(place), *map(int, numbers))))
