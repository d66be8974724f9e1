import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.lowrank.spanner import (
    barycentric_spanner,
    basis_coefficients,
    spanner_from_oracle,
    swap_bound,
)


def low_rank_rows(seed, count, rank, columns):
    random = torch.Generator().manual_seed(seed)
    left = torch.randn((count, rank), dtype=torch.float64, generator=random)
    right = torch.randn((rank, columns), dtype=torch.float64, generator=random)
    return left @ right


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 20), st.floats(1.05, 4.0))
def test_rank_and_bound(seed, rank, extra, bound):
    rows = low_rank_rows(seed, rank + extra, rank, rank + 3)
    rows = torch.cat([rows, rows[:1], torch.zeros_like(rows[:1])])  # a repeat and a zero row
    found = barycentric_spanner(rows, bound=bound, tolerance=1e-9)
    assert len(found.indices) == rank
    assert found.bound <= bound + 1e-9
    torch.testing.assert_close(
        found.coefficients @ rows[found.indices], rows, rtol=0, atol=1e-9 * float(rows.abs().max())
    )
    assert float(found.residuals.max()) < 1e-8
    assert found.swaps <= swap_bound(rank, bound)


def test_no_exchange_raises_the_determinant_by_more_than_c():
    """Against the definition: every exchange tried by an explicit determinant."""
    rows = low_rank_rows(3, 12, 4, 4)
    found = barycentric_spanner(rows, bound=1.3, tolerance=1e-9)
    base = abs(float(torch.linalg.det(rows[found.indices])))
    for row, column in itertools.product(range(12), range(4)):
        swapped = rows[found.indices].clone()
        swapped[column] = rows[row]
        assert abs(float(torch.linalg.det(swapped))) <= 1.3 * base * (1 + 1e-9)


def test_negative_determinants_count():
    """A set on which the signed determinant only falls, while |det| can be raised."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    found = barycentric_spanner(rows, bound=2.0, tolerance=1e-9, preferred=torch.tensor([0, 1]))
    assert sorted(found.indices.tolist()) == [0, 2]
    assert found.swaps == 1


def test_preferred_rows_stay_and_dependent_ones_go():
    rows = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    found = barycentric_spanner(
        rows, tolerance=1e-9, preferred=torch.tensor([1, 0, 3]), bound=math.inf
    )
    assert found.indices.tolist() == [1, 3, 2]
    assert found.swaps == 0


def test_max_rank_stops_early():
    found = barycentric_spanner(torch.eye(6, dtype=torch.float64), tolerance=1e-9, max_rank=2)
    assert len(found.indices) == 2


def test_small_directions_are_found_among_large_ones():
    """Downdated norms would lose a direction at 1e-8 of the largest; fresh ones do not."""
    rows = low_rank_rows(5, 30, 5, 20)
    weak = torch.zeros(20, dtype=torch.float64)
    weak[7] = 1e-7
    rows[11] += weak
    assert len(barycentric_spanner(rows, tolerance=1e-9).indices) == 6
    assert len(barycentric_spanner(rows, tolerance=1e-5).indices) == 5


def test_condition_is_that_of_the_basis():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-4]], dtype=torch.float64)
    found = barycentric_spanner(rows, tolerance=1e-9)
    assert found.condition == pytest.approx(float(torch.linalg.cond(rows[found.indices])))


def test_coefficients_survive_bad_conditioning():
    """QR with refinement keeps eight digits more than normal equations would."""
    rows = low_rank_rows(9, 8, 3, 10)
    rows[1] = rows[0] + 1e-6 * rows[1]
    basis = torch.tensor([0, 1, 2])
    known = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    rows[7] = (known @ rows[basis])[0]
    found = basis_coefficients(rows, basis)[7]
    assert float((found - known[0]).abs().max()) < 1e-8


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="C > 1"):
        barycentric_spanner(torch.eye(2, dtype=torch.float64), bound=1.0)
    with pytest.raises(InputError, match="finite"):
        barycentric_spanner(torch.full((2, 2), math.nan, dtype=torch.float64))
    with pytest.raises(InputError, match="dimension >= 1"):
        swap_bound(0, 2.0)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(1.1, 3.0))
def test_oracle_spanner_of_a_finite_set(seed, dimension, bound):
    random = torch.Generator().manual_seed(seed)
    points = torch.randn((25, dimension), dtype=torch.float64, generator=random)
    calls = []

    def oracle(direction):
        calls.append(1)
        return points[(points @ direction).argmax()]

    found = spanner_from_oracle(oracle, dimension, bound=bound)
    coefficients = torch.linalg.solve(found.vectors.T, points.T)
    assert float(coefficients.abs().max()) <= bound + 1e-8
    assert found.swaps <= swap_bound(dimension, bound)
    assert found.calls == len(calls)
    assert found.calls <= 2 * dimension * (2 + found.swaps)


def test_oracle_over_a_ball():
    """An infinite set: the unit ball's spanner has determinant near one."""
    found = spanner_from_oracle(lambda g: g / g.norm(), 4, bound=1.1)
    assert abs(float(torch.linalg.det(found.vectors))) > 0.9


def test_oracle_of_a_flat_set_is_refused():
    flat = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(InputError, match="span 2 dimensions"):
        spanner_from_oracle(lambda _: flat, 2)
