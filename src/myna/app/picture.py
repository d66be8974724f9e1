"""One chart specification, written as an HTML page and as a PNG."""

import json
from pathlib import Path

import altair as alt

from myna.app.models import writing
from myna.errors import InputError
from myna.learn.report import LearnReport
from myna.teachers.files import in_the_way

_WIDTH = 640


def rank_and_queries(report: LearnReport, title: str) -> alt.VConcatChart:
    """Rank at each cut above; next-token queries at each cut, by purpose, below."""
    ranks = [
        {"cut": cut.cut, "rank": cut.rank, "futures": cut.futures}
        for cut in report.cuts
        if cut.cut is not None
    ]
    queries = [
        {"cut": cut, "queries": count, "purpose": purpose}
        for purpose, counts in report.queries_by_cut.items()
        for cut, count in enumerate(counts)
    ]
    last = max((row["cut"] for row in queries), default=0)
    across = alt.X(
        "cut:Q",
        title="cut (tokens read)",
        axis=alt.Axis(tickMinStep=1, format="d"),
        scale=alt.Scale(domain=[-0.5, last + 0.5], nice=False),
    )
    lower = (
        alt.Chart(alt.Data(values=queries), width=_WIDTH, height=180)
        .mark_bar(size=max(1, min(20, _WIDTH // (last + 2))))
        .encode(
            x=across,
            y=alt.Y("queries:Q", title="next-token queries"),
            color=alt.Color("purpose:N", title="purpose", scale=alt.Scale(scheme="tableau10")),
            tooltip=["cut:Q", "purpose:N", "queries:Q"],
        )
    )
    panels = [lower]
    if ranks:
        top = max(row["rank"] for row in ranks)
        upper = (
            alt.Chart(alt.Data(values=ranks), width=_WIDTH, height=140)
            .mark_line(interpolate="step-after", point=True, color="#4c78a8")
            .encode(
                x=across,
                y=alt.Y(
                    "rank:Q",
                    title="rank",
                    axis=alt.Axis(tickCount=min(top + 1, 8), format="d"),
                    scale=alt.Scale(domain=[0, top + 1]),
                ),
                tooltip=["cut:Q", "rank:Q", "futures:Q"],
            )
        )
        panels = [upper, lower]
    return alt.vconcat(*panels, title=title).resolve_scale(x="shared" if ranks else "independent")


def write_picture(chart: alt.VConcatChart, folder: Path, name: str) -> tuple[Path, Path]:
    """Write name.html (complete in itself, works offline) and name.png.

    Raises:
        InputError: where they cannot be written.
    """
    page, image = folder / f"{name}.html", folder / f"{name}.png"
    with writing("picture", folder):
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(_page(chart), encoding="utf-8")
        chart.save(image, scale_factor=2)
    return page, image


def _page(chart: alt.VConcatChart) -> str:
    """The chart with all that it needs; no name in it can end the page's script or begin another.

    JSON is escaped only where the page holds it: the libraries that stand beside it are not.
    """
    page, spec = chart.to_html(inline=True), json.dumps(chart.to_dict())
    before, found, after = page.partition(spec)
    assert found, "the page does not hold the chart as JSON"
    return before + spec.replace("<", "\\u003c") + after


def place_of(file: Path) -> tuple[Path, str]:
    """Folder and name of a picture; a last .html or .png is left out.

    Raises:
        InputError: where no name is left, or no folder can be made there.
    """
    name = file.stem if file.suffix in (".html", ".png") else file.name
    if name in ("", ".."):
        raise InputError(f"a picture needs the name of a file, got {str(file)!r}")
    check_folder(file.parent)
    return file.parent, name


def check_folder(folder: Path) -> None:
    """Refuse a folder for pictures that could not be made, before anything is spent on them.

    Raises:
        InputError: saying what is in the way.
    """
    if there := in_the_way(folder):
        raise InputError(
            f"a picture cannot be written to {folder}: {there} is no folder that can be written to; "
            "name another"
        )
