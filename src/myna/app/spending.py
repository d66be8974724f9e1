"""Before a command spends at an endpoint: what it can cost, and a question above a threshold."""

import sys
from typing import Any

import typer

from myna.app import output
from myna.errors import InputError
from myna.teachers.endpoint import EndpointSamples
from myna.teachers.endpoint_cost import most_cost
from myna.teachers.oracle import Samples
from myna.teachers.restricted import RestrictedLaws, RestrictedSamples

_FREE_TOKENS = 100_000  # spent without a question where no price is given
_FREE_MONEY = 1.0  # the same, where one is


def confirm_spending(
    teacher: Samples, *, queries: int | None, generated: int | None, yes: bool
) -> None:
    """Show the most that a budget can cost; above the threshold ask, or want --yes.

    queries, generated: the budget; whichever is not asked is 0, None is no limit

    Raises:
        InputError: where the answer is no, or nobody is there to answer.
    """
    asked = whole_teacher(teacher)
    if not isinstance(asked, EndpointSamples):
        return
    endpoint = asked.asker.endpoint
    priced = (endpoint.price_sent, endpoint.price_received) != (None, None)
    if not priced and endpoint.at_home:
        return
    cost = most_cost(asked, queries, generated)
    if isinstance(teacher, RestrictedSamples):
        what = "tokens outside only= are drawn and paid as well, so nothing bounds what this costs"
        small = False
    elif cost is None:
        what, small = "without --budget and a horizon nothing bounds what this costs", False
    elif cost.money is None:
        what, small = f"this can cost up to {cost.tokens:,} tokens", cost.tokens <= _FREE_TOKENS
    else:
        what = f"this can cost up to {cost.money:,.2f} for {cost.tokens:,} tokens"
        small = cost.money <= _FREE_MONEY
    if endpoint.max_money is not None:
        what = f"{what}; max_money={endpoint.max_money:g} is kept"
        small = small or endpoint.max_money <= _FREE_MONEY
    output.err.print(f"{endpoint.model}: {what}", markup=False)
    if yes or small:
        return
    if not (sys.stdin.isatty() and typer.confirm("Go on?", err=True)):
        raise InputError(f"{what}; add --yes to go on, or a smaller --budget (as 5money)")


def whole_teacher(teacher: Samples) -> Samples:
    """The teacher itself, where only part of its alphabet is used."""
    return teacher.whole if isinstance(teacher, RestrictedSamples | RestrictedLaws) else teacher


def provenance(teacher: Samples) -> dict[str, Any]:
    """What a saved student keeps of its teacher: an endpoint's probe, what was thrown away."""
    asked, found = whole_teacher(teacher), rejected(teacher)
    if isinstance(asked, EndpointSamples):
        found["probe"] = output.plain(asked.profile)
    return found


def rejected(teacher: Samples) -> dict[str, int]:
    """How many tokens outside a sub-alphabet were drawn, and paid, in vain; else nothing."""
    count = teacher.rejected_tokens if isinstance(teacher, RestrictedSamples) else 0
    return {"rejected_tokens": count} if count else {}
