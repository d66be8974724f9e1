"""The exact-rank learner in logit space: recovery, cost, refusals, and its command."""

import itertools
import json

import counting
import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import myna
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import InputError
from myna.logits.exact import learn_logits
from myna.logits.report import LogitOutcome, LogitSettings
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.copies import CopyTeacher
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher
from myna.teachers.zoo import LogitTwo, Parity, RandomIsan


def learn(teacher, budget=None, **settings):
    ledger = Ledger(teacher, Budget(queries=budget))
    return learn_logits(ledger, LogitSettings(**settings), torch.Generator().manual_seed(0))


def worst_score(teacher, student):
    """The largest difference of log-probabilities over all whole strings."""
    spec = teacher.spec
    rows = list(itertools.product(range(spec.num_tokens), repeat=spec.horizon))
    batch = strings([list(row) for row in rows])
    return float((teacher.score(batch) - student.score(batch)).abs().max())


FAMILIES = [
    RandomIsan(dim=3, symbols=3, horizon=6),
    RandomIsan(dim=8, symbols=3, horizon=6, seed=1),
    RandomIsan(dim=5, symbols=4, horizon=5, varying=False),
    Parity(bits=8, noise=0.1, seed=2),
    LogitTwo(length=9),
]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_networks_of_known_rank_are_recovered(family):
    teacher = family.teacher()
    found = learn(teacher)
    assert found.report.outcome is LogitOutcome.VERIFIED
    assert found.report.ranks == family.logit_ranks() == found.student.ranks
    assert worst_score(teacher, found.student) < 1e-9


def test_the_logit_rank_can_be_far_below_the_rank_of_probabilities():
    """Parity has one column of logits; a network with two dimensions is not low rank there."""
    assert max(Parity(bits=6).ranks()) == 2 and set(Parity(bits=6).logit_ranks()) == {1}
    found = learn(LogitTwo(length=13).teacher())
    assert max(found.report.ranks) == 2


@given(
    dim=st.integers(1, 4),
    symbols=st.integers(2, 4),
    horizon=st.integers(1, 5),
    stop=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_network_is_recovered(dim, symbols, horizon, stop, seed):
    """Gaussian matrices, no rotations; the last token may end a sequence."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    steps = tuple(IsanStep(normal(dim, symbols), normal(dim, symbols, dim)) for _ in range(horizon))
    spec = Spec(numbered(symbols, stop), symbols - 1 if stop else None, horizon, "unset")
    teacher = CopyTeacher(Isan.of(spec, normal(dim), steps))
    found = learn(teacher, verify_histories=100)
    assert found.report.outcome is LogitOutcome.VERIFIED
    assert max(found.report.ranks) <= dim
    drawn = teacher.sample(100, draw)
    gap = (teacher.score(drawn) - found.student.score(drawn)).abs().max()
    assert float(gap) < 1e-6


def test_every_query_is_counted():
    asked = counting.Counting(RandomIsan(dim=8, symbols=4, horizon=6).teacher())
    found = learn(asked)
    questions = asked.asked
    assert {kind for kind, _ in questions} == {"law"} and len(set(questions)) == len(questions)
    accounts = found.report.accounts
    assert set(accounts) == {"learn", "verify"}
    assert sum(a.next_token_queries for a in accounts.values()) == len(questions)
    assert sum(map(sum, found.report.queries_by_cut.values())) == len(questions)


def test_a_law_fills_all_columns_of_a_word():
    """Below the alphabet's dimension nothing but the children's laws is asked."""
    family = RandomIsan(dim=4)
    found = learn(family.teacher())
    children = sum(16 * rank for rank in family.logit_ranks()[:-1])
    assert found.report.accounts["learn"].next_token_queries == 1 + children


def test_the_budget_leaves_a_copy():
    teacher = RandomIsan(dim=4, symbols=4, horizon=6).teacher()
    for budget in (0, 1, 30, 70):
        found = learn(teacher, budget=budget)
        assert found.report.outcome is LogitOutcome.BUDGET_EXHAUSTED
        total = sum(a.next_token_queries for a in found.report.accounts.values())
        assert total <= budget
        laws = found.student.law(found.student.initial(3)).exp().sum(1)
        torch.testing.assert_close(laws, torch.ones(3).double())


def test_where_the_budget_ends_the_report_is_of_the_copy_that_is_left():
    """A later basis may be half built then, or the first one."""
    found = learn(LogitTwo(length=7).teacher(), 71, verify_histories=50, verify_strings=4)
    assert found.report.rounds == 1 and found.report.ranks == found.student.ranks
    teacher = RandomIsan(dim=5, symbols=4, horizon=9, varying=False).teacher()
    for budget in (9, 200):
        found = learn(teacher, budget, stationary=True, verify_histories=50, verify_strings=4)
        closed = found.report.rounds > 0
        assert found.report.ranks == (found.student.ranks if closed else ())


def test_too_high_a_rank_is_refused_with_evidence():
    found = learn(RandomIsan(dim=6, symbols=8, horizon=5).teacher(), max_rank=4)
    assert found.student is None and found.report.outcome is LogitOutcome.NOT_LOW_RANK
    refusal = found.report.refusal
    assert refusal.cut == 1 and refusal.at_least == 5 and len(refusal.singular_values) == 5
    assert "above the cap of 4" in found.report.reason


@pytest.mark.parametrize("seed", range(6))
def test_a_direction_that_only_a_rare_token_shows_is_found(seed):
    """Rank O at the cut after one token, of which O - 1 show in next-token logits."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rare = seed % 4
    steps = tuple(IsanStep(normal(4, 4), 0.7 * normal(4, 4, 4)) for _ in range(5))
    first = normal(4)
    steps[0].logits[:, rare] -= 30 * first[:, None][:, 0] / first.square().sum()
    teacher = CopyTeacher(Isan.of(Spec(numbered(4), None, 5, "unset"), first, steps))
    assert float(teacher.laws(Prefixes.of([[]]))[0, rare]) < -20
    found = learn(teacher, verify_histories=50)
    assert found.report.ranks[1] == 4
    assert worst_score(teacher, found.student) < 1e-6


def test_ranks_with_noise_are_counted_on_one_scale():
    """Noise over 96 rows has singular values above the tolerance, and distances below it."""
    teacher = naive.Opaque(RandomIsan(dim=6, symbols=16, horizon=4).teacher(), "laws")
    exact = teacher.laws

    def noisy(prefixes):
        noise = []
        for row in prefixes.rows():
            draw = torch.Generator().manual_seed(hash(row) % 2**62)
            noise.append(torch.randn(16, generator=draw, dtype=torch.float64))
        return (exact(prefixes) + 1e-6 * torch.stack(noise)).log_softmax(1)

    teacher.laws = noisy
    found = learn(teacher, tolerance=8e-6, mismatch=1e-2, verify_histories=50, verify_strings=4)
    assert found.report.ranks == (1, 6, 6, 6)
    assert [cut.next_token_rank for cut in found.report.cuts] == [1, 6, 6, 6]


def test_one_basis_for_all_cuts():
    family = RandomIsan(dim=5, symbols=4, horizon=9, varying=False)
    teacher = family.teacher()
    found = learn(teacher, stationary=True)
    assert found.report.outcome is LogitOutcome.VERIFIED and found.report.ranks == (5,)
    drawn = teacher.sample(200, torch.Generator().manual_seed(1))
    gap = (teacher.score(drawn) - found.student.score(drawn)).abs().max()
    assert float(gap) < 1e-9


@pytest.mark.parametrize("seed", [1, 5, 8])
def test_one_basis_is_found_among_histories_with_room_for_children(seed):
    """Histories of two tokens and words of two have all six dimensions; longer ones do not fit."""
    teacher = RandomIsan(dim=6, symbols=3, horizon=6, varying=False, seed=seed).teacher()
    found = learn(teacher, stationary=True, verify_histories=200)
    assert found.report.outcome is LogitOutcome.VERIFIED and found.report.ranks == (6,)
    assert worst_score(teacher, found.student) < 1e-9


def test_a_horizon_too_short_for_one_basis_is_refused():
    for horizon in (1, 2):
        teacher = RandomIsan(dim=6, symbols=8, horizon=horizon, varying=False).teacher()
        needed = f"histories of {horizon} tokens followed by futures of 1, and the horizon"
        with pytest.raises(InputError, match=needed):
            learn(teacher, stationary=True)


def test_a_false_claim_of_stationarity_is_caught():
    found = learn(RandomIsan(dim=3, symbols=4, horizon=9).teacher(), stationary=True, max_rank=8)
    assert found.report.outcome is not LogitOutcome.VERIFIED


def test_without_a_horizon_one_basis_serves():
    spec = Spec(numbered(3), None, None, "unset")
    step = RandomIsan(dim=2, symbols=3, varying=False).teacher().student.steps
    teacher = CopyTeacher(Isan.of(spec, torch.ones(2).double(), step))
    found = learn(teacher, max_tokens=40)
    assert found.report.stationary and found.report.outcome is LogitOutcome.VERIFIED
    with pytest.raises(InputError, match="learn it as stationary"):
        learn(teacher, stationary=False)


def test_laws_with_zeros_are_refused():
    teacher = FunctionTeacher(lambda _: [1.0, 0.0], ("a", "b"), horizon=3)
    with pytest.raises(InputError, match="probability zero"):
        learn(teacher)


def test_settings_that_learn_nothing_are_refused():
    for wrong in ({"tolerance": 0.0}, {"spanner_bound": 1.0}, {"max_rank": 0}, {"mismatch": 2.0}):
        with pytest.raises(InputError):
            LogitSettings(**wrong)


def test_the_command_learns_saves_and_certifies(tmp_path):
    uri = "zoo:isan?dim=3&symbols=3&horizon=6"
    done = myna("learn", uri, "-o", tmp_path / "s", "--space", "logits", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["space"] == "logits" and record["outcome"] == "verified"
    assert record["logit_ranks"] == [1, 3, 3, 3, 3, 2]
    assert record["queries"]["learn"]["next_token_queries"] == 58
    drawn = open_teacher(uri).sample(50, torch.Generator().manual_seed(0))
    copy = open_teacher(f"student:{tmp_path / 's'}")
    torch.testing.assert_close(copy.score(drawn), open_teacher(uri).score(drawn))
    info = json.loads(myna("info", tmp_path / "s", "--json").stdout)
    assert info["ranks"] == [1, 3, 3, 3, 3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--access", "samples"], "needs --access laws"),
        (["--structure", "test"], "needs --space probabilities"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    args = ["learn", "zoo:isan", "-o", str(tmp_path / "s"), "--space", "logits", *options]
    done = CliRunner().invoke(app, args)
    assert isinstance(done.exception, InputError) and message in str(done.exception)
