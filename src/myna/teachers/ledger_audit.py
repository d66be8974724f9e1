"""What a ledger's file says was asked and spent, and whether all of it holds together.

    spent(job, purpose)  =  sum of its requests' costs
    request              =  open (in flight, or lost), answered, failed, lost or unsent
    answers of a request <= what it paid for

A lost or failed request may have been paid, so its reservation counts; an unsent one
costs nothing.
"""

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myna.errors import FormatError, MynaError
from myna.spec import Spec
from myna.teachers.account import Account
from myna.teachers.answers import check_law, checked_completions
from myna.teachers.ledger_blocks import COLUMNS, Answer, Question
from myna.teachers.ledger_held import checked_answer, checked_question
from myna.teachers.ledger_owner import runs
from myna.teachers.ledger_schema import COSTS, VERSION, explained, open_to_read
from myna.teachers.oracle import Completions, TopLaw
from myna.teachers.prefixes import check_prefixes

_SUMS = ", ".join(f"TOTAL({name})" for name in COSTS.split(", "))
_MOST_PROBLEMS = 100
_LAST_TIME = 2.5e11  # seconds since 1970 that a calendar shows


@dataclasses.dataclass(frozen=True)
class Spending:
    """What one purpose of one job spent.

    spent: everything that counts
    unanswered: the part of it without an answer: in flight, lost or failed
    requests: how many, by state
    """

    job: str
    purpose: str
    spent: Account
    unanswered: Account
    requests: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A ledger at a glance.

    answers: how many are held, by kind: laws, top laws, draws
    running: processes that have the file open
    started, ended: seconds since 1970 of the first and the last request; None: no request
    bytes: of the file and what stands beside it
    """

    version: int
    spec: Spec
    spending: tuple[Spending, ...]
    answers: dict[str, int]
    running: tuple[int, ...]
    started: float | None
    ended: float | None
    bytes: int


def summarise(path: Path) -> Summary:
    """Read what was asked and spent.

    Raises:
        InputError, FormatError, LedgerError: where the file cannot be read as a ledger.
    """
    connection, spec = open_to_read(path)
    try:
        with explained(path), _naming(path):
            answers = dict(_answers(connection))
            started, ended = _times(connection)
            spending = tuple(_spending(connection))
            running = tuple(running_on(connection))
    finally:
        connection.close()
    beside = (path.with_name(path.name + end) for end in ("", "-wal"))
    size = sum(part.stat().st_size for part in beside if part.exists())
    return Summary(VERSION, spec, spending, answers, running, started, ended, size)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path} is damaged ({error}); restore it from a copy") from error


def typed_rows(
    connection: sqlite3.Connection,
    query: str,
    values: tuple[Any, ...],
    kinds: tuple[type, ...],
) -> Iterator[tuple[Any, ...]]:
    """Rows whose columns have these types: SQLite stores any type in any column.

    Raises:
        FormatError: for others.
    """
    for row in connection.execute(query, values).fetchall():
        for value, kind in zip(row, kinds, strict=True):
            if type(value) is not kind:
                raise FormatError(f"a {type(value).__name__} where {kind.__name__} belongs")
        yield row


def _answers(connection: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """How many answers of each kind there are."""
    query = "SELECT COALESCE(SUM(prefixes * MAX(count, 1)), 0) FROM block WHERE kind = ?"
    for name, kind in (("laws", "law"), ("top_laws", "top"), ("draws", "draw")):
        yield name, next(typed_rows(connection, query, (kind,), (int,)))[0]


def _times(connection: sqlite3.Connection) -> tuple[float | None, float | None]:
    """When the first request was sent, and when the last was answered."""
    query = "SELECT MIN(started), MAX(MAX(started, COALESCE(ended, started))) FROM request"
    started, ended = connection.execute(query).fetchone()
    if (started, ended) == (None, None):
        return None, None
    for time in (started, ended):
        if type(time) is not float or not 0 <= time < _LAST_TIME:
            raise FormatError("a time that is none")
    return started, ended


def running_on(connection: sqlite3.Connection) -> list[int]:
    """The processes that have the file open."""
    owners = connection.execute("SELECT pid, mark FROM owner WHERE closed IS NULL")
    return sorted({pid for pid, mark in owners.fetchall() if runs(pid, mark)})


def _spending(connection: sqlite3.Connection) -> Iterator[Spending]:
    query = f"SELECT job, purpose, {COSTS} FROM spent ORDER BY job, purpose"  # noqa: S608
    for job, purpose, *costs in typed_rows(connection, query, (), (str, str, *(int,) * 4)):
        states = "SELECT state, COUNT(*) FROM request WHERE job = ? AND purpose = ? GROUP BY state"
        named = dict(typed_rows(connection, states, (job, purpose), (str, int)))
        query = f"SELECT {_SUMS} FROM request WHERE job = ? AND purpose = ? AND state <> 'answered'"  # noqa: S608
        without = connection.execute(query, (job, purpose)).fetchone()
        yield Spending(job, purpose, Account(*costs), Account(*map(int, without)), named)


@dataclasses.dataclass(frozen=True)
class Check:
    """What verifying found.

    blocks, answers, requests: how many were checked
    problems: one sentence each, at most 100; empty where all holds
    """

    blocks: int
    answers: int
    requests: int
    problems: tuple[str, ...]


def verify(path: Path) -> Check:
    """Check the database, every hash, every answer, and the accounts.

    Raises:
        InputError, FormatError, LedgerError: where the file cannot be read as a ledger.
    """
    connection, spec = open_to_read(path)
    problems: list[str] = []
    stored: dict[int, int] = {}
    blocks = answers = requests = 0
    try:
        with explained(path):
            for (text,) in connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})"):
                if text != "ok":
                    problems.append(f"the database: {text}")
            for number, found in _blocks(connection, spec):
                blocks += 1
                if isinstance(found, MynaError):
                    problems.append(f"block {number}: {found}")
                    continue
                for request, some in found:
                    answers += some
                    stored[request] = stored.get(request, 0) + some
            requests = connection.execute("SELECT COUNT(*) FROM request").fetchone()[0]
            problems += _accounts(connection, stored)
    except MynaError as error:
        problems.append(str(error))
    finally:
        connection.close()
    return Check(blocks, answers, requests, tuple(problems[:_MOST_PROBLEMS]))


def read_block(
    spec: Spec, columns: tuple[Any, ...], blobs: tuple[Any, ...]
) -> tuple[Question, Answer]:
    """A block whose hashes agree.

    blobs: keys, keys_hash, body, body_hash

    Raises:
        FormatError: where they do not, or a size is wrong.
    """
    question = checked_question(columns, *blobs[:2])
    return question, checked_answer(columns, spec, *blobs[1:])


def read_sources(sources: Any, n: int) -> list[tuple[int, int]]:
    """Which requests the n prefixes of a block came from, in order: (request, prefixes).

    Raises:
        FormatError: where they are not n.
    """
    try:
        parts = [(request, rows) for request, rows in json.loads(sources)]
        if not all(type(number) is int and number >= 0 for part in parts for number in part):
            raise ValueError("not whole numbers")
        if sum(rows for _, rows in parts) != n:
            raise ValueError(f"not of {n} prefixes")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"its sources do not add up ({error})") from error
    return parts


def _blocks(
    connection: sqlite3.Connection, spec: Spec
) -> Iterator[tuple[int, list[tuple[int, int]] | MynaError]]:
    """Each block's number, and how many answers it has of each request or what is wrong."""
    query = f"SELECT id, sources, {COLUMNS}, keys, keys_hash, body, body_hash FROM block"  # noqa: S608
    for number, sources, *rest in connection.execute(query):
        try:
            if number < 1:
                raise FormatError(f"blocks are numbered from 1, so nobody reads {number}")
            question, answer = read_block(spec, tuple(rest[:-4]), tuple(rest[-4:]))
            check_prefixes(spec, question.prefixes)
            _check_answer(spec, question, answer)
            parts = read_sources(sources, len(question.prefixes.lengths))
        except MynaError as error:
            yield number, error
        else:
            yield number, [(request, rows * max(question.count, 1)) for request, rows in parts]


def _check_answer(spec: Spec, question: Question, answer: Answer) -> None:
    if isinstance(answer, Completions):
        checked_completions(spec, question.request, answer)
    elif isinstance(answer, TopLaw):
        check_law(question.prefixes, torch.cat([answer.log_probs, answer.log_rest[:, None]], 1))
    elif isinstance(answer, Tensor):
        check_law(question.prefixes, answer)


def _accounts(connection: sqlite3.Connection, stored: dict[int, int]) -> Iterator[str]:
    """What does not add up between blocks, requests and what is counted as spent."""
    names = COSTS.split(", ")
    query = f"SELECT job, purpose, {_SUMS} FROM request GROUP BY job, purpose"  # noqa: S608
    rows = typed_rows(connection, query, (), (str, str, *(float,) * 4))
    summed = {(job, purpose): tuple(map(int, costs)) for job, purpose, *costs in rows}
    query = f"SELECT job, purpose, {COSTS} FROM spent"  # noqa: S608
    rows = typed_rows(connection, query, (), (str, str, *(int,) * 4))
    kept = {(job, purpose): tuple(costs) for job, purpose, *costs in rows}
    for account in sorted(summed.keys() | kept.keys()):
        for name, paid, held in zip(
            names, summed.get(account, (0,) * 4), kept.get(account, (0,) * 4), strict=True
        ):
            if paid != held:
                yield (
                    f"purpose {account[1]!r} of job {account[0]!r}: {name} of its requests add up "
                    f"to {paid:,} and {held:,} are counted as spent"
                )
    query = "SELECT id, prefixes * MAX(count, 1), state FROM request"
    rows = typed_rows(connection, query, (), (int, int, str))
    paid_for = {number: (n, state) for number, n, state in rows}
    for number, some in stored.items():
        n, state = paid_for.get(number, (0, "absent"))
        if some > n or state not in ("answered", "absent"):
            yield f"request {number} ({state}) asked for {n:,} answers and {some:,} are stored"
        elif state == "absent":
            yield f"request {number} is not there, and {some:,} answers are stored as its own"
