"""`myna compile`: a copy in a form for fast use, beside the plain one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from myna import __version__
from myna.app import output
from myna.app.models import generator_of, open_saved, plain_copy
from myna.app.options import Json, MaxTokens, Seed
from myna.evaluate.speed import SpeedReport, compiled_safely, measure
from myna.lowrank.packed import Precision
from myna.teachers.copies import check_destination, save_copy


def compile_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to save the form in.")],
    float32: Annotated[
        bool, typer.Option("--float32", help="Single precision; refused where measured unsafe.")
    ] = False,
    strings: Annotated[
        int, typer.Option(min=1, help="Fresh strings to measure differences and speed on.")
    ] = 2000,
    max_tokens: MaxTokens = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a saved copy.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fuse a copy's tables for fast scoring, sampling and steps, and measure it."""
    saved = open_saved(student)
    model = plain_copy(student, saved)
    check_destination(out, overwrite=overwrite)
    precision = Precision.SINGLE if float32 else Precision.DOUBLE
    drawn = model.sample(strings, generator_of(seed), max_tokens)
    compiled, difference = compiled_safely(model, precision, drawn)
    report = measure(model, compiled, drawn)
    about: dict[str, Any] = saved.about | {
        "compiled": {"from": student, "myna": __version__, "nats_a_token": difference}
    }
    save_copy(out, compiled, about, overwrite=overwrite)
    if as_json:
        record = {"student": student, "saved": str(out), "precision": precision.value}
        output.print_json({**record, **output.plain(report), "binds": report.binds})
    else:
        _show(report, precision, out)


def _show(report: SpeedReport, precision: Precision, out: Path) -> None:
    """Both forms, then what the machine can."""
    rows = [
        [name, f"{pace.tokens_per_second:,.0f}", f"{pace.step_microseconds:.1f}"]
        for name, pace in (("plain", report.plain), ("compiled", report.compiled))
    ]
    output.show_table("one thread", ["", "tokens scored a second", "us a step and law"], rows)
    say = output.out.print
    say(f"precision   {precision.value}, differs by at most {report.difference:.2g} nats a token")
    say(
        f"copy        {report.copy_bandwidth / 1e9:.1f} GB/s, read and written; scoring moves "
        f"{report.bytes_per_token:,.0f} bytes a token (token, tables, coefficients): "
        f"{report.bandwidth_fraction:.0%} of it; {report.memory_fraction:.1%} counting only what "
        "must come from memory"
    )
    say(f"binds       {report.binds}")
    say(f"saved       {out}", markup=False)
