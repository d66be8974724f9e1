"""What every student promises: sample, score, law and enumeration are one Q."""

import math

import catalogue
import naive
import pytest
import torch

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import (
    Student,
    complete_strings,
    sample_by_steps,
    score_by_steps,
    strings,
)

STUDENTS = catalogue.students()


@pytest.fixture(params=STUDENTS)
def student(request):
    """Only what the protocol declares."""
    opaque = naive.Opaque(STUDENTS[request.param], "student")
    assert isinstance(opaque, Student)
    return opaque


def test_whole_strings_sum_to_one(student):
    rows = naive.all_strings(student.spec)
    scores = student.score(strings(rows))
    assert abs(float(scores.exp().sum()) - 1) < 1e-10
    assert bool(complete_strings(student.spec, strings(rows)).all())


def test_score_is_the_sum_of_laws(student, generator):
    drawn = student.sample(50, generator)
    scores = student.score(drawn)
    for row, length, value in zip(
        drawn.tokens.tolist(), drawn.lengths.tolist(), scores.tolist(), strict=True
    ):
        state, total = student.initial(1), 0.0
        for token in row[:length]:
            total += float(student.law(state)[0, token])
            state, _ = student.step(state, torch.tensor([token]))
        assert abs(total - value) < 1e-10


def test_fast_score_and_sample_equal_the_plain_ones(student):
    one, two = (torch.Generator().manual_seed(4) for _ in range(2))
    fast, slow = student.sample(200, one), sample_by_steps(student, 200, two)
    assert torch.equal(fast.tokens, slow.tokens) and torch.equal(fast.lengths, slow.lengths)
    torch.testing.assert_close(
        student.score(fast), score_by_steps(student, fast), rtol=1e-12, atol=1e-12
    )


def test_samples_follow_scores(student, generator):
    """Each string's count against n Q(x): a chi-square at level 1e-6, rare strings pooled."""
    n = 20_000
    rows = naive.all_strings(student.spec)
    place = {tuple(row): i for i, row in enumerate(rows)}
    expected = n * student.score(strings(rows)).exp()
    drawn = student.sample(n, generator)
    counts = torch.zeros(len(rows)).double()
    for row, length in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True):
        counts[place[tuple(row[:length])]] += 1
    often = expected >= 5
    groups = [torch.cat([part[often], part[~often].sum()[None]]) for part in (counts, expected)]
    kept = groups[1] > 0.5
    statistic = float(((groups[0] - groups[1])[kept].square() / groups[1][kept]).sum())
    freedom = torch.tensor(max(1.0, float(kept.sum()) - 1)).double()
    tail = 1 - torch.special.gammainc(freedom / 2, torch.tensor(statistic / 2).double())
    assert float(tail) > 1e-6


def test_impossible_strings_score_minus_infinity():
    copy = STUDENTS["copy of zoo:copy?n=3&k=2"]
    assert copy.score(strings([[0, 0, 0, 1, 0, 0]])).tolist() == [-math.inf]


def test_malformed_strings_are_refused(student):
    with pytest.raises(InputError, match="tokens must lie"):
        student.score(strings([[99]]))
    with pytest.raises(InputError, match="at most"):
        student.score(strings([[0] * 50]))


def test_ragged_batches_score_as_single_rows(student, generator):
    drawn = student.sample(20, generator)
    lengths = torch.arange(20) % (drawn.lengths.min() + 1)
    batch = strings([drawn.tokens[i, : lengths[i]].tolist() for i in range(20)])
    single = torch.cat(
        [student.score(strings([batch.tokens[i, : lengths[i]].tolist()])) for i in range(20)]
    )
    torch.testing.assert_close(student.score(batch), single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, s in STUDENTS.items() if isinstance(s, LowRankModel)])
def test_low_rank_model_is_the_talks_formulas(name, generator):
    student = STUDENTS[name]
    drawn = student.sample(20, generator)
    rows = [drawn.tokens[i, : drawn.lengths[i]].tolist() for i in range(20)]
    rows += [[0] * len(rows[0])] if student.spec.stop is None else []
    expected = [naive.talk_model(student, row) for row in rows]
    scores = student.score(strings(rows)).tolist()
    assert all(
        value == wanted or abs(value - wanted) < 1e-10
        for value, wanted in zip(scores, expected, strict=True)
    )


def test_signed_model_clips():
    """Raw laws with a negative entry exist, and Q is zero there."""
    model = catalogue.signed_model()
    state, _ = model.step(model.initial(1), torch.tensor([0]))
    raw = state.vector @ model.steps[0].laws
    state, _ = model.step(state, torch.tensor([0]))
    raw = torch.cat([raw, state.vector @ model.steps[0].laws])
    laws = model.law(state).exp()
    assert float((laws.sum(1) - 1).abs().max()) < 1e-12
    assert bool((laws >= 0).all())
