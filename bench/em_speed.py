"""Baum-Welch on anchor A's data: seconds an iteration, and the held-out gap against seconds.

    python bench/em_speed.py [iterations]

16 states, 32 symbols, 10,000 strings of 64 tokens; random starts, all shown, and a start
at the truth. The gap is the mean held-out log-likelihood of the truth less the fit's,
nats per sequence; the clock includes looking at it.
"""

import sys
import time

import numpy as np
import torch
from results import need_shared, save

from myna.learn.baum_welch import EmSettings, HmmParameters, fit_hmm, random_start
from myna.learn.evidence import Evidence
from myna.learn.forward_backward import ForwardBackward, prefix_trees
from myna.learn.report import Structure
from myna.spec import Spec, numbered


def plain(tokens: np.ndarray) -> Evidence:
    count, length = tokens.shape
    none = torch.zeros(count, dtype=torch.int64)
    ones = torch.ones(count, dtype=torch.float64)
    return Evidence(torch.from_numpy(tokens), torch.full((count,), length), none, ones)


def fit(start: HmmParameters, train: Evidence, test: Evidence, truth: float, most: int) -> dict:
    settings = EmSettings(max_iterations=most, validate_every=10, patience=10**6)
    _, report = fit_hmm(train, start, settings, test)
    length = test.sampled_tokens / len(test.lengths)
    looks = [p for p in report.trace if p.validation is not None]
    return {
        "iterations": report.iterations,
        "stop": report.stop.value,
        "seconds": report.seconds,
        "gap": [
            {
                "iteration": p.iteration,
                "seconds": p.seconds,
                "gap": (truth - (p.validation or 0.0)) * length,
            }
            for p in looks
        ],
    }


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    data = np.load(need_shared() / "hmm_task.npz")
    train, test = plain(data["Xtr"]), plain(data["Xte"])
    tables = (data["pi"], data["T"][None], data["E"][None])
    truth = HmmParameters(*(torch.from_numpy(table) for table in tables))
    engine = ForwardBackward(prefix_trees(train, 32), 16)
    timings = []
    for _ in range(20):
        wall, cpu = time.perf_counter(), time.process_time()
        engine.counts(truth.tables)
        timings.append([time.perf_counter() - wall, time.process_time() - cpu])
    held_out = ForwardBackward(prefix_trees(test, 32), 16)
    best = held_out.log_likelihood(truth.tables) / held_out.tokens
    language = Spec(numbered(32), None, 64, "anchor A")
    runs = {"truth": fit(truth, train, test, best, min(most, 50))}
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        start = random_start(language, 16, Structure.STATIONARY, random)
        runs[f"random start {seed}"] = fit(start, train, test, best, most)
    for name, run in runs.items():
        print(name, run["iterations"], run["seconds"], run["gap"][-1])
    save("em_speed", {"pass_seconds_wall_and_cpu": timings, "runs": runs})


if __name__ == "__main__":
    main()
