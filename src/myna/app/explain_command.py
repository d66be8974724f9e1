"""`myna explain`: one page that shows what a copy has learned."""

import html
from pathlib import Path
from typing import Annotated, Any

import typer

from myna.app import output
from myna.app.models import open_saved, plain_copy, writing
from myna.app.options import Json
from myna.lowrank.model import LowRankModel
from myna.lowrank.reading import CutReading, read_cut

_MOST = 24  # basis histories shown of a cut
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left;
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
h2 { margin-top: 2.2rem; }
"""


def explain_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path(
        "explained.html"
    ),
    cut: Annotated[
        list[int] | None, typer.Option(min=0, help="Cuts to show (three spread evenly).")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Tokens of the futures shown.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="Futures shown of each history.")] = 4,
    as_json: Json = False,
) -> None:
    """Write a page: basis histories, their futures, and what each token does."""
    saved = open_saved(student)
    copy = plain_copy(student, saved)
    last = len(copy.steps) - 1
    cuts = sorted(set(cut)) if cut else sorted({0, last // 2, last})
    found = [read_cut(copy, t, depth, count) for t in cuts]
    record = {"student": student, "page": str(out), "ranks": list(copy.ranks), "cuts": cuts}
    record["basis"] = [[copy.spec.named(one.history) for one in reading.basis] for reading in found]
    page = _page(student, copy, found, saved.about)
    with writing("page", out):
        out.write_text(page, encoding="utf-8")
    if as_json:
        output.print_json(record)
        return
    output.out.print(f"page     {out}", markup=False)
    for t, reading in zip(cuts, found, strict=True):
        names = ", ".join(copy.spec.named(one.history) for one in reading.basis[:4])
        more = " ..." if len(reading.basis) > 4 else ""
        output.out.print(
            f"cut {t:<5}{len(reading.basis)} basis histories: {names}{more}", markup=False
        )


def _page(student: str, copy: LowRankModel, found: list[CutReading], about: dict[str, Any]) -> str:
    """Plain HTML: tables, no scripts."""
    spec = copy.spec
    told = [
        ("learned from", about.get("teacher", "not said")),
        ("alphabet", f"{spec.num_tokens} tokens"),
        ("horizon", "none" if spec.horizon is None else f"{spec.horizon} tokens"),
        ("rank", f"at most {max(copy.ranks)} over {len(copy.ranks)} stored cuts"),
        ("numbers stored", f"{copy.num_parameters:,}"),
    ]
    parts = [_table(("", ""), [(name, str(value)) for name, value in told])]
    for reading in found:
        where = "every position" if reading.cut is None else f"after {reading.cut} tokens"
        parts.append(f"<h2>Basis histories, {where}</h2>")
        parts.append("<p>Every history is a combination of these.</p>")
        parts.append(_basis(copy, reading))
        parts += _moves(copy, reading)
    title = html.escape(f"What {student} has learned")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _basis(copy: LowRankModel, reading: CutReading) -> str:
    rows = []
    for i, one in enumerate(reading.basis[:_MOST]):
        law = ", ".join(f"{copy.spec.alphabet[o]} ({p:.3g})" for o, p in one.law)
        futures = "; ".join(
            f"{copy.spec.named(f.tokens)} ({f.probability:.2g})" for f in one.futures
        )
        other = "" if one.nearest is None else f"{one.nearest[0]} (TV {one.nearest[1]:.3g})"
        rows.append((str(i), copy.spec.named(one.history), law, futures, other))
    left = len(reading.basis) - len(rows)
    note = f"<p>{left} more are not shown.</p>" if left > 0 else ""
    near = f"nearest over {reading.words} tokens"
    return _table(("", "history", "next token", "likely futures", near), rows) + note


def _moves(copy: LowRankModel, reading: CutReading) -> list[str]:
    """One small table a token, while they are small enough to read; what is left out is said."""
    if not reading.moves:
        return []
    parts = ["<h2>What a token does to the coefficients</h2>"]
    rows, columns = reading.moves[0].change.shape
    if max(rows, columns) > _MOST:
        size = f"{rows} by {columns} numbers a token"
        return [*parts, f"<p>Not shown: {size}, and at most {_MOST} by {_MOST} are.</p>"]
    parts.append("<p>Row i: basis history i followed by the token, over the next basis.</p>")
    left = copy.spec.num_tokens - len(reading.moves)
    if left > 0:
        parts.append(f"<p>{left} other tokens are not shown.</p>")
    for move in reading.moves:
        head = ("", *(str(j) for j in range(move.change.shape[1])))
        rows = [
            (str(i), *(f"{v:.3g}" if abs(v) > 1e-9 else "0" for v in row))
            for i, row in enumerate(move.change.tolist())
        ]
        parts.append(f"<h3>{html.escape(copy.spec.alphabet[move.token])}</h3>")
        parts.append(_table(head, rows, numbers=True))
    return parts


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, numbers: bool = False) -> str:
    kind = ' class="n"' if numbers else ""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = [
        "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{top}</tr>\n" + "\n".join(lines) + "</table>"
