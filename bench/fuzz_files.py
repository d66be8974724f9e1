"""Readers of files against files that are nearly of their format.

    python bench/fuzz_files.py [INPUTS_A_FORMAT] [FIRST_SEED] [LEDGERS]

Every file must come out as a model or as the one error that says what is wrong with it;
anything else, a file that takes more than five seconds, or memory that grows, is a failure.
Ledgers that are nearly ledgers are opened, verified, and (each fourth) exported, gone on with
and compacted; an answer that comes must be the teacher's own. The bench of the texts that endpoints send is fuzz_answers.py.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from results import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import fuzz_files
import fuzz_ledger


def main(inputs: int = 20_000, first: int = 10_000, ledgers: int = 5_000) -> None:
    torch.set_num_threads(1)
    counts: dict[str, dict[str, int]] = {}
    failures: list[dict] = []
    slowest, start = 0.0, time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        for kind, (files, reader) in fuzz_files.good_files(Path(name)).items():
            folder = Path(name) / kind
            folder.mkdir()
            counts[kind] = {"read": 0, "refused": 0}
            for seed in range(first, first + inputs):
                path = fuzz_files.written(folder, fuzz_files.nearly(kind, files, seed))
                began = time.perf_counter()
                try:
                    done = fuzz_files.survive(reader, path)
                except Exception as error:
                    failures.append({"kind": kind, "seed": seed, "error": repr(error)[:200]})
                    continue
                slowest = max(slowest, time.perf_counter() - began)
                counts[kind]["read" if done else "refused"] += 1
            print(kind, counts[kind], flush=True)
        folder = Path(name) / "ledger"
        folder.mkdir()
        of_ledgers = fuzz_ledger.fuzz(folder, first, ledgers)  # raises at the first failure
        print(of_ledgers, flush=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "inputs": inputs * len(counts) + ledgers,
        "ledgers": of_ledgers,
        "seconds": time.perf_counter() - start,
        "by_kind": counts,
        "failures": failures[:50],
        "failures_total": len(failures),
        "slower_than_five_seconds": int(slowest > 5),
        "slowest_ms": 1e3 * slowest,
        "memory_grown_mib": (after - before) / 1024,
    }
    print(record)
    save("fuzz_files", record)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
