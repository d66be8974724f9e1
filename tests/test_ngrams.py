"""Kneser-Ney against its formula written with dictionaries."""

from collections import Counter, defaultdict

import pytest
import torch

from myna.errors import InputError
from myna.learn.ngrams import NgramSettings, count_ngrams, fit_ngrams, largest_order, learn_ngrams
from myna.lowrank.student import Strings, score_by_steps, strings
from myna.spec import Spec, numbered
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.uri import open_teacher


def plain_law(rows: list[list[int]], size: int, n: int, history: list[int]) -> list[float]:
    """The module's equations, one dictionary an order."""
    whole = Counter()
    for row in rows:
        padded = [size] * (n - 1) + row
        whole.update(tuple(padded[i : i + n]) for i in range(len(row)))
    counts = {n: whole}
    for k in range(n - 1, 0, -1):
        counts[k] = Counter(gram[1:] for gram in counts[k + 1])
    law = [1 / size] * size
    for k in range(1, n + 1):
        once = sum(1 for c in counts[k].values() if c == 1)
        twice = sum(1 for c in counts[k].values() if c == 2)
        discount = min(once / (once + 2 * twice), 0.999) if once else 0.5
        after = defaultdict(dict)
        for gram, count in counts[k].items():
            after[gram[:-1]][gram[-1]] = count
        context = tuple(([size] * n + history)[len(history) + n - (k - 1) :])
        found = after.get(context)
        if found:
            total = sum(found.values())
            law = [
                max(found.get(o, 0) - discount, 0) / total
                + discount * len(found) / total * law[o]
                for o in range(size)
            ]  # fmt: skip
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("uri", ["zoo:hmm?states=3&symbols=4&horizon=8", "zoo:copy?n=2&k=3"])
def test_laws_are_the_formula(uri, n):
    teacher = open_teacher(uri)
    drawn = teacher.sample(40, torch.Generator().manual_seed(1))
    rows = [r[:k] for r, k in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)]
    student, size = count_ngrams(teacher.spec, drawn, n), teacher.spec.num_tokens
    for history in ([], rows[0][:1], rows[1][:3], [0, 1], [1, 1, 1, 0]):
        state = student.initial(1)
        for token in history:
            state, _ = student.step(state, torch.tensor([token]))
        wanted = plain_law(rows, size, n, history)
        torch.testing.assert_close(student.law(state)[0].exp(), torch.tensor(wanted).double())
        assert abs(sum(wanted) - 1) < 1e-12


def test_the_order_is_chosen_on_held_out_strings():
    """Nothing shorter than the whole string helps with a parity: no early stop would find it."""
    teacher = open_teacher("zoo:parity?bits=4")
    result = learn_ngrams(Ledger(teacher), NgramSettings(tokens=50_000, max_order=5))
    report = result.report
    assert report.order == 1 + max(range(len(report.held_out)), key=report.held_out.__getitem__)
    assert report.order == 5 and result.student.order == 5  # the label needs all four bits
    assert report.tokens == 50_000 and report.accounts["learn"].tokens_received == 50_000
    fresh = teacher.sample(2000, torch.Generator().manual_seed(2))
    gap = float((teacher.score(fresh) - result.student.score(fresh)).mean())
    assert 0 <= gap + 0.01 < 0.03
    drawn = result.student.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.student.score(drawn), score_by_steps(result.student, drawn))


def test_what_cannot_be_counted_is_refused():
    teacher = open_teacher("zoo:parity?bits=4")
    with pytest.raises(InputError, match="2 are needed"):
        learn_ngrams(Ledger(teacher, Budget()), NgramSettings(tokens=5))
    with pytest.raises(InputError, match="at most"):
        count_ngrams(teacher.spec, Strings(torch.zeros(1, 5).long(), torch.tensor([5])), 60)
    with pytest.raises(InputError, match="at least 1"):
        NgramSettings(tokens=0)


def test_a_language_of_one_token_has_probability_one():
    one = Spec(numbered(1), None, None, "one")
    student = count_ngrams(one, strings([[0] * 3, [0] * 5]), 3)
    assert student.score(strings([[0] * 7])).tolist() == [pytest.approx(0.0, abs=1e-14)]


def test_empty_strings_are_left_out():
    two = Spec(numbered(2), None, 4, "two")
    text = strings([[], [0, 1], [], [1, 1, 0], [0]])
    student, held_out = fit_ngrams(two, text)
    plain, same = fit_ngrams(two, strings([[0, 1], [1, 1, 0], [0]]))
    assert held_out == same and student.spec.fingerprint == plain.spec.fingerprint
    with pytest.raises(InputError, match=r"at least 2 strings.*got 1"):
        fit_ngrams(two, strings([[], [], [0]]))


def test_orders_whose_contexts_have_no_number_are_not_tried():
    letters = Spec(tuple(map(str, range(2000))), None, None, "many")
    text = strings([[i, i + 1, i, i + 1] for i in range(40)])
    assert largest_order(2000) == 5 and 2001**5 <= 2**62 < 2001**6
    student, held_out = fit_ngrams(letters, text, max_order=8)
    assert len(held_out) == 5 and student.order <= 5
