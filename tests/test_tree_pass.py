"""The compiled pass over trees: the answers of the pass in torch, also where nothing compiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from myna import c_source
from myna.errors import InputError
from myna.learn import tree_pass
from myna.learn.evidence import Evidence
from myna.learn.forward_backward import ForwardBackward, HmmTables, prefix_trees
from myna.learn.tree_pass import TreePass, compiled_pass

has_compiler = c_source.built("learn/forward_backward.c") is not None
compiled = pytest.mark.skipif(not has_compiler, reason="no C compiler here")


def random_evidence(random, tokens, rows, longest):
    """Ragged rows with shared prefixes, repeats and prompts."""
    found = random.integers(tokens, size=(rows, longest))
    shared = int(random.integers(longest + 1))
    found[: rows // 2, :shared] = found[0, :shared]
    lengths = random.integers(1, longest + 1, size=rows)
    given = random.integers(0, lengths) * random.integers(2, size=rows)
    counts = random.integers(1, 5, size=rows).astype(float)
    return Evidence(*(torch.from_numpy(part) for part in (found, lengths, given, counts)))


def random_tables(random, states, tokens, moves, emissions):
    """Laws, some with zeros."""

    def laws(*shape):
        raw = random.exponential(size=shape) * (random.random(shape) < random.choice([0.6, 1.0]))
        raw[..., 0] += 1e-3
        return torch.from_numpy(raw / raw.sum(-1, keepdims=True))

    return HmmTables(laws(states), laws(moves, states, states), laws(emissions, states, tokens))


def without(trees, states):
    """The same passes where nothing compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_pass, "built", lambda *_: None)
        engine = ForwardBackward(trees, states)
    assert not isinstance(engine._pass, TreePass)
    return engine


def assert_same(trees, tables):
    states = len(tables.initial)
    ours, plain = ForwardBackward(trees, states), without(trees, states)
    assert isinstance(ours._pass, TreePass) and ours.tokens == plain.tokens
    found, wanted = ours.counts(tables), plain.counts(tables)
    assert found.log_likelihood == pytest.approx(wanted.log_likelihood, rel=1e-12)
    assert ours.log_likelihood(tables) == found.log_likelihood
    for a, b in zip(found.tables, wanted.tables, strict=True):
        # prompts' counts are subtracted: a sum near 0 has the rounding of its terms, about 1 each
        scale = max(1.0, float(b.abs().nan_to_num(0, 0, 0).max()))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * scale, equal_nan=True)
    again = ForwardBackward(trees, states).counts(tables)
    assert all(torch.equal(a, b) for a, b in zip(found.tables, again.tables, strict=True))


@compiled
@given(st.integers(0, 10_000), st.integers(1, 17), st.booleans())
@example(2544, 1, True)  # counts that cancel
def test_answers_are_those_of_torch(seed, states, stationary):
    random = np.random.default_rng(seed)
    tokens, rows, longest = (int(random.integers(1, high)) for high in (9, 60, 7))
    data = random_evidence(random, tokens, rows, longest)
    sizes = (1, 1) if stationary else (max(longest - 1, 1), int(random.integers(1, longest + 1)))
    tables = random_tables(random, states, tokens, *sizes)
    tables.emission.add_(0.1)  # nothing impossible
    tables.emission.div_(tables.emission.sum(-1, keepdim=True))
    assert_same(prefix_trees(data, tokens), tables)


@compiled
@pytest.mark.parametrize("states", [4, 8, 16, 24, 40, 100])
@pytest.mark.parametrize("rows", [1, 500])
def test_long_levels_and_many_states_too(states, rows, monkeypatch):
    random = np.random.default_rng(states)
    monkeypatch.setattr("myna.learn.forward_backward._CPU_ROWS", 200)
    monkeypatch.setattr(tree_pass, "_MOST_STATES", 10_000)  # with any number of threads
    data = random_evidence(random, 5, rows, 12)
    assert_same(prefix_trees(data, 5), random_tables(random, states, 5, 11, 12))


@compiled
@given(st.integers(0, 10_000), st.integers(1, 17))
@example(143, 16)  # 32 NaN in C, 48 in torch
def test_impossible_tokens_are_those_of_torch(seed, states):
    """Where backward vectors overflow, sums of them are infinite or NaN by their order."""
    random = np.random.default_rng(seed)
    tables = random_tables(random, states, 4, 3, 4)
    tables.emission[:, :, 2:] = 0
    data = random_evidence(random, 4, 12, 4)
    trees = prefix_trees(data, 4)
    ours, plain = ForwardBackward(trees, states), without(trees, states)
    found, wanted = ours.counts(tables), plain.counts(tables)
    assert found.log_likelihood == pytest.approx(wanted.log_likelihood, rel=1e-12)
    assert ours.log_likelihood(tables) == found.log_likelihood
    for a, b in zip(found.tables, wanted.tables, strict=True):
        finite = a.isfinite() & b.isfinite()
        assert bool(finite.all()) or found.log_likelihood == -math.inf
        torch.testing.assert_close(a[finite], b[finite], rtol=1e-12, atol=1e-11)


@compiled
def test_an_impossible_token_counts_nothing_and_leaves_no_likelihood_read_or_not():
    tables = HmmTables(
        torch.tensor([0.4, 0.6]).double(),
        torch.full((1, 2, 2), 0.5).double(),
        torch.tensor([[[0.3, 0.7, 0.0], [0.8, 0.2, 0.0]]]).double(),
    )
    rows = torch.tensor([[2, 0], [0, 1]])
    two, ones = torch.tensor([2, 2]), torch.ones(2).double()
    read = Evidence(rows, two, torch.tensor([0, 0]), ones)
    found = ForwardBackward(prefix_trees(read, 3), 2).counts(tables)
    assert found.log_likelihood == -math.inf
    assert not bool(found.tables.emission[..., 2].any())
    asked = read._replace(given=torch.tensor([1, 0]))
    assert ForwardBackward(prefix_trees(asked, 3), 2).log_likelihood(tables) == -math.inf


@compiled
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_pass_leaves_the_answers_of_the_last(tokens):
    random = np.random.default_rng(2)
    engine = ForwardBackward(prefix_trees(random_evidence(random, tokens, 9, 4), tokens), 8)
    found = engine.counts(random_tables(random, 8, tokens, 1, 1)).tables
    kept = [table.clone() for table in found]
    engine.counts(random_tables(random, 8, tokens, 1, 1))
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@compiled
def test_tables_of_other_trees_are_refused():
    random = np.random.default_rng(0)
    engine = ForwardBackward(prefix_trees(random_evidence(random, 3, 9, 4), 3), 2)
    for states, tokens in ((3, 3), (2, 1)):
        with pytest.raises(InputError, match="these trees need tables of 2 states"):
            engine.counts(random_tables(random, states, tokens, 1, 1))


def test_without_a_compiler_and_for_many_states_torch_answers(monkeypatch):
    random = np.random.default_rng(1)
    trees = prefix_trees(random_evidence(random, 3, 9, 4), 3)
    assert compiled_pass(trees, 257) is None  # with one thread; with more, fewer
    monkeypatch.setattr(tree_pass, "built", lambda *_: None)
    assert compiled_pass(trees, 2) is None
    tables = random_tables(random, 2, 3, 1, 1)
    assert math.isfinite(ForwardBackward(trees, 2).counts(tables).log_likelihood)
