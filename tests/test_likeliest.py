"""Combining histories by likelihood: the least of a convex sum, told by draws, in few directions."""

import json

import naive
import pytest
import torch
from scipy.optimize import minimize
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import InputError
from myna.logits import likeliest
from myna.logits.centred import centred
from myna.logits.likeliest import (
    COMMON,
    Places,
    common_rows,
    fit_weights,
    likeliest_lingen,
    places_of,
    read_rows,
)
from myna.logits.lingen import lingen
from myna.teachers.crossing import FutureTree
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

WIDE = "zoo:isan?dim=6&symbols=5&horizon=12"


@pytest.fixture(scope="module")
def network():
    return open_teacher(WIDE)


def rows_of(teacher, count, length, seed=0):
    drawn = teacher.sample(count, torch.Generator().manual_seed(seed)).tokens[:, :length]
    return Prefixes(drawn, torch.full((count,), length))


def continuations(teacher, targets, count, tokens):
    return [
        Prefixes.of(
            teacher.complete(
                Prefixes.of([list(row)]), count, stream=Stream("own", t), max_tokens=tokens
            ).tokens[0].tolist()
        )
        for t, row in enumerate(targets.rows())
    ]  # fmt: skip


def plain_sum(teacher, histories, target, words, weights):
    """v -> sum over words of w KL(p || softmax(v' L)), one law at a time."""
    asked = [
        (
            teacher.laws(Prefixes.of([[*target, *word]]))[0],
            centred(teacher.laws(Prefixes.of([[*h, *word] for h in histories.rows()]))),
        )
        for word in words
    ]

    def value(v):
        total = 0.0
        for (true, logits), weight in zip(asked, weights, strict=True):
            copy = (torch.as_tensor(v) @ logits).log_softmax(0)
            total += weight * float((true.exp() * (true - copy)).sum())
        return total

    return value


def places_and_words(network, count=3, own_count=6):
    """Fewer histories than the rank, so that no combination is exact."""
    histories, targets = rows_of(network, count, 4), rows_of(network, 2, 4, seed=9)
    futures = rows_of(network, 12, 5, seed=5)
    own = continuations(network, targets, own_count, 3)
    common = common_rows(network, targets, histories, futures)
    places = places_of(network, targets, 1, histories, common, own[1])
    shared = FutureTree.of(futures).pairs.tolist()
    rows, drawn = list(futures.rows()), list(own[1].rows())
    words = [rows[f][:t] for f, t in shared]
    words += [drawn[f][:t] for f, t in FutureTree.of(own[1]).pairs.tolist()]
    weights = [COMMON] * len(shared)
    weights += [sum(d[: len(w)] == w for d in drawn) for w in words[len(shared) :]]
    return histories, targets, common, places, words, weights


def test_it_finds_the_least_that_a_plain_search_finds(network):
    histories, targets, common, places, words, weights = places_and_words(network)
    assert places.weights.tolist() == pytest.approx(weights)
    heavy = (places.coordinates * places.weights[:, None]).flatten(1)
    torch.testing.assert_close(places.gram, heavy @ places.coordinates.flatten(1).mT)
    fit = fit_weights(places, common.start.weights[:, 1])
    target = list(targets.rows())[1]

    plain = plain_sum(network, histories, target, words, weights)

    def value(v):
        return plain(v) / sum(weights)

    assert fit.before == pytest.approx(value(common.start.weights[:, 1]))
    assert fit.after == pytest.approx(value(fit.weights), abs=1e-9)
    found = minimize(value, common.start.weights[:, 1].numpy(), method="BFGS")
    assert fit.after == pytest.approx(found.fun, abs=1e-6)
    assert fit.after < fit.before - 1e-4


def test_draws_weigh_places_so_that_the_sum_is_the_kl_of_continuations(network):
    histories, targets = rows_of(network, 3, 4), rows_of(network, 1, 4, seed=9)
    (own,) = continuations(network, targets, 20, 3)
    common = common_rows(network, targets, histories, rows_of(network, 12, 5, seed=5))
    places = places_of(network, targets, 0, histories, common, own, weight=0.0)
    fit = fit_weights(places, common.start.weights[:, 0])
    (target,) = targets.rows()
    total = 0.0
    for row in own.rows():
        words = [row[:t] for t in range(len(row))]
        total += plain_sum(network, histories, target, words, [1.0] * 3)(fit.weights)
    assert 3 * fit.after == pytest.approx(total / 20, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_is_never_worse_where_it_was_fitted_and_exact_at_the_rank(network, seed):
    teacher = naive.Opaque(network, "laws")
    targets, futures = rows_of(network, 2, 4, seed=90 + seed), rows_of(network, 12, 5, seed=5)
    own = continuations(network, targets, 5, 4)
    few, enough = rows_of(network, 3, 4, seed=seed), rows_of(network, 30, 4, seed=seed)
    _, fits, _ = likeliest_lingen(teacher, targets, few, futures, own)
    assert all(fit.after <= fit.before for fit in fits)
    assert any(fit.after < fit.before - 1e-3 for fit in fits)
    students, fits, _ = likeliest_lingen(teacher, targets, enough, futures)
    assert max(fit.after for fit in fits) < 1e-9
    for target, student in zip(targets.rows(), students, strict=True):
        state, _ = student.step(student.initial(1), torch.tensor([2]))
        true = teacher.laws(Prefixes.of([[*target, 2]]))
        assert float((student.law(state).exp() - true.exp()).abs().max()) < 1e-6


def test_the_start_is_lingens(network):
    histories, targets = rows_of(network, 3, 4), rows_of(network, 2, 4, seed=9)
    futures = rows_of(network, 12, 5, seed=5)
    _, expected = lingen(network, targets, histories, futures, ridges=(1e-2,))
    common = common_rows(network, targets, histories, futures, ridges=(1e-2,))
    torch.testing.assert_close(common.start.weights, expected.weights)


@pytest.mark.parametrize("symbols", [6, 30])  # fewer and more than there are places
def test_directions_are_as_few_as_the_logits_take(monkeypatch, symbols):
    teacher = open_teacher(f"zoo:isan?dim=2&symbols={symbols}&horizon=8")
    histories, futures = rows_of(teacher, 5, 3), Prefixes.of([[0, 1, 2], [3, 4, 5], [5, 5, 0]])
    tree = FutureTree.of(futures)
    whole = read_rows(teacher, histories, futures)
    # two at each of three places, and centred logits of 6 tokens have 5
    assert len(whole.directions) == {6: 5, 30: 6}[symbols]
    eye = torch.eye(len(whole.directions), dtype=torch.float64)
    torch.testing.assert_close(whole.directions @ whole.directions.mT, eye)
    logits = whole.coordinates @ whole.directions
    monkeypatch.setattr(likeliest, "_BLOCK_BYTES", 1)  # a history at a time
    parts = read_rows(teacher, histories, futures, whole.directions[:1])
    torch.testing.assert_close(parts.coordinates @ parts.directions, logits)
    torch.testing.assert_close(parts.directions[:1], whole.directions[:1])
    for row, history in enumerate(histories.rows()):
        for node, (future, place) in enumerate(tree.pairs.tolist()):
            words = [*history, *list(futures.rows())[future][:place]]
            true = centred(teacher.laws(Prefixes.of([words])))[0]
            torch.testing.assert_close(logits[row, node], true)


def test_what_cannot_be_fitted_is_said(network):
    histories, targets = rows_of(network, 3, 4), rows_of(network, 2, 4, seed=9)
    futures = rows_of(network, 12, 5, seed=5)
    with pytest.raises(InputError, match="each of 2 targets needs continuations of its own, got 1"):
        likeliest_lingen(network, targets, histories, futures, [futures])
    with pytest.raises(InputError, match="got 1 in all"):
        likeliest_lingen(network, targets, histories, futures.take(torch.tensor([0])))
    with pytest.raises(InputError, match="no prefix that the others lack"):
        common_rows(network, targets, histories, Prefixes.of([[0, 1], [0, 2]]))
    common = common_rows(network, targets, histories, futures)
    none = places_of(network, targets, 0, histories, common, None, weight=0.0)
    with pytest.raises(InputError, match="none has any weight"):
        fit_weights(none, common.start.weights[:, 0])


def test_a_search_that_breaks_down_gives_the_start_back():
    laws = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    ones = torch.ones((1, 1, 1), dtype=torch.float64)
    directions = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    places = Places(ones, directions, laws, ones[0, 0], ones[0])
    fit = fit_weights(places, torch.zeros(1, dtype=torch.float64))
    assert fit.after == fit.before == 0 and fit.weights.tolist() == [0]


def test_the_command_fits_by_likelihood():
    asked = ["lingen", WIDE, "--target", "0,1,2,3", "--histories", "3", "--futures", "8"]
    sizes = ["--future-tokens", "4", "--tokens", "5", "-n", "40", "--json"]
    told = {}
    for own in ([], ["--own", "0"], ["--own", "60"]):
        run = CliRunner().invoke(app, [*asked, *sizes, *own])
        told[tuple(own)] = json.loads(run.stdout)
        assert run.exit_code == 0
    assert told[()]["fitted_by"] == "least squares" and told[()]["own_continuations"] == 0
    assert told["--own", "0"]["fitted_by"] == "likelihood"
    assert told["--own", "60"]["own_continuations"] == 60
    assert told["--own", "60"]["total_kl"] < told[()]["total_kl"]
    assert told["--own", "60"]["queries"]["fit"] > told["--own", "0"]["queries"]["fit"]
    both = CliRunner().invoke(app, [*asked, "--own", "1", "--top-k", "2"])
    assert isinstance(both.exception, InputError) and "leave out --top-k" in str(both.exception)
    full = CliRunner().invoke(app, ["lingen", WIDE, "--target", ",".join("0" * 12)])
    assert isinstance(full.exception, InputError)
    assert "nothing can follow a prompt of 12 tokens at horizon 12" in str(full.exception)
