"""Networks in log-probability space: the formulas, the zoo's instances, and their ranks."""

import itertools
import math

import pytest
import torch

from myna.errors import InputError
from myna.logits.centred import centred
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher
from myna.teachers.zoo import LogitTwo, Parity, RandomIsan


def by_hand(network, row):
    """Log Q of one string, each product written out."""
    x, total = network.first.tolist(), 0.0
    for t, token in enumerate(row):
        step = network.steps[min(t, len(network.steps) - 1)]
        z = [
            sum(x[i] * float(step.logits[i, o]) for i in range(len(x)))
            for o in range(network.spec.num_tokens)
        ]
        total += z[token] - math.log(sum(math.exp(v) for v in z))
        x = [
            sum(x[i] * float(step.change[i, token, j]) for i in range(len(x)))
            for j in range(step.change.shape[2])
        ]
    return total


@pytest.mark.parametrize("varying", ["true", "false"])
def test_scores_are_the_formulas(varying, generator):
    network = open_teacher(f"zoo:isan?dim=3&symbols=4&horizon=6&varying={varying}").student
    drawn = network.sample(20, generator)
    expected = [by_hand(network, row) for row in drawn.tokens.tolist()]
    assert network.score(drawn).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_constant_added_to_the_logits_changes_nothing(generator):
    network = open_teacher("zoo:isan?dim=3&symbols=4&horizon=6").student
    moved = tuple(IsanStep(s.logits + s.logits[:, :1], s.change) for s in network.steps)
    other = Isan.of(network.spec, network.first, moved)
    drawn = network.sample(20, generator)
    torch.testing.assert_close(other.score(drawn), network.score(drawn), rtol=0, atol=1e-12)
    assert other.spec.fingerprint != network.spec.fingerprint


def test_shapes_that_disagree_are_refused():
    spec = Spec(numbered(2), None, 3, "unset")
    step = IsanStep(torch.zeros(2, 2).double(), torch.zeros(2, 2, 1).double())
    with pytest.raises(InputError, match="at least one step"):
        Isan.of(spec, torch.ones(2).double(), ())
    with pytest.raises(InputError, match="must be square"):
        Isan.of(spec, torch.ones(2).double(), (step,))
    with pytest.raises(InputError, match="dimension 2"):
        Isan.of(spec, torch.ones(3).double(), (step,))
    wide = IsanStep(torch.zeros(2, 5).double(), torch.zeros(2, 5, 2).double())
    with pytest.raises(InputError, match="logits over 5 tokens"):
        Isan.of(spec, torch.ones(2).double(), (wide,))


def logit_block(teacher, cut):
    """Every history of a length against every future followed by a token, by enumeration."""
    spec = teacher.spec
    tokens = range(spec.num_tokens)
    histories = list(itertools.product(tokens, repeat=cut))
    words = [
        word
        for length in range(spec.horizon - cut)
        for word in itertools.product(tokens, repeat=length)
    ]
    pairs = Prefixes.of(histories).extended(Prefixes.of(words))
    return centred(teacher.laws(pairs)).reshape(len(histories), -1)


@pytest.mark.parametrize(
    "family",
    [
        Parity(bits=5, noise=0.2, seed=3),
        Parity(bits=3, noise=0.5),
        LogitTwo(length=7),
        RandomIsan(dim=3, symbols=3, horizon=4),
        RandomIsan(dim=8, symbols=2, horizon=6, seed=1),
        RandomIsan(dim=3, symbols=2, horizon=6, varying=False),
    ],
    ids=str,
)
def test_logit_ranks_are_those_of_the_whole_block(family):
    teacher = family.teacher()
    for cut, rank in enumerate(family.logit_ranks()):
        values = torch.linalg.svdvals(logit_block(teacher, cut))
        assert int((values > 1e-9).sum()) == rank, cut


def test_parity_without_noise_has_no_logits():
    with pytest.raises(InputError, match="probability zero"):
        Parity(bits=3, noise=0.0).logit_ranks()


@pytest.mark.parametrize("seed", range(3))
def test_random_networks_are_neither_trivial_nor_certain(seed):
    """Entropy between .3 and .9 of log O; the best unigram at each position .3 nats away."""
    network = RandomIsan(seed=seed).teacher().student
    tokens = network.sample(1000, torch.Generator().manual_seed(0)).tokens
    state, away = network.initial(1000), 0.0
    for t in range(32):
        law = network.law(state)
        entropy = -(law.exp() * law).sum(1).mean()
        mean = law.exp().mean(0)
        away += float(-(mean * mean.log()).sum() - entropy)
        if t + 1 in (8, 16, 32):
            assert 0.3 < float(entropy) / math.log(16) < 0.9
        state, _ = network.step(state, tokens[:, t])
    assert away / 32 > 0.3


def test_stationary_and_ragged_scores(generator):
    network = open_teacher("zoo:isan?dim=2&symbols=3&horizon=5&varying=false").student
    assert network.ranks == (2,)
    found = network.score(strings([[], [0], [2, 1]])).tolist()
    assert found == pytest.approx([0.0, by_hand(network, [0]), by_hand(network, [2, 1])], abs=1e-12)
