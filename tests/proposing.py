"""What tests of the passes for boxes and for hulls have in common."""

import pytest
import torch

from myna.lowrank import projection, proposal
from myna.lowrank.projection import project


def certificates(propose, w, k, divergence):
    x, y = propose(w, k, divergence)
    return projection._bounded(k, divergence, w, x, y, torch.isfinite(y).all(1))


def without(w, k, divergence, **settings):
    """The same projection where nothing compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposal, "built", lambda *_: None)
        return project(w, k, divergence, **settings)


def assert_as_without(w, k, divergence):
    """The pass never costs an answer, and values agree where there are two."""
    found, plain = project(w, k, divergence), without(w, k, divergence)
    both = found.solved & plain.solved
    assert bool((found.solved | ~plain.solved).all())  # never fewer
    scale = plain.value[both].clamp(min=1)
    assert bool(((found.value[both] - plain.value[both]).abs() <= 2.1e-10 * scale).all())
    return found, plain


def assert_rows_are_alone(propose, w, k, divergence):
    """Each row's proposal is the same by itself, bit for bit."""
    x, y = propose(w, k, divergence)
    for row in range(len(w)):
        alone = propose(w[row : row + 1], k, divergence)
        assert torch.equal(alone[0], x[row : row + 1])
        assert torch.equal(alone[1].nan_to_num(), y[row : row + 1].nan_to_num())
    return x
