"""What a ledger's file costs, and whether budgets and answers survive processes and full disks.

    python bench/ledger.py [--part speed] [--part concurrency] [--part disk]

speed        microseconds an answer, over those of the teacher itself: fresh laws and draws in
             batches of 1,000 prefixes, in memory alone, kept in a file, and read back from it
             by a second opening. Five rounds in turn, the median counts. The teacher answers
             from a table, so that what is left is the ledger.
concurrency  8 processes on one file and one budget, each asking random overlapping prefixes
             until the budget ends: what the file says was spent, what the teachers say they
             were asked (one line an answer, appended to a log), answers asked twice
disk         a file system of 2 MiB that runs full: the sentence, and the ledger afterwards
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from results import save
from torch import Tensor

from myna.errors import BudgetExhausted, LedgerError
from myna.spec import Spec, fingerprint
from myna.teachers.account import Budget
from myna.teachers.ledger import Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.oracle import Completions, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes

_TOKENS, _LENGTH, _BATCH, _BATCHES, _ROUNDS = 16, 12, 1000, 30, 5


class Table:
    """A teacher that answers every prefix alike, and appends what it was asked to a log."""

    def __init__(self, log: Path | None = None, wait: float = 0.0):
        names = tuple(map(str, range(_TOKENS)))
        self.spec = Spec(names, None, _LENGTH, fingerprint("bench table", names))
        self.k, self._log, self._wait = _TOKENS, log, wait
        self._law = torch.full((_TOKENS,), 1.0 / _TOKENS, dtype=torch.float64).log()

    def laws(self, prefixes: Prefixes) -> Tensor:
        if self._log is not None:
            lines = "".join(" ".join(map(str, row)) + "\n" for row in prefixes.rows())
            handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(handle, lines.encode())
            os.close(handle)
            time.sleep(self._wait)
        return self._law.repeat(len(prefixes.lengths), 1)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        return top_of(self.laws(prefixes), self.k)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        n = len(prefixes.lengths)
        lengths = (_LENGTH - prefixes.lengths)[:, None].expand(n, count).contiguous()
        width = int(lengths.max())
        tokens = torch.zeros((n, count, width), dtype=torch.int64)
        tokens[torch.arange(width) >= lengths[:, :, None]] = -1
        return Completions(tokens, lengths)


def batches(seed: int, count: int = _BATCHES) -> list[Prefixes]:
    """Distinct prefixes, of one length a batch, as learners ask them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        rows = torch.randint(_TOKENS, (2 * _BATCH, _LENGTH - 4), generator=generator).unique(dim=0)
        found.append(Prefixes.of(rows[:_BATCH].tolist()))
    return found


def speed() -> None:
    asked = batches(0)
    answers = sum(len(batch.lengths) for batch in asked)
    taken: dict[str, list[float]] = {}

    def timed(name: str, run) -> None:
        began = time.perf_counter()
        for batch in asked:
            run(batch)
        taken.setdefault(name, []).append(1e6 * (time.perf_counter() - began) / answers)

    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            file, teacher, stream = Path(name) / "ledger", Table(), Stream("learn", 0)
            timed("teacher, laws", teacher.laws)
            timed("teacher, draws", functools.partial(teacher.complete, count=1, stream=stream))
            for road, given in (("memory", None), ("file", file), ("file, read back", file)):
                with Ledger(teacher, file=given) as ledger:
                    timed(f"{road}, laws", ledger.laws("learn").laws)
                    view = ledger.samples("learn")
                    timed(f"{road}, draws", functools.partial(view.complete, count=1))
            size = sum(part.stat().st_size for part in Path(name).iterdir())
    median = {name: statistics.median(values) for name, values in taken.items()}
    over = {
        name: value - median[f"teacher, {name.rpartition(', ')[2]}"]
        for name, value in median.items()
        if not name.startswith("teacher")
    }
    record = {
        "answers": answers,
        "batch": _BATCH,
        "tokens": _TOKENS,
        "microseconds_over_the_teacher": over,
        "microseconds": taken,
        "bytes_an_answer": size / (2 * answers),
    }
    print(over, record["bytes_an_answer"])
    save("ledger.speed", record)


_WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{bench!r}]
from ledger import work
work(Path({folder!r}), int(sys.argv[1]), {budget})
"""


def work(folder: Path, seed: int, budget: int) -> None:
    """One of the processes."""
    teacher = Table(folder / "log", wait=0.01)
    with Ledger(teacher, Budget(queries=budget), file=folder / "ledger", job="learn") as ledger:
        generator = torch.Generator().manual_seed(seed)
        try:
            while True:
                rows = torch.randint(4, (20, 6), generator=generator).unique(dim=0)
                ledger.laws("learn").laws(Prefixes.of(rows.tolist()))
        except BudgetExhausted:
            return


def concurrency(processes: int = 8, budget: int = 3000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = _WORKER.format(bench=str(Path(__file__).parent), folder=name, budget=budget)
        began = time.perf_counter()
        children = [
            subprocess.Popen([sys.executable, "-c", script, str(seed)]) for seed in range(processes)
        ]
        codes = [child.wait() for child in children]
        asked = Counter((folder / "log").read_text().splitlines())
        found, check = summarise(folder / "ledger"), verify(folder / "ledger")
        record = {
            "processes": processes,
            "ended_well": codes.count(0),
            "budget": budget,
            "possible_questions": 4**6,
            "spent": sum(line.spent.next_token_queries for line in found.spending),
            "asked_of_the_teacher": sum(asked.values()),
            "asked_twice": sum(count - 1 for count in asked.values()),
            "answers_held": found.answers["laws"],
            "problems": list(check.problems),
            "seconds": time.perf_counter() - began,
        }
    print(record)
    save("ledger.concurrency", record)


def disk() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", name], check=False
        ).returncode
        if mounted:
            sys.exit("skipped: no small file system can be mounted here (mount was refused)")
        try:
            save("ledger.disk", filled(folder))
        finally:
            subprocess.run(["umount", name], check=True)


def filled(folder: Path) -> dict:
    teacher, file, done = Table(), folder / "ledger", 0
    said = ""
    with Ledger(teacher, file=file) as ledger:
        view = ledger.laws("learn")
        try:
            for batch in batches(1, 100):
                view.laws(batch)
                done += len(batch.lengths)
        except LedgerError as error:
            said = str(error).replace(str(folder), "FOLDER")
    held, check = summarise(file), verify(file)
    record = {
        "file_system_bytes": 2 * 2**20,
        "answers_before": done,
        "answers_held": held.answers["laws"],
        "problems": list(check.problems),
        "said": said,
    }
    print(record)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parts = {"speed": speed, "concurrency": concurrency, "disk": disk}
    parser.add_argument("--part", choices=list(parts), action="append")
    torch.set_num_threads(1)
    for part in parser.parse_args().part or list(parts):
        parts[part]()
