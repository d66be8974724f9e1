"""Extended logit matrices: every road to a block against whole strings read one by one."""

import catalogue
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.errors import InputError
from myna.logits.matrix import logit_matrix
from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

TEACHERS = {
    "hmm": lambda: open_teacher("zoo:hmm?states=3&symbols=4&horizon=14"),
    "llama": catalogue.tiny_llama,
    "gpt2": catalogue.tiny_gpt2,
}
HISTORIES = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3)
FUTURES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4)


def naive(teacher, histories, futures):
    """log P(f | h), one law at a time."""
    found = torch.zeros((len(histories), len(futures)), dtype=torch.float64)
    for i, history in enumerate(histories):
        for j, future in enumerate(futures):
            for t, token in enumerate(future):
                found[i, j] += teacher.laws(Prefixes.of([[*history, *future[:t]]]))[0, token]
    return found


@settings(max_examples=10)
@given(HISTORIES, FUTURES, st.sampled_from(list(TEACHERS)))
def test_entries_are_those_of_whole_strings_one_by_one(histories, futures, kind):
    teacher = TEACHERS[kind]()
    matrix = logit_matrix(teacher, Prefixes.of(histories), Prefixes.of(futures))
    block = matrix.block(range(len(histories)), range(len(futures)))
    torch.testing.assert_close(block.whole, naive(teacher, histories, futures), rtol=0, atol=2e-5)
    nodes = [tuple(futures[f][:place]) for f, place in matrix.nodes.tolist()]
    proper = {tuple(f[:t]) for f in futures for t in range(len(f))}
    assert len(nodes) == len(proper) and set(nodes) == proper
    asked = Prefixes.of(histories).extended(Prefixes.of(nodes))
    laws = teacher.laws(asked)
    expected = (laws - laws.mean(1, keepdim=True)).reshape(len(histories), -1)
    torch.testing.assert_close(block.logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", TEACHERS)
def test_kept_tokens_are_the_likely_ones_centred_before_they_are_chosen(kind):
    teacher = TEACHERS[kind]()
    histories, futures = Prefixes.of([[], [1], [2, 0]]), Prefixes.of([[0, 1], [3], [0, 2, 1]])
    whole = logit_matrix(teacher, histories, futures)
    some = logit_matrix(teacher, histories, futures, k=2)
    full = whole.block(range(3), range(3)).logits.reshape(3, -1, teacher.spec.num_tokens)
    torch.testing.assert_close(
        some.block(range(3), range(3)).logits.reshape(3, -1, 2),
        full.gather(2, some.tokens.expand(3, -1, -1)),
        rtol=0,
        atol=2e-5,
    )
    laws = teacher.laws(
        histories.extended(Prefixes.of([futures.rows()[f][:t] for f, t in some.nodes.tolist()]))
    )
    mean = laws.exp().reshape(3, -1, teacher.spec.num_tokens).mean(0)
    assert torch.equal(some.tokens, mean.topk(2, dim=1).indices)
    last = logit_matrix(teacher, histories, futures, places="last")
    words = [tuple(futures.rows()[f][:place]) for f, place in last.nodes.tolist()]
    assert sorted(words) == [(), (0,), (0, 2)]


def test_any_block_is_a_part_of_the_whole():
    teacher = TEACHERS["llama"]()
    histories = Prefixes.of([[], [1], [2, 0], [3, 3, 1]])
    futures = Prefixes.of([[0, 1], [3], [0, 2, 1], [0, 2]])
    matrix = logit_matrix(teacher, histories, futures)
    whole = matrix.block(range(4), range(4))
    parts = [matrix.block(range(4), range(a, b)) for a, b in ((0, 1), (1, 3), (3, 4))]
    for name in ("whole", "logits"):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-5)


def test_each_shared_prefix_is_asked_once_and_none_after_what_is_impossible():
    ledger = Ledger(open_teacher("zoo:unigram?symbols=3&horizon=8"))
    futures = Prefixes.of([[0, 1, 2], [0, 1, 1], [0, 1, 1]])
    crossed(ledger.laws("x"), Prefixes.of([[1], [2]]), futures)
    assert ledger.total().next_token_queries == 2 * len(FutureTree.of(futures).pairs) == 2 * 3
    copies = Ledger(open_teacher("zoo:copy?n=3&k=2"))
    strings = [[a, b, c, d] for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    found = crossed(copies.laws("x"), Prefixes.of([[]]), Prefixes.of(strings)).log_probs[0]
    assert found[[s[0] != s[3] for s in strings]].isneginf().any() and not found.isnan().any()


def test_what_does_not_fit_is_refused():
    hmm, tiny = TEACHERS["hmm"](), TEACHERS["llama"]()
    one = Prefixes.of([[1]])
    for teacher, histories, futures, said in (
        (hmm, one, Prefixes.of([[1], []]), "a future needs at least one token"),
        (hmm, Prefixes.of([]), one, "at least one history"),
        (hmm, one, Prefixes.of([[1] * 14]), "15 tokens together, and the horizon is 14"),
        (hmm, Prefixes.of([[4]]), one, "a history has tokens outside 0..3"),
        (tiny, one, Prefixes.of([[4, 1]]), "may only come last"),
        (tiny, Prefixes.of([[4]]), one, "may only come last"),
    ):
        with pytest.raises(InputError, match=said):
            logit_matrix(teacher, histories, futures)
    with pytest.raises(InputError, match=r"k must lie in 1\.\.4, got 9"):
        logit_matrix(hmm, one, one, k=9)
    with pytest.raises(InputError, match="places must be"):
        logit_matrix(hmm, one, one, places="some")
