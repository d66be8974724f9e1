"""Histories as points: what `myna spectrum` shows of their embeddings."""

from typing import Any

import altair as alt

from myna.logits.embedding import Embedding, neighbours
from myna.spec import Spec
from myna.teachers.prefixes import Prefixes

_NEAR = 3
_SHOWN = 60  # characters of a text, its end
_POINTS = 2_000


def history_map(spec: Spec, histories: Prefixes, found: Embedding | None) -> list[dict[str, Any]]:
    """Each history's text, place on the map, and nearest other histories by number."""
    if found is None or found.coordinates.shape[1] < 2:
        return []
    near = neighbours(found.coordinates, min(_NEAR, len(found.coordinates) - 1)).tolist()
    places = found.coordinates[:, :2].tolist()
    return [
        {"text": _text(spec, row), "x": x, "y": y, "nearest": others}
        for row, (x, y), others in zip(histories.rows(), places, near, strict=True)
    ]


def map_chart(points: list[dict[str, Any]]) -> alt.Chart:
    """The first two coordinates; pointing at a history shows it and its neighbours."""
    rows = [
        {
            "x": point["x"],
            "y": point["y"],
            "history": point["text"],
            **{f"near {i + 1}": points[other]["text"] for i, other in enumerate(point["nearest"])},
        }
        for point in points[:_POINTS]
    ]
    names = ["history", *(f"near {i + 1}" for i in range(len(points[0]["nearest"])))]
    return (
        alt.Chart(
            alt.Data(values=rows),
            width=520,
            height=360,
            title="histories by what the model would say (real futures); point at one",
        )
        .mark_circle(size=36, opacity=0.6, color="#4c78a8")
        .encode(
            x=alt.X("x:Q", title="first coordinate (nats)"),
            y=alt.Y("y:Q", title="second coordinate (nats)"),
            tooltip=[alt.Tooltip(f"{name}:N") for name in names],
        )
    )


def _text(spec: Spec, row: tuple[int, ...]) -> str:
    """The end of a history, tokens joined; a piece that begins a word shows as a space."""
    whole = "".join(spec.alphabet[token] for token in row).replace("\u2581", " ")
    return whole if len(whole) <= _SHOWN else "\u2026" + whole[-_SHOWN:]
