"""Networks fitted to strings: their laws, their sizes, and what they can and cannot learn."""

import math

import pytest
import torch

from myna.errors import BudgetExhausted, InputError
from myna.learn.networks import (
    Kind,
    NetworkSettings,
    _add_gradient,
    _module,
    fit_strings,
    learn_strings,
)
from myna.learn.plain import plain_strings
from myna.lowrank.student import score_by_steps, strings
from myna.spec import Spec, numbered
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

KINDS = list(Kind)
SMALL = {"parameters": 700, "epochs": 3}


def random():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_ragged_strings_are_sums_of_laws(kind):
    """A prefix's law must not depend on what follows, nor on the other rows."""
    teacher = open_teacher("zoo:registers?k=2&stop=0.3")
    result = learn_strings(Ledger(teacher), 3000, NetworkSettings(kind=kind, **SMALL), random())
    drawn = result.student.sample(60, random(), max_tokens=30)
    assert len(drawn.lengths.unique()) > 3
    torch.testing.assert_close(
        result.student.score(drawn), score_by_steps(result.student, drawn), rtol=0, atol=1e-10
    )
    assert float(result.student.score(strings([[]]))) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [700, 1300, 2000, 5000, 9000])
def test_the_size_is_the_one_asked_for(kind, parameters):
    teacher = open_teacher("zoo:hmm?states=3&symbols=5&horizon=6")
    settings = NetworkSettings(kind=kind, parameters=parameters, epochs=1)
    text = teacher.sample(20, random())
    student = fit_strings(teacher.spec, text, settings, random()).student
    least = 0.85 if kind is Kind.RECURRENT else 0.97
    assert least * parameters < student.num_parameters <= parameters


@pytest.mark.parametrize("kind", KINDS)
def test_a_markov_chain_is_learned_and_the_best_epoch_kept(kind):
    teacher = open_teacher("zoo:markov?symbols=3&horizon=8")
    settings = NetworkSettings(kind=kind, parameters=1500, epochs=30)
    result = learn_strings(Ledger(teacher), 16_000, settings, random())
    report = result.report
    assert report.tokens == 16_000 == report.accounts["learn"].tokens_received
    assert report.held_out[report.kept - 1] == max(report.held_out)
    fresh = teacher.sample(2000, torch.Generator().manual_seed(1))
    gap = float((teacher.score(fresh) - result.student.score(fresh)).mean()) / 8
    uniform = float(teacher.score(fresh).mean()) / 8 + math.log(3)
    assert gap < 0.01 < uniform / 5  # nats a token


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("lengths", [(1, 8, 9, 32, 33, 140), (40, 41), (3,)])
def test_the_gradient_is_that_of_all_strings_side_by_side(kind, lengths):
    language = Spec(numbered(3), None, None, "unset")
    settings = NetworkSettings(kind=kind, parameters=1500)
    module = _module(settings, 3, torch.Generator().manual_seed(0)).double()
    random = torch.Generator().manual_seed(1)
    text = strings([torch.randint(3, (n,), generator=random).tolist() for n in lengths])
    _add_gradient(module, text, language.num_tokens)
    found = [part.grad.clone() for part in module.parameters()]
    module.zero_grad()
    before = torch.nn.functional.pad(text.tokens.clamp(min=0)[:, :-1], (1, 0), value=3)
    laws = module(before).log_softmax(2)
    each = laws.gather(2, text.tokens.clamp(min=0)[..., None])[..., 0]
    (-each[text.tokens >= 0].mean()).backward()
    for mine, plain in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(mine, plain.grad, rtol=1e-9, atol=1e-12)


def test_fitting_ends_where_smaller_steps_bring_nothing():
    teacher = open_teacher("zoo:unigram?symbols=3&horizon=4")
    settings = NetworkSettings(parameters=300, patience=1, halvings=1, epochs=500)
    text = teacher.sample(400, random())
    report = fit_strings(teacher.spec, text, settings, random()).report
    assert report.converged and len(report.held_out) < 500
    cut = fit_strings(teacher.spec, text, NetworkSettings(parameters=300, epochs=1), random())
    assert not cut.report.converged and len(cut.report.held_out) == 1


def test_the_seed_decides_and_the_global_one_is_left_alone():
    teacher = open_teacher("zoo:markov?symbols=3&horizon=4")
    text, settings = teacher.sample(50, random()), NetworkSettings(parameters=300, epochs=2)
    before = torch.random.get_rng_state()
    marks = [
        fit_strings(
            teacher.spec, text, settings, torch.Generator().manual_seed(seed)
        ).student.spec.fingerprint
        for seed in (3, 3, 4)
    ]
    assert marks[0] == marks[1] != marks[2]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_strings_are_left_out(kind):
    teacher = open_teacher("zoo:registers?k=2&stop=0.3")
    text = strings([[], [0, 1], [1], [], [0, 1, 0], [1, 1]])
    with_none = fit_strings(teacher.spec, text, NetworkSettings(kind=kind, **SMALL), random())
    assert all(map(math.isfinite, with_none.report.held_out)) and with_none.report.tokens == 8
    with pytest.raises(InputError, match="at least 2 strings, one to stop by; got 1"):
        fit_strings(teacher.spec, strings([[], [1], []]), NetworkSettings(), random())


def test_strings_that_stop_early_leave_tokens_for_others():
    teacher = open_teacher("zoo:registers?k=2&stop=0.3")
    ledger = Ledger(teacher)
    text = plain_strings(ledger.samples("learn"), 3000, 40)
    assert 3000 - 40 < int(text.lengths.sum()) <= 3000
    assert ledger.total().tokens_received == int(text.lengths.sum())
    whole = open_teacher("zoo:markov?symbols=3&horizon=8")
    once = plain_strings(Ledger(whole, seed=3).samples("learn"), 83, 40)
    drawn = Ledger(whole, seed=3).samples("learn").complete(Prefixes.of([[]]), 10, max_tokens=8)
    assert torch.equal(once.tokens, drawn.tokens[0]) and len(once.lengths) == 10


def test_what_cannot_be_fitted_is_refused():
    teacher = open_teacher("zoo:markov?symbols=3&horizon=4")
    with pytest.raises(InputError, match="2 are needed"):
        learn_strings(Ledger(teacher), 7, NetworkSettings(), random())
    with pytest.raises(BudgetExhausted):
        learn_strings(Ledger(teacher, Budget(tokens=10)), 400, NetworkSettings(), random())
    with pytest.raises(InputError, match="smallest attention network over 3 tokens has 527"):
        small = NetworkSettings(kind=Kind.ATTENTION, parameters=100)
        fit_strings(teacher.spec, teacher.sample(4, random()), small, random())
    with pytest.raises(InputError, match="at least 2 strings"):
        fit_strings(teacher.spec, teacher.sample(1, random()), NetworkSettings(), random())
    with pytest.raises(InputError, match="epochs must be at least 1"):
        NetworkSettings(epochs=0)
    for rate in (0.0, math.inf):
        with pytest.raises(InputError, match="rate must lie in"):
            NetworkSettings(learning_rate=rate)
    with pytest.raises(InputError, match="must be at least 1"):
        learn_strings(Ledger(teacher), 400, NetworkSettings(), random(), max_tokens=0)
