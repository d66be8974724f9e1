"""The compiled pass for hulls: it only proposes, answers are the same without it, rows are alone."""

import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from proposing import assert_as_without, assert_rows_are_alone, certificates, without
from test_projection import CASES, hull, random_parts

from myna import c_source
from myna.lowrank import projection, proposal
from myna.lowrank.divergence import Divergence
from myna.lowrank.hull_projection import hull_proposal
from myna.lowrank.polytope import Polytope
from myna.lowrank.projection import project

has_compiler = c_source.built("lowrank/hull_projection.c") is not None
compiled = pytest.mark.skipif(not has_compiler, reason="no C compiler here")
HULLS = [name for name, (_, k) in CASES.items() if k.vertices is not None]
KINDS = [
    "any",
    "parallel rows",
    "zero columns",
    "at vertices",
    "repeated",
    "segment",
    "far",
    "signed",
]


def random_hull(seed, kind):
    """Sizes of all kinds, also fewer vertices than rank and fewer futures."""
    random = np.random.default_rng(seed)
    rank, futures = int(random.integers(1, 12)), int(random.integers(1, 40))
    vertices = int(random.integers(1, 60))
    sketch = random.dirichlet(np.full(futures, random.choice([0.2, 1.0])), size=rank)
    points = random.dirichlet(np.full(rank, random.choice([0.2, 1.0])), size=vertices)
    w = random.dirichlet(np.ones(rank), size=3) @ sketch
    w = w * np.exp(random.choice([0.0, 0.5, 2.0]) * random.standard_normal(w.shape))
    if kind == "parallel rows":
        sketch[-1] = sketch[0]
    elif kind == "zero columns":
        sketch[:, ::3] = 0
    elif kind == "at vertices":
        w = points[random.integers(vertices, size=3)] @ sketch
    elif kind == "repeated":
        points = points[random.integers(vertices, size=vertices)]
    elif kind == "segment":
        share = np.linspace(0, 1, vertices)[:, None]
        points = points[:1] + share * (points[-1:] - points[:1])
    elif kind == "far":
        w = w * 10.0 ** random.integers(-3, 5)
    elif kind == "signed":
        points = points - 1.5 / rank
    tables = (torch.from_numpy(table) for table in (w, sketch, points))
    w, sketch, points = tables
    return w, hull(sketch, points, -9.0 if kind == "signed" else 0.0)


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_proposals_are_certified(divergence):
    sketch, vertices, w = random_parts(6, batch=300)
    k = hull(sketch, vertices)
    found = certificates(hull_proposal, w, k, divergence)
    assert float(found.gap.max()) < 1e-12 and float(found.violation.max()) == 0
    assert project(w, k, divergence).iterations.tolist() == [0] * 300


@compiled
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from(list(Divergence)))
def test_answers_are_those_without_the_pass(seed, kind, divergence):
    w, k = random_hull(seed, kind)
    assert_as_without(w, k, divergence)


@compiled
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_least_squares_needs_no_other_solver(seed, kind):
    """Where no coordinate of the sketch is all zeros, which `project` leaves out anyway."""
    w, k = random_hull(seed, kind)
    if bool((k.sketch != 0).any()):
        found = certificates(hull_proposal, w, k, Divergence.L2)
        assert bool((found.gap <= 1e-10 * found.value.clamp(min=1)).all())


@compiled
@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("name", HULLS)
def test_degenerate_answers_are_those_without_the_pass(name, divergence):
    w, k = CASES[name]
    found, plain = assert_as_without(w, k, divergence)
    assert bool(found.solved.all()) and bool(plain.solved.all())


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_a_row_is_the_same_alone_bit_for_bit(divergence):
    sketch, vertices, w = random_parts(7, batch=40)
    w[3], w[4, 2], w[5] = math.nan, 0.0, 1e200
    k = hull(sketch, vertices)
    x = assert_rows_are_alone(hull_proposal, w, k, divergence)
    assert not bool(x.isnan().any())


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_a_wrong_proposal_costs_time_and_no_answer(divergence, monkeypatch):
    sketch, vertices, w = random_parts(8, batch=5)
    k = hull(sketch, vertices)
    wanted = project(w, k, divergence)
    x, y = hull_proposal(w, k, divergence)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((5, k.size), dtype=torch.float64, generator=generator)
    swapped = x[torch.arange(5).roll(1)]
    lighter, negative = 0.9 * x, 2 * x - noise / noise.sum(1, keepdim=True)
    wrongs = [(swapped, y), (lighter, y), (negative, y), (x * math.nan, y), (x, 5 + y), (x, -y)]
    for wrong in wrongs:
        monkeypatch.setattr(projection, "hull_proposal", lambda *_, wrong=wrong: wrong)
        found = project(w, k, divergence)
        assert bool(found.solved.all()) and int(found.iterations.min()) > 0
        torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=3e-10)


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_floors_that_bind_are_left_to_the_interior_point(divergence):
    sketch, vertices, w = random_parts(9, batch=5)
    k = hull(sketch, vertices, 0.5 * (vertices @ sketch).mean(0))
    found, plain = project(w, k, divergence), without(w, k, divergence)
    assert bool(found.solved.all()) and int(found.iterations.max()) > 0
    torch.testing.assert_close(found.value, plain.value, rtol=0, atol=2.1e-10)


@pytest.mark.parametrize("found", [None, "broken"])
def test_without_a_compiler_the_interior_point_answers(found, monkeypatch, tmp_path, capfd):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: None if found is None else str(broken))
    monkeypatch.setattr(proposal, "built", c_source.built.__wrapped__)
    sketch, vertices, w = random_parts(9, batch=5)
    k = hull(sketch, vertices)
    assert hull_proposal(w, k, Divergence.L1) is None
    answer = project(w, k, Divergence.L1)
    assert bool(answer.solved.all()) and int(answer.iterations.min()) > 0
    assert capfd.readouterr() == ("", "")


def test_only_hulls_on_the_cpu_are_proposed_for():
    sketch, vertices, w = random_parts(10)
    floor = torch.zeros(len(w[0])).double()
    for k in (
        Polytope(sketch, None, 0.0, math.inf, floor),
        Polytope(sketch, vertices, 0.0, 0.5, floor),
        Polytope(sketch, vertices, -0.1, math.inf, floor),
    ):
        assert hull_proposal(w, k, Divergence.KL) is None
