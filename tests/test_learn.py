import dataclasses

import catalogue
import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError, TeacherError
from myna.evaluate.distance import enumerate_distance
from myna.learn.exact import learn_exact, learn_testing_stationarity
from myna.learn.report import Claim, ExactSettings, Outcome, Structure, Verification
from myna.learn.varying import TimeVarying
from myna.learn.verify import Verifier
from myna.lowrank.student import strings
from myna.teachers.automaton import Automaton
from myna.teachers.copies import CopyTeacher
from myna.teachers.function import FunctionTeacher
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.uri import open_teacher
from myna.teachers.zoo import Copy, Parity

FINITE = [uri for uri in catalogue.ZOO if "registers" not in uri]


def seeded():
    return torch.Generator().manual_seed(0)


def learn(teacher, budget=None, **settings):
    ledger = Ledger(teacher, budget)
    return learn_exact(ledger, ExactSettings(**settings), seeded()), ledger


def variation(teacher, student):
    return enumerate_distance(Ledger(teacher).laws("check"), student).total_variation


@pytest.mark.parametrize("uri", FINITE)
def test_exact_recovery_through_queries_alone(uri):
    teacher = open_teacher(uri)
    result, _ = learn(naive.Opaque(teacher, "laws"), verify_histories=2000)
    assert result.report.outcome is Outcome.VERIFIED
    assert variation(teacher, result.student) < (1e-8 if "logit2" in uri else 1e-12)


@pytest.mark.parametrize("uri", [u for u in FINITE if "logit2" not in u])
def test_ranks_are_the_hankel_ranks(uri):
    teacher = open_teacher(uri)
    result, _ = learn(teacher, verify_histories=3000)
    expected = [
        naive.numerical_rank(naive.hankel_block(teacher, t)) for t in range(teacher.spec.horizon)
    ]
    assert list(result.report.ranks) == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_parity_has_rank_two_between_secret_and_label(bits):
    family = Parity(bits=bits, seed=7)
    result, ledger = learn(family.teacher())
    assert result.report.ranks == family.ranks()
    assert variation(family.teacher(), result.student) < 1e-13
    assert ledger.account("learn").next_token_queries < 2**bits


@pytest.mark.parametrize("k", [3, 5, 7])
def test_registers_have_few_dimensions_and_many_rows(k):
    teacher = open_teacher(f"zoo:registers?k={k}")
    result, _ = learn(teacher, verify_histories=4000)
    assert result.report.ranks == (k + 3,)
    drawn = teacher.sample(500, seeded())
    torch.testing.assert_close(result.student.score(drawn), teacher.score(drawn), rtol=0, atol=1e-9)


@given(
    st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4), st.integers(2, 6), st.booleans()
)
def test_random_hmms_are_learned(seed, states, symbols, horizon, sparse):
    random = torch.Generator().manual_seed(seed)

    def rows(*shape):
        weights = torch.rand(shape, dtype=torch.float64, generator=random)
        if sparse:
            weights = weights * (torch.rand(shape, generator=random) > 0.4)
            weights[..., 0] += 0.1
        return weights / weights.sum(-1, keepdim=True)

    teacher = Hmm(rows(states), rows(1, states, states), rows(1, states, symbols), horizon=horizon)
    result, _ = learn(teacher, verify_histories=2000)
    assert result.report.outcome is Outcome.VERIFIED
    assert max(result.report.ranks) <= states
    assert variation(teacher, result.student) < 1e-6


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_random_automata_are_learned(seed, states, letters):
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand((states, letters * states + 1), dtype=torch.float64, generator=random)
    weights = weights * (torch.rand(weights.shape, generator=random) > 0.3)
    weights[:, -1] += 0.3
    weights = weights / weights.sum(1, keepdim=True)
    moves = weights[:, :-1].reshape(states, letters, states).transpose(0, 1).contiguous()
    start = torch.zeros(states, dtype=torch.float64)
    start[0] = 1.0
    teacher = Automaton(start, moves, weights[:, -1].contiguous())
    result, _ = learn(teacher, verify_histories=3000)
    assert result.report.outcome is Outcome.VERIFIED
    assert result.report.ranks[0] <= states
    fresh = teacher.sample(200, torch.Generator().manual_seed(seed + 1))
    gap = (teacher.score(fresh) - result.student.score(fresh)).abs().max()
    assert float(gap) < 1e-4


def test_copy_of_a_copy():
    teacher = open_teacher("zoo:hmm?states=4&symbols=3&horizon=6")
    first, _ = learn(teacher)
    second, _ = learn(CopyTeacher(first.student))
    assert second.report.ranks == first.report.ranks
    assert variation(teacher, second.student) < 1e-12
    assert second.student.spec.same_language(teacher.spec)


def test_same_seed_same_copy():
    copies = [learn(open_teacher(catalogue.ZOO[1]))[0].student for _ in range(2)]
    assert copies[0].spec.fingerprint == copies[1].spec.fingerprint


def test_refusal_above_the_cap():
    family = Copy(n=5, k=2)
    assert (
        learn(family.teacher(), max_rank=32, verify_histories=6000)[0].report.ranks
        == family.ranks()
    )
    result, _ = learn(family.teacher(), max_rank=31, verify_histories=6000)
    assert result.student is None
    assert result.report.outcome is Outcome.NOT_LOW_RANK
    assert result.report.refusal.cut == 5
    assert result.report.refusal.at_least == 32
    assert min(result.report.refusal.singular_values) > 1e-6
    assert "rank is at least 32" in result.report.reason


def test_a_huge_copy_model_is_refused_early():
    result, ledger = learn(Copy(n=30, k=2).teacher(), max_rank=8)
    assert result.report.outcome is Outcome.NOT_LOW_RANK
    assert ledger.total().next_token_queries < 50_000


@pytest.mark.parametrize("queries", [0, 1, 7, 60, 200, 600])
def test_a_budget_is_kept_and_gives_the_best_copy_so_far(queries):
    teacher = Parity(bits=16, seed=7).teacher()
    result, ledger = learn(teacher, Budget(queries=queries))
    assert ledger.total().next_token_queries <= queries
    assert result.report.outcome is Outcome.BUDGET_EXHAUSTED
    assert f"budget is {queries:,}" in result.report.reason
    drawn = result.student.sample(10, seeded())
    assert drawn.lengths.tolist() == [17] * 10


def test_where_the_budget_ends_the_report_is_of_the_copy_that_is_left():
    """A later basis may be half built then, or the first one."""
    few = {"verify_histories": 50, "verify_strings": 4}
    result, _ = learn(Parity(bits=5).teacher(), Budget(queries=48), **few)
    assert result.report.rounds == 1 and result.report.ranks == result.student.ranks
    teacher = open_teacher("zoo:hmm?states=4&symbols=4&horizon=8")
    for queries in (5, 60):
        result, _ = learn(teacher, Budget(queries=queries), structure=Structure.STATIONARY, **few)
        closed = result.report.rounds > 0
        assert result.report.ranks == (result.student.ranks if closed else ())


@pytest.mark.parametrize("queries", [0, 1, 3, 9, 60])
def test_a_stationary_budget_is_kept_too(queries):
    teacher = open_teacher("zoo:registers?k=3")
    result, ledger = learn(teacher, Budget(queries=queries))
    assert ledger.total().next_token_queries <= queries
    assert result.report.outcome is Outcome.BUDGET_EXHAUSTED
    assert len(result.student.sample(10, seeded(), 20).lengths) == 10


def test_structures_agree_on_a_stationary_teacher():
    teacher = open_teacher("zoo:hmm?states=3&symbols=4&horizon=8")
    varying, _ = learn(teacher, structure=Structure.TIME_VARYING)
    stationary, _ = learn(teacher, structure=Structure.STATIONARY)
    assert stationary.report.stationarity is Claim.CLAIMED
    assert len(stationary.student.steps) == 1
    fresh = teacher.sample(100, seeded())
    torch.testing.assert_close(
        varying.student.score(fresh), stationary.student.score(fresh), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("states", "symbols", "seed"), [(4, 2, 0), (4, 2, 1), (4, 2, 2), (6, 3, 2), (5, 2, 1)]
)
def test_one_basis_is_found_among_histories_with_room_for_children(states, symbols, seed):
    """Short histories have all dimensions; children of longer ones would pass the horizon."""
    teacher = open_teacher(f"zoo:hmm?states={states}&symbols={symbols}&horizon=6&seed={seed}")
    result, _ = learn(teacher, structure=Structure.STATIONARY)
    assert result.report.outcome is Outcome.VERIFIED and result.report.ranks == (states,)
    assert variation(teacher, result.student) < 1e-10


def test_a_horizon_too_short_for_one_basis_is_refused():
    teacher = open_teacher("zoo:hmm?states=4&symbols=2&horizon=4")
    with pytest.raises(InputError, match="histories of 3 tokens followed by futures of 2, and"):
        learn(teacher, structure=Structure.STATIONARY)


def test_stationarity_is_tested_and_reported():
    settings = ExactSettings(max_rank=20)
    still = open_teacher("zoo:hmm?states=3&symbols=4&horizon=8")
    result = learn_testing_stationarity(Ledger(still), settings, seeded())
    assert result.report.stationarity is Claim.TESTED
    moving = open_teacher("zoo:hmm?states=3&symbols=4&horizon=8&varying=true")
    result = learn_testing_stationarity(Ledger(moving), settings, seeded())
    assert result.report.stationarity is Claim.REJECTED
    assert result.report.outcome is Outcome.VERIFIED
    assert variation(moving, result.student) < 1e-10


def test_time_varying_needs_a_horizon():
    with pytest.raises(InputError, match="learn it as stationary"):
        learn(open_teacher("zoo:registers"), structure=Structure.TIME_VARYING)


def test_laws_are_needed_and_said():
    with pytest.raises(TeacherError, match="whole next-token laws"):
        learn(as_samples(open_teacher(catalogue.ZOO[0])))


@pytest.mark.parametrize(
    ("law", "message"), [([0.5, float("nan")], "NaN"), ([0.5, 0.6], "a total of 1.1")]
)
def test_teachers_that_give_no_law_are_refused(law, message):
    teacher = FunctionTeacher(lambda _: law, ("a", "b"), horizon=3)
    with pytest.raises(TeacherError, match=f"after prefix \\(\\).*{message}|{message}"):
        learn(teacher)


def test_a_function_of_wrong_length_is_refused():
    teacher = FunctionTeacher(lambda _: [1.0], ("a", "b"), horizon=3)
    with pytest.raises(TeacherError, match="must return 2 probabilities"):
        learn(teacher)


def test_verification_sees_a_wrong_copy():
    """The check can fail: a copy made from one-token futures alone is caught."""
    ledger = Ledger(Parity(bits=6, seed=7).teacher())
    settings = ExactSettings()
    naive_copy = TimeVarying(ledger.laws("learn"), settings).close()
    check = Verifier(ledger.laws("verify"), settings, seeded()).check(naive_copy)
    assert not check.verification.clean
    assert check.verification.worst > 0.5
    assert check.verification.bad_string_bound() == 1.0
    assert all(example.position == 6 for example in check.counterexamples)


def test_what_a_clean_check_certifies():
    """(1 - b)^n = 1 - confidence at the bound."""
    clean = Verification(100, 100, 1000, 1e-12, clean=True)
    assert (1 - clean.bad_string_bound(0.99)) ** 100 == pytest.approx(0.01)


def test_bases_are_spanners():
    """Every change of basis has coefficients of at most C."""
    result, _ = learn(open_teacher("zoo:hmm?states=5&symbols=4&horizon=6"), spanner_bound=1.5)
    changes = [step.change for step in result.student.steps if step.change.numel()]
    assert changes and max(float(change.abs().max()) for change in changes) <= 1.5 + 1e-9


def test_settings_are_checked():
    with pytest.raises(InputError, match="0 < tolerance"):
        ExactSettings(tolerance=0.0)
    with pytest.raises(InputError, match="max_rank must be at least 1"):
        ExactSettings(max_rank=0)
    with pytest.raises(InputError, match="spanner bound"):
        dataclasses.replace(ExactSettings(), spanner_bound=1.0)


def test_a_process_is_learned_and_scored():
    """Neither stop nor horizon: laws alone define it."""

    def law(prefix):
        return [0.9, 0.1] if sum(prefix) % 2 else [0.2, 0.8]

    teacher = FunctionTeacher(law, ("a", "b"))
    result, _ = learn(teacher, max_tokens=20)
    assert result.report.ranks == (2,)
    rows = [[0, 1, 1, 0, 1], [1, 1, 1]]
    expected = torch.tensor([naive.chain_rule(teacher, r) for r in rows], dtype=torch.float64)
    torch.testing.assert_close(result.student.score(strings(rows)), expected, rtol=0, atol=1e-12)
