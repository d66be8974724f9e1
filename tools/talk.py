"""Runs every command of docs/talk.md, in order and in one empty folder, and keeps what it prints.

    python tools/talk.py            all of them, into docs/talk-output.md
    python tools/talk.py 7 21       some topics, to the screen only

Status 1 where a command ends otherwise than it should: with 2, or (pytest) with anything but 0.
"""

import datetime
import re
import sys
import tempfile
import time
from typing import NamedTuple

from shown import ROOT, kept, run

PAGE, KEPT = ROOT / "docs/talk.md", ROOT / "docs/talk-output.md"


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
                shown = kept(printed)
                parts += [f"$ {command}", *shown]
                print(f"{topic.number}. {seconds:.0f} s {'' if good else 'FAILED '}{command}")
                if numbers or not good:
                    print("\n".join(shown))
            body = "\n".join(parts)
            written.append(f"## {topic.number}. {topic.title}\n```\n{body}\n```\n")
    print(f"{len(chosen)} topics, {time.perf_counter() - began:.0f} s, {bad} failed")
    if not numbers:
        KEPT.write_text("\n".join(written))
    return bad


if __name__ == "__main__":
    sys.exit(bool(main([int(number) for number in sys.argv[1:]])))
