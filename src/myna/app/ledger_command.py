"""`myna ledger`: what a ledger's file holds, whether it is sound, and other forms of it.

Exit status: 0 done; 1 `verify` found something wrong; 2 the file could not be worked with.
"""

import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from myna.app import output
from myna.app.models import describe
from myna.app.options import Json
from myna.errors import InputError
from myna.teachers.account import Account
from myna.teachers.ledger_audit import Summary, summarise
from myna.teachers.ledger_audit import verify as verified
from myna.teachers.ledger_compact import compact as compacted
from myna.teachers.ledger_export import export as exported

app = typer.Typer(help="Look at, check and export the file of a ledger.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A ledger, as made by --ledger FILE.")]


class Form(Enum):
    """What `export` writes."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command()
def show(file: File, as_json: Json = False) -> None:
    """What was asked and spent, by job and purpose."""
    found = summarise(file)
    if as_json:
        spec = describe(found.spec)
        output.print_json({"ledger": str(file), **output.plain(found), "spec": spec})
        return
    titles = ["job", "purpose", "queries", "draws", "tokens sent", "received", "requests", "lost"]
    rows = [
        [
            escape(line.job or "-"),
            escape(line.purpose),
            *(f"{amount:,}" for amount in _amounts(line.spent)),
            ", ".join(f"{number:,} {state}" for state, number in sorted(line.requests.items())),
            _lost(line.unanswered),
        ]
        for line in found.spending
    ]
    output.show_table(str(file), titles, rows)
    _show_rest(found)


def _amounts(account: Account) -> tuple[int, ...]:
    return (
        account.next_token_queries,
        account.completions,
        account.tokens_sent,
        account.tokens_received,
    )


def _lost(account: Account) -> str:
    """What is counted as spent without an answer."""
    names = ("queries", "draws", "tokens sent", "received")
    parts = zip(names, _amounts(account), strict=True)
    return ", ".join(f"{amount:,} {name}" for name, amount in parts if amount) or "-"


def _show_rest(found: Summary) -> None:
    say = output.out.print
    held = ", ".join(
        f"{number:,} {name.replace('_', ' ')}" for name, number in found.answers.items() if number
    )
    say(f"answers     {held or 'none'}")
    if found.started is not None and found.ended is not None:
        times = (
            datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(" ", "seconds")
            for seconds in (found.started, found.ended)
        )
        say(f"asked       {' to '.join(times)}")
    say(f"teacher     {found.spec.num_tokens} tokens, fingerprint {found.spec.fingerprint[:12]}")
    say(f"open in     {', '.join(f'process {pid}' for pid in found.running) or 'no process'}")
    say(f"file        {found.bytes:,} bytes, version {found.version}")


@app.command()
def verify(file: File, as_json: Json = False) -> None:
    """Check the database, every hash and answer, and that the accounts add up."""
    found = verified(file)
    if as_json:
        output.print_json({"ledger": str(file), "sound": not found.problems, **_plain(found)})
    else:
        for problem in found.problems:
            output.out.print(problem, markup=False)
        output.out.print(
            f"{len(found.problems)} problems in {found.blocks:,} blocks, {found.answers:,} answers, "
            f"{found.requests:,} requests"
        )
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write; it must not exist.")],
    form: Annotated[
        Form | None, typer.Option("--format", help="By the file's ending unless said.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write every answer as a row of a table."""
    form = form or _form(out)
    count = exported(file, out, form.value)
    if as_json:
        output.print_json({"ledger": str(file), "out": str(out), "format": form, "answers": count})
    else:
        output.out.print(f"{count:,} answers written to {out}", markup=False)


def _form(out: Path) -> Form:
    """What the ending of a file names."""
    try:
        return Form(out.suffix.removeprefix("."))
    except ValueError:
        raise InputError(
            f"an export ends in .jsonl or .parquet, or --format says which it is; got {out}"
        ) from None


@app.command()
def compact(file: File, as_json: Json = False) -> None:
    """Merge blocks and return free space; nothing that was recorded changes."""
    found = compacted(file)
    if as_json:
        output.print_json({"ledger": str(file), **_plain(found)})
    else:
        output.out.print(
            f"{found.blocks_before:,} blocks in {found.bytes_before:,} bytes are now "
            f"{found.blocks_after:,} in {found.bytes_after:,}"
        )


def _plain(record: Any) -> dict[str, Any]:
    return output.plain(record)
