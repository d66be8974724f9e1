"""Runs every command of docs/talk.md, in order and in one empty folder, and keeps what it prints.

    python tools/talk.py            all of them, into docs/talk-output.md
    python tools/talk.py 7 21       some topics, to the screen only

Status 1 where a command ends otherwise than it should: with 2, or (pytest) with anything but 0.
"""

import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs/talk.md", ROOT / "docs/talk-output.md"
MOST_LINES = 14  # of a command's output that are kept, the last ones
MINUTES = 10  # a command


class Topic(NamedTuple):
    """One section of the page."""

    number: int
    title: str
    commands: list[str]


def topics(text: str) -> list[Topic]:
    """The sections, each with the lines of its code block."""
    found = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"(\d+)\. (.*)", part)
        if head:
            block = re.search(r"```\n(.*?)```", part, re.DOTALL)
            lines = block[1].strip().splitlines() if block else []
            found.append(Topic(int(head[1]), head[2], lines))
    return found


def run(command: str, folder: str) -> tuple[str, float, bool]:
    """What a command printed, its seconds, and whether it ended as it should."""
    began = time.perf_counter()
    line = command
    if command.startswith("python -m pytest"):
        line = f"cd {ROOT} && {command} -p no:cacheprovider --no-header"
    line = re.sub(r"(?<![\w:])((?:zoo|hf|rnn):\S+)", r"'\1'", line)  # ? is the shell's
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, text=True, timeout=60 * MINUTES,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    good = done.returncode == 0 or ("pytest" not in command and done.returncode == 1)
    printed = done.stdout.replace(str(ROOT), ".").replace(folder, ".").strip()
    return printed, time.perf_counter() - began, good


def main(numbers: list[int]) -> int:
    """Run the topics; the number of commands that ended badly."""
    chosen = [t for t in topics(PAGE.read_text()) if not numbers or t.number in numbers]
    written = [
        "# What the commands of the talk print\n\n"
        f"Written by `make talk` on {datetime.date.today()}; see [talk.md](talk.md).\n"
    ]
    bad, began = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for topic in chosen:
            parts = []
            for command in topic.commands:
                printed, seconds, good = run(command, folder)
                bad += not good
                lines = printed.splitlines()
                shown = lines if len(lines) <= MOST_LINES else ["...", *lines[-MOST_LINES:]]
                parts += [f"$ {command}", *shown]
                print(f"{topic.number}. {seconds:.0f} s {'' if good else 'FAILED '}{command}")
                if numbers or not good:
                    print("\n".join(shown))
            body = "\n".join(line.rstrip() for line in parts)
            written.append(f"## {topic.number}. {topic.title}\n```\n{body}\n```\n")
    print(f"{len(chosen)} topics, {time.perf_counter() - began:.0f} s, {bad} failed")
    if not numbers:
        KEPT.write_text("\n".join(written))
    return bad


if __name__ == "__main__":
    sys.exit(bool(main([int(number) for number in sys.argv[1:]])))
