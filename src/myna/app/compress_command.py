"""`myna compress`: a smaller copy of a copy, with a certificate."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import typer

from myna import __version__
from myna.app import output
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.learn_command import learning_progress
from myna.app.models import generator_of, open_saved, plain_copy
from myna.app.options import Json, MaxTokens, Seed, Yes
from myna.app.picture import place_of, write_picture
from myna.app.spending import confirm_spending
from myna.errors import BudgetExhausted, InputError, TeacherError
from myna.evaluate.certify import Certificate, certify
from myna.evaluate.teacher_cost import TeacherCost, teacher_cost
from myna.learn.compress import Choice, Compressed, CompressSettings, compress
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings, sampling_limit
from myna.teachers.copies import CopyTeacher, check_destination, save_packed
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import Samples

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
        Path | None,
        typer.Option(help="Write all choices, and any --teacher, as FILE.html and FILE.png."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a saved copy.")] = False,
    budget: Budgets = None,
    yes: Yes = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Leave out what tells little: ranks, tables that repeat, bits."""
    settings = CompressSettings(max_kl, rank, size, strings, max_tokens)
    if budget and teacher is None:
        raise InputError(
            "--budget limits what a --teacher is asked, and none is named: nothing is spent without "
            "one; add --teacher or leave --budget out"
        )
    copy = plain_copy(student, open_saved(student))
    check_destination(out, overwrite=overwrite)
    place = None if curve is None else place_of(curve)
    limits = read_budget(budget, queries=True)
    source = CopyTeacher(copy) if teacher is None else open_within(teacher, limits)
    confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
    limit = budget_of(source, limits, queries=limits.plain)
    with learning_progress() as show:
        found = compress(copy, settings, generator_of(seed), show)
        show("certifying")
        with Ledger(source, limit, seed) as ledger:
            certificate = certify(ledger.laws("certify"), found.student, max_tokens=max_tokens)
        about: dict[str, Any] = {"teacher": student, "myna": __version__}
        about["compressed"] = output.plain(dataclasses.asdict(settings)) | {
            "kl": found.report.reason
        }
        save_packed(out, found.unrounded, found.precision, about, overwrite=overwrite)
        cost = None
        if place is not None and teacher is not None:
            show("timing the teacher")
            left = limit.less(ledger.total())
            cost = _timed(source, left, _judging(copy, settings, seed))
    if place is not None:
        write_picture(_chart(found, student, cost), *place)
    if as_json:
        output.print_json(_record(found, certificate, student, teacher, out, cost))
    else:
        _show(found, certificate, student, teacher, out, cost)


def _judging(copy: LowRankModel, settings: CompressSettings, seed: int) -> Strings:
    """As many strings of the copy as judge its choices, cut alike."""
    limit = sampling_limit(copy.spec, settings.max_tokens)
    return copy.sample(settings.strings, generator_of(seed), limit)


def _timed(source: Samples, left: Budget, drawn: Strings) -> TeacherCost | None:
    """What the teacher takes; where that cannot be found, None, and a sentence says why.

    left: of the budget. The ledger is a new one: laws that certifying asked would be answered from
        the memory of the other.
    """
    try:
        with Ledger(source, left) as ledger:
            return teacher_cost(source, ledger, drawn)
    except BudgetExhausted as error:
        why = f"certifying left too little of the budget ({error})"
    except TeacherError as error:
        why = str(error)
    output.err.print(f"the copy is saved, but the teacher was not timed: {why}", markup=False)
    return None


def _choice(choice: Choice) -> dict[str, Any]:
    return output.plain(dataclasses.asdict(choice))


def _record(
    found: Compressed,
    certificate: Certificate,
    student: str,
    teacher: str | None,
    out: Path,
    cost: TeacherCost | None,
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
        "teacher_cost": output.plain(cost),
        "seconds": report.seconds,
    }


def _show(
    found: Compressed,
    certificate: Certificate,
    student: str,
    teacher: str | None,
    out: Path,
    cost: TeacherCost | None,
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
    if cost is not None:
        output.out.print(f"teacher     {_told(cost)}", markup=False)
    output.out.print(f"saved       {out}", markup=False)


def _told(cost: TeacherCost) -> str:
    """What the teacher takes, in words."""
    size = "bytes not known" if cost.bytes is None else f"{cost.bytes:,} bytes"
    asked = f", over {cost.asked:,} laws asked one by one" if cost.asked else ""
    if cost.nanoseconds is None:
        return f"{size}, time not measured"
    return f"{size}, {cost.nanoseconds:,.0f} ns a token{asked}"


def _named(choice: Choice) -> str:
    tables = "one" if len(choice.ranks) == 1 else "one a position"
    return f"{tables}, {'convex' if choice.convex else 'signed'}"


def _chart(found: Compressed, title: str, cost: TeacherCost | None = None) -> alt.VConcatChart:
    """Bytes, and nanoseconds a token, against KL; the whole copy as a line, the teacher a square."""
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
                    "KL:Q",
                    scale=alt.Scale(type="log"),
                    title="KL from the copy, nats a token (1e-12: 0, or rounding)",
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
        panels.append(alt.layer(points, line, ring, *_teacher_mark(cost, field)))
    said = ["dashed: the copy; ringed: the choice taken"]
    if cost is not None:
        said.append(
            f"square, at the left edge: the teacher ({_told(cost)}); its distance is the certificate's"
        )
    heading = alt.TitleParams(f"smaller copies of {title}", subtitle=said)
    return alt.vconcat(*panels, title=heading)


def _teacher_mark(cost: TeacherCost | None, field: str) -> list[alt.Chart]:
    """The teacher at the left edge, where the figure is known.

    Its place says no distance: the axis is that from the copy, which may itself be off.
    """
    if cost is None:
        return []
    value = cost.bytes if field == "bytes" else cost.nanoseconds
    if value is None:
        return []
    label = "the teacher, at the left edge; its distance is the certificate's"
    row = {field: value, "label": label}
    mark = (
        alt.Chart(alt.Data(values=[row]))
        .mark_point(shape="square", size=140, color="black", filled=True)
        .encode(x=alt.value(8), y=f"{field}:Q", tooltip=["label:N", f"{field}:Q"])
    )
    return [mark]
