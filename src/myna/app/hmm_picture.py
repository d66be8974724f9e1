"""A hidden Markov model as a picture: what each state says, and where it goes."""

import altair as alt

from myna.lowrank.model import LowRankModel

_SYMBOLS = 10  # of each state, the likeliest
_STATES = 24  # rows shown, those that start or are entered most
_LETTERS = 4  # of a symbol that fits under its bar
_CELL = 46  # pixels of a transition


def hmm_chart(model: LowRankModel, title: str) -> alt.VConcatChart:
    """A row a state: bars of its likeliest symbols, likeliest first; a heat map of T beside them.

    model: stationary, in hidden Markov form
    """
    transitions = model.transitions
    assert transitions is not None  # only such models come here
    share = model.first + transitions[0].sum(0)
    shown = sorted(share.topk(min(_STATES, len(share))).indices.tolist())
    note = f" ({len(shown)} of {len(share)} states)" if len(shown) < len(share) else ""
    rows = [_symbols(model, state) for state in shown]
    heat = _heat(model, shown)
    bars = alt.vconcat(*rows, spacing=4, title="likeliest symbols, with their probabilities")
    return alt.vconcat(alt.hconcat(bars, heat, spacing=30), title=title + note)


def _symbols(model: LowRankModel, state: int) -> alt.Chart:
    """The bars of one state."""
    law = model.steps[0].laws[state]
    top = law.topk(min(_SYMBOLS, len(law)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    rows = [{"symbol": model.spec.alphabet[o], "probability": p} for o, p in pairs if p > 0]
    starts = f"state {state}, starts {float(model.first[state]):.3g}"
    return (
        alt.Chart(
            alt.Data(values=rows),
            width=alt.Step(30),
            height=56,
            title=alt.Title(starts, anchor="start", fontSize=11),
        )
        .mark_bar(color="#4c78a8")
        .encode(
            x=alt.X("symbol:N", title=None, sort=None, axis=_axis(rows)),
            y=alt.Y(
                "probability:Q",
                title=None,
                axis=alt.Axis(values=[0, 0.5, 1]),
                scale=alt.Scale(domain=[0, 1]),
            ),
            tooltip=["symbol:N", alt.Tooltip("probability:Q", format=".4f")],
        )
    )


def _axis(rows: list[dict]) -> alt.Axis:
    """Words stand upright: side by side they would run into each other."""
    long = max((len(row["symbol"]) for row in rows), default=0) > _LETTERS
    return alt.Axis(labelAngle=-90 if long else 0, labelLimit=80)


def _heat(model: LowRankModel, shown: list[int]) -> alt.LayerChart | alt.FacetChart:
    """T, with its numbers while they can be read."""
    transitions = model.transitions
    assert transitions is not None
    table = transitions[0]
    values = [{"from": i, "to": j, "probability": float(table[i, j])} for i in shown for j in shown]
    size = max(18, min(_CELL, 620 // len(shown)))
    base = alt.Chart(
        alt.Data(values=values), width=alt.Step(size), height=alt.Step(size), title="transitions"
    ).encode(
        x=alt.X("to:O", title="to state", axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("from:O", title="from state"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "probability:Q",
            title="probability",
            scale=alt.Scale(scheme="blues", domain=[0, 1]),
        ),
        tooltip=["from:O", "to:O", alt.Tooltip("probability:Q", format=".4f")],
    )
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("probability:Q", format=".2f"),
        color=alt.condition("datum.probability > 0.55", alt.value("white"), alt.value("#222")),
    )
    return alt.layer(cells, numbers) if size > 30 else alt.layer(cells)
