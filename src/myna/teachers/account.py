"""What was spent, and what may be.

The units:

    next-token query   one distinct prefix whose law was asked (whole or top-k)
    scored prompt      one history and future whose tokens were scored together
    completion         one draw of one prefix under one stream
    tokens sent        lengths of the prefixes that reached the teacher, added up
    scored tokens      lengths of the scored prompts, which are not in the tokens sent
    tokens received    lengths of the completions that came back
    cache hit          a question that an earlier answer settled; it costs nothing
    money              what the tokens cost by a Price, retries not in it
"""

import dataclasses

from myna.errors import BudgetExhausted, InputError

_UNIT = 1_000_000  # tokens that a price is for


@dataclasses.dataclass(frozen=True)
class Account:
    """What was spent, each field a plain sum; see the module's text for the units."""

    next_token_queries: int = 0
    completions: int = 0
    tokens_sent: int = 0
    tokens_received: int = 0
    cache_hits: int = 0
    scored_prompts: int = 0
    scored_tokens: int = 0

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the teacher generated: those received in completions."""
        return self.tokens_received

    @property
    def tokens(self) -> int:
        """All that went either way."""
        return self.tokens_sent + self.scored_tokens + self.tokens_received

    @property
    def queries(self) -> int:
        """Laws and scored prompts: questions whose answers are no draws."""
        return self.next_token_queries + self.scored_prompts

    def __add__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries + other.next_token_queries,
            self.completions + other.completions,
            self.tokens_sent + other.tokens_sent,
            self.tokens_received + other.tokens_received,
            self.cache_hits + other.cache_hits,
            self.scored_prompts + other.scored_prompts,
            self.scored_tokens + other.scored_tokens,
        )

    def __sub__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries - other.next_token_queries,
            self.completions - other.completions,
            self.tokens_sent - other.tokens_sent,
            self.tokens_received - other.tokens_received,
            self.cache_hits - other.cache_hits,
            self.scored_prompts - other.scored_prompts,
            self.scored_tokens - other.scored_tokens,
        )


@dataclasses.dataclass(frozen=True)
class Price:
    """What questions cost, as prices for a million tokens.

    sent, received: money for a million tokens
    opening: tokens that stand before every prompt
    scored: a law is read from so many scored prompts, each a token longer; 0: from one answer
    """

    sent: float = 0.0
    received: float = 0.0
    opening: int = 0
    scored: int = 0

    def tokens(self, spent: Account) -> tuple[int, int]:
        """Tokens billed as sent and as received; a law or a scored prompt brings one back.

        Where laws are scored, each token sent may belong to a law, and so to all its prompts.
        """
        prompts = spent.next_token_queries * (self.scored or 1)
        sent = spent.tokens_sent * (self.scored or 1) + prompts * (self.opening + bool(self.scored))
        sent += spent.completions * self.opening
        sent += spent.scored_tokens + spent.scored_prompts * self.opening
        return sent, spent.tokens_received + prompts + spent.scored_prompts

    def of(self, spent: Account) -> float:
        """Money."""
        sent, received = self.tokens(spent)
        return (sent * self.sent + received * self.received) / _UNIT


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits on an account; None means no limit.

    queries: next-token queries plus scored prompts
    completions: completions
    tokens: tokens sent, scored and received
    sampled_tokens: tokens received, those that the teacher generated
    money: in the unit of `price`
    price: what questions cost; needed where money is limited
    """

    queries: int | None = None
    completions: int | None = None
    tokens: int | None = None
    sampled_tokens: int | None = None
    money: float | None = None
    price: Price | None = None

    def __post_init__(self):
        """Refuse money without a price."""
        if self.money is not None and self.price is None:
            raise InputError("a budget in money needs a price; give price_sent and price_received")

    @property
    def counts_tokens(self) -> bool:
        """Whether completions must be of bounded length to keep to it."""
        return (self.tokens, self.sampled_tokens, self.money) != (None, None, None)

    def check(self, spent: Account, where: str = "") -> None:
        """Raise BudgetExhausted where an account would exceed a limit.

        where: what the account covers, as the message says it
        """
        names = ("next-token queries", "completions", "tokens", "sampled tokens", "in money")
        for name, (field, amount) in zip(names, self._amounts(spent).items(), strict=True):
            limit = getattr(self, field)
            if limit is not None and amount > limit:
                raise BudgetExhausted(
                    f"the budget is {limit:,} {name}{where} and the next request would bring "
                    f"them to {amount:,}; raise the budget to go on"
                )

    def less(self, spent: Account) -> "Budget":
        """What is left after an account, no limit below zero."""
        left = {
            field: max(0, getattr(self, field) - amount)
            for field, amount in self._amounts(spent).items()
            if getattr(self, field) is not None
        }
        return dataclasses.replace(self, **left)

    def _amounts(self, spent: Account) -> dict[str, int | float]:
        """What each limit is held against."""
        return {
            "queries": spent.queries,
            "completions": spent.completions,
            "tokens": spent.tokens,
            "sampled_tokens": spent.sampled_tokens,
            "money": self.price.of(spent) if self.price else 0.0,
        }
