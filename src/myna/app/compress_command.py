"""`myna compress`: a smaller copy of a copy, with a certificate."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import typer

from myna import __version__
from myna.app import output
from myna.app.learn_command import learning_progress
from myna.app.models import generator_of, open_saved, plain_copy, writing
from myna.app.options import Json, MaxTokens, Seed
from myna.app.picture import write_picture
from myna.evaluate.certify import Certificate, certify
from myna.learn.compress import Choice, Compressed, CompressSettings, compress
from myna.lowrank.model import LowRankModel
from myna.teachers.copies import CopyTeacher, check_destination, save_packed
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

_ROUNDING = 1e-12  # nats: less is not shown apart


def compress_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to save the smaller copy in.")],
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="KL from the copy, nats a token, at most.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank at every cut, at most.")] = None,
    size: Annotated[
        int | None, typer.Option("--bytes", min=1, help="Bytes of all tables, at most.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Certify against this teacher (asked) instead of the copy."),
    ] = None,
    strings: Annotated[
        int, typer.Option(min=100, help="Strings drawn from the copy to cut, and as many to judge.")
    ] = 4000,
    max_tokens: MaxTokens = None,
    curve: Annotated[
        Path | None, typer.Option(help="Write all choices as FILE.html and FILE.png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a saved copy.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Leave out what tells little: ranks, tables that repeat, bits."""
    settings = CompressSettings(max_kl, rank, size, strings, max_tokens)
    copy = plain_copy(student, open_saved(student))
    check_destination(out, overwrite=overwrite)
    with learning_progress() as show:
        found = compress(copy, settings, generator_of(seed), show)
        show("certifying")
        certificate = _certified(found, copy, teacher, seed, max_tokens)
    about: dict[str, Any] = {"teacher": student, "myna": __version__}
    about["compressed"] = output.plain(dataclasses.asdict(settings)) | {"kl": found.report.reason}
    save_packed(out, found.student, found.precision, about, overwrite=overwrite)
    if curve is not None:
        with writing("picture", curve):
            write_picture(_chart(found, student), curve.parent, curve.stem)
    if as_json:
        output.print_json(_record(found, certificate, student, teacher, out))
    else:
        _show(found, certificate, student, teacher, out)


def _certified(
    found: Compressed, copy: LowRankModel, teacher: str | None, seed: int, max_tokens: int | None
) -> Certificate:
    """Against the copy, or against a teacher, on strings that compression never saw."""
    source = CopyTeacher(copy) if teacher is None else open_teacher(teacher)
    with Ledger(source, seed=seed) as ledger:
        return certify(ledger.laws("certify"), found.student, max_tokens=max_tokens)


def _choice(choice: Choice) -> dict[str, Any]:
    return output.plain(dataclasses.asdict(choice))


def _record(
    found: Compressed, certificate: Certificate, student: str, teacher: str | None, out: Path
) -> dict[str, Any]:
    """JSON types only."""
    report = found.report
    return {
        "student": student,
        "saved": str(out),
        "reason": report.reason,
        "chosen": _choice(report.chosen),
        "whole": _choice(report.whole),
        "choices": [_choice(choice) for choice in report.choices],
        "tying": report.tying,
        "certified_against": teacher or student,
        "certificate": certificate.as_json(),
        "seconds": report.seconds,
    }


def _show(
    found: Compressed, certificate: Certificate, student: str, teacher: str | None, out: Path
) -> None:
    """The choice beside the whole copy, then the certificate."""
    report = found.report
    rows = [
        [
            name,
            f"{choice.bytes:,}",
            f"{choice.parameters:,}",
            str(max(choice.ranks)),
            str(len(choice.ranks)),
            "convex" if choice.convex else "signed",
            choice.precision.value,
            f"{choice.kl.mean:.3g}",
            f"{choice.nanoseconds:.0f}",
        ]
        for name, choice in (("copy", report.whole), ("smaller", report.chosen))
    ]
    columns = [
        "",
        "bytes",
        "numbers",
        "rank",
        "tables",
        "weights",
        "entries",
        "KL a token",
        "ns a token",
    ]
    output.show_table("compressed", columns, rows)
    output.out.print(f"tying       {report.tying}", markup=False)
    output.out.print(f"tried       {len(report.choices)} choices in {report.seconds:.1f} s")
    output.out.print(f"certificate against {teacher or student}:", markup=False)
    output.show_certificate(certificate)
    output.out.print(f"saved       {out}", markup=False)


def _named(choice: Choice) -> str:
    tables = "one" if len(choice.ranks) == 1 else "one a position"
    return f"{tables}, {'convex' if choice.convex else 'signed'}"


def _chart(found: Compressed, title: str) -> alt.VConcatChart:
    """Bytes, and nanoseconds a token, against KL; the whole copy as a line."""
    report = found.report
    rows = [
        {
            "bytes": choice.bytes,
            "ns a token": choice.nanoseconds,
            "KL": max(choice.kl.mean, _ROUNDING),
            "entries": choice.precision.value,
            "form": _named(choice),
            "rank": max(choice.ranks),
            "chosen": choice is report.chosen,
        }
        for choice in report.choices[1:]
        if choice.kl.mean < float("inf")
    ]
    panels = []
    for field in ("bytes", "ns a token"):
        whole = report.whole.bytes if field == "bytes" else report.whole.nanoseconds
        points = (
            alt.Chart(alt.Data(values=rows), width=420, height=260)
            .mark_point(filled=True, size=60, opacity=0.8)
            .encode(
                x=alt.X(
                    "KL:Q", scale=alt.Scale(type="log"), title="KL a token, nats (1e-12: rounding)"
                ),
                y=alt.Y(f"{field}:Q", scale=alt.Scale(type="log")),
                color=alt.Color("entries:N", title="entries"),
                shape=alt.Shape("form:N", title="tables, weights"),
                tooltip=["bytes:Q", "KL:Q", "rank:Q", "ns a token:Q"],
            )
        )
        line = (
            alt.Chart(alt.Data(values=[{field: whole, "label": "the copy as it came"}]))
            .mark_rule(strokeDash=[4, 4])
            .encode(y=f"{field}:Q", tooltip="label:N")
        )
        ring = (
            alt.Chart(alt.Data(values=[row for row in rows if row["chosen"]]))
            .mark_point(size=260, color="black")
            .encode(x="KL:Q", y=f"{field}:Q")
        )
        panels.append(alt.layer(points, line, ring))
    heading = alt.TitleParams(
        f"smaller copies of {title}", subtitle="dashed: the copy; ringed: the choice taken"
    )
    return alt.vconcat(*panels, title=heading)
