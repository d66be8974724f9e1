"""`myna automaton`: the deterministic machine in a saved copy, without asking anything."""

from pathlib import Path
from typing import Annotated

import typer

from myna import __version__
from myna.app import output
from myna.app.machine_picture import draw_machine
from myna.app.models import open_saved, plain_copy, writing
from myna.app.options import Json
from myna.lowrank.machine import read_machine
from myna.teachers.copies import check_destination, save_copy


def automaton_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    dot: Annotated[Path | None, typer.Option(help="Write the machine as a Graphviz file.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the machine, up to 60 states: a .png and an .html of this name."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Save the machine as a copy, a state a row.")
    ] = None,
    max_states: Annotated[
        int, typer.Option(min=1, help="Give up above so many distinct rows.")
    ] = 1000,
    overwrite: Annotated[bool, typer.Option(help="Replace a saved copy.")] = False,
    as_json: Json = False,
) -> None:
    """Read the automaton off a copy: its distinct reachable rows are the states."""
    copy = plain_copy(student, open_saved(student))
    if out is not None:
        check_destination(out, overwrite=overwrite)
    machine = read_machine(copy, max_states)
    if picture is not None:
        draw_machine(machine, picture, f"{student}: {machine.num_states:,} states")
    if dot is not None:
        with writing("graph", dot):
            dot.write_text(machine.dot(), encoding="utf-8")
    if out is not None:
        about = {"teacher": student, "myna": __version__, "machine": {"states": machine.num_states}}
        save_copy(out, machine.model(), about, overwrite=overwrite)
    edges = int((machine.moves >= 0).sum())
    longest = max(machine.histories, key=len)
    record = {
        "student": student,
        "states": machine.num_states,
        "edges": edges,
        "rank": machine.rank,
        "deepest": [machine.spec.alphabet[token] for token in longest],
        "dot": None if dot is None else str(dot),
        "picture": None if picture is None else str(picture),
        "saved": None if out is None else str(out),
    }
    if as_json:
        output.print_json(record)
        return
    output.out.print(
        f"states   {machine.num_states:,}, distinct rows of a copy of rank {machine.rank}\n"
        f"edges    {edges:,}\n"
        f"deepest  {machine.spec.named(longest)}, the longest of the shortest histories",
        markup=False,
    )
    for name in ("dot", "picture", "saved"):
        if record[name]:
            output.out.print(f"{name:<8} {record[name]}", markup=False)
