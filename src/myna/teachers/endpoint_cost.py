"""What a budget can cost at an endpoint, before anything is spent.

With b beginning tokens, horizon H and O tokens, at most

    a law      one prompt of b + H - 1 tokens and one new token, or O such prompts of one
               more where it is read from prompt scores
    a draw     sent: b + H - 1 tokens for each prompt, and every prompt brings a token or more

so Q queries and T generated tokens cost no more than the figures below, in money
sent x price_sent + received x price_received, prices for a million tokens. Questions that are
asked again are not in it: a server that keeps Idempotency-Keys bills them once.
"""

import dataclasses

from myna.teachers.account import Account, Price
from myna.teachers.endpoint import EndpointSamples
from myna.teachers.probe_record import Access


@dataclasses.dataclass(frozen=True)
class Cost:
    """Upper bounds.

    sent, received: tokens
    money: in the unit of the prices; None where no price is given
    """

    sent: int
    received: int
    money: float | None

    @property
    def tokens(self) -> int:
        """Sent and received together."""
        return self.sent + self.received


def most_cost(teacher: EndpointSamples, queries: int | None, generated: int | None) -> Cost | None:
    """The most that so many law queries or generated tokens can cost; None: no bound.

    queries, generated: the budget; whichever is not asked is 0, None is no limit
    """
    horizon = teacher.spec.horizon
    if queries is None or generated is None or horizon is None:
        return None
    longest = (queries + generated) * (horizon - 1)
    price = price_of(teacher)
    most = Account(queries, generated, longest, generated)
    endpoint = teacher.asker.endpoint
    priced = (endpoint.price_sent, endpoint.price_received) != (None, None)
    return Cost(*price.tokens(most), price.of(most) if priced else None)


def price_of(teacher: EndpointSamples) -> Price:
    """What its questions cost, each as long as the ledger counts it; retries not in it."""
    endpoint, scored = teacher.asker.endpoint, teacher.profile.access is Access.SCORES
    return Price(
        sent=endpoint.price_sent or 0.0,
        received=endpoint.price_received or 0.0,
        opening=len(teacher.asker.vocabulary.begin),
        scored=teacher.spec.num_tokens if scored else 0,
    )
