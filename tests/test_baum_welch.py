import dataclasses
import itertools
import math

import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.evaluate.distance import enumerate_distance
from myna.learn.baum_welch import (
    EmSettings,
    HmmParameters,
    Method,
    Stop,
    baum_welch,
    fit_hmm,
    random_start,
)
from myna.learn.climbs import _leap, expectation_maximisation, squared
from myna.learn.evidence import Evidence
from myna.learn.forward_backward import ForwardBackward, HmmTables, prefix_trees
from myna.learn.report import Structure
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger


def language(tokens=3, horizon=5, stop=None):
    return Spec(numbered(tokens), stop, horizon, "unset")


def start(seed, states=2, structure=Structure.STATIONARY, spec=None):
    random = torch.Generator().manual_seed(seed)
    return random_start(spec or language(), states, structure, random)


def evidence(rows, prompts=None, counts=None):
    packed = strings(rows)
    given = torch.tensor(prompts or [0] * len(rows))
    return Evidence(*packed, given, torch.tensor(counts or [1.0] * len(rows)).double())


def drawn(parameters, count, seed, spec=None):
    """Plain samples of the model."""
    random = torch.Generator().manual_seed(seed)
    sample = parameters.model(spec or language()).sample(count, random)
    none = torch.zeros(count, dtype=torch.int64)
    return Evidence(*sample, none, torch.ones(count, dtype=torch.float64))


def engine(data, states=2, tokens=3):
    return ForwardBackward(prefix_trees(data, tokens), states)


def objective(data, tables):
    """The conditional log-likelihood by sums over hidden paths."""
    total = 0.0
    for row, length, prompt, count in zip(*(part.tolist() for part in data), strict=True):
        for sign, end in ((1, length), (-1, prompt)):
            if end:
                total += sign * count * math.log(naive.hmm_probability(*tables, row[:end]))
    return total


def path_counts(tables, row, weight, into):
    """Add a string's expected counts by enumerating all hidden paths."""
    states, length = range(len(tables.initial)), len(row)
    last = [len(table) - 1 for table in tables[1:]]
    found = []
    for path in itertools.product(states, repeat=length):
        p = float(tables.initial[path[0]])
        for t, token in enumerate(row):
            p *= float(tables.emission[min(t, last[1])][path[t]][token])
            if t + 1 < length:
                p *= float(tables.transition[min(t, last[0])][path[t]][path[t + 1]])
        found.append((path, p))
    total = sum(p for _, p in found)
    for path, p in found:
        share = weight * p / total
        into.initial[path[0]] += share
        for t, token in enumerate(row):
            into.emission[min(t, last[1]), path[t], token] += share
            if t + 1 < length:
                into.transition[min(t, last[0]), path[t], path[t + 1]] += share


# repeats, shared prefixes, prefixes of one another, prompts that are rows, and an idle row
RAGGED = evidence(
    [[0, 1, 2, 0], [0, 1], [0, 1, 2, 0], [2], [0, 1, 1], [2, 2, 0, 1, 1], [1, 1], [0, 1, 2, 1]],
    prompts=[0, 0, 2, 0, 1, 3, 2, 2],
    counts=[1.0, 2.0, 3.0, 1.5, 1.0, 2.0, 9.0, 1.0],
)
PLAIN = RAGGED._replace(given=torch.zeros(8, dtype=torch.int64))
SHAPES = [Structure.STATIONARY, Structure.TIME_VARYING]


@pytest.mark.parametrize("structure", SHAPES)
@pytest.mark.parametrize("data", [PLAIN, RAGGED], ids=["plain", "prompts"])
def test_expected_counts_are_sums_over_hidden_paths(data, structure):
    tables = start(1, structure=structure).tables
    found = engine(data).counts(tables)
    expected = HmmTables(*(torch.zeros_like(table) for table in tables))
    for row, length, prompt, count in zip(*(part.tolist() for part in data), strict=True):
        path_counts(tables, row[:length], count, expected)
        if prompt:
            path_counts(tables, row[:prompt], -count, expected)
    for ours, truth in zip(found.tables, expected, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-12, rtol=1e-12)
    assert found.log_likelihood == pytest.approx(objective(data, tables), rel=1e-12)
    assert engine(data).log_likelihood(tables) == pytest.approx(found.log_likelihood, rel=1e-14)


def test_counts_are_the_gradient_by_finite_differences():
    """d l / d log theta, each entry moved alone, with prompts."""
    tables = start(2, structure=Structure.TIME_VARYING).tables
    found = engine(RAGGED).counts(tables).tables
    for which, table in enumerate(tables):
        for index in itertools.product(*(range(size) for size in table.shape)):
            ends = []
            for sign in (1, -1):
                moved = table.clone()
                moved[index] *= math.exp(sign * 1e-5)
                ends.append(objective(RAGGED, tables._replace(**{tables._fields[which]: moved})))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(found[which][index]) == pytest.approx(slope, abs=1e-7)


@given(st.integers(0, 10_000), st.booleans())
def test_rows_may_be_merged_split_and_shuffled(seed, prompts):
    random = torch.Generator().manual_seed(seed)
    data = RAGGED if prompts else PLAIN
    twice = Evidence(*(torch.cat([part, part]) for part in data))
    twice = twice._replace(counts=torch.cat([data.counts * 0.25, data.counts * 0.75]))
    order = torch.randperm(len(twice.lengths), generator=random)
    twice = Evidence(*(part[order] for part in twice))
    tables = start(seed).tables
    once, again = engine(data).counts(tables), engine(twice).counts(tables)
    assert once.log_likelihood == pytest.approx(again.log_likelihood, rel=1e-12)
    for a, b in zip(once.tables, again.tables, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_each_distinct_prefix_is_one_node_and_blocks_change_nothing(monkeypatch):
    (tree,) = prefix_trees(PLAIN, 3)
    prefixes = {
        tuple(row[:t])
        for row, length in zip(PLAIN.tokens.tolist(), PLAIN.lengths.tolist(), strict=True)
        for t in range(1, length + 1)
    }
    assert sum(len(level.tokens) for level in tree) == len(prefixes)
    whole = engine(RAGGED).counts(start(3).tables)
    monkeypatch.setattr("myna.learn.forward_backward._CPU_ROWS", 2)
    assert len(prefix_trees(RAGGED, 3)) == 4
    split = engine(RAGGED).counts(start(3).tables)
    for a, b in zip(whole.tables, split.tables, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("structure", SHAPES)
@pytest.mark.parametrize("data", [PLAIN, RAGGED], ids=["plain", "prompts"])
def test_the_likelihood_never_falls(data, structure):
    _, report = fit_hmm(data, start(4, structure=structure), EmSettings(max_iterations=60))
    values = [point.log_likelihood for point in report.trace]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] > values[0] + 0.05
    assert report.method is (Method.EM if data is PLAIN else Method.GRADIENT)


@pytest.mark.parametrize("structure", SHAPES)
@pytest.mark.parametrize("pseudo", [0.0, 0.3])
def test_extrapolation_never_falls_and_is_ahead_after_as_many_passes(structure, pseudo):
    spec = language(horizon=6)
    data = drawn(start(20, structure=structure, spec=spec), 3000, 6, spec)
    begin = start(21, structure=structure, spec=spec)
    plain = EmSettings(
        tolerance_nats=0.0,
        max_iterations=120,
        transition_pseudo=pseudo,
        emission_pseudo=pseudo,
    )
    # three passes over the data an iteration, at most
    leaps = dataclasses.replace(plain, accelerated=True, max_iterations=40)
    (slow, by_steps), (fast, by_leaps) = (fit_hmm(data, begin, s) for s in (plain, leaps))
    assert (by_steps.method, by_leaps.method) == (Method.EM, Method.SQUARED)

    def objective(found, report):
        prior = sum(float(table.log().sum()) for table in found.tables[1:]) if pseudo else 0.0
        return report.score * data.sampled_tokens + pseudo * prior

    assert objective(fast, by_leaps) > objective(slow, by_steps)
    if not pseudo:
        values = [point.log_likelihood for point in by_leaps.trace]
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


def test_extrapolation_is_exact_where_steps_shrink_evenly():
    """Roots at 1 - c^k / 10 of their end: the leap from three of them is the end."""
    end, away = torch.tensor([[0.6, 0.8]]).double(), torch.tensor([[0.08, -0.06]]).double()

    def at(distance):
        root = end + distance * away
        table = root.square()
        return HmmTables(table[0], table[None], table[None])

    leapt, length = _leap(at(1.0), at(0.5), at(0.25), 4.0)
    assert length == pytest.approx(2.0)
    for found, goal in zip(leapt, at(0.0), strict=True):
        torch.testing.assert_close(found, goal / goal.sum(-1, keepdim=True), atol=1e-12, rtol=0.0)
    held, length = _leap(at(1.0), at(0.5), at(0.25), 1.0)
    assert length == 1.0
    for found, goal in zip(held, at(0.25), strict=True):
        torch.testing.assert_close(found, goal / goal.sum(-1, keepdim=True), atol=1e-12, rtol=0.0)


def test_an_extrapolation_that_would_fall_is_not_taken():
    """Every iterate is no lower than one plain step; some are two plain steps, no leap."""
    begin, none = start(22), (0.0, 0.0, 0.0)
    points = list(itertools.islice(squared(engine(PLAIN), begin.tables, none), 60))
    refused = 0
    for before, after in itertools.pairwise(points):
        steps = expectation_maximisation(engine(PLAIN), before.tables, none)
        _, first, second = itertools.islice(steps, 3)
        assert after.log_likelihood >= first.log_likelihood - 1e-12
        refused += all(map(torch.equal, after.tables, second.tables))
    assert 0 < refused < 59


def test_pseudo_counts_climb_the_posterior():
    settings = EmSettings(tolerance_nats=1e-13, transition_pseudo=0.5, emission_pseudo=0.2)
    found = [fit_hmm(data, start(5), settings)[0] for data in (PLAIN, RAGGED)]
    for data, parameters in zip((PLAIN, RAGGED), found, strict=True):
        counts = engine(data).counts(parameters.tables).tables
        for pseudo, count, table in zip((0.5, 0.2), counts[1:], parameters.tables[1:], strict=True):
            total = count + pseudo
            torch.testing.assert_close(
                total / total.sum(-1, keepdim=True), table, atol=1e-4, rtol=0.0
            )


def test_both_methods_find_the_same_maximum():
    """A prompt of one token that every row has only removes the first token's term.

    With that token certain under the model, the conditional likelihood is the plain one.
    """
    truth = start(6, states=1)
    plain = drawn(truth, 300, 0)
    longer = Evidence(
        torch.cat([torch.full((300, 1), 3), plain.tokens], 1),
        plain.lengths + 1,
        torch.ones(300, dtype=torch.int64),
        plain.counts,
    )
    spec = language(4, 6)
    settings = EmSettings(tolerance_nats=1e-14)
    begin = start(7, states=1, spec=spec)
    ends = [fit_hmm(data, begin, settings)[0].emission[0, 0] for data in (plain, longer)]
    frequencies = torch.bincount(plain.tokens.reshape(-1), minlength=4).double()
    frequencies /= plain.tokens.numel()
    torch.testing.assert_close(ends[0], frequencies, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(ends[1], frequencies, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("prompt", [0, 2])
def test_from_the_truth_it_stays_near_the_truth(prompt):
    truth = start(8)
    data = drawn(truth, 20_000, 1)
    data = data._replace(given=torch.full_like(data.given, prompt))
    found, report = fit_hmm(data, truth, EmSettings(max_iterations=100))
    teacher = Hmm(*truth.tables, horizon=5)
    distance = enumerate_distance(Ledger(teacher).laws("c"), found.model(language()))
    assert report.trace[-1].log_likelihood > report.trace[0].log_likelihood
    assert distance.total_variation < 0.03


def test_the_student_is_the_model_and_beats_a_unigram():
    data = drawn(start(9), 4000, 2)
    fit = baum_welch(
        language(),
        data,
        2,
        EmSettings(restarts=3, max_iterations=150),
        torch.Generator().manual_seed(1),
    )
    score = fit.student.score(data.strings).sum() / data.sampled_tokens
    assert fit.report.trace[fit.report.kept].log_likelihood == pytest.approx(
        float(score), rel=1e-12
    )
    assert fit.student.transitions is not None
    assert len(fit.restarts) == 3 and fit.report in fit.restarts
    assert fit.report.score == max(report.score for report in fit.restarts)
    truth = start(9).model(language()).score(data.strings).sum() / data.sampled_tokens
    assert fit.report.score > float(truth) - 1e-3


@pytest.mark.parametrize("structure", SHAPES)
def test_the_student_scores_as_sums_over_hidden_paths(structure):
    parameters = start(10, structure=structure)
    rows = naive.all_strings(language())[::11]
    expected = [naive.hmm_probability(*parameters.tables, row) for row in rows]
    ours = parameters.model(language()).score(strings(rows)).exp()
    torch.testing.assert_close(ours, torch.tensor(expected).double())


def test_held_out_answers_stop_the_climb_and_choose_the_parameters():
    spec = language(horizon=8)
    truth = start(11, spec=spec)
    few, fresh = drawn(truth, 30, 3, spec), drawn(truth, 2000, 4, spec)
    begin = start(12, states=6, spec=spec)
    settings = EmSettings(validate_every=2, patience=5)
    found, report = fit_hmm(few, begin, settings, fresh)
    looked = {p.iteration: p.validation for p in report.trace if p.validation is not None}
    assert report.stop is Stop.VALIDATION
    assert looked[report.kept] == max(looked.values()) == report.score
    held_out = engine(fresh, 6).log_likelihood(found.tables) / fresh.sampled_tokens
    assert held_out == pytest.approx(report.score, rel=1e-12)
    to_the_end, _ = fit_hmm(few, begin, EmSettings())
    assert (
        engine(fresh, 6).log_likelihood(to_the_end.tables) / fresh.sampled_tokens < held_out - 0.01
    )


def test_every_rule_that_ends_a_climb():
    few = EmSettings(max_iterations=3)
    _, report = fit_hmm(PLAIN, start(13), few)
    assert (report.stop, report.iterations, report.converged) == (Stop.ITERATIONS, 3, False)
    _, report = fit_hmm(PLAIN, start(13), EmSettings(max_seconds=0.0))
    assert (report.stop, report.iterations) == (Stop.SECONDS, 0)
    _, report = fit_hmm(PLAIN, start(13), EmSettings(tolerance_nats=1e-4))
    assert report.converged
    gains = [b.log_likelihood - a.log_likelihood for a, b in itertools.pairwise(report.trace)]
    assert gains[-1] < 1e-4 <= min(gains[:-1])


def test_a_stop_token_is_an_ordinary_last_token():
    spec = Spec(numbered(3, stop=True), 2, 6, "unset")
    truth = start(14, spec=spec)
    data = drawn(truth, 3000, 5, spec)
    found, _ = fit_hmm(data, truth, EmSettings(max_iterations=20))
    scores = found.model(spec).score(data.strings).sum() / data.sampled_tokens
    assert engine(data).log_likelihood(found.tables) / data.sampled_tokens == pytest.approx(
        float(scores), rel=1e-12
    )


def test_zeros_of_the_data_are_no_nan():
    """A token never seen gets probability zero by EM; a start that forbids data is refused."""
    data = evidence([[0, 1], [1, 0], [0, 0]])
    found, report = fit_hmm(data, start(15), EmSettings(max_iterations=50))
    assert bool((found.emission[0, :, 2] == 0).all())
    assert all(math.isfinite(point.log_likelihood) for point in report.trace)
    with pytest.raises(InputError, match="some answer probability zero"):
        fit_hmm(evidence([[2, 0]]), found, EmSettings())


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match=r"tokens in 0\.\.2 in every row, and row 1"):
        prefix_trees(evidence([[0], [3]]), 3)
    with pytest.raises(InputError, match="prompt within the row"):
        prefix_trees(evidence([[0]], prompts=[2]), 3)
    with pytest.raises(InputError, match="count >= 0"):
        prefix_trees(evidence([[0]], counts=[math.nan]), 3)
    with pytest.raises(InputError, match="evidence has none"):
        prefix_trees(evidence([[0]], prompts=[1]), 3)
    with pytest.raises(InputError, match="same states"):
        good = start(1)
        good.tables._replace(emission=start(1, states=3).emission).check()
    with pytest.raises(InputError, match="row of the emission must sum to 1"):
        HmmParameters(start(1).initial, start(1).transition, start(1).emission * 2)
    with pytest.raises(InputError, match="needs a language with a horizon"):
        start(1, structure=Structure.TIME_VARYING, spec=Spec(numbered(3), 2, None, "unset"))
    with pytest.raises(InputError, match="restarts must be at least 1"):
        EmSettings(restarts=0)
    with pytest.raises(InputError, match="tolerance_nats must not be negative"):
        EmSettings(tolerance_nats=-1.0)
