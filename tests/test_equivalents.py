"""Hidden Markov models that have the same laws, or do not exist."""

import itertools

import pytest
import torch
from catalogue import emits_as_it_moves, learned, signed_model

from myna.errors import InputError
from myna.learn.report import Structure
from myna.lowrank.equivalents import hidden_model, process_rank, uniqueness
from myna.lowrank.hidden import hidden_form
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.copies import CopyTeacher
from myna.teachers.uri import open_teacher


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def model_of(first, moves, emits, horizon=8):
    spec = Spec(numbered(emits.shape[1]), None, horizon, "unset")
    blank = LowRankModel.of(spec, torch.ones(1).double(), (Step(emits[:1], emits[:1, :, None]),))
    return hidden_model(blank, table(*first), moves, emits)


def alike(seed=0):
    """Four states of which the last three emit alike; the pasts tell them apart."""
    random = torch.Generator().manual_seed(seed)
    moves = torch.rand((4, 4), generator=random, dtype=torch.float64) + 0.3
    moves = moves / moves.sum(1, keepdim=True)
    emits = table([0.7, 0.2, 0.1], *[[0.1, 0.3, 0.6]] * 3)
    return model_of([0.4, 0.3, 0.2, 0.1], moves, emits, horizon=14)


def two_alike():
    moves = table([0.5, 0.2, 0.3], [0.6, 0.25, 0.15], [0.2, 0.35, 0.45])
    emits = table([0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6])
    return model_of([0.5, 0.2, 0.3], moves, emits)


def every(tokens, length):
    return strings([list(word) for word in itertools.product(range(tokens), repeat=length)])


def up_to_order(one, other):
    """The least largest difference of transitions over all orders of states."""
    moves, target = one.transitions[0], other.transitions[0]
    orders = itertools.permutations(range(len(moves)))
    return min(float((moves[list(p)][:, list(p)] - target).abs().max()) for p in orders)


def test_distinct_emissions_make_the_only_model():
    moves = table([0.9, 0.1], [0.3, 0.7])
    found = uniqueness(model_of([0.5, 0.5], moves, table([0.8, 0.2], [0.3, 0.7])))
    assert found.unique and found.free == 0 and found.other is None
    assert "the only such model" in found.why


@pytest.mark.parametrize(("model", "free"), [(two_alike(), 2), (alike(), 6)])
def test_states_that_emit_alike_give_another_model_with_equal_laws(model, free):
    assert process_rank(model) == model.steps[0].rank
    found = uniqueness(model)
    assert not found.unique and found.free == free
    assert up_to_order(model, found.other) > 1e-3
    words = every(3, 6)
    torch.testing.assert_close(found.other.score(words), model.score(words), rtol=0, atol=1e-11)
    assert found.other.transitions is not None  # a hidden Markov model as it stands


def test_a_copy_whose_states_emit_alike_is_found_to_be_a_hidden_markov_model():
    """Earlier versions said that none fits, as eigenvectors within a group are arbitrary."""
    teacher = CopyTeacher(two_alike())
    copy = learned(teacher, structure=Structure.STATIONARY).student
    for seed in range(5):
        form = hidden_form(copy, torch.Generator().manual_seed(seed))
        assert form.model is not None, form.reason
        words = every(3, 6)
        torch.testing.assert_close(form.model.score(words), teacher.score(words), atol=1e-8, rtol=0)
        assert not uniqueness(form.model).unique


def test_what_is_not_minimal_or_not_invertible_is_not_decided():
    emits = table([0.8, 0.2], [0.3, 0.7], [0.3, 0.7])
    twins = table([0.6, 0.2, 0.2], [0.2, 0.5, 0.3], [0.2, 0.3, 0.5])
    found = uniqueness(model_of([0.5, 0.3, 0.2], twins, emits))
    assert not found.unique and found.free is None and "rank 2 needs no 3 states" in found.why
    still = table([0.5, 0.5], [0.5, 0.5])
    found = uniqueness(model_of([0.9, 0.1], still, emits[:2]))
    assert not found.unique and "singular" in found.why
    with pytest.raises(InputError, match="stationary hidden Markov model"):
        uniqueness(signed_model())


def test_that_no_model_exists_is_said_only_where_it_is_proved():
    form = hidden_form(emits_as_it_moves(0, 3, 3), torch.Generator().manual_seed(0))
    assert form.model is None and form.excluded and "or fewer" in form.reason
    # a state of no use, written over signed coefficients: the form fails, and a model exists
    moves, emits = table([0.6, 0.4], [0.2, 0.8]), table([0.8, 0.2], [0.3, 0.7])
    small = model_of([0.5, 0.5], moves, emits).steps[0]
    wide = torch.block_diag(*[table([1.0])] * 3)
    wide[2] = table([1.4, -0.9, 0.5])  # a history twice, once as a signed combination
    laws = torch.cat([small.laws, (1.4 / 0.5 * small.laws[:1] - 0.9 / 0.5 * small.laws[1:])])
    change = torch.zeros((3, 2, 3), dtype=torch.float64)
    change[:2, :, :2] = small.change
    change[2] = table([0.3, 0.5, 0.2], [0.1, 0.2, 0.7])
    spec = model_of([0.5, 0.5], moves, emits).spec
    redundant = LowRankModel.of(spec, table(0.5, 0.5, 0.0), (Step(laws, change),))
    assert process_rank(redundant) == 2
    form = hidden_form(redundant, torch.Generator().manual_seed(0))
    assert form.model is not None or not form.excluded


@pytest.mark.parametrize("seed", range(3))
def test_random_models_read_from_exact_access_are_the_only_ones(seed):
    teacher = open_teacher(f"zoo:hmm?states=4&symbols=8&horizon=16&seed={seed}")
    copy = learned(teacher, structure=Structure.STATIONARY).student
    form = hidden_form(copy, torch.Generator().manual_seed(0))
    assert form.model is not None and uniqueness(form.model).unique
    assert up_to_order(form.model, hidden_model(form.model, *truth(teacher))) < 1e-8


def truth(teacher):
    return teacher.initial_law, teacher.transition[0], teacher.emission[0]


def test_short_strings_prove_nothing():
    """Two models with equal laws up to the horizon of 2: neither is the only one; at 3 each is."""
    moves, emits = table([0.7, 0.3], [0.2, 0.8]), table([0.8, 0.2], [0.3, 0.7])
    pairs = emits.T @ torch.diag(table(0.5, 0.5)) @ moves @ emits  # P(x1, x2)
    others = table([0.82, 0.18], [0.28, 0.72])
    joint = torch.linalg.inv(others.T) @ pairs @ torch.linalg.inv(others)
    start, moved = joint.sum(1), joint / joint.sum(1, keepdim=True)
    for horizon, proved in ((1, False), (2, False), (3, True), (None, True)):
        models = [
            model_of([0.5, 0.5], moves, emits, horizon),
            model_of(start.tolist(), moved, others, horizon),
        ]
        whole = every(2, horizon or 4)
        gap = (models[0].score(whole).exp() - models[1].score(whole).exp()).abs().max()
        assert (float(gap) > 1e-4) == proved
        for found in map(uniqueness, models):
            assert found.unique == proved
            assert proved or (found.free is None and "strings of" in found.why)
