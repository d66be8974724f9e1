"""The Student protocol: a model that can be stepped, scored and sampled.

A student is a distribution Q over sequences, given by a state that a prefix leads
to and the next-token law of that state:

    state(empty) = initial,   state(x o) = step(state(x), o),   Q(o | x) = law(state(x))

Copies in probability space and in log-probability space, hidden Markov models and
automata all have this form, so scoring and sampling are written once, here. Q is by
definition the distribution that `sample` draws from; `score` is its logarithm.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.spec import Spec


class State(NamedTuple):
    """What a student remembers of a batch of prefixes that have equal length.

    vector: (batch, width), one row a prefix
    position: t, the number of tokens read so far
    """

    vector: Float[Tensor, "batch width"]
    position: int

    def take(self, rows: Int[Tensor, " rows"]) -> "State":
        """The states of the chosen rows (repeats allowed)."""
        return State(self.vector[rows], self.position)


class StepInfo(NamedTuple):
    """What a step saw: log Q(token | prefix), in nats, one a row."""

    log_prob: Float[Tensor, " batch"]


class Strings(NamedTuple):
    """A ragged batch of token sequences; row i is tokens[i, : lengths[i]], then -1."""

    tokens: Int[Tensor, "batch width"]
    lengths: Int[Tensor, " batch"]


@runtime_checkable
class Stepper(Protocol):
    """A language model as a state that is stepped token by token."""

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        ...

    def initial(self, batch: int) -> State:
        """The state of the empty prefix, repeated `batch` times."""
        ...

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """The state after one more token, and the token's log-probability."""
        ...

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats); exp of a row sums to one."""
        ...


@runtime_checkable
class Student(Stepper, Protocol):
    """A stepper with fast scoring and sampling of whole batches."""

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log Q(x) in nats, one a sequence; -inf where Q(x) = 0."""
        ...

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences from Q."""
        ...


def strings(rows: list[list[int]]) -> Strings:
    """Pack lists of tokens, of any lengths, into one padded batch."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    width = max((len(row) for row in rows), default=0)
    tokens = torch.full((len(rows), width), -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        if row:
            tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return Strings(tokens, lengths)


def stacked(first: Strings, second: Strings) -> Strings:
    """Both batches one below the other, on the CPU."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    tokens: list[Int[Tensor, "batch width"]] = [
        torch.nn.functional.pad(part.tokens.cpu(), (0, width - part.tokens.shape[1]), value=-1)
        for part in (first, second)
    ]
    return Strings(torch.cat(tokens), torch.cat([first.lengths.cpu(), second.lengths.cpu()]))


def check_strings(spec: Spec, batch: Strings) -> None:
    """Refuse tokens outside the alphabet, an early stop, and too many tokens.

    Raises:
        InputError: naming the first offending row.
    """
    tokens, lengths = batch
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    inside = columns < lengths[:, None]
    bad = inside & ((tokens < 0) | (tokens >= spec.num_tokens))
    if bad.any():
        row, column = (int(v) for v in bad.nonzero()[0])
        raise InputError(
            f"tokens must lie in 0..{spec.num_tokens - 1}; sequence {row} has "
            f"{int(tokens[row, column])} at position {column}"
        )
    if spec.horizon is not None and bool((lengths > spec.horizon).any()):
        row = int((lengths > spec.horizon).nonzero()[0])
        raise InputError(
            f"sequences have at most {spec.horizon} tokens; sequence {row} has {int(lengths[row])}"
        )
    if spec.stop is not None:
        early = (tokens == spec.stop) & (columns < lengths[:, None] - 1)
        if early.any():
            row = int(early.nonzero()[0, 0])
            raise InputError(
                f"the stop token {spec.alphabet[spec.stop]!r} may only come last; "
                f"sequence {row} goes on after it"
            )


def complete_strings(spec: Spec, batch: Strings) -> torch.Tensor:
    """Which rows are whole sequences: ended by the stop token or at the horizon.

    For a process (neither stop token nor horizon) every row counts as whole: its
    probability is that of its cylinder.
    """
    tokens, lengths = batch
    if not spec.ends:
        return torch.ones_like(lengths, dtype=torch.bool)
    whole = torch.zeros_like(lengths, dtype=torch.bool)
    if spec.horizon is not None:
        whole |= lengths == spec.horizon
    if spec.stop is not None and tokens.shape[1]:
        last = tokens.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        whole |= (lengths > 0) & (last == spec.stop)
    return whole


def score_by_steps(model: Stepper, batch: Strings) -> Float[Tensor, " batch"]:
    """Log Q of each row: the sum of its tokens' log-probabilities (nats).

    A row need not be a whole sequence: an unfinished one is scored as a prefix.
    Rows are stepped longest first, so that finished ones drop off the end.
    """
    check_strings(model.spec, batch)
    order = torch.argsort(batch.lengths, descending=True, stable=True)
    tokens, lengths = batch.tokens[order], batch.lengths[order]
    state = model.initial(len(order))
    total = torch.zeros(len(order), dtype=torch.float64, device=state.vector.device)
    for t in range(tokens.shape[1]):
        alive = int((lengths > t).sum())
        if not alive:
            break
        state = State(state.vector[:alive], state.position)
        state, info = model.step(state, tokens[:alive, t].to(total.device))
        total[:alive] += info.log_prob
    result = torch.empty_like(total)
    result[order.to(total.device)] = total
    return result


def draw(
    log_law: Float[Tensor, "batch token"], uniform: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Inverse-transform sampling: the first token whose cumulative mass exceeds u.

    u is scaled by the row's total, so rounding in the sum cannot fall off the end,
    and a token of probability zero is never drawn.
    """
    cumulative = log_law.exp().cumsum(dim=1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= threshold).sum(dim=1)
    last_possible = log_law.shape[1] - 1 - (log_law.flip(1) > -torch.inf).int().argmax(1)
    return torch.minimum(drawn, last_possible)


def sampling_limit(spec: Spec, max_tokens: int | None, position: int = 0) -> int | None:
    """How many tokens may still be drawn after `position`; None means until the stop.

    Raises:
        InputError: where nothing would ever end the sequence.
    """
    if max_tokens is not None and max_tokens < 0:
        raise InputError(f"max_tokens must not be negative, got {max_tokens}")
    if max_tokens is None and not spec.ends:
        raise InputError(
            "this model has neither a stop token nor a horizon, so its sequences "
            "never end; say how many tokens are wanted (max_tokens, --max-tokens)"
        )
    room = None if spec.horizon is None else spec.horizon - position
    limits = [limit for limit in (room, max_tokens) if limit is not None]
    return min(limits) if limits else None


_MOST_DRAWN = 2**32


def check_count(count: int) -> None:
    """Refuse more sequences than any machine holds at once.

    Raises:
        InputError: saying how many there may be.
    """
    if count > _MOST_DRAWN:
        raise InputError(
            f"at most {_MOST_DRAWN:,} sequences are drawn at once, got {count:,}; draw fewer"
        )


def sample_by_steps(
    model: Stepper, count: int, generator: torch.Generator, max_tokens: int | None = None
) -> Strings:
    """`count` sequences drawn token by token; rows that stopped drop out of the batch.

    Raises:
        InputError: for more than are drawn at once, or sequences that never end.
    """
    check_count(count)
    limit = sampling_limit(model.spec, max_tokens)
    state = model.initial(count)
    device = state.vector.device
    alive = torch.arange(count, device=device)
    lengths = torch.zeros(count, dtype=torch.int64, device=device)
    columns: list[Tensor] = []
    while len(alive) and (limit is None or len(columns) < limit):
        uniform = torch.rand(
            len(alive), dtype=torch.float64, generator=generator, device=generator.device
        ).to(device)
        tokens = draw(model.law(state), uniform)
        column = torch.full((count,), -1, dtype=torch.int64, device=device)
        column[alive] = tokens
        columns.append(column)
        lengths[alive] += 1
        going = tokens != model.spec.stop if model.spec.stop is not None else None
        if going is not None and not bool(going.all()):
            alive, tokens, state = alive[going], tokens[going], state.take(going.nonzero()[:, 0])
        if len(alive) and (limit is None or len(columns) < limit):
            state, _ = model.step(state, tokens)
    width = torch.stack(columns, 1) if columns else torch.empty((count, 0), dtype=torch.int64)
    return Strings(width, lengths)


class Stepped:
    """Scoring and sampling token by token, for students that have no faster way."""

    def score(self: Stepper, strings: Strings) -> Float[Tensor, " batch"]:
        """Log Q(x) in nats, one a sequence."""
        return score_by_steps(self, strings)

    def sample(
        self: Stepper, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences from Q."""
        return sample_by_steps(self, count, generator, max_tokens)
