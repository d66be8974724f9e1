"""What may be asked of a teacher: three nested levels of access.

    Samples    complete(prefixes, n): n completions of each prefix
    TopLaws    + top_laws(prefixes): the k most likely next tokens, and the rest's mass
    Laws       + laws(prefixes): every next token's log-probability

A learner's signature names the least level that it needs. `as_top_k` and
`as_samples` only take access away; nothing adds it.
"""

import dataclasses
import hashlib
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.spec import Spec
from myna.teachers.prefixes import Prefixes


@dataclasses.dataclass(frozen=True)
class Stream:
    """Which random numbers answer a request for samples.

    A draw is a pure function of (prefix, stream, draw index): learning, validation
    and certification name different streams, so none sees another's draws.
    """

    purpose: str
    seed: int = 0

    @property
    def key(self) -> int:
        """A 64-bit key, different for different streams."""
        digest = hashlib.sha256(f"{self.purpose}\x00{self.seed}".encode()).digest()
        return int.from_bytes(digest[:8], "big")


class Completions(NamedTuple):
    """n completions of each prefix.

    tokens: (batch, draw, width), padded with -1
    lengths: (batch, draw), tokens drawn, the stop token included
    """

    tokens: Int[Tensor, "batch draw width"]
    lengths: Int[Tensor, "batch draw"]


class TopLaw(NamedTuple):
    """The k most likely next tokens of each prefix, most likely first.

    tokens: (batch, k)
    log_probs: (batch, k), nats
    log_rest: (batch,), log of the mass of all other tokens; -inf where none is left
    """

    tokens: Int[Tensor, "batch k"]
    log_probs: Float[Tensor, "batch k"]
    log_rest: Float[Tensor, " batch"]


@runtime_checkable
class Samples(Protocol):
    """A teacher that completes prefixes."""

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        ...

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion.

        A completion ends at the stop token, at the horizon, or after `max_tokens`.
        """
        ...


@runtime_checkable
class TopLaws(Samples, Protocol):
    """A teacher that also shows the k most likely next tokens."""

    @property
    def k(self) -> int:
        """How many tokens `top_laws` shows."""
        ...

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The k most likely next tokens of each prefix."""
        ...


@runtime_checkable
class Laws(TopLaws, Protocol):
    """A teacher that shows the whole next-token law."""

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats); exp of each row sums to one.

        Raises:
            InputError: for a prefix of probability zero, whose law does not exist.
        """
        ...


def top_of(laws: Float[Tensor, "batch token"], k: int) -> TopLaw:
    """The k largest entries of each law, and the log of what they leave."""
    log_probs, tokens = laws.topk(k, dim=1)
    if k == laws.shape[1]:
        log_rest = torch.full((len(laws),), -torch.inf, dtype=laws.dtype)
    else:
        # Summed over the tokens themselves: 1 - sum(top) would cancel.
        rest = laws.scatter(1, tokens, -torch.inf)
        log_rest = rest.logsumexp(1)
    return TopLaw(tokens, log_probs, log_rest)


def in_flight(teacher: Samples, kind: str) -> int | None:
    """How many answers of a kind a teacher has on their way together; None: all that are asked.

    kind: "law", "top" or "draw". A ledger's file stores at least that often, so no more
    than these are lost where a process ends. Endpoints say it, in a method of this name.
    """
    said = getattr(teacher, "in_flight", None)
    return None if said is None else said(kind)


@dataclasses.dataclass(frozen=True)
class SamplesOnly:
    """A teacher seen through `complete` alone."""

    _teacher: Samples

    @property
    def spec(self) -> Spec:
        """The teacher's own."""
        return self._teacher.spec

    def in_flight(self, kind: str) -> int | None:
        """The teacher's own."""
        return in_flight(self._teacher, kind)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """The teacher's own completions."""
        return self._teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )


@dataclasses.dataclass(frozen=True)
class TopKOnly(SamplesOnly):
    """A teacher seen through `complete` and its k most likely next tokens."""

    _teacher: TopLaws
    k: int

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The first k columns of what the teacher shows; the rest is added up."""
        seen = self._teacher.top_laws(prefixes)
        hidden = torch.cat([seen.log_probs[:, self.k :], seen.log_rest[:, None]], 1)
        return TopLaw(seen.tokens[:, : self.k], seen.log_probs[:, : self.k], hidden.logsumexp(1))


def as_samples(teacher: Samples) -> SamplesOnly:
    """Take away everything but completions."""
    return SamplesOnly(teacher)


def as_top_k(teacher: TopLaws, k: int) -> TopKOnly:
    """Take away everything but completions and the k most likely next tokens.

    Raises:
        InputError: where k is not in 1..k of the teacher.
    """
    if not 1 <= k <= teacher.k:
        raise InputError(f"top-k needs 1 <= k <= {teacher.k} on this teacher, got {k}")
    return TopKOnly(teacher, k)
