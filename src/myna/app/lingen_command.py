"""`myna lingen`: what one prompt would say, generated from what other prompts say.

Exit status: 0 generated and compared; 2 the request could not be worked with.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from myna.app import output
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.options import Json, LedgerPath, Seed, TeacherName, Yes
from myna.app.spending import confirm_spending
from myna.errors import InputError
from myna.logits.likeliest import likeliest_lingen
from myna.logits.lingen import Combination, CombinedHistories, lingen, room_after, shuffled
from myna.lowrank.student import State, Strings
from myna.spec import Spec
from myna.teachers.encode import encoded, read_texts
from myna.teachers.ledger import LawsView, Ledger
from myna.teachers.prefixes import Prefixes

_DRAWS = 20  # strings a prompt, at most, where the teacher often stops at once


def lingen_command(
    teacher: TeacherName,
    target: Annotated[
        str, typer.Option(help="The prompt: its text, or numbers of tokens as 3,1,4.")
    ],
    histories: Annotated[
        int, typer.Option(min=1, help="How many other prompts are combined.")
    ] = 300,
    futures: Annotated[
        int, typer.Option(min=2, help="How many futures the combination is fitted on.")
    ] = 60,
    future_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a future.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 15,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many to show.")] = 3,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Fit the k likeliest tokens at each place (all).")
    ] = None,
    nonsense: Annotated[
        bool, typer.Option("--nonsense", help="Other prompts with their tokens shuffled.")
    ] = False,
    own: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Fit by likelihood, on the futures and on this many continuations that the prompt "
            "itself draws; unless given, by least squares of logits on the futures.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Windows of this file as prompts and futures; else the teacher's own."),
    ] = None,
    budget: Budgets = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Generate from a combination of other prompts; the prompt itself is not asked."""
    if own is not None and top_k is not None:
        raise InputError("--own fits whole laws by likelihood; leave out --top-k")
    limits = read_budget(budget)
    source = open_within(teacher, limits)
    prompt = _prompt(teacher, source.spec, target)
    confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
    wall = budget_of(source, limits, queries=limits.plain)
    with Ledger(source, wall, seed, file=ledger_file, job="lingen") as ledger:
        fitting, generating = ledger.laws("fit"), ledger.laws("generate")
        length = max(1, len(prompt))
        generator = torch.Generator().manual_seed(seed)
        rows = _windows(teacher, fitting, text, [length] * histories + [future_tokens] * futures,
                        generator)  # fmt: skip
        past = Prefixes.of(rows[:histories])
        if nonsense:
            past = shuffled(past, generator)
        after = Prefixes.of(rows[histories:])
        goal = Prefixes.of([prompt])
        room = _room(fitting.spec, goal, past, tokens)
        if own is None:
            (fitted,), found = lingen(fitting, goal, past, after, top_k)
        else:
            drawn = _drawn(fitting, goal, own, room)
            (fitted,), _, found = likeliest_lingen(fitting, goal, past, after, drawn)
        student = CombinedHistories(generating, past, fitted.weights, fitted.spec.horizon)
        said = student.sample(count, generator, tokens).tokens
        by_teacher = ledger.laws("compare").complete(goal, count, max_tokens=room)
        kl = _divergence(ledger.laws("compare"), student, prompt, by_teacher.tokens[0])
        accounts = {name: spent.queries for name, spent in ledger.accounts().items()}
    if room < tokens:
        output.err.print(f"{room} tokens of {tokens}: the longest prompt leaves no more")
    record = _record(teacher, found, kl, accounts) | {
        "fitted_by": "least squares" if own is None else "likelihood",
        "own_continuations": own or 0,
        "tokens": room,
        "copy": _texts(source.spec, said),
        "teacher_says": _texts(source.spec, by_teacher.tokens[0]),
    }
    output.print_json(record) if as_json else _show(record)


def _prompt(teacher: str, spec: Spec, target: str) -> list[int]:
    """Numbers where only numbers and commas are given, else a text."""
    if not target or set(target) - set("0123456789,"):
        return encoded(teacher, spec, [target])[0]
    parts = target.split(",")
    if not all(parts):
        raise InputError(f"numbers of tokens stand between commas as 3,1,4, got {target!r}")
    found = [int(part) for part in parts]
    if any(token >= spec.num_tokens for token in found):
        raise InputError(f"tokens of --target lie in 0..{spec.num_tokens - 1}, got {target}")
    return found


def _windows(
    teacher: str, view: LawsView, text: Path | None, lengths: list[int], generator: torch.Generator
) -> list[list[int]]:
    """Windows of a text at random places, or beginnings of the teacher's own strings."""
    if text is None:
        return _beginnings(view, lengths)
    whole = encoded(teacher, view.spec, [" ".join(read_texts([str(text)]))])[0]
    if len(whole) <= max(lengths):
        raise InputError(
            f"{text} has {len(whole)} tokens, and windows of {max(lengths)} are wanted; "
            "give a longer text"
        )
    starts = [int(torch.randint(len(whole) - n, (1,), generator=generator)) for n in lengths]
    return [whole[start : start + n] for start, n in zip(starts, lengths, strict=True)]


def _beginnings(view: LawsView, lengths: list[int]) -> list[list[int]]:
    """At most so many tokens of strings of the teacher, each with at least one before its stop."""
    rows: list[list[int]] = [[] for _ in lengths]
    lacking, first = list(range(len(rows))), 0
    while lacking and first < _DRAWS * len(rows):
        drawn = view.complete(
            Prefixes.of([[]]), len(lacking), max_tokens=max(lengths) + 1, first_draw=first
        )
        first += len(lacking)
        found = zip(lacking, drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True)
        for i, row, size in found:
            rows[i] = row[: min(lengths[i], size - 1)]
        lacking = [i for i in lacking if not rows[i]]
    if not lacking:
        return rows
    raise InputError(
        f"of {first:,} strings of the teacher only {len(rows) - len(lacking)} have a token before "
        f"their last, and {len(rows)} prompts and futures are wanted; take them from a --text"
    )


def _divergence(
    view: LawsView, student: CombinedHistories, prompt: list[int], drawn: torch.Tensor
) -> torch.Tensor:
    """(draw, time): KL(teacher || copy) at each token of the teacher's own continuations."""
    found = torch.zeros(drawn.shape, dtype=torch.float64)
    for t in range(drawn.shape[1]):
        rows = (drawn[:, t] >= 0).nonzero()[
            :, 0
        ]  # nothing follows a stop: ended ones are not asked
        before = drawn[rows, :t]
        true = view.laws(Prefixes.of([[*prompt, *row] for row in before.tolist()]))
        copy = student.law(State(before.double(), t))
        found[rows, t] = (true.exp() * (true - copy)).sum(1)
    return found


def _record(
    teacher: str, found: Combination, kl: torch.Tensor, accounts: dict[str, int]
) -> dict[str, Any]:
    totals = kl.sum(1)
    half = 1.96 * float(totals.std()) / len(totals) ** 0.5 if len(totals) > 1 else None
    return {
        "teacher": teacher,
        "histories": len(found.weights),
        "ridge": found.ridge,
        "unexplained": float(found.unexplained[0]),
        "kl_by_token": kl.mean(0).tolist(),
        "total_kl": float(totals.mean()),
        "half_interval_95": half,
        "queries": accounts,
    }


def _room(spec: Spec, goal: Prefixes, past: Prefixes, tokens: int) -> int:
    """Tokens that may follow the longest prompt; another may be longer than the target."""
    room = room_after(spec, goal, past)
    if spec.horizon is None or room is None:
        return tokens
    if room < 1:
        raise InputError(
            f"nothing can follow a prompt of {spec.horizon - room} tokens at horizon {spec.horizon}; "
            "give a shorter prompt or a larger horizon"
        )
    return min(tokens, room)


def _drawn(view: LawsView, prompt: Prefixes, count: int, tokens: int) -> list[Prefixes] | None:
    """Continuations of the prompt by the teacher, on the stream of fitting."""
    if not count:
        return None
    found = view.complete(prompt, count, max_tokens=tokens)
    return [Prefixes.of(output.token_rows(Strings(found.tokens[0], found.lengths[0])))]


def _texts(spec: Spec, tokens: torch.Tensor) -> list[str]:
    rows = [[spec.alphabet[t] for t in row if t >= 0] for row in tokens.tolist()]
    return [" ".join(row) for row in rows]


def _show(record: dict[str, Any]) -> None:
    say = output.out.print
    say(
        f"combined      {record['histories']} other prompts by {record['fitted_by']}, "
        f"ridge {record['ridge']:g}"
    )
    say(
        f"unexplained   {record['unexplained']:.2%} of the prompt's rows on held-out futures, "
        "by least squares"
    )
    half = record["half_interval_95"]
    within = "" if half is None else f" +- {half:.3g} (95%, over the teacher's continuations shown)"
    say(
        f"total KL      {record['total_kl']:.3g} nats over {len(record['kl_by_token'])} tokens{within}"
    )
    for name, rows in (("teacher", record["teacher_says"]), ("copy", record["copy"])):
        for row in rows:
            say(f"{name:<13} {row}", markup=False, highlight=False)
    spent = ", ".join(f"{name} {n:,}" for name, n in record["queries"].items())
    say(f"spent         next-token queries: {spent}")
