"""A machine as a picture: states on a circle, so that no edge runs through a third state.

States stand clockwise from the top in the order of their numbers, which is that of their depth. An
arrowhead is at the end it leads to; two states may be joined both ways by one line. A ring beside a
state stands for the tokens that lead back to it.
"""

import math
from pathlib import Path
from typing import Any

import altair as alt

from myna.app.picture import write_picture
from myna.errors import InputError
from myna.lowrank.machine import Machine

_MOST = 60
_SIDE = 620
_OUTSIDE = 1.45  # half the width shown, the circle being 1: room for histories
_SHOWN = 28  # characters of a history
_NAMED = 12  # with more states, tokens are shown only to whoever points at an edge


def check_picture(file: Path, machine: Machine) -> None:
    """Refuse a picture that could not be written, or not be read.

    Raises:
        InputError: another ending than .png or .html, or more than 60 states.
    """
    if file.suffix not in (".png", ".html"):
        raise InputError(f"a picture ends in .png or .html, got {file.name!r}")
    if machine.num_states > _MOST:
        raise InputError(
            f"a picture shows up to {_MOST} states and the machine has {machine.num_states:,}; "
            "write a Graphviz file with --dot"
        )


def draw_machine(machine: Machine, file: Path, title: str) -> None:
    """Write the picture as FILE's name with .png and with .html.

    Raises:
        InputError: as `check_picture`, or where the files cannot be written.
    """
    check_picture(file, machine)
    chart = alt.vconcat(machine_chart(machine), title=title).configure_view(stroke=None)
    write_picture(chart, file.parent, file.stem)


def machine_chart(machine: Machine) -> alt.LayerChart | alt.FacetChart:
    """States, edges and arrowheads; pointing at one shows its tokens."""
    count = machine.num_states
    around = [2 * math.pi * i / count for i in range(count)]
    places = [(math.sin(angle), math.cos(angle)) for angle in around]
    radius = min(0.05, 2.2 / (3 * count))
    edges = _edges(machine, places, radius)
    across = {
        "x": alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-_OUTSIDE, _OUTSIDE], nice=False)),
        "y": alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-_OUTSIDE, _OUTSIDE], nice=False)),
    }
    pixels = radius * _SIDE / _OUTSIDE / 2
    base = alt.Chart(alt.Data(values=edges), width=_SIDE, height=_SIDE)
    between = base.transform_filter("datum.source != datum.target")
    told = ["source:N", "target:N", "tokens:N"]
    lines = between.mark_rule(color="#8a8a8a", strokeWidth=1, opacity=0.55).encode(
        **across, x2="x2:Q", y2="y2:Q", tooltip=told
    )
    heads = between.transform_calculate(x="datum.x2", y="datum.y2").mark_point(
        shape="triangle-up", filled=True, color="#555", size=40, opacity=0.9
    ).encode(**across, angle=alt.Angle("turn:Q", scale=None), tooltip=told)  # fmt: skip
    loops = base.transform_filter("datum.source == datum.target").mark_point(
        shape="circle", filled=False, color="#8a8a8a", size=math.pi * pixels**2 * 1.2
    ).encode(**across, tooltip=told)  # fmt: skip
    layers = [lines, loops, heads, *_nodes(machine, places, across, pixels)]
    if count <= _NAMED:
        # nearer to where an edge begins, so that the two directions of a line do not meet
        named = base.transform_calculate(
            x="datum.x + 0.3 * (datum.x2 - datum.x)", y="datum.y + 0.3 * (datum.y2 - datum.y)"
        )
        halo = named.mark_text(fontSize=10, color="white", stroke="white", strokeWidth=4)
        text = named.mark_text(fontSize=10, color="#333")
        layers += [mark.encode(**across, text="names:N") for mark in (halo, text)]
    return alt.layer(*layers)


def _nodes(
    machine: Machine, places: list[tuple[float, float]], across: dict[str, Any], pixels: float
) -> list[alt.Chart]:
    """A disc with the state's number, its shortest history outside the circle."""
    rows = []
    for i, (x, y) in enumerate(places):
        name = machine.spec.named(machine.histories[i])
        law = sorted(zip(machine.laws[i].tolist(), machine.spec.alphabet, strict=True))[::-1]
        likely = ", ".join(f"{token} {p:.3g}" for p, token in law[:5] if p > 0)
        short = name if len(name) <= _SHOWN else "\u2026" + name[1 - _SHOWN :]
        row = {"x": x, "y": y, "state": str(i), "history": name, "short": short, "law": likely}
        rows.append(row | {"left": x < -1e-9})
    base = alt.Chart(alt.Data(values=rows), width=_SIDE, height=_SIDE)
    told = ["state:N", "history:N", "law:N"]
    discs = base.mark_point(
        shape="circle", filled=True, color="#4c78a8", opacity=1.0, size=math.pi * pixels**2
    ).encode(**across, tooltip=told)
    size = max(7.0, min(12.0, pixels))
    numbers = base.mark_text(color="white", fontSize=size).encode(**across, text="state:N")
    further = 1.02 + 1.6 * pixels * 2 * _OUTSIDE / _SIDE
    outside = base.transform_calculate(x=f"datum.x * {further}", y=f"datum.y * {further}")
    texts = [
        outside.transform_filter("datum.left").mark_text(align="right", fontSize=size + 1),
        outside.transform_filter("!datum.left").mark_text(align="left", fontSize=size + 1),
    ]
    texts = [text.encode(**across, text="short:N", tooltip=told) for text in texts]
    return [discs, numbers, *texts]


def _edges(
    machine: Machine, places: list[tuple[float, float]], radius: float
) -> list[dict[str, Any]]:
    """One for each pair of states joined by tokens, ending at the rim of the one it leads to."""
    named: dict[tuple[int, int], list[int]] = {}
    for source, token in (machine.moves >= 0).nonzero().tolist():
        named.setdefault((source, int(machine.moves[source, token])), []).append(token)
    edges = []
    for (source, target), tokens in named.items():
        (x, y), (x2, y2) = places[source], places[target]
        if source == target:
            x, y = x * (1 - 1.7 * radius), y * (1 - 1.7 * radius)
        away = math.hypot(x2 - x, y2 - y)
        cut = 1.5 * radius / away if source != target else 0.0
        edges.append(
            {
                "source": str(source),
                "target": str(target),
                "names": ", ".join(machine.spec.alphabet[token] for token in tokens),
                "tokens": ", ".join(
                    f"{machine.spec.alphabet[token]} {float(machine.laws[source, token]):.3g}"
                    for token in tokens
                ),
                "x": x,
                "y": y,
                "x2": x2 - cut * (x2 - x),
                "y2": y2 - cut * (y2 - y),
                "turn": math.degrees(math.atan2(x2 - x, y2 - y)),
            }
        )
    return edges
