"""What was spent, and what may be.

The units:

    next-token query   one distinct prefix whose law was asked (whole or top-k)
    completion         one draw of one prefix under one stream
    tokens sent        lengths of the prefixes that reached the teacher, added up
    tokens received    lengths of the completions that came back
    cache hit          a question that an earlier answer settled; it costs nothing
"""

import dataclasses

from myna.errors import BudgetExhausted


@dataclasses.dataclass(frozen=True)
class Account:
    """What was spent, each field a plain sum; see the module's text for the units."""

    next_token_queries: int = 0
    completions: int = 0
    tokens_sent: int = 0
    tokens_received: int = 0
    cache_hits: int = 0

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the teacher generated: those received in completions."""
        return self.tokens_received

    def __add__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries + other.next_token_queries,
            self.completions + other.completions,
            self.tokens_sent + other.tokens_sent,
            self.tokens_received + other.tokens_received,
            self.cache_hits + other.cache_hits,
        )

    def __sub__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries - other.next_token_queries,
            self.completions - other.completions,
            self.tokens_sent - other.tokens_sent,
            self.tokens_received - other.tokens_received,
            self.cache_hits - other.cache_hits,
        )


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits on an account; None means no limit.

    queries: next-token queries
    completions: completions
    tokens: tokens sent plus tokens received
    sampled_tokens: tokens received, those that the teacher generated
    """

    queries: int | None = None
    completions: int | None = None
    tokens: int | None = None
    sampled_tokens: int | None = None

    def check(self, spent: Account, where: str = "") -> None:
        """Raise BudgetExhausted where an account would exceed a limit.

        where: what the account covers, as the message says it
        """
        for name, limit, amount in (
            ("next-token queries", self.queries, spent.next_token_queries),
            ("completions", self.completions, spent.completions),
            ("tokens", self.tokens, spent.tokens_sent + spent.tokens_received),
            ("sampled tokens", self.sampled_tokens, spent.sampled_tokens),
        ):
            if limit is not None and amount > limit:
                raise BudgetExhausted(
                    f"the budget is {limit:,} {name}{where} and the next request would bring "
                    f"them to {amount:,}; raise the budget to go on"
                )
