"""Extended logit matrices: every road to a block against whole strings read one by one."""

import catalogue
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from myna.errors import BudgetExhausted, InputError
from myna.logits.matrix import logit_matrix
from myna.spec import Spec, numbered
from myna.teachers.crossing import FutureTree, crossed, crossed_by_laws
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.llama_passes import compiled
from myna.teachers.prefixes import Prefixes
from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

TEACHERS = {
    "hmm": lambda: open_teacher("zoo:hmm?states=3&symbols=4&horizon=14"),
    "isan": lambda: open_teacher("zoo:isan?dim=3&symbols=4&horizon=9"),
    "ledger": lambda: Ledger(open_teacher("zoo:markov?symbols=4&horizon=9")).laws("x"),
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


def llama(heads, group, size, inner, seed=0):
    """Random weights, gains that are not one, 11 tokens of which the last one stops."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11, hidden_size=24, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=heads * group, num_key_value_heads=heads, head_dim=size,
        max_position_embeddings=40,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.add_(0.3 * torch.randn(24))
    return TransformerTeacher(model, 0, Spec(numbered(11), 10, 40, f"{heads} {group} {size}"))


@pytest.mark.parametrize(
    ("heads", "group", "size", "inner"),
    [(4, 2, 8, 20), (1, 1, 8, 9), (2, 3, 16, 16), (1, 2, 24, 24)],
)
def test_one_pass_a_batch_is_what_law_by_law_says(heads, group, size, inner):
    """With fused passes, and without."""
    teacher = llama(heads, group, size, inner)
    assert (teacher._llama is None) == (compiled() is None)
    random = torch.Generator().manual_seed(1)
    drawn = [
        torch.randint(10, (n,), generator=random).tolist()
        for n in [0, 1, 5, 1, *range(1, 14), *range(1, 14)]
    ]
    histories, futures = Prefixes.of(drawn[:3]), Prefixes.of([*drawn[3:], [4, 10], [10]])
    kept = torch.tensor([[0, 0], [9, 8], [7, 0], [9, 1], [21, 4]])
    expected = crossed_by_laws(teacher, histories, futures, kept)
    for fused in (True, False):
        if not fused:
            teacher.__dict__["_llama"] = None
        for batch in (1024, 3):
            teacher._batch = batch
            found = crossed(teacher, histories, futures, kept)
            for ours, law_by_law in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, law_by_law, rtol=0, atol=5e-5)


def test_threads_share_histories_out(monkeypatch):
    teacher = llama(2, 2, 8, 16)
    histories = Prefixes.of([[i] for i in range(7)])
    futures = Prefixes.of([[i, j, 1] for i in range(5) for j in range(3)])
    alone = crossed(teacher, histories, futures).log_probs
    torch.set_num_threads(3)
    try:
        together = crossed(teacher, histories, futures).log_probs
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_futures_that_share_most_prefixes_are_walked_as_a_tree():
    teacher = llama(2, 2, 8, 16)
    seen = []
    extend = teacher._net.extend
    teacher._net.extend = lambda rows, tokens: seen.append(tokens.numel()) or extend(rows, tokens)
    futures = Prefixes.of(
        [[a, b, c, d] for a in (1, 2) for b in (1, 2) for c in (1, 2) for d in (1, 2)]
    )
    found = crossed(teacher, Prefixes.of([[3], [4, 5]]), futures)
    assert sum(seen) == 3 + 2 * (2 + 4 + 8)
    expected = crossed_by_laws(
        teacher, Prefixes.of([[3], [4, 5]]), futures, torch.zeros(0, 2).long()
    )
    torch.testing.assert_close(found.log_probs, expected.log_probs)


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


@pytest.mark.parametrize("kept_in_a_file", [False, True])
def test_the_ledger_counts_blocks_and_holds_its_budget(kept_in_a_file, tmp_path):
    teacher = open_teacher("zoo:logit2?length=5")
    file = tmp_path / "asked.ledger" if kept_in_a_file else None
    histories, futures = Prefixes.of([[0, 1], [1]]), Prefixes.of([[0, 1], [0, 0], [1]])
    with Ledger(teacher, Budget(queries=9), file=file, job="t") as ledger:
        view = ledger.laws("a")
        found = crossed(view, histories, futures)
        spent = ledger.account("a")
        assert (spent.next_token_queries, spent.tokens_sent) == (4, 2 * 3 + 2 * 1)
        assert ledger.queries_by_cut("a") == (0, 1, 2, 1)
        torch.testing.assert_close(found.log_probs, crossed(teacher, histories, futures).log_probs)
        crossed(view, histories, futures)
        if kept_in_a_file:  # nothing is asked twice
            assert ledger.total().next_token_queries == 4
            return
        assert ledger.total().next_token_queries == 8
        with pytest.raises(BudgetExhausted):
            crossed(view, histories, futures)
        assert ledger.total().next_token_queries == 8
