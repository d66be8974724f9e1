"""Blocks of histories x futures: every road equals asking one prefix at a time."""

import catalogue
import pytest
import torch

from myna.errors import BudgetExhausted, InputError
from myna.teachers.crossing import Futures, cross, cross_laws
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.restricted import restrict
from myna.teachers.uri import open_teacher

TEACHERS = catalogue.teachers()


def drawn_block(teacher, longest=2):
    """Histories of mixed lengths, and futures that are ends of the teacher's own strings."""
    spec = teacher.spec
    drawn = teacher.complete(Prefixes.of([[]]), 14, stream=Stream("block", 3), max_tokens=6)
    strings = [
        row[:length]
        for row, length in zip(drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True)
    ]
    before = [[]] + [row[: min(i % (longest + 1), len(row) - 1)] for i, row in enumerate(strings)]
    room = 6 if spec.horizon is None else spec.horizon - max(map(len, before))
    after = [row[-1 - i % min(3, room, len(row)) :] for i, row in enumerate(strings)]
    return Prefixes.of(before), Prefixes.of(after)


def naive_cross(teacher, histories, futures):
    out = torch.zeros(len(histories.lengths), len(futures.lengths), dtype=torch.float64)
    for i, history in enumerate(histories.rows()):
        for j, future in enumerate(futures.rows()):
            for t, token in enumerate(future):
                if out[i, j] > -torch.inf:
                    law = teacher.laws(Prefixes.of([[*history, *future[:t]]]))[0]
                    out[i, j] += law[token]
    return out


@pytest.mark.parametrize("name", TEACHERS)
def test_blocks_equal_one_prefix_at_a_time(name):
    teacher = TEACHERS[name]
    histories, futures = drawn_block(teacher)
    found = cross(teacher, histories, Futures.of(futures))
    wanted = naive_cross(teacher, histories, futures)
    assert torch.equal(found.isneginf(), wanted.isneginf())
    possible = ~wanted.isneginf()
    tolerance = max(1e-12, 20 * catalogue.TOLERANCES.get(name, 0))
    assert float((found - wanted)[possible].abs().max()) < tolerance


@pytest.mark.parametrize("name", ["zoo:logit2?length=5", "llama", "gpt2", "function"])
def test_laws_of_blocks(name):
    known = [key for key in TEACHERS if name in key]
    assert known
    for key in known:
        teacher = TEACHERS[key]
        histories, futures = drawn_block(teacher)
        block = Futures.of(futures)
        found = cross_laws(teacher, histories, block)
        for i, history in enumerate(histories.rows()):
            for j, word in enumerate(block.words.rows()):
                law = teacher.laws(Prefixes.of([[*history, *word]]))[0]
                assert torch.allclose(found[i, j].exp(), law.exp(), atol=1e-5, rtol=0)


def test_words_are_the_distinct_proper_prefixes():
    block = Futures.of(Prefixes.of([[0, 1, 1], [0, 1, 0], [1]]))
    assert block.words.rows() == [(), (0,), (0, 1)]
    assert block.place.tolist() == [[0, 1, 2], [0, 1, 2], [0, -1, -1]]
    with pytest.raises(InputError, match="a token or more"):
        Futures.of(Prefixes.of([[0], []]))


def test_the_ledger_counts_blocks_and_holds_its_budget():
    teacher = open_teacher("zoo:logit2?length=5")
    histories, futures = Prefixes.of([[0, 1], [1]]), Prefixes.of([[0, 1], [0, 0], [1]])
    block = Futures.of(futures)  # words: empty and 0
    ledger = Ledger(teacher, Budget(queries=9))
    ledger.laws("a").cross(histories, block)
    spent = ledger.account("a")
    assert (spent.next_token_queries, spent.tokens_sent) == (4, 2 * 3 + 2 * 1)
    assert ledger.queries_by_cut("a") == (0, 1, 2, 1)
    ledger.laws("a").cross_laws(histories, block)
    with pytest.raises(BudgetExhausted):
        ledger.laws("a").cross(histories, block)
    assert ledger.total().next_token_queries == 8


def test_with_a_file_blocks_are_kept_and_never_asked_again(tmp_path):
    teacher = open_teacher("zoo:logit2?length=5")
    block = Futures.of(Prefixes.of([[0, 1], [1]]))
    histories = Prefixes.of([[0], [1]])
    for asked in (4, 0):
        with Ledger(teacher, file=tmp_path / "x.ledger", job="t") as ledger:
            before = ledger.paid().next_token_queries
            found = ledger.laws("a").cross(histories, block)
            assert ledger.paid().next_token_queries - before == asked
            assert torch.allclose(found, naive_cross(teacher, histories, block.whole))


def test_too_long_blocks_are_refused():
    teacher = open_teacher("zoo:logit2?length=5")
    block = Futures.of(Prefixes.of([[0, 1, 0]]))
    with pytest.raises(InputError, match="6 tokens together, and the horizon is 5"):
        cross(teacher, Prefixes.of([[0, 1, 1]]), block)


def test_a_restricted_teacher_goes_by_its_own_laws():
    whole = open_teacher("zoo:markov?symbols=3&horizon=4")
    teacher = restrict(whole, ["0", "2"]) if "0" in whole.spec.alphabet else None
    teacher = teacher or restrict(whole, list(whole.spec.alphabet[:2]))
    histories, futures = Prefixes.of([[], [1]]), Prefixes.of([[0, 1], [1, 1]])
    found = cross(teacher, histories, Futures.of(futures))
    assert torch.allclose(found, naive_cross(teacher, histories, futures))
