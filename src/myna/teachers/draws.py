"""Addressable random draws: the u-th uniform number of a place, not of a time.

    u(prefix, stream, draw, position) = mix(mix(mix(hash(prefix) ^ stream) + draw) + position)

with mix the finaliser of SplitMix64 (Steele, Lea, Flood 2014), read as a 53-bit
fraction. Answers therefore do not depend on batch size or on the order of arrival.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import Strings, draw, sampling_limit
from myna.spec import Spec
from myna.teachers.oracle import Completions, Laws, Samples, Stream
from myna.teachers.prefixes import Prefixes, check_prefixes

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words that passes as random."""
    z = z + _GOLDEN
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def prefix_hashes(prefixes: Prefixes) -> np.ndarray:
    """A 64-bit hash of each prefix, (batch,), independent of its padding."""
    tokens = prefixes.tokens.numpy().astype(np.uint64)
    lengths = prefixes.lengths.numpy()
    hashes = np.zeros(len(lengths), np.uint64)
    for t in range(tokens.shape[1]):
        hashes = np.where(lengths > t, _mix(hashes ^ _mix(tokens[:, t])), hashes)
    return hashes


class Dice:
    """The uniform numbers of a batch of draws, one row a draw, position by position."""

    def __init__(self, seeds: np.ndarray):
        """seeds: (rows,), one 64-bit word a draw; see `of`."""
        self._seeds = seeds

    @classmethod
    def of(cls, prefixes: Prefixes, stream: Stream, first_draw: int, count: int) -> "Dice":
        """Row i * count + j throws draw first_draw + j of prefix i."""
        draws = np.arange(first_draw, first_draw + count, dtype=np.uint64)
        places = _mix(prefix_hashes(prefixes) ^ np.uint64(stream.key))
        return cls(_mix(places[:, None] + draws[None, :]).reshape(-1))

    def take(self, rows: Int[Tensor, " rows"]) -> "Dice":
        """The chosen rows."""
        return Dice(self._seeds[rows.numpy()])

    def roll(self, position: int) -> Float[Tensor, " rows"]:
        """One uniform number in [0, 1) a row, for the token at `position`."""
        words = _mix(self._seeds + np.uint64(position))
        words >>= np.uint64(11)
        return torch.from_numpy(words.astype(np.float64)).mul_(2.0**-53)


def draw_at(
    log_law: Float[Tensor, "node token"],
    node: Int[Tensor, " rows"],
    uniform: Float[Tensor, " rows"],
) -> Int[Tensor, " rows"]:
    """The tokens that `draw` would draw from log_law[node], without making that table.

    The first token whose cumulative mass exceeds u x total is found by bisection in the
    row of the draw's own node, so draws that share a law share its exponentials and sums.
    As u <= 1 - 2^-53, u x total rounds below the total: no token after the last possible
    one is reached.
    """
    cumulative = log_law.exp().cumsum(1)
    depth = (log_law.shape[1] - 1).bit_length()
    # Rows of 2^depth; the last token needs no entry, all that is not smaller falls to it.
    table = torch.nn.functional.pad(
        cumulative[:, :-1], (0, 2**depth - log_law.shape[1] + 1), value=torch.inf
    ).reshape(-1)
    threshold = uniform * cumulative[:, -1][node]
    start = node << depth
    place = start.clone()
    for level in reversed(range(depth)):
        place += (table[place + (2**level - 1)] <= threshold).long() << level
    return place - start


INDEX_BITS = 32  # of a draw's number


def check_draws(count: int, first_draw: int) -> None:
    """Refuse negative draw indices, an empty request, and draws that have no number.

    Raises:
        InputError: naming the argument.
    """
    if count < 1 or first_draw < 0:
        raise InputError(
            f"draws are asked as count >= 1 from first_draw >= 0, got {count} from {first_draw}"
        )
    if first_draw + count > 2**INDEX_BITS:
        raise InputError(
            f"draws are numbered below 2**{INDEX_BITS}, and {count} were asked from {first_draw}; "
            "ask for fewer, or use another stream"
        )


def complete_by_laws(
    teacher: Laws,
    prefixes: Prefixes,
    count: int,
    *,
    stream: Stream,
    max_tokens: int | None = None,
    first_draw: int = 0,
) -> Completions:
    """Completions drawn on this side, from laws asked one token at a time.

    Every law that is used is asked of `teacher`, so a ledger counts it as a query.
    """
    spec = teacher.spec
    check_draws(count, first_draw)
    check_prefixes(spec, prefixes)
    dice = Dice.of(prefixes, stream, first_draw, count)
    rows = prefixes.take(torch.arange(len(prefixes.lengths)).repeat_interleave(count))
    limits = draw_limits(spec, prefixes.lengths, max_tokens).repeat_interleave(count)
    drawn = torch.empty((len(limits), 0), dtype=torch.int64)
    lengths = torch.zeros(len(limits), dtype=torch.int64)
    alive = (limits > 0).nonzero()[:, 0]
    position = 0
    while len(alive):
        histories = joined(rows.take(alive), drawn[alive, :position])
        tokens = draw(teacher.laws(histories).cpu(), dice.take(alive).roll(position))
        drawn = widened(drawn, position)
        drawn[alive, position] = tokens
        position += 1
        lengths[alive] = position
        alive = alive[going(spec, tokens) & (limits[alive] > position)]
    shape = (len(prefixes.lengths), count)
    return Completions(drawn[:, :position].reshape(*shape, position), lengths.reshape(shape))


def complete_in_parts(
    teacher: Laws,
    prefixes: Prefixes,
    count: int,
    *,
    stream: Stream,
    max_tokens: int | None = None,
    first_draw: int = 0,
    room: int,
) -> Completions:
    """The same completions, at most `room` draws going on at a time."""
    check_draws(count, first_draw)
    across = min(count, max(1, room))
    blocks: list[list[Completions]] = []
    for rows in torch.arange(len(prefixes.lengths)).split(max(1, room // count)):
        part = prefixes.take(rows)
        blocks.append(
            [
                complete_by_laws(
                    teacher,
                    part,
                    min(across, count - start),
                    stream=stream,
                    max_tokens=max_tokens,
                    first_draw=first_draw + start,
                )
                for start in range(0, count, across)
            ]
        )
    width = max((part.tokens.shape[2] for block in blocks for part in block), default=0)
    tokens = [
        torch.cat(
            [
                torch.nn.functional.pad(p.tokens, (0, width - p.tokens.shape[2]), value=-1)
                for p in block
            ],
            1,
        )
        for block in blocks
    ]
    lengths = [torch.cat([part.lengths for part in block], 1) for block in blocks]
    return Completions(torch.cat(tokens), torch.cat(lengths))


def sample_by_completing(
    teacher: Samples, count: int, generator: torch.Generator, max_tokens: int | None = None
) -> Strings:
    """`count` sequences, as completions of the empty prefix on a stream of their own."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    stream = Stream("sample", seed)
    drawn = teacher.complete(Prefixes.of([[]]), count, stream=stream, max_tokens=max_tokens)
    return Strings(drawn.tokens[0], drawn.lengths[0])


def widened(drawn: Int[Tensor, "rows width"], position: int) -> Int[Tensor, "rows wider"]:
    """Room for one more column at `position`: the width doubles where it is full."""
    if position < drawn.shape[1]:
        return drawn
    return torch.nn.functional.pad(drawn, (0, max(16, position)), value=-1)


def going(spec: Spec, tokens: Int[Tensor, " rows"]) -> Tensor:
    """Which rows the drawn token did not end."""
    return torch.ones_like(tokens, dtype=torch.bool) if spec.stop is None else tokens != spec.stop


NO_LIMIT = 2**62  # stands for "until the stop" where limits are whole numbers


def draw_limits(
    spec: Spec, lengths: Int[Tensor, " batch"], max_tokens: int | None
) -> Int[Tensor, " batch"]:
    """How many tokens may be drawn after prefixes of these lengths, at most NO_LIMIT.

    Raises:
        InputError: where nothing would ever end the completions.
    """
    limit = sampling_limit(spec, max_tokens)
    limits = torch.full_like(lengths, NO_LIMIT if limit is None else min(limit, NO_LIMIT))
    return limits if spec.horizon is None else torch.minimum(limits, spec.horizon - lengths)


def joined(prefixes: Prefixes, suffix: Int[Tensor, "rows width"]) -> Prefixes:
    """Each prefix followed by its own suffix, all suffixes of one length."""
    rows, width = prefixes.tokens.shape
    tokens = torch.full((rows, width + suffix.shape[1]), -1, dtype=torch.int64)
    tokens[:, :width] = prefixes.tokens
    columns = prefixes.lengths[:, None] + torch.arange(suffix.shape[1])
    tokens.scatter_(1, columns, suffix)
    return Prefixes(tokens, prefixes.lengths + suffix.shape[1])
