import dataclasses
import functools

import naive
import pytest
import torch

from myna.errors import FormatError, InputError
from myna.evaluate.distance import enumerate_distance
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.basis_sketch import basis_sketch, sampled_coefficients
from myna.lowrank.divergence import Divergence
from myna.lowrank.model import LowRankModel
from myna.lowrank.projected import ProjectedModel, describe_regions, read_regions
from myna.lowrank.region import (
    TOLERANCE,
    Box,
    Hull,
    Region,
    Truncate,
    fraction_outside,
)
from myna.lowrank.sketch import representative_vectors, stratified_log_proposal
from myna.lowrank.step import Step
from myna.lowrank.student import Student, strings
from myna.teachers.copies import CopyTeacher
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

HMM = "zoo:hmm?states=3&symbols=3&horizon=5"
EXACT = [
    HMM,
    "zoo:hmm?states=3&symbols=3&horizon=5&varying=true&seed=2",
    "zoo:hmm?states=4&symbols=3&horizon=6&concentration=0.3&seed=5",
    "zoo:mixture?components=2&states=2&symbols=3&horizon=6",
    "zoo:permutation?states=3&symbols=3&horizon=6",
    "zoo:parity?bits=6&seed=3",
    "zoo:labels?states=4&length=4",
]


@functools.cache
def exact_copy(uri, structure=None):
    settings = ExactSettings(structure=structure)
    student = learn_exact(
        Ledger(open_teacher(uri)), settings, torch.Generator().manual_seed(0)
    ).student
    assert student is not None
    return student


def made_regions(model, kind, generator, count=300):
    """The default region of a kind at every stored step, from histories the model draws."""
    horizon = model.spec.horizon
    points = sampled_coefficients(model, count, horizon, generator)
    if len(model.steps) == 1:
        points = (torch.cat(points),)
    made = []
    for t, rows in enumerate(points):
        sketch = basis_sketch(model, t, 20, 4, generator)
        made.append(
            {
                "box": lambda r=rows, s=sketch: Box.around(r, s),
                "hull": lambda r=rows, s=sketch: Hull(r, s),
                "truncate": lambda r=rows: Truncate(3 * float(r.abs().max())),
                "none": lambda: None,
            }[kind]()
        )
    return tuple(made)


def perturbed(model, size, generator):
    """Laws and changes of basis with relative noise, laws summing to one."""

    def shake(table):
        noise = torch.randn(table.shape, dtype=torch.float64, generator=generator)
        return table * (1 + size * noise)

    steps = []
    for step in model.steps:
        laws = shake(step.laws).clamp(min=0)
        steps.append(Step(laws / laws.sum(1, keepdim=True), shake(step.change), step.histories))
    return LowRankModel.of(model.spec, model.first, tuple(steps))


def total_variation(teacher, student):
    return enumerate_distance(Ledger(teacher).laws("certify"), student).total_variation


@pytest.mark.parametrize("kind", ["box", "hull", "truncate"])
@pytest.mark.parametrize("uri", EXACT)
def test_with_exact_laws_no_default_region_raises_the_distance(uri, kind, generator):
    copy = exact_copy(uri)
    regions = made_regions(copy, kind, generator)
    for divergence in Divergence if (kind, uri) == ("hull", HMM) else [Divergence.KL]:
        student = ProjectedModel.of(copy, regions, divergence)
        assert total_variation(open_teacher(uri), student) < 1e-6


def test_a_stationary_copy_is_projected_at_every_position(generator):
    copy = exact_copy(HMM, Structure.STATIONARY)
    (region,) = made_regions(copy, "hull", generator)
    student = ProjectedModel.of(copy, (region,))
    assert total_variation(open_teacher(HMM), student) < 1e-6
    assert student.region_at(0) is student.region_at(4) is region
    assert student.region_at(5) is None
    narrow = ProjectedModel.of(copy, (dataclasses.replace(region, points=region.points[:1]),))
    assert total_variation(open_teacher(HMM), narrow) > 1e-2


def test_the_error_goes_to_zero_with_the_noise_in_every_region(generator):
    copy, teacher = exact_copy(HMM), open_teacher(HMM)
    for kind in ("box", "hull", "truncate", "none"):
        errors = []
        for size in (0.3, 0.03, 0.003):
            noisy = perturbed(copy, size, torch.Generator().manual_seed(1))
            regions = made_regions(noisy, kind, generator)
            errors.append(total_variation(teacher, ProjectedModel.of(noisy, regions)))
        assert errors[2] < 0.1 * errors[0]
        assert errors[2] < 0.01


@pytest.mark.parametrize("divergence", Divergence)
def test_active_projections_leave_one_distribution(divergence, generator):
    """Where nearly every step is moved, laws, score and enumeration still agree."""
    noisy = perturbed(exact_copy(HMM), 0.3, generator)
    regions = made_regions(exact_copy(HMM), "hull", generator)
    tight = tuple(dataclasses.replace(r, points=r.points[:4], margin=0.0) for r in regions)
    student = ProjectedModel.of(noisy, tight, divergence)
    assert isinstance(student, Student)
    rows = naive.all_strings(student.spec)
    scores = student.score(strings(rows))
    assert abs(float(scores.exp().sum()) - 1) < 1e-10
    assert float((scores - noisy.score(strings(rows))).abs().max()) > 1e-2
    teacher = CopyTeacher(student)
    for row, score in list(zip(rows, scores.tolist(), strict=True))[::60]:
        assert abs(naive.chain_rule(teacher, row) - score) < 1e-6


def laws_and_sketch(generator):
    """Three laws on a line's worth of futures, and their sketch."""
    laws = torch.rand((3, 40), dtype=torch.float64, generator=generator)
    log_probs = (laws / laws.sum(1, keepdim=True)).log()
    return representative_vectors(log_probs, stratified_log_proposal(log_probs))


@pytest.mark.parametrize("divergence", Divergence)
def test_points_inside_are_left_bit_for_bit(divergence, generator):
    sketch = laws_and_sketch(generator)
    corners = torch.eye(3).double()
    x = torch.rand((50, 3), dtype=torch.float64, generator=generator)
    inside = x / x.sum(1, keepdim=True)
    for region in (Hull(corners, sketch, 0.0), Box(sketch, 1.0), Truncate(1.0)):
        assert isinstance(region, Region)
        settled = region.settle(inside, divergence)
        assert torch.equal(settled.coefficients, inside)
        assert not bool((settled.outside | settled.failed).any())
        scaled = 3 * inside  # the same histories: a scale is not a move
        assert torch.equal(region.settle(scaled, divergence).coefficients, scaled)


@pytest.mark.parametrize("divergence", Divergence)
def test_points_outside_come_back_inside(divergence, generator):
    sketch = laws_and_sketch(generator)
    outside = torch.tensor([[1.6, -0.2, -0.4], [0.2, 1.1, -0.3]]).double()
    hull, box = Hull(torch.eye(3).double(), sketch, 0.0), Box(sketch, 0.9)
    for region in (hull, box, Truncate(0.9)):
        settled = region.settle(outside, divergence)
        assert bool(settled.outside.all()) and not bool(settled.failed.any())
        torch.testing.assert_close(settled.coefficients.sum(1), torch.ones(2).double())
    assert float(hull.settle(outside, divergence).coefficients.min()) > -1e-12
    assert float(box.settle(outside, divergence).coefficients.abs().max()) <= 0.9 + 1e-9
    lost = torch.tensor([[2.0, -0.5, -0.5]]).double()  # clipped, nothing is left to scale
    settled = Truncate(0.9).settle(lost, divergence)
    assert bool(settled.failed.all()) and torch.equal(settled.coefficients, lost)
    dead = torch.zeros((1, 3)).double()
    assert torch.equal(hull.settle(dead, divergence).coefficients, dead)


def test_the_share_of_fresh_histories_outside(generator):
    sketch = laws_and_sketch(generator)
    law = torch.distributions.Dirichlet(torch.ones(3).double())
    torch.manual_seed(0)
    points, fresh, more = law.sample((12,)), law.sample((200,)), law.sample((1000,))
    shares = [fraction_outside(Hull(points, sketch, m), fresh) for m in (0.0, 0.2, 1.0, 8.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.05 and shares[-1] == 0
    held = Hull.holding(points, fresh, sketch)
    assert fraction_outside(held, fresh) == 0 and held.margin > 0
    assert fraction_outside(held, more) < 0.02
    assert fraction_outside(Truncate(0.5), torch.eye(3).double()) == 1
    # at a distance of the tolerance nothing counts as outside
    edge = torch.tensor([[1 + TOLERANCE / 10, -TOLERANCE / 10, 0.0]]).double()
    assert fraction_outside(Hull(torch.eye(3).double(), sketch, 0.0), edge) == 0


def test_regions_survive_being_described(generator):
    copy = exact_copy(HMM)
    boxes, hulls = (made_regions(copy, kind, generator) for kind in ("box", "hull"))
    regions = (None, boxes[1], hulls[2], Truncate(2.5), hulls[4])
    student = ProjectedModel.of(copy, regions, Divergence.L1)
    tensors, text = describe_regions(student.regions, student.divergence)
    again = ProjectedModel.of(copy, *read_regions(tensors, text))
    assert again.spec.fingerprint == student.spec.fingerprint != copy.spec.fingerprint
    drawn = student.sample(15, generator)
    assert torch.equal(again.score(drawn), student.score(drawn))
    assert torch.equal(student.to("cpu").score(drawn), student.score(drawn))
    del tensors["region.2.points"]
    with pytest.raises(FormatError, match=r"lacks or garbles 'region\.2\.points'"):
        read_regions(tensors, text)
    text["regions"][3] = {"kind": "sphere"}
    with pytest.raises(FormatError, match="kind 'sphere'"):
        read_regions(tensors | {"region.2.points": hulls[2].points}, text)


def test_bad_regions_are_refused(generator):
    copy, sketch = exact_copy(HMM), laws_and_sketch(generator)
    with pytest.raises(InputError, match="as many regions"):
        ProjectedModel.of(copy, (None,))
    with pytest.raises(InputError, match="for rank 2"):
        ProjectedModel.of(copy, (None, None, Box(sketch[:2], 1.0), None, None))
    with pytest.raises(InputError, match="bound > 0"):
        Truncate(0.0)
    with pytest.raises(InputError, match="margin >= 0"):
        Hull(torch.eye(3).double(), sketch, -1.0)
    with pytest.raises(InputError, match="cannot sum to one"):
        Box(sketch, 0.1)
    with pytest.raises(InputError, match="at least one point"):
        fraction_outside(Truncate(1.0), torch.empty((0, 3)).double())
    with pytest.raises(InputError, match="before the horizon"):
        basis_sketch(copy, 5, 1, 1, generator)


def test_a_basis_sketch_holds_the_laws_of_its_futures(generator):
    """Every entry is Q(f | h_i) / (m D(f)): columns sum to 1 / k, norms near one."""
    copy, each = exact_copy(HMM), 40
    sketch = basis_sketch(copy, 2, each, 3, generator)
    assert sketch.shape == (copy.step_at(2).rank, copy.step_at(2).rank * each)
    torch.testing.assert_close(sketch.sum(0), torch.full_like(sketch[0], 1 / each))
    assert float((sketch.sum(1) - 1).abs().max()) < 0.5
    points = sampled_coefficients(copy, 20, 5, generator)
    assert [p.shape[1] for p in points] == list(copy.ranks)
