"""Before a command spends at an endpoint: what it can cost, and a question above a threshold."""

import ipaddress
import sys
from typing import Any
from urllib.parse import urlsplit

import typer

from myna.app import output
from myna.errors import InputError
from myna.teachers.endpoint import EndpointSamples
from myna.teachers.endpoint_cost import most_cost
from myna.teachers.oracle import Samples

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
    if not isinstance(teacher, EndpointSamples):
        return
    endpoint = teacher.asker.endpoint
    priced = (endpoint.price_sent, endpoint.price_received) != (None, None)
    if not priced and _at_home(endpoint.base_url):
        return
    cost = most_cost(teacher, queries, generated)
    if cost is None:
        what, small = "without --budget and a horizon nothing bounds what this costs", False
    elif cost.money is None:
        what, small = f"this can cost up to {cost.tokens:,} tokens", cost.tokens <= _FREE_TOKENS
    else:
        what = f"this can cost up to {cost.money:,.2f} for {cost.tokens:,} tokens"
        small = cost.money <= _FREE_MONEY
    output.err.print(f"{endpoint.model}: {what}", markup=False)
    if yes or small:
        return
    if not (sys.stdin.isatty() and typer.confirm("Go on?", err=True)):
        raise InputError(f"{what}; add --yes to go on, or a smaller --budget")


def _at_home(base_url: str) -> bool:
    """Whether the server is on this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def provenance(teacher: Samples) -> dict[str, Any]:
    """What a saved student keeps of its teacher: an endpoint's probe."""
    return {"probe": output.plain(teacher.profile)} if isinstance(teacher, EndpointSamples) else {}
