"""Whole laws from an API that shows little, but takes a bias on logits.

With a bias b_o added to logits the API samples from p'_o ~ p_o e^{b_o}, and shows its k most
likely tokens, or the most likely alone. From that, with r a reference token and z = log p:

    top k    bias B on r and k - 1 others that makes them the k shown:
             z_i - z_r = z'_i - z'_r                       (exact; ceil((O-1) / (k-1)) requests)
    top 1    bias B on i alone that makes it the one shown, p'_i its probability:
             z_i = z'_i - log((1 - p'_i) e^B + p'_i)       (1 request and those that B was too
                                                            small for)
    argmax   the least B on i alone that makes it the most likely: z_i = z_top - B, by bisection
             (log2(range / tolerance) requests a token)

Differences are all that a centred logit needs. The formula for a whole group without a
reference, z_i = z'_i - log((1 - sum p') e^B + sum p'), loses the digits that 1 - sum p' loses:
it is here to be compared.

Source: Finlayson et al. (arXiv 2403.09539), Carlini et al. (2403.06634), who name the first
and the last; doubling B where it was too small is ours.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.spec import Spec
from myna.teachers.oracle import TopLaw, top_of
from myna.teachers.prefixes import Prefixes

_FIRST_BIAS = 40.0  # nats: differences are exact however large it is
_MOST_BIAS = 128.0


@runtime_checkable
class _Asked(Protocol):
    """A teacher or a view of one."""

    @property
    def spec(self) -> Spec:
        """Its language."""
        ...

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Its laws."""
        ...


class BiasedApi:
    """A simulated API over any teacher: k tokens shown, a bias taken, every request counted.

    teacher: or a ledger's view of one
    k: tokens shown, with log-probabilities after the bias; 0: the most likely token, bare
    """

    def __init__(self, teacher: _Asked, k: int):
        """Nothing asked yet.

        Raises:
            InputError: a k that is not in 0..O.
        """
        if not 0 <= k <= teacher.spec.num_tokens:
            raise InputError(f"an API shows 0..{teacher.spec.num_tokens} tokens, got k = {k}")
        self._teacher, self.k, self.requests = teacher, k, 0

    @property
    def spec(self) -> Spec:
        """The teacher's."""
        return self._teacher.spec

    def _biased(self, prefixes: Prefixes, bias: Float[Tensor, "batch token"]) -> Tensor:
        self.requests += len(prefixes.lengths)
        return (self._teacher.laws(prefixes) + bias).log_softmax(1)

    def top(self, prefixes: Prefixes, bias: Float[Tensor, "batch token"]) -> TopLaw:
        """The k most likely tokens after the bias (nats), one request a row."""
        return top_of(self._biased(prefixes, bias), self.k)

    def most_likely(
        self, prefixes: Prefixes, bias: Float[Tensor, "batch token"]
    ) -> Int[Tensor, " batch"]:
        """The most likely token after the bias, one request a row."""
        return self._biased(prefixes, bias).argmax(1)


def by_reference(api: BiasedApi, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
    """Laws (nats) from the top k with a reference token, k - 1 tokens a request.

    Raises:
        InputError: where k < 2, or a bias of 128 nats does not bring a token up.
    """
    size, rows = api.spec.num_tokens, len(prefixes.lengths)
    if api.k < 2:
        raise InputError(f"a reference token needs a top k of 2 or more, got {api.k}")
    differences = torch.zeros((rows, size), dtype=torch.float64)  # token 0 is the reference
    for first in range(1, size, api.k - 1):
        group = torch.arange(first, min(first + api.k - 1, size))
        shown = _shown(api, prefixes, torch.cat([torch.zeros(1, dtype=torch.int64), group]))
        differences[:, group] = shown[:, 1:] - shown[:, :1]
    return differences.log_softmax(1)


def _shown(
    api: BiasedApi, prefixes: Prefixes, tokens: Int[Tensor, " group"]
) -> Float[Tensor, "batch group"]:
    """Biased log-probabilities of tokens, the bias doubled in rows that do not show them all."""
    found = torch.full((len(prefixes.lengths), len(tokens)), torch.nan, dtype=torch.float64)
    left, strength = torch.arange(len(found)), _FIRST_BIAS
    while len(left):
        bias = torch.zeros((len(left), api.spec.num_tokens), dtype=torch.float64)
        bias[:, tokens] = strength
        top = api.top(prefixes.take(left), bias)
        whole = torch.full_like(bias, torch.nan).scatter(1, top.tokens, top.log_probs)
        found[left] = whole[:, tokens]
        left = found.isnan().any(1).nonzero()[:, 0]
        if len(left) and strength == _MOST_BIAS:
            raise InputError(
                f"a bias of {_MOST_BIAS:g} nats does not bring every token among the {api.k} shown: "
                "some have probability zero, or the API ignores the bias"
            )
        strength = min(2 * strength, _MOST_BIAS)
    return found


def by_group_sum(api: BiasedApi, prefixes: Prefixes, strength: float) -> Tensor:
    """Laws (nats) from the top k without a reference, for comparison; NaN where not shown."""
    size = api.spec.num_tokens
    found = torch.full((len(prefixes.lengths), size), torch.nan, dtype=torch.float64)
    for first in range(0, size, api.k):
        group = torch.arange(first, min(first + api.k, size))
        bias = torch.zeros((len(found), size), dtype=torch.float64)
        bias[:, group] = strength
        top = api.top(prefixes, bias)
        whole = torch.full_like(bias, torch.nan).scatter(1, top.tokens, top.log_probs)
        shown = whole[:, group]
        mass = shown.exp().sum(1, keepdim=True)
        found[:, group] = shown - ((1 - mass) * math.exp(strength) + mass).log()
    return found


def by_top_one(api: BiasedApi, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
    """Laws (nats) from the one token shown: each brought up by a bias of its own.

    The bias is raised by 2 nats until the token shows, so 1 - p' keeps its digits.

    Raises:
        InputError: where k < 1, or a bias of 128 nats does not bring a token up.
    """
    if api.k < 1:
        raise InputError(f"the top token must be shown, got an API with k = {api.k}")
    size = api.spec.num_tokens
    found = torch.full((len(prefixes.lengths), size), torch.nan, dtype=torch.float64)
    for token in range(size):
        left, strength = torch.arange(len(found)), 0.0
        while len(left) and strength <= _MOST_BIAS:
            bias = torch.zeros((len(left), size), dtype=torch.float64)
            bias[:, token] = strength
            top = api.top(prefixes.take(left), bias)
            seen = top.tokens[:, 0] == token
            shown = top.log_probs[seen, 0]
            rest = (-shown.expm1()).clamp(min=0)
            found[left[seen], token] = shown - (rest * math.exp(strength) + shown.exp()).log()
            left, strength = left[~seen], strength + 2.0
        if len(left):
            raise InputError(f"a bias of {_MOST_BIAS:g} nats does not bring token {token} up")
    return found


def by_argmax(
    api: BiasedApi, prefixes: Prefixes, tolerance: float = 1e-6
) -> Float[Tensor, "batch token"]:
    """Laws (nats) to a tolerance in each logit, from the most likely token alone.

    Raises:
        InputError: a tolerance that is not positive, or a token that a bias of 128 nats does
            not bring up.
    """
    if tolerance <= 0:
        raise InputError(f"the tolerance must be positive, got {tolerance}")
    size, rows = api.spec.num_tokens, len(prefixes.lengths)
    none = torch.zeros((rows, size), dtype=torch.float64)
    top = api.most_likely(prefixes, none)
    differences = torch.zeros((rows, size), dtype=torch.float64)
    for token in range(size):
        low, high = torch.zeros(rows, dtype=torch.float64), torch.full((rows,), _MOST_BIAS).double()
        other = (top != token).nonzero()[:, 0]
        for _ in range(math.ceil(math.log2(_MOST_BIAS / tolerance))):
            middle = (low + high) / 2
            bias = none.clone()
            bias[:, token] = middle
            up = api.most_likely(prefixes.take(other), bias[other]) == token
            high[other[up]], low[other[~up]] = middle[other[up]], middle[other[~up]]
        _refuse_out_of_reach(api, prefixes, token, other[high[other] == _MOST_BIAS])
        differences[other, token] = -(low + high)[other] / 2
    return differences.log_softmax(1)


def _refuse_out_of_reach(
    api: BiasedApi, prefixes: Prefixes, token: int, rows: Int[Tensor, " row"]
) -> None:
    """Bisection that never saw the token asks once more, with all the bias there is."""
    if not len(rows):
        return
    bias = torch.zeros((len(rows), api.spec.num_tokens), dtype=torch.float64)
    bias[:, token] = _MOST_BIAS
    if bool((api.most_likely(prefixes.take(rows), bias) != token).any()):
        raise InputError(
            f"a bias of {_MOST_BIAS:g} nats does not bring token {token} up: it may have "
            "probability zero, or the API ignores the bias"
        )


def requests_by_reference(num_tokens: int, k: int) -> int:
    """Requests a law by a reference token, where no bias is too small."""
    return math.ceil((num_tokens - 1) / (k - 1))


def requests_by_argmax(num_tokens: int, tolerance: float) -> int:
    """Requests a law by bisection: one for the top, then each other token's steps."""
    return 1 + (num_tokens - 1) * math.ceil(math.log2(_MOST_BIAS / tolerance))
