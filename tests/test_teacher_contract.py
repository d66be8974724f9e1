"""What every teacher promises, also behind a wrapper that hides all but its access."""

import catalogue
import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.lowrank.student import draw, strings
from myna.teachers import stepped
from myna.teachers.draws import complete_by_laws, draw_at
from myna.teachers.function import FunctionTeacher
from myna.teachers.oracle import Laws, Samples, Stream, TopLaws, as_samples, as_top_k
from myna.teachers.prefixes import Prefixes

TEACHERS = catalogue.teachers()
STREAM = Stream("test", 5)


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return naive.Opaque(TEACHERS[request.param], "laws")


@pytest.fixture
def tolerance(request):
    """How far the laws of this teacher may depend on the batch, nats."""
    return catalogue.TOLERANCES.get(request.node.callspec.params["teacher"], 1e-13)


def possible_prefixes(teacher, count=12):
    """Prefixes of random completions, of mixed lengths, the empty one among them."""
    drawn = teacher.complete(Prefixes.of([[]]), count, stream=STREAM, max_tokens=20)
    rows = [[]]
    for i in range(count):
        length = int(drawn.lengths[0, i])
        row = drawn.tokens[0, i, :length].tolist()
        rows.append(row[: min(i % 4, length - 1)])
    return Prefixes.of(rows)


def test_levels_are_nested(teacher):
    assert isinstance(teacher, Laws) and isinstance(teacher, TopLaws)
    assert isinstance(teacher, Samples)
    assert not isinstance(naive.Opaque(teacher, "samples"), TopLaws)


def test_laws_are_laws(teacher):
    laws = teacher.laws(possible_prefixes(teacher))
    assert laws.dtype == torch.float64
    torch.testing.assert_close(
        laws.exp().sum(1), torch.ones(len(laws)).double(), rtol=0, atol=1e-12
    )


def test_laws_do_not_depend_on_the_batch(teacher, tolerance):
    prefixes = possible_prefixes(teacher)
    together = teacher.laws(prefixes)
    alone = torch.cat([teacher.laws(Prefixes.of([row])) for row in prefixes.rows()])
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(1))
    shuffled = teacher.laws(prefixes.take(order))
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=tolerance)


def test_score_is_the_chain_rule():
    for name, teacher in TEACHERS.items():
        if not hasattr(teacher, "score"):
            continue
        drawn = teacher.complete(Prefixes.of([[]]), 8, stream=STREAM, max_tokens=12)
        rows = [drawn.tokens[0, i, : drawn.lengths[0, i]].tolist() for i in range(8)]
        expected = torch.tensor(
            [naive.chain_rule(teacher, row) for row in rows], dtype=torch.float64
        )
        atol = 12 * catalogue.TOLERANCES.get(name, 1e-13)  # of as many tokens
        torch.testing.assert_close(
            teacher.score(strings(rows)), expected, rtol=1e-12, atol=atol, msg=name
        )


def test_top_laws_sort_and_add_up(teacher):
    prefixes = possible_prefixes(teacher)
    laws = teacher.laws(prefixes)
    limited = as_top_k(teacher, 2)
    assert not isinstance(limited, Laws) and not hasattr(limited, "laws")
    top = limited.top_laws(prefixes)
    assert top.tokens.shape == (len(laws), 2)
    torch.testing.assert_close(top.log_probs, laws.sort(1, descending=True).values[:, :2])
    torch.testing.assert_close(laws.gather(1, top.tokens), top.log_probs)
    rest = 1 - top.log_probs.exp().sum(1)
    torch.testing.assert_close(top.log_rest.exp(), rest, rtol=0, atol=1e-12)


def test_samples_only_hides_the_rest(teacher):
    hidden = as_samples(teacher)
    assert isinstance(hidden, Samples) and not isinstance(hidden, TopLaws)


def test_draws_are_addressed(teacher):
    """Draw i of a prefix is the same whatever it is asked with."""
    prefixes = possible_prefixes(teacher, 6)
    whole = teacher.complete(prefixes, 5, stream=STREAM, max_tokens=10)
    for row in range(len(prefixes.lengths)):
        one = teacher.complete(
            prefixes.take(torch.tensor([row])), 2, stream=STREAM, max_tokens=10, first_draw=3
        )
        width = one.tokens.shape[2]
        assert torch.equal(one.lengths[0], whole.lengths[row, 3:])
        assert torch.equal(one.tokens[0], whole.tokens[row, 3:, :width])
    shorter = teacher.complete(prefixes, 5, stream=STREAM, max_tokens=1)
    assert torch.equal(shorter.tokens[:, :, 0], whole.tokens[:, :, 0])


def test_streams_differ():
    teacher = TEACHERS["zoo:hmm?states=3&symbols=3&horizon=5"]
    draws = [
        teacher.complete(Prefixes.of([[]]), 50, stream=stream).tokens
        for stream in (Stream("learn"), Stream("verify"), Stream("learn", 1))
    ]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_completions_end_where_the_language_ends(teacher):
    spec = teacher.spec
    drawn = teacher.complete(Prefixes.of([[]]), 40, stream=STREAM, max_tokens=30)
    for tokens, length in zip(drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True):
        row = tokens[:length]
        assert all(token == -1 for token in tokens[length:])
        assert spec.stop not in row[:-1]
        assert row[-1] == spec.stop or length == min(spec.horizon or 30, 30)


def test_completions_follow_the_laws(teacher):
    """Frequencies of the first token against its law: a chi-square at level 1e-6."""
    n = 4000
    law = teacher.laws(Prefixes.of([[]])).exp()[0]
    drawn = teacher.complete(Prefixes.of([[]]), n, stream=STREAM, max_tokens=1)
    counts = torch.bincount(drawn.tokens[0, :, 0], minlength=len(law)).double()
    assert counts[law == 0].sum() == 0
    seen = law > 0
    statistic = float(((counts - n * law)[seen].square() / (n * law)[seen]).sum())
    freedom = torch.tensor(float(seen.sum()) - 1).double()
    if freedom > 0:
        tail = 1 - torch.special.gammainc(freedom / 2, torch.tensor(statistic / 2).double())
        assert float(tail) > 1e-6


def test_bad_prefixes_are_refused(teacher):
    spec = teacher.spec
    with pytest.raises(InputError, match=r"tokens must lie in 0\.\."):
        teacher.laws(Prefixes.of([[spec.num_tokens]]))
    if spec.horizon is not None:
        with pytest.raises(InputError, match="the horizon"):
            teacher.laws(Prefixes.of([[0] * spec.horizon]))
    if spec.stop is not None:
        with pytest.raises(InputError, match="stop token"):
            teacher.laws(Prefixes.of([[spec.stop]]))
    with pytest.raises(InputError, match="count >= 1"):
        teacher.complete(Prefixes.of([[]]), 0, stream=STREAM)


def test_impossible_prefixes_are_refused():
    copy = TEACHERS["zoo:copy?n=3&k=2"]
    with pytest.raises(InputError, match=r"probability zero.*\[0, 0, 0, 1\]"):
        copy.laws(Prefixes.of([[0, 0, 0], [0, 0, 0, 1]]))


def test_top_k_needs_a_k_that_exists(teacher):
    with pytest.raises(InputError, match="top-k needs"):
        as_top_k(teacher, teacher.k + 1)


def test_endless_completions_are_refused():
    process = FunctionTeacher(lambda _: [0.5, 0.5], ("a", "b"))
    assert not process.spec.ends
    with pytest.raises(InputError, match="max_tokens"):
        process.complete(Prefixes.of([[]]), 1, stream=STREAM)
    drawn = process.complete(Prefixes.of([[]]), 3, stream=STREAM, max_tokens=7)
    assert drawn.lengths.tolist() == [[7, 7, 7]]


def test_completions_are_those_drawn_from_laws(teacher, monkeypatch):
    """Draws share states and are stepped in chunks; one law a draw gives the same tokens."""
    prefixes = possible_prefixes(teacher, 5)
    plain = complete_by_laws(teacher, prefixes, 25, stream=STREAM, max_tokens=6, first_draw=3)
    for chunk in (7, 2**15):
        monkeypatch.setattr(stepped, "_CHUNK", chunk)
        fast = teacher.complete(prefixes, 25, stream=STREAM, max_tokens=6, first_draw=3)
        assert torch.equal(fast.tokens, plain.tokens)
        assert torch.equal(fast.lengths, plain.lengths)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_shared_laws_draw_the_same_tokens(size, nodes, seed):
    """`draw_at` against `draw`, with impossible tokens and the extreme uniforms."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.rand((nodes, size), generator=generator, dtype=torch.float64)
    law *= torch.rand((nodes, size), generator=generator) < 0.6
    law[torch.arange(nodes), torch.randint(0, size, (nodes,), generator=generator)] += 0.1
    log_law = (law / law.sum(1, keepdim=True)).log()
    node = torch.randint(0, nodes, (60,), generator=generator)
    uniform = torch.rand(60, generator=generator, dtype=torch.float64)
    uniform[:20], uniform[20:40] = 0.0, 1 - 2.0**-53
    tokens = draw_at(log_law, node, uniform)
    assert torch.equal(tokens, draw(log_law[node], uniform))
    assert bool((law[node, tokens] > 0).all())
