"""Commands that a page shows, run as a reader would run them: for talk.py and readme.py."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 14  # of a command's output that are kept, the last ones
MINUTES = 10  # a command
_CHANGES = re.compile(r"^time  .*\n?|(?<= choices) in [\d.]+ s$", re.MULTILINE)


def run(command: str, folder: str) -> tuple[str, float, bool]:
    """What a command printed, its seconds, and whether it ended as it should."""
    began = time.perf_counter()
    line = command
    if command.startswith("python -m pytest"):
        line = f"cd {ROOT} && {command} -p no:cacheprovider --no-header"
    line = re.sub(r"(?<![\w:'])((?:zoo|hf|rnn):\S+)", r"'\1'", line)  # ? is the shell's
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    try:
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, text=True, timeout=60 * MINUTES,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {MINUTES} minutes", 60.0 * MINUTES, False
    # 1 says that a command's answer is no, and also that Python gave up
    said_no = done.returncode == 1 and "Traceback (most recent call last)" not in done.stdout
    good = done.returncode == 0 or ("pytest" not in command and said_no)
    printed = done.stdout.replace(str(ROOT), ".").replace(folder, ".").strip()
    return printed, time.perf_counter() - began, good


def kept(printed: str) -> list[str]:
    """The last lines of an output, without blanks at their ends."""
    lines = [line.rstrip() for line in printed.splitlines()]
    return lines if len(lines) <= MOST_LINES else ["...", *lines[-MOST_LINES:]]


def lasting(printed: str) -> str:
    """An output without the seconds that a run took, which no two runs share."""
    return _CHANGES.sub("", printed).rstrip()
