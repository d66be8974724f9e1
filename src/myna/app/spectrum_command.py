"""`myna spectrum`: what singular values say of a model.

Exit status: 0 spectra were made, a width was found; 1 no width could be told; 2 the request could not be worked with.
"""

from pathlib import Path
from typing import Annotated

import altair as alt
import typer

from myna.app import block_spectrum, output
from myna.app.options import Json, LedgerPath, Seed, TeacherName, Yes
from myna.app.picture import write_picture
from myna.app.spending import confirm_spending
from myna.logits.width import Width, hidden_width
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.uri import open_teacher


def spectrum_command(
    teacher: TeacherName,
    next_token: Annotated[
        bool, typer.Option("--next-token", help="The hidden width, from next-token laws.")
    ] = False,
    histories: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="How many histories (250; with --next-token tokens + 31, at most 2,048).",
        ),
    ] = None,
    futures: Annotated[int, typer.Option(min=2, help="How many futures.")] = 250,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each (32, or half the horizon where that is less)."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Take histories and futures from a text file; may be given again."),
    ] = None,
    places: Annotated[
        str,
        typer.Option(
            help="Laws whose logits are columns: before the last token of a future "
            "(last), before each (all), or none."
        ),
    ] = "last",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Keep the k likely tokens of each law as columns.")
    ] = None,
    double_centre: Annotated[
        bool, typer.Option("--double-centre", help="Take row and column means out first.")
    ] = False,
    controls: Annotated[bool, typer.Option(help="Nonsense futures and control models too.")] = True,
    keep: Annotated[
        Path | None, typer.Option(help="Keep blocks in this folder: a run goes on from there.")
    ] = None,
    memory: Annotated[int, typer.Option(min=1, help="Most MiB of a block.")] = 1024,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for a page and a picture.")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=0, help="Most next-token queries.")] = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Spectra of histories x futures; or a model's hidden width, from next-token laws."""
    source = open_teacher(teacher)
    confirm_spending(source, queries=budget, generated=0, yes=yes)
    if not next_token:
        request = block_spectrum.Request(
            teacher, histories or 250, futures, tokens, text or [], places, top_k,
            double_centre, controls, keep, memory, seed,
        )  # fmt: skip
        limited = budget is not None or ledger_file is not None
        level = block_spectrum.check_level(source)
        if limited or not isinstance(source, SteppedTeacher):
            limit = Budget(queries=budget)
            with Ledger(source, limit, seed, file=ledger_file, job="spectrum") as ledger:
                record = block_spectrum.block_spectrum(ledger.laws("spectrum"), request)
                record["queries"] = ledger.total().next_token_queries
        else:
            record = block_spectrum.block_spectrum(level, request)
        if out is not None:
            block_spectrum.draw(record, out)
        if as_json:
            output.print_json(record)
        else:
            block_spectrum.show(record, out)
        return
    with Ledger(source, Budget(queries=budget), seed, file=ledger_file, job="spectrum") as ledger:
        found = hidden_width(ledger.laws("spectrum"), histories)
    if out is not None:
        write_picture(_chart(found, teacher), out, "spectrum")
    if as_json:
        output.print_json({"teacher": teacher, **output.plain(found)})
    else:
        _show(found, out)
    raise typer.Exit(0 if found.hidden_width is not None else 1)


def _show(found: Width, out: Path | None) -> None:
    width = f"at least {found.at_least}" if found.hidden_width is None else found.hidden_width
    say = output.out.print
    say(f"[bold]hidden width[/bold]  {width}")
    say(f"evidence      {found.reason}", markup=False)
    say(f"matrix        {found.rows:,} histories x {found.tokens:,} tokens, centred logits")
    say(f"spent         {found.queries:,} next-token queries")
    if out is not None:
        say(f"picture       {out / 'spectrum.png'}", markup=False)


def _chart(found: Width, title: str) -> alt.VConcatChart:
    """Singular values by rank, on a logarithmic axis; the width where there is one."""
    rows = [{"rank": i + 1, "value": v} for i, v in enumerate(found.singular_values) if v > 0]
    points = (
        alt.Chart(alt.Data(values=rows), width=640, height=320)
        .mark_point(filled=True, size=25)
        .encode(
            x=alt.X("rank:Q", title="rank"),
            y=alt.Y("value:Q", title="singular value (nats)", scale=alt.Scale(type="log")),
            tooltip=["rank:Q", "value:Q"],
        )
    )
    layers = [points]
    if found.hidden_width is not None:
        place = [{"rank": found.hidden_width + 0.5}]
        layers.append(alt.Chart(alt.Data(values=place)).mark_rule().encode(x="rank:Q"))
    return alt.vconcat(alt.layer(*layers), title=title)
