"""Questions and answers as they lie in a ledger's file: one blob of prefixes, one of answers.

A question names n distinct prefixes and one setting; its parts are

    law     O log-probabilities a prefix                        n x O           float64
    top     k tokens, k log-probabilities, log of the rest      n x k, n x k, n u32, f64, f64
    draw    draws first .. first + count - 1 on one stream      n x count lengths  u32,
            and max_tokens                                      all tokens      u8, u16 or u32

Little-endian, end to end, in this order; prefixes are n lengths (u32) and then their
keys. Every size follows from the columns, and a blob of another size is refused before
anything is made of it, so what is declared never takes more memory than what is there.
Each blob carries a BLAKE2b hash over itself and the columns; that of the answers covers the
prefixes' hash as well, so no answers pass for those of other prefixes.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myna.errors import FormatError
from myna.spec import Spec
from myna.teachers.account import Account
from myna.teachers.drawn import Request
from myna.teachers.oracle import Completions, Samples, Stream, TopLaw
from myna.teachers.prefixes import TOKEN_BYTES, Prefixes

Answer = Tensor | TopLaw | Completions

COLUMNS = "kind, k, stream, seed, max_tokens, first_draw, count, prefixes"
_BLOCK_BYTES = 2**22  # of padded tensors, after which a block ends
_MOST_BYTES = 2**28  # of a padded tensor that is made of a block of several answers
HASH_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Question:
    """Prefixes that are all different, asked under one setting.

    kind: "law", "top" or "draw"
    k: of top laws, else 0
    stream, max_tokens, first_draw, count: of draws
    """

    kind: str
    prefixes: Prefixes
    k: int = 0
    stream: Stream | None = None
    max_tokens: int | None = None
    first_draw: int = 0
    count: int = 0

    @staticmethod
    def of(request: Request) -> "Question":
        """A request for draws."""
        named = (request.stream, request.max_tokens, request.first_draw, request.count)
        return Question("draw", request.prefixes, 0, *named)

    @functools.cached_property
    def keys(self) -> list[bytes]:
        """The keys of the prefixes."""
        return self.prefixes.keys() if self.stream is None else self.request.keys

    @functools.cached_property
    def request(self) -> Request:
        """What draws are asked for."""
        assert self.stream is not None
        return Request(self.prefixes, self.count, self.stream, self.max_tokens, self.first_draw)

    @property
    def columns(self) -> tuple[Any, ...]:
        """As the file's columns have it."""
        stream, seed = (None, None) if self.stream is None else dataclasses.astuple(self.stream)
        named = (self.kind, self.k, stream, None if seed is None else str(seed))
        return (*named, self.max_tokens, self.first_draw, self.count, len(self.prefixes.lengths))

    @property
    def setting(self) -> tuple[Any, ...]:
        """What two questions have in common that may share an answer."""
        return self.columns[:5]

    def take(self, rows: Tensor) -> "Question":
        """The same of some of the prefixes."""
        return dataclasses.replace(self, prefixes=self.prefixes.take(rows))

    def first(self, answers: int) -> "Question":
        """The part of it that has at most so many answers, and one at least."""
        draws = max(1, self.count)
        rows = torch.arange(min(len(self.prefixes.lengths), max(1, answers // draws)))
        part = self.take(rows)
        return dataclasses.replace(part, count=min(self.count, answers))

    def most(self, spec: Spec) -> Account:
        """The most that it can cost; completions without a bound count no tokens."""
        if self.kind != "draw":
            sent = int(self.prefixes.lengths.sum())
            return Account(next_token_queries=len(self.prefixes.lengths), tokens_sent=sent)
        return self._cost(self.request.most_received(spec) or 0)

    def cost(self, answer: Answer | None, spec: Spec) -> Account:
        """What it did cost; without an answer, the most that it can have cost."""
        if not isinstance(answer, Completions):
            return self.most(spec)
        return self._cost(int(answer.lengths.sum()))

    def _cost(self, received: int) -> Account:
        request = self.request
        return Account(
            completions=request.completions,
            tokens_sent=request.tokens_sent,
            tokens_received=received,
        )

    def ask(self, teacher: Samples) -> Answer:
        """The teacher's answer."""
        if self.kind == "draw":
            return self.request.ask(teacher)
        if self.kind == "top":
            return teacher.top_laws(self.prefixes)  # pyright: ignore[reportAttributeAccessIssue]
        return teacher.laws(self.prefixes)  # pyright: ignore[reportAttributeAccessIssue]


def taken(answer: Answer, rows: Tensor) -> Answer:
    """The answers to some of the prefixes."""
    if isinstance(answer, Tensor):
        return answer[rows]
    return type(answer)(*(part[rows] for part in answer))  # pyright: ignore


def shape_of(question: Question, answer: Answer) -> tuple[int, int, int]:
    """Prefixes, and the numbers that a padded prefix and its padded answer take."""
    parts = (answer,) if isinstance(answer, Tensor) else tuple(answer)
    n = len(question.prefixes.lengths)
    return n, question.prefixes.tokens.shape[1], sum(part.numel() for part in parts) // max(1, n)


def small(n: int, prefix: int, answer: int) -> bool:
    """Whether one block may hold padded tensors of this shape."""
    return 8 * n * (prefix + answer) <= _BLOCK_BYTES


def in_blocks(question: Question, answer: Answer) -> Iterator[tuple[Question, Answer]]:
    """The same in parts whose tensors have about _BLOCK_BYTES, or are one answer."""
    n, *widths = shape_of(question, answer)
    if small(n, *widths):
        yield question, answer
        return
    across = max(1, _BLOCK_BYTES // (8 * sum(widths)))
    for rows in torch.arange(n).split(across):
        part, found = question.take(rows), taken(answer, rows)
        if isinstance(found, Completions) and across == 1:
            yield from _by_draws(part, found)
        else:
            yield part, found


def _by_draws(question: Question, answer: Completions) -> Iterator[tuple[Question, Answer]]:
    """The draws of one prefix in parts."""
    width = max(1, answer.tokens.shape[2])
    for draws in torch.arange(question.count).split(max(1, _BLOCK_BYTES // (8 * width))):
        first = question.first_draw + int(draws[0])
        part = dataclasses.replace(question, first_draw=first, count=len(draws))
        yield part, Completions(answer.tokens[:, draws], answer.lengths[:, draws])


def digest(columns: tuple[Any, ...], blob: bytes, under: bytes = b"") -> bytes:
    """The hash of a blob under its columns, and under the hash of another blob."""
    found = hashlib.blake2b(repr(columns).encode(), digest_size=HASH_BYTES, key=under)
    found.update(blob)
    return found.digest()


def hashed(columns: tuple[Any, ...], keys: bytes, body: bytes) -> tuple[bytes, ...]:
    """Both blobs of a block, each followed by its hash."""
    first = digest(columns, keys)
    return keys, first, body, digest(columns, body, first)


def pack_keys(question: Question) -> bytes:
    """Lengths and keys of the prefixes, end to end."""
    lengths = question.prefixes.lengths.numpy().astype("<u4").tobytes()
    return b"".join([lengths, *question.keys])


def split_keys(blob: bytes, n: int) -> list[bytes]:
    """The keys of n prefixes.

    Raises:
        FormatError: where the blob is not as long as its lengths say.
    """
    if n < 0 or len(blob) < TOKEN_BYTES * n:
        raise FormatError("a block of prefixes is shorter than its columns say")
    ends = TOKEN_BYTES * (n + np.frombuffer(blob, "<u4", n).astype(np.int64).cumsum())
    if len(blob) != (int(ends[-1]) if n else 0):
        raise FormatError("a block of prefixes is not as long as its lengths say")
    starts = np.concatenate([[TOKEN_BYTES * n], ends[:-1]]).tolist() if n else []
    return [blob[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def prefixes_of(keys: list[bytes]) -> Prefixes:
    """The prefixes with these keys."""
    rows = [np.frombuffer(key, ">u4").astype(np.int64) for key in keys]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    width = int(lengths.max()) if rows else 0
    if len(rows) > 1 and 8 * len(rows) * width > _MOST_BYTES:
        raise FormatError("a block of prefixes has one far longer than the others")
    tokens = np.full((len(rows), width), -1, np.int64)
    tokens[np.arange(width) < lengths.numpy()[:, None]] = np.concatenate(rows) if rows else []
    return Prefixes(torch.from_numpy(tokens), lengths)


def question_of(columns: tuple[Any, ...], keys: list[bytes]) -> Question:
    """The question that columns and keys name.

    Raises:
        FormatError: for columns that name none.
    """
    kind, k, stream, seed, max_tokens, first, count, _ = columns
    try:
        named = None if stream is None else Stream(str(stream), int(seed))
        question = Question(kind, prefixes_of(keys), k, named, max_tokens, first, count)
        if kind == "draw":
            question.request  # noqa: B018 (checks the numbers of the draws)
        known = kind in ("law", "top") or (kind == "draw" and named is not None)
        numbers = all(type(number) is int for number in (k, first, count))
        if not (known and numbers and (max_tokens is None or type(max_tokens) is int)):
            raise ValueError("unknown kind")
    except (TypeError, ValueError, AssertionError) as error:
        raise FormatError(f"a row of the ledger names no question ({error})") from error
    return question


def _token_type(num_tokens: int) -> str:
    return "<u1" if num_tokens <= 2**8 else "<u2" if num_tokens <= 2**16 else "<u4"


def pack(answer: Answer, num_tokens: int) -> bytes:
    """The blob of an answer."""
    if isinstance(answer, Completions):
        tokens, lengths = answer.tokens.numpy(), answer.lengths.numpy()
        inside = np.arange(tokens.shape[2]) < lengths[:, :, None]
        flat = tokens.astype(_token_type(num_tokens))
        flat = flat if inside.all() else flat[inside]
        return lengths.astype("<u4").tobytes() + flat.tobytes()
    if isinstance(answer, TopLaw):
        laws = (answer.log_probs, answer.log_rest)
        wide = (part.numpy().astype("<f8").tobytes() for part in laws)
        return b"".join([answer.tokens.numpy().astype("<u4").tobytes(), *wide])
    return answer.numpy().astype("<f8").tobytes()


def unpack(columns: tuple[Any, ...], num_tokens: int, blob: bytes) -> Answer:
    """The answer in a blob.

    Raises:
        FormatError: where the blob has not the size that the columns give it.
    """
    kind, k, _, _, _, _, count, n = columns
    if not all(type(number) is int and number >= 0 for number in (k, count, n)):
        raise FormatError("a block of answers has sizes that are no whole numbers")
    if kind == "law":
        return _floats(blob, (n, num_tokens))
    if kind == "top":
        _sized(blob, n * (k * 12 + 8))
        tokens = np.frombuffer(blob, "<u4", n * k).astype(np.int64).reshape(n, k)
        log_probs = _floats(blob[4 * n * k : 12 * n * k], (n, k))
        return TopLaw(torch.from_numpy(tokens), log_probs, _floats(blob[12 * n * k :], (n,)))
    return _completions(blob, n, count, _token_type(num_tokens))


def _sized(blob: bytes, size: int) -> None:
    if len(blob) != size:
        raise FormatError(f"a block of answers has {len(blob):,} bytes and should have {size:,}")


def _floats(blob: bytes, shape: tuple[int, ...]) -> Tensor:
    _sized(blob, 8 * int(np.prod(shape, dtype=object)))
    return torch.from_numpy(np.frombuffer(blob, "<f8").astype(np.float64).reshape(shape))


def _completions(blob: bytes, n: int, count: int, kind: str) -> Completions:
    if len(blob) < 4 * n * count:
        raise FormatError("a block of draws is shorter than its columns say")
    lengths = np.frombuffer(blob, "<u4", n * count).astype(np.int64).reshape(n, count)
    flat = np.frombuffer(blob, np.uint8, offset=4 * n * count)
    size = np.dtype(kind).itemsize
    if len(flat) != size * int(lengths.sum()):
        raise FormatError("a block of draws is not as long as its lengths say")
    width = int(lengths.max()) if lengths.size else 0
    if lengths.size > 1 and 8 * lengths.size * width > _MOST_BYTES:
        raise FormatError("a block of draws has one far longer than the others")
    tokens = np.full((n, count, width), -1, np.int64)
    tokens[np.arange(width) < lengths[:, :, None]] = flat.view(kind)
    return Completions(torch.from_numpy(tokens), torch.from_numpy(lengths))
