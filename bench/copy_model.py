"""Repeat after me, below, at and above the cap on the rank.

python bench/copy_model.py
"""

import time

import torch
from results import save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import Copy

CAP = 64
SETTINGS = ExactSettings(max_rank=CAP, verify_histories=8000)


def main() -> None:
    rows = []
    for n, k in ((3, 4), (5, 2), (6, 2), (3, 5), (7, 2), (12, 2), (32, 2)):
        family = Copy(n=n, k=k)
        ledger = Ledger(family.teacher())
        started = time.perf_counter()
        result = learn_exact(ledger, SETTINGS, torch.Generator().manual_seed(0))
        report = result.report
        rows.append(
            {
                "n": n,
                "k": k,
                "largest_rank_by_formula": max(family.ranks()),
                "cap": CAP,
                "outcome": report.outcome.value,
                "reason": report.reason,
                "ranks_as_formula": report.ranks == family.ranks() if result.student else None,
                "student": result.student is not None,
                "queries": ledger.total().next_token_queries,
                "seconds": time.perf_counter() - started,
            }
        )
        print(rows[-1], flush=True)
    save("copy_model", {"runs": rows})


if __name__ == "__main__":
    main()
