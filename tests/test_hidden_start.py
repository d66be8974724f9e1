import math

import pytest
import torch

from myna.errors import InputError
from myna.learn.baum_welch import EmSettings, HmmParameters, fit_hmm
from myna.learn.evidence import Evidence
from myna.learn.hidden_start import hidden_start, merged_states, refine_hmm
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings
from myna.spec import Spec, numbered

LANGUAGE = Spec(numbered(4), None, 12, "unset")


def truth():
    moves = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]]).double()
    emits = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])
    start = torch.tensor([0.5, 0.3, 0.2]).double()
    return HmmParameters(start, moves[None], emits.double()[None])


def drawn(count, generator) -> tuple[LowRankModel, Evidence]:
    model = truth().model(LANGUAGE)
    sample = model.sample(count, generator)
    none = torch.zeros(count, dtype=torch.int64)
    return model, Evidence(*sample, none, torch.ones(count, dtype=torch.float64))


def test_an_exact_student_gives_back_its_states_up_to_order(generator):
    model, evidence = drawn(4000, generator)
    start = hidden_start(model, evidence, 3, Structure.STATIONARY, generator)
    found, _ = fit_hmm(evidence, start, EmSettings(max_iterations=100))
    distance = torch.cdist(truth().emission[0], found.emission[0], p=1)
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]
    assert float(distance.min(1).values.max()) < 0.15


@pytest.mark.parametrize("structure", list(Structure))
@pytest.mark.parametrize("states", [1, 2, 5])
def test_climbing_never_lowers_the_likelihood_of_a_start(structure, states, generator):
    model, evidence = drawn(300, generator)
    start = hidden_start(model, evidence, states, structure, generator)
    assert len(start.transition) == (1 if structure is Structure.STATIONARY else 12)
    assert all(bool((table > 0).all()) for table in start.tables)
    _, report = fit_hmm(evidence, start, EmSettings(max_iterations=10))
    assert report.trace[-1].log_likelihood >= report.trace[0].log_likelihood


def test_refining_climbs_to_where_an_iteration_gains_nothing(generator):
    model, evidence = drawn(300, generator)
    settings = EmSettings(tolerance_nats=1e-6)
    student, report = refine_hmm(model, evidence, 3, settings, generator)
    assert report.converged
    values = [point.log_likelihood for point in report.trace]
    assert values[-1] == max(values) > values[0]
    assert student.transitions is not None


def test_merging_undoes_a_split_state():
    """States that were one, with its mass divided unevenly, become it again: the same law."""
    whole = truth()
    first, moves, emits = whole.initial, whole.transition[0], whole.emission[0]
    part = torch.tensor([0.3, 0.7], dtype=torch.float64)
    wide = HmmParameters(
        torch.cat([first[:2], first[2] * part]),
        torch.cat([moves[:, :2], moves[:, 2:] * part], 1)[[0, 1, 2, 2]][None],
        emits[[0, 1, 2, 2]][None],
    )
    found = merged_states(wide, 3, 12)
    for table, expected in zip(found.tables, whole.tables, strict=True):
        assert torch.allclose(table, expected, atol=1e-6)


def test_no_states_and_no_strings_are_refused(generator):
    model, evidence = drawn(5, generator)
    with pytest.raises(InputError, match="at least 1 state"):
        hidden_start(model, evidence, 0, Structure.STATIONARY, generator)
    nothing = evidence._replace(counts=torch.zeros(5, dtype=torch.float64))
    with pytest.raises(InputError, match="has none"):
        hidden_start(model, nothing, 2, Structure.STATIONARY, generator)


def test_positions_that_no_string_reaches_have_no_clusters(generator):
    """Most strings stop early, and the horizon is far."""
    emits = torch.full((1, 2, 5), 0.1, dtype=torch.float64)
    emits[0, 0, 0] = emits[0, 1, 1] = 0.3
    emits[0, :, 4] = 0.4
    moves = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    model = HmmParameters(moves[0, 0], moves, emits).model(Spec(numbered(5), 4, 40, "unset"))
    sample = model.sample(50, generator)
    none = torch.zeros(50, dtype=torch.int64)
    wide = torch.nn.functional.pad(sample.tokens, (0, 40 - sample.tokens.shape[1]), value=-1)
    evidence = Evidence(wide, sample.lengths, none, torch.ones(50, dtype=torch.float64))
    start = hidden_start(model, evidence, 2, Structure.TIME_VARYING, generator)
    assert len(start.transition) == 40
    assert math.isfinite(fit_hmm(evidence, start, EmSettings(max_iterations=2))[1].score)


@pytest.mark.parametrize("structure", list(Structure))
def test_what_the_starts_strings_lack_stays_possible(structure, generator):
    """One token comes 100 times less often than the start has strings."""
    count = 20_000
    tokens = torch.randint(2, (count, 6), generator=generator)
    tokens[-1, 3] = 2
    none, lengths = torch.zeros(count, dtype=torch.int64), torch.full((count,), 6)
    evidence = Evidence(tokens, lengths, none, torch.ones(count, dtype=torch.float64))
    laws = torch.tensor([[[0.5, 0.49, 0.01]]]).double()
    ones = torch.ones((1, 1, 1), dtype=torch.float64)
    model = HmmParameters(ones[0, 0], ones, laws).model(Spec(numbered(3), None, 6, "unset"))
    settings = EmSettings(structure=structure, max_iterations=3)
    student, report = refine_hmm(model, evidence, 2, settings, generator)
    assert math.isfinite(report.score)
    rare = student.score(Strings(tokens[-1:], lengths[-1:]))
    places = count * (6 if structure is Structure.STATIONARY else 1)
    assert float(rare) == pytest.approx(5 * math.log(0.5) - math.log(places), abs=0.1)


def test_states_that_are_never_reached_are_merged_evenly():
    one, two = torch.tensor([1.0, 0.0, 0.0]).double(), torch.eye(3).double()
    emits = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]]).double()
    found = merged_states(HmmParameters(one, two[None], emits[None]), 2, 12)
    torch.testing.assert_close(found.emission[0], torch.full((2, 2), 0.5).double())
    assert found.initial.tolist() == [1, 0]
