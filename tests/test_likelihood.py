"""The likelihood of low-rank operators, its gradient, and the ascents."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.learn.evidence import Evidence
from myna.learn.refine import low_rank, refine, unrolled
from myna.lowrank.ascent import maximise, maximise_positive
from myna.lowrank.likelihood import Operators, Rows, log_likelihood
from myna.lowrank.student import Strings
from myna.spec import Spec, numbered
from myna.teachers.zoo import RandomHmm

TEACHER = RandomHmm(states=3, symbols=3, horizon=5).teacher()


def random_operators(seed, ranks=(1, 3, 2, 2, 3, 1), tokens=3):
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for here, there in itertools.pairwise(ranks):
        table = torch.rand((tokens, here, there), generator=generator, dtype=torch.float64) + 0.1
        steps.append(table / table.sum((0, 2), keepdim=True))
    return Operators(torch.ones(ranks[0], dtype=torch.float64) / ranks[0], tuple(steps))


def random_rows(seed, count=40, width=5, tokens=3):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(0, tokens, (count, width), generator=generator)
    given_ = torch.randint(0, width - 1, (count,), generator=generator)
    more = torch.randint(1, width, (count,), generator=generator)
    lengths = torch.minimum(given_ + more, torch.tensor(width))
    table[torch.arange(width) >= lengths[:, None]] = -1
    counts = torch.randint(1, 5, (count,), generator=generator).double()
    return table, lengths, given_, counts


def naive(operators, table, lengths, given_, counts):
    """sum counts log (Q(x) / Q(prompt)), one row at a time."""

    def chance(row):
        state = operators.first
        for t, token in enumerate(row):
            state = state @ operators.steps[min(t, len(operators.steps) - 1)][token]
        return float(state.sum())

    total = 0.0
    for row, length, prompt, count in zip(table.tolist(), lengths, given_, counts, strict=True):
        total += float(count) * math.log(chance(row[:length]) / chance(row[:prompt]))
    return total


@given(st.integers(0, 10_000))
def test_tree_equals_a_row_at_a_time(seed):
    operators, rows = random_operators(seed), random_rows(seed)
    value, _ = log_likelihood(operators, Rows.of(*rows))
    assert abs(value - naive(operators, *rows)) < 1e-9 * (1 + abs(value))


@given(st.integers(0, 10_000))
def test_gradient_is_the_derivative(seed):
    operators, rows = random_operators(seed), Rows.of(*random_rows(seed))
    _, gradient = log_likelihood(operators, rows)
    flat = [gradient.first, *gradient.steps]
    generator = torch.Generator().manual_seed(seed)
    ways = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in flat]
    slope = sum(float((g * w).sum()) for g, w in zip(flat, ways, strict=True))

    def moved(size):
        parts = [
            p + size * w for p, w in zip([operators.first, *operators.steps], ways, strict=True)
        ]
        return log_likelihood(Operators(parts[0], tuple(parts[1:])), rows)[0]

    assert abs((moved(1e-6) - moved(-1e-6)) / 2e-6 - slope) < 1e-4 * (1 + abs(slope))


def test_blocks_change_nothing(monkeypatch):
    operators, rows = random_operators(3), random_rows(3)
    whole = log_likelihood(operators, Rows.of(*rows))
    monkeypatch.setattr("myna.lowrank.likelihood._BLOCK", 7)
    parts = log_likelihood(operators, Rows.of(*rows))
    assert abs(whole[0] - parts[0]) < 1e-10
    for one, two in zip(whole[1].steps, parts[1].steps, strict=True):
        torch.testing.assert_close(one, two)


def test_an_impossible_answer_is_minus_infinity():
    operators = random_operators(0)
    steps = (operators.steps[0].clone(), *operators.steps[1:])
    steps[0][1] = 0
    rows = Rows.of(
        torch.tensor([[1, 0]]), torch.tensor([2]), torch.tensor([0]), torch.ones(1).double()
    )
    assert log_likelihood(Operators(operators.first, steps), rows)[0] == -math.inf


def teacher_rows(count, seed):
    drawn = TEACHER.sample(count, torch.Generator().manual_seed(seed))
    zeros = torch.zeros(count, dtype=torch.int64)
    return Evidence(drawn.tokens, drawn.lengths, zeros, torch.ones(count).double())


@pytest.mark.parametrize("ascend", [maximise, maximise_positive])
def test_ascent_rises_and_keeps_its_constraints(ascend):
    rows = Rows.of(*teacher_rows(2000, 1))
    start = random_operators(5)
    found, ascent = ascend(start, rows, max_steps=15)
    assert all(b >= a for a, b in zip(ascent.values, ascent.values[1:], strict=False))
    assert ascent.values[-1] > ascent.values[0] + 1e-3
    assert abs(float(found.first.sum()) - 1) < 1e-10
    for step in found.steps:
        torch.testing.assert_close(step.sum((0, 2)), torch.ones(step.shape[1]).double())
    if ascend is maximise_positive:
        assert all(bool((step > 0).all()) for step in found.steps)


def test_refinement_comes_near_the_teacher():
    drawn = TEACHER.sample(3000, torch.Generator().manual_seed(9))
    held_out = Strings(drawn.tokens, drawn.lengths)
    start = random_operators(5, ranks=(1, 3, 3, 3, 3, 1))
    found = refine(
        start, teacher_rows(20_000, 2), held_out, TEACHER.spec, torch.Generator().manual_seed(0)
    )
    names = [name for name, _ in found.stages]
    assert names == ["spanner", "positive", "signed", "signed, 10% back", "signed, 30% back"]
    gap = float(TEACHER.score(held_out).mean()) / 5 - max(value for _, value in found.stages)
    assert gap < 0.003  # 100 parameters over 100,000 tokens: about .0005 expected


def test_unrolled_is_the_same_distribution():
    spec = Spec(numbered(3), None, 4, "unset")
    one = random_operators(1, ranks=(3, 3))
    strings = TEACHER.sample(50, torch.Generator().manual_seed(0), max_tokens=4)
    flat = low_rank(one, spec).score(strings)
    torch.testing.assert_close(low_rank(unrolled(one, 4), spec).score(strings), flat)
