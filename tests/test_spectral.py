import math

import naive
import pytest
import torch

from myna.errors import InputError
from myna.learn.baum_welch import random_start
from myna.learn.evidence import Evidence
from myna.learn.report import Structure
from myna.learn.spectral import (
    Moments,
    SpectralSettings,
    Windows,
    learn_spectral,
    spectral_stationary,
    spectral_varying,
)
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.uri import open_teacher

LANGUAGE = Spec(numbered(4), None, 5, "unset")
SHAPES = [Structure.STATIONARY, Structure.TIME_VARYING]


def chain(seed, states=3, structure=Structure.STATIONARY):
    return random_start(LANGUAGE, states, structure, torch.Generator().manual_seed(seed))


def joint(model, spec=LANGUAGE):
    """P(x) as a tensor with one axis a position."""
    scores = model.score(strings(naive.all_strings(spec))).exp()
    return scores.reshape((spec.num_tokens,) * spec.horizon)


def exact_moments(table, cut):
    """Around a cut, by summing the whole distribution."""
    axes = set(range(table.dim()))
    pairs = table.sum(tuple(axes - {cut - 1, cut})).T
    triples = None
    if cut + 1 < table.dim():
        first = table.sum(tuple(axes - {cut - 1, cut, cut + 1}))  # previous, second, third
        triples = first.permute(1, 2, 0).contiguous()
    return Moments(pairs.sum(0), pairs, triples)


def drawn(model, count, seed):
    sample = model.sample(count, torch.Generator().manual_seed(seed))
    none = torch.zeros(count, dtype=torch.int64)
    return Evidence(*sample, none, torch.ones(count, dtype=torch.float64))


def variation(model, student):
    return float((joint(model) - joint(student)).abs().sum()) / 2


def learned(data, seed=0, **settings):
    random = torch.Generator().manual_seed(seed)
    return learn_spectral(LANGUAGE, data, SpectralSettings(**settings), random)


def hsu(moments, rank, row):
    """P(row) by the paper's formulas, written out."""
    u = torch.linalg.svd(moments.pairs).U[:, :rank]
    b = u.T @ moments.previous
    last = torch.linalg.pinv(moments.pairs.T @ u) @ moments.previous
    for x in row:
        b = u.T @ moments.triples[x] @ torch.linalg.pinv(u.T @ moments.pairs) @ b
    return float(last @ b)


@pytest.mark.parametrize("seed", range(4))
def test_exact_moments_give_the_chain(seed):
    truth = chain(seed).model(LANGUAGE)
    student = spectral_stationary(LANGUAGE, exact_moments(joint(truth), 1), 3)
    assert student.ranks == (3,)
    torch.testing.assert_close(joint(student), joint(truth), atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("structure", SHAPES)
def test_exact_moments_at_each_position_give_the_chain(structure):
    truth = chain(5, structure=structure).model(LANGUAGE)
    table = joint(truth)
    moments = [exact_moments(table, cut) for cut in range(1, 5)]
    student = spectral_varying(LANGUAGE, table.sum((1, 2, 3, 4)), moments, [3] * 4)
    assert student.ranks == (1, 3, 3, 3, 3)
    torch.testing.assert_close(joint(student), table, atol=1e-9, rtol=0.0)


def test_it_is_the_papers_formula_on_sampled_moments():
    """Unclipped strings have the probabilities of b_inf^T B ... b_1, up to normalising."""
    data = drawn(chain(6).model(LANGUAGE), 20_000, 1)
    first = data.tokens[:, :3]
    table = torch.zeros(4, 4, 4, dtype=torch.float64)
    for a, b, c in first.tolist():
        table[b, c, a] += 1 / len(first)
    pairs = table.sum(1)
    moments = Moments(pairs.sum(0), pairs, table)
    fit = learned(data, rank=2)
    state = fit.student.initial(1)
    for t, token in enumerate([1, 3, 0, 2]):
        prefix = [1, 3, 0, 2][:t]
        values = [hsu(moments, 2, [*prefix, o]) for o in range(4)]
        weights = torch.tensor(values, dtype=torch.float64)
        assert bool((weights > 0).all())
        torch.testing.assert_close(
            fit.student.law(state)[0].exp(), weights / weights.sum(), atol=1e-10, rtol=0.0
        )
        state, _ = fit.student.step(state, torch.tensor([token]))


@pytest.mark.parametrize("structure", SHAPES)
def test_more_strings_bring_it_closer(structure):
    truth = chain(7, states=2, structure=structure).model(LANGUAGE)
    errors = [
        variation(truth, learned(drawn(truth, n, 2), structure=structure).student)
        for n in (300, 200_000)
    ]
    assert errors[1] < min(0.05, errors[0] / 2), errors


def test_all_windows_of_a_chain_in_its_stationary_law():
    parameters = chain(8, states=2)
    moves = parameters.transition[0]
    law = torch.linalg.matrix_power(moves, 200)[0]
    truth = type(parameters)(law / law.sum(), parameters.transition, parameters.emission)
    model = truth.model(LANGUAGE)
    data = drawn(model, 30_000, 3)
    errors = {w: variation(model, learned(data, windows=w).student) for w in Windows}
    counted = {w: learned(data, windows=w).report.triples for w in Windows}
    assert counted == {Windows.FIRST: 30_000, Windows.ALL: 90_000}
    assert errors[Windows.ALL] < 0.03


def test_parallel_emissions_vanish_and_it_does_not_learn():
    """Two of three states emit alike, but lead elsewhere: sigma_3 = 0 and the error stays."""
    parameters = chain(9)
    emission = parameters.emission.clone()
    emission[0, 1] = emission[0, 0]
    moves = torch.tensor([[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]).double()
    truth = type(parameters)(parameters.initial, moves, emission).model(LANGUAGE)
    values = torch.linalg.svdvals(exact_moments(joint(truth), 1).pairs)
    assert float(values[2]) < 1e-15
    assert float(values[1]) > 1e-3
    assert naive.numerical_rank(naive.hankel_block(truth, 2)) == 3
    fit = learned(drawn(truth, 300_000, 4))
    (cut,) = fit.report.cuts
    assert cut.rank == cut.resolved == 2
    assert cut.singular_values[2] <= cut.noise[2]
    assert variation(truth, fit.student) > 0.05
    asked = learned(drawn(truth, 300_000, 4), rank=3).report.cuts[0]
    assert asked.rank == 3 and asked.sigma == cut.singular_values[2] and asked.resolved == 2


@pytest.mark.parametrize("structure", SHAPES)
def test_parity_shows_nothing_to_neighbouring_tokens(structure):
    teacher = open_teacher("zoo:parity?bits=4&noise=0.1&seed=3")
    sample = teacher.sample(20_000, torch.Generator().manual_seed(0))
    data = Evidence(*sample, torch.zeros(20_000).long(), torch.ones(20_000).double())
    settings = SpectralSettings(structure=structure)
    fit = learn_spectral(teacher.spec, data, settings, torch.Generator().manual_seed(0))
    batch = strings(naive.all_strings(teacher.spec))
    gap = (teacher.score(batch).exp() - fit.student.score(batch).exp()).abs().sum() / 2
    assert 0.35 < float(gap) < 0.45
    assert all(cut.resolved <= 1 for cut in fit.report.cuts)


def test_the_noise_test_seldom_claims_too_much():
    """Rank one in truth: 100 tests at level .01."""
    model = chain(10, states=1).model(LANGUAGE)
    ranks = [learned(drawn(model, 400, s), seed=s).report.cuts[0].rank for s in range(100)]
    assert sum(rank > 1 for rank in ranks) <= 6
    clear = chain(5).model(LANGUAGE)
    assert learned(drawn(clear, 400_000, 0)).report.cuts[0].rank >= 2


@pytest.mark.parametrize("windows", list(Windows))
def test_counts_are_repeated_strings(windows):
    data = drawn(chain(11).model(LANGUAGE), 500, 5)
    twice = Evidence(*(torch.cat([part, part]) for part in data))
    merged = data._replace(counts=data.counts * 2)
    a, b = (learned(d, windows=windows, rank=2) for d in (twice, merged))
    assert a.report.triples == b.report.triples
    torch.testing.assert_close(joint(a.student), joint(b.student), atol=1e-12, rtol=0.0)


def test_tokens_never_seen_have_no_probability():
    data = drawn(chain(12).model(Spec(numbered(4), None, 5, "unset")), 400, 6)
    data = data._replace(tokens=data.tokens.clamp(max=2))
    for structure in SHAPES:
        table = joint(learned(data, structure=structure).student)
        assert bool(torch.isfinite(table).all())
        assert float(table.sum()) == pytest.approx(1.0, abs=1e-9)
        assert float(table[0, 3].sum()) < 1e-12


def test_bad_requests_are_refused():
    data = drawn(chain(1).model(LANGUAGE), 10, 0)
    with pytest.raises(InputError, match="needs plain strings"):
        learned(data._replace(given=torch.ones(10, dtype=torch.int64)))
    with pytest.raises(InputError, match="without a stop token"):
        stop = Spec(numbered(4), 3, 5, "unset")
        learn_spectral(stop, data, SpectralSettings(), torch.Generator())
    with pytest.raises(InputError, match="language with a horizon"):
        free = Spec(numbered(4), None, None, "unset")
        settings = SpectralSettings(structure=Structure.TIME_VARYING)
        learn_spectral(free, data, settings, torch.Generator())
    with pytest.raises(InputError, match="at least 3 tokens"):
        learned(data._replace(lengths=torch.full((10,), 2)))
    with pytest.raises(InputError, match="rank must be at least 1"):
        SpectralSettings(rank=0)
    with pytest.raises(InputError, match="at least 2 replicates"):
        SpectralSettings(replicates=1)
    with pytest.raises(InputError, match="law of triples"):
        spectral_stationary(LANGUAGE, exact_moments(joint(chain(1).model(LANGUAGE)), 4), 1)
    assert math.isfinite(variation(chain(1).model(LANGUAGE), learned(data).student))
