"""Every completion received, kept so that no draw is asked for twice.

A draw is named by (prefix, stream, max_tokens, index). For one stream and max_tokens the
names are integers, prefix number x 2^32 + index, and the draws that one answer brought
for one prefix are a block of consecutive names:

    block b holds the names  first_b, ..., first_b + count_b - 1
    in the places            place_b, ..., place_b + count_b - 1

Blocks are disjoint and sorted, so a name is found by one binary search, whatever was
asked in which order; the draws that a request lacks are the runs of names in no block.
A place is an index into ragged storage: all tokens end to end, and where each draw ends.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from myna.spec import Spec
from myna.teachers.draws import INDEX_BITS, NO_LIMIT, check_draws, draw_limits
from myna.teachers.oracle import Completions, Samples, Stream
from myna.teachers.prefixes import Prefixes


class Grown:
    """Rows that are only ever appended; the storage doubles where it is full."""

    def __init__(self, dtype: torch.dtype, *shape: int):
        """No rows yet, each to be of one shape."""
        self._storage = torch.empty((256, *shape), dtype=dtype)
        self._count = 0

    @property
    def rows(self) -> Tensor:
        """All rows so far, a view."""
        return self._storage[: self._count]

    def append(self, rows: Tensor) -> None:
        """Copy more rows to the end."""
        stop = self._count + len(rows)
        if stop > len(self._storage):
            size = max(stop, 2 * len(self._storage))
            grown = self._storage.new_empty((size, *self._storage.shape[1:]))
            grown[: self._count] = self.rows
            self._storage = grown
        self._storage[self._count : stop] = rows
        self._count = stop


@dataclasses.dataclass(frozen=True)
class Request:
    """Draws first_draw .. first_draw + count - 1 of each prefix's completion."""

    prefixes: Prefixes
    count: int
    stream: Stream
    max_tokens: int | None
    first_draw: int

    def __post_init__(self) -> None:
        """Refuse draws that have no name."""
        check_draws(self.count, self.first_draw)

    @functools.cached_property
    def keys(self) -> list[bytes]:
        """The keys of the prefixes."""
        return self.prefixes.keys()

    @property
    def completions(self) -> int:
        """How many draws are named, repeated prefixes counted again."""
        return self.count * len(self.prefixes.lengths)

    @property
    def tokens_sent(self) -> int:
        """Tokens of the prefixes, one copy a draw."""
        return self.count * int(self.prefixes.lengths.sum())

    def limits(self, spec: Spec) -> Int[Tensor, " batch"]:
        """How many tokens each prefix's completions may have."""
        return draw_limits(spec, self.prefixes.lengths, self.max_tokens)

    def most_received(self, spec: Spec) -> int | None:
        """The most tokens that can come back; None where there is no bound."""
        limits = self.limits(spec)
        return None if bool((limits == NO_LIMIT).any()) else self.count * int(limits.sum())

    def ask(self, teacher: Samples) -> Completions:
        """The teacher's answer."""
        return teacher.complete(
            self.prefixes,
            self.count,
            stream=self.stream,
            max_tokens=self.max_tokens,
            first_draw=self.first_draw,
        )


class _Shelf:
    """The draws of one stream and max_tokens; see the module's text."""

    def __init__(self):
        self._first = torch.empty(0, dtype=torch.int64)
        self._count, self._place = self._first, self._first
        self._tokens, self._ends = Grown(torch.int32), Grown(torch.int64)
        self._ends.append(torch.zeros(1, dtype=torch.int64))  # place i: ends[i] .. ends[i + 1]

    def find(self, names: Int[Tensor, "prefix draw"]) -> Int[Tensor, "prefix draw"]:
        """The place of each name, -1 where no block holds it."""
        if not len(self._first):
            return torch.full_like(names, -1)
        block = torch.searchsorted(self._first, names, right=True).sub_(1).clamp_(min=0)
        # A name of another prefix, or before every block, is outside this range as well.
        offset = names - self._first[block]
        held = (offset >= 0) & (offset < self._count[block])
        return torch.where(held, self._place[block].add_(offset), -1)

    def add(self, first: Int[Tensor, " prefix"], answer: Completions) -> None:
        """Keep one new block a prefix, given the first name of each in ascending order."""
        count, width = answer.tokens.shape[1:]
        place = len(self._ends.rows) - 1
        ends = answer.lengths.reshape(-1).cumsum(0) + self._ends.rows[-1]
        self._ends.append(ends)
        inside = torch.arange(width) < answer.lengths[:, :, None]
        whole = bool(inside.all())  # spares the selection where nothing is padded
        self._tokens.append(answer.tokens.reshape(-1) if whole else answer.tokens[inside])
        at = torch.searchsorted(self._first, first)
        self._first = _inserted(self._first, at, first)
        self._count = _inserted(self._count, at, torch.full_like(first, count))
        self._place = _inserted(self._place, at, place + count * torch.arange(len(first)))

    def read(self, places: Int[Tensor, "prefix draw"]) -> Completions:
        """The draws in these places, padded with -1."""
        ends = self._ends.rows
        start = ends[places]
        lengths = ends[places + 1] - start
        width = int(lengths.max()) if lengths.numel() else 0
        columns = torch.arange(width)
        index = start[:, :, None] + columns
        if bool((lengths == width).all()):
            return Completions(self._tokens.rows[index].long(), lengths)
        inside = columns < lengths[:, :, None]
        tokens = torch.full(index.shape, -1, dtype=torch.int64)
        tokens[inside] = self._tokens.rows[index[inside]].long()
        return Completions(tokens, lengths)


def _inserted(
    column: Int[Tensor, " before"], at: Int[Tensor, " new"], values: Int[Tensor, " new"]
) -> Int[Tensor, " after"]:
    """A column of blocks with new ones put in: linear time, where sorting anew is not."""
    return torch.from_numpy(np.insert(column.numpy(), at.numpy(), values.numpy()))


class Drawn:
    """All completions received, of every stream."""

    def __init__(self):
        """Nothing is held."""
        self._numbers: dict[bytes, int] = {}
        self._shelves: dict[tuple[Stream, int | None], _Shelf] = {}

    def _shelf(self, request: Request) -> _Shelf:
        return self._shelves.setdefault((request.stream, request.max_tokens), _Shelf())

    def _first_names(self, request: Request) -> Int[Tensor, " batch"]:
        """The name of each prefix's first wanted draw; new prefixes are numbered."""
        numbers = self._numbers
        found = list(map(numbers.get, request.keys))
        if None in found:
            found = [numbers.setdefault(key, len(numbers)) for key in request.keys]
        return (torch.tensor(found, dtype=torch.int64) << INDEX_BITS) + request.first_draw

    def find(self, request: Request) -> Int[Tensor, "batch draw"]:
        """Where each wanted draw is held, -1 where it is not."""
        names = self._first_names(request)[:, None] + torch.arange(request.count)
        return self._shelf(request).find(names)

    def lacking(self, request: Request) -> list[Request]:
        """What must still be asked: requests of distinct prefixes, no draw in two of them.

        In each, prefixes come in the order of their numbers.
        """
        distinct, copies = self._first_names(request).unique(return_inverse=True)
        row = torch.empty_like(distinct)
        row[copies] = torch.arange(len(copies))  # any one of the rows with this prefix
        some = dataclasses.replace(request, prefixes=request.prefixes.take(row))
        names = distinct[:, None] + torch.arange(request.count)
        return [
            dataclasses.replace(
                some,
                prefixes=some.prefixes.take(which),
                count=stop - start,
                first_draw=request.first_draw + start,
            )
            for start, stop, which in _runs(self._shelf(some).find(names) < 0)
        ]

    def add(self, asked: Request, answer: Completions) -> None:
        """Keep the answer to one of the requests of `lacking`, whose names ascend."""
        self._shelf(asked).add(self._first_names(asked), answer)

    def read(self, request: Request) -> Completions:
        """The draws of a request of which nothing is lacking."""
        return self._shelf(request).read(self.find(request))


def _runs(
    missing: Bool[Tensor, "prefix draw"],
) -> Iterator[tuple[int, int, Int[Tensor, " which"]]]:
    """The runs start <= draw < stop of True, and the prefixes that have each."""
    if not bool(missing.any()):
        return
    if bool(missing.all()):  # nothing was asked before: the most common case by far
        yield 0, missing.shape[1], torch.arange(len(missing))
        return
    steps = torch.nn.functional.pad(missing.to(torch.int8), (1, 1)).diff(dim=1)
    # Row by row, so the n-th start and the n-th stop belong together.
    prefix, start = (steps == 1).nonzero(as_tuple=True)
    stop = (steps == -1).nonzero(as_tuple=True)[1]
    kinds, kind = torch.stack([start, stop], 1).unique(dim=0, return_inverse=True)
    for number, (a, b) in enumerate(kinds.tolist()):
        yield a, b, prefix[kind == number]
