"""Code that the docs show is run, and prints what they say it prints."""

import re
from pathlib import Path

from myna.teachers.endpoint_settings import PARAMETERS
from myna.teachers.probe import _ASKS

DOCS = Path(__file__).parents[1] / "docs"


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
