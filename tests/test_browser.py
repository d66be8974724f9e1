"""Pages in a real browser: they load alone, show what they say, and no script complains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from myna.app.cli import main

pytest.importorskip("PyQt6.QtWebEngineWidgets", reason="no browser: PyQt6-WebEngine is absent")


def opened(page: Path, script: str) -> dict:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "browser.py"), str(page), script],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"], done.stderr
    return found


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code


@pytest.fixture
def copy(tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    run(monkeypatch, "learn", "zoo:parity?bits=4&seed=3", "-o", folder, "--json")
    return folder


def test_an_explained_copy(tmp_path, monkeypatch, copy):
    page = tmp_path / "explained.html"
    run(monkeypatch, "explain", copy, "-o", page, "--cut", 2)
    found = opened(
        page,
        """({
            title: document.title,
            tables: document.querySelectorAll("table").length,
            hidden: [...document.querySelectorAll("td")].filter(e => !e.offsetHeight).length,
            text: document.body.innerText,
            wide: document.documentElement.scrollWidth > window.innerWidth,
        })""",
    )
    assert found["requested"] == [] and found["console"] == []
    seen = found["found"]
    assert "copy" in seen["title"]
    assert seen["tables"] >= 2 and seen["hidden"] == 0 and not seen["wide"]
    assert "after 2 tokens" in seen["text"].lower()


def test_a_chart_draws_itself_without_a_network(tmp_path, monkeypatch, copy):
    run(monkeypatch, "compress", copy, "-o", tmp_path / "s", "--rank", 1, "--curve", tmp_path / "c")
    found = opened(
        tmp_path / "c.html",
        """({
            drawn: document.querySelectorAll("canvas, svg").length,
            tall: Math.max(...[...document.querySelectorAll("canvas, svg")].map(e => e.clientHeight)),
        })""",
    )
    assert found["requested"] == []
    assert found["found"]["drawn"] >= 1 and found["found"]["tall"] > 200


def test_a_page_that_asks_the_network_is_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<title>bad</title><img src="http://127.0.0.1:9/x.png"><script>oops()</script>')
    found = opened(page, "document.title")
    assert found["found"] == "bad"
    assert found["requested"] == ["http://127.0.0.1:9/x.png"]
    assert any("oops" in said for said in found["console"])
