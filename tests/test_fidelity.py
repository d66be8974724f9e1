import math

import naive
import pytest
import torch

from myna.errors import InputError
from myna.evaluate.distance import enumerate_distance
from myna.learn import fidelity
from myna.learn.fidelity import FidelitySettings, learn_fidelity
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.uri import open_teacher


def teacher(horizon=5):
    """Three states in a ring, each with a favourite token: states are easy to tell apart."""
    moves = torch.tensor([[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]).double()
    emits = torch.tensor([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]]).double()
    tables = [table / table.sum(-1, keepdim=True) for table in (moves, emits)]
    return Hmm(torch.tensor([0.5, 0.25, 0.25]).double(), *tables, horizon=horizon)


def learned(model, budget, seed=0, **settings):
    view = Ledger(as_samples(model), seed=seed).samples("learn")
    random = torch.Generator().manual_seed(seed)
    return learn_fidelity(view, FidelitySettings(budget=budget, **settings), random)


def variation(model, student):
    return enumerate_distance(Ledger(model).laws("check"), student).total_variation


@pytest.mark.parametrize("seed", range(2))
def test_more_tokens_bring_it_closer(seed):
    errors = [
        variation(teacher(), learned(teacher(), budget, seed).student)
        for budget in (5_000, 100_000, 1_000_000)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.04


def test_it_finds_the_ranks_and_keeps_its_budget():
    fit = learned(teacher(), 600_000)
    ranks = [
        naive.numerical_rank(naive.hankel_block(teacher(), cut)) if cut else 1 for cut in range(5)
    ]
    assert list(fit.student.ranks) == ranks == [1, 3, 3, 3, 3]
    assert 0.95 * 600_000 < fit.report.sampled_tokens <= 600_000
    ledger = Ledger(teacher())
    learn_fidelity(ledger.samples("a"), FidelitySettings(20_000), torch.Generator())
    assert ledger.account("a").tokens_received <= 20_000
    assert ledger.total() == ledger.account("a")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.95])
def test_the_smallest_budget_is_enough_and_is_kept(share):
    settings = {"pilot_share": share, "threshold": 0.1}  # many histories are wanted
    with pytest.raises(InputError, match="at least") as refused:
        learned(teacher(), 50, **settings)
    least = int(str(refused.value).split()[-1].replace(",", ""))
    assert learned(teacher(), least, **settings).report.sampled_tokens <= least
    with pytest.raises(InputError, match="at least"):
        learned(teacher(), least - 1, **settings)


def test_measured_fidelity_is_that_of_the_exact_laws():
    """The same histories' exact laws of futures, D their mean, by singular values."""
    model = teacher()
    fit = learned(model, 2_000_000, future_tokens=2)
    block = naive.hankel_block(model, 3)  # histories in order, futures of the last two tokens
    histories = fit.student.steps[3].histories
    rows = [int("".join(map(str, h)), 3) for h in histories]
    laws = block[rows]
    exact = torch.linalg.svdvals(laws / laws.mean(0).sqrt())[-1]
    assert fit.report.cuts[3].fidelity == pytest.approx(float(exact), rel=0.03)
    assert fit.report.fidelity == min(cut.fidelity for cut in fit.report.cuts)
    assert fit.report.cuts[3].coefficient_norm < 5


def test_the_residual_test_is_calibrated():
    """Histories of one state only: z should have mean 0 and rarely exceed the threshold."""
    random = torch.Generator().manual_seed(0)
    law = torch.rand(30, generator=random, dtype=torch.float64)
    found = []
    for _ in range(400):
        draws = torch.multinomial(law.expand(3, -1), 500, replacement=True, generator=random)
        rows = fidelity._frequencies(draws, 30)
        span = fidelity._Span.of(fidelity._Sampled(rows[:1], 500))
        found.append(fidelity._residuals(span, rows[1:], 500)[0])
    z = torch.cat(found)
    assert abs(float(z.mean())) < 0.25
    assert 0.6 < float(z.std()) < 1.3
    assert float((z > 4).double().mean()) < 0.01


@pytest.mark.parametrize("size", [2, 3])
def test_sigma_is_unbiased_and_the_plain_one_is_not(size):
    random = torch.Generator().manual_seed(1)
    laws = torch.rand((size, 40), generator=random, dtype=torch.float64)
    laws /= laws.sum(1, keepdim=True)
    exact = (laws / laws.mean(0)) @ laws.T
    errors = torch.zeros(2, size, size, dtype=torch.float64)
    for _ in range(400):
        draws = torch.multinomial(laws, 2000, replacement=True, generator=random)
        rows = fidelity._frequencies(draws, 40)
        errors[0] += fidelity._Span.of(fidelity._Sampled(rows, 2000)).sigma - exact
        errors[1] += (rows / rows.mean(0)) @ rows.T - exact
    ours, plain = (errors / 400).diagonal(dim1=1, dim2=2).abs()
    assert float(ours.max()) < 0.0015
    assert float(plain.min()) > 0.006


def test_parity_needs_futures_that_reach_the_label():
    model = open_teacher("zoo:parity?bits=4&noise=0.1&seed=3")
    reach = learned(model, 300_000, future_tokens=5)
    short = learned(model, 300_000, future_tokens=1)
    assert variation(model, reach.student) < 0.04
    assert variation(model, short.student) > 0.3


def test_strings_that_stop():
    model = open_teacher("zoo:labels?states=2&length=3")
    fit = learned(model, 100_000)
    assert variation(model, fit.student) < 0.05
    stop = model.spec.stop
    if stop is not None:
        assert all(bool((step.change[:, stop] == 0).all()) for step in fit.student.steps)


def test_draws_are_a_function_of_the_seed():
    a, b, c = (learned(teacher(3), 10_000, seed).student for seed in (1, 1, 2))
    assert a.spec.fingerprint == b.spec.fingerprint != c.spec.fingerprint


def test_words_longer_than_an_integer_are_told_apart():
    words = torch.zeros((3, 200), dtype=torch.int64)
    words[1, 0], words[2, 199] = 1, 1
    assert len(set(fidelity._codes(words, 1000).tolist())) == 3
    assert fidelity._codes(words[:0], 5).numel() == 0


def test_bad_requests_are_refused():
    ledger = Ledger(teacher())
    with pytest.raises(InputError, match="100 tokens gives no two draws of every history"):
        learn_fidelity(ledger.samples("a"), FidelitySettings(100), torch.Generator())
    assert ledger.total().completions == 0
    with pytest.raises(InputError, match="needs a teacher with a horizon"):
        learned(open_teacher("zoo:registers?k=1"), 1000)
    with pytest.raises(InputError, match="budget must be at least 1"):
        FidelitySettings(0)
    with pytest.raises(InputError, match="share must lie"):
        FidelitySettings(10, pilot_share=1.0)
    with pytest.raises(InputError, match="threshold must be positive"):
        FidelitySettings(10, threshold=math.nan)
