"""Which process an entry of a ledger belongs to, and whether that process still runs.

A process is named by its number and a mark, the boot and the time that it started, as
numbers are used again. Where /proc is absent the number stands alone.
"""

import os
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


def mark_of(pid: int) -> str:
    """Boot and start of a running process; empty where it does not run or /proc is absent."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return "" if state in "ZX" else f"{boot} {started}"  # a zombie sends and stores no more


def runs(pid: Any, mark: Any) -> bool:
    """Whether the process that was given this mark still runs."""
    if type(pid) is not int or type(mark) is not str or pid < 1:
        return False  # of a damaged file
    if mark:
        return mark_of(pid) == mark
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
