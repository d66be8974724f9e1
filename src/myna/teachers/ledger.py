"""The ledger: every question to a teacher passes here, is counted, and is kept.

A budget is reserved before the teacher is asked, so it is never exceeded: a request
that does not fit raises BudgetExhausted and nothing of it is asked. Completions reserve
the most that they can cost and are charged what they did cost. An answer that is no
answer to its request is a TeacherError: nothing of it is kept or counted as received,
and the question stays charged. See `account` for what is counted.

Without a file a ledger ends with the process. With one (see `ledger_file`), answers and
spending are kept there, and shared by all processes that open it. Then there are two
counts. A ledger's own account says what its run has used: an answer that the file already
held is counted as if it had been asked, the first time that this run wants it, so a
learner that is run again sees the same numbers and does the same. The file's account says
what was really spent. The budget limits both.

A view shows a teacher for one purpose at the teacher's own level: counting is done
by construction, because learners never hold anything else.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import BudgetExhausted, TeacherError
from myna.lowrank.student import Strings, check_strings
from myna.spec import Spec
from myna.teachers.account import Account, Budget
from myna.teachers.answers import checked_completions, checked_law, checked_top
from myna.teachers.crossing import (
    Crossing,
    FutureTree,
    ScoresPrompts,
    check_crossing,
    crossed,
    crossed_by_laws,
)
from myna.teachers.drawn import Drawn, Grown, Request
from myna.teachers.draws import complete_by_laws
from myna.teachers.ledger_file import LedgerFile
from myna.teachers.oracle import Completions, Laws, Samples, Stream, TopLaw, TopLaws
from myna.teachers.prefixes import Prefixes, check_prefixes


class _LawTable:
    """Every law received: one growing matrix, and which row each prefix has."""

    def __init__(self, num_tokens: int):
        self.rows: dict[bytes, int] = {}
        self._laws = Grown(torch.float64, num_tokens)

    def add(self, keys: list[bytes], laws: Float[Tensor, "batch token"]) -> None:
        """Keep new laws."""
        start = len(self.rows)
        self._laws.append(laws)
        self.rows.update(zip(keys, range(start, start + len(keys)), strict=True))

    def find(self, keys: list[bytes]) -> Float[Tensor, "batch token"]:
        """The laws of prefixes that are all known."""
        rows = torch.tensor([self.rows[key] for key in keys], dtype=torch.int64)
        return self._laws.rows[rows]


class Ledger:
    """Counts, keeps and limits what one teacher is asked.

    teacher: at any of the three levels
    budget: limits over all purposes together
    seed: which streams answer requests for samples
    file: where answers and spending are kept; None keeps them in memory alone
    job: whose spending in the file the budget limits, as "learn"
    """

    def __init__(
        self,
        teacher: Samples,
        budget: Budget | None = None,
        seed: int = 0,
        *,
        file: Path | None = None,
        job: str = "",
    ):
        """Open an empty account, over what the file holds.

        Raises:
            InputError: a ledger of another teacher, or a path that is none.
            FormatError: a file that is no ledger, a newer one, or a damaged one.
            LedgerError: a file that cannot be written.
        """
        self._teacher = teacher
        self._budget = budget or Budget()
        self._file = None if file is None else LedgerFile(file, teacher, self._budget, job)
        self._seed = seed
        self._accounts: dict[str, Account] = {}
        self._by_cut: dict[str, Tensor] = {}
        self._laws = _LawTable(teacher.spec.num_tokens)
        self._tops: dict[bytes, TopLaw] = {}
        self._drawn = Drawn()
        self._lock = threading.RLock()

    def __enter__(self) -> "Ledger":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Give the file up, where there is one; nothing is lost without this."""
        if self._file is not None:
            self._file.close()

    @property
    def spec(self) -> Spec:
        """The teacher's spec."""
        return self._teacher.spec

    def _facing(self, purpose: str) -> Samples:
        """The teacher, charged in the file as well where there is one."""
        return self._teacher if self._file is None else self._file.facing(purpose)

    def paid(self) -> Account:
        """What was really spent: by the job in the file, or here where there is none."""
        return self.total() if self._file is None else self._file.spent()

    @property
    def budget(self) -> Budget:
        """The limits over all purposes together."""
        return self._budget

    def account(self, purpose: str) -> Account:
        """What one purpose has spent."""
        return self._accounts.get(purpose, Account())

    def accounts(self) -> dict[str, Account]:
        """What each purpose has spent."""
        return dict(self._accounts)

    def queries_by_cut(self, purpose: str) -> tuple[int, ...]:
        """One purpose's next-token queries by the length of the prefix: cuts 0, 1, ..."""
        return tuple(self._by_cut.get(purpose, torch.zeros(0, dtype=torch.int64)).tolist())

    def _count_cuts(self, purpose: str, lengths: Tensor) -> None:
        before = self._by_cut.get(purpose, torch.zeros(0, dtype=torch.int64))
        counts = torch.bincount(lengths, minlength=len(before))
        counts[: len(before)] += before
        self._by_cut[purpose] = counts

    def total(self) -> Account:
        """What all purposes have spent together."""
        return sum(self._accounts.values(), Account())

    def samples(self, purpose: str) -> "SamplesView":
        """The teacher's completions, charged to a purpose."""
        return SamplesView(self, purpose)

    def top_laws(self, purpose: str) -> "TopLawsView":
        """The teacher's top laws, charged to a purpose."""
        self._require(TopLaws, "the k most likely tokens (top-k access)")
        return TopLawsView(self, purpose)

    def laws(self, purpose: str) -> "LawsView":
        """The teacher's laws, charged to a purpose."""
        self._require(Laws, "whole next-token laws")
        return LawsView(self, purpose)

    def _require(self, level: type, wanted: str) -> None:
        if not isinstance(self._teacher, level):
            withheld = getattr(self._teacher, "withheld", "")  # an endpoint's evidence
            raise TeacherError(
                f"{wanted} are needed here, and this teacher gives less"
                + (f" ({withheld})" if withheld else "")
                + "; use a learner that needs less access, or a teacher that gives more"
            )

    def _charge(self, purpose: str, spent: Account) -> None:
        """Add to an account, or raise BudgetExhausted and add nothing."""
        self._budget.check(self.total() + spent)
        self._accounts[purpose] = self.account(purpose) + spent

    def _reserve(self, parts: list[Request]) -> None:
        """Raise BudgetExhausted where the answers to all parts could exceed the budget."""
        most = [part.most_received(self.spec) for part in parts]
        bounded = [tokens for tokens in most if tokens is not None]
        if self._budget.counts_tokens and len(bounded) < len(most):
            raise BudgetExhausted(
                "a token budget cannot be kept on completions of unbounded length; say max_tokens"
            )
        worst = Account(
            completions=sum(part.completions for part in parts),
            tokens_sent=sum(part.tokens_sent for part in parts),
            tokens_received=sum(bounded),
        )
        self._budget.check(self.total() + worst)


@dataclasses.dataclass(frozen=True)
class SamplesView:
    """A teacher's completions, charged to one purpose on its own stream."""

    _ledger: Ledger
    purpose: str

    @property
    def spec(self) -> Spec:
        """The teacher's spec."""
        return self._ledger.spec

    @property
    def stream(self) -> Stream:
        """The stream that this purpose draws from."""
        return Stream(self.purpose, self._ledger._seed)

    def spent(self) -> Account:
        """What this purpose has spent so far."""
        return self._ledger.account(self.purpose)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream | None = None,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Completions from this purpose's stream; those asked before cost nothing."""
        request = self._request(prefixes, count, stream, max_tokens, first_draw)
        return _complete(self._ledger, self.purpose, request)

    def fits(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream | None = None,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> bool:
        """Whether `complete` would stay within the budget; nothing is asked or charged."""
        request = self._request(prefixes, count, stream, max_tokens, first_draw)
        with self._ledger._lock:
            parts = self._ledger._drawn.lacking(request)
            try:
                self._ledger._reserve(parts)
            except BudgetExhausted:
                return False
            return self._ledger._file is None or self._ledger._file.fits(parts)

    def _request(
        self,
        prefixes: Prefixes,
        count: int,
        stream: Stream | None,
        max_tokens: int | None,
        first_draw: int,
    ) -> Request:
        check_prefixes(self.spec, prefixes)
        return Request(prefixes, count, stream or self.stream, max_tokens, first_draw)


@dataclasses.dataclass(frozen=True)
class TopLawsView(SamplesView):
    """A teacher's top laws as well."""

    @property
    def k(self) -> int:
        """How many tokens the teacher shows."""
        return self._ledger._teacher.k  # pyright: ignore[reportAttributeAccessIssue]

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The k most likely next tokens; each distinct prefix is paid once."""
        check_prefixes(self.spec, prefixes)
        ledger, keys = self._ledger, prefixes.keys()
        with ledger._lock:
            missing = _missing(ledger, self.purpose, prefixes, keys, ledger._tops)
            if missing is not None:
                with _paying(ledger, self.purpose, missing):
                    answer = ledger._facing(self.purpose).top_laws(missing)  # pyright: ignore[reportAttributeAccessIssue]
                answer = checked_top(self.spec, missing, self.k, answer)
                for row, key in enumerate(missing.keys()):
                    ledger._tops[key] = TopLaw(*(part[row] for part in answer))
            found = [ledger._tops[key] for key in keys]
        return TopLaw(*(torch.stack(parts) for parts in zip(*found, strict=True)))


@dataclasses.dataclass(frozen=True)
class LawsView(TopLawsView):
    """A teacher's whole laws as well."""

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities; each distinct prefix is paid once."""
        check_prefixes(self.spec, prefixes)
        ledger, keys = self._ledger, prefixes.keys()
        with ledger._lock:
            missing = _missing(ledger, self.purpose, prefixes, keys, ledger._laws.rows)
            if missing is not None:
                with _paying(ledger, self.purpose, missing):
                    answer = ledger._facing(self.purpose).laws(missing)  # pyright: ignore[reportAttributeAccessIssue]
                ledger._laws.add(missing.keys(), checked_law(self.spec, missing, answer))
            return ledger._laws.find(keys)

    def cross(
        self, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
    ) -> Crossing:
        """Every history with every future: counted, and kept only where there is a file.

        Each history and distinct proper prefix of futures is a query; where prompts are scored,
        each history and future is a scored prompt, and each kept law a query.
        """
        ledger = self._ledger
        if ledger._file is not None:
            return crossed_by_laws(self, histories, futures, kept)
        check_crossing(self.spec, histories, futures)
        scored = Account()
        places = FutureTree.of(futures).pairs[:, 1]
        if isinstance(ledger._teacher, ScoresPrompts):
            places = kept[:, 1]
            pairs = histories.lengths[:, None] + futures.lengths
            scored = Account(scored_prompts=pairs.numel(), scored_tokens=int(pairs.sum()))
        lengths = (histories.lengths[:, None] + places).reshape(-1)
        laws = Account(next_token_queries=len(lengths), tokens_sent=int(lengths.sum()))
        with ledger._lock:
            ledger._charge(self.purpose, laws + scored)
            ledger._count_cuts(self.purpose, lengths)
        return crossed(ledger._teacher, histories, futures, kept)  # pyright: ignore[reportArgumentType]

    def draw_by_laws(self, count: int, first_draw: int, max_tokens: int | None) -> Completions:
        """Whole sequences drawn on this side from laws; every law used is a query."""
        return complete_by_laws(
            self,
            Prefixes.of([[]]),
            count,
            stream=self.stream,
            max_tokens=max_tokens,
            first_draw=first_draw,
        )

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log P(x) in nats, by asking the law at every prefix of every string."""
        check_strings(self.spec, strings)
        total = torch.zeros(len(strings.lengths), dtype=torch.float64)
        for t in range(strings.tokens.shape[1]):
            # A string that has become impossible has no further laws to ask.
            rows = ((strings.lengths > t) & (total > -torch.inf)).nonzero()[:, 0]
            if not len(rows):
                break
            prefixes = Prefixes(strings.tokens[rows, :t], torch.full_like(rows, t))
            total[rows] += self.laws(prefixes).gather(1, strings.tokens[rows, t : t + 1])[:, 0]
        return total


def _missing(
    ledger: Ledger, purpose: str, prefixes: Prefixes, keys: list[bytes], cache: dict
) -> Prefixes | None:
    """The distinct prefixes that the cache lacks; None where it has all."""
    first = {key: row for row, key in enumerate(keys) if key not in cache}
    ledger._charge(purpose, Account(cache_hits=len(keys) - len(first)))
    if not first:
        return None
    return prefixes.take(torch.tensor(list(first.values())))


@contextlib.contextmanager
def _paying(ledger: Ledger, purpose: str, missing: Prefixes) -> Iterator[None]:
    """Charge laws while they are asked; nothing where the file's budget had no room for them."""
    cost = Account(next_token_queries=len(missing.lengths), tokens_sent=int(missing.lengths.sum()))
    ledger._charge(purpose, cost)
    try:
        yield
    except BudgetExhausted:
        ledger._accounts[purpose] = ledger.account(purpose) - cost
        raise
    except BaseException:
        ledger._count_cuts(purpose, missing.lengths)
        raise
    ledger._count_cuts(purpose, missing.lengths)


def _complete(ledger: Ledger, purpose: str, request: Request) -> Completions:
    """Reserve the most that the missing draws can cost, ask, charge what they did cost.

    Raises:
        BudgetExhausted: before anything is asked, where the whole does not fit.
        TeacherError: where an answer is none to the request; that question stays charged.
    """
    spec = ledger.spec
    with ledger._lock:
        parts = ledger._drawn.lacking(request)
        asked = sum(part.completions for part in parts)
        ledger._charge(purpose, Account(cache_hits=request.completions - asked))
        ledger._reserve(parts)
        for part in parts:
            sent = Account(completions=part.completions, tokens_sent=part.tokens_sent)
            ledger._charge(purpose, sent)
            try:
                answer = part.ask(ledger._facing(purpose))
            except BudgetExhausted:  # of the file: this part was not asked
                ledger._accounts[purpose] = ledger.account(purpose) - sent
                raise
            answer = checked_completions(spec, part, answer)
            ledger._charge(purpose, Account(tokens_received=int(answer.lengths.sum())))
            ledger._drawn.add(part, answer)
        return ledger._drawn.read(request)
