"""Recorded answers against a copy: Pearson's statistic by enumeration, and parity's last bit."""

import itertools
import math

import pytest
import torch

from myna.learn.asker import merged
from myna.learn.evidence import Evidence
from myna.learn.misfit import misfits, pearson_excess
from myna.lowrank.likelihood import Operators
from myna.teachers.zoo import Parity

BITS = 6


@pytest.mark.parametrize("draws", [2, 3, 5])
def test_mean_and_variance_are_those_of_the_enumerated_multinomial(draws):
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    counts, chances = [], []
    for first, second in itertools.product(range(draws + 1), repeat=2):
        rest = draws - first - second
        if rest < 0:
            continue
        ways = math.factorial(draws) // math.prod(map(math.factorial, (first, second, rest)))
        counts.append([first, second, rest])
        chances.append(ways * float(law[0] ** first * law[1] ** second * law[2] ** rest))
    chance = torch.tensor(chances, dtype=torch.float64)
    excess, spread = pearson_excess(torch.tensor(counts).double(), law.expand(len(counts), -1))
    assert float(chance @ excess) == pytest.approx(0.0, abs=1e-12)
    assert float(chance @ excess.square()) == pytest.approx(float(spread[0]), rel=1e-9)


def parity_operators(secret: list[int], noise: float) -> Operators:
    """Two coefficients: the law of an even and of an odd parity so far."""
    steps = []
    for bit in secret:
        table = torch.zeros(2, 2, 2).double()
        table[0] = 0.5 * torch.eye(2)
        table[1] = 0.5 * (torch.eye(2).flip(0) if bit else torch.eye(2))
        steps.append(table)
    label = torch.tensor([[1 - noise, noise], [noise, 1 - noise]]).double()[:, :, None]
    return Operators(torch.tensor([1.0, 0.0]).double(), (*steps, label))


def drawn(count: int) -> Evidence:
    tokens = Parity(bits=BITS).teacher().sample(count, torch.Generator().manual_seed(1)).tokens
    lengths = torch.full((count,), BITS + 1)
    return merged(tokens, lengths, torch.zeros_like(lengths), torch.ones(count).double())


def test_the_truth_is_not_contradicted():
    secret = Parity(bits=BITS).secret().tolist()
    assert misfits(parity_operators(secret, 0.1), drawn(3000)) == ()


def test_a_prefix_that_the_copy_holds_impossible_hides_no_other():
    """One token leads to weights without a sum; the label is contradicted all the same."""
    copy = parity_operators([0] * BITS, 0.5)
    broken = copy.steps[0].clone()
    broken[1] = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).double() * torch.finfo().max
    found = misfits(copy._replace(steps=(broken, *copy.steps[1:])), drawn(300))
    assert BITS in {misfit.cut for misfit in found}


def test_a_copy_that_lacks_the_parity_is_contradicted_at_the_label():
    (found,) = misfits(parity_operators([0] * BITS, 0.5), drawn(300))
    assert found.cut == len(found.history) == BITS
    assert set(found.history) <= {0, 1}
