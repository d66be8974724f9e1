"""Truncation: exact where nothing is cut, near what the correlations promise where something is."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import strings
from myna.lowrank.truncate import convex, cuts_of, truncated
from myna.spec import Spec


def chain(states: int, horizon: int, seed: int, structure: Structure, tokens=3) -> LowRankModel:
    """A hidden Markov model as a student, one table or one a position."""
    random = np.random.default_rng(seed)

    def rows(*shape):
        return torch.from_numpy(random.dirichlet(np.ones(shape[-1]), shape[:-1]))

    laws, moves = rows(states, tokens), rows(states, states)
    step = Step(laws, moves[:, None, :].expand(-1, tokens, -1).contiguous())
    steps = (step,) * (horizon if structure is Structure.TIME_VARYING else 1)
    spec = Spec(tuple("abc"[:tokens]), None, horizon, "")
    return LowRankModel.of(spec, rows(states), steps)


def everything(model: LowRankModel):
    horizon = model.spec.horizon
    assert horizon is not None
    rows = itertools.product(range(model.spec.num_tokens), repeat=horizon)
    return strings([list(row) for row in rows])


def divergence(model: LowRankModel, other: LowRankModel) -> float:
    """KL(P || Q) over all strings, nats."""
    whole = everything(model)
    p, q = model.score(whole), other.score(whole)
    return float((p.exp() * (p - q)).sum())


@pytest.mark.parametrize("structure", list(Structure))
def test_nothing_cut_is_the_same_model(structure):
    model = chain(4, 6, 3, structure)
    cuts = cuts_of(model, model.sample(1000, torch.Generator().manual_seed(1)))
    same = truncated(model, cuts, model.ranks)
    assert divergence(model, same) < 1e-12
    # few histories are short, and few futures: less is enough there
    assert same.ranks == (model.ranks if len(model.steps) == 1 else (1, 3, 4, 4, 4, 3))


@pytest.mark.parametrize("structure", list(Structure))
def test_what_is_lost_is_near_what_the_correlations_say(structure):
    model = chain(6, 7, 5, structure)
    cuts = cuts_of(model, model.sample(4000, torch.Generator().manual_seed(1)))
    places = [len(cuts) if len(model.steps) > 1 else 7]
    before = 0.0
    for rank in (5, 4, 3, 2, 1):
        ranks = tuple(min(rank, r) for r in model.ranks)
        found = divergence(model, truncated(model, cuts, ranks))
        said = sum(cut.lost(r) for cut, r in zip(cuts, ranks, strict=True))
        said *= 1 if len(cuts) > 1 else places[0]
        assert found >= before * 0.5  # fewer directions lose more, but for the choice of basis
        assert found < 20 * said + 1e-12
        before = found
    assert before > 1e-4  # rank one does lose something


def exact_moments(model: LowRankModel, cut: int):
    """Gamma and D at a cut by enumeration, from the definition."""
    horizon, tokens = model.spec.horizon, model.spec.num_tokens
    assert horizon is not None
    pasts = strings([list(h) for h in itertools.product(range(tokens), repeat=cut)])
    state = model.initial(len(pasts.lengths))
    weight = torch.ones(len(pasts.lengths)).double()
    for t in range(cut):
        state, info = model.step(state, pasts.tokens[:, t])
        weight = weight * info.log_prob.exp()
    c = state.vector
    futures = list(itertools.product(range(tokens), repeat=horizon - cut))
    columns = []
    for future in futures:
        row = torch.ones(1).double()
        for t in reversed(range(cut, horizon)):
            step = model.step_at(t)
            token = future[t - cut]
            last = t == horizon - 1
            row = step.laws[:, token] if last else step.operators[token] @ row
        columns.append(row)
    b = torch.stack(columns, 1)  # (rank, future)
    mean = (weight @ c) @ b
    return (c.T * weight) @ c, (b / mean) @ b.T


def test_correlations_are_those_of_the_definition():
    model = chain(3, 6, 2, Structure.TIME_VARYING)
    cuts = cuts_of(model, model.sample(60_000, torch.Generator().manual_seed(4)))
    for t in (1, 3, 5):
        gamma, d = exact_moments(model, t)
        # singular values of D^1/2 Gamma^1/2: square roots of the eigenvalues of Gamma D
        exact = torch.linalg.eigvals(gamma @ d).real.clamp(min=0).sqrt().sort(descending=True)[0]
        found = cuts[t].correlations
        assert float(exact[0]) == pytest.approx(1.0, abs=1e-9)
        torch.testing.assert_close(found, exact[: len(found)], atol=0.01, rtol=0.02)


def test_a_stop_token_and_no_horizon():
    """A coin that is picked once, thrown until it shows the stop."""
    laws = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]).double()
    change = torch.eye(2).double()[:, None, :].repeat(1, 3, 1)
    change[:, 2] = 0
    spec = Spec(("a", "b", "end"), 2, None, "")
    model = LowRankModel.of(spec, torch.tensor([0.4, 0.6]).double(), (Step(laws, change),))
    drawn = model.sample(2000, torch.Generator().manual_seed(0))
    cuts = cuts_of(model, drawn)
    same = truncated(model, cuts, model.ranks)
    fresh = model.sample(200, torch.Generator().manual_seed(1))
    torch.testing.assert_close(same.score(fresh), model.score(fresh), atol=1e-9, rtol=0)
    one = truncated(model, cuts, (1,))
    assert float((one.score(fresh) - model.score(fresh)).abs().max()) > 0.1


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 4))
def test_laws_of_smaller_models_are_laws(seed, rank):
    model = chain(4, 5, seed, Structure.TIME_VARYING if seed % 2 else Structure.STATIONARY)
    cuts = cuts_of(model, model.sample(300, torch.Generator().manual_seed(seed)))
    small = truncated(model, cuts, tuple(min(rank, r) for r in model.ranks))
    assert float(small.score(everything(small)).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    sums = torch.cat([step.laws.sum(1) for step in small.steps])
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=0.02, rtol=0)


def test_a_step_that_no_string_reaches_is_named():
    model = chain(3, 6, 2, Structure.TIME_VARYING)
    drawn = model.sample(10, torch.Generator().manual_seed(0), 3)
    with pytest.raises(InputError, match="position 3"):
        cuts_of(model, drawn)


def test_convex_weights_are_probabilities_and_exclude_nothing():
    """Laws with zeros: signed weights would leave some token none."""
    model = chain(6, 6, 1, Structure.STATIONARY)
    step = model.steps[0]
    laws = step.laws * (torch.arange(6)[:, None] % 3 != torch.arange(3)[None])
    laws = laws / laws.sum(1, keepdim=True)
    change = torch.where((laws > 0)[:, :, None], step.change, 0.0)
    model = LowRankModel.of(model.spec, model.first, (Step(laws, change),))
    cuts = cuts_of(model, model.sample(2000, torch.Generator().manual_seed(1)))
    before = 0.0
    for rank in (5, 3, 2):
        small = convex(model, cuts, (rank,))
        kept = small.steps[0]
        assert float(kept.change.min()) >= 0 and float(small.first.min()) >= 0
        sums = kept.change.sum(2)[kept.laws > 1e-9]
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-6, rtol=0)
        lost = divergence(model, small)
        assert before * 0.5 < lost < 2.0
        before = lost
    signed = divergence(model, truncated(model, cuts, (5,)))
    assert signed < divergence(model, convex(model, cuts, (5,)))


def test_a_convex_model_whose_histories_span_the_hull_is_exact():
    """Deterministic states: every history is one of three corners."""
    laws = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]).double()
    change = torch.eye(3).double()[None].repeat(3, 1, 1)  # the token names the next state
    spec = Spec(("a", "b", "c"), None, 6, "")
    first = torch.tensor([1.0, 0.0, 0.0]).double()
    model = LowRankModel.of(spec, first, (Step(laws, change),))
    cuts = cuts_of(model, model.sample(1000, torch.Generator().manual_seed(1)))
    assert (
        divergence(model, convex(model, cuts, (3,))) < 1e-4
    )  # forgetting costs about 1e-5 a token
