"""`myna spectrum`: what singular values say of a model.

Exit status: 0 spectra were made, a width was found; 1 no width could be told; 2 the request could not be worked with.
"""

import functools
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import typer

from myna.app import block_spectrum, output
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.laws_settings import refuse
from myna.app.options import Json, LedgerPath, Seed, TeacherName, Yes
from myna.app.picture import check_folder, write_picture
from myna.app.spending import confirm_spending
from myna.errors import InputError
from myna.logits.biased_api import BiasedApi, by_argmax, by_reference, by_top_one
from myna.logits.estimated import completions_needed
from myna.logits.width import Width, hidden_width
from myna.teachers.ledger import Ledger


class Api(Enum):
    """What a simulated API shows."""

    FULL = "full"
    TOP_K = "top-k"
    TOP_1 = "top-1"
    ARGMAX = "argmax"
    SAMPLES = "samples"


_READ = {Api.TOP_K: by_reference, Api.TOP_1: by_top_one, Api.ARGMAX: by_argmax}


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
    futures: Annotated[int | None, typer.Option(min=2, help="How many futures (250).")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each (32, or half the horizon where that is less)."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Take histories and futures from a text file; may be given again."),
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(
            help="Laws whose logits are columns: before the last token of a future "
            "(last, unless said), before each (all), or none."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Keep the k likely tokens of each law as columns.")
    ] = None,
    double_centre: Annotated[
        bool, typer.Option("--double-centre", help="Take row and column means out first.")
    ] = False,
    controls: Annotated[
        bool | None, typer.Option(help="Nonsense futures and control models too (they are).")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep blocks in this folder: a run goes on from there.")
    ] = None,
    api: Annotated[
        Api | None,
        typer.Option(
            help="--next-token: a simulated API that shows only this (full), and takes a bias on "
            "logits; top-k shows --top-k tokens (5)."
        ),
    ] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="Most MiB of a block (1024).")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for a page and a picture.")
    ] = None,
    budget: Budgets = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Spectra of histories x futures; or a model's hidden width, from next-token laws."""
    if out is not None:
        check_folder(out)
    of_blocks = {"futures": futures, "tokens": tokens, "text": text, "places": places}
    of_blocks |= {"double-centre": double_centre or None, "keep": keep, "memory": memory}
    of_blocks |= {"no-controls": controls is False or None, "controls": controls}
    _refuse_misfits(of_blocks, api, top_k, next_token=next_token)
    limits = read_budget(budget)
    source = open_within(teacher, limits)
    confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
    wall = budget_of(source, limits, queries=limits.plain)
    if not next_token:
        request = block_spectrum.Request(
            teacher, histories or 250, futures or 250, tokens, text or [], places or "last", top_k,
            double_centre, controls is not False, keep, memory or 1024, seed,
        )  # fmt: skip
        block_spectrum.check_level(source)
        with Ledger(source, wall, seed, file=ledger_file, job="spectrum") as ledger:
            record = block_spectrum.block_spectrum(ledger.laws("spectrum"), request, source)
            record["queries"] = ledger.total().next_token_queries
            record["scored_prompts"] = ledger.total().scored_prompts
        if out is not None:
            block_spectrum.draw(record, out)
        if as_json:
            output.print_json(record)
        else:
            block_spectrum.show(record, out)
        return
    with Ledger(source, wall, seed, file=ledger_file, job="spectrum") as ledger:
        view = ledger.laws("spectrum")
        api = api or Api.FULL
        shown = None if api is Api.FULL else BiasedApi(view, _shown_tokens(api, top_k))
        read = None if shown is None else functools.partial(_READ[api], shown)
        found = hidden_width(view, histories, read)
    requests = {} if shown is None else {"api": api.value, "requests": shown.requests}
    if out is not None:
        write_picture(_chart(found, teacher), out, "spectrum")
    if as_json:
        output.print_json({"teacher": teacher, **output.plain(found), **requests})
    else:
        _show(found, out)
        if shown is not None:
            output.out.print(f"requests      {shown.requests:,} through {api.value}")
    raise typer.Exit(0 if found.hidden_width is not None else 1)


def _refuse_misfits(
    of_blocks: dict[str, Any], api: Api | None, top_k: int | None, *, next_token: bool
) -> None:
    """Refuse what would be without effect."""
    if not next_token:
        refuse({"api": api}, "--next-token", "a spectrum of histories x futures")
        return
    refuse(of_blocks, "spectra of histories x futures", "--next-token")
    if top_k is not None and api is not Api.TOP_K:
        raise InputError("--top-k belongs to --api top-k here; add that or leave --top-k out")


def _shown_tokens(api: Api, top_k: int | None) -> int:
    """How many tokens an API shows with their log-probabilities."""
    if api is Api.SAMPLES:
        draws = completions_needed(10.0, 1000, 0.01, 0.01)
        raise InputError(
            "a width shows as singular values that fall 100 times, and samples show logits to a "
            f"hundredth only after some {draws:,} draws of every law (1,000 tokens, logits to 10); "
            "ask an API that takes a bias"
        )
    return {Api.TOP_K: top_k or 5, Api.TOP_1: 1, Api.ARGMAX: 0}[api]


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
