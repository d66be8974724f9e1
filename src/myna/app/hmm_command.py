"""`myna hmm`: the hidden Markov model in a saved copy, as tables.

Exit status: 0 found; 1 there is no such model of the copy's rank, and why; 2 the request could not
be worked with.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from myna.app import output
from myna.app.models import generator_of, open_saved, plain_copy, writing
from myna.app.options import Json, Seed
from myna.lowrank.hidden import HiddenForm, hidden_form
from myna.lowrank.model import LowRankModel

_SHOWN = 6  # tokens of a state


def hmm_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Archive to write: keys pi, T and E.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The largest residual that is accepted.")
    ] = 1e-8,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Read a hidden Markov model off a stationary copy, where it is one."""
    copy = plain_copy(student, open_saved(student))
    form = _form(copy, tolerance, seed)
    record = {
        "student": student,
        "states": form.model.ranks[0] if form.model else None,
        "residual": form.residual,
        "reason": form.reason,
        "saved": None,
    }
    if form.model is not None and out is not None:
        _write(out, form.model)
        record["saved"] = str(out)
    if as_json:
        output.print_json(record)
    else:
        _show(form, record["saved"])
    raise typer.Exit(0 if form.model else 1)


def _form(copy: LowRankModel, tolerance: float, seed: int) -> HiddenForm:
    """As it stands, or by simultaneous diagonalisation."""
    if copy.transitions is not None and len(copy.steps) == 1:
        return HiddenForm(copy, 0.0, f"a hidden Markov model with {copy.ranks[0]} states")
    return hidden_form(copy, generator_of(seed), tolerance)


def _write(out: Path, model: LowRankModel) -> None:
    step, transitions = model.steps[0], model.transitions
    assert transitions is not None
    pi, moves, emits = (t.cpu().numpy() for t in (model.first, transitions[0], step.laws))
    with writing("tables", out), out.open("wb") as file:
        np.savez(file, pi=pi, T=moves, E=emits)


def _show(form: HiddenForm, saved: str | None) -> None:
    """Each state with the tokens it emits most, and where it goes."""
    output.out.print(f"{form.reason} (residual {form.residual:.2g})", markup=False)
    if form.model is None:
        return
    transitions = form.model.transitions
    assert transitions is not None
    names, rows = form.model.spec.alphabet, []
    for i, (law, moves) in enumerate(zip(form.model.steps[0].laws, transitions[0], strict=True)):
        top = law.topk(min(_SHOWN, len(law)))
        said = ", ".join(
            f"{names[int(o)]} {float(p):.3g}" for p, o in zip(*top, strict=True) if float(p) > 0
        )
        goes = torch.argsort(moves, descending=True)[:3].tolist()
        where = ", ".join(f"{j} {float(moves[j]):.3g}" for j in goes if float(moves[j]) > 0)
        rows.append([str(i), f"{float(form.model.first[i]):.3g}", said, where])
    output.show_table("states", ["", "starts", "emits", "goes to"], rows)
    if saved:
        output.out.print(f"saved  {saved}", markup=False)
