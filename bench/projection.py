"""Projections against CVXPY + Clarabel: the same optimum, and time per projection.

    python bench/projection.py

Both at tolerance 1e-10 on one thread. Ours: 1,024 targets at once, wall-clock time of the
whole call over 1,024; a first call apart, which compiles the passes. Clarabel: its own
solve time (`solver_stats.solve_time`), CVXPY's compile time apart, median over the first targets.
Where the projection is onto a box it may lie inside ("free": every bound is slack for most
targets) or against the bounds ("tight").
"""

import statistics
import time
import warnings

import altair as alt
import cvxpy as cp
import numpy as np
import torch
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.projection import project

SIZES = [(8, 64, 100), (16, 128, 300), (32, 256, 300)]
BATCH, SOLVED_BY_PEER, REPEATS = 1024, 5, 5
BOUNDS = {"free box": 3.0, "tight box": 0.2}


def instance(seed: int, kind: str, rank: int, futures: int, vertices: int):
    """Targets within a factor e^(.5 N) of a point of the hull, and the set."""
    random = np.random.default_rng(seed)
    sketch = random.dirichlet(np.ones(futures), size=rank)
    points = random.dirichlet(np.ones(rank), size=vertices)
    inside = random.dirichlet(np.ones(rank), size=BATCH) @ sketch
    w = inside * np.exp(0.5 * random.standard_normal(inside.shape))
    sketch, points, w = (torch.from_numpy(table) for table in (sketch, points, w))
    floor = torch.zeros(futures).double()
    if kind == "hull":
        return w, Polytope(sketch, points, 0.0, float("inf"), floor)
    return w, Polytope(sketch, None, -BOUNDS[kind], BOUNDS[kind], floor)


def clarabel(w: np.ndarray, k: Polytope, divergence: Divergence) -> tuple[float, float]:
    """Value and solve time in seconds."""
    x = cp.Variable(k.size)
    rows = k.sketch if k.vertices is None else k.vertices @ k.sketch
    z = x @ rows.numpy()
    limits = [cp.sum(x) == 1, x >= k.low, z >= k.floor.numpy()]
    limits += [x <= k.high] if k.bounded else []
    loss = {
        Divergence.KL: lambda: cp.sum(-cp.entr(z) - cp.multiply(np.log(w), z) - z + w),
        Divergence.L1: lambda: cp.norm1(z - w),
        Divergence.L2: lambda: cp.sum_squares(z - w) / 2,
    }[divergence]()
    problem = cp.Problem(cp.Minimize(loss), limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return problem.value, problem.solver_stats.solve_time


def one(kind: str, size: tuple[int, int, int], divergence: Divergence) -> dict:
    w, k = instance(0, kind, *size)
    project(w, k, divergence)  # warm up
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = project(w, k, divergence)
        seconds.append((time.perf_counter() - started) / BATCH)
    peer = [clarabel(row.numpy(), k, divergence) for row in w[:SOLVED_BY_PEER]]
    gaps = [
        abs(value - float(ours)) / max(1.0, abs(value))
        for (value, _), ours in zip(peer, found.value, strict=False)
    ]
    ours, theirs = statistics.median(seconds), statistics.median(s for _, s in peer)
    return {
        "set": kind,
        "rank": size[0],
        "futures": size[1],
        "vertices": size[2] if kind == "hull" else None,
        "divergence": divergence.value,
        "all_certified": bool(found.solved.all()),
        "largest_gap": float(found.gap.max()),
        "largest_difference_from_clarabel": max(gaps),
        "mean_iterations": float(found.iterations.double().mean()),
        "seconds": ours,
        "all_seconds": seconds,
        "clarabel_seconds": theirs,
        "all_clarabel_seconds": [s for _, s in peer],
        "times_faster": theirs / ours,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        for kind in ("hull", "tight box", "free box"):
            for divergence in Divergence:
                rows.append(one(kind, size, divergence))
                shown = ("set", "rank", "divergence", "seconds", "times_faster")
                print({name: rows[-1][name] for name in shown}, flush=True)
    for row in rows:
        row["case"] = f"{row['set']}, {row['divergence']}"
    points = (
        alt.Chart(
            alt.Data(values=rows),
            width=480,
            height=260,
            title="Projections at 1e-10: times faster than Clarabel, batch 1,024, one thread",
        )
        .mark_point(filled=True, size=80)
        .encode(
            x=alt.X("times_faster:Q", scale=alt.Scale(type="log"), title="times faster"),
            y=alt.Y("case:N", title=None),
            color=alt.Color("rank:O", title="rank"),
        )
    )
    line = alt.Chart(alt.Data(values=[{"aim": 100}])).mark_rule(strokeDash=[4, 4]).encode(x="aim:Q")
    write_picture(alt.vconcat(points + line), FOLDER, "projection")
    save("projection", {"batch": BATCH, "tolerance": 1e-10, "runs": rows})


if __name__ == "__main__":
    main()
