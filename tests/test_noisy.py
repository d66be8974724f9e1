"""Rank under noise, weighted factors, convex coefficients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.learn.cut_table import CutTable, pooled_factor, short_codes, sketch
from myna.lowrank.noisy import convex_coefficients, noise_edge, noisy_rank, weighted_factors


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(20, 5), (60, 60), (100, 300)])
def test_noise_rarely_exceeds_its_edge(shape):
    """300 noise matrices at level .05: 15 expected above; 35 would be five deviations off."""
    edge = noise_edge(*shape, 0.05)
    above = sum(float(torch.linalg.matrix_norm(normal(i, *shape), 2)) > edge for i in range(300))
    assert 2 <= above <= 35


@given(st.integers(0, 1000), st.integers(0, 4))
def test_planted_rank_is_found(seed, rank):
    signal = normal(seed, 60, rank) @ normal(seed + 1, rank, 40) * 3
    found = noisy_rank(signal + normal(seed + 2, 60, 40), 0.001)
    assert found.rank == rank and len(found.edges) == rank + 1


def test_factors_of_an_exact_matrix_with_holes():
    exact = normal(0, 30, 3) @ normal(1, 3, 20)
    spread = torch.ones(30, 20).double()
    spread[:10, 15:] = math.inf
    left, right = weighted_factors(exact, spread, 3, ridge=1e-12, sweeps=300)
    torch.testing.assert_close(left @ right, exact, rtol=0, atol=1e-6)


def test_noisier_rows_weigh_less():
    exact = normal(0, 200, 2) @ normal(1, 2, 15)
    spread = torch.full((200, 15), 0.05).double()
    spread[::2] = 3.0
    noisy = exact + spread * normal(2, 200, 15)
    left, right = weighted_factors(noisy, spread, 2)
    plain_left, plain_right = weighted_factors(noisy, torch.ones_like(spread), 2)
    good = (left @ right - exact)[1::2].norm()
    assert good < 0.5 * (plain_left @ plain_right - exact)[1::2].norm()


@pytest.mark.parametrize("seed", range(5))
def test_convex_coefficients_are_nearest(seed):
    corners, points = normal(seed, 4, 3), normal(seed + 1, 10, 3)
    found = convex_coefficients(points, corners, sweeps=1000)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(10).double())
    # first-order optimality over the simplex: no corner is a better direction
    gap = (found @ corners - points) @ corners.T
    best = gap.min(1).values
    assert float(((gap * found).sum(1) - best).max()) < 1e-3


def test_codes_keep_apart_what_differs():
    tokens = torch.tensor([[0, 1, 2], [0, 1, -1], [0, 1, 0], [1, 0, 2]])
    assert short_codes(tokens, 2, 3).unique().numel() == 2
    assert short_codes(tokens, 3, 3).unique().numel() == 4


def test_factors_pool_where_draws_agree():
    counts = torch.tensor([[50.0, 50.0], [55.0, 45.0], [45.0, 55.0]]).double()
    ratio, variance = pooled_factor(counts, 0)
    assert ratio.tolist() == [1, 1, 1] and variance.tolist() == [0, 0, 0]
    counts = torch.tensor([[90.0, 10.0], [10.0, 90.0]]).double()
    ratio, variance = pooled_factor(counts, 0)
    assert ratio[0] > 1.5 and ratio[1] < 0.5 and bool((variance > 0).all())


def test_words_show_what_short_futures_hide():
    """Two classes of histories that differ only in the law after the word 0."""
    generator = torch.Generator().manual_seed(0)
    histories = [(i,) for i in range(10)]
    short = torch.full((10, 3), 200.0).double()
    short[:, 2] = 0
    short = short + torch.randint(-10, 10, (10, 3), generator=generator) * (short > 0)
    deep = torch.zeros(1, 10, 2).double()
    deep[0, :5], deep[0, 5:] = torch.tensor([90.0, 10.0]), torch.tensor([10.0, 90.0])
    without = sketch(CutTable(histories, short, [], torch.zeros(0, 10, 2).double()))
    found = sketch(CutTable(histories, short, [(0,)], deep))
    assert noisy_rank(without.whitened).rank == 1
    assert noisy_rank(found.whitened).rank == 2
