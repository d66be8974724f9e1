"""Time and memory of the learner from samples against O, S, H and the budget.

    python bench/sampled_cost.py --part grid|parity
    python bench/sampled_cost.py --picture

Random HMMs (Dirichlet rows, one basis a cut, default settings), one variable at a time around
8 symbols, 8 states, length 16 and 300,000 tokens; seconds are wall time of learning, the teacher's
draws included, and memory is the peak of a process of its own, torch's libraries included.
Claim: 10M tokens of parity (16 bits) are learned in under 5 minutes on 2 cores
(shown with 1 and with 2 threads).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import altair as alt
import torch
from results import FOLDER
from sampled import Rows, fresh_variation, kept_rows, ours

from myna.app.picture import write_picture
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.zoo import Parity, RandomHmm

_NOTE = "one process a point; idle_memory_mib is its peak before learning"
_BASE = {"symbols": 8, "states": 8, "horizon": 16, "budget": 300_000}
_GRID = {
    "symbols": [4, 8, 16, 32],
    "states": [2, 4, 8, 16],
    "horizon": [8, 16, 32, 64],
    "budget": [100_000, 300_000, 1_000_000, 3_000_000],
}


def peak() -> int:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def point(case: dict) -> dict:
    """One run in this process; its figures."""
    torch.set_num_threads(case["threads"])
    teacher: SteppedTeacher
    if "bits" in case:
        teacher = Parity(bits=case["bits"], seed=case["seed"]).teacher()
    else:
        sizes = {name: case[name] for name in ("symbols", "states", "horizon")}
        teacher = RandomHmm(**sizes, seed=case["seed"]).teacher()
    idle = peak()
    student, told = ours(teacher, case["budget"], case["seed"])
    memory = peak()
    far = fresh_variation(teacher, student, 20_000) if student else {}
    return {**case, **far, **told, "idle_memory_mib": idle, "memory_mib": memory}


def apart(case: dict) -> dict:
    """One run in a process of its own, told on its last line; a failure is a row, too."""
    command = [sys.executable, str(Path(__file__)), "--case", json.dumps(case)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case["threads"])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {**case, "failed": done.stderr[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


def grid(quick: bool) -> list[dict]:
    """Each variable's values around the base."""
    base = {**_BASE, "budget": 50_000} if quick else _BASE
    return [
        {**base, name: value, "varied": name, "seed": 0, "threads": 1}
        for name, values in _GRID.items()
        for value in (values[:1] if quick else values)
        if not (quick and name == "budget")
    ]


def run(part: str, quick: bool) -> None:
    rows = Rows(f"{title(quick)}.{part}", _NOTE)
    parity = {"bits": 16, "budget": 100_000 if quick else 10_000_000, "varied": "parity"}
    by_threads = [{**parity, "seed": 0, "threads": threads} for threads in (1, 2)]
    cases = grid(quick) if part == "grid" else by_threads
    for case in cases:
        rows.add(apart(case))


def title(quick: bool) -> str:
    return "sampled_cost_quick" if quick else "sampled_cost"


def panel(rows: list[dict], variable: str, figure: str) -> alt.Chart:
    chosen = [row for row in rows if row["varied"] == variable and figure in row]
    return (
        alt.Chart(alt.Data(values=chosen), width=180, height=180)
        .mark_line(point=True)
        .encode(
            x=alt.X(f"{variable}:Q", scale=alt.Scale(type="log"), title=variable),
            y=alt.Y(f"{figure}:Q", scale=alt.Scale(type="log"), title=figure),
        )
    )


def picture(name: str) -> None:
    rows = list(kept_rows(name))
    panels = [
        alt.hconcat(*(panel(rows, variable, figure) for variable in _GRID))
        for figure in ("seconds", "memory_mib")
    ]
    write_picture(alt.vconcat(*panels), FOLDER, name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["grid", "parity"], action="append", default=[])
    parser.add_argument("--case", type=json.loads, help="one point, as JSON; for this script")
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny points, files of their own")
    chosen = parser.parse_args()
    if not (chosen.case or chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    if chosen.case:
        print(json.dumps(point(chosen.case)))
        return
    for part in chosen.part:
        run(part, chosen.quick)
    if chosen.picture:
        picture(title(chosen.quick))


if __name__ == "__main__":
    main()
