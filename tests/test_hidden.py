import dataclasses
import json

import pytest
import torch
from catalogue import emits_as_it_moves, learned, signed_model
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.app.cli import main
from myna.errors import InputError
from myna.learn.report import Structure
from myna.lowrank.batch import alive_counts, score_columns
from myna.lowrank.hidden import hidden_form
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import strings
from myna.teachers.hmm import Hmm
from myna.teachers.uri import open_teacher


def hidden_copy(uri, seed=0):
    student = learned(open_teacher(uri), structure=Structure.STATIONARY).student
    return student, hidden_form(student, torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 200), states=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_a_copy_of_a_random_hmm_is_found_to_be_one(seed, states):
    uri = f"zoo:hmm?states={states}&symbols=4&horizon=6&concentration=1&seed={seed}"
    teacher = open_teacher(uri)
    student, form = hidden_copy(uri)
    if form.model is None:  # nearly singular: refused, and not said to be impossible
        assert not form.excluded
        return
    drawn = teacher.sample(50, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(form.model.score(drawn), teacher.score(drawn), rtol=0, atol=1e-6)
    assert form.model.ranks == student.ranks
    assert min(float(form.model.steps[0].laws.min()), float(form.model.first.min())) >= 0


def test_the_form_has_the_teachers_own_tables_up_to_the_order_of_states():
    teacher = open_teacher("zoo:hmm?states=3&symbols=4&horizon=6&concentration=1&seed=5")
    _, form = hidden_copy("zoo:hmm?states=3&symbols=4&horizon=6&concentration=1&seed=5")
    found, true = form.model.steps[0].laws, teacher._emission[0]
    order = torch.cdist(true, found).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found[order], true, rtol=0, atol=1e-9)
    moves = form.model.transitions[0][order][:, order]
    torch.testing.assert_close(moves, teacher._transition[0], rtol=0, atol=1e-9)


def scored_by_operators(model, batch):
    """The general path, for a model that would take the filter."""
    order = torch.argsort(batch.lengths, descending=True, stable=True)
    columns = batch.tokens[order].T.contiguous()
    scores = score_columns(
        model.first, model.steps, columns, alive_counts(batch.lengths, len(columns))
    )
    return torch.empty_like(scores).scatter(0, order, scores)


def test_the_filter_equals_the_general_path_on_ragged_and_impossible_rows():
    laws = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6]], dtype=torch.float64)
    moves = torch.tensor([[0.9, 0.1], [0.0, 1.0]], dtype=torch.float64)
    change = moves[:, None].expand(-1, 3, -1) * (laws > 0)[:, :, None]
    spec = dataclasses.replace(open_teacher("zoo:unigram?symbols=3&horizon=5").spec)
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    model = LowRankModel.of(spec, first, (Step(laws, change),))
    assert model.transitions is not None
    batch = strings([[0, 1, 2, 2, 2], [], [0], [2, 0, 1], [0, 2, 0, 1, 1], [1, 1, 1, 2]])
    expected = scored_by_operators(model, batch)
    assert bool((expected == -torch.inf).any()) and float(expected[1]) == 0
    torch.testing.assert_close(model.score(batch), expected)


def test_a_time_varying_hidden_model_is_filtered_too():
    tables = torch.rand((3, 2, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    laws = tables / tables.sum(2, keepdim=True)
    moves = [torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)] * 2
    moves.append(torch.ones((2, 1), dtype=torch.float64))
    steps = tuple(
        Step(law, move[:, None].expand(-1, 3, -1)) for law, move in zip(laws, moves, strict=True)
    )
    spec = open_teacher("zoo:unigram?symbols=3&horizon=3").spec
    model = LowRankModel.of(spec, torch.tensor([0.2, 0.8], dtype=torch.float64), steps)
    assert model.transitions is not None
    batch = strings([[0, 1, 2], [2, 2], [1, 0, 0]])
    torch.testing.assert_close(model.score(batch), scored_by_operators(model, batch))


def test_weights_that_may_be_negative_never_take_the_filter():
    assert signed_model().transitions is None
    flipped = dataclasses.replace(
        hidden_copy("zoo:hmm?states=2&symbols=3&horizon=4&seed=1")[1].model,
        first=torch.tensor([1.2, -0.2], dtype=torch.float64),
    )
    assert flipped.transitions is None


@pytest.mark.parametrize(("states", "seed"), [(2, 0), (2, 2), (3, 0), (3, 1)])
def test_what_is_no_hidden_markov_model_of_its_rank_is_refused_with_the_residual(states, seed):
    """By negative parts and by complex ones."""
    form = hidden_form(emits_as_it_moves(seed, states, states), torch.Generator().manual_seed(0))
    assert form.model is None and form.excluded
    assert form.residual > 1e-2
    assert "or fewer fits" in form.reason


def rows(random, *shape):
    table = torch.rand(shape, generator=random, dtype=torch.float64)
    return table / table.sum(-1, keepdim=True)


@pytest.mark.parametrize("share", [1e-2, 1e-3, 3e-4])
@pytest.mark.parametrize("seed", range(4))
def test_states_that_move_nearly_alike_are_found_by_their_laws(share, seed):
    """Errors of 1e-14 are 1e-7 in the tables; such teachers were said to be impossible."""
    random = torch.Generator().manual_seed(seed)
    emission, initial = rows(random, 4, 5), rows(random, 4)
    moves = rows(random, 1, 4) * (1 - share) + share * rows(random, 4, 4)
    teacher = Hmm(initial, moves[None], emission[None], horizon=16)
    student = learned(teacher, structure=Structure.STATIONARY).student
    form = hidden_form(student, torch.Generator().manual_seed(0))
    assert form.model is not None, form.reason
    drawn = teacher.sample(200, random)
    torch.testing.assert_close(form.model.score(drawn), teacher.score(drawn), rtol=0, atol=1e-8)


@pytest.mark.parametrize("apart", [1e-4, 1e-5, 1e-6])
def test_states_that_emit_nearly_alike_are_told_apart(apart):
    random = torch.Generator().manual_seed(1)
    emission = rows(random, 3, 4)
    emission[2] = emission[1] + apart * (rows(random, 4) - emission[1])
    teacher = Hmm(rows(random, 3), rows(random, 3, 3)[None], emission[None], horizon=12)
    student = learned(teacher, structure=Structure.STATIONARY).student
    form = hidden_form(student, torch.Generator().manual_seed(0))
    assert form.model is not None, form.reason
    drawn = teacher.sample(200, random)
    torch.testing.assert_close(form.model.score(drawn), teacher.score(drawn), rtol=0, atol=1e-7)


def test_negative_parts_that_no_string_meets_do_not_matter():
    """Its raw laws are negative, and all that it can draw is one token for ever."""
    form = hidden_form(signed_model(), torch.Generator().manual_seed(0))
    assert form.model is not None and form.residual > 0.1 and form.laws < 1e-8
    assert "along 100 strings" in form.reason


def test_students_of_another_kind_are_refused():
    varying = learned(open_teacher("zoo:parity?bits=3")).student
    with pytest.raises(InputError, match="for a stationary student"):
        hidden_form(varying, torch.Generator().manual_seed(0))


def test_the_command_writes_tables_that_read_back(monkeypatch, capsys, tmp_path):
    """The truth up to the order of its states, and the same scores as the copy's."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        return done.value.code, capsys.readouterr()

    uri, copy, tables = "zoo:hmm?states=3&symbols=5&horizon=10", tmp_path / "c", tmp_path / "t.npz"
    assert run("learn", uri, "-o", copy, "--stationary")[0] == 0
    code, said = run("hmm", copy, "-o", tables, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["states"] == 3 and record["residual"] < 1e-8
    teacher, again = open_teacher(uri), open_teacher(f"hmm:{tables}?horizon=10")
    drawn = teacher.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.score(drawn), teacher.score(drawn), atol=1e-8, rtol=1e-8)
    code, said = run("hmm", copy)
    assert code == 0 and "3 states" in said.out and "goes to" in said.out
    other = tmp_path / "registers"
    assert run("learn", "zoo:parity?bits=3", "-o", other)[0] == 0
    code, said = run("hmm", other)
    assert code == 2 and "stationary" in said.err
