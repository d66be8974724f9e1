import math

import pytest
import torch

from myna.errors import InputError
from myna.lowrank.sketch import (
    futures_needed,
    l1_distortion,
    representative_vectors,
    stratified_log_proposal,
)
from myna.lowrank.spanner import barycentric_spanner


def random_laws(generator, histories=5, futures=400, rank=3):
    left = torch.rand((histories, rank), dtype=torch.float64, generator=generator)
    right = torch.rand((rank, futures), dtype=torch.float64, generator=generator) ** 4
    laws = (left / left.sum(1, keepdim=True)) @ (right / right.sum(1, keepdim=True))
    return laws / laws.sum(1, keepdim=True)


def sketched(laws, futures_each, generator):
    """Stratified: `futures_each` futures from every history's own law."""
    drawn = torch.multinomial(laws, futures_each, replacement=True, generator=generator)
    log_probs = laws[:, drawn.reshape(-1)].log()
    return representative_vectors(log_probs, stratified_log_proposal(log_probs))


def test_stratified_vectors_have_the_stated_facts(generator):
    laws, k = random_laws(generator), 7
    v = sketched(laws, k, generator)
    assert v.shape == (5, 35)
    assert bool(((v > 0) & (v <= 1 / k + 1e-15)).all())
    torch.testing.assert_close(v.sum(0), torch.full((35,), 1 / k, dtype=torch.float64))


def test_l1_norms_are_right_in_expectation(generator):
    laws = random_laws(generator)
    c = 2 * torch.rand((1, 5), dtype=torch.float64, generator=generator) - 1
    norms = torch.stack([(c @ sketched(laws, 10, generator)).abs().sum() for _ in range(4000)])
    truth = float((c @ laws).abs().sum())
    error = float(norms.std()) / math.sqrt(len(norms))
    assert abs(float(norms.mean()) - truth) < 5 * error
    assert error < truth / 50


def test_distortion_falls_as_one_over_root_m(generator):
    laws = random_laws(generator)
    c = 2 * torch.rand((20, 5), dtype=torch.float64, generator=generator) - 1
    sizes = [4, 16, 64, 256, 1024]
    means = [
        torch.stack(
            [l1_distortion(sketched(laws, k, generator), laws, c).mean() for _ in range(60)]
        ).mean()
        for k in sizes
    ]
    x, y = torch.tensor(sizes).double().log(), torch.stack(means).log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert -0.6 < slope < -0.4


def test_the_bound_holds_at_the_size_it_asks_for(generator):
    laws, gamma = random_laws(generator, histories=3, futures=60), 0.5
    k = futures_needed(3, gamma, 0.01)
    corners = 2 * torch.rand((200, 3), dtype=torch.float64, generator=generator) - 1
    corners = torch.cat([corners, corners.sign()])
    for _ in range(5):
        assert float(l1_distortion(sketched(laws, k, generator), laws, corners).max()) < gamma


def test_a_spanner_of_the_vectors_spans_the_laws(generator):
    laws = random_laws(generator, histories=30)
    v = sketched(laws, 40, generator)
    found = barycentric_spanner(v, bound=2.0, tolerance=1e-9)
    assert len(found.indices) == 3
    rebuilt = found.coefficients @ laws[found.indices]
    assert float((rebuilt - laws).abs().sum(1).max()) < 1e-9


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="positive proposal"):
        representative_vectors(torch.zeros((1, 1)).double(), torch.tensor([-math.inf]).double())
    with pytest.raises(InputError, match="histories >= 1"):
        futures_needed(0, 0.1, 0.1)
