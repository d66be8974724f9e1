"""Runs the commands that README.md shows and writes what they print below them.

    python tools/readme.py            all use cases
    python tools/readme.py --check    none: only whether each has commands and outputs

A use case stands between two marks, its commands in one block after a dollar sign each:

    <!-- shown: NAME -->
    ```
    $ myna ...
    what it printed
    ```
    <!-- end -->

The commands of one use case share an empty folder. Seconds of a run are left out; speeds that a
command measures stay, and are of the machine that ran it last. Status 1 where a command ended
otherwise than it should; README.md is then left as it was.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from shown import ROOT, kept, lasting, run

PAGE = ROOT / "README.md"
_CASE = re.compile(r"(?<=<!-- shown: )(\w+) -->\n```\n(.*?)```(?=\n<!-- end -->)", re.DOTALL)

Runner = Callable[[str, str], tuple[str, float, bool]]


class Shown(NamedTuple):
    """One use case: its name, each command with the lines below it, and lines that are wrong."""

    name: str
    outputs: dict[str, list[str]]
    wrong: tuple[str, ...] = ()


def cases(text: str) -> list[Shown]:
    """The use cases of a page, in order."""
    found = []
    for name, body in _CASE.findall(text):
        outputs: dict[str, list[str]] = {}
        wrong: list[str] = []
        last = wrong  # what stands above the first command
        for line in body.splitlines():
            if line.startswith("$ "):
                wrong += [line] if line[2:] in outputs else []
                last = outputs.setdefault(line[2:], [])
            else:
                last.append(line)
        found.append(Shown(name, outputs, tuple(wrong)))
    return found


def lacking(text: str) -> list[str]:
    """What is missing from a page: use cases, commands, or a command's output."""
    found = cases(text)
    wrong = [] if found else ["no use case stands between its marks"]
    wrong += [f"{case.name}: no commands" for case in found if not case.outputs]
    wrong += [
        f"{case.name}: {line!r} stands above all commands or is a command shown twice"
        for case in found
        for line in case.wrong
    ]
    return wrong + [
        f"{case.name}: nothing below {command!r}; run `make readme`"
        for case in found
        for command, lines in case.outputs.items()
        if not any(lines) and ">" not in command
    ]


def rewritten(text: str, runner: Runner = run) -> tuple[str, int]:
    """The page with fresh outputs, and how many commands ended badly."""
    bad = 0
    for case in cases(text):
        lines, total = [], 0.0
        with tempfile.TemporaryDirectory() as folder:
            for command in case.outputs:
                printed, seconds, good = runner(command, folder)
                bad, total = bad + (not good), total + seconds
                lines += [f"$ {command}", *kept(lasting(printed))]
                if not good:
                    print(f"FAILED {command}\n{printed}")
        print(f"{case.name}: {len(case.outputs)} commands, {total:.0f} s")
        body = f"{case.name} -->\n```\n" + "\n".join(lines) + "\n```"
        text = _CASE.sub(lambda m, n=case.name, b=body: b if m[1] == n else m[0], text)
    return text, bad


def main(arguments: list[str]) -> int:
    """Rewrite or check the page; the exit status. What would be lost by rewriting is refused."""
    text = PAGE.read_text(encoding="utf-8")
    if any(case.wrong for case in cases(text)):
        arguments = ["--check"]
    if arguments == ["--check"]:
        print("\n".join(lacking(text)) or "every command of README.md has its output")
        return bool(lacking(text))
    fresh, bad = rewritten(text)
    if not bad:
        PAGE.write_text(fresh, encoding="utf-8")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
