"""`--ledger`, `replay:` and `myna ledger`: nothing is paid twice, and every form holds the same."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pyarrow.parquet as pq
import pytest
import torch
from counting import Counting
from fake_model import FakeModel
from server import Line, serving

from myna.app.cli import main
from myna.errors import TeacherError
from myna.teachers.ledger import Account, Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.ledger_replay import open_replay
from myna.teachers.oracle import Laws, Stream, TopLaws, as_top_k
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

PARITY = "zoo:parity?bits=3"
SMALL = "zoo:hmm?states=2&symbols=2&horizon=3"
TEACHER = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
TWO, THREE = Prefixes.of([[0], [1, 2]]), Prefixes.of([[2], [], [0, 0, 1]])


@pytest.fixture
def myna(monkeypatch, capsys):
    """The command in this process: its status, standard output and standard error."""

    monkeypatch.setenv("COLUMNS", "300")  # no table is folded

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["myna", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def path(tmp_path):
    """A ledger with every kind of answer, in several blocks, of two jobs."""
    path = tmp_path / "l.ledger"
    copying = open_teacher("zoo:copy?n=3&k=2")
    with Ledger(TEACHER, file=path, job="learn") as ledger:
        for part in (TWO, THREE):
            ledger.laws("learn").laws(part)
            ledger.samples("learn").complete(part, 3, first_draw=2)
    with Ledger(as_top_k(TEACHER, 2), file=path, job="certify") as ledger:
        ledger.top_laws("[b]certify").top_laws(TWO)
        ledger.samples("learn").complete(TWO, 2, max_tokens=1, stream=Stream("x", 2**63))
    assert copying.spec != TEACHER.spec
    return path


def copies(folder):
    """What a saved copy is, its provenance aside; and that."""
    model = json.loads((folder / "model.json").read_text())
    about = model.pop("about")
    return (folder / "model.safetensors").read_bytes(), model, about


def without_time(report):
    """A report, the clock aside."""
    return {key: value for key, value in report.items() if key not in ("seconds", "stages")}


ACCESSES = {
    "laws": ["--seed", "3"],
    "samples": ["--access", "samples", "--budget", "4000", "--seed", "3"],
}


@pytest.mark.parametrize("options", ACCESSES.values(), ids=ACCESSES)
def test_learning_again_pays_nothing_and_gives_the_same_copy(myna, tmp_path, options):
    """Without a ledger, with a new one, with a full one, and from it alone."""
    path, found = tmp_path / "l.ledger", []
    kept, spent = ["--ledger", path], []
    for name, teacher, also in (
        ("plain", SMALL, []),
        ("first", SMALL, kept),
        ("again", SMALL, kept),
        ("replay", f"replay:{path}", []),
    ):
        if name == "plain" and "samples" in options:
            continue  # the slow one
        out = tmp_path / name
        status, printed, _ = myna("learn", teacher, "-o", out, *options, *also, "--json")
        record = json.loads(printed)
        assert status in (0, 1) and record.pop("teacher") == teacher
        assert record.pop("student") == str(out)
        tensors, model, about = copies(out)
        assert about["teacher"] == teacher
        report = without_time(about["report"])
        found.append((status, without_time(record), tensors, model, report, about["settings"]))
        if also:
            spent.append(summarise(path).spending)
    assert all(run == found[0] for run in found[1:])
    assert spent[0] == spent[1] and {line.job for line in spent[0]} == {"learn"}
    assert verify(path).problems == ()


def test_certifying_keeps_a_budget_of_its_own(myna, tmp_path):
    path, copy = tmp_path / "l.ledger", tmp_path / "copy"
    myna("learn", PARITY, "-o", copy, "--ledger", path)
    printed = [
        json.loads(myna("certify", copy, teacher, *also, "--json")[1])
        for teacher, also in (
            (PARITY, []),
            (PARITY, ["--ledger", path, "--budget", 60]),
            (PARITY, ["--ledger", path, "--budget", 60]),
            (f"replay:{path}", []),
        )
    ]
    for record in printed:
        record.pop("teacher")
    assert printed[0] == printed[1] == printed[2] == printed[3]
    sums = {}
    for line in summarise(path).spending:
        sums[line.job] = sums.get(line.job, Account()) + line.spent
    assert set(sums) <= {"learn", "certify"} and sums["learn"].next_token_queries > 0
    status, _, told = myna("certify", copy, PARITY, "--ledger", path, "--budget", 1, "--seed", 9)
    assert status == 1 and "the budget is 1 next-token queries" in told


def test_a_budget_covers_all_that_was_spent(myna, tmp_path):
    """The second run has other questions, and the first has spent the budget."""
    path = tmp_path / "l.ledger"
    command = ("learn", "zoo:hmm?states=3&symbols=3&horizon=6", "--ledger", path, "--budget", 300)
    myna(*command, "-o", tmp_path / "a")
    first = summarise(path).spending
    _, printed, _ = myna(*command, "-o", tmp_path / "b", "--seed", 8)
    assert sum(line.spent.next_token_queries for line in summarise(path).spending) <= 300
    assert sum(line.spent.next_token_queries for line in first) > 150
    assert "budget" in printed


def test_replay_says_what_was_not_recorded(myna, tmp_path, path):
    status, _, told = myna("learn", f"replay:{path}", "-o", tmp_path / "copy")
    assert status == 2 and not (tmp_path / "copy").exists()
    assert "holds no law after prefix [" in told and "replay with the options and the seed" in told
    teacher = open_replay(path)
    assert isinstance(teacher, Laws) and teacher.spec == TEACHER.spec
    with pytest.raises(
        TeacherError, match=r"no draw 0 on stream 'learn' seed 0 after prefix \[0\]"
    ):
        teacher.complete(TWO, 3, stream=Stream("learn", 0))
    with pytest.raises(TeacherError, match=r"no draw 2 of at most 2 tokens on stream"):
        teacher.complete(TWO, 3, stream=Stream("learn", 0), first_draw=2, max_tokens=2)
    assert torch.equal(teacher.top_laws(TWO).log_probs, TEACHER.top_laws(TWO).log_probs)
    status, _, told = myna("info", f"replay:{tmp_path / 'none'}")
    assert status == 2 and "there is no ledger" in told


def test_replay_has_the_level_that_was_recorded(tmp_path):
    path = tmp_path / "l.ledger"
    with Ledger(as_top_k(TEACHER, 2), file=path) as ledger:
        ledger.samples("learn").complete(TWO, 1)
        assert not isinstance(open_replay(path), TopLaws)
        ledger.top_laws("learn").top_laws(TWO)
    teacher = open_replay(path)
    assert isinstance(teacher, TopLaws) and not isinstance(teacher, Laws) and teacher.k == 2
    shown = as_top_k(TEACHER, 2).top_laws(TWO)
    assert all(torch.equal(a, b) for a, b in zip(teacher.top_laws(TWO), shown, strict=True))
    assert teacher.top_laws(Prefixes.of([])).tokens.shape == (0, 2)
    with pytest.raises(TeacherError, match=r"holds no top-2 law after prefix \[\]"):
        teacher.top_laws(Prefixes.of([[]]))


def test_show_tells_people_and_programs(myna, path):
    status, printed, _ = myna("ledger", "show", path)
    assert status == 0
    for text in ("learn", "certify", "[b]certify", "5 laws, 2 top laws, 19 draws", "4 answered"):
        assert text in printed, text
    assert "no process" in printed and TEACHER.spec.fingerprint[:12] in printed
    record = json.loads(myna("ledger", "show", path, "--json")[1])
    assert record["answers"] == {"laws": 5, "top_laws": 2, "draws": 19}
    assert record["version"] == 2 and record["running"] == [] and record["bytes"] > 4096
    assert record["spec"]["horizon"] == 6 and record["started"] <= record["ended"]
    learn = next(line for line in record["spending"] if line["job"] == "learn")
    assert learn["requests"] == {"answered": 4} and learn["unanswered"]["completions"] == 0
    sent = 3 + 4
    assert learn["spent"]["next_token_queries"] == 5
    assert learn["spent"]["tokens_sent"] == sent + 3 * sent
    assert learn["spent"]["tokens_received"] == 3 * (5 * 6 - sent)


def test_show_tells_what_is_lost_and_who_runs(myna, path):
    with Ledger(Counting(TEACHER, fail=[("law", (1,))]), file=path, job="learn") as ledger:
        with pytest.raises(TeacherError):
            ledger.laws("learn").laws(Prefixes.of([[1]]))
        printed = myna("ledger", "show", path)[1]
        assert f"process {os.getpid()}" in printed
        assert "1 failed" in printed and "1 queries, 1 tokens sent" in printed
        status, _, told = myna("ledger", "compact", path)
        assert status == 2 and f"process {os.getpid()} has the ledger" in told


def test_verify_has_an_exit_status(myna, path):
    status, printed, _ = myna("ledger", "verify", path)
    assert status == 0 and "0 problems in 6 blocks, 26 answers, 6 requests" in printed
    record = json.loads(myna("ledger", "verify", path, "--json")[1])
    assert record["sound"] is True and record["answers"] == 26 and record["problems"] == []
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE spent SET tokens_sent = 3 WHERE job = 'learn'")
        connection.execute("UPDATE block SET sources = '[[1, 1]]' WHERE id = 1")
        connection.execute("UPDATE block SET sources = '[[99, 3]]' WHERE id = 3")
        connection.commit()
    status, printed, _ = myna("ledger", "verify", path)
    assert status == 1 and "3 problems" in printed
    assert "tokens_sent of its requests add up to 28 and 3 are counted as spent" in printed
    assert "block 1: its sources do not add up" in printed
    assert "request 99 (absent) asked for 0 answers and 3 are stored" in printed
    record = json.loads(myna("ledger", "verify", path, "--json")[1])
    assert record["sound"] is False and len(record["problems"]) == 3


@pytest.mark.parametrize("command", ["show", "verify", "compact"])
def test_what_is_no_ledger_ends_with_status_2(myna, tmp_path, command):
    status, printed, told = myna("ledger", command, tmp_path / "none", "--json")
    assert status == 2 and "there is no ledger" in json.loads(printed)["error"] and told
    (tmp_path / "text").write_text("no ledger at all")
    assert myna("ledger", command, tmp_path / "text")[0] == 2


def expected_rows():
    """Every answer of the fixture, by the teacher itself."""
    rows = []
    for part in (TWO, THREE):
        laws = TEACHER.laws(part).tolist()
        for prefix, law in zip(part.rows(), laws, strict=True):
            rows.append(("law", "learn", prefix, None, None, None, law))
        rows += _draws(part, Stream("learn", 0), 3, 2, None, "learn")
    top = as_top_k(TEACHER, 2).top_laws(TWO)
    for i, prefix in enumerate(TWO.rows()):
        rest = (float(top.log_rest[i]),)
        named = ("top", "certify", prefix, None, None)
        rows.append((*named, tuple(top.tokens[i].tolist()), [*top.log_probs[i].tolist(), *rest]))
    rows += _draws(TWO, Stream("x", 2**63), 2, 0, 1, "certify")
    return sorted(rows, key=repr)


def _draws(prefixes, stream, count, first, max_tokens, job):
    drawn = TEACHER.complete(
        prefixes, count, stream=stream, first_draw=first, max_tokens=max_tokens
    )
    for i, prefix in enumerate(prefixes.rows()):
        for j in range(count):
            tokens = tuple(drawn.tokens[i, j, : drawn.lengths[i, j]].tolist())
            yield ("draw", job, prefix, (stream.purpose, stream.seed), first + j, tokens, None)


def exported(rows):
    """Rows of an export, as `expected_rows` has them."""
    found = []
    for row in rows:
        numbers = row.get("log_probs")
        if row["kind"] == "top":
            numbers = [*numbers, row["log_rest"]]
        stream = None if row["stream"] is None else (row["stream"], int(row["seed"]))
        tokens = None if row.get("tokens") is None else tuple(row["tokens"])
        prefix = tuple(row["prefix"])
        found.append((row["kind"], row["job"], prefix, stream, row.get("draw"), tokens, numbers))
        assert row["k"] == (2 if row["kind"] == "top" else None)
        assert row["request"] >= 1 and 0 < row["started"] <= row["ended"]
        assert row["purpose"] == ("[b]certify" if row["kind"] == "top" else "learn")
    return sorted(found, key=repr)


@pytest.mark.parametrize("packed", [False, True])
def test_exports_hold_every_answer(myna, path, tmp_path, packed):
    """Read back and equal to the teacher's own, also after compacting."""
    if packed:
        assert myna("ledger", "compact", path)[0] == 0
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    assert "26 answers written to" in myna("ledger", "export", path, "-o", lines)[1]
    record = json.loads(myna("ledger", "export", path, "-o", table, "--json")[1])
    assert record["answers"] == 26 and record["format"] == "parquet"
    expected = expected_rows()
    assert exported(map(json.loads, lines.read_text().splitlines())) == expected
    assert exported(pq.read_table(table).to_pylist()) == expected
    before = lines.read_bytes()
    status, _, told = myna("ledger", "export", path, "-o", lines)
    assert status == 2 and "exists, and an export replaces nothing" in told
    assert lines.read_bytes() == before
    status, _, told = myna("ledger", "export", path, "-o", tmp_path / "none" / "x.jsonl")
    assert status == 2 and "none of the export does not exist" in told
    status, _, told = myna("ledger", "export", path, "-o", tmp_path / "x.csv")
    assert status == 2 and "ends in .jsonl or .parquet" in told
    assert not (tmp_path / "x.csv").exists()
    other = tmp_path / "other"
    assert myna("ledger", "export", path, "-o", other, "--format", "parquet")[0] == 0
    assert pq.read_table(other).num_rows == 26


def test_impossible_tokens_are_null_or_infinite(myna, tmp_path):
    path = tmp_path / "l.ledger"
    copying = open_teacher("zoo:copy?n=3&k=2")
    prefixes = Prefixes.of([[0, 0, 0]])
    with Ledger(copying, file=path) as ledger:
        law = ledger.laws("learn").laws(prefixes)[0].tolist()
    assert -math.inf in law
    myna("ledger", "export", path, "-o", tmp_path / "r.jsonl")
    myna("ledger", "export", path, "-o", tmp_path / "r.parquet")
    (row,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert row["log_probs"] == [None if value == -math.inf else value for value in law]
    assert pq.read_table(tmp_path / "r.parquet").to_pylist()[0]["log_probs"] == law


def test_compact_keeps_every_answer_and_its_source(myna, tmp_path):
    """Thirty small blocks of three settings become three; prices and times stay."""
    path, teacher = tmp_path / "l.ledger", Counting(TEACHER)
    rows = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
    with Ledger(teacher, file=path) as ledger:
        for i in range(0, 27, 3):
            part = Prefixes.of(rows[i : i + 3])
            ledger.laws(f"p{i % 2}").laws(part)
            ledger.top_laws("top").top_laws(part)
            ledger.samples("learn").complete(part, 2)
        ledger.samples("learn").complete(Prefixes.of(rows[:2]), 5)  # other draws: apart
    asked = len(teacher.asked)
    myna("ledger", "export", path, "-o", tmp_path / "before.jsonl")
    spending = summarise(path).spending
    record = json.loads(myna("ledger", "compact", path, "--json")[1])
    assert (record["blocks_before"], record["blocks_after"]) == (28, 4)
    assert record["bytes_after"] < record["bytes_before"]
    assert summarise(path).spending == spending and verify(path).problems == ()
    myna("ledger", "export", path, "-o", tmp_path / "after.jsonl")
    before, after = (
        sorted((tmp_path / name).read_text().splitlines())
        for name in ("before.jsonl", "after.jsonl")
    )
    assert before == after, "sources, prices and times included"
    with Ledger(teacher, file=path) as ledger:
        whole = Prefixes.of(rows)
        assert torch.equal(ledger.laws("x").laws(whole), TEACHER.laws(whole))
        assert torch.equal(
            ledger.samples("learn").complete(whole, 2).tokens,
            TEACHER.complete(whole, 2, stream=Stream("learn", 0)).tokens,
        )
        ledger.top_laws("x").top_laws(whole)
    assert len(teacher.asked) == asked
    again = json.loads(myna("ledger", "compact", path, "--json")[1])
    assert again["blocks_before"] == again["blocks_after"] == 4


def test_compact_brings_back_a_long_log(myna, path):
    """A run that was killed leaves its log beside the file."""
    assert myna("ledger", "compact", path)[1].startswith("6 blocks in")
    log = path.with_name(path.name + "-wal")
    assert not log.exists() or log.stat().st_size == 0


# several commands in one process
COMMANDS = """
import json, sys
from myna.app.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["myna", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""
SECRET = "sk-test-4b1dfe11-never-to-be-seen"


def test_an_endpoints_key_is_in_no_ledger(tmp_path, monkeypatch):
    """Every file that a run leaves and every line that it prints is searched, logs and all."""
    environment = {**os.environ, "OPENAI_API_KEY": SECRET, "OPENAI_LOG": "debug"}
    line, path, out = Line(), tmp_path / "l.ledger", tmp_path / "copy"
    line.keep = True
    with serving(FakeModel(open_teacher("zoo:parity?bits=3")), line, api_key=SECRET) as url:
        uri, probe = f"openai:fake?base_url={url}", tmp_path / "probe.json"
        probed = f"{uri}&probe={probe}"
        commands = [
            ["probe", uri, "-o", str(probe), "--json"],
            ["learn", probed, "-o", str(out), "--ledger", str(path), "--json"],
            ["learn", probed, "-o", str(out), "--ledger", str(path), "--overwrite"],
        ]
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        paid = summarise(path).spending
        with closing(sqlite3.connect(path)) as held:  # the log stays as long as this is open
            held.execute("SELECT 1 FROM block").fetchone()
            monkeypatch.setenv("OPENAI_API_KEY", SECRET)
            with Ledger(open_teacher(probed), file=path) as ledger:
                ledger.samples("more").complete(Prefixes.of([[0, 1]]), 1)
                logged = path.with_name(path.name + "-wal").read_bytes()
    assert done.returncode == 0, done.stderr
    assert any(f"Bearer {SECRET}" in headers.values() for headers in line.headers)
    assert sum(part.spent.next_token_queries for part in paid) > 5
    printed = done.stdout + done.stderr
    assert "verified" in printed
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    kept[path.with_name("log")] = logged
    assert logged and out / "model.json" in kept
    assert SECRET[3:] not in printed and not any(SECRET[3:].encode() in d for d in kept.values())
