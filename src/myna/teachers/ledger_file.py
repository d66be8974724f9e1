"""A teacher behind a ledger's file: what is held there is never asked again.

For a question, in this order:

    reserve   one transaction: what other processes stored is read; what is still lacking
              must fit the budget at the most that it can cost; that much is written down
              as spent, with the question, and is on the disk before anything is sent
    ask       the teacher
    settle    one transaction: the answer, and what it did cost in place of the most

Hence, whichever process is ended at whatever moment:

    no answer that reached the disk is asked again
    after a crash at most the requests then in flight are asked again
    spent + reserved <= budget at every moment, over all processes and threads on the file

Two processes with one question: the second waits until the first has its answer, and pays
nothing. If the first ends without one, the second asks, within the budget. A question is
waited for whole: a request that shares any of its questions with one in flight waits.

A teacher that says how many answers it gets at a time (`in_flight`; endpoints do) is asked in
such parts, each reserved and settled by itself, after the whole was found to fit.

What was reserved by a process that died, or whose teacher failed, may have been paid: it
stays counted as spent, and is shown as lost. So a run that is resumed under a budget has
that much less to spend; without a crash, or where the budget is not reached, the resumed
run's student is the uninterrupted one's, bit for bit.

A reservation is synchronised to the disk before anything is sent, and with it all that was
settled before. So where the power fails, all of this holds too, but for one thing: the
answers of each process's last request may be gone, and are asked again if the budget allows.

Liveness is judged by process number and start time, on one machine. A process that runs
elsewhere on the same file (in a container with other process numbers) seems dead, and
what it has in flight is asked again, within the budget.
"""

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from myna.errors import BudgetExhausted, FormatError, InputError
from myna.spec import Spec
from myna.teachers.account import Account, Budget
from myna.teachers.answers import checked_completions, checked_law, checked_top
from myna.teachers.drawn import Request
from myna.teachers.ledger_blocks import (
    COLUMNS,
    Answer,
    Question,
    hashed,
    in_blocks,
    pack,
    pack_keys,
    question_of,
    split_keys,
)
from myna.teachers.ledger_held import Held
from myna.teachers.ledger_owner import mark_of, runs
from myna.teachers.ledger_schema import COSTS, explained, open_file, transaction
from myna.teachers.oracle import Completions, Samples, TopLaw, in_flight
from myna.teachers.prefixes import Prefixes

_LONGEST_NAP = 0.2  # seconds between looks at a file in which another process's request is open


_ASKING: set[tuple[Path, int]] = set()  # (file, owner) of this process's questions in flight


class LedgerFile:
    """One process's hold on a file.

    teacher: what is asked where the file has no answer
    budget: limits on all that `job` has spent in the file
    job: whose budget it is, as "learn"
    """

    def __init__(self, path: Path, teacher: Samples, budget: Budget, job: str):
        """Open the file, or make it.

        Raises:
            InputError: a ledger of another teacher, or a path that is none.
            FormatError: no ledger, a newer one, or a damaged one.
            LedgerError: a file that cannot be written.
        """
        self.path, self.job = path, job
        self._teacher, self._budget = teacher, budget
        self._pid, self._closed = os.getpid(), False
        self._connection = open_file(path, teacher.spec)
        try:
            self._owner, self._held = self._enter()
        except BaseException:
            self._connection.close()
            raise
        self._name = (path.resolve(), self._owner)

    def _enter(self) -> tuple[int, Held]:
        """Write down who has the file open, and see what it holds."""
        with self._writing():
            row = (self._pid, mark_of(self._pid), self.job, time.time())
            owner = self._connection.execute(
                "INSERT INTO owner (pid, mark, job, opened) VALUES (?, ?, ?, ?)", row
            ).lastrowid
            assert owner is not None
            return owner, Held(self.path, self._connection, self.spec)

    def close(self) -> None:
        """Give the file up; it is whole without this as well, so nothing here fails."""
        if self._closed or os.getpid() != self._pid:
            return  # a forked process has no part in its parent's file
        self._closed = True
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                "UPDATE owner SET closed = ? WHERE id = ?", (time.time(), self._owner)
            )
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __del__(self):
        with contextlib.suppress(Exception):  # the file is whole without this
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(f"the ledger {self.path} was closed; open it again to ask more")
        if os.getpid() != self._pid:
            raise InputError(
                f"the ledger {self.path} was opened before this process forked; open it again here"
            )

    @contextlib.contextmanager
    def _writing(self, synchronous: str = "NORMAL") -> Iterator[None]:
        self._check_open()
        with explained(self.path):
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            with transaction(self._connection):
                yield

    @property
    def spec(self) -> Spec:
        """The teacher's spec."""
        return self._teacher.spec

    def spent(self) -> Account:
        """What this job has spent in the file, reservations included."""
        self._check_open()
        with explained(self.path):
            return self._spent()

    def _spent(self) -> Account:
        sums = ", ".join(f"TOTAL({name})" for name in COSTS.split(", "))
        row = self._connection.execute(f"SELECT {sums} FROM spent WHERE job = ?", (self.job,))  # noqa: S608
        return Account(*map(int, row.fetchone()))

    def facing(self, purpose: str) -> "Recorded":
        """The teacher for one purpose, charged in the file."""
        return Recorded(self, purpose)

    def answer(self, purpose: str, question: Question) -> Answer:
        """The answer to a question: from the file, or asked and kept there.

        Raises:
            BudgetExhausted: before anything is asked.
            TeacherError: where the answer is none; what it can have cost stays spent.
        """
        self._check_open()
        nap = 0.002
        while not self._held.has(question):
            _ASKING.add(self._name)
            try:
                reserved = self._reserve(purpose, question)
                self._ask(purpose, reserved or [])
            finally:
                _ASKING.discard(self._name)  # what is still open is lost: nobody waits for it
            if reserved is None:
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)
        with explained(self.path):
            return self._held.read(question)

    def fits(self, requests: list[Request]) -> bool:
        """Whether the budget has room for what the file lacks of all requests together."""
        self._check_open()
        with explained(self.path):
            self._held.refresh()
            questions = map(Question.of, requests)
            parts = [part for question in questions for part in self._held.lacking(question)]
            try:
                self._fit(parts, [part.most(self.spec) for part in parts])
            except BudgetExhausted:
                return False
        return True

    def _reserve(self, purpose: str, question: Question) -> list[tuple[int, Question]] | None:
        """Requests whose cost is on the disk as spent; None where one must be waited for."""
        with self._writing("FULL"):
            # What this opening left open could not be settled; it asks one question at a time.
            self._connection.execute(
                "UPDATE request SET state = 'lost' WHERE state = 'open' AND owner = ?",
                (self._owner,),
            )
            self._held.refresh()
            parts = self._held.lacking(question)
            if any(self._in_flight(part) for part in parts):
                return None
            most = [part.most(self.spec) for part in parts]
            self._fit(parts, most)
            together = in_flight(self._teacher, question.kind)
            if together is not None:
                parts = [parts[0].first(together)]
                most = [parts[0].most(self._teacher.spec)]
            self._charge(purpose, sum(most, Account()))
            return [(self._open(purpose, *pair), pair[0]) for pair in zip(parts, most, strict=True)]

    def _fit(self, parts: list[Question], most: list[Account]) -> None:
        if not parts:
            return
        limited = self._budget.counts_tokens
        draws = [part.request for part in parts if part.kind == "draw"]
        if limited and any(request.most_received(self.spec) is None for request in draws):
            raise BudgetExhausted(
                "a token budget cannot be kept on completions of unbounded length; say max_tokens"
            )
        if self._budget != Budget():
            where = f" over all that {self.path} has spent"
            self._budget.check(self._spent() + sum(most, Account()), where)

    def _in_flight(self, question: Question) -> bool:
        """Whether a running process has asked part of a question; the dead's are marked lost."""
        query = (
            f"SELECT request.id, request.keys, owner, pid, mark, closed, {COLUMNS} FROM request "  # noqa: S608
            "LEFT JOIN owner ON owner.id = request.owner WHERE state = 'open' AND kind = ? "
            "AND k = ? AND stream IS ? AND seed IS ? AND max_tokens IS ?"
        )
        found = False
        for number, blob, owner, pid, mark, closed, *columns in self._connection.execute(
            query, question.setting
        ).fetchall():
            if closed is not None or pid is None or not self._can_settle(owner, pid, mark):
                self._connection.execute(
                    "UPDATE request SET state = 'lost' WHERE id = ?", (number,)
                )
                continue
            found = found or _meet(question, self._open_question(number, blob, columns))
        return found

    def _open_question(self, number: int, blob: Any, columns: list[Any]) -> Question:
        try:
            if type(blob) is not bytes:
                raise FormatError("it has no prefixes")
            return question_of(tuple(columns), split_keys(blob, columns[-1]))
        except FormatError as error:
            raise FormatError(
                f"request {number} of the ledger {self.path} is damaged ({error}); see `myna "
                "ledger verify`, or restore the file from a copy"
            ) from error

    def _can_settle(self, owner: int, pid: Any, mark: Any) -> bool:
        """Whether an open request of this owner may still have its answer."""
        if pid == self._pid and mark == mark_of(pid):
            return owner != self._owner and (self._name[0], owner) in _ASKING
        return runs(pid, mark)

    def _open(self, purpose: str, question: Question, most: Account) -> int:
        costs = dataclasses.astuple(most)[:4]
        row = (self._owner, self.job, purpose, "open", time.time(), *question.columns)
        names = f"owner, job, purpose, state, started, {COLUMNS}, keys, {COSTS}"
        marks = ", ".join("?" * (len(row) + 1 + len(costs)))
        number = self._connection.execute(
            f"INSERT INTO request ({names}) VALUES ({marks})",  # noqa: S608
            (*row, pack_keys(question), *costs),
        ).lastrowid
        assert number is not None
        return number

    def _charge(self, purpose: str, change: Account) -> None:
        names = COSTS.split(", ")
        costs = dataclasses.astuple(change)[:4]
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
        self._connection.execute(
            f"INSERT INTO spent (job, purpose, {COSTS}) VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608
            f"ON CONFLICT (job, purpose) DO UPDATE SET {added}",
            (self.job, purpose, *costs),
        )

    def _ask(self, purpose: str, reserved: list[tuple[int, Question]]) -> None:
        """Ask and settle each; where one fails, the later ones were never sent."""
        for place, (number, question) in enumerate(reserved):
            try:
                answer = _checked(self.spec, question, question.ask(self._teacher))
            except BaseException:
                self._fail(purpose, number, reserved[place + 1 :])
                raise
            with self._writing():
                written = self._settle(purpose, number, question, answer)
            for block in written:  # only now are they in the file
                self._held.add(*block)

    def _fail(self, purpose: str, number: int, unsent: list[tuple[int, Question]]) -> None:
        with self._writing():
            self._end(number, "failed")
            for later, question in unsent:
                self._end(later, "unsent", Account())
                self._charge(purpose, Account() - question.most(self.spec))

    def _end(self, number: int, state: str, cost: Account | None = None) -> None:
        costs = None if cost is None else dataclasses.astuple(cost)[:4]
        changed = "" if costs is None else "".join(f", {c} = ?" for c in COSTS.split(", "))
        self._connection.execute(
            f"UPDATE request SET state = ?, ended = ?, keys = NULL{changed} WHERE id = ?",  # noqa: S608
            (state, time.time(), *(costs or ()), number),
        )

    def _settle(
        self, purpose: str, number: int, question: Question, answer: Answer
    ) -> list[tuple[int, Question, Answer]]:
        """Write the answer and its cost; the blocks that were written."""
        spec = self.spec
        cost = question.cost(answer, spec)
        self._end(number, "answered", cost)
        self._charge(purpose, cost - question.most(spec))
        self._held.refresh()
        return [
            (write_block(self._connection, piece, kept, number, spec), piece, kept)
            for part, found in self._held.lacking_of(question, answer)
            for piece, kept in in_blocks(part, found)
        ]


def write_block(
    connection: sqlite3.Connection, question: Question, answer: Answer, request: int, spec: Spec
) -> int:
    """Store one block; its number."""
    columns, sources = question.columns, json.dumps([[request, len(question.prefixes.lengths)]])
    blobs = hashed(columns, pack_keys(question), pack(answer, spec.num_tokens))
    return insert_block(connection, (*columns, sources, *blobs))


def insert_block(connection: sqlite3.Connection, row: tuple[Any, ...]) -> int:
    """Store a block's row; its number."""
    names = f"{COLUMNS}, sources, keys, keys_hash, body, body_hash"
    marks = ", ".join("?" * len(row))
    number = connection.execute(f"INSERT INTO block ({names}) VALUES ({marks})", row).lastrowid  # noqa: S608
    assert number is not None
    return number


def _meet(one: Question, other: Question) -> bool:
    """Whether two questions of one setting have an answer in common."""
    if set(one.keys).isdisjoint(other.keys):
        return False
    if one.kind != "draw":
        return True
    return (
        one.first_draw < other.first_draw + other.count
        and other.first_draw < one.first_draw + one.count
    )


def _checked(spec: Spec, question: Question, answer: Answer) -> Answer:
    """The answer as it is kept, where it is one: on the CPU, in float64 and int64."""
    if isinstance(answer, Completions):
        return checked_completions(spec, question.request, answer)
    if isinstance(answer, TopLaw):
        return checked_top(spec, question.prefixes, question.k, answer)
    return checked_law(spec, question.prefixes, answer)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The teacher behind a file, for one purpose; as the teacher itself, at its level."""

    _file: LedgerFile
    purpose: str

    @property
    def spec(self) -> Spec:
        """The teacher's spec."""
        return self._file.spec

    @property
    def k(self) -> int:
        """How many tokens the teacher shows."""
        return self._file._teacher.k  # pyright: ignore[reportAttributeAccessIssue]

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Laws of distinct prefixes."""
        answer = self._file.answer(self.purpose, Question("law", prefixes))
        assert isinstance(answer, Tensor)
        return answer

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """Top laws of distinct prefixes."""
        answer = self._file.answer(self.purpose, Question("top", prefixes, self.k))
        assert isinstance(answer, TopLaw)
        return answer

    def complete(self, prefixes: Prefixes, count: int, **named: Any) -> Completions:
        """Draws of distinct prefixes."""
        first, limit = named.get("first_draw", 0), named.get("max_tokens")
        question = Question("draw", prefixes, 0, named["stream"], limit, first, count)
        answer = self._file.answer(self.purpose, question)
        assert isinstance(answer, Completions)
        return answer
