"""`myna copytest`: does a model repeat what it reads, and which copies can then not exist?

Exit status: 0 asked and shown; 2 the request could not be worked with.
"""

from pathlib import Path
from typing import Annotated

import altair as alt
import typer

from myna.app import output
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.options import Json, LedgerPath, Seed, TeacherName, Yes
from myna.app.picture import check_folder, write_picture
from myna.app.spending import confirm_spending
from myna.audit.copy_test import CopyTest, copy_test
from myna.errors import InputError
from myna.spec import Spec
from myna.teachers.encode import encoded
from myna.teachers.ledger import Ledger

_WORD = "{}"
_OF_TEXTS = "Repeat after me: {}. {}"


def copytest_command(
    teacher: TeacherName,
    count: Annotated[int, typer.Option("--words", min=2, help="How many words, n.")] = 32,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a word.")] = 4,
    template: Annotated[
        str | None,
        typer.Option(
            help="What stands around the words, with {} where each goes: "
            f"'{_OF_TEXTS}' for hf: and rnn:, '{_WORD}{_WORD}' for others."
        ),
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, help="Ranks of copies to bound (n/4, n/2).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for a page and a picture.")
    ] = None,
    budget: Budgets = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Ask a model to repeat words: how near the identity, and what no copy can do."""
    if out is not None:
        check_folder(out)
    limits = read_budget(budget)
    source = open_within(teacher, limits)
    opening, between = _parts(teacher, source.spec, template)
    confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
    wall = budget_of(source, limits, queries=limits.plain)
    with Ledger(source, wall, seed, file=ledger_file, job="copytest") as ledger:
        view = ledger.laws("copytest")
        found = copy_test(view, count, length, opening=opening, between=between)
    ranks = sorted(set(rank or [max(1, count // 4), max(1, count // 2)]))
    bounds = {r: found.least_variation(r) for r in ranks}
    if out is not None:
        write_picture(_chart(found, source.spec, teacher), out, "copytest")
    if as_json:
        record = {"teacher": teacher, **output.plain(found)}
        output.print_json({**record, "least_variation": {str(r): v for r, v in bounds.items()}})
    else:
        _show(found, bounds, out)


def _parts(teacher: str, spec: Spec, template: str | None) -> tuple[tuple[int, ...], ...]:
    """Tokens before the first word and between the two."""
    texts = teacher.startswith(("hf:", "rnn:"))
    chosen = template or (_OF_TEXTS if texts else _WORD + _WORD)
    parts = chosen.split(_WORD)
    if len(parts) != 3 or parts[2]:
        raise InputError(
            f"a template has {{}} twice, the second time at its end, as {_OF_TEXTS!r}; "
            f"got {chosen!r}"
        )
    return tuple(tuple(row) for row in encoded(teacher, spec, parts[:2]))


def _show(found: CopyTest, bounds: dict[int, float], out: Path | None) -> None:
    n, say = len(found.words), output.out.print
    say(f"block         {n} histories x {n} futures; rank {found.rank}, 90% in {found.energy_90}")
    say(f"repeats       a word with chance {found.repeated:.3g}, {found.chosen:.3g} among the {n}")
    say(f"first         {found.first:.1%} of the words are likeliest after themselves")
    say(f"identity      {found.identity_distance:.3g} away (0: it repeats; 1: nothing of it)")
    for rank, bound in bounds.items():
        say(f"no copy       of rank {rank} is nearer than {bound:.3g} in mean total variation")
    say(f"spent         {found.queries:,} queries")
    if out is not None:
        say(f"picture       {out / 'copytest.png'}", markup=False)


def _chart(found: CopyTest, spec: Spec, title: str) -> alt.VConcatChart:
    """The block as a map, and its singular values."""
    names = ["".join(spec.alphabet[t] for t in word) for word in found.words]
    cells = [
        {"i": i, "j": j, "said": names[i], "then": names[j], "nats": max(value, -60.0)}
        for i, row in enumerate(found.log_probs)
        for j, value in enumerate(row)
    ]
    block = (
        alt.Chart(alt.Data(values=cells), width=360, height=360, title="log P(word j | word i)")
        .mark_rect()
        .encode(
            x=alt.X("j:O", title="word that follows", axis=None),
            y=alt.Y("i:O", title="word that was said", axis=None),
            color=alt.Color("nats:Q", scale=alt.Scale(scheme="viridis"), title="nats"),
            tooltip=["said:N", "then:N", "nats:Q"],
        )
    )
    series = {"probabilities": found.singular_values}
    if found.log_singular_values is not None:
        series["log-probabilities, centred twice"] = found.log_singular_values
    values = [
        {"rank": r + 1, "value": v / shown[0], "block": name}
        for name, shown in series.items()
        for r, v in enumerate(shown)
        if v > 1e-12 * shown[0]
    ]
    spectrum = (
        alt.Chart(alt.Data(values=values), width=360, height=360, title="singular values")
        .mark_line(point=True)
        .encode(
            x=alt.X("rank:Q"),
            y=alt.Y("value:Q", scale=alt.Scale(type="log"), title="of the largest"),
            color=alt.Color("block:N", title="block", scale=alt.Scale(scheme="tableau10")),
            tooltip=["block:N", "rank:Q", "value:Q"],
        )
    )
    both = alt.hconcat(block, spectrum).resolve_scale(color="independent")
    return alt.vconcat(both, title=title)
