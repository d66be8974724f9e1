"""Logits from completions: the stated cost gives the stated error, and a copy can be learned."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import BudgetExhausted, InputError
from myna.logits.centred import centred
from myna.logits.estimated import EstimatedLaws, completions_needed, error_of, floor_of
from myna.logits.exact import learn_logits
from myna.logits.report import LogitOutcome, LogitSettings
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.prefixes import Prefixes
from myna.teachers.zoo import Parity, RandomIsan


@given(
    largest=st.floats(0, 4),
    tokens=st.integers(2, 1000),
    error=st.floats(1e-3, 5),
    failure=st.floats(1e-9, 0.5),
)
def test_cost_and_error_are_inverse(largest, tokens, error, failure):
    n = completions_needed(largest, tokens, error, failure)
    assert error_of(n, largest, tokens, failure) <= error * (1 + 1e-9)
    assert n == 1 or error_of(n - 1, largest, tokens, failure) >= error * (1 - 1e-9)


def test_the_cost_is_that_of_the_remark():
    """e^{2 lambda} O log(O / failure) / error^2, up to constants."""
    plain = completions_needed(1.0, 16, 0.1, 0.01)
    assert completions_needed(2.0, 16, 0.1, 0.01) == pytest.approx(plain * math.e**2, rel=1e-4)
    assert completions_needed(1.0, 16, 0.05, 0.01) == pytest.approx(4 * plain, rel=0.06)
    by_hand = 3 * 16 * math.e**2 * math.log(3200) / (1 - math.exp(-0.05)) ** 2
    assert plain == math.ceil(by_hand)
    assert error_of(10, 1.0, 16, 0.01) == math.inf


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6))
def test_no_law_goes_below_the_floor(logits):
    z = torch.tensor(logits, dtype=torch.float64)
    z = z - z.mean()
    least = float(z.softmax(0).min())
    assert least >= floor_of(float(z.abs().max()), len(z)) * (1 - 1e-12)


def estimated(family, error, failure, histories):
    """A family's laws from as many completions as the function says."""
    teacher = family.teacher()
    truth = centred(teacher.laws(histories))
    largest = float(truth.abs().max())
    each = failure / len(histories.lengths)
    n = completions_needed(largest, teacher.spec.num_tokens, error, each)
    return EstimatedLaws(as_samples(teacher), n, largest), truth


def test_the_error_is_kept():
    histories = Prefixes.of([[a, b] for a in range(3) for b in range(3)])
    laws, truth = estimated(RandomIsan(dim=3, symbols=3, scale=0.7), 0.1, 1e-3, histories)
    found = centred(laws.laws(histories))
    gap = float((found - truth).abs().max())
    assert 0 < gap <= 0.1
    assert torch.equal(laws.laws(histories), laws.laws(histories))


def test_counts_and_floor_by_hand():
    teacher = FunctionTeacher(lambda _: [0.75, 0.25, 0.0], ("a", "b", "c"), horizon=2)
    laws = EstimatedLaws(as_samples(teacher), 400, 2.0)
    drawn = teacher.complete(Prefixes.of([[]]), 400, stream=laws.stream, max_tokens=1)
    counts = torch.bincount(drawn.tokens.flatten(), minlength=3).double()
    assert int(counts[2]) == 0
    shares = (counts / 400).clamp(min=math.exp(-4) / 3)
    expected = (shares / shares.sum()).log()
    torch.testing.assert_close(laws.laws(Prefixes.of([[]]))[0], expected)


def test_a_copy_is_learned_from_counted_laws():
    """Noisy parity: one logit direction, so 3,000 completions a law are plenty."""
    teacher = Parity(bits=4, noise=0.2, seed=3).teacher()
    inner = Ledger(as_samples(teacher))
    laws = EstimatedLaws(inner.samples("learn"), 3000, 1.0)
    settings = LogitSettings(tolerance=0.5, mismatch=0.1, verify_histories=100)
    found = learn_logits(Ledger(laws), settings, torch.Generator().manual_seed(0))
    assert found.report.outcome is LogitOutcome.VERIFIED
    drawn = teacher.sample(200, torch.Generator().manual_seed(1))
    gap = float((teacher.score(drawn) - found.student.score(drawn)).abs().max())
    assert gap < 0.3
    account = inner.account("learn")
    assert account.tokens_received == account.completions > 0 and account.completions % 3000 == 0


def test_the_ledger_limits_completions():
    inner = Ledger(as_samples(Parity(bits=4).teacher()), Budget(sampled_tokens=2500))
    laws = EstimatedLaws(inner.samples("learn"), 1000, 1.0)
    laws.laws(Prefixes.of([[], [0]]))
    with pytest.raises(BudgetExhausted):
        laws.laws(Prefixes.of([[1]]))


def test_what_says_nothing_is_refused():
    teacher = as_samples(Parity(bits=4).teacher())
    with pytest.raises(InputError, match="at least one completion"):
        EstimatedLaws(teacher, 0, 1.0)
    with pytest.raises(InputError, match="largest logit"):
        EstimatedLaws(teacher, 10, -1.0)
    with pytest.raises(InputError, match="error must be positive"):
        completions_needed(1.0, 4, 0.0, 0.1)
