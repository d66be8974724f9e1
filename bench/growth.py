"""Time and memory of learning, scoring and storing against rank, alphabet and horizon.

    python bench/growth.py

Random HMMs of the zoo, time-varying copies, one size varied at a time. Memory is what
the copy stores; the process's peak is recorded with the results.
"""

import time

import altair as alt
import torch
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import RandomHmm

BASE = {"states": 8, "symbols": 16, "horizon": 32}
VARIED = {"states": (2, 4, 8, 16), "symbols": (4, 8, 16, 32, 64), "horizon": (8, 16, 32, 64, 128)}


def one(what: str, size: int) -> dict:
    family = RandomHmm(**(BASE | {what: size}), concentration=0.5)
    teacher = family.teacher()
    ledger = Ledger(teacher)
    result = learn_exact(ledger, ExactSettings(), torch.Generator().manual_seed(0))
    student = result.student
    drawn = teacher.sample(4000, torch.Generator().manual_seed(1))
    student.score(drawn)
    started = time.perf_counter()
    student.score(drawn)
    scoring = time.perf_counter() - started
    return {
        "varied": what,
        "size": size,
        "rank": max(result.report.ranks),
        "outcome": result.report.outcome.value,
        "learn_queries": ledger.account("learn").next_token_queries,
        "learn_seconds": result.report.seconds,
        "copy_kib": student.num_parameters * 8 / 1024,
        "score_ns_per_token": scoring / drawn.tokens.numel() * 1e9,
    }


def main() -> None:
    one("states", 2)  # warms up
    rows = [one(what, size) for what, sizes in VARIED.items() for size in sizes]
    for row in rows:
        print(row)
    measures = ["learn_queries", "learn_seconds", "copy_kib", "score_ns_per_token"]
    panels = [
        alt.hconcat(
            *(
                alt.Chart(
                    alt.Data(values=[r for r in rows if r["varied"] == what]), width=150, height=120
                )
                .mark_line(point=True)
                .encode(
                    x=alt.X("size:Q", scale=alt.Scale(type="log", base=2), title=what),
                    y=alt.Y(f"{measure}:Q", scale=alt.Scale(type="log"), title=measure),
                )
                for measure in measures
            )
        )
        for what in VARIED
    ]
    chart = alt.vconcat(*panels, title="Cost of exact learning, one size varied at a time")
    write_picture(chart, FOLDER, "growth")
    save("growth", {"base": BASE, "runs": rows})


if __name__ == "__main__":
    main()
