"""Restriction to a sub-alphabet at the three levels of access, against its definition."""

import catalogue
import naive
import pytest
import torch

from myna.errors import InputError, TeacherError
from myna.teachers import restricted
from myna.teachers.function import FunctionTeacher
from myna.teachers.oracle import Laws, Stream, TopLaws, as_samples, as_top_k
from myna.teachers.prefixes import Prefixes
from myna.teachers.restricted import restrict
from myna.teachers.uri import open_teacher

STREAM = Stream("test", 1)
PREFIXES = Prefixes.of([[], [0], [1, 0], [0, 0, 1]])


def whole():
    """Four tokens and a stop; the law depends on the whole prefix."""

    def law(prefix):
        weights = [1.0, 2.0 + sum(prefix) % 3, 0.5, 1.0 + len(prefix), 0.25]
        return [w / sum(weights) for w in weights]

    return FunctionTeacher(law, ("a", "b", "c", "d", "."), stop=4, horizon=6)


def test_laws_are_renormalised_one_prefix_at_a_time():
    teacher, kept = whole(), [1, 3, 4]
    small = restrict(teacher, ["d", "b", "."])
    assert small.spec.alphabet == ("b", "d", ".") and small.spec.stop == 2
    assert small.spec.horizon == 6 and small.spec.fingerprint != teacher.spec.fingerprint
    for prefix in ([], [0], [1, 0]):
        given = teacher.laws(Prefixes.of([[kept[o] for o in prefix]])).exp()[0, kept]
        law = small.laws(Prefixes.of([prefix])).exp()[0]
        torch.testing.assert_close(law, given / given.sum())


def test_it_is_a_new_model_and_not_a_conditioned_one():
    """Conditioning on whole strings would weigh tokens by what the future allows."""
    teacher = whole()
    small = restrict(teacher, ["a", "b"])
    strings = naive.all_strings(small.spec)
    joint = torch.tensor([naive.chain_rule(teacher, row) for row in strings]).exp()
    first = torch.tensor([row[0] for row in strings])
    conditioned = torch.stack([joint[first == o].sum() for o in (0, 1)]) / joint.sum()
    law = small.laws(Prefixes.of([[]])).exp()[0]
    assert float((law - conditioned).abs().max()) > 0.01
    own = torch.tensor([naive.chain_rule(small, row) for row in strings]).exp()
    assert float(own.sum()) == pytest.approx(1)


def test_rejection_draws_from_the_renormalised_laws():
    """Frequencies of whole strings against their probabilities: a chi-square at 1e-6."""
    small = restrict(whole(), ["a", "d"])
    sampled = restrict(as_samples(whole()), ["a", "d"])
    assert not isinstance(sampled, TopLaws) and sampled.spec == small.spec
    n, length = 3000, 3
    rows = [[i >> 2, i >> 1 & 1, i & 1] for i in range(8)]
    expected = n * torch.tensor([naive.chain_rule(small, row) for row in rows]).exp()
    drawn = sampled.complete(Prefixes.of([[]]), n, stream=STREAM, max_tokens=length)
    assert bool((drawn.lengths == length).all())
    number = (drawn.tokens[0] * torch.tensor([4, 2, 1])).sum(1)
    counts = torch.bincount(number, minlength=8)
    statistic = ((counts - expected).square() / expected).sum() / 2
    assert float(torch.special.gammaincc(torch.tensor(3.5), statistic.float())) > 1e-6


def test_rejected_tokens_are_counted():
    """Each accepted token costs 1 / P(S) tokens in the mean; here P(S) is one half always."""
    even = FunctionTeacher(lambda _: [0.25] * 4, ("a", "b", "c", "d"), horizon=5)
    sampled = restrict(as_samples(even), ["a", "b"])
    drawn = sampled.complete(Prefixes.of([[]]), 60, stream=STREAM)
    accepted = int(drawn.lengths.sum())
    assert accepted == 300
    # the number of failures before 300 successes: mean 300, standard deviation 24.5
    assert 150 < sampled.rejected_tokens < 450
    assert restrict(even, ["a", "b"]).rejected_tokens == 0


def test_draws_by_rejection_are_addressed():
    sampled = restrict(as_samples(whole()), ["a", "b", "."])
    together = sampled.complete(PREFIXES, 5, stream=STREAM)
    for row in range(4):
        one = sampled.complete(PREFIXES.take(torch.tensor([row])), 2, stream=STREAM, first_draw=3)
        width = one.tokens.shape[2]
        assert torch.equal(one.tokens[0], together.tokens[row, 3:, :width])
        assert torch.equal(one.lengths[0], together.lengths[row, 3:])
    ends = together.tokens == 2
    assert bool(ends.any())
    ended = ends.any(2) | (together.lengths + PREFIXES.lengths[:, None] == 6)
    assert bool(ended.all())


def test_draws_asked_in_parts_are_those_asked_at_once():
    """Nothing is drawn twice, and shorter draws are the beginnings of longer ones."""
    at_once = restrict(as_samples(whole()), ["a", "b", "."])
    expected = at_once.complete(Prefixes.of([[], [1]]), 30, stream=STREAM)
    parts = restrict(as_samples(whole()), ["a", "b", "."])
    for first, count in ((0, 4), (4, 1), (2, 10), (12, 18)):
        found = parts.complete(Prefixes.of([[], [1]]), count, stream=STREAM, first_draw=first)
        wide = found.tokens.shape[2]
        assert torch.equal(found.tokens, expected.tokens[:, first : first + count, :wide])
    assert parts.rejected_tokens == at_once.rejected_tokens
    short = parts.complete(Prefixes.of([[1]]), 30, stream=STREAM, max_tokens=2)
    assert torch.equal(short.tokens[0], expected.tokens[1, :, :2])


def test_prompts_do_not_share_their_draws():
    """Draw i after [0] and draw i that reached [0] by itself use different numbers."""
    sampled = restrict(as_samples(whole()), ["a", "d"])
    whole_draws = sampled.complete(Prefixes.of([[]]), 100, stream=STREAM, max_tokens=2)
    after = sampled.complete(Prefixes.of([[0]]), 100, stream=STREAM, max_tokens=1)
    same = whole_draws.tokens[0, :, 0] == 0
    assert 15 < int(same.sum()) < 85
    assert not torch.equal(whole_draws.tokens[0, same, 1], after.tokens[0, same, 0])


def test_hopeless_rejection_ends(monkeypatch):
    monkeypatch.setattr(restricted, "_ATTEMPTS", 20)
    never = FunctionTeacher(lambda p: [1.0, 0.0] if p else [0.5, 0.5], ("a", "b"), horizon=3)
    sampled = restrict(as_samples(never), ["b"])
    with pytest.raises(TeacherError, match=r"none of 20 tokens.*prefix \(0,\)"):
        sampled.complete(Prefixes.of([[]]), 1, stream=STREAM)
    assert not sampled._drawn  # a draw that did not end is none
    with pytest.raises(TeacherError, match=r"can follow prefix \(0,\)"):
        restrict(never, ["b"]).laws(Prefixes.of([[], [0]]))


def test_top_laws_where_they_tell_the_law():
    names = ["b", "d"]
    exact = restrict(whole(), names).laws(PREFIXES)
    shown = restrict(as_top_k(whole(), 3), names)
    assert isinstance(shown, TopLaws) and not isinstance(shown, Laws) and shown.k == 2
    top = shown.top_laws(PREFIXES)
    torch.testing.assert_close(top.log_probs, exact.sort(1, descending=True).values)
    torch.testing.assert_close(exact.gather(1, top.tokens), top.log_probs)
    assert bool((top.log_rest == -torch.inf).all())
    hidden = restrict(as_top_k(whole(), 3), ["a", "c"])
    with pytest.raises(TeacherError, match="leave out some of the 2"):
        hidden.top_laws(PREFIXES)
    drawn = hidden.complete(PREFIXES, 3, stream=STREAM)
    assert drawn.tokens.shape[:2] == (4, 3)


def test_top_laws_with_nothing_hidden():
    """Two possible tokens, both shown: what is not shown has no mass."""
    two = FunctionTeacher(lambda _: [0.25, 0.75, 0.0, 0.0], ("a", "b", "c", "d"), horizon=3)
    small = restrict(as_top_k(two, 2), ["a", "b", "c"])
    top = small.top_laws(Prefixes.of([[]]))
    torch.testing.assert_close(top.log_probs.exp(), torch.tensor([[0.75, 0.25]]).double())
    with pytest.raises(TeacherError, match="can follow"):
        restrict(as_top_k(two, 2), ["c"]).top_laws(Prefixes.of([[]]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one token"),
        (["a", "a"], "each once"),
        (["a", "#0"], "each once"),
        (["e"], "'e' is no token"),
        (["#5"], "'#5' is no token"),
    ],
)
def test_bad_sub_alphabets(names, message):
    with pytest.raises(InputError, match=message):
        restrict(whole(), names)


def test_a_uri_restricts_any_teacher():
    teacher = open_teacher("zoo:hmm?states=3&symbols=4&horizon=5&only=0,%232")
    assert teacher.spec.alphabet == ("0", "2")
    strings = teacher.sample(50, torch.Generator().manual_seed(0))
    scores = teacher.score(strings)
    expected = [naive.chain_rule(teacher, list(row)) for row in Prefixes(*strings).rows()]
    torch.testing.assert_close(scores, torch.tensor(expected).double())


def test_a_restricted_transformer_scores_and_samples():
    teacher = restrict(catalogue.tiny_llama(), ["1", "3"])
    strings = teacher.sample(5, torch.Generator().manual_seed(0))
    assert bool((strings.lengths == 8).all())
    expected = [naive.chain_rule(teacher, list(row)) for row in Prefixes(*strings).rows()]
    scores = teacher.score(strings)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor(expected).double(), rtol=0, atol=1e-5)
