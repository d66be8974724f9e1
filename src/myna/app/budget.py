"""--budget: how much a command may spend, in one or more units.

    --budget 20000                    next-token queries, or (samples) generated tokens
    --budget 20000tokens              tokens, sent and received together
    --budget 500requests              requests of one run to an endpoint, every try and the
                                      probe counted
    --budget 2.5money                 in the unit of the endpoint's prices

Queries, tokens and money are reserved in the ledger before they are spent, over all runs and
processes on one file; money is there what the tokens cost by the prices. Requests and money
also limit what this run's endpoint sends, retries and the probe included, as the server
bills them.
"""

import dataclasses
import math
import re
from typing import Annotated
from urllib.parse import quote

import typer

from myna.app.spending import whole_teacher
from myna.errors import InputError
from myna.teachers.account import Budget
from myna.teachers.endpoint import EndpointSamples
from myna.teachers.endpoint_cost import price_of
from myna.teachers.oracle import Samples
from myna.teachers.uri import open_teacher

_UNITS = ("queries", "tokens", "requests", "money")

Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="N[UNIT]",
        help="The most to spend: N next-token queries, or N generated tokens where a command "
        "learns from samples; or Ntokens, Nrequests, Xmoney. May be given once for each unit.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What was asked for; None is no limit.

    plain: in the command's own unit, next-token queries or generated tokens
    tokens: sent and received together
    requests: of one run to an endpoint
    money: in the unit of the endpoint's prices
    """

    plain: int | None = None
    tokens: int | None = None
    requests: int | None = None
    money: float | None = None

    @property
    def in_tokens(self) -> bool:
        """Whether tokens sent and received are what is limited."""
        return self.plain is None and self.tokens is not None

    def tokens_or(self, default: int) -> int:
        """How many tokens a command that draws samples may spend."""
        given = (self.plain, self.tokens, default)
        return next(number for number in given if number is not None)

    @property
    def of_endpoints(self) -> dict[str, int | float]:
        """Parameters of an openai: URI."""
        named = {"max_requests": self.requests, "max_money": self.money}
        return {name: value for name, value in named.items() if value is not None}


def read_budget(texts: list[str] | None, *, queries: bool = True) -> Limits:
    """What --budget said.

    queries: whether the command counts next-token queries, and may be told so

    Raises:
        InputError: a number or a unit that is none, or a unit given twice.
    """
    found: dict[str, int | float] = {}
    for text in texts or []:
        match = re.fullmatch(r"\s*([0-9][0-9_.eE+]*)\s*([a-z]*)\s*", text)
        unit = match[2] if match else "?"
        if match is None or unit not in ("", *_UNITS):
            raise InputError(
                f"--budget takes a number and, if need be, a unit ({', '.join(_UNITS)}), "
                f"as 20000 or 2.5money; got {text!r}"
            )
        if unit == "queries" and not queries:
            raise InputError("no next-token queries are asked here; give --budget in tokens")
        name = "plain" if unit in ("", "queries") else unit
        if name in found:
            raise InputError(f"--budget was given twice for one unit; leave {text!r} out")
        found[name] = _number(match[1], text, whole=name != "money")
    return Limits(**found)  # pyright: ignore[reportArgumentType]


def _number(digits: str, text: str, *, whole: bool) -> int | float:
    try:
        number = float(digits)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"--budget takes a number such as 20000; got {text!r}")
    if whole and number != int(number):
        raise InputError(f"--budget takes a whole number of all but money; got {text!r}")
    return int(number) if whole else number


def open_within(uri: str, limits: Limits) -> Samples:
    """A teacher that keeps to a budget of requests and money.

    Raises:
        InputError: where the teacher is no endpoint, or has no prices.
    """
    asked = limits.of_endpoints
    if not asked:
        return open_teacher(uri)
    unit = "requests" if limits.requests is not None else "money"
    if not uri.startswith("openai:"):
        raise InputError(
            f"only endpoints (openai:) are paid in {unit}, and the teacher is {uri}; "
            "give --budget in queries or tokens"
        )
    if twice := [name for name in asked if f"{name}=" in uri]:
        raise InputError(f"{twice[0]} is in the teacher's address; leave it or --budget out")
    more = "&".join(f"{name}={quote(str(value))}" for name, value in asked.items())
    return open_teacher(f"{uri}{'&' if '?' in uri else '?'}{more}")


def budget_of(teacher: Samples, limits: Limits, **plain: int | None) -> Budget:
    """The ledger's part of the limits; `plain` names the command's own unit."""
    asked = whole_teacher(teacher)
    price = price_of(asked) if isinstance(asked, EndpointSamples) else None
    tokens = {} if limits.tokens is None else {"tokens": limits.tokens}
    money = None if price is None else limits.money
    return Budget(**(plain | tokens), money=money, price=price)
