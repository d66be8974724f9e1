"""The six HMMER3 profiles, copied from queries; scores and ranks by both definitions.

    python bench/profiles.py [NAME ...]

globins4 is scored on 45 real globins, the others on 1,000 samples of the teacher.
"""

import sys
import time

import torch
from pautomac import stopped
from results import need_shared, save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.hmmer3 import read_fasta, read_profile
from myna.teachers.ledger import Ledger

NAMES = ("ecori", "MADE1", "RRM_1", "fn3", "globins4", "Pkinase")
SETTINGS = ExactSettings(max_rank=600, verify_histories=4000)


def profile(folder, name: str) -> dict:
    teacher = read_profile(folder / f"{name}.hmm")
    ledger = Ledger(teacher)
    started = time.perf_counter()
    result = learn_exact(ledger, SETTINGS, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - started
    fresh = teacher.sample(1000, torch.Generator().manual_seed(1_000_003))
    gaps = {"1,000 samples": (teacher.score(fresh) - result.student.score(fresh)).abs()}
    if name == "globins4":
        real = stopped(
            read_fasta(folder / "globins45.fa", teacher.spec.alphabet[:-1]), teacher.spec.stop
        )
        gaps["45 real globins"] = (teacher.score(real) - result.student.score(real)).abs()
    cut = result.report.cuts[0]
    return {
        "profile": name,
        "states": teacher.num_states,
        "hankel_rank": cut.rank,
        "next_token_rank": cut.next_token_rank,
        "futures": cut.futures,
        "condition": cut.condition,
        "outcome": result.report.outcome.value,
        "largest_log_error_nats": {what: float(gap.max()) for what, gap in gaps.items()},
        "learn_queries": ledger.account("learn").next_token_queries,
        "verify_queries": ledger.account("verify").next_token_queries,
        "seconds": seconds,
    }


def main() -> None:
    folder = need_shared() / "pfam"
    rows = []
    for name in sys.argv[1:] or NAMES:
        rows.append(profile(folder, name))
        print(rows[-1], flush=True)
    save("profiles", {"profiles": rows})


if __name__ == "__main__":
    main()
