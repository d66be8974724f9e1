"""Benchmark results as JSON: the figures, the machine, the commit, the command."""

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


def need_shared() -> Path:
    """The folder of real models; the benchmark ends, saying so, where it is absent."""
    if not SHARED.is_dir():
        sys.exit(f"skipped: real models are not here ({SHARED} is absent)")
    return SHARED


def machine() -> dict[str, Any]:
    """What a figure depends on, besides the code."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The commit, with a plus where the tree has changes."""
    run = {"capture_output": True, "text": True, "cwd": Path(__file__).parent}
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], check=False, **run
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "../src"], check=False, **run
    ).stdout
    return head + ("+" if changed.strip() else "")


def save(name: str, record: dict[str, Any]) -> None:
    """Write results/name.json."""
    FOLDER.mkdir(exist_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "peak_memory_mib": round(peak),
        **record,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written to {path}")
