"""Reruns benchmarks: those that take minutes, or the others.

    python tools/bench.py minutes     about 20 minutes on 2 cores, and all pictures of kept results
    python tools/bench.py hours       the others that need nothing but what `make` sets up
    python tools/bench.py list        both, as the table of bench/README.md

A benchmark that fails or is skipped (real models absent) does not stop the others; status 1 where
one failed. Times are the sum of the seconds that kept results record, where they do.
"""

import json
import shlex
import subprocess
import sys
import time
from typing import Any, NamedTuple

from shown import ROOT


class Bench(NamedTuple):
    """A command under bench/, and the kept results that it writes (none for pictures)."""

    command: str
    results: tuple[str, ...] = ()


MINUTES = (
    Bench("pautomac.py", ("pautomac",)),
    Bench("parity.py", ("parity",)),
    Bench("profiles.py", ("profiles",)),
    Bench("hmm_recovery.py --part exact", ("hmm_recovery.exact-0-1-2-3-4",)),
    Bench("hidden_width.py", ("hidden_width",)),
    Bench("compression.py", ("compression.copies",)),
    Bench("probe_faults.py", ("probe_faults",)),
    Bench("ledger.py --part concurrency --part disk", ("ledger.concurrency", "ledger.disk")),
    Bench("line_faults.py", ("line_faults",)),
    Bench("compression.py --picture"),
    Bench("lingen_likely.py --picture"),
    Bench("no_fidelity.py --picture"),
    Bench("sampled_anchor.py --picture"),
    Bench("sampled_budget.py --picture"),
    Bench("sampled_cost.py --picture"),
    Bench("sampled_hmms.py --picture"),
    Bench("sampled_parity.py --picture"),
    Bench("surrogates.py --picture"),
    Bench("text_students.py --picture"),
    Bench("pautomac_train.py --part picture"),
    Bench("first_copy.py --part picture"),
)

HOURS = (
    Bench("copy_model.py", ("copy_model",)),
    Bench("growth.py", ("growth",)),
    Bench("limits.py", ("limits",)),
    Bench("compiled.py", ("compiled",)),
    Bench("jieba.py", ("jieba",)),
    Bench("machines.py", ("machines",)),
    Bench("hmm_recovery.py --part samples", ("hmm_recovery.samples-0-1-2-3-4",)),
    Bench("pautomac_train.py --part samples", ("pautomac_train.samples",)),
    Bench("pautomac_train.py --part queries", ("pautomac_train.queries",)),
    Bench("pautomac_spectral.py --part tokens", ("pautomac_train.spectral",)),
    Bench("pautomac_spectral.py --part words", ("pautomac_train.words",)),
    Bench("sampled_parity.py --part ours", ("sampled_parity.ours",)),
    Bench("sampled_parity.py --part em --states 4", ("sampled_parity.em-4",)),
    Bench("sampled_parity.py --part em --states 2", ("sampled_parity.em-2",)),
    Bench("sampled_parity.py --part spectral", ("sampled_parity.spectral",)),
    Bench(
        "sampled_parity.py --part needed-ours --bits 8 12 16",
        ("sampled_parity.needed-ours-8-12-16",),
    ),
    Bench(
        "sampled_hmms.py --part ours --concentration .3 --budget 3000000",
        ("sampled_hmms.ours-0.3-0-1-2-3e+06",),
    ),
    Bench(
        "sampled_hmms.py --part ours --concentration 1 --budget 3000000",
        ("sampled_hmms.ours-1-0-1-2-3e+06",),
    ),
    Bench("sampled_anchor.py --part hmm", ("sampled_anchor.hmm-0-1-2-3-4",)),
    Bench("sampled_anchor.py --part low-rank", ("sampled_anchor.low-rank-0-1-2-3-4",)),
    Bench("sampled_anchor.py --part em --seed 0 1 2", ("sampled_anchor.em-0-1-2",)),
    Bench("sampled_anchor.py --part em --seed 3 4", ("sampled_anchor.em-3-4",)),
    Bench("sampled_budget.py --part parity", ("sampled_budget.parity",)),
    Bench("sampled_cost.py --part grid", ("sampled_cost.grid",)),
    Bench("sampled_cost.py --part parity", ("sampled_cost.parity",)),
    Bench("no_fidelity.py --part exact", ("no_fidelity.exact",)),
    Bench("no_fidelity.py --part ours", ("no_fidelity.ours-30000-100000-300000-1000000",)),
    Bench("first_copy.py --part laws", ("first_copy.laws",)),
    Bench("first_copy.py --part top5", ("first_copy.top5",)),
    Bench("first_copy.py --part samples", ("first_copy.samples",)),
    Bench("projection.py", ("projection",)),
    Bench("taming.py", ("taming",)),
    Bench("em_speed.py 150", ("em_speed",)),
    Bench("ledger.py --part speed", ("ledger.speed",)),
    Bench("ledger_crashes.py --runs 50", ("ledger_crashes.laws",)),
    Bench("fuzz_answers.py", ("fuzz_answers",)),
    Bench("fuzz_files.py 20000 40000 5000", ("fuzz_files",)),
    Bench("transformers_speed.py", ("transformers_speed",)),
)


def seconds(record: Any) -> float:
    """The sum of what a result calls seconds: its own, or those of its parts."""
    if isinstance(record, list):
        return sum(map(seconds, record))
    if not isinstance(record, dict):
        return 0.0
    own = record.get("seconds")
    return float(own) if isinstance(own, int | float) else sum(map(seconds, record.values()))


def recorded(bench: Bench) -> str:
    """The seconds that its kept results record, in words."""
    if not bench.results:
        return "seconds"
    files = (ROOT / "bench/results" / f"{name}.json" for name in bench.results)
    total = sum(seconds(json.loads(file.read_text(encoding="utf-8"))) for file in files)
    if total < 1:
        return "not recorded"
    return f"{total:.0f} s" if total < 600 else f"{total / 60:.0f} min"


def table() -> str:
    """Both lists, as rows of bench/README.md."""
    rows = ["| command | rerun by | time in its kept result |", "|---|---|---|"]
    for target, benches in (("make bench", MINUTES), ("make bench-all", HOURS)):
        rows += [f"| `{b.command}` | `{target}` | {recorded(b)} |" for b in benches]
    return "\n".join(rows)


def main(chosen: str) -> int:
    """Run a list, or show both; the exit status."""
    if chosen == "list":
        print(table())
        return 0
    failed = []
    for bench in MINUTES if chosen == "minutes" else HOURS:
        print(f"== bench/{bench.command} ({recorded(bench)} before)", flush=True)
        began = time.perf_counter()
        script, *arguments = shlex.split(bench.command)
        done = subprocess.run(
            [sys.executable, f"bench/{script}", *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        print(done.stderr, end="", file=sys.stderr)
        if done.returncode and not done.stderr.startswith("skipped"):
            failed.append(bench.command)
        print(f"== {time.perf_counter() - began:.0f} s", flush=True)
    print("\n".join(f"FAILED {command}" for command in failed) or "all ran")
    return bool(failed)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("minutes", "hours", "list"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
