"""Interpolated Kneser-Ney n-grams: the baseline that every student of text must beat.

    P_k(o | c) = max(N_k(c o) - D_k, 0) / N_k(c)  +  D_k M_k(c) / N_k(c) * P_{k-1}(o | c'),
    P_0 = 1 / O,      D_k = n_1 / (n_1 + 2 n_2),

c the last k - 1 tokens, c' without the first of them, M_k(c) the number of distinct tokens seen
after c, n_i the number of (c, o) counted i times. N_n are counts of the text; for k < n, N_k(c o) is
the number of distinct tokens seen before c o. Before a string stands one symbol that no token is,
as often as needed. Where c was never seen P_k = P_{k-1}. D_k is .999 at most, so that nothing seen is
forgotten where n_2 = 0, and .5 where n_1 = 0.

Source: Kneser and Ney (1995) in the interpolated form of Chen and Goodman (1998), with one
discount an order. The order is the one that predicts held-out strings best.
"""

import dataclasses
import time
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.plain import not_empty, plain_strings
from myna.lowrank.student import State, StepInfo, Stepped, Strings, check_strings
from myna.spec import Spec, fingerprint
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger

_HELD_OUT = 0.05  # of the strings
_MAX_CODE = 2**62


class _Order(NamedTuple):
    """All (c, o) of one order, sorted by context.

    contexts: (context,) codes, ascending
    starts: (context + 1,) where each context's tokens begin
    tokens: (entry,) o
    counts: (entry,) N(c o)
    discount: D
    """

    contexts: Int[Tensor, " context"]
    starts: Int[Tensor, " starts"]
    tokens: Int[Tensor, " entry"]
    counts: Float[Tensor, " entry"]
    discount: float


class Ngrams(Stepped):
    """A Student whose state is the last n - 1 tokens."""

    def __init__(self, language: Spec, orders: tuple[_Order, ...]):
        """Orders 1 ... n."""
        self._orders, self._size = orders, language.num_tokens
        parts = [part for order in orders for part in (order.contexts, order.tokens, order.counts)]
        mark = fingerprint("n-grams", language.alphabet, language.stop, language.horizon, *parts)
        self._spec = dataclasses.replace(language, fingerprint=mark)

    @property
    def spec(self) -> Spec:
        """The language, with a fingerprint of the counts."""
        return self._spec

    @property
    def order(self) -> int:
        """How many tokens an n-gram has."""
        return len(self._orders)

    @property
    def num_parameters(self) -> int:
        """Counts kept over all orders."""
        return sum(len(order.tokens) for order in self._orders)

    def initial(self, batch: int) -> State:
        """Only the symbol before the string has been read."""
        width = self.order - 1
        return State(torch.full((batch, width), float(self._size), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log-probabilities (nats), from the unigrams up."""
        history = state.vector.long().cpu()
        law = torch.full((len(history), self._size), 1 / self._size, dtype=torch.float64)
        code = torch.zeros(len(history), dtype=torch.int64)
        for k, order in enumerate(self._orders, start=1):
            if k > 1:  # the context grows to the left
                code = code + history[:, self.order - k] * (self._size + 1) ** (k - 2)
            law = _interpolated(order, code, law)
        return law.log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Forget the oldest token, remember the new one."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        kept = torch.cat([state.vector, tokens[:, None].double()], 1)[:, 1:]
        return State(kept, state.position + 1), StepInfo(log_prob)


def _interpolated(
    order: _Order, code: Int[Tensor, " batch"], lower: Float[Tensor, "batch token"]
) -> Float[Tensor, "batch token"]:
    """P_k from P_{k-1}, at the contexts of a batch."""
    distinct, place = code.unique(return_inverse=True)
    at = torch.searchsorted(order.contexts, distinct).clamp(max=len(order.contexts) - 1)
    seen = order.contexts[at] == distinct
    begin = order.starts[at]
    many = torch.where(seen, order.starts[at + 1] - begin, 0)
    row = torch.repeat_interleave(torch.arange(len(distinct)), many)
    entry = torch.arange(len(row)) - (many.cumsum(0) - many)[row] + begin[row]
    counts = torch.zeros((len(distinct), lower.shape[1]), dtype=torch.float64)
    counts[row, order.tokens[entry]] = order.counts[entry]
    total = counts.sum(1, keepdim=True).clamp(min=1)
    above = (counts - order.discount).clamp(min=0) / total
    left = torch.where(seen, order.discount * many.double() / total[:, 0], 1.0)
    return above[place] + left[place][:, None] * lower


@dataclasses.dataclass(frozen=True)
class NgramSettings:
    """What may be chosen.

    tokens: generated tokens to spend
    max_order: the largest n tried
    max_tokens: without a horizon, strings are cut here
    """

    tokens: int
    max_order: int = 8
    max_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if self.tokens < 1 or self.max_order < 1 or self.max_tokens < 1:
            raise InputError(
                "tokens, the largest order and the length must be at least 1, got "
                f"{self.tokens}, {self.max_order} and {self.max_tokens}"
            )


@dataclasses.dataclass(frozen=True)
class NgramReport:
    """What was counted.

    order: n, the one chosen
    held_out: mean held-out log-probability a token (nats) of orders 1, 2, ...
    tokens: counted
    accounts: what each purpose spent
    seconds: wall-clock time
    """

    order: int
    held_out: tuple[float, ...]
    tokens: int
    accounts: dict[str, Account]
    seconds: float


@dataclasses.dataclass(frozen=True)
class NgramResult:
    """A student and the report on it."""

    student: Ngrams
    report: NgramReport


def learn_ngrams(ledger: Ledger, settings: NgramSettings) -> NgramResult:
    """Count n-grams of strings that the ledger's teacher draws.

    Raises:
        BudgetExhausted: where the ledger allows fewer tokens.
        InputError: fewer than two strings.
    """
    began = time.perf_counter()
    view = ledger.samples("learn")
    rows = plain_strings(view, settings.tokens, settings.max_tokens)
    student, held_out = fit_ngrams(view.spec, rows, settings.max_order)
    report = NgramReport(
        student.order, held_out, int(rows.lengths.sum()), ledger.accounts(),
        time.perf_counter() - began,
    )  # fmt: skip
    return NgramResult(student, report)


def fit_ngrams(
    language: Spec, text: Strings, max_order: int = 8
) -> tuple[Ngrams, tuple[float, ...]]:
    """N-grams of given strings in random order, and the held-out figure of each order tried.

    The first twentieth of the strings chooses the order; then all of them are counted. Orders above
    `largest_order` of the alphabet are not tried. Empty strings say nothing and are left out.

    Raises:
        InputError: fewer than two strings, or tokens that the language lacks.
    """
    check_strings(language, text)
    text = not_empty(text)
    count = len(text.lengths)
    if count < 2:
        raise InputError(f"n-grams need at least 2 strings, one to choose the order; got {count}")
    kept = max(1, round(_HELD_OUT * count))
    seen, fresh = (Strings(*(part[s] for part in text)) for s in (slice(kept, None), slice(kept)))
    held_out: list[float] = []
    for n in range(1, min(max_order, largest_order(language.num_tokens)) + 1):
        student = count_ngrams(language, seen, n)
        held_out.append(float(student.score(fresh).sum() / fresh.lengths.sum()))
    best = 1 + held_out.index(max(held_out))
    return count_ngrams(language, text, best), tuple(held_out)


def largest_order(num_tokens: int) -> int:
    """The largest n whose n-grams have 62-bit numbers: (O + 1)^n <= 2^62."""
    order = 1
    while (num_tokens + 1) ** (order + 1) <= _MAX_CODE:
        order += 1
    return order


def count_ngrams(language: Spec, text: Strings, n: int) -> Ngrams:
    """The n-grams of a text.

    Raises:
        InputError: an order so large that contexts have no 62-bit number.
    """
    size = language.num_tokens
    most = largest_order(size)
    if n > most:
        raise InputError(f"with {size} tokens the order is at most {most}, got {n}")
    tokens = torch.nn.functional.pad(text.tokens, (n - 1, 0), value=size)
    inside = torch.arange(text.tokens.shape[1]) < text.lengths[:, None]
    code = torch.zeros(int(inside.sum()), dtype=torch.int64)
    for k in range(n):
        code = code * (size + 1) + tokens[:, k : k + text.tokens.shape[1]][inside]
    codes, counts = code.unique(return_counts=True)
    orders = [_order(codes, counts, size)]
    for k in range(n - 1, 0, -1):
        # what stood before: distinct (k+1)-grams that end in this k-gram
        codes, counts = (codes % (size + 1) ** k).unique(return_counts=True)
        orders.append(_order(codes, counts, size))
    return Ngrams(language, tuple(reversed(orders)))


def _order(codes: Int[Tensor, " entry"], counts: Int[Tensor, " entry"], size: int) -> _Order:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    contexts, many = (codes // (size + 1)).unique_consecutive(return_counts=True)
    starts = torch.nn.functional.pad(many.cumsum(0), (1, 0))
    return _Order(contexts, starts, codes % (size + 1), counts.double(), min(discount, 0.999))
