"""Limits on what one opening of an endpoint may send: requests, and money.

    requests sent          <= max_requests       every try counts, the probe's too
    paid + reserved        <= max_money          at every moment, over all threads

A try reserves the most that its question can cost, sent x price_sent + received x
price_received (prices for a million tokens), before it is sent. Once answered it costs what
the server says it used, or else the most. A try that the server refused costs nothing; one
whose answer was lost keeps its reservation, as it may have been billed.
"""

import threading
from typing import NamedTuple

from myna.errors import BudgetExhausted
from myna.teachers.endpoint_settings import Endpoint

_UNIT = 1_000_000  # tokens that a price is for


class Size(NamedTuple):
    """Tokens of one request: sent, and (at most) received."""

    sent: int = 0
    received: int = 0

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.sent + self.received


class Purse:
    """What is left of one endpoint's limits; threads share it."""

    def __init__(self, endpoint: Endpoint):
        """Nothing spent."""
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self.requests = 0
        self.money = 0.0  # paid and reserved

    def cost(self, size: Size) -> float:
        """Money for so many tokens."""
        sent, received = self._endpoint.price_sent or 0.0, self._endpoint.price_received or 0.0
        return (size.sent * sent + size.received * received) / _UNIT

    def take(self, size: Size) -> None:
        """Reserve one request.

        Raises:
            BudgetExhausted: where a limit would be exceeded; nothing is reserved.
        """
        most_requests, most_money = self._endpoint.max_requests, self._endpoint.max_money
        with self._lock:
            if most_requests is not None and self.requests >= most_requests:
                raise BudgetExhausted(
                    f"max_requests={most_requests:,} requests were sent to {self._endpoint.model}; "
                    "raise it to go on"
                )
            money = self.money + self.cost(size)
            if most_money is not None and money > most_money:
                raise BudgetExhausted(
                    f"the next request to {self._endpoint.model} could bring its cost to "
                    f"{money:.6g}, and max_money={most_money:g}; raise it to go on"
                )
            self.requests, self.money = self.requests + 1, money

    def settle(self, reserved: Size, used: Size) -> None:
        """Put what was used in the place of what was reserved."""
        with self._lock:
            self.money += self.cost(used) - self.cost(reserved)
