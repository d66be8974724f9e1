"""The learner of machines: minimal, exact, counted; its refusals; its command."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from myna.app.cli import app
from myna.app.machine_picture import check_picture
from myna.errors import InputError
from myna.learn.asked_tree import AskedTree
from myna.learn.states import StatesOutcome, StatesResult, StatesSettings, learn_states
from myna.lowrank.machine import Machine, shortest_first
from myna.spec import Spec
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.machine import MachineTeacher
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def learn(teacher, **chosen) -> StatesResult:
    return learn_states(Ledger(teacher), StatesSettings(**chosen), torch.Generator().manual_seed(0))


def machine_of(result: StatesResult) -> Machine:
    assert result.report.outcome is StatesOutcome.VERIFIED, result.report.reason
    assert result.machine is not None
    return result.machine


def minimal_count(laws: list[list[float]], moves: list[list[int]]) -> int:
    """Classes of reachable states that some word tells apart: pairs marked until nothing changes."""
    reached = [0]
    for i in reached:
        reached += sorted({j for j in moves[i] if j >= 0 and j not in reached})
    pairs = list(itertools.combinations(sorted(reached), 2))
    apart = {(i, j) for i, j in pairs if laws[i] != laws[j]}
    while True:
        more = {
            (i, j)
            for i, j in pairs
            if (i, j) not in apart
            and any(
                tuple(sorted(to)) in apart
                for to in zip(moves[i], moves[j], strict=True)
                if min(to) >= 0
            )
        }
        if not more:
            break
        apart |= more
    kept: list[int] = []
    for i in sorted(reached):
        if all(tuple(sorted((i, j))) in apart for j in kept):
            kept.append(i)
    return len(kept)


def law_after(laws, moves, word) -> tuple[float, ...] | None:
    """By following the tables; None after a word that cannot come."""
    state = 0
    for token in word:
        if moves[state][token] < 0:
            return None
        state = moves[state][token]
    return tuple(laws[state])


@st.composite
def machines(draw):
    """Up to 8 states, 2 or 3 tokens, laws from two values, tokens that cannot come, a stop or none."""
    states, tokens = draw(st.integers(1, 8)), draw(st.integers(2, 3))
    stop = tokens - 1 if draw(st.booleans()) else None
    impossible = draw(st.booleans())
    values = [[1 / tokens] * tokens, [0.7] + [0.3 / (tokens - 1)] * (tokens - 1)]
    if impossible:
        values[1] = [0.0] + [1 / (tokens - 1)] * (tokens - 1)
    laws = [values[draw(st.integers(0, 1))] for _ in range(states)]
    moves = [
        [
            -1 if law[o] == 0 or o == stop else draw(st.integers(0, states - 1))
            for o in range(tokens)
        ]
        for law in laws
    ]
    return laws, moves, stop


def teacher_of(laws, moves, stop=None) -> MachineTeacher:
    spec = Spec(tuple("abcdefgh"[: len(laws[0])]), stop, None, "")
    table = torch.tensor(laws, dtype=torch.float64)
    return MachineTeacher(Machine(spec, table, torch.tensor(moves), ((),) * len(laws), len(laws)))


@given(machines())
@settings(max_examples=10, derandomize=True)
def test_the_minimal_machine_with_equal_laws(tables):
    laws, moves, stop = tables
    found = machine_of(learn(teacher_of(laws, moves, stop), check_words=200, walk=16))
    assert found.num_states == minimal_count(laws, moves)
    mine = found.laws.tolist(), found.moves.tolist()
    for length in range(7):
        for word in itertools.product(range(len(laws[0])), repeat=length):
            truth, copy = law_after(laws, moves, word), law_after(*mine, word)
            assert (truth is None) == (copy is None)
            assert truth is None or copy == pytest.approx(truth, abs=1e-9)


def test_registers_state_by_state():
    teacher = open_teacher("zoo:registers?k=3")
    found = machine_of(learn(teacher))
    assert found.num_states == 10 and found.moves.shape == (10, 9)
    drawn = teacher.sample(300, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.model().score(drawn), teacher.score(drawn))
    # histories are the shortest: at most all three flips
    assert max(map(len, found.histories)) == 3
    for state, history in enumerate(found.histories):
        assert law_after(found.laws.tolist(), found.moves.tolist(), history) == tuple(
            found.laws[state].tolist()
        )


def labels(seed: int, states: int = 12) -> tuple[list[list[float]], list[list[int]]]:
    """A uniform letter, then its accept bit, for ever: letter states, then bit states."""
    random = np.random.default_rng(seed)
    moves = random.integers(0, states, (states, 2))
    bits = random.integers(0, 2, states)
    laws = [[0.5, 0.5, 0.0, 0.0] for _ in range(states)]
    laws += [[0.0, 0.0, float(1 - bit), float(bit)] for bit in bits]
    table = [[int(states + j) for j in row] + [-1, -1] for row in moves]
    table += [[-1, -1, *([i, -1] if bit == 0 else [-1, i])] for i, bit in enumerate(bits)]
    return laws, table


@pytest.mark.parametrize("seed", range(6))
def test_label_models_give_the_minimal_automaton(seed):
    laws, moves = labels(seed)
    found = machine_of(learn(teacher_of(laws, moves), check_words=600))
    assert found.num_states == minimal_count(laws, moves)


LOCK = (0, 0, 1, 0, 1, 1)


def lock_law(prefix: tuple[int, ...]) -> list[float]:
    """Another law wherever the last six tokens are the code: nothing shorter shows anything."""
    return [0.9, 0.1] if prefix[-6:] == LOCK else [0.5, 0.5]


def test_a_lock_needs_fresh_words_and_several_rounds():
    """Seven states; closing alone sees one law, so each state comes from a counterexample."""
    result = learn(FunctionTeacher(lock_law, ("a", "b")))
    found, report = machine_of(result), result.report
    assert found.num_states == 7
    assert report.rounds >= 2 and report.futures >= 4 and report.longest_future >= 4
    for length in range(13):
        word = torch.randint(2, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        for full in (tuple(word), (*word, *LOCK)):
            law = law_after(found.laws.tolist(), found.moves.tolist(), full)
            assert law == pytest.approx(lock_law(full), abs=1e-9)


def test_a_small_check_says_how_little_it_certifies():
    """One word of one token cannot find the lock; the reason then claims next to nothing."""
    teacher = FunctionTeacher(lock_law, ("a", "b"))
    few = learn(teacher, check_words=1, words_per_state=1, walk=1).report
    assert few.states == 1 and few.checked == 1 and "at most 99.5%" in few.reason
    many = learn(teacher, check_words=2000).report
    bound = 1 - (0.01 / 2**many.rounds) ** (1 / 2000)
    assert many.states == 7 and f"at most {bound:.1%}" in many.reason


class Opaque:
    """Nothing but a spec and laws, every request written down with who paid."""

    def __init__(self, teacher):
        self.teacher, self.ledger, self.asked, self.k = teacher, None, [], teacher.k

    @property
    def spec(self):
        return self.teacher.spec

    def complete(self, *_, **__):
        raise AssertionError("no completions are needed")

    top_laws = complete

    def laws(self, prefixes):
        assert self.ledger is not None
        before = {"learn": 0, "check": 0}
        for purpose, _ in self.asked:
            before[purpose] += 1
        accounts = self.ledger.accounts()
        (payer,) = (
            name for name, account in accounts.items() if account.next_token_queries > before[name]
        )
        self.asked += [(payer, row) for row in prefixes.rows()]
        return self.teacher.laws(prefixes)


def test_queries_and_words_are_those_that_reach_the_teacher():
    teacher = Opaque(open_teacher("zoo:registers?k=3"))
    teacher.ledger = ledger = Ledger(teacher)
    result = learn_states(ledger, StatesSettings(), torch.Generator().manual_seed(2))
    assert machine_of(result).num_states == 10
    report = result.report
    assert report.accounts == ledger.accounts()
    assert len({row for _, row in teacher.asked}) == len(teacher.asked)  # nothing twice
    for purpose in ("learn", "check"):
        rows = {row for payer, row in teacher.asked if payer == purpose}
        assert report.accounts[purpose].next_token_queries == len(rows)
        inside = {row[:-1] for row in rows if row}
        assert report.words[purpose] == len(rows - inside)
    assert report.words["check"] >= report.checked


def test_learning_costs_less_than_all_pairs():
    """Four registers: each move is placed by about log(states) laws, not by one a future."""
    report = learn(open_teacher("zoo:registers?k=4")).report
    assert report.states == 18
    moves = 16 * 8 + 2
    assert report.accounts["learn"].next_token_queries < moves * math.ceil(math.log2(18)) * 1.2
    assert report.futures > math.ceil(math.log2(18)) * 1.2


def test_laws_within_the_tolerance_are_one():
    def noisy(prefix):
        p = lock_law(prefix)[0] + 1e-8 * math.sin(sum((i + 1) * t for i, t in enumerate(prefix)))
        return [p, 1 - p]

    assert machine_of(learn(FunctionTeacher(noisy, ("a", "b")))).num_states == 7
    split = learn(FunctionTeacher(noisy, ("a", "b")), tolerance=1e-10, max_states=40)
    assert split.report.outcome is StatesOutcome.TOO_MANY_STATES


def test_too_many_states_are_refused():
    def counting(prefix):
        return [1 / (2 + sum(prefix)), 1 - 1 / (2 + sum(prefix))]

    result = learn(FunctionTeacher(counting, ("a", "b")), max_states=9)
    assert result.machine is None and result.student is None
    assert result.report.outcome is StatesOutcome.TOO_MANY_STATES
    assert result.report.states == 9 and "more than 9" in result.report.reason
    assert machine_of(learn(open_teacher("zoo:registers?k=3"), max_states=10)).num_states == 10
    one_less = learn(open_teacher("zoo:registers?k=3"), max_states=9)
    assert one_less.report.outcome is StatesOutcome.TOO_MANY_STATES


def test_a_horizon_is_refused():
    with pytest.raises(InputError, match=r"without a horizon.*ends after 5 .*myna automaton"):
        learn(open_teacher("zoo:parity?bits=4"))


@pytest.mark.parametrize(("queries", "states"), [(1, None), (40, 2), (700, 10)])
def test_the_budget_holds(queries, states):
    ledger = Ledger(open_teacher("zoo:registers?k=3"), Budget(queries=queries))
    result = learn_states(ledger, StatesSettings(), torch.Generator().manual_seed(0))
    assert result.report.outcome is StatesOutcome.BUDGET_EXHAUSTED
    assert ledger.total().next_token_queries <= queries
    assert (result.machine.num_states if result.machine else None) == states
    assert ("no machine was whole" in result.report.reason) == (states is None)


@pytest.mark.parametrize(
    "chosen",
    [
        {"tolerance": 0.0},
        {"tolerance": 0.5},
        {"confidence": 1.0},
        {"max_states": 0},
        {"check_words": 0},
        {"words_per_state": 0},
        {"walk": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(chosen):
    with pytest.raises(InputError, match=next(iter(chosen))):
        StatesSettings(**chosen)


def test_a_string_that_only_stops():
    """One state, no token leads anywhere: there is nothing to walk."""
    found = machine_of(learn(FunctionTeacher(lambda _: [0.0, 1.0], ("a", "stop"), stop=1)))
    assert found.num_states == 1 and found.moves.tolist() == [[-1, -1]]


def test_the_tree_of_what_was_asked():
    """Impossible tokens end a walk; a wrong machine is contradicted by its shortest wrong prefix."""
    laws = [[0.5, 0.5, 0.0], [0.2, 0.0, 0.8]]
    moves = [[0, 1, -1], [1, -1, 0]]
    ledger = Ledger(teacher_of(laws, moves))
    asked = AskedTree(ledger, 1e-6)
    assert asked.follow([(0, 1, 1, 0), (1, 2), ()], "learn") == [(0, 0, 1, -1), (0, 1, 0), (0,)]
    assert ledger.account("learn").next_token_queries == 5
    assert asked.words() == {"learn": 2}
    assert asked.first_difference(np.array([0, 1]), np.array(moves)) is None
    # b is said to stay in the first state
    wrong = np.array([[0, 0, -1], [1, -1, 0]])
    assert asked.first_difference(np.array([0, 1]), wrong) == (1,)
    words = Prefixes.of([(0, 0, 0), (0, 1, 2)])
    expected = np.array([[0, 0, 0, 0], [0, 0, 0, 0]])
    assert asked.compare(words, expected, "check").tolist() == [-1, 2]
    # (0, 0), (0, 0, 0) are new; (0, 1, 2) lies beyond the difference
    assert ledger.account("check").next_token_queries == 2
    assert asked.words() == {"learn": 2, "check": 1}


def test_shortest_first_numbers_by_histories():
    laws = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    spec = Spec(("a", "b"), None, None, "")
    found = shortest_first(spec, laws, torch.tensor([[2, 0], [1, 1], [0, 1]]))
    assert found.histories == ((), (0,), (0, 1))
    assert found.moves.tolist() == [[1, 0], [0, 2], [2, 2]]
    assert torch.equal(found.laws, laws[[0, 2, 1]])


def test_machine_teachers_refuse_what_is_no_machine():
    with pytest.raises(InputError, match="leads nowhere"):
        teacher_of([[0.5, 0.5]], [[0, -1]])
    with pytest.raises(InputError, match="laws"):
        teacher_of([[0.5, 0.6]], [[0, 0]])
    teacher = teacher_of([[1.0, 0.0]], [[0, -1]])
    with pytest.raises(InputError, match="probability zero"):
        teacher.laws(Prefixes.of([[0, 1]]))


def test_the_command(tmp_path):
    def myna(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    uri, out = "zoo:registers?k=2", tmp_path / "m"
    command = ["learn", uri, "-o", out, "--learner", "states"]
    done = myna(*command, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["learner"] == "states" and record["states"] == 6
    assert record["student"] == str(out) and set(record["words"]) == {"learn", "check"}
    assert record["queries"]["learn"]["next_token_queries"] >= record["words"]["learn"]
    read = json.loads(myna("automaton", out, "--json").stdout)
    assert read["states"] == 6 and read["rank"] == 6
    shown = myna(*command, "--overwrite", "--verify", 50, "--max-tokens", 5)
    assert shown.exit_code == 0 and "6, told apart by" in shown.stdout
    capped = myna(*command, "--overwrite", "--max-rank", 3)
    assert capped.exit_code == 1 and "too many states" in capped.stdout
    for more, words in (
        (["--mismatch", "1e-3"], "belongs to other learners"),
        (["--space", "logits"], "leave --space logits out"),
        (["--structure", "time-varying"], "one machine for all cuts"),
        (["--epochs", "3"], "belongs to --learner fitted"),
    ):
        refused = myna(*command, "--overwrite", *more)
        assert isinstance(refused.exception, InputError) and words in str(refused.exception)


def test_the_picture(tmp_path):
    def myna(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    out = tmp_path / "m"
    assert myna("learn", "zoo:registers?k=2", "-o", out, "--learner", "states").exit_code == 0
    done = myna("automaton", out, "--picture", tmp_path / "drawn.png", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["picture"].endswith("drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "drawn.html").read_text()
    for history in ("flip0 flip1", "flip0 read0", "(empty)"):
        assert f'"history": "{history}"' in page
    refused = myna("automaton", out, "--picture", tmp_path / "drawn.pdf")
    assert "ends in .png or .html" in str(refused.exception)
    spec = Spec(("a",), None, None, "")
    for count in (60, 61):
        ring = torch.arange(1, count + 1)[:, None] % count
        laws = torch.ones((count, 1), dtype=torch.float64)
        machine = Machine(spec, laws, ring, tuple((0,) * i for i in range(count)), count)
        if count == 60:
            check_picture(tmp_path / "ring.png", machine)
        else:
            with pytest.raises(InputError, match=r"up to 60 states.*61.*--dot"):
                check_picture(tmp_path / "ring.png", machine)
