"""Learning over a server, ended by kill -9 at random moments and resumed from its ledger.

    python bench/ledger_crashes.py [--runs 50] [--access laws|samples]

The server is deterministic in (prompt, seed). A run is killed at a moment uniform over the
time that an uninterrupted one takes, and started again until it ends. Counted at the server
and in the file, for each run:

    identical       the copy's file is that of the uninterrupted run, byte for byte
    asked_again     questions whose answer was on the disk when the run was killed, and which
                    the server was asked after that
    (from samples, what was in flight counts as spent, so a run that uses up its budget may
    have to stop earlier, with another copy)
    repeated        questions that the server was asked twice at all: those in flight
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from results import save

from myna.teachers.endpoint import draw_seed
from myna.teachers.ledger_export import export
from myna.teachers.oracle import Stream
from myna.teachers.uri import open_teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_model import FakeModel
from server import Line, serving

HORIZON = 8
TEACHER = f"zoo:hmm?states=3&symbols=4&horizon={HORIZON}"
_MYNA = "from myna.app.cli import main; print('ready', flush=True); main()"
_OPTIONS = {"laws": [], "samples": ["--access", "samples", "--budget", "10000"]}
_CONCURRENCY = 4


class Questions(Line):
    """A line that remembers what was asked: each prompt with its seed."""

    def __init__(self):
        super().__init__()
        self.keep = True

    def asked(self, start: int = 0) -> Counter:
        found: Counter = Counter()
        for raw in self.bodies[start:]:
            if raw is None:
                continue
            try:
                body = json.loads(raw)
            except ValueError:  # the client was killed while it was sending
                continue
            prompts = body["prompt"]
            prompts = prompts if isinstance(prompts[0], list) else [prompts]
            found.update(
                (tuple(prompt), body.get("seed"), body["max_tokens"]) for prompt in prompts
            )
        return found


def arguments(access: str, uri: str, folder: Path) -> list[str]:
    learn = ["learn", uri, "-o", str(folder / "copy"), "--ledger", str(folder / "ledger")]
    return [*learn, "--yes", "--overwrite", *_OPTIONS[access]]


def start(words: list[str]) -> subprocess.Popen:
    """A command, once its imports are done."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    child = subprocess.Popen([sys.executable, "-c", _MYNA, *words], **quiet)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "copy" / "model.safetensors").read_bytes()).hexdigest()


def recorded(folder: Path) -> set[tuple[int, ...]]:
    """Kind, prefix, stream, draw and max_tokens of every answer that the file holds."""
    out = folder / "held.jsonl"
    file = folder / "ledger"
    if not file.exists() or not file.stat().st_size:  # killed before it wrote anything
        return set()
    export(file, out, "jsonl")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.unlink()
    return {
        (row["kind"], tuple(row["prefix"]), row["stream"], row.get("draw"), row["max_tokens"])
        for row in rows
    }


def seeds_of(held: set, begin: int, horizon: int) -> set:
    """Recorded answers as the server is asked for them: prompt, seed, max_tokens."""
    return {
        ((begin, *prefix), None, 1)
        if kind == "law"
        else (
            (begin, *prefix),
            draw_seed(prefix, Stream(stream, 0), draw),
            min(limit or horizon, horizon - len(prefix)),
        )
        for kind, prefix, stream, draw, limit in held
    }


def one(access: str, uri: str, line: Questions, begin: int, seconds: float, dice, right: str):
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), len(line.bodies)
        words = arguments(access, uri, folder)
        again, kills = 0, 0
        child = start(words)
        time.sleep(dice.random() * seconds)
        if child.poll() is None:
            child.kill()
            kills = 1
        child.wait()
        time.sleep(0.3)  # what is in flight arrives at the server
        before = len(line.bodies)
        held = seeds_of(recorded(folder), begin, HORIZON)
        if kills:
            child = start(words)
            assert child.wait() in (0, 1)  # 1: a copy, and fresh answers contradict it
        again = len(held & set(line.asked(before)))
        twice = sum(n - 1 for n in line.asked(first).values())
        same = digest(folder) == right
        return {
            "killed": kills,
            "identical": same,
            "recorded": len(held),
            "asked_again": again,
            "repeated": twice,
        }


def main(runs: int, access: str) -> None:
    teacher, line, dice = open_teacher(TEACHER), Questions(), random.Random(0)
    model = FakeModel(teacher)
    with serving(model, line) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"openai:fake?base_url={url}&concurrency={_CONCURRENCY}&batch=8"
        probe = ["probe", uri, "-o", str(folder / "probe.json")]
        start(probe).wait()
        uri += f"&probe={folder / 'probe.json'}"
        child = start(arguments(access, uri, folder))
        began = time.perf_counter()
        assert child.wait() in (0, 1)
        seconds = time.perf_counter() - began
        right, questions = digest(folder), len(seeds_of(recorded(folder), model.begin, HORIZON))
        rows = []
        while sum(row["killed"] for row in rows) < runs:  # some end before their moment
            rows.append(one(access, uri, line, model.begin, seconds, dice, right))
            print(len(rows), rows[-1], flush=True)
    record = {
        "teacher": TEACHER,
        "access": access,
        "seconds_uninterrupted": seconds,
        "questions_uninterrupted": questions,
        "in_flight_at_most": _CONCURRENCY * (8 if access == "laws" else 1),
        "runs": len(rows),
        "killed": sum(row["killed"] for row in rows),
        "identical": sum(row["identical"] for row in rows),
        "asked_again": sum(row["asked_again"] for row in rows),
        "repeated_most": max(row["repeated"] for row in rows),
        "rows": rows,
    }
    print({key: value for key, value in record.items() if key != "rows"})
    save(f"ledger_crashes.{access}", record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=50, help="killed runs")
    parser.add_argument("--access", choices=list(_OPTIONS), default="laws")
    given = parser.parse_args()
    main(given.runs, given.access)
