import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from myna.errors import BudgetExhausted, InputError, TeacherError
from myna.lowrank.student import strings
from myna.teachers.ledger import Account, Budget, Ledger
from myna.teachers.oracle import Completions, Stream, as_samples, as_top_k
from myna.teachers.prefixes import Prefixes, tree_levels
from myna.teachers.uri import open_teacher

TEACHER = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6")
STOPPING = open_teacher("zoo:registers?k=1&stop=0.3")
EMPTY = Prefixes.of([[]])


class Recording:
    """A teacher that writes down every draw that it is asked for."""

    def __init__(self, teacher):
        self.spec, self._teacher, self.asked = teacher.spec, teacher, []

    def complete(self, prefixes, count, *, stream, max_tokens=None, first_draw=0):
        for row in prefixes.rows():
            self.asked += [(row, stream, max_tokens, first_draw + i) for i in range(count)]
        return self._teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )


class Broken:
    """A teacher that always gives one answer to two draws of one prefix."""

    def __init__(self, spec, tokens, lengths):
        self.spec, self.answer = spec, Completions(tokens, lengths)

    def complete(self, *_, **__):
        return self.answer


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


def test_sampled_tokens_are_reserved_whole_or_not_at_all():
    teacher = Recording(TEACHER)
    ledger = Ledger(teacher, Budget(sampled_tokens=30))
    view = ledger.samples("learn")
    assert view.fits(EMPTY, 5) and not view.fits(EMPTY, 6)
    assert view.fits(EMPTY, 15, max_tokens=2) and not view.fits(Prefixes.of([[0]]), 7)
    assert teacher.asked == [] and ledger.total() == Account()
    view.complete(Prefixes.of([[], [0, 1, 2]]), 2)
    assert ledger.total().sampled_tokens == ledger.total().tokens_received == 12 + 6
    assert not view.fits(EMPTY, 5) and view.fits(EMPTY, 4), "two of the draws are known"
    view.complete(EMPTY, 3)
    before = len(teacher.asked)
    # One missing draw of the empty prefix and two of the other: either alone would fit.
    assert view.fits(EMPTY, 4) and view.fits(Prefixes.of([[0, 1, 2]]), 4)
    with pytest.raises(BudgetExhausted, match=r"30 sampled tokens.*36"):
        view.complete(Prefixes.of([[], [0, 1, 2]]), 4)
    assert len(teacher.asked) == before and ledger.total().sampled_tokens == 24
    assert ledger.budget.sampled_tokens == 30


def test_unbounded_completions_need_no_token_budget():
    free = Ledger(STOPPING).samples("learn")
    assert free.fits(EMPTY, 10) and free.complete(EMPTY, 10).lengths.min() >= 1
    for budget in (Budget(sampled_tokens=10**6), Budget(tokens=10**6)):
        limited = Ledger(STOPPING, budget).samples("learn")
        assert not limited.fits(EMPTY, 1) and limited.fits(EMPTY, 1, max_tokens=9)
        with pytest.raises(BudgetExhausted, match="unbounded length"):
            limited.complete(EMPTY, 1)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([(), (0,), (1,), (0, 1), (0, 0, 0)]), min_size=1, max_size=6),
        st.integers(1, 6),  # count
        st.integers(0, 8),  # first draw
        st.sampled_from([None, 0, 1, 3]),
        st.sampled_from([None, Stream("other")]),
    ),
    min_size=1,
    max_size=8,
)


# Draws before all that are held; a gap; prefixes against the order of their first asking.
SCATTERED = [
    ([(0,)], 1, 0, 1, None),  # the first prefix of all, on another shelf
    ([()], 9, 0, 0, None),
    ([()], 9, 9, None, None),
    ([(0,), ()], 2, 4, None, None),
    ([()], 1, 8, None, None),
    ([(), (1,), (0,)], 2, 0, None, None),
    ([(1,), (0,), (), (0,)], 9, 1, None, None),
]


@example(TEACHER, SCATTERED)
@example(STOPPING, SCATTERED)
@given(st.sampled_from([TEACHER, STOPPING]), REQUESTS)
def test_any_pattern_of_requests_is_answered_and_paid_once(teacher, requests):
    """Against a ledger that writes down each draw by itself."""
    recording = Recording(teacher)
    ledger = Ledger(recording)
    view = ledger.samples("learn")
    known, expected = set(), Account()
    for rows, count, first, max_tokens, stream in requests:
        prefixes = Prefixes.of(rows)
        given_stream = stream or view.stream
        answer = view.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first
        )
        direct = teacher.complete(
            prefixes, count, stream=given_stream, max_tokens=max_tokens, first_draw=first
        )
        assert torch.equal(answer.tokens, direct.tokens)
        assert torch.equal(answer.lengths, direct.lengths)
        for i, row in enumerate(rows):
            for j in range(count):
                name = (row, given_stream, max_tokens, first + j)
                length = int(direct.lengths[i, j])
                expected += (
                    Account(cache_hits=1)
                    if name in known
                    else Account(completions=1, tokens_sent=len(row), tokens_received=length)
                )
                known.add(name)
    assert ledger.total() == expected
    assert len(recording.asked) == len(set(recording.asked))
    assert set(recording.asked) == known


def test_draws_beyond_a_name_are_refused():
    view = Ledger(TEACHER).samples("learn")
    last = view.complete(EMPTY, 1, first_draw=2**32 - 1)
    assert torch.equal(last.tokens, view.complete(EMPTY, 1, first_draw=2**32 - 1).tokens)
    assert view.spent().cache_hits == 1
    with pytest.raises(InputError, match=r"below 2\*\*32"):
        view.complete(EMPTY, 1, first_draw=2**32)


def answer(*draws, width=None):
    """The rows of one prefix, padded with -1."""
    width = max(map(len, draws)) if width is None else width
    tokens = [[*draw, *[-1] * (width - len(draw))] for draw in draws]
    return torch.tensor([tokens], dtype=torch.int64).reshape(1, len(draws), width), torch.tensor(
        [[len(draw) for draw in draws]]
    )


def edited(part, draws, change):
    """A good answer with one of its two tensors replaced."""
    tokens, lengths = answer(*draws)
    return (change(tokens), lengths) if part == "tokens" else (tokens, change(lengths))


# After prefix [1] with max_tokens=3: tokens 0 and 1, no stop, horizon 4.
UNENDING = {
    "outside the alphabet": (answer([0, 1, 1], [0, 2, 1]), r"0\.\.1.*\[1\] draw 5.*\[0, 2, 1\]"),
    "negative": (answer([0, 1, 1], [0, -1, 1]), r"tokens must lie in 0\.\.1.*draw 5"),
    "too long": (answer([0] * 4, [0] * 4), r"longer than was asked.*draw 4.*at most 3"),
    "empty": (answer([0, 1, 1], []), r"at least one token.*\[1\] draw 5.*length 0"),
    "all empty": (answer([], []), r"at least one token.*draw 4.*\[\] with length 0"),
    "too short": (answer([0, 1, 1], [0, 1]), r"go on to its end.*draw 5.*\[0, 1, -1\]"),
    "one draw": (answer([0, 1, 1]), r"2 completions each of 1 prefixes.*\(1, 1, 3\)"),
    "no draw axis": (
        edited("tokens", [[0, 1, 1]] * 2, lambda t: t[0]),
        r"tokens of whole numbers.*3 axes.*\(2, 3\)",
    ),
    "no matching lengths": (
        edited("lengths", [[0, 1, 1]] * 2, lambda n: n.T),
        r"lengths of whole numbers.*\(1, 2\).*\(2, 1\)",
    ),
    "fractions": (
        edited("tokens", [[0, 1, 1]] * 2, lambda t: t.double()),
        r"tokens of whole numbers.*float64",
    ),
    "a list": (edited("lengths", [[0, 1, 1]] * 2, lambda n: n.tolist()), "whole numbers.*list"),
    "lengths beyond the tokens": (
        edited("lengths", [[0, 1]] * 2, lambda n: n + 1),
        r"fit its tokens.*draw 4.*length 3",
    ),
    "negative lengths": (
        edited("lengths", [[0, 1, 1]] * 2, lambda n: -n),
        r"fit its tokens.*length -3",
    ),
    "tokens after the end": (
        edited("tokens", [[0, 1, 1]] * 2, lambda t: torch.cat([t, t], 2)),
        r"followed by -1.*\[0, 1, 1, 0, 1, 1\]",
    ),
}


@pytest.mark.parametrize("fault", UNENDING)
def test_answers_that_are_none_are_refused(fault):
    """Named by prefix and draw; nothing is kept; what was asked stays charged."""
    parity = open_teacher("zoo:parity?bits=3")
    (tokens, lengths), message = UNENDING[fault]
    broken = Broken(parity.spec, tokens, lengths)
    ledger = Ledger(broken)
    view = ledger.samples("learn")
    ask = {"count": 2, "max_tokens": 3, "first_draw": 4}
    with pytest.raises(TeacherError, match=f"{message}.*check the teacher"):
        view.complete(Prefixes.of([[1]]), **ask)
    assert ledger.total() == Account(completions=2, tokens_sent=2)
    broken.answer = Completions(*answer([0, 1, 1], [1, 1, 0]))
    assert view.complete(Prefixes.of([[1]]), **ask).tokens.tolist() == [[[0, 1, 1], [1, 1, 0]]]
    assert ledger.total().completions == 4 and ledger.total().cache_hits == 0


STOP = STOPPING.spec.stop
STOPPED = {
    "after a stop": (answer([0, STOP], [STOP, 0]), r"'<stop>' may only come last.*draw 1"),
    "two stops": (answer([0, STOP], [STOP, STOP]), r"'<stop>' may only come last.*draw 1"),
    "no stop": (answer([0, 0], [0, STOP]), r"go on to its end.*draw 0.*any number of tokens"),
    "empty": (answer([0, STOP], []), r"at least one token.*draw 1"),
}


@pytest.mark.parametrize("fault", STOPPED)
def test_stops_are_checked(fault):
    (tokens, lengths), message = STOPPED[fault]
    broken = Broken(STOPPING.spec, tokens, lengths)
    ledger = Ledger(broken)
    with pytest.raises(TeacherError, match=message):
        ledger.samples("learn").complete(EMPTY, 2)
    assert ledger.total().sampled_tokens == 0
    broken.answer = Completions(*answer([0, STOP], [STOP]))
    assert ledger.samples("learn").complete(EMPTY, 2).lengths.tolist() == [[2, 1]]


def test_long_answers_are_shown_in_part():
    broken = Broken(STOPPING.spec, *answer([0] * 20, [STOP]))
    with pytest.raises(TeacherError, match=r"\[(0, ){12}\.\.\.\] with length 20 where at most 9"):
        Ledger(broken).samples("learn").complete(EMPTY, 2, max_tokens=9)


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
