"""Runs over one ledger that are killed, or that share one budget; for tests and for the bench.

    python ledger_runs.py crash FOLDER SEED RUNS       each killed at random moments, resumed
    python ledger_runs.py shared FOLDER SEED PROCESSES BUDGET   on one file, one is killed

One JSON object on standard output says what was found. Every question that reaches the
teacher is a line that is appended to a file before the answer is given.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from myna.errors import BudgetExhausted, InputError
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.ledger_audit import summarise, verify
from myna.teachers.ledger_replay import open_replay
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

TEACHER = "zoo:hmm?states=3&symbols=3&horizon=6"
_DRAWS = 12  # requests for draws after learning
_PAUSE = 0.002  # seconds that an answer takes


class Logged:
    """A teacher whose every question is written down, one line each."""

    def __init__(self, log):
        self._teacher = open_teacher(TEACHER)
        self.spec, self.k = self._teacher.spec, self._teacher.k
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _note(self, lines):
        text = "".join(f"{line}\n" for line in lines).encode()
        assert os.write(self._log, text) == len(text)
        time.sleep(_PAUSE)

    def laws(self, prefixes):
        self._note(f"law {row}" for row in prefixes.rows())
        return self._teacher.laws(prefixes)

    def top_laws(self, prefixes):
        raise AssertionError("nobody asks this here")

    def complete(self, prefixes, count, *, stream, max_tokens=None, first_draw=0):
        draws = range(first_draw, first_draw + count)
        self._note(
            f"draw {row} {stream} {max_tokens} {i}" for row in prefixes.rows() for i in draws
        )
        return self._teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )


def work(path, log):
    """Learn a copy, then draw; all of what came out, as bytes."""
    with Ledger(Logged(log), file=path, job="learn") as ledger:
        settings, generator = ExactSettings(), torch.Generator().manual_seed(0)
        student = learn_exact(ledger, settings, generator).student
        tensors = [student.first]
        for step in student.steps:
            tensors += [step.laws, step.change]
        view = ledger.samples("check")
        for i in range(_DRAWS):
            tensors += view.complete(Prefixes.of([[], [0], [i % 3, 1]]), 5, first_draw=3 * i)
    return b"".join(part.contiguous().numpy().tobytes() for part in tensors)


def forked(run):
    """A child that runs this and ends; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def ended(pid):
    """How a child ended: 0, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def recorded(path):
    """The questions that the file answers, as the log names them."""
    try:
        held, found = open_replay(path)._held, set()
    except InputError as error:  # the run ended before it made the file
        assert "there is no ledger" in str(error) or "is empty: a run ended" in str(error)
        return set()
    for setting, places in held._places.items():
        assert setting[0] == "law"
        found |= {f"law {tuple(row)}" for row in map(_tokens, places)}
    numbers = {number: _tokens(key) for key, number in held._drawn._numbers.items()}
    for (stream, max_tokens), shelf in held._drawn._shelves.items():
        for first, count in zip(shelf._first.tolist(), shelf._count.tolist(), strict=True):
            row, start = numbers[first >> 32], first & (2**32 - 1)
            found |= {f"draw {row} {stream} {max_tokens} {start + i}" for i in range(count)}
    return found


def _tokens(key):
    return tuple(int.from_bytes(key[i : i + 4], "big") for i in range(0, len(key), 4))


def crash(folder, seed, runs):
    """Each run is killed up to three times and resumed until it ends."""
    expected = work(folder / "whole.ledger", folder / "whole.log")
    random_ = random.Random(seed)
    found = Counter(runs=runs, whole=len(lines(folder / "whole.log")))
    for run in range(runs):
        path, log, out = (folder / f"{run}.{end}" for end in ("ledger", "log", "out"))
        kills = 0
        while not out.exists():
            before, held = lines(log), recorded(path)
            pid = forked(lambda: write(out, work(path, log)))  # noqa: B023 (used at once)
            if kills < 3:
                kills += 1
                # by what it has asked, not by the clock: a slow machine is killed as often
                left = found["whole"] - len(held)
                if random_.random() < 0.75:
                    _await(pid, log, len(before) + random_.randint(1, left // 2))
                    time.sleep(random_.uniform(0.0, 2 * _PAUSE))
                else:
                    time.sleep(random_.uniform(0.0, 0.03))  # while it opens the file
                os.kill(pid, signal.SIGKILL)
            status = ended(pid)
            assert status in (0, -signal.SIGKILL), status
            found["killed"] += status != 0
            found["recorded_asked_again"] += len(held & set(lines(log)[len(before) :]))
        asked = Counter(lines(log))
        spending = summarise(path).spending
        lost = sum(line.requests.get("lost", 0) for line in spending)
        in_flight = sum(
            line.unanswered.next_token_queries + line.unanswered.completions for line in spending
        )
        twice = asked.total() - len(asked)
        found["lost_requests"] += lost
        found["asked_twice"] += twice
        found["unexplained"] += max(0, twice - in_flight)
        found["identical"] += out.read_bytes() == expected
        found["missing"] += len(set(lines(folder / "whole.log")) - set(asked))
        found["sound"] += not verify(path).problems
        found["lost_beyond_kills"] += max(0, lost - kills)
    return dict(found)


def _await(pid, log, count):
    """Until so many questions were asked, or the child ends; it stays to be waited for."""
    while len(lines(log)) < count:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(_PAUSE / 10)


def write(out, data):
    draft = out.with_suffix(".draft")
    draft.write_bytes(data)
    draft.rename(out)


def asking(path, log, seed, budget):
    """Ask for laws and draws at random until the budget is spent; every answer is checked."""
    random_, plain = random.Random(seed), open_teacher(TEACHER)
    with Ledger(Logged(log), Budget(queries=budget), file=path, job="shared") as ledger:
        view = ledger.laws("learn")
        while True:
            rows = [[random_.randrange(3) for _ in range(random_.randrange(6))] for _ in range(3)]
            prefixes = Prefixes.of(rows)
            try:
                assert torch.equal(view.laws(prefixes), plain.laws(prefixes))
            except BudgetExhausted:
                return


def shared(folder, seed, processes, budget):
    """Processes on one new file; the first is killed half-way."""
    path, log = folder / "shared.ledger", folder / "shared.log"
    found = Counter(processes=processes, budget=budget)
    children = [
        forked(lambda s=s: asking(path, log, 100 * seed + s, budget)) for s in range(processes)
    ]
    while len(lines(log)) < budget // 2:
        time.sleep(0.001)
    os.kill(children[0], signal.SIGKILL)
    while found["ended"] < processes - 1:
        time.sleep(0.003)
        spent = sum(line.spent.next_token_queries for line in summarise(path).spending)
        found["most_seen_spent"] = max(found["most_seen_spent"], spent)
        found["looks"] += 1
        for pid in children[1:]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.remove(pid)
                found["ended"] += 1
                found["failed"] += status != 0
    assert ended(children[0]) == -signal.SIGKILL
    asked = Counter(lines(log))
    found["asked"], found["distinct"] = asked.total(), len(asked)
    line = summarise(path).spending[0]
    found["spent"] = line.spent.next_token_queries
    found["unanswered"] = line.unanswered.next_token_queries
    found["sound"] = not verify(path).problems
    return dict(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, *numbers = sys.argv[1:]
    Path(place).mkdir(exist_ok=True)
    work_of = {"crash": crash, "shared": shared}
    print(json.dumps(work_of[command](Path(place), *map(int, numbers))))
