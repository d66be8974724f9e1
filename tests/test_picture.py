"""Pictures: no name of a token is markup, and files get the names that were asked for."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pytest

from myna.app.picture import place_of, write_picture
from myna.errors import InputError

HOSTILE = ["</script><img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<!--", "plain"]


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def test_names_of_tokens_are_no_markup(tmp_path):
    rows = [{"token": name, "p": 0.25} for name in HOSTILE]
    bars = alt.Chart(alt.Data(values=rows)).mark_bar().encode(x="token:N", y="p:Q")
    page, image = write_picture(alt.vconcat(bars, title=HOSTILE[0]), tmp_path, "names")
    text = page.read_text()
    plain, _ = write_picture(alt.vconcat(bars.properties(data=alt.Data(values=[]))), tmp_path, "no")
    with_names, without = Elements(), Elements()
    with_names.feed(text)
    without.feed(plain.read_text())
    assert with_names.names == without.names and "img" not in with_names.names
    assert image.stat().st_size > 1000
    # what the page holds is still the chart
    start = text.index('{"config"') if '{"config"' in text else text.index('{"title"')
    found = json.JSONDecoder().raw_decode(text[start:])[0]
    kept = re.findall(r'"token": "([^"]*)"', json.dumps(found))
    assert kept == HOSTILE


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("curve", "curve"),
        ("v1.2", "v1.2"),
        ("v1.html", "v1"),
        ("v1.2.png", "v1.2"),
        (".png", ".png"),
    ],
)
def test_only_the_ending_of_a_picture_is_left_out(tmp_path, file, name):
    assert place_of(tmp_path / file) == (tmp_path, name)


@pytest.mark.parametrize("file", ["", ".", "/", ".."])
def test_a_picture_needs_a_name(file):
    with pytest.raises(InputError, match="needs the name of a file"):
        place_of(Path(file))
