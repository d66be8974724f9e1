"""`myna probe`: what does an endpoint really return?

Exit status 0: no fault; 1: at least one; 2: the endpoint could not be asked.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from myna.app import output
from myna.app.options import Json
from myna.errors import InputError
from myna.teachers.endpoint_open import asker_of
from myna.teachers.probe import probe
from myna.teachers.probe_record import Profile, Verdict
from myna.teachers.uri import split_uri

_COLOURS = {Verdict.OK: "green", Verdict.FAULT: "red", Verdict.UNKNOWN: "yellow"}


def probe_command(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="openai:MODEL?base_url=http://...")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Keep the findings in a file, for probe=FILE in a URI."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint what it really returns, and say what may safely be asked of it."""
    scheme, name, parameters = split_uri(teacher)
    if scheme != "openai":
        raise InputError(
            f"myna probe asks a server, as openai:MODEL?base_url=...; {scheme}: teachers run here, "
            "and their answers are checked one by one in the ledger"
        )
    if out is not None and out.is_dir():
        raise InputError(f"{out} is a folder; name a file for the findings")
    with output.err.status("probing") as status:
        profile = probe(asker_of(name, parameters), status.update)
    if out is not None:
        out.write_text(json.dumps(output.plain(profile), indent=1) + "\n", encoding="utf-8")
    if as_json:
        output.print_json(output.plain(profile))
    else:
        show_profile(profile)
    raise typer.Exit(1 if profile.faults else 0)


def show_profile(profile: Profile) -> None:
    """One row a question, then the access that follows."""
    output.show_table(
        f"{profile.model} at {profile.base_url}",
        ["question", "verdict", "answer", "evidence"],
        [
            [
                f.question,
                f"[{_COLOURS.get(f.verdict, 'dim')}]{f.verdict.value}[/]",
                escape(f.answer),
                escape(f.evidence),
            ]
            for f in profile.findings
        ],
    )
    output.out.print(f"[bold]access[/bold]   {profile.access.value}")
    if profile.withheld:
        output.out.print(f"no more, because of {profile.withheld}", markup=False)
    prompts = "token ids" if profile.ids else "text"
    output.out.print(
        f"asked    prompts of {prompts}, up to {profile.batch} in a request, "
        f"{'n' if profile.many else 'one'} draws, {'addressed' if profile.addressed else 'fresh'}"
    )
    output.out.print(f"cost     {profile.requests:,} requests, {profile.tokens:,} tokens")
