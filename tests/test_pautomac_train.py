"""PAutomaC's samples: reading, the score, n-grams and merged states from given strings."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from myna.errors import FormatError, InputError
from myna.learn.merging import INPUT, merged_student, pairs
from myna.learn.ngrams import NgramSettings, count_ngrams, fit_ngrams, learn_ngrams
from myna.lowrank.student import strings
from myna.teachers.ledger import Ledger
from myna.teachers.pautomac import perplexity, read_automaton, read_sample, read_strings
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "7.pautomac.train"
        path.write_text(text)
        return path

    return written


def rows_of(batch):
    both = zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
    return [row[:length] for row, length in both]


def test_strings_end_in_the_stop(write):
    language, sample = read_sample(write("4 3\n2 0 2\n0\n3 1 1 1\n1 2\n"))
    assert rows_of(sample) == [[0, 2, 3], [3], [1, 1, 1, 3], [2, 3]]
    assert int(sample.tokens[1, 1]) == -1
    assert language.alphabet == ("0", "1", "2", "<stop>")
    assert (language.stop, language.horizon) == (3, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train, line 1: wanted the number of strings"),
        ("2 3\n1 0\n", r"train: line 1 promises 2 strings, and there are 1"),
        ("2 3\n1 0\n2 0\n", r"train, line 3: wanted a length and that many symbols below 3"),
        ("1 3\n1 3\n", r"train, line 2: wanted a length and that many symbols below 3"),
        ("1 3\n1 a\n", r"train, line 2: wanted whole numbers, got '1 a'"),
    ],
)
def test_errors_name_file_and_line(write, text, message):
    with pytest.raises(FormatError, match=message):
        read_sample(write(text))


def test_the_language_is_the_teachers(shared_data):
    folder = shared_data / "pautomac"
    teacher = read_automaton(folder / "31.pautomac_model.txt")
    language, sample = read_sample(folder / "31.pautomac.test")
    assert language.same_language(teacher.spec)
    plain, _ = read_strings(folder / "31.pautomac.test")
    assert [row[:-1] for row in rows_of(sample)] == rows_of(plain)


def test_perplexity_is_its_definition():
    """p and q as dictionaries over the test strings, both normalised there."""
    p = {"a": 0.2, "b": 0.05, "ab": 0.01}
    q = {"a": 0.1, "b": 0.07, "ab": 0.02}
    log_q = torch.tensor([q[x] for x in p], dtype=torch.float64).log()
    solution = torch.tensor(list(p.values()), dtype=torch.float64)
    expected = 2 ** -sum(
        p[x] / sum(p.values()) * math.log2(q[x] / sum(q.values())) for x in p
    )  # fmt: skip
    assert perplexity(solution / solution.sum(), log_q) == pytest.approx(expected, rel=1e-12)
    log_q[1] = -torch.inf
    assert perplexity(solution / solution.sum(), log_q) == math.inf


def test_ngrams_of_strings_are_those_of_the_ledger():
    teacher = open_teacher("zoo:hmm?states=3&symbols=4&horizon=8")
    result = learn_ngrams(Ledger(teacher), NgramSettings(tokens=4000, max_order=4))
    view = Ledger(teacher).samples("learn")
    drawn = view.complete(Prefixes.of([[]]), 500, max_tokens=8)
    student, held_out = fit_ngrams(teacher.spec, strings(drawn.tokens[0].tolist()), 4)
    assert student.order == result.report.order and held_out == result.report.held_out
    assert student.spec.fingerprint == result.student.spec.fingerprint
    with pytest.raises(InputError, match="at least 2 strings"):
        fit_ngrams(teacher.spec, strings([[0, 1]]))
    with pytest.raises(InputError, match=r"tokens must lie in 0\.\.3"):
        fit_ngrams(teacher.spec, strings([[0, 1], [4]]))


@dataclasses.dataclass(eq=False)
class Node:
    """AALpy's state, as far as it is read."""

    transitions: dict


@dataclasses.dataclass
class Machine:
    states: list
    initial_state: Node


def test_a_merged_student_is_its_formula():
    start, behind, end = Node({}), Node({}), Node({})
    start.transitions[INPUT] = [(behind, 0, 0.75), (end, 2, 0.25)]
    behind.transitions[INPUT] = [(start, 1, 1.0)]
    language = count_ngrams(open_teacher("zoo:copy?n=2&k=3").spec, strings([[0, 1, 2]]), 1).spec
    language = dataclasses.replace(language, alphabet=("a", "b", "<stop>"), stop=2, horizon=None)
    unigrams = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    student = merged_student(language, Machine([start, behind, end], start), unigrams, 0.1)
    found = student.score(strings([[0, 1, 2], [2], [1, 0, 2], [0, 0, 1, 2]])).exp()
    seen = [0.9 * 0.75 + 0.05, 0.9 + 0.03, 0.9 * 0.25 + 0.02]
    lost = [0.03 * 0.5 * 0.2, seen[0] * 0.05 * 0.3 * 0.2]
    expected = torch.tensor([math.prod(seen), seen[2], *lost], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="floor"):
        merged_student(language, Machine([start, behind, end], start), unigrams, 0.0)
    behind.transitions[INPUT] = [(start, 7, 1.0)]
    with pytest.raises(InputError, match="no token"):
        merged_student(language, Machine([start, behind, end], start), unigrams, 0.1)


def test_a_merged_student_has_aalpys_probabilities(write):
    learning = pytest.importorskip(
        "aalpy.learning_algs", reason="AALpy is not installed: pip install aalpy"
    )
    random = torch.Generator().manual_seed(0)
    drawn = [
        torch.randint(2, (int(length),), generator=random).tolist()
        for length in torch.randint(5, (300,), generator=random)
    ]
    text = "".join(f"{len(row)} {' '.join(map(str, row))}\n" for row in drawn)
    language, sample = read_sample(write(f"300 2\n{text}"))
    machine = learning.run_Alergia(pairs(sample), "smm", eps=0.5)
    unigrams = count_ngrams(language, sample, 1)
    law = unigrams.law(unigrams.initial(1))[0].exp()
    student = merged_student(language, machine, law, 1e-12)
    some = [list(row) for row in Counter(map(tuple, rows_of(sample)))]
    walked = []
    for row in some:
        state, probability = machine.initial_state, 1.0
        for token in row:
            state, _, here = next(t for t in state.transitions[INPUT] if t[1] == token)
            probability *= here
        walked.append(probability)
    expected = torch.tensor(walked, dtype=torch.float64)
    torch.testing.assert_close(student.score(strings(some)).exp(), expected, rtol=1e-9, atol=1e-12)
