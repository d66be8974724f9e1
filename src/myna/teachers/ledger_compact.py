"""A ledger made small: blocks of one setting merged, free pages returned, the log emptied.

Answers, prices and times stay as they are: a merged block lists which requests its rows
came from, in order. Blocks are merged up to the size at which new ones are cut.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myna.errors import FormatError, LedgerError
from myna.spec import Spec
from myna.teachers.ledger_audit import read_block, read_sources, running_on
from myna.teachers.ledger_blocks import (
    COLUMNS,
    Answer,
    Question,
    hashed,
    pack,
    pack_keys,
    prefixes_of,
    shape_of,
    small,
)
from myna.teachers.ledger_file import insert_block
from myna.teachers.ledger_schema import explained, open_file, read_spec, transaction
from myna.teachers.oracle import Completions


@dataclasses.dataclass(frozen=True)
class Compacted:
    """Blocks and bytes, before and after."""

    blocks_before: int
    blocks_after: int
    bytes_before: int
    bytes_after: int


def compact(path: Path) -> Compacted:
    """Merge, and give back what is free; brings an older ledger to this version.

    Raises:
        LedgerError: while a run has the file open, or where it cannot be written.
        InputError, FormatError: where it is no ledger, or a damaged one; it stays as it was.
    """
    before = _bytes(path)
    connection = open_file(path, None)
    try:
        with explained(path):
            spec = read_spec(path, connection)
            with transaction(connection):
                running = running_on(connection)
                if running:
                    raise LedgerError(
                        f"process {running[0]} has the ledger {path} open; let it end, then compact"
                    )
                blocks = _count(connection)
                connection.execute("UPDATE request SET state = 'lost' WHERE state = 'open'")
                for group in list(_groups(connection)):
                    _merge(connection, spec, group)
                after = _count(connection)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return Compacted(blocks, after, before, _bytes(path))


def _bytes(path: Path) -> int:
    beside = (path.with_name(path.name + end) for end in ("", "-wal"))
    return sum(part.stat().st_size for part in beside if part.exists())


def _count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT COUNT(*) FROM block").fetchone()[0]


def _groups(connection: sqlite3.Connection) -> Iterator[list[int]]:
    """The blocks that may be merged: of one setting, and for draws of the same draws."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    query = f"SELECT id, {COLUMNS} FROM block ORDER BY id"  # noqa: S608
    for number, *columns in connection.execute(query):
        groups.setdefault(tuple(columns[:-1]), []).append(number)
    return (group for group in groups.values() if len(group) > 1)


def _merge(connection: sqlite3.Connection, spec: Spec, numbers: list[int]) -> None:
    """Merge blocks, as many at a time as make one of the usual size."""
    query = f"SELECT sources, {COLUMNS}, keys, keys_hash, body, body_hash FROM block WHERE id = ?"  # noqa: S608
    waiting: list[tuple[int, list[Any], Question, Answer]] = []
    shape = (0, 0, 0)
    for number in numbers:
        row = connection.execute(query, (number,)).fetchone()
        try:
            if row is None:
                raise FormatError("it is listed, and cannot be found")
            sources, *rest = row
            question, answer = read_block(spec, tuple(rest[:-4]), tuple(rest[-4:]))
            parts = read_sources(sources, len(question.prefixes.lengths))
        except FormatError as error:
            raise FormatError(
                f"block {number} is damaged ({error}); nothing was changed: restore the file from "
                "a copy"
            ) from error
        n, *widths = shape_of(question, answer)
        whole = (shape[0] + n, max(shape[1], widths[0]), max(shape[2], widths[1]))
        if waiting and not small(*whole):
            _write(connection, spec, waiting)
            waiting, whole = [], (n, *widths)
        waiting.append((number, parts, question, answer))
        shape = whole
    _write(connection, spec, waiting)


def _write(
    connection: sqlite3.Connection,
    spec: Spec,
    blocks: list[tuple[int, list[Any], Question, Answer]],
) -> None:
    """One block in the place of several."""
    if len(blocks) < 2:
        return
    numbers, sources, questions, answers = zip(*blocks, strict=True)
    keys = [key for question in questions for key in question.keys]
    whole = dataclasses.replace(questions[0], prefixes=prefixes_of(keys))
    body = pack(_together(list(answers)), spec.num_tokens)
    parts = json.dumps([part for source in sources for part in source])
    blobs = hashed(whole.columns, pack_keys(whole), body)
    insert_block(connection, (*whole.columns, parts, *blobs))
    connection.executemany("DELETE FROM block WHERE id = ?", [(number,) for number in numbers])


def _together(answers: list[Answer]) -> Answer:
    if isinstance(answers[0], Tensor):
        return torch.cat([answer for answer in answers if isinstance(answer, Tensor)])
    kind = type(answers[0])
    if kind is Completions:
        width = max(answer[0].shape[2] for answer in answers)
        answers = [
            Completions(torch.nn.functional.pad(a[0], (0, width - a[0].shape[2]), value=-1), a[1])
            for a in answers
        ]
    return kind(*(torch.cat(column) for column in zip(*answers, strict=True)))  # pyright: ignore
