"""Parsers of endpoint answers against texts that are nearly answers.

    python fuzz_answers.py [SECONDS] [FIRST_SEED]

Every text must come out as an answer or as the one error that says what is wrong with it;
anything else, a text that takes more than a second, or memory that grows, is a failure.
"""

import resource
import sys
import time
from pathlib import Path

from results import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import fuzz


def main(seconds: float = 170.0, first: int = 10_000) -> None:
    counts = {kind: {"answers": 0, "refused": 0} for kind in fuzz.GOOD}
    failures: list[dict] = []
    slowest, start, seed = 0.0, time.perf_counter(), first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.perf_counter() - start < seconds:
        for kind in fuzz.GOOD:
            text = fuzz.nearly(kind, seed)
            began = time.perf_counter()
            try:
                done = fuzz.survive(kind, text)
            except Exception as error:
                failures.append({"kind": kind, "seed": seed, "error": repr(error)[:200]})
                continue
            slowest = max(slowest, time.perf_counter() - began)
            counts[kind]["answers" if done else "refused"] += 1
        seed += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inputs = (seed - first) * len(fuzz.GOOD)
    record = {
        "inputs": inputs,
        "seconds": time.perf_counter() - start,
        "by_kind": counts,
        "failures": failures[:50],
        "failures_total": len(failures),
        "slowest_ms": 1e3 * slowest,
        "memory_grown_mib": (after - before) / 1024,
    }
    print(record)
    save("fuzz_answers", record)


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((float, int), sys.argv[1:], strict=False)))
