"""Noisy parity from samples alone: 16 bits at 2M tokens, and tokens needed for TV .1.

    python bench/sampled_parity.py --part ours|em|spectral|needed-ours|needed-em|needed-spectral
        [--bits 8 12 16 20 24] [--smallest 15625] [--largest 4000000] [--states 2 4]
        [--iterations 20000]
    python bench/sampled_parity.py --picture

Claim under test: at 2M sampled tokens (16 bits, noise .1) ten of ten secrets are learned to
TV <= .05, where Baum-Welch (2 and 4 states, one table a position, 2 random starts, to 1e-10
nats a token, 20,000 iterations at most) and the spectral learner, given as many tokens as plain
strings, stay near .4. "em, squared" is Baum-Welch with squared extrapolation (two or three
passes over the strings an iteration).
"Needed" is the smallest budget of a doubling grid at which all three seeds have TV <= .1; the
grid is walked upwards and ends there or at the stated cap; Baum-Welch has 4 states there. TV is
enumerated up to 16 bits, and estimated from 20,000 fresh strings for 20 and 24. Parts may run
side by side; each keeps its own JSON.
"""

import argparse
import dataclasses
import re
import time

import altair as alt
import torch
from results import FOLDER, save
from sampled import Rows, em, fresh_variation, kept_rows, ours, plain, spectral

from myna.app.picture import write_picture
from myna.evaluate.distance import enumerate_distance
from myna.learn.baum_welch import EmSettings
from myna.learn.report import Structure
from myna.lowrank.student import Student
from myna.teachers.ledger import Ledger
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.zoo import Parity

_SMALLEST, _ITERATIONS = 15_625, 20_000
_NEEDED, _AT_MOST = 0.1, {"ours": 4_000_000, "em": 1_000_000, "spectral": 4_000_000}
_NOTE = (
    "seeds: 10 of ours and of the spectral learner, 3 of Baum-Welch (slow), at 16 bits and 2M "
    f"tokens; 3 of all where tokens needed are sought, rivals up to the cap of {_AT_MOST}; "
    "Baum-Welch stops when an iteration gains less than 1e-10 nats a token, or at 20,000 "
    "iterations: each start tells which"
)
_EM = EmSettings(
    Structure.TIME_VARYING,
    True,
    restarts=2,
    tolerance_nats=1e-10,
    max_iterations=_ITERATIONS,
)


def variation(teacher: SteppedTeacher, student: Student, bits: int) -> dict:
    if bits <= 16:
        found = enumerate_distance(Ledger(teacher).laws("certify"), student)
        return {"total_variation": found.total_variation, "enumerated": True}
    return {**fresh_variation(teacher, student, 20_000), "enumerated": False}


def one(
    learner: str, bits: int, budget: int, seed: int, states: int = 0, settings: EmSettings = _EM
) -> dict:
    """One run of one learner; without a student TV is that of knowing nothing: 1."""
    teacher = Parity(bits=bits, seed=seed).teacher()
    started = time.perf_counter()
    if learner == "ours":
        student, told = ours(teacher, budget, seed)
    elif learner == "em":
        student, told = em(teacher, plain(teacher, budget, seed), states, settings, seed)
    else:
        evidence = plain(teacher, budget, seed)
        student, told = spectral(teacher, evidence, Structure.TIME_VARYING, seed)
    seconds = time.perf_counter() - started
    most = f"{settings.max_iterations:,} iterations"
    name = f"em, squared, {states} states, {most}" if learner == "em" else learner
    row = {"learner": name, "bits": bits, "budget": budget, "seed": seed}
    far = variation(teacher, student, bits) if student else {"total_variation": 1.0}
    return {**row, **far, **told, "learning_seconds": seconds}


def needed(
    rows: Rows,
    learner: str,
    sizes: list[int],
    grid: tuple[int, int],
    states: int = 0,
    settings: EmSettings = _EM,
) -> None:
    """Walk the grid upwards for each size, all three seeds at every budget."""
    for bits in sizes:
        budget, cap = grid
        while budget <= cap:
            far = []
            for seed in range(3):
                row = one(learner, bits, budget, seed, states, settings)
                rows.add({"needed": True, **row})
                far.append(row["total_variation"])
            if max(far) <= _NEEDED:
                break
            budget *= 2


def run(part: str, chosen: argparse.Namespace) -> None:
    learner, quick = part.removeprefix("needed-"), chosen.quick
    sizes = [8] if quick else chosen.bits
    changed = [
        value
        for value, usual in ((chosen.smallest, _SMALLEST), (chosen.iterations, _ITERATIONS))
        if value != usual
    ]
    numbers = [*sizes, *changed] if part.startswith("needed-") else chosen.states * (part == "em")
    mark = "".join(f"-{number}" for number in numbers)
    rows = Rows(f"sampled_parity{'_quick' if quick else ''}.{part}{mark}", _NOTE)
    settings = dataclasses.replace(_EM, max_iterations=chosen.iterations)
    choices = chosen.states if part == "em" else (4,) if learner == "em" else (0,)
    for states in choices:
        if part.startswith("needed-"):
            cap = 31_250 if quick else chosen.largest or _AT_MOST[learner]
            needed(rows, learner, sizes, (chosen.smallest, cap), states, settings)
        else:
            bits, budget = (8, 100_000) if quick else (16, 2_000_000)
            for seed in range(1 if quick else 3 if learner == "em" else 10):
                found = one(learner, bits, budget, seed, states, settings)
                rows.add({"needed": False, **found})


def summary(rows: list[dict]) -> list[dict]:
    """Tokens needed by learner and size; None where the cap came first."""
    table = []
    keys = sorted({(r["learner"], r["bits"]) for r in rows if r["needed"]})
    for learner, bits in keys:
        runs = [r for r in rows if r["needed"] and (r["learner"], r["bits"]) == (learner, bits)]
        budgets = sorted({r["budget"] for r in runs})
        good = [
            b
            for b in budgets
            if sum(r["budget"] == b and r["total_variation"] <= _NEEDED for r in runs) == 3
        ]
        entry = {"learner": learner, "bits": bits, "tokens": good[0] if good else None}
        table.append({**entry, "tried_up_to": budgets[-1]})
    return table


def picture(name: str) -> None:
    rows = [
        {**row, "learner": re.sub(r", [0-9,]+ iterations$", "", row["learner"])}
        for row in kept_rows(name)
    ]
    table = summary(rows)
    shown = [
        {
            **row,
            "shown": row["tokens"] or row["tried_up_to"],
            "reached": row["tokens"] is not None,
            "place": row["bits"] + 0.4 * (row["learner"] != "ours"),  # side by side
        }
        for row in table
    ]
    points = (
        alt.Chart(alt.Data(values=[r for r in rows if not r["needed"]]), width=360, height=300)
        .mark_point(filled=True, size=60, opacity=0.7)
        .encode(
            x=alt.X("learner:N", title=None),
            y=alt.Y("total_variation:Q", scale=alt.Scale(domain=[0, 0.5]), title="TV"),
            color=alt.Color("learner:N"),
            tooltip=["seed:Q", "total_variation:Q"],
        )
        .properties(title="16 bits, noise .1, 2M tokens: every seed")
    )
    grown = (
        alt.Chart(alt.Data(values=shown), width=420, height=300)
        .mark_point(filled=True, size=90, opacity=0.8)
        .encode(
            x=alt.X("place:Q", scale=alt.Scale(domain=[6, 26]), title="bits"),
            y=alt.Y("shown:Q", scale=alt.Scale(type="log"), title="tokens for TV .1 on 3 of 3"),
            color=alt.Color("learner:N"),
            shape=alt.Shape(
                "reached:N",
                title="reached (else more than)",
                scale=alt.Scale(domain=[True, False], range=["circle", "triangle-up"]),
            ),
            tooltip=["learner:N", "bits:Q", "tokens:Q", "tried_up_to:Q"],
        )
        .properties(title="Tokens needed")
    )
    write_picture(alt.vconcat(points, grown), FOLDER, name)
    save(name, {"note": _NOTE, "tokens_needed": table})


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    learners = ("ours", "em", "spectral")
    parts = [*learners, *(f"needed-{learner}" for learner in learners)]
    parser.add_argument("--part", choices=parts, action="append", default=[])
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[8, 12, 16, 20, 24], help="of needed-*"
    )
    parser.add_argument(
        "--smallest", type=int, default=_SMALLEST, help="where the grid of needed-* begins"
    )
    parser.add_argument("--largest", type=int, help="the cap of needed-*, where not the usual one")
    parser.add_argument("--states", type=int, nargs="+", default=[2, 4], help="of part em")
    parser.add_argument(
        "--iterations", type=int, default=_ITERATIONS, help="of Baum-Welch at most, a start"
    )
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny settings, files of their own")
    chosen = parser.parse_args()
    if not (chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    for part in chosen.part:
        run(part, chosen)
    if chosen.picture:
        picture("sampled_parity_quick" if chosen.quick else "sampled_parity")


if __name__ == "__main__":
    main()
