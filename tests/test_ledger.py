import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import BudgetExhausted, TeacherError
from myna.lowrank.student import strings
from myna.teachers.ledger import Account, Budget, Ledger
from myna.teachers.oracle import as_samples, as_top_k
from myna.teachers.prefixes import Prefixes, tree_levels
from myna.teachers.uri import open_teacher

TEACHER = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")


def test_laws_are_counted_once_and_remembered():
    ledger = Ledger(TEACHER)
    view = ledger.laws("learn")
    first = view.laws(Prefixes.of([[], [0], [0], [1, 2]]))
    again = view.laws(Prefixes.of([[1, 2], []]))
    assert torch.equal(again, first[[3, 0]])
    assert ledger.account("learn") == Account(next_token_queries=3, tokens_sent=3, cache_hits=1 + 2)
    assert ledger.queries_by_cut("learn") == (1, 1, 1)


def test_purposes_pay_apart_but_share_answers():
    ledger = Ledger(TEACHER)
    ledger.laws("learn").laws(Prefixes.of([[0]]))
    ledger.laws("verify").laws(Prefixes.of([[0], [1]]))
    assert ledger.account("verify") == Account(next_token_queries=1, tokens_sent=1, cache_hits=1)
    assert ledger.total().next_token_queries == 2
    assert set(ledger.accounts()) == {"learn", "verify"}


def test_counts_match_what_reaches_the_teacher():
    """A teacher that counts for itself agrees with the ledger."""
    seen = []

    class Counting:
        spec, k = TEACHER.spec, TEACHER.k
        complete, top_laws = TEACHER.complete, TEACHER.top_laws

        def laws(self, prefixes):
            seen.extend(prefixes.rows())
            return TEACHER.laws(prefixes)

    ledger = Ledger(Counting())
    view = ledger.laws("learn")
    view.draw_by_laws(30, 0, None)
    view.draw_by_laws(30, 15, None)
    assert len(seen) == len(set(seen)) == ledger.total().next_token_queries
    assert sum(map(len, seen)) == ledger.total().tokens_sent


@given(
    st.integers(0, 40), st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=30)
)
def test_a_query_budget_is_never_exceeded(limit, rows):
    ledger = Ledger(TEACHER, Budget(queries=limit))
    view = ledger.laws("learn")
    for start in range(0, len(rows), 5):
        before = ledger.total()
        try:
            view.laws(Prefixes.of(rows[start : start + 5]))
        except BudgetExhausted:
            assert ledger.total().next_token_queries == before.next_token_queries
    assert ledger.total().next_token_queries <= limit


def test_a_token_budget_is_reserved_before_drawing():
    ledger = Ledger(TEACHER, Budget(tokens=20))
    view = ledger.samples("learn")
    view.complete(Prefixes.of([[]]), 3)  # 18 tokens
    with pytest.raises(BudgetExhausted, match=r"the budget is 20 tokens.*24"):
        view.complete(Prefixes.of([[]]), 1, first_draw=3)
    assert ledger.total().tokens_received == 18
    stop_only = Ledger(open_teacher("zoo:registers"), Budget(tokens=20))
    with pytest.raises(BudgetExhausted, match="unbounded length"):
        stop_only.samples("learn").complete(Prefixes.of([[]]), 1)


def test_completions_are_counted_and_remembered():
    ledger = Ledger(TEACHER)
    view = ledger.samples("learn")
    first = view.complete(Prefixes.of([[], [1]]), 3)
    assert ledger.account("learn") == Account(completions=6, tokens_sent=3, tokens_received=18 + 15)
    more = view.complete(Prefixes.of([[1]]), 4, first_draw=1)
    assert ledger.account("learn").completions == 8
    assert ledger.account("learn").cache_hits == 2
    assert torch.equal(more.tokens[0, :2], first.tokens[1, 1:, :5])


def test_purposes_draw_from_different_streams():
    ledger = Ledger(TEACHER)
    draws = [
        ledger.samples(purpose).complete(Prefixes.of([[]]), 40).tokens
        for purpose in ("learn", "certify")
    ]
    assert not torch.equal(*draws)
    other = Ledger(TEACHER, seed=1).samples("learn").complete(Prefixes.of([[]]), 40).tokens
    assert not torch.equal(draws[0], other)
    same = Ledger(TEACHER).samples("learn").complete(Prefixes.of([[]]), 40).tokens
    assert torch.equal(draws[0], same)


def test_the_level_is_kept():
    ledger = Ledger(as_top_k(TEACHER, 2))
    top = ledger.top_laws("learn").top_laws(Prefixes.of([[], [0], []]))
    assert top.tokens.shape == (3, 2)
    assert ledger.account("learn").next_token_queries == 2
    with pytest.raises(TeacherError, match="whole next-token laws"):
        ledger.laws("learn")
    with pytest.raises(TeacherError, match="top-k access"):
        Ledger(as_samples(TEACHER)).top_laws("learn")
    assert not hasattr(ledger.samples("learn"), "laws")


def test_scores_are_the_teachers_own():
    drawn = TEACHER.sample(20, torch.Generator().manual_seed(0))
    view = Ledger(TEACHER).laws("check")
    torch.testing.assert_close(view.score(drawn), TEACHER.score(drawn), rtol=0, atol=1e-12)
    impossible = open_teacher("zoo:copy?n=2&k=2")
    scores = Ledger(impossible).laws("check").score(strings([[0, 0, 1, 1]]))
    assert scores.tolist() == [-torch.inf]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=40))
def test_prefix_trees_hold_every_prefix_once(rows):
    paths, found = {0: {0: ()}}, {}
    for level in tree_levels(Prefixes.of(rows)):
        if level.depth:
            above = paths[level.depth - 1]
            paths[level.depth] = {
                node: (*above[int(parent)], int(token))
                for node, (parent, token) in enumerate(
                    zip(level.parents, level.tokens, strict=True)
                )
            }
        here = paths[level.depth]
        assert len(set(here.values())) == len(here)
        found |= {
            int(row): here[int(node)] for row, node in zip(level.rows, level.nodes, strict=True)
        }
    assert [found[i] for i in range(len(rows))] == [tuple(row) for row in rows]
    distinct = {tuple(row[:n]) for row in rows for n in range(len(row) + 1)}
    assert sum(len(level) for level in paths.values()) == len(distinct)


@given(st.lists(st.lists(st.integers(0, 300), max_size=4), min_size=1, max_size=20))
def test_keys_are_equal_where_prefixes_are(rows):
    keys = Prefixes.of(rows).keys()
    padded = Prefixes.of([*rows, [0] * 9]).keys()[:-1]
    assert keys == padded
    for a, first in enumerate(rows):
        for b, second in enumerate(rows):
            assert (keys[a] == keys[b]) == (first == second)
