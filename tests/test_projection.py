import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.lowrank.divergence import Divergence
from myna.lowrank.polytope import Polytope
from myna.lowrank.projection import Status, project
from myna.lowrank.sketch import representative_vectors, stratified_log_proposal
from myna.lowrank.spanner import barycentric_spanner

RANK, FUTURES, VERTICES = 5, 24, 30
BREGMAN = [Divergence.KL, Divergence.L2]


def random_parts(seed, concentration=1.0, batch=1):
    """Sketch, vertices and targets near the hull."""
    random = np.random.default_rng(seed)
    sketch = random.dirichlet(np.full(FUTURES, concentration), size=RANK)
    vertices = random.dirichlet(np.ones(RANK), size=VERTICES)
    inside = random.dirichlet(np.ones(RANK), size=batch) @ sketch
    targets = inside * np.exp(0.7 * random.standard_normal((batch, FUTURES)))
    return tuple(torch.from_numpy(table) for table in (sketch, vertices, targets))


def box(sketch, bound=3.0, floor=0.0):
    return Polytope(sketch, None, -bound, bound, torch.zeros(sketch.shape[1]).double() + floor)


def hull(sketch, vertices, floor=0.0):
    return Polytope(sketch, vertices, 0.0, math.inf, torch.zeros(sketch.shape[1]).double() + floor)


def degenerate():
    """Name, target and set: parallel vectors, empty interiors, zeros, single points."""
    sketch, vertices, w = random_parts(1)
    yield "box", w, box(sketch)
    yield "tight box", w, box(sketch, 0.3)
    yield "box above a floor", w, box(sketch, 3.0, 0.002)
    yield "hull", w, hull(sketch, vertices)
    yield "hull above a floor", w, hull(sketch, vertices, 0.004)
    yield "inside", vertices.mean(0, keepdim=True) @ sketch, hull(sketch, vertices)
    yield "vertex", vertices[4:5] @ sketch, hull(sketch, vertices)
    yield "large target", 1e3 * w, hull(sketch, vertices)
    tiny = w.clone()
    tiny[0, 4], tiny[0, 7] = 1e-12, 1e-9
    yield "tiny entries", tiny, hull(sketch, vertices)
    parallel = sketch.clone()
    parallel[1], parallel[3] = sketch[0], sketch[2]
    yield "parallel rows, box", w, box(parallel)
    yield "parallel rows, hull", w, hull(parallel, vertices)
    yield "repeated vertices", w, hull(sketch, vertices[:3].repeat(8, 1))
    segment = vertices[:1] + torch.linspace(0, 1, 25).double()[:, None] * (
        vertices[1:2] - vertices[:1]
    )
    yield "segment", w, hull(sketch, segment)
    zeros = sketch.clone()
    zeros[:, ::3] = 0
    yield "zero columns, box", w, box(zeros)
    yield "zero columns, hull", w, hull(zeros, vertices)
    sparse = random_parts(2, 0.1)[0]
    sparse = sparse.where(sparse > 1e-3, 0.0)
    yield "sparse, box", w, box(sparse)
    yield "sparse, hull", w, hull(sparse, vertices)
    face, on_face = sketch.clone(), w.clone()
    face[:2, :5], on_face[:, :5] = 0, 0
    corners = torch.cat([vertices, torch.eye(RANK).double()])
    yield "zero targets, a face of the hull", on_face, hull(face, corners)
    yield "zero targets, signed", on_face, box(face)
    yield "nothing but zeros, box", w, box(0 * sketch)
    yield "nothing but zeros, hull", w, hull(0 * sketch, vertices)
    yield "single vertex", w, hull(sketch, vertices[:1])
    yield "two vertices", w, hull(sketch, vertices[:2])
    yield "one row", w, box(sketch[:1])
    yield "box of one point", w, box(sketch, 1 / RANK)
    laws = vertices @ sketch
    edge = torch.zeros(FUTURES).double()
    edge[3] = laws[:, 3].max()
    yield "floor that one vertex meets", w, hull(sketch, vertices, edge)
    yield "floor that one point meets", w, hull(sketch, vertices, laws.mean(0))


CASES = {name: (w, k) for name, w, k in degenerate()}


def clarabel(w, k, divergence):
    """The least value by CVXPY and Clarabel, from the definition."""
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed: pip install myna[dev]")
    x = cp.Variable(k.size)
    rows = k.sketch if k.vertices is None else k.vertices @ k.sketch
    z, w = x @ rows.numpy(), w.numpy()
    limits = [cp.sum(x) == 1, x >= k.low, z >= k.floor.numpy()]
    if k.bounded:
        limits.append(x <= k.high)
    if divergence is Divergence.KL:
        # not kl_div: with tiny constants it misses the optimum by 1e-2 and calls it optimal
        some = w > 0
        limits.append(z[~some] == 0)
        fixed = np.log(w, where=some, out=np.zeros_like(w))
        loss = cp.sum(-cp.entr(z) - cp.multiply(fixed, z) - z + w)
    elif divergence is Divergence.L1:
        loss = cp.norm1(z - w)
    else:
        loss = cp.sum_squares(z - w) / 2
    problem = cp.Problem(cp.Minimize(loss), limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10, max_iter=500
        )
    assert problem.status in ("optimal", "optimal_inaccurate")
    return problem.value


@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("name", CASES)
def test_objective_is_clarabels(name, divergence):
    w, k = CASES[name]
    found = project(w, k, divergence)
    wanted = clarabel(w[0], k, divergence)
    assert abs(float(found.value) - wanted) <= 1e-8 * max(1.0, abs(wanted))


@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("name", CASES)
def test_every_degenerate_case_is_certified(name, divergence):
    w, k = CASES[name]
    found = project(w, k, divergence)
    assert found.reasons() == (Status.SOLVED.reason,)
    assert float(found.gap) <= 1e-10 * max(1.0, float(found.value))
    assert float(found.violation) <= 1e-10
    assert abs(float(found.weights.sum()) - 1) < 1e-12
    assert k.low - 1e-12 <= float(found.weights.min())
    assert float(found.weights.max()) <= k.high + 1e-12
    torch.testing.assert_close(found.sketches, found.coefficients @ k.sketch)


@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("kind", ["box", "hull"])
def test_random_batches_are_certified_and_rows_are_independent(divergence, kind):
    sketch, vertices, w = random_parts(3, batch=200)
    k = box(sketch, 0.5) if kind == "box" else hull(sketch, vertices)
    found = project(w, k, divergence)
    assert bool(found.solved.all())
    for row in range(0, 200, 40):
        alone = project(w[row : row + 1], k, divergence)
        torch.testing.assert_close(alone.value, found.value[row : row + 1], rtol=0, atol=2e-10)
        assert int(alone.iterations) == int(found.iterations[row])


@given(st.integers(0, 10_000), st.sampled_from(list(Divergence)), st.booleans())
def test_no_point_of_the_set_is_better_than_the_certificate(seed, divergence, boxed):
    sketch, vertices, w = random_parts(seed)
    k = box(sketch) if boxed else hull(sketch, vertices)
    found = project(w, k, divergence)
    random = np.random.default_rng(seed)
    # points near the answer, where a better one would be
    others = torch.from_numpy(random.dirichlet(np.ones(k.size), size=400))
    share = torch.from_numpy(10.0 ** random.uniform(-6, 0, size=(400, 1)))
    z = k.sketched((1 - share) * found.weights + share * others)
    feasible = (z >= k.floor).all(1)
    values = divergence.between(z, w.expand(400, -1))[feasible]
    assert float(values.min()) >= float(found.value - found.gap) - 1e-13


@given(st.integers(0, 10_000), st.sampled_from(BREGMAN), st.sampled_from(["box", "hull", "floor"]))
def test_pythagorean_inequality(seed, divergence, kind):
    """d(z, z*) + d(z*, w) <= d(z, w) for z in K: projecting never adds to the error."""
    sketch, vertices, w = random_parts(seed)
    k = {
        "box": lambda: box(sketch, 0.4),
        "hull": lambda: hull(sketch, vertices),
        "floor": lambda: hull(sketch, vertices, 0.5 * (vertices @ sketch).mean(0)),
    }[kind]()
    found = project(w, k, divergence, tolerance=1e-12)
    x = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(k.size, 0.3), size=50))
    z = k.sketched(x)
    z = z[(z >= k.floor).all(1) & (x <= k.high).all(1)]
    near = divergence.between(z, found.sketches.expand_as(z)) + found.value
    assert bool((near <= divergence.between(z, w.expand_as(z)) + 1e-8).all())


def test_l1_projection_approaches_its_factor_of_two():
    """K = conv{0, y} with y = (1, 1 + e), target x = (1, 0).

    |s y - x| = 1 - s + s (1 + e) is least at s = 0, so the projection is 0, at distance
    2 + e from y, while x was at 1 + e: the ratio tends to 2.
    """
    for e in (1.0, 0.1, 0.01, 1e-3):
        vertices = torch.tensor([[0.0, 0.0], [1.0, 1 + e]], dtype=torch.float64)
        k, x, y = hull(torch.eye(2).double(), vertices), torch.tensor([[1.0, 0.0]]), vertices[1:]
        found = project(x.double(), k, Divergence.L1, tolerance=1e-12)
        ratio = float(Divergence.L1.between(found.sketches, y) / Divergence.L1.between(x, y))
        assert ratio == pytest.approx((2 + e) / (1 + e), abs=1e-8)
    assert ratio > 1.99


def test_the_talks_counterexample():
    vertices = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    k, x = hull(torch.eye(2).double(), vertices), torch.tensor([[1.0, 1.0]]).double()
    found = project(x, k, Divergence.L1)
    torch.testing.assert_close(found.sketches, torch.tensor([[0.5, 1.0]]).double())
    assert float(Divergence.L1.between(found.sketches, vertices[1:])) == pytest.approx(1.5)
    kl = project(x, k, Divergence.KL)
    after = Divergence.KL.between(vertices[1:], kl.sketches)
    assert float(after) < float(Divergence.KL.between(vertices[1:], x))


def noisy_low_rank(generator, histories=30, futures=400, rank=3, off=0.02):
    """Laws within `off` (l1, about) of rank 3."""
    left = torch.rand((histories, rank), dtype=torch.float64, generator=generator)
    right = torch.rand((rank, futures), dtype=torch.float64, generator=generator) ** 4
    noise = torch.rand((histories, futures), dtype=torch.float64, generator=generator)
    laws = (left / left.sum(1, keepdim=True)) @ (right / right.sum(1, keepdim=True))
    laws = laws / laws.sum(1, keepdim=True)
    return (1 - off) * laws + off * noise / noise.sum(1, keepdim=True)


def sketched(laws, each, generator):
    drawn = torch.multinomial(laws, each, replacement=True, generator=generator)
    log_probs = laws[:, drawn.reshape(-1)].log()
    return representative_vectors(log_probs, stratified_log_proposal(log_probs))


def test_an_l1_spanner_of_sketches_is_one_of_laws(generator):
    """Robustly: what each history's combination misses in l1 is the same in both spaces."""
    laws = noisy_low_rank(generator, off=0.3)
    worst = []
    for each in (1, 20, 400):
        sketch = sketched(laws, each, generator)
        found = barycentric_spanner(sketch, bound=2.0, max_rank=3)
        assert found.bound <= 2.5
        missed = [
            (table - found.coefficients @ table[found.indices]).abs().sum(1)
            for table in (sketch, laws)
        ]
        worst.append(float((missed[0] - missed[1]).abs().max()))
    assert worst[0] > 0.03 and worst[2] < 0.01
    assert 0.1 < float(missed[1].max()) < 0.3


def test_truncated_kl_of_sketches_approaches_the_enumerated_kl(generator):
    """E sum_j y_j log(y_j / v_j) = KL, and the error falls as one over root futures."""
    laws = noisy_low_rank(generator, histories=4)
    truth = float((laws[0] * (laws[0] / laws[1]).log()).sum())
    sizes, errors, cut = [4, 16, 64, 256], [], 1e-9
    for each in sizes:
        found = []
        for _ in range(80):
            v = sketched(laws, each, generator)
            found.append(Divergence.KL.between(v[0], v[1].clamp(min=cut)))
        estimates = torch.stack(found)
        errors.append(float((estimates - truth).square().mean().sqrt()))
    x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).double().log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert -0.6 < slope < -0.4
    assert errors[-1] < 0.05 * truth + 0.01


def test_failures_are_statuses_with_reasons_and_never_nan():
    sketch, vertices, w = random_parts(4, batch=3)
    w[1, 3] = math.nan
    w[2, 5] = -1e-3
    found = project(w, hull(sketch, vertices))
    assert found.status.tolist() == [Status.SOLVED, Status.BAD_TARGET, Status.BAD_TARGET]
    assert "NaN" in found.reasons()[1]
    assert found.value[1:].tolist() == found.gap[1:].tolist() == [math.inf] * 2
    w[0, :5] = 0
    never = project(w[:1], hull(sketch, vertices))
    assert never.status.tolist() == [Status.INFINITE]
    too_high = (vertices @ sketch)[:, 3].max() + 0.01
    floor = torch.zeros(FUTURES).double()
    floor[3] = too_high
    nothing = project(w[:1], hull(sketch, vertices, floor), Divergence.L2)
    assert nothing.status.tolist() == [Status.EMPTY]
    sums = project(w[:1], hull(sketch, vertices, 1.05 * (vertices @ sketch).mean(0)), Divergence.L2)
    assert sums.status.tolist() == [Status.EMPTY]
    binding = hull(sketch, vertices, 0.9 * (vertices @ sketch).mean(0))  # no pass solves it
    hasty = project(random_parts(4)[2], binding, max_iterations=2)
    assert hasty.status.tolist() == [Status.STALLED]
    for result in (found, never, nothing, sums, hasty):
        assert not any(bool(table.isnan().any()) for table in result)
    assert len({status.reason for status in Status}) == len(Status)


def test_bad_sets_and_targets_are_refused():
    sketch, vertices, w = random_parts(5)
    with pytest.raises(InputError, match="cannot sum to one"):
        box(sketch, 0.1)
    with pytest.raises(InputError, match="must be equal"):
        hull(sketch, vertices[:, :2])
    with pytest.raises(InputError, match="must be finite"):
        box(sketch * math.nan)
    with pytest.raises(InputError, match="float64"):
        project(w.float(), box(sketch))
    with pytest.raises(InputError, match="float64 with 24 futures"):
        project(w[:, :3], box(sketch))
    with pytest.raises(InputError, match="tolerance must lie"):
        project(w, box(sketch), tolerance=0.0)
