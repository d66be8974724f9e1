"""Which answers a ledger's file holds, and reading them.

Laws stay in the file: an index says in which row of which block each is, and blocks read
last are kept decoded. Draws are few bytes each and are held in memory (`drawn`).
Blocks are only ever added while a file is open, in ascending order, so what another
process stored is the blocks above the highest number seen.
"""

import collections
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myna.errors import FormatError
from myna.spec import Spec
from myna.teachers.drawn import Drawn
from myna.teachers.ledger_blocks import (
    COLUMNS,
    HASH_BYTES,
    Answer,
    Question,
    digest,
    question_of,
    split_keys,
    taken,
    unpack,
)
from myna.teachers.oracle import Completions, TopLaw

_KEPT = 32  # blocks that stay decoded


class Held:
    """The answers in a file, as far as its blocks have been seen."""

    def __init__(self, path: Path, connection: sqlite3.Connection, spec: Spec):
        """Read the index of every block.

        Raises:
            FormatError: a damaged block, with its number.
        """
        self._path, self._connection, self._spec = path, connection, spec
        self._last = 0
        self._places: dict[tuple, dict[bytes, tuple[int, int]]] = {}  # law settings
        self._drawn = Drawn()
        self._recent: collections.OrderedDict[int, Answer] = collections.OrderedDict()
        self.refresh()

    @property
    def settings(self) -> list[tuple]:
        """The settings that laws are held of: (kind, k, ...)."""
        return [setting for setting, places in self._places.items() if places]

    def refresh(self) -> None:
        """See what other processes stored since."""
        query = (
            f"SELECT id, {COLUMNS}, keys, keys_hash, CASE kind WHEN 'draw' THEN body END, "  # noqa: S608
            "body_hash FROM block WHERE id > ? ORDER BY id"
        )
        for number, *rest in self._connection.execute(query, (self._last,)):
            *columns, keys, keys_hash, body, body_hash = rest
            with self._naming(number):
                if number <= self._last:  # two blocks of one number would exchange answers
                    raise FormatError("blocks are not in the order of their numbers")
                question = checked_question(tuple(columns), keys, keys_hash)
                answer = None
                if body is not None:
                    answer = checked_answer(tuple(columns), self._spec, keys_hash, body, body_hash)
            self._note(number, question, answer)

    def _naming(self, number: int) -> "_Naming":
        return _Naming(self._path, number)

    def _note(self, number: int, question: Question, answer: Answer | None) -> None:
        self._last = max(self._last, number)
        if answer is not None:
            assert isinstance(answer, Completions)
            for part, found in self.lacking_of(question, answer):
                assert isinstance(found, Completions)
                self._drawn.add(part.request, found)
            return
        places = self._places.setdefault(question.setting, {})
        for row, key in enumerate(question.keys):
            places.setdefault(key, (number, row))

    def add(self, number: int, question: Question, answer: Answer) -> None:
        """Note a block that this process wrote."""
        self._note(number, question, answer if question.kind == "draw" else None)
        if question.kind != "draw":
            self._keep(number, answer)

    def has(self, question: Question) -> bool:
        """Whether nothing of a question is lacking, as far as seen."""
        if question.kind == "draw":
            return not bool((self._drawn.find(question.request) < 0).any())
        places = self._places.get(question.setting, {})
        return all(key in places for key in question.keys)

    def lacking(self, question: Question) -> list[Question]:
        """What of a question must be asked: questions that have no answer in common."""
        if question.kind == "draw":
            return [Question.of(part) for part in self._drawn.lacking(question.request)]
        places = self._places.get(question.setting, {})
        keys = question.keys
        rows = {key: row for row, key in enumerate(keys) if key not in places}
        return [question.take(torch.tensor(list(rows.values())))] if rows else []

    def lacking_of(self, question: Question, answer: Answer) -> Iterator[tuple[Question, Answer]]:
        """What of an answer is not held; nearly always the whole."""
        place = {key: row for row, key in enumerate(question.keys)}
        for part in self.lacking(question):
            rows = torch.tensor([place[key] for key in part.keys])
            found = taken(answer, rows)
            if isinstance(found, Completions):
                start = part.first_draw - question.first_draw
                found = Completions(*(column[:, start : start + part.count] for column in found))
            yield part, found

    def read(self, question: Question) -> Answer:
        """The answer to a question of which nothing is lacking."""
        if question.kind == "draw":
            return self._drawn.read(question.request)
        places = self._places.get(question.setting, {})
        found = [places[key] for key in question.keys]
        by_block: dict[int, list[int]] = {}
        for at, (number, _) in enumerate(found):
            by_block.setdefault(number, []).append(at)
        rows = torch.tensor([row for _, row in found], dtype=torch.int64)
        parts, order = [], []
        for number, at in by_block.items():
            parts.append(taken(self._block(number), rows[at]))
            order += at
        back = torch.empty(len(order), dtype=torch.int64)
        back[order] = torch.arange(len(order))
        return taken(_joined(parts, self._spec, question), back)

    def _keep(self, number: int, answer: Answer) -> None:
        self._recent[number] = answer
        if len(self._recent) > _KEPT:
            self._recent.popitem(last=False)

    def _block(self, number: int) -> Answer:
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        row = self._connection.execute(
            f"SELECT {COLUMNS}, keys_hash, body, body_hash FROM block WHERE id = ?",  # noqa: S608
            (number,),
        ).fetchone()
        with self._naming(number):
            if row is None:
                raise FormatError("it is gone: was the file compacted while this had it open?")
            *columns, keys_hash, body, body_hash = row
            answer = checked_answer(tuple(columns), self._spec, keys_hash, body, body_hash)
        self._keep(number, answer)
        return answer


@dataclasses.dataclass
class _Naming:
    """Adds the file and the block to a FormatError."""

    path: Path
    number: int

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Say where."""
        if isinstance(error, FormatError):
            raise FormatError(
                f"block {self.number} of the ledger {self.path} is damaged ({error}); nothing of it "
                "is used: restore the file from a copy, or see `myna ledger verify`"
            ) from error


def checked_question(columns: tuple[Any, ...], keys: Any, kept: Any) -> Question:
    """The question of a block whose hash agrees.

    Raises:
        FormatError: where it does not, or the columns name no question.
    """
    if type(keys) is not bytes or digest(columns, keys) != kept:
        raise FormatError("its prefixes do not have the hash that was stored with them")
    return question_of(columns, split_keys(keys, columns[-1]))


def checked_answer(
    columns: tuple[Any, ...], spec: Spec, keys_hash: Any, body: Any, kept: Any
) -> Answer:
    """The answer of a block whose hash agrees.

    keys_hash: of its prefixes

    Raises:
        FormatError: where it does not, or the size is wrong.
    """
    if type(keys_hash) is not bytes or len(keys_hash) != HASH_BYTES or type(body) is not bytes:
        raise FormatError("its parts have other types")
    if digest(columns, body, keys_hash) != kept:
        raise FormatError("its answers do not have the hash that was stored with them")
    return unpack(columns, spec.num_tokens, body)


def _joined(parts: list[Answer], spec: Spec, question: Question) -> Answer:
    if len(parts) == 1:
        return parts[0]
    width = spec.num_tokens if question.kind == "law" else question.k
    none = torch.empty((0, width), dtype=torch.float64)
    if question.kind == "law":
        return torch.cat([none, *(part for part in parts if isinstance(part, Tensor))])
    empty = TopLaw(none.long(), none, none.sum(1))
    tops = [empty, *(part for part in parts if isinstance(part, TopLaw))]
    return TopLaw(*(torch.cat(column) for column in zip(*tops, strict=True)))
