"""README.md shows what its tool runs, and its figures and links are those of the pages behind it."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from myna.app.cli import app
from myna.teachers.uri import open_teacher

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from bench import HOURS, MINUTES, recorded, seconds, table  # noqa: E402
from readme import cases, lacking, rewritten  # noqa: E402
from shown import MOST_LINES, kept, lasting, run  # noqa: E402


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_three_use_cases_have_commands_and_outputs(readme):
    found = cases(readme)
    assert [case.name for case in found] == ["audit", "distil", "read"]
    assert lacking(readme) == []
    assert all(3 <= len(case.outputs) <= 5 for case in found)
    shown = [line[2:] for line in readme.splitlines() if line.startswith("$ ")]
    assert shown == [command for case in found for command in case.outputs]


def test_the_commands_name_what_there_is(readme):
    ours = typer.main.get_command(app)
    for case in cases(readme):
        for command in case.outputs:
            program, name, *words = shlex.split(command.split(" > ")[0])
            assert program == "myna" and name in ours.commands, command
            known = {option for part in ours.commands[name].params for option in part.opts}
            assert {word for word in words if word.startswith("-") and word != "-"} <= known
            for word in words:
                if word.startswith("zoo:"):
                    assert open_teacher(word).spec.num_tokens > 0


def test_outputs_hold_no_seconds_and_no_paths(readme):
    for case in cases(readme):
        for lines in case.outputs.values():
            assert len(lines) <= MOST_LINES + 1
            assert not [line for line in lines if re.match(r"time\s", line) or "/tmp" in line]


PAGE = """before
<!-- shown: one -->
```
$ first 'a?b'
old
$ second > file
```
<!-- end -->
between
<!-- shown: two -->
```
$ third
```
<!-- end -->
"""


def test_outputs_are_written_below_their_commands():
    folders = {}

    def runner(command, folder):
        folders.setdefault(folder, []).append(command)
        long = "\n".join(map(str, range(MOST_LINES + 5)))
        said = {"third": long, "second > file": ""}.get(command, "new \\1  \ntime        1.2 s")
        return said, 0.0, True

    fresh, bad = rewritten(PAGE, runner)
    assert bad == 0 and "old" not in fresh and "time" not in fresh
    assert "$ first 'a?b'\nnew \\1\n$ second > file\n```\n<!-- end -->\nbetween" in fresh
    assert "$ third\n...\n5\n" in fresh and "\n4\n" not in fresh
    assert list(folders.values()) == [["first 'a?b'", "second > file"], ["third"]]
    assert rewritten(fresh, runner)[0] == fresh
    assert lacking(fresh) == []
    assert rewritten(PAGE, lambda *_: ("", 0.0, False))[1] == 3


def test_what_is_lacking_is_named():
    assert lacking("nothing") == ["no use case stands between its marks"]
    assert lacking(PAGE) == ["two: nothing below 'third'; run `make readme`"]
    empty = PAGE.replace("$ third\n", "")
    assert lacking(empty) == ["two: no commands"]


def test_what_rewriting_would_lose_is_named():
    page = "<!-- shown: a -->\n```\nabove\n$ one\n1\n$ one\n2\n```\n<!-- end -->"
    assert [line for line in lacking(page) if "'above'" in line or "'$ one'" in line] == [
        "a: 'above' stands above all commands or is a command shown twice",
        "a: '$ one' stands above all commands or is a command shown twice",
    ]


def test_a_traceback_or_a_timeout_is_no_answer(tmp_path, monkeypatch):
    printed, _, good = run("python -c 'raise ValueError(1)'", str(tmp_path))
    assert "Traceback" in printed and not good
    assert run("exit 1", str(tmp_path))[2]  # the answer is no
    monkeypatch.setattr("shown.MINUTES", 0.01)
    assert run("sleep 5", str(tmp_path))[2] is False


def test_a_command_is_run_in_its_folder_with_teachers_quoted(tmp_path):
    printed, _, good = run("echo zoo:a?b=1&c=2 'zoo:c?d=2&e=3'; pwd", str(tmp_path))
    assert printed == "zoo:a?b=1&c=2 zoo:c?d=2&e=3\n." and good
    assert run("exit 1", str(tmp_path))[2] and not run("exit 2", str(tmp_path))[2]


def test_seconds_are_left_out():
    assert lasting("a\ntime        0.2 s\ntried   34 choices in 2.3 s\nb") == (
        "a\ntried   34 choices\nb"
    )
    assert kept("a  \nb") == ["a", "b"]


def test_rows_of_figures_are_those_of_the_long_table(readme):
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", readme[readme.index("## Measured") :], re.MULTILINE)
    whole = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    figures = [figure for _, figure in rows if figure not in ("figure", "---")]
    assert len(figures) == 10
    for figure in figures:
        assert f"| {figure.replace('](docs/', '](')} |" in whole, figure[:40]


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md", "bench/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for script in re.findall(r"`(bench/\w+\.py)`", text):
        assert (ROOT / script).exists(), script


def test_the_page_of_benchmarks_lists_what_each_target_reruns():
    page = (ROOT / "bench/README.md").read_text(encoding="utf-8")
    rows = [line.rsplit("|", 2)[0] for line in table().splitlines()]  # times change with results
    assert [row for row in rows if row not in page] == []
    kept = {path.stem for path in (ROOT / "bench/results").glob("*.json")}
    for bench in MINUTES + HOURS:
        assert (ROOT / "bench" / bench.command.split()[0]).is_file(), bench.command
        assert set(bench.results) <= kept, bench.command
    assert len({bench.command for bench in MINUTES + HOURS}) == len(MINUTES + HOURS)
    scripts = (path for path in (ROOT / "bench").glob("*.py"))
    drawn = {path.name for path in scripts if "--picture" in path.read_text(encoding="utf-8")}
    listed = {bench.command.split()[0] for bench in MINUTES if "--picture" in bench.command}
    assert listed == drawn


def test_what_make_bench_takes_is_minutes():
    kept = [ROOT / f"bench/results/{name}.json" for bench in MINUTES for name in bench.results]
    total = sum(seconds(json.loads(path.read_text(encoding="utf-8"))) for path in kept)
    assert 300 < total < 1500


def test_seconds_of_a_result():
    assert seconds({"seconds": 3, "runs": [{"seconds": 1}]}) == 3
    assert seconds({"runs": [{"seconds": 1.5}, {"a": {"seconds": 2}}], "n": 7}) == 3.5
    assert recorded(MINUTES[-1]) == "seconds" and recorded(MINUTES[0]).endswith(" s")
