"""`myna hmm`: the hidden Markov model in a saved copy, as tables.

Exit status: 0 found; 1 there is no such model of the size, and why; 2 the request could not
be worked with.
"""

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from myna.app import output
from myna.app.hmm_picture import hmm_chart
from myna.app.models import generator_of, open_saved, plain_copy, writing
from myna.app.options import Json, Seed
from myna.app.picture import write_picture
from myna.errors import InputError
from myna.learn.hmm_recovery import Recovery, drawn_evidence, recover_hmm, whole_strings
from myna.learn.recorded import recorded_evidence
from myna.lowrank.equivalents import Uniqueness, process_rank, undecided, uniqueness
from myna.lowrank.hidden import HiddenForm, hidden_form
from myna.lowrank.model import LowRankModel
from myna.teachers.npz import write_hmm

_SHOWN = 6  # tokens of a state
_STRINGS = 20_000  # drawn from the student for the polish
_HELD_OUT = 0.25  # as many strings again, of those drawn, to compare by


class Names(Enum):
    """What the tables in an archive are called."""

    MYNA = "myna"
    HMMLEARN = "hmmlearn"


def hmm_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Archive to write: keys pi, T and E.")
    ] = None,
    names: Annotated[
        Names,
        typer.Option(help="Keys of the archive: pi, T, E or hmmlearn's startprob_ and so on."),
    ] = Names.MYNA,
    states: Annotated[
        int | None, typer.Option(min=1, help="Hidden states; the rank unless told.")
    ] = None,
    polish: Annotated[
        bool, typer.Option("--polish", help="The likeliest model near a copy that is none exactly.")
    ] = False,
    strings: Annotated[
        int | None, typer.Option(min=10, help="Polish: strings drawn from the copy (20,000).")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="LEDGER", help="Polish: on what this ledger recorded instead."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture to write: FILE.png and FILE.html.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The largest residual that is accepted.")
    ] = 1e-8,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Read a hidden Markov model off a stationary copy, where it is one or nearly one."""
    copy = plain_copy(student, open_saved(student))
    _refuse(polish, strings, answers, picture)
    recovery = only = None
    if polish:
        form, recovery = _polished(copy, states, strings, answers, generator_of(seed))
    else:
        form = _form(copy, states, tolerance, seed)
        only = None if form.model is None else uniqueness(form.model)
    record = {"student": student, **_record(form, only, recovery), "saved": None, "picture": None}
    if form.model is not None:
        record |= _written(form.model, student, out, names, picture)
    if as_json:
        output.print_json(record)
    else:
        _show(form, only, recovery, record)
    raise typer.Exit(0 if form.model else 1)


def _refuse(polish: bool, strings: int | None, answers: Path | None, picture: Path | None) -> None:
    """Options that do not go together."""
    for name, value in (("--strings", strings), ("--answers", answers)):
        if value is not None and not polish:
            raise InputError(f"{name} says what to polish on; give --polish with it")
    if strings is not None and answers is not None:
        raise InputError("--strings are drawn from the copy and --answers are recorded; give one")
    if picture is not None and picture.suffix not in (".png", ".html"):
        raise InputError(f"--picture must name a file that ends in .png or .html, got {picture}")


def _form(copy: LowRankModel, states: int | None, tolerance: float, seed: int) -> HiddenForm:
    """As it stands, or by simultaneous diagonalisation; of another size, that there is none."""
    rank, finding = copy.ranks[0], "--polish finds the nearest one, by likelihood"
    if copy.transitions is not None and len(copy.steps) == 1 and copy.spec.stop is None:
        form = HiddenForm(copy, 0.0, f"a hidden Markov model with {rank} states")
    else:
        form = hidden_form(copy, generator_of(seed), tolerance)
    if states is None or states == rank:
        return form
    least = process_rank(copy)
    if states < least:
        short = undecided(copy)
        why = f"the futures of the copy have rank {least}" + (f"; {short}" if short else "")
        none = f"no hidden Markov model with {states} states" + (" was found" if short else "")
        return HiddenForm(None, float("inf"), f"{none}: {why}; {finding}", short is None)
    why = f"diagonalisation finds as many states as the rank, {rank}, and {states} were asked for"
    return HiddenForm(None, float("inf"), f"{why}; {finding}")


def _polished(
    copy: LowRankModel,
    states: int | None,
    strings: int | None,
    answers: Path | None,
    generator: torch.Generator,
) -> tuple[HiddenForm, Recovery]:
    """The likeliest model on strings of the copy, or on recorded answers."""
    if answers is not None:
        evidence = recorded_evidence(answers, copy.spec, "learn")
        held_out = whole_strings(recorded_evidence(answers, copy.spec, "check"))
    else:
        count = strings or _STRINGS
        evidence = drawn_evidence(copy, count, generator)
        fresh = drawn_evidence(copy, max(1, int(_HELD_OUT * count)), generator)
        held_out = whole_strings(fresh)
    size = states or copy.ranks[0]
    model, told = recover_hmm(copy, size, evidence, held_out, generator)
    reason = f"the likeliest hidden Markov model with {size} states found"
    return HiddenForm(model, float("nan"), reason), told


def _record(form: HiddenForm, only: Uniqueness | None, recovery: Recovery | None) -> dict[str, Any]:
    """What is known of the form, for JSON."""
    known = {
        "states": form.model.ranks[0] if form.model else None,
        "residual": None if recovery else form.residual,
        "reason": form.reason,
        "excluded": form.excluded,
        "unique": None,
        "polish": None,
    }
    if only is not None:
        known["unique"] = {"proved": only.unique, "free": only.free, "why": only.why}
        known["unique"]["another"] = None if only.other is None else _tables(only.other)
    if recovery is not None:
        climb = recovery.climb
        known["polish"] = {
            "start": recovery.start,
            "tokens": recovery.tokens,
            "iterations": climb.iterations,
            "stop": climb.stop.value,
            "student_nats": recovery.student_nats,
            "model_nats": recovery.model_nats,
            "gain": recovery.gain,
        }
    return known


def _tables(model: LowRankModel) -> dict[str, list]:
    """pi, T and E as lists."""
    assert model.transitions is not None
    found = (model.first, model.transitions[0], model.steps[0].laws)
    return {name: table.tolist() for name, table in zip(("pi", "T", "E"), found, strict=True)}


def _written(
    model: LowRankModel, student: str, out: Path | None, names: Names, picture: Path | None
) -> dict[str, str | None]:
    """Write what was asked for; where it is."""
    done: dict[str, str | None] = {"saved": None, "picture": None}
    assert model.transitions is not None
    if out is not None:
        with writing("tables", out):
            parts = model.first, model.transitions[0], model.steps[0].laws
            write_hmm(out, *parts, hmmlearn=names is Names.HMMLEARN)
        done["saved"] = str(out)
    if picture is not None:
        title = f"The hidden Markov model in {student}"
        write_picture(hmm_chart(model, title), picture.parent, picture.stem)
        done["picture"] = str(picture)
    return done


def _show(
    form: HiddenForm, only: Uniqueness | None, recovery: Recovery | None, record: dict[str, Any]
) -> None:
    """Each state with the tokens it emits most, and where it goes."""
    found = recovery is None and math.isfinite(form.residual)
    residual = f" (residual {form.residual:.2g})" if found else ""
    output.out.print(f"{form.reason}{residual}", markup=False)
    if only is not None:
        given = "; --json has its tables" if only.other is not None else ""
        output.out.print(f"{only.why}{given}", markup=False)
    if recovery is not None:
        output.out.print(
            f"from {recovery.start}, {recovery.climb.iterations} iterations on "
            f"{recovery.tokens:,} tokens; against the copy on held-out strings "
            f"{recovery.gain:+.2g} nats a token",
            markup=False,
        )
    if form.model is None:
        return
    output.show_table("states", ["", "starts", "emits", "goes to"], _rows(form.model))
    for name in ("saved", "picture"):
        if record[name]:
            output.out.print(f"{name:<8} {record[name]}", markup=False)


def _rows(model: LowRankModel) -> list[list[str]]:
    """A line a state: its likeliest tokens, and where it goes most."""
    transitions = model.transitions
    assert transitions is not None
    names, rows = model.spec.alphabet, []
    for i, (law, moves) in enumerate(zip(model.steps[0].laws, transitions[0], strict=True)):
        top = law.topk(min(_SHOWN, len(law)))
        said = ", ".join(
            f"{names[int(o)]} {float(p):.3g}" for p, o in zip(*top, strict=True) if float(p) > 0
        )
        goes = torch.argsort(moves, descending=True)[:3].tolist()
        where = ", ".join(f"{j} {float(moves[j]):.3g}" for j in goes if float(moves[j]) > 0)
        rows.append([str(i), f"{float(model.first[i]):.3g}", said, where])
    return rows
