"""The ledger: every question to a teacher passes here, is counted, and is kept.

    next-token query   one distinct prefix whose law was asked (whole or top-k)
    completion         one draw of one prefix under one stream
    tokens sent        lengths of the prefixes that reached the teacher, added up
    tokens received    lengths of the completions that came back
    cache hit          a question that an earlier answer settled; it costs nothing

A budget is reserved before the teacher is asked, so it is never exceeded: a request
that does not fit raises BudgetExhausted and nothing of it is asked. This ledger
lives in memory and ends with the process.

A view shows a teacher for one purpose at the teacher's own level: counting is done
by construction, because learners never hold anything else.
"""

import dataclasses
import math
import threading

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import BudgetExhausted, TeacherError
from myna.lowrank.student import Strings, check_strings, sampling_limit
from myna.spec import Spec
from myna.teachers.draws import check_draws, complete_by_laws
from myna.teachers.oracle import Completions, Laws, Samples, Stream, TopLaw, TopLaws
from myna.teachers.prefixes import Prefixes, check_prefixes


@dataclasses.dataclass(frozen=True)
class Account:
    """What was spent, each field a plain sum; see the module's text for the units."""

    next_token_queries: int = 0
    completions: int = 0
    tokens_sent: int = 0
    tokens_received: int = 0
    cache_hits: int = 0

    def __add__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries + other.next_token_queries,
            self.completions + other.completions,
            self.tokens_sent + other.tokens_sent,
            self.tokens_received + other.tokens_received,
            self.cache_hits + other.cache_hits,
        )

    def __sub__(self, other: "Account") -> "Account":
        """Field by field."""
        return Account(
            self.next_token_queries - other.next_token_queries,
            self.completions - other.completions,
            self.tokens_sent - other.tokens_sent,
            self.tokens_received - other.tokens_received,
            self.cache_hits - other.cache_hits,
        )


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits on an account; None means no limit.

    queries: next-token queries
    completions: completions
    tokens: tokens sent plus tokens received
    """

    queries: int | None = None
    completions: int | None = None
    tokens: int | None = None

    def check(self, spent: Account) -> None:
        """Raise BudgetExhausted where an account would exceed a limit."""
        for name, limit, amount in (
            ("next-token queries", self.queries, spent.next_token_queries),
            ("completions", self.completions, spent.completions),
            ("tokens", self.tokens, spent.tokens_sent + spent.tokens_received),
        ):
            if limit is not None and amount > limit:
                raise BudgetExhausted(
                    f"the budget is {limit:,} {name} and the next request would bring "
                    f"them to {amount:,}; raise the budget to go on"
                )


class _LawTable:
    """Every law received: one growing matrix, and which row each prefix has."""

    def __init__(self, num_tokens: int):
        self.rows: dict[bytes, int] = {}
        self._laws = torch.empty((256, num_tokens), dtype=torch.float64)

    def add(self, keys: list[bytes], laws: Float[Tensor, "batch token"]) -> None:
        """Keep new laws; the matrix doubles where it is full."""
        start, stop = len(self.rows), len(self.rows) + len(keys)
        if stop > len(self._laws):
            grown = torch.empty(
                (max(stop, 2 * len(self._laws)), laws.shape[1]), dtype=torch.float64
            )
            grown[:start] = self._laws[:start]
            self._laws = grown
        self._laws[start:stop] = laws
        self.rows.update(zip(keys, range(start, stop), strict=True))

    def find(self, keys: list[bytes]) -> Float[Tensor, "batch token"]:
        """The laws of prefixes that are all known."""
        return self._laws[torch.tensor([self.rows[key] for key in keys], dtype=torch.int64)]


class Ledger:
    """Counts, keeps and limits what one teacher is asked.

    teacher: at any of the three levels
    budget: limits over all purposes together
    seed: which streams answer requests for samples
    """

    def __init__(self, teacher: Samples, budget: Budget | None = None, seed: int = 0):
        """Open an empty account."""
        self._teacher = teacher
        self._budget = budget or Budget()
        self._seed = seed
        self._accounts: dict[str, Account] = {}
        self._by_cut: dict[str, Tensor] = {}
        self._laws = _LawTable(teacher.spec.num_tokens)
        self._tops: dict[bytes, TopLaw] = {}
        self._draws: dict[tuple[bytes, Stream, int | None, int], Tensor] = {}
        self._lock = threading.RLock()

    @property
    def spec(self) -> Spec:
        """The teacher's spec."""
        return self._teacher.spec

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
            raise TeacherError(
                f"{wanted} are needed here, and this teacher gives less; use a learner "
                "that needs less access, or a teacher that gives more"
            )

    def _charge(self, purpose: str, spent: Account) -> None:
        """Add to an account, or raise BudgetExhausted and add nothing."""
        self._budget.check(self.total() + spent)
        self._accounts[purpose] = self.account(purpose) + spent


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
        check_draws(count, first_draw)
        check_prefixes(self.spec, prefixes)
        return _complete(
            self._ledger,
            self.purpose,
            prefixes,
            count,
            stream or self.stream,
            max_tokens,
            first_draw,
        )


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
                answer = ledger._teacher.top_laws(missing)  # pyright: ignore[reportAttributeAccessIssue]
                masses = torch.cat([answer.log_probs, answer.log_rest[:, None]], 1)
                check_law(missing, masses)
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
                answer = ledger._teacher.laws(missing)  # pyright: ignore[reportAttributeAccessIssue]
                answer = answer.to("cpu", torch.float64)
                check_law(missing, answer)
                ledger._laws.add(missing.keys(), answer)
            return ledger._laws.find(keys)

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
    """The distinct prefixes that the cache lacks, charged; None where it has all."""
    first = {key: row for row, key in enumerate(keys) if key not in cache}
    ledger._charge(purpose, Account(cache_hits=len(keys) - len(first)))
    if not first:
        return None
    missing = prefixes.take(torch.tensor(list(first.values())))
    ledger._charge(
        purpose,
        Account(next_token_queries=len(first), tokens_sent=int(missing.lengths.sum())),
    )
    ledger._count_cuts(purpose, missing.lengths)
    return missing


def _complete(
    ledger: Ledger,
    purpose: str,
    prefixes: Prefixes,
    count: int,
    stream: Stream,
    max_tokens: int | None,
    first_draw: int,
) -> Completions:
    """Ask for each prefix's missing draws, grouped by how many are missing."""
    keys = prefixes.keys()
    wanted = range(first_draw, first_draw + count)
    with ledger._lock:
        cache = ledger._draws
        ask: dict[tuple[int, int], dict[bytes, int]] = {}
        for row, key in enumerate(keys):
            lacking = [d for d in wanted if (key, stream, max_tokens, d) not in cache]
            for start, stop in _runs(lacking):
                ask.setdefault((start, stop), {})[key] = row
        asked = sum((stop - start) * len(group) for (start, stop), group in ask.items())
        hits = count * len(keys) - asked
        ledger._charge(purpose, Account(cache_hits=hits))
        for (start, stop), group in ask.items():
            batch = prefixes.take(torch.tensor(list(group.values())))
            answer = _ask_draws(ledger, purpose, batch, stop - start, stream, max_tokens, start)
            for row, key in enumerate(group):
                for d in range(start, stop):
                    tokens = answer.tokens[row, d - start]
                    length = int(answer.lengths[row, d - start])
                    cache[key, stream, max_tokens, d] = tokens[:length].clone()
        found = [[cache[key, stream, max_tokens, d] for d in wanted] for key in keys]
    return _pack(found, count)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive runs of a sorted list, as half-open intervals."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _ask_draws(
    ledger: Ledger,
    purpose: str,
    prefixes: Prefixes,
    count: int,
    stream: Stream,
    max_tokens: int | None,
    first_draw: int,
) -> Completions:
    """Reserve the most that the draws can cost, ask, then charge what they did cost."""
    spec = ledger.spec
    limits = [sampling_limit(spec, max_tokens, t) for t in prefixes.lengths.tolist()]
    most = math.inf if None in limits else count * sum(x for x in limits if x is not None)
    sent = count * int(prefixes.lengths.sum())
    asked = Account(completions=count * len(limits), tokens_sent=sent)
    if ledger._budget.tokens is not None:
        if most == math.inf:
            raise BudgetExhausted(
                "a token budget cannot be kept on completions of unbounded length; say max_tokens"
            )
        ledger._budget.check(ledger.total() + asked + Account(tokens_received=int(most)))
    ledger._charge(purpose, asked)
    answer = ledger._teacher.complete(
        prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
    )
    ledger._charge(purpose, Account(tokens_received=int(answer.lengths.sum())))
    return answer


def _pack(found: list[list[Tensor]], count: int) -> Completions:
    lengths = torch.tensor([[len(t) for t in row] for row in found], dtype=torch.int64)
    lengths = lengths.reshape(len(found), count)
    width = int(lengths.max()) if lengths.numel() else 0
    tokens = torch.full((len(found), count, width), -1, dtype=torch.int64)
    for i, row in enumerate(found):
        for j, drawn in enumerate(row):
            tokens[i, j, : len(drawn)] = drawn
    return Completions(tokens, lengths)


def check_law(prefixes: Prefixes, laws: Float[Tensor, "batch token"]) -> None:
    """Refuse NaN, and laws whose mass is not one to 1e-6.

    Raises:
        TeacherError: naming the prefix and what came.
    """
    mass = laws.exp().sum(1)
    bad = ~((mass - 1).abs() <= 1e-6)  # NaN compares false, so it is caught too
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        came = "NaN" if bool(laws[row].isnan().any()) else f"a total of {float(mass[row]):.6g}"
        raise TeacherError(
            f"a next-token law must sum to 1, but after prefix {prefixes.rows()[row]} the "
            f"teacher's has {came}; check the teacher (are these natural-log probabilities?)"
        )
