"""Where exact learning fails, and what one then sees: the figures of docs/limits.md.

python bench/limits.py
"""

import torch
from results import SHARED, save

from myna.evaluate.distance import enumerate_distance
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.pautomac import read_automaton
from myna.teachers.zoo import Copy


def learned(teacher, seed=0, **settings):
    ledger = Ledger(teacher, seed=seed)
    return learn_exact(ledger, ExactSettings(**settings), torch.Generator().manual_seed(0))


def parallel_laws(gap: float) -> dict:
    """Two sticky states whose emissions differ by `gap` alone; eight tokens."""
    emits = torch.tensor([[0.5 + gap, 0.5 - gap], [0.5 - gap, 0.5 + gap]], dtype=torch.float64)
    moves = torch.tensor([[0.99, 0.01], [0.01, 0.99]], dtype=torch.float64)
    teacher = Hmm(torch.tensor([0.5, 0.5]).double(), moves[None], emits[None], horizon=8)
    result = learned(teacher)
    found = enumerate_distance(Ledger(teacher).laws("c"), result.student)
    return {
        "gap": gap,
        "rank_found": max(result.report.ranks),
        "true_rank": 2,
        "outcome": result.report.outcome.value,
        "total_variation": found.total_variation,
    }


def rare_histories(verify: int) -> dict:
    """PAutomaC problem 9, whose rare states few strings reach; ten verification streams."""
    teacher = read_automaton(SHARED / "pautomac" / "9.pautomac_model.txt")
    fresh = teacher.sample(10_000, torch.Generator().manual_seed(1_000_003))
    truth = teacher.score(fresh)
    ranks, bounds, wrong = [], [], []
    for seed in range(10):
        result = learned(teacher, seed=seed, verify_histories=verify)
        ranks.append(result.report.ranks[0])
        bounds.append(result.report.verification.bad_string_bound())
        gap = (truth - result.student.score(fresh)).abs()
        wrong.append(float((gap > 1e-6).double().mean()))
    return {
        "verify_histories": verify,
        "ranks_found": ranks,
        "bad_string_bounds": bounds,
        "fresh_strings_wrong": wrong,
    }


def late_rank(verify: int) -> dict:
    """The copy model with rank 256 at its middle cut: its futures come one by one."""
    result = learned(Copy(n=8, k=2).teacher(), verify_histories=verify)
    return {
        "verify_histories": verify,
        "rank_found": max(result.report.ranks),
        "true_rank": 256,
        "outcome": result.report.outcome.value,
        "bad_string_bound": result.report.verification.bad_string_bound(),
    }


def main() -> None:
    record = {
        "parallel_laws": [parallel_laws(10.0**-e) for e in (2, 4, 6, 8, 10)],
        "late_rank": [late_rank(n) for n in (1000, 10_000)],
    }
    if SHARED.is_dir():
        record["rare_histories"] = [rare_histories(n) for n in (1000, 5000, 20_000)]
    for name, rows in record.items():
        for row in rows:
            print(name, row)
    save("limits", record)


if __name__ == "__main__":
    main()
