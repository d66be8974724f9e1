"""The 24 odd-numbered PAutomaC problems, each target learned from queries alone.

    python bench/pautomac.py

The model file is opened by the teacher only. Compared on the competition's test
strings, on its solution, and on 1,000 fresh strings of the target. One setting serves
all problems: the defaults, with 20,000 fresh histories verified on each side.
"""

import time

import torch
from results import need_shared, save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Ledger
from myna.teachers.pautomac import (
    perplexity,
    read_automaton,
    read_solution,
    read_strings,
    with_stop,
)

SETTINGS = ExactSettings(verify_histories=20_000)


def problem(folder, number: int) -> dict:
    teacher = read_automaton(folder / f"{number}.pautomac_model.txt")
    batch, _ = read_strings(folder / f"{number}.pautomac.test")
    test = with_stop(batch, teacher.spec.stop)
    solution = read_solution(folder / f"{number}.pautomac_solution.txt")
    ledger = Ledger(teacher)
    started = time.perf_counter()
    result = learn_exact(ledger, SETTINGS, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - started
    fresh = teacher.sample(1000, torch.Generator().manual_seed(1_000_003))
    log_p, log_q = teacher.score(test), result.student.score(test)
    target, ours = perplexity(solution, log_p), perplexity(solution, log_q)
    return {
        "problem": number,
        "states": teacher.num_states,
        "rank": result.report.ranks[0],
        "next_token_rank": result.report.cuts[0].next_token_rank,
        "outcome": result.report.outcome.value,
        "learn_queries": ledger.account("learn").next_token_queries,
        "verify_queries": ledger.account("verify").next_token_queries,
        "test_log_error": float((log_p - log_q).abs().max()),
        "fresh_log_error": float((teacher.score(fresh) - result.student.score(fresh)).abs().max()),
        "target_perplexity": target,
        "score_relative_error": abs(ours / target - 1),
        "seconds": seconds,
    }


def main() -> None:
    folder = need_shared() / "pautomac"
    rows = []
    for number in range(1, 48, 2):
        rows.append(problem(folder, number))
        row = rows[-1]
        print(
            f"{number:3d}: {row['states']:3d} states, rank {row['rank']:3d}, {row['outcome']}, "
            f"{row['learn_queries']:,}+{row['verify_queries']:,} queries, "
            f"|log error| test {row['test_log_error']:.1e} fresh {row['fresh_log_error']:.1e}, "
            f"score {row['score_relative_error']:.1e}, {row['seconds']:.1f} s",
            flush=True,
        )
    summary = {
        "largest_test_log_error": max(row["test_log_error"] for row in rows),
        "largest_fresh_log_error": max(row["fresh_log_error"] for row in rows),
        "largest_score_relative_error": max(row["score_relative_error"] for row in rows),
        "total_seconds": sum(row["seconds"] for row in rows),
    }
    print(summary)
    save("pautomac", {"summary": summary, "problems": rows})


if __name__ == "__main__":
    main()
