"""`myna spectrum` without --next-token: spectra of histories x futures, as a page and as JSON."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import torch
from rich.progress import BarColumn, Progress, TextColumn

from myna.app import output
from myna.app.history_map import history_map, map_chart
from myna.app.models import generator_of
from myna.app.picture import write_picture
from myna.errors import InputError
from myna.logits import blocks as of_blocks
from myna.logits.blocks import Blocks
from myna.logits.controls import low_rank, shuffled, unigram
from myna.logits.matrix import LogitMatrix, logit_matrix
from myna.logits.spectrum import Study, angles, study
from myna.logits.strings import from_draws, from_texts
from myna.teachers.crossing import FutureTree
from myna.teachers.encode import encoded, read_texts
from myna.teachers.oracle import Laws, Samples
from myna.teachers.prefixes import Prefixes
from myna.teachers.transformer import TransformerTeacher

_ALIKE = 3  # histories shown with their nearest
_DIM = 16  # of the control of exact low rank
_TOKENS = 32


class Request(NamedTuple):
    """What the command line asks; see `myna spectrum --help`."""

    name: str
    histories: int
    futures: int
    tokens: int | None
    text: list[str]
    places: str
    top_k: int | None
    double_centre: bool
    controls: bool
    keep: Path | None
    memory_mib: int
    seed: int


def block_spectrum(source: Laws, request: Request, model: Samples) -> dict[str, Any]:
    """Run it, and return what is printed and drawn.

    source: what is asked, a ledger's view or the model itself
    model: what stands behind it, whose shape the untrained control has
    """
    histories, futures = _strings(source, request)
    found = {"real": _studied(source, histories, futures, request, "real")}
    if request.controls:
        for name, teacher, strings in _controls(source, histories, futures, request, model):
            found[name] = _studied(teacher, histories, strings, request, name)
    places = int(futures.lengths.sum())
    distinct = len(FutureTree.of(futures).pairs)
    record: dict[str, Any] = {
        "teacher": request.name,
        "histories": len(histories.lengths),
        "futures": len(futures.lengths),
        "tokens": int(futures.lengths.max()),
        "places": request.places,
        "top_k": request.top_k,
        "laws": len(histories.lengths) * places,
        "laws_shared": len(histories.lengths) * (places - distinct),
        "spectra": {name: _plain(one) for name, one in found.items()},
    }
    embedding = found["real"].embedding
    record["map"] = history_map(source.spec, histories, embedding)
    record["map_energy"] = None if embedding is None else embedding.share
    if "nonsense" in found and request.places != "none":
        record["angles"] = output.plain(angles(found["real"], found["nonsense"]))
    return record


def _strings(source: Laws, request: Request) -> tuple[Prefixes, Prefixes]:
    horizon = source.spec.horizon
    tokens = request.tokens or (_TOKENS if horizon is None else max(1, min(_TOKENS, horizon // 2)))
    counts = (request.histories, request.futures, tokens)
    if request.text:
        texts = encoded(request.name, source.spec, read_texts(request.text))
        return from_texts(texts, *counts, generator_of(request.seed), source.spec.stop)
    return from_draws(source, *counts, request.seed)


def _controls(
    source: Laws, histories: Prefixes, futures: Prefixes, request: Request, model: Samples
) -> list[tuple[str, Laws, Prefixes]]:
    spec = source.spec
    nonsense = shuffled(futures, spec.stop, generator_of(request.seed))
    longest = int(histories.lengths.max()) + int(futures.lengths.max())
    strings = torch.cat([histories.tokens.reshape(-1), futures.tokens.reshape(-1)])[None]
    found: list[tuple[str, Laws, Prefixes]] = [("nonsense", source, nonsense)]
    if isinstance(model, TransformerTeacher):
        found.append(("untrained", model.untrained(request.seed), futures))
    found.append(("unigram", unigram(spec, strings), futures))
    found.append(("low rank", low_rank(spec, _DIM, longest, request.seed), futures))
    return found


def _studied(
    teacher: Laws, histories: Prefixes, futures: Prefixes, request: Request, name: str
) -> Study:
    matrix: LogitMatrix = logit_matrix(
        teacher, histories, futures, places=request.places, k=request.top_k
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(
        *columns, console=output.err, transient=True, disable=not output.err.is_terminal
    ) as bars:
        task = bars.add_task(f"{name}: reading", total=None, left="")

        def report(progress: of_blocks.Progress) -> None:
            left = f"about {progress.seconds_left:,.0f} s left"
            bars.update(task, total=progress.pairs, completed=progress.done, left=left)
            if not progress.done:
                output.err.print(f"{name}: {progress.pairs:,} pairs, {left}", markup=False)

        blocks = Blocks(matrix, request.memory_mib * 2**20, request.keep, report=report)
        return study(blocks, double_centre=request.double_centre)


def _plain(found: Study) -> dict[str, Any]:
    """All but the vectors of histories."""
    vectors = ("left", "embedding")
    names = [field.name for field in dataclasses.fields(found) if field.name not in vectors]
    return {name: output.plain(getattr(found, name)) for name in names}


def show(record: dict[str, Any], out: Path | None) -> None:
    """A table a set of strings."""
    rows = []
    for name, one in record["spectra"].items():
        for spectrum in one["spectra"]:
            power = spectrum["power"]
            shown = (
                "none: too few ranks, or rounding"
                if power is None
                else f"{power['exponent']:.3f} ({power['low']:.3f} to {power['high']:.3f})"
            )
            ranks = [str(spectrum[key]) for key in ("rank_90", "rank_99", "rank_999")]
            rows.append([name, spectrum["entries"], *ranks, shown])
    size = f"{record['histories']:,} histories x {record['futures']:,} futures"
    heads = ["futures", "entries", "90%", "99%", "99.9%", "exponent"]
    output.show_table(f"{size}, {record['tokens']} tokens: ranks by energy", heads, rows)
    for angle in record.get("angles", []):
        output.out.print(
            f"real and nonsense futures, {angle['rank']} leading directions: {angle['near']} with "
            f"cosines of .9 or more, mean squared cosine {angle['mean_square']:.3f} "
            f"({angle['by_chance']:.3f} by chance)"
        )
    for point in record["map"][:_ALIKE]:
        other = record["map"][point["nearest"][0]]
        output.out.print(f"alike  {point['text']!r} and {other['text']!r}", markup=False)
    if out is not None:
        output.out.print(f"page  {out / 'spectrum.html'}", markup=False)


def draw(record: dict[str, Any], out: Path) -> None:
    """One page of charts that light up together, and a PNG."""
    write_picture(page(record), out, "spectrum")


def page(record: dict[str, Any]) -> alt.VConcatChart:
    """Singular values and lost energy by rank, D_avg, and angles; a click singles a model out."""
    chosen = alt.selection_point(name="model", fields=["model"], bind="legend")
    colour = alt.Color(
        "model:N",
        title="model and futures",
        sort=list(record["spectra"]),
        scale=alt.Scale(scheme="tableau10"),
    )
    seen = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.1))
    rows = [
        {
            "model": name,
            "entries": spectrum["entries"],
            "rank": i + 1,
            "value": value / spectrum["values"][0],
            "lost": 1 - spectrum["energy"][i],
        }
        for name, one in record["spectra"].items()
        for spectrum in one["spectra"]
        for i, value in enumerate(spectrum["values"])
        if value > 1e-7 * spectrum["values"][0]
    ]
    log = alt.Scale(type="log")
    across = alt.X("rank:Q", title="rank", scale=log)

    def lines(y: str, title: str, entries: str) -> alt.Chart:
        kept = [row for row in rows if row["entries"] == entries and row[y] > 1e-7]
        return (
            alt.Chart(alt.Data(values=kept), width=250, height=220, title=entries)
            .mark_line(clip=True)
            .encode(
                x=across,
                y=alt.Y(f"{y}:Q", title=title, scale=log, axis=alt.Axis(format=".0e")),
                color=colour,
                opacity=seen,
                tooltip=["model:N", "rank:Q", f"{y}:Q"],
            )
        )

    kinds = [spectrum["entries"] for spectrum in record["spectra"]["real"]["spectra"]]
    values = [lines("value", "singular value / first", kind) for kind in kinds]
    upper = alt.hconcat(values[0].add_params(chosen), *values[1:])
    middle = alt.hconcat(*(lines("lost", "energy lost", kind) for kind in kinds))
    title = (
        f"{record['teacher'].rsplit('/', 1)[-1]}: {record['histories']:,} histories x "
        f"{record['futures']:,} futures of {record['tokens']} tokens"
    )
    panels: list[alt.HConcatChart] = [upper, middle]
    lower = _lower(record, colour, seen)
    if lower:
        panels.append(alt.hconcat(*lower).resolve_scale(strokeDash="independent"))
    maps = [map_chart(record["map"])] if record["map"] else []
    return alt.vconcat(*panels, *maps, title=title)


def _lower(record: dict[str, Any], colour: alt.Color, seen: Any) -> list[alt.Chart]:
    """D_avg by rank; cosines of the angles to nonsense; exponents by size."""
    log = alt.Scale(type="log")
    cuts = [
        {"model": name, **cut}
        for name, one in record["spectra"].items()
        for cut in one["truncations"]
        if cut["d_avg"] > 1e-9
    ]
    charts = []
    if cuts:
        charts.append(
            alt.Chart(alt.Data(values=cuts), width=250, height=220, title="laws of cut logits")
            .mark_line(point=True)
            .encode(
                x=alt.X("rank:Q", scale=log),
                y=alt.Y("d_avg:Q", title="D_avg (nats)", scale=log, axis=alt.Axis(format=".0e")),
                color=colour,
                opacity=seen,
                tooltip=["model:N", "rank:Q", "d_avg:Q", "own:Q", "fresh:Q"],
            )
        )
    cosines = [
        {"place": i + 1, "cosine": cosine, "rank": f"{angle['rank']}"}
        for angle in record.get("angles", [])
        if angle["rank"] >= 5
        for i, cosine in enumerate(angle["cosines"])
    ]
    if cosines:
        charts.append(
            alt.Chart(
                alt.Data(values=cosines), width=250, height=220, title="angles, real to nonsense"
            )
            .mark_line(color="gray")
            .encode(
                x=alt.X("place:Q", title="principal angle", scale=log),
                y=alt.Y("cosine:Q", scale=alt.Scale(domain=[0, 1])),
                strokeDash=alt.StrokeDash("rank:N", title="leading directions"),
                tooltip=["rank:N", "place:Q", "cosine:Q"],
            )
        )
    sizes = [
        {"model": name, **size, "kind": f"{size['entries']}, {size['part']}"}
        for name, one in record["spectra"].items()
        for size in one["sizes"]
        if size["part"] in ("1/4", "1/2", "all")
    ]
    charts.append(
        alt.Chart(alt.Data(values=sizes), width=250, height=220, title="stability under size")
        .mark_line(point=True)
        .encode(
            x=alt.X("histories:Q", scale=log),
            y=alt.Y("rank_99:Q", title="rank of 99% energy", scale=log),
            color=colour,
            opacity=seen,
            strokeDash=alt.StrokeDash("entries:N"),
            tooltip=["model:N", "kind:N", "rank_99:Q", "exponent:Q"],
        )
    )
    return charts


def check_level(source: Any) -> Laws:
    """Refuse teachers that show less than whole laws.

    Raises:
        InputError: saying so.
    """
    if not isinstance(source, Laws):
        raise InputError(
            "spectra of histories x futures need whole next-token laws, and this teacher shows "
            "less; use one at the level of laws"
        )
    return source
