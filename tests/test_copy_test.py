"""Repeat after me: blocks by enumeration, the bound on copies, and the command."""

import itertools
import json

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from myna.app.cli import app
from myna.audit.copy_test import copy_test, judged, log_block
from myna.errors import InputError
from myna.lowrank.student import strings
from myna.teachers.encode import encoded
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher


def asked(uri, count, length, **parts):
    return copy_test(Ledger(open_teacher(uri)).laws("t"), count, length, **parts)


def test_the_copy_model_is_the_identity():
    found = asked("zoo:copy?n=3&k=2", 8, 3)
    assert sorted(found.words) == list(itertools.product(range(2), repeat=3))
    assert found.rank == 8 and found.singular_values == pytest.approx([1.0] * 8)
    assert (found.repeated, found.chosen, found.first, found.identity_distance) == (1, 1, 1, 0)
    assert found.log_singular_values is None  # the block has zeros
    assert found.least_variation(2) == pytest.approx(6 / 16)
    assert found.least_rank(0.3) == 4 and found.least_rank(0.0) == 8


def test_independent_tokens_repeat_nothing():
    found = asked("zoo:unigram?symbols=3&horizon=6", 6, 2)
    assert found.rank == 1 and found.least_variation(1) == 0
    assert found.chosen == pytest.approx(1 / 6)


def test_entries_are_ratios_of_scores_and_queries_are_counted():
    teacher = open_teacher("zoo:hmm?states=3&symbols=3&horizon=7")
    opening, between = (2,), (0, 1)
    ledger = Ledger(naive.Opaque(teacher, "laws"))
    found = copy_test(ledger.laws("t"), 6, 2, opening=opening, between=between)
    assert ledger.total().next_token_queries == found.queries > 0
    for i, word in enumerate(found.words):
        history = [*opening, *word, *between]
        for j, after in enumerate(found.words):
            whole = sum(
                float(teacher.score(strings([[*history, *after, *rest]])).exp())
                for rest in itertools.product(range(3), repeat=7 - len(history) - 2)
            )
            part = sum(
                float(teacher.score(strings([[*history, *rest]])).exp())
                for rest in itertools.product(range(3), repeat=7 - len(history))
            )
            assert found.log_probs[i][j] == pytest.approx(torch.tensor(whole / part).log().item())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 6), st.integers(0, 2**31), st.floats(0, 1))
def test_no_block_of_lower_rank_is_nearer_than_the_bound(size, rank, seed, mixing):
    """Against the best found by truncation, random blocks and the block itself with noise."""
    rank = min(rank, size)
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand((size, size), generator=generator, dtype=torch.float64)
    rows = mixing * torch.eye(size, dtype=torch.float64) + (1 - mixing) * random / size
    found = judged([(i,) for i in range(size)], rows.log(), 0)
    u, s, v = torch.linalg.svd(rows)
    truncated = u[:, :rank] * s[:rank] @ v[:rank]
    a, b = (torch.rand((size, rank), generator=generator, dtype=torch.float64) for _ in "ab")
    for copy in (truncated, truncated.clamp(min=0), a @ b.mT / size):
        if torch.linalg.matrix_rank(copy) <= rank:
            variation = float((rows - copy).abs().sum()) / (2 * size)
            assert variation >= found.least_variation(rank) - 1e-9


def test_the_bound_is_met_by_a_copy_of_the_identity():
    """r words repeated and nothing said after the others: exactly (n - r) / 2n."""
    found = judged([(i,) for i in range(5)], torch.eye(5, dtype=torch.float64).log(), 0)
    copy = torch.diag(torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64))
    variation = float((torch.eye(5) - copy).abs().sum()) / 10
    assert variation == pytest.approx(found.least_variation(2)) == pytest.approx(0.3)


def test_a_tie_is_no_repetition():
    impossible = judged([(0,), (1,)], torch.full((2, 2), -torch.inf).double(), 0)
    assert impossible.first == impossible.repeated == 0
    tied = judged([(0,), (1,)], torch.tensor([[0.5, 0.5], [0.1, 0.9]]).double().log(), 0)
    assert tied.first == 0.5


def test_impossible_words_are_not_asked_about():
    ledger = Ledger(open_teacher("zoo:copy?n=2&k=2"))
    block = log_block(ledger.laws("t"), [(0, 1)], [(0, 1), (1, 0)])
    assert block.tolist() == [[0.0, -torch.inf]]
    assert ledger.total().next_token_queries == 2


@pytest.mark.parametrize(
    ("uri", "count", "length", "told"),
    [
        ("zoo:copy?n=2&k=2", 1, 2, "at least 2 words"),
        ("zoo:copy?n=2&k=2", 4, 3, "6 tokens together, and the horizon is 4"),
        ("zoo:copy?n=2&k=2", 5, 2, "5 different words of 2 tokens were wanted"),
    ],
)
def test_bad_requests(uri, count, length, told):
    with pytest.raises(InputError, match=told):
        asked(uri, count, length)


def test_texts_become_tokens(shared_data):
    uri = f"rnn:{shared_data / 'charrnn-shakespeare'}"
    spec = open_teacher(uri).spec
    tokens = encoded(uri, spec, ["to be\n"])[0]
    assert [spec.alphabet[t] for t in tokens] == ["t", "o", "\u2581", "b", "e", "<U+000A>"]
    with pytest.raises(InputError, match="is no token of this teacher"):
        encoded(uri, spec, ["\u00e9"])


def test_the_command(tmp_path):
    run = CliRunner().invoke(
        app, ["copytest", "zoo:copy?n=3&k=2", "--words", "8", "--length", "3", "--json"]
    )
    told = json.loads(run.stdout)
    assert run.exit_code == 0 and told["rank"] == 8
    assert told["least_variation"] == {"2": 0.375, "4": 0.25}
    page = CliRunner().invoke(
        app, ["copytest", "hf:bundled?horizon=16", "--words", "6", "--template", "{}{}",
              "-o", str(tmp_path)],
    )  # fmt: skip
    assert page.exit_code == 0, page.output
    assert (tmp_path / "copytest.png").stat().st_size > 1000
    bad = CliRunner().invoke(app, ["copytest", "zoo:copy?n=3&k=2", "--template", "{} then"])
    assert isinstance(bad.exception, InputError) and "twice" in str(bad.exception)
