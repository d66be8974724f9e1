import naive
import pytest
import torch

from myna.errors import InputError
from myna.lowrank.student import strings
from myna.teachers.automaton import Automaton
from myna.teachers.hmm import Hmm


def rows(generator, *shape):
    weights = torch.rand(shape, dtype=torch.float64, generator=generator)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("steps", [1, 4])
def test_scores_are_sums_over_hidden_paths(generator, steps):
    tables = rows(generator, 3), rows(generator, steps, 3, 3), rows(generator, steps, 3, 2)
    teacher = Hmm(*tables, horizon=4)
    every = naive.all_strings(teacher.spec)
    expected = [naive.hmm_probability(*tables, row) for row in every]
    ours = teacher.score(strings(every)).exp()
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_the_fingerprint_changes_with_the_model(generator):
    first, moves, emits = rows(generator, 2), rows(generator, 1, 2, 2), rows(generator, 1, 2, 3)
    marks = {
        Hmm(first, moves, emits, horizon=4).spec.fingerprint,
        Hmm(first, moves, emits, horizon=5).spec.fingerprint,
        Hmm(first, moves, emits.flip(2), horizon=4).spec.fingerprint,
    }
    assert len(marks) == 3
    assert Hmm(first, moves, emits, horizon=4).spec.fingerprint in marks


def test_tables_that_are_no_laws_are_refused(generator):
    first, moves, emits = rows(generator, 2), rows(generator, 1, 2, 2), rows(generator, 1, 2, 3)
    with pytest.raises(InputError, match=r"row of the transition must sum to 1; row \[0\]"):
        Hmm(first, moves * 2, emits)
    with pytest.raises(InputError, match="emission must hold finite probabilities"):
        Hmm(first, moves, -emits)
    with pytest.raises(InputError, match="moves and stop of each state"):
        Automaton(first, moves, torch.ones(2, dtype=torch.float64))
