"""A learner of deterministic machines: Angluin's L* with next-token laws for answers.

    state(x) = state(y)   where   P(. | x w) = P(. | y w) for every future w

Her table has histories for rows, futures for columns, and the law after history and future as
entry; distinct rows are states. Here few entries are asked: a tree of separating futures holds a
future at each inner node, and a history goes to the child that its laws along that future name, so
it is placed by about log(states) walks. A future that is impossible after a history is an answer.

    close    follow every token from every state; all that is not yet placed descends together
    agree    where the machine contradicts a law already asked, mend it; no fresh strings are needed
    check    fresh random words; the first law that differs is mended
    mend     binary search on the word: for some i, replacing w_1 .. w_i by its state's own history
             keeps the last law and replacing w_1 .. w_{i+1} does not. So w_{i+2} .. tells two
             histories of one leaf apart, and the leaf becomes an inner node: one more state

Every mending adds a state, so there are fewer of them than states. Unlike the exact learner's, the
cost follows the number of states, not the rank squared, and checks choose tokens evenly, so likely
strings have no more weight than others.

Sources: Angluin (1987); Rivest and Schapire (1993), "Inference of finite automata using homing
sequences", the binary search; Kearns and Vazirani (1994), the tree.
"""

import dataclasses
import enum
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int

from myna.errors import BudgetExhausted, InputError
from myna.learn.asked_tree import AskedTree
from myna.learn.state_tree import History, StateTree, TooManyStates
from myna.lowrank.machine import Machine, shortest_first
from myna.lowrank.model import LowRankModel
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes

_FIRST_WORDS = 16  # checked together; each later lot of a round is twice as large


class StatesOutcome(enum.Enum):
    """How learning ended."""

    VERIFIED = "verified"
    TOO_MANY_STATES = "too many states"
    BUDGET_EXHAUSTED = "budget exhausted"


@dataclasses.dataclass(frozen=True)
class StatesSettings:
    """What may be chosen.

    tolerance: laws that differ by no more, in each entry, are one; tokens less likely lead nowhere
    max_states: above so many there is no machine
    check_words: random words in a clean check, at least
    words_per_state: the same, for each state found
    walk: random tokens of a word, after its state's history
    confidence: of what the last check says, over all rounds together
    """

    tolerance: float = 1e-6
    max_states: int = 1000
    check_words: int = 200
    words_per_state: int = 20
    walk: int = 30
    confidence: float = 0.99

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if not 0 < self.tolerance < 0.5:
            raise InputError(f"the tolerance must lie between 0 and .5, got {self.tolerance}")
        if not 0 < self.confidence < 1:
            raise InputError(f"the confidence must lie between 0 and 1, got {self.confidence}")
        for name in ("max_states", "check_words", "words_per_state", "walk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class StatesReport:
    """What learning found and what it cost.

    outcome: how it ended
    reason: one sentence for people
    states: of the last machine; where there were too many, how many had been found
    futures: separating futures in the tree
    longest_future: its tokens
    rounds: machines that were checked on fresh words
    checked: fresh words in the last check
    accounts: what each purpose spent
    words: by purpose, see `myna.learn.asked_tree`
    seconds: wall-clock time
    """

    outcome: StatesOutcome
    reason: str
    states: int
    futures: int
    longest_future: int
    rounds: int
    checked: int
    accounts: dict[str, Account]
    words: dict[str, int]
    seconds: float


@dataclasses.dataclass(frozen=True)
class StatesResult:
    """A minimal machine and the report on it; no machine where there were too many states."""

    machine: Machine | None
    report: StatesReport

    @property
    def student(self) -> LowRankModel | None:
        """The machine as a copy, one coordinate a state."""
        return None if self.machine is None else self.machine.model()


@dataclasses.dataclass(frozen=True)
class StatesProgress:
    """Where learning stands, for whoever shows it.

    stage: "close" or "check"
    states: found so far
    queries: next-token queries spent
    """

    stage: str
    states: int
    queries: int


@dataclasses.dataclass
class _Run:
    """What a run has reached; the budget may end it anywhere."""

    machine: Machine | None = None
    rounds: int = 0
    checked: int = 0


def learn_states(
    ledger: Ledger,
    settings: StatesSettings,
    generator: torch.Generator,
    progress: Callable[[StatesProgress], None] = lambda _: None,
) -> StatesResult:
    """Learn the minimal deterministic machine of the ledger's teacher from its laws.

    generator: draws the words of the checks

    Raises:
        TeacherError: where the teacher does not show laws.
        InputError: a teacher with a horizon.
    """
    if ledger.spec.horizon is not None:
        raise InputError(
            f"states need a teacher without a horizon, and this one ends after {ledger.spec.horizon} "
            "tokens, so each position has its own; use `myna learn` and then `myna automaton`"
        )
    began, run = time.perf_counter(), _Run()
    asked = AskedTree(ledger, settings.tolerance)
    tree = StateTree(asked, settings.max_states)

    def tell(stage: str) -> None:
        spent = ledger.total().next_token_queries
        progress(StatesProgress(stage, len(tree.histories), spent))

    try:
        _rounds(asked, tree, settings, generator, run, tell)
        outcome, reason = StatesOutcome.VERIFIED, _certified(run, settings)
    except BudgetExhausted as stop:
        outcome = StatesOutcome.BUDGET_EXHAUSTED
        kept = "this is the last whole machine" if run.machine else "no machine was whole by then"
        reason = f"{stop}; {kept}"
    except TooManyStates:
        outcome, run.machine = StatesOutcome.TOO_MANY_STATES, None
        reason = (
            f"more than {settings.max_states:,} histories are told apart by their futures; raise "
            "the limit, or there is no finite machine, as for hidden Markov models with "
            "overlapping emissions"
        )
    report = StatesReport(
        outcome=outcome,
        reason=reason,
        states=run.machine.num_states if run.machine else len(tree.histories),
        futures=len(tree.futures),
        longest_future=max(map(len, tree.futures), default=0),
        rounds=run.rounds,
        checked=run.checked,
        accounts=ledger.accounts(),
        words=asked.words(),
        seconds=time.perf_counter() - began,
    )
    return StatesResult(run.machine, report)


def _rounds(
    asked: AskedTree,
    tree: StateTree,
    settings: StatesSettings,
    generator: torch.Generator,
    run: _Run,
    tell: Callable[[str], None],
) -> None:
    """Close, agree, check, until a check is clean."""
    while True:
        tell("close")
        tree.close()
        kinds, moves = tree.table()
        wrong = asked.first_difference(kinds, moves)
        if wrong is None:
            run.machine = _machine(asked, tree)
            run.rounds += 1
            tell("check")
            wrong, run.checked = _check(asked, tree, settings, generator)
        if wrong is None:
            return
        tree.split(*_separated(asked, tree, moves, wrong))


def _machine(asked: AskedTree, tree: StateTree) -> Machine:
    """The states found, in the order of their shortest histories."""
    kinds, moves = (torch.from_numpy(part) for part in tree.table())
    spec = dataclasses.replace(asked.spec, fingerprint="")
    return shortest_first(spec, asked.laws[kinds], moves)


def _separated(
    asked: AskedTree, tree: StateTree, moves: Int[np.ndarray, "state token"], word: History
) -> tuple[int, History]:
    """A leaf's state, and a future that tells its own history from another one in that leaf.

    word: the machine gives its last law wrong, and the laws before it right
    """
    states = [0]
    for token in word:
        states.append(int(moves[states[-1], token]))

    def last(i: int) -> int:
        """The last kind, with the first i tokens replaced by their state's own history."""
        replaced = (*tree.histories[states[i]], *word[i:])
        kinds = asked.follow([replaced], "learn")[0]
        return kinds[-1]

    truth = last(0)
    same, other = 0, len(word)
    while other - same > 1:
        middle = (same + other) // 2
        if last(middle) == truth:
            same = middle
        else:
            other = middle
    own, through = tree.histories[states[other]], (*tree.histories[states[same]], word[same])
    future = word[other:]
    pair = asked.follow([(*own, *future), (*through, *future)], "learn")
    tails = zip(pair[0][len(own) :], pair[1][len(through) :], strict=False)
    apart = next(n for n, (a, b) in enumerate(tails) if a != b)
    return states[other], future[:apart]


def _check(
    asked: AskedTree, tree: StateTree, settings: StatesSettings, generator: torch.Generator
) -> tuple[History | None, int]:
    """A shortest wrong prefix of the first lot that has one, and how many words were compared."""
    kinds, moves = tree.table()
    total = max(settings.check_words, settings.words_per_state * len(kinds))
    done, lot = 0, _FIRST_WORDS
    while done < total:
        lot = min(lot, total - done)
        words, expected = _random_words(tree, kinds, moves, lot, done, settings.walk, generator)
        places = asked.compare(words, expected, "check")
        done, lot = done + lot, 2 * lot
        if (places >= 0).any():
            row = int(np.where(places >= 0, places, np.iinfo(np.int64).max).argmin())
            return words.rows()[row][: places[row]], done
    return None, done


def _random_words(
    tree: StateTree,
    kinds: Int[np.ndarray, " state"],
    moves: Int[np.ndarray, "state token"],
    count: int,
    first: int,
    walk: int,
    generator: torch.Generator,
) -> tuple[Prefixes, Int[np.ndarray, "word place"]]:
    """Words number first, first + 1, ...: a state's history, then tokens drawn evenly.

    Even numbers start from the empty history, odd ones from a state drawn at random.
    With them come the kinds that the machine expects at each prefix, -1 beyond the end.
    """
    drawn = torch.randint(len(kinds), (count,), generator=generator).tolist()
    words = [list(tree.histories[s]) if n % 2 else [] for n, s in enumerate(drawn, start=first)]
    uniform = torch.rand((count, walk), generator=generator, dtype=torch.float64).tolist()
    able = [np.flatnonzero(row >= 0).tolist() for row in moves]
    expected = []
    for word, numbers in zip(words, uniform, strict=True):
        states = [0]
        for token in word:
            states.append(int(moves[states[-1], token]))
        for u in numbers:
            choices = able[states[-1]]
            if not choices:
                break
            word.append(choices[int(u * len(choices))])
            states.append(int(moves[states[-1], word[-1]]))
        expected.append(kinds[states])
    table = np.full((count, max(map(len, expected))), -1, dtype=np.int64)
    for row, line in zip(table, expected, strict=True):
        row[: len(line)] = line
    return Prefixes.of(words), table


def _certified(run: _Run, settings: StatesSettings) -> str:
    """P(clean) = (1 - e)^n where a share e of words is wrong; round r may err with 2^-r of delta."""
    delta = math.log(1 - settings.confidence) - run.rounds * math.log(2)
    bound = -math.expm1(delta / run.checked)
    return (
        f"all laws agreed along {run.checked:,} fresh words of evenly drawn tokens; with "
        f"{settings.confidence:.0%} confidence at most {bound:.1%} of such words have a law that does not"
    )
