"""Code that the docs show is run, and prints what they say it prints."""

import re
from pathlib import Path

from myna.teachers.endpoint_settings import PARAMETERS
from myna.teachers.probe import _ASKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_add_a_teacher(capsys):
    text = (DOCS / "add-a-teacher.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    body = code.split("class Bag")[1].split("result =")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    exec(compile(code, "add-a-teacher.md", "exec"), {"__name__": "docs"})
    printed = capsys.readouterr().out.strip()
    assert f"It prints `{printed}`" in text


def test_every_endpoint_parameter_is_documented():
    text = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    table = text[text.index("## Settings") :]
    assert [name for name in PARAMETERS if f"`{name}`" not in table] == []


def test_every_question_of_the_probe_is_documented():
    text = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    assert [name for name in _ASKS if f"`{name}`" not in text] == []


def test_every_topic_of_the_talk_has_a_module_a_proof_and_a_command():
    text = (DOCS / "talk.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]
    assert len(parts) >= 20
    for part in parts:
        modules = re.findall(r"`((?!bench|tests)[a-z]+/\w+\.py)`", part)
        proofs = re.findall(r"`tests/(\w+\.py)::(\w+)`", part)
        assert modules and proofs and re.search(r"```\n(myna|python -m pytest) ", part), part[:60]
        assert all((ROOT / "src/myna" / module).exists() for module in modules), modules
        for file, name in proofs:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
        for bench in re.findall(r"`(bench/\w+\.py)`", part):
            assert (ROOT / bench).exists(), bench
