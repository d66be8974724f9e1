"""Combining other prompts: exact at low logit rank, equal to the algorithm written plainly."""

import json

import naive
import pytest
import torch
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import InputError
from myna.logits.centred import centred
from myna.logits.lingen import (
    CombinedHistories,
    combine,
    lingen,
    row_gram,
    shuffled,
    stacked_prefixes,
)
from myna.logits.matrix import logit_matrix
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.copies import save_copy
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

SHORT = Prefixes.of([[0, 1, 2], [1, 0, 3], [2, 2, 1], [3, 3, 0], [3, 1, 1]])
ISAN = "zoo:isan?dim=3&symbols=4&horizon=12"


def histories_of(teacher, count, length, seed=0):
    drawn = teacher.sample(count, torch.Generator().manual_seed(seed)).tokens[:, :length]
    return Prefixes(drawn, torch.full((count,), length))


@pytest.fixture(scope="module")
def network():
    return open_teacher(ISAN)


def test_a_target_of_low_logit_rank_is_reproduced(network):
    teacher = naive.Opaque(network, "laws")
    histories, targets = histories_of(network, 12, 4), histories_of(network, 3, 4, seed=9)
    futures = histories_of(network, 12, 5, seed=5)
    students, found = lingen(teacher, targets, histories, futures)
    assert float(found.unexplained.max()) < 1e-10
    for target, student in zip(targets.rows(), students, strict=True):
        assert student.spec.horizon == 8
        for word in ([], [1], [3, 0, 2]):
            law = student.law(student.initial(1)._replace(
                vector=torch.tensor([word]).double().reshape(1, -1), position=len(word)
            ))  # fmt: skip
            true = teacher.laws(Prefixes.of([[*target, *word]]))
            assert float((law.exp() - true.exp()).abs().max()) < 1e-6


def test_it_is_algorithm_one_written_plainly(network):
    """Rows built one law at a time, ridge regression by lstsq on stacked equations."""
    histories, target = histories_of(network, 6, 4), histories_of(network, 1, 4, seed=9)
    futures = histories_of(network, 12, 5, seed=6)
    ridge = 1e-2
    (student,), _ = lingen(network, target, histories, futures, ridges=(ridge,))
    words = sorted({row[:t] for row in futures.rows() for t in range(len(row))})
    rows = []
    for history in [*histories.rows(), *target.rows()]:
        parts = [centred(network.laws(Prefixes.of([[*history, *w]])))[0] for w in words]
        rows.append(torch.cat(parts))
    logits = torch.stack(rows)
    damp = (ridge * (logits[:-1] ** 2).sum(1).mean()).sqrt()
    above = torch.cat([logits[:-1].mT, damp * torch.eye(6, dtype=torch.float64)])
    aimed = torch.cat([logits[-1], torch.zeros(6, dtype=torch.float64)])
    v = torch.linalg.lstsq(above, aimed[:, None]).solution[:, 0]
    state = student.initial(1)
    for token in (2, 0, 1):
        before = [[*h, *state.vector[0].long().tolist()] for h in histories.rows()]
        mixed = v @ centred(network.laws(Prefixes.of(before)))
        torch.testing.assert_close(student.law(state)[0], mixed.log_softmax(0))
        state, _ = student.step(state, torch.tensor([token]))


def test_the_target_is_asked_about_futures_alone(network):
    asked = naive.Opaque(network, "laws")
    seen = []
    real = asked.laws
    asked.laws = lambda prefixes: (seen.extend(prefixes.rows()), real(prefixes))[1]
    histories, target = histories_of(network, 6, 4), Prefixes.of([[3, 3, 3]])
    futures = histories_of(network, 12, 5, seed=6)
    (student,), _ = lingen(asked, target, histories, futures)
    words = {row[:t] for row in futures.rows() for t in range(len(row))}
    assert {row for row in seen if row[:3] == (3, 3, 3)} >= {(3, 3, 3, *w) for w in words}
    seen.clear()
    student.sample(5, torch.Generator().manual_seed(0))
    starts = set(histories.rows())
    assert seen and all(row[:4] in starts for row in seen)


def test_the_copy_is_a_distribution_that_scores_what_it_samples(network):
    histories, target = histories_of(network, 3, 9), histories_of(network, 1, 9, seed=9)
    futures = SHORT
    (student,), _ = lingen(network, target, histories, futures)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3).tolist()
    scores = student.score(strings(every))
    assert float(scores.exp().sum()) == pytest.approx(1.0)
    nobody = student.initial(0)
    nobody, _ = student.step(nobody, torch.zeros(0, dtype=torch.int64))
    assert student.law(nobody).shape == (0, 4)
    drawn = student.sample(4000, torch.Generator().manual_seed(1)).tokens
    index = (drawn * torch.tensor([16, 4, 1])).sum(1)
    shares = torch.bincount(index, minlength=64) / 4000
    assert float((shares - scores.exp()).abs().sum()) / 2 < 0.08


def test_columns_may_be_kept_to_the_likeliest_and_rows_are_additive(network):
    rows = stacked_prefixes(histories_of(network, 5, 4), histories_of(network, 2, 3, seed=2))
    futures = histories_of(network, 6, 2, seed=5)
    for k in (None, 2):
        matrix = logit_matrix(network, rows, futures, k=k)
        whole = row_gram(matrix, range(6))
        parts = row_gram(matrix, range(2)) + row_gram(matrix, range(2, 6))
        assert whole.columns == parts.columns == len(matrix.nodes) * (k or 4)
        torch.testing.assert_close(whole.products, parts.products)


def test_more_ridges_never_leave_more_on_held_out_columns(network):
    rows = histories_of(network, 9, 4)
    matrix = logit_matrix(network, rows, histories_of(network, 8, 4, seed=5))
    fitted, held = row_gram(matrix, range(5)), row_gram(matrix, range(5, 8))
    histories, targets = torch.arange(2), torch.arange(7, 9)  # too few: something is left
    one = combine(fitted, held, histories, targets, (1.0,))
    many = combine(fitted, held, histories, targets)
    assert 0 < float(many.unexplained.mean()) < float(one.unexplained.mean())


def test_nonsense_keeps_the_tokens(network):
    futures = histories_of(network, 5, 6)
    other = shuffled(futures, torch.Generator().manual_seed(0))
    assert torch.equal(other.tokens.sort(1).values, futures.tokens.sort(1).values)
    assert not torch.equal(other.tokens, futures.tokens)


def test_bad_requests(network):
    histories = histories_of(network, 3, 2)
    with pytest.raises(InputError, match="one future is fitted"):
        lingen(network, histories, histories, Prefixes.of([[0, 1]]))
    with pytest.raises(InputError, match="no prefix that the others lack"):
        lingen(network, histories, histories, Prefixes.of([[0, 1], [0, 2]]))
    zeros = open_teacher("zoo:copy?n=2&k=2")
    with pytest.raises(InputError, match="without zeros"):
        lingen(zeros, Prefixes.of([[0, 1]]), Prefixes.of([[0, 0]]), Prefixes.of([[0], [1, 1]]))


def test_queries_are_the_ledgers(network):
    ledger = Ledger(network)
    histories, target = histories_of(network, 4, 4), histories_of(network, 1, 4, seed=9)
    futures = Prefixes.of([[0, 1], [1, 2]])  # words: empty and 0, then empty and 1
    (student,), _ = lingen(ledger.laws("fit"), target, histories, futures)
    assert ledger.account("fit").next_token_queries == 5 * 4
    other = CombinedHistories(ledger.laws("say"), histories, torch.ones(4).double() / 4, 3)
    other.law(other.initial(2))
    assert ledger.account("say").next_token_queries == len(set(histories.rows()))
    assert student.spec.fingerprint != other.spec.fingerprint


def test_the_command():
    asked = ["lingen", "zoo:isan?dim=3&symbols=4&horizon=24", "--target", "0,1,2,3"]
    sizes = ["--histories", "12", "--futures", "12", "--future-tokens", "4", "--tokens", "5"]
    run = CliRunner().invoke(app, [*asked, *sizes, "--json"])
    told = json.loads(run.stdout)
    assert run.exit_code == 0 and told["total_kl"] < 1e-9 and len(told["kl_by_token"]) == 5
    assert told["queries"]["fit"] > 0 and told["queries"]["generate"] > 0
    few = CliRunner().invoke(app, [*asked, *sizes, "--budget", "10"])
    assert few.exit_code == 1 and "the budget is 10 next-token queries" in str(few.exception)
    wrong = CliRunner().invoke(app, ["lingen", "zoo:isan?dim=3&symbols=4", "--target", "0,9"])
    assert isinstance(wrong.exception, InputError) and "lie in 0..3" in str(wrong.exception)


def stopping(folder, likely):
    """The address of a random network whose token 0 ends a string, `likely` nats more likely."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 6), generator=draw, dtype=torch.float64)
    logits[:, 0] += likely
    change = torch.ones((1, 6, 1), dtype=torch.float64)
    change[:, 0] = 0
    spec = Spec(numbered(6), 0, None, "unset")
    first = torch.ones(1, dtype=torch.float64)
    save_copy(folder, Isan.of(spec, first, (IsanStep(logits, change),)), {})
    return f"student:{folder}"


def test_continuations_that_end_early_are_compared_up_to_their_end(tmp_path):
    teacher = stopping(tmp_path / "s", likely=-1.0)
    sizes = ["--histories", "6", "--futures", "6", "--future-tokens", "4", "--tokens", "15"]
    run = CliRunner().invoke(app, ["lingen", teacher, "--target", "3,3", *sizes, "--json"])
    told = json.loads(run.stdout)
    ended = [text.split() for text in told["teacher_says"]]
    assert min(map(len, ended)) < len(told["kl_by_token"])
    assert told["total_kl"] < 1e-9


def test_prompts_are_drawn_again_where_the_teacher_stops_at_once(tmp_path):
    sizes = ["--histories", "6", "--futures", "6", "--future-tokens", "4", "--tokens", "3"]
    often = stopping(tmp_path / "s", likely=0.5)
    run = CliRunner().invoke(app, ["lingen", often, "--target", "3,3", *sizes, "--json"])
    assert json.loads(run.stdout)["total_kl"] < 1e-9
    always = stopping(tmp_path / "t", likely=30.0)
    none = CliRunner().invoke(app, ["lingen", always, "--target", "3,3", *sizes])
    assert isinstance(none.exception, InputError) and "take them from a --text" in str(
        none.exception
    )


def test_an_empty_target_is_followed_as_far_as_the_other_prompts():
    sizes = ["--histories", "12", "--futures", "12", "--future-tokens", "4", "--tokens", "15"]
    run = CliRunner().invoke(app, ["lingen", ISAN, "--target", "", *sizes, "--json"])
    told = json.loads(run.stdout)
    assert run.exit_code == 0 and len(told["kl_by_token"]) == told["tokens"] == 11
    assert "11 tokens of 15: the longest prompt leaves no more" in run.stderr
