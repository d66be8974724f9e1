"""Total variation against the budget, and what refinement adds: every seed shown.

    python bench/sampled_budget.py --part parity|varying|stationary
    python bench/sampled_budget.py --picture

Parity of 10 bits, and random HMMs (4 states, 4 symbols, length 8, Dirichlet(.5) rows), three
seeds each, TV by enumeration. "spanner" is the copy read off the tables; "refined" goes on by
maximum likelihood over the same kind of answers (its stages, in held-out nats a token, are in
the JSON). More budget must not make a copy worse; where it does, the point is here.
"""

import argparse

import altair as alt
import torch
from results import FOLDER
from sampled import Rows, kept_rows, ours

from myna.app.picture import write_picture
from myna.evaluate.distance import enumerate_distance
from myna.learn.report import Structure
from myna.teachers.ledger import Ledger
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.zoo import Parity, RandomHmm

_NOTE = "one thread; a copy that was refused has TV 1 and the sentence in `refused`"
_BUDGETS, _SEEDS = (10_000, 30_000, 100_000, 300_000, 1_000_000), range(3)


def teacher_of(part: str, seed: int) -> tuple[SteppedTeacher, Structure]:
    if part == "parity":
        return Parity(bits=10, seed=seed).teacher(), Structure.TIME_VARYING
    made = RandomHmm(states=4, symbols=4, horizon=8, concentration=0.5, seed=seed)
    return made.teacher(), Structure("stationary" if part == "stationary" else "time-varying")


def run(part: str) -> None:
    rows = Rows(f"sampled_budget.{part}", _NOTE)
    for budget in _BUDGETS:
        for seed in _SEEDS:
            teacher, structure = teacher_of(part, seed)
            for name, refine in (("spanner", False), ("refined", True)):
                student, told = ours(teacher, budget, seed, structure, refine=refine)
                far = 1.0
                if student:
                    far = enumerate_distance(Ledger(teacher).laws("certify"), student)
                    far = far.total_variation
                row = {"part": part, "learner": name, "budget": budget, "seed": seed}
                rows.add({**row, "total_variation": far, **told})


def picture(name: str) -> None:
    rows = list(kept_rows(name))
    chart = (
        alt.Chart(alt.Data(values=rows), width=260, height=280)
        .mark_point(filled=True, size=45, opacity=0.7)
        .encode(
            x=alt.X("budget:Q", scale=alt.Scale(type="log"), title="budget, tokens"),
            y=alt.Y("total_variation:Q", scale=alt.Scale(type="log"), title="TV"),
            color=alt.Color("learner:N", title=None),
            tooltip=["seed:Q", "budget:Q", "total_variation:Q"],
        )
    )
    lines = chart.mark_line(opacity=0.35).encode(detail="seed:Q")
    panels = alt.layer(lines, chart).facet(column=alt.Column("part:N", title=None))
    write_picture(alt.vconcat(panels), FOLDER, name)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parts = ["parity", "varying", "stationary"]
    parser.add_argument("--part", choices=parts, action="append", default=[])
    parser.add_argument("--picture", action="store_true")
    chosen = parser.parse_args()
    if not (chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    for part in chosen.part:
        run(part)
    if chosen.picture:
        picture("sampled_budget")


if __name__ == "__main__":
    main()
