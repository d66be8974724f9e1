"""The compiled pass for boxes: it only proposes, answers are the same without it, rows are alone."""

import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from proposing import assert_as_without, assert_rows_are_alone, certificates
from test_projection import CASES, box, random_parts

from myna import c_source
from myna.lowrank import projection, proposal
from myna.lowrank.box_projection import box_proposal
from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.projection import project

has_compiler = c_source.built("lowrank/box_projection.c") is not None
compiled = pytest.mark.skipif(not has_compiler, reason="no C compiler here")
BOXES = [name for name, (_, k) in CASES.items() if k.vertices is None]


def random_box(seed):
    """Sizes and bounds of all kinds: parallel and zero rows and columns, floors, more rows than futures."""
    random = np.random.default_rng(seed)
    rank, futures = int(random.integers(2, 12)), int(random.integers(1, 40))
    sketch = random.dirichlet(np.full(futures, random.choice([0.1, 1.0])), size=rank)
    w = random.dirichlet(np.ones(rank), size=3) @ sketch
    w = w * np.exp(random.choice([0.0, 0.5, 2.0]) * random.standard_normal(w.shape))
    kind = random.integers(6)
    if kind == 0:
        sketch[-1] = sketch[0]
    elif kind == 1:
        sketch[:, ::3] = 0
    elif kind == 2:
        w[:, 0] = 0
    low = -float(random.choice([0.0, 0.1, 3.0]))
    high = float(random.choice([1.2 / rank, 0.5, 3.0]))
    floor = random.choice([0.0, 0.3]) * sketch.mean(0) if kind == 3 else np.zeros(futures)
    tables = (torch.from_numpy(table) for table in (sketch, floor))
    sketch, floor = tables
    return torch.from_numpy(w), Polytope(sketch, None, low, max(high, 1.2 / rank), floor)


@compiled
@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("bound", [0.3, 3.0])
def test_proposals_are_certified(divergence, bound):
    sketch, _, w = random_parts(6, batch=300)
    found = certificates(box_proposal, w, box(sketch, bound), divergence)
    assert float(found.gap.max()) < 1e-12 and float(found.violation.max()) < 1e-12
    assert project(w, box(sketch, bound), divergence).iterations.tolist() == [0] * 300


@compiled
@given(st.integers(0, 10_000), st.sampled_from(list(Divergence)))
def test_answers_are_those_without_the_pass(seed, divergence):
    w, k = random_box(seed)
    assert_as_without(w, k, divergence)


@compiled
@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("name", BOXES)
def test_degenerate_answers_are_those_without_the_pass(name, divergence):
    w, k = CASES[name]
    found, plain = assert_as_without(w, k, divergence)
    assert bool(found.solved.all()) and bool(plain.solved.all())


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_a_row_is_the_same_alone_bit_for_bit(divergence):
    sketch, _, w = random_parts(7, batch=40)
    w[3], w[4, 2], w[5] = math.nan, 0.0, 1e200
    k = box(sketch, 0.3)
    assert_rows_are_alone(box_proposal, w, k, divergence)


@compiled
@pytest.mark.parametrize("divergence", Divergence)
def test_a_wrong_proposal_costs_time_and_no_answer(divergence, monkeypatch):
    sketch, _, w = random_parts(8, batch=5)
    k = box(sketch, 0.3)
    wanted = project(w, k, divergence)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((5, k.size), dtype=torch.float64, generator=generator)
    y = torch.rand(w.shape, dtype=torch.float64, generator=generator)
    for wrong in ((x / x.sum(1, keepdim=True), y), (x, y), (x * math.nan, y)):
        monkeypatch.setattr(projection, "box_proposal", lambda *_, wrong=wrong: wrong)
        found = project(w, k, divergence)
        assert bool(found.solved.all())
        torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=3e-10)


@pytest.mark.parametrize("found", [None, "broken"])
def test_without_a_compiler_the_interior_point_answers(found, monkeypatch, tmp_path, capfd):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: None if found is None else str(broken))
    monkeypatch.setattr(proposal, "built", c_source.built.__wrapped__)
    sketch, _, w = random_parts(9, batch=5)
    k = box(sketch, 0.3)
    assert box_proposal(w, k, Divergence.L1) is None
    answer = project(w, k, Divergence.L1)
    assert bool(answer.solved.all()) and int(answer.iterations.min()) > 0
    assert capfd.readouterr() == ("", "")


def test_only_boxes_on_the_cpu_are_proposed_for():
    sketch, vertices, w = random_parts(10)
    hull = Polytope(sketch, vertices, 0.0, math.inf, torch.zeros(len(w[0])).double())
    assert box_proposal(w, hull, Divergence.KL) is None
