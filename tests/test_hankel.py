"""The spectral learner with words, for languages that stop."""

import itertools
from collections import Counter

import pytest
import torch

from myna.errors import InputError
from myna.learn.asker import merged
from myna.learn.evidence import Evidence
from myna.learn.hankel import HankelSettings, count_words, factors, learn_hankel
from myna.lowrank.student import Strings, sample_by_steps, score_by_steps, strings
from myna.spec import Spec, numbered
from myna.teachers.automaton import Automaton

LANGUAGE = Spec((*numbered(2), "<stop>"), 2, None, "unset")
STOP = 2


def evidence(rows, counts=None):
    text = strings(rows)
    counts = torch.ones(len(rows)) if counts is None else torch.as_tensor(counts)
    return Evidence(*text, torch.zeros_like(text.lengths), counts.double())


def all_words(longest, letters=2):
    return [
        word
        for n in range(longest + 1)
        for word in itertools.product(range(letters), repeat=n)
    ]  # fmt: skip


class Weighted:
    """a_0, A_x and the stopping weights of a random automaton of three states."""

    def __init__(self, seed, least_stop=0.85):
        random = torch.Generator().manual_seed(seed)
        emitted = torch.rand(3, 2, 3, generator=random, dtype=torch.float64)  # from, letter, to
        self.stops = least_stop + (1 - least_stop) * torch.rand(3, generator=random).double()
        going = (1 - self.stops)[:, None, None] / emitted.sum((1, 2), keepdim=True)
        self.moves = (emitted * going).transpose(0, 1)
        self.first = torch.softmax(torch.randn(3, generator=random).double(), 0)

    def begins(self, word):
        state = self.first
        for x in word:
            state = state @ self.moves[x]
        return state

    def probability(self, word):
        return float(self.begins(word) @ self.stops)

    def evidence(self, longest=12):
        words = all_words(longest)
        return evidence([[*w, STOP] for w in words], [self.probability(w) for w in words])


def naive_counts(rows, weights, histories, futures):
    """Every formula of the module by loops over places."""
    total = sum(weights)
    joint, moved, stops, first = Counter(), Counter(), Counter(), Counter()
    for row, weight in zip(rows, weights, strict=True):
        share = weight / total
        for place in range(len(row)):
            for p in histories:
                if tuple(row[max(place - len(p), 0) : place]) != p:
                    continue
                stops[p] += share * (row[place] == STOP)
                for s in futures:
                    if tuple(row[place : place + len(s)]) == s:
                        joint[p, s] += share
                    if row[place] != STOP and tuple(row[place + 1 : place + 1 + len(s)]) == s:
                        moved[row[place], p, s] += share
        for s in futures:
            first[s] += share * (tuple(row[: len(s)]) == s)
    return joint, moved, stops, first


@pytest.mark.parametrize("words", [3, 12, 1000])
def test_the_counts_are_those_of_loops(words):
    rows = [[0, 1, 1, STOP], [STOP], [1, STOP], [0, 0, 1, 0, STOP], [0, 1, 1, STOP]]
    weights = [1.0, 3.0, 2.0, 0.5, 1.0]
    counts = count_words(LANGUAGE, evidence(rows, weights), HankelSettings(3, words))
    assert counts.histories[0] == counts.futures[0] == ()
    assert len(counts.histories) == len(set(counts.histories)) <= words + 1
    naive = naive_counts(rows, weights, counts.histories, counts.futures)
    joint, moved, stops, first = naive
    for i, p in enumerate(counts.histories):
        assert float(counts.stops[i]) == pytest.approx(stops[p])
        for j, s in enumerate(counts.futures):
            assert float(counts.joint[i, j]) == pytest.approx(joint[p, s])
            for x in range(3):
                assert float(counts.moved[x, i, j]) == pytest.approx(moved[x, p, s])
    for j, s in enumerate(counts.futures):
        assert float(counts.first[j]) == pytest.approx(first[s])


def test_the_words_are_the_most_frequent_ones():
    rows = [[0, 0, 1, STOP]] * 3 + [[1, STOP]]
    few = count_words(LANGUAGE, evidence(rows), HankelSettings(2, 2))
    assert set(few.histories) == {(), (0,), (1,)}  # 6, 4; (0, 0) and (0, 1) have 3
    every = count_words(LANGUAGE, evidence(rows), HankelSettings(2, 100))
    assert set(every.histories) == {(), (0,), (1,), (0, 0), (0, 1)}
    assert (1, STOP) in every.futures


@pytest.mark.parametrize("seed", range(4))
def test_exact_moments_give_the_automaton(seed):
    truth = Weighted(seed)
    found = learn_hankel(LANGUAGE, truth.evidence(), HankelSettings(3, 100))
    assert float(found.singular_values[2] / found.singular_values[0]) > 1e-6
    assert float(found.singular_values[3] / found.singular_values[0]) < 1e-8
    student = found.model(LANGUAGE, 3)
    (step,) = student.steps  # over histories: laws and a law of them
    torch.testing.assert_close(step.laws.sum(1), torch.ones(3).double(), rtol=1e-6, atol=0.0)
    assert float(student.first.sum()) == pytest.approx(1.0)
    assert float(student.first.abs().max()) < 3.0  # a spanner's coefficients are small
    words = all_words(5)
    scores = student.score(strings([[*w, STOP] for w in words])).exp()
    expected = torch.tensor([truth.probability(w) for w in words]).double()
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_it_is_the_formula_of_the_paper_on_sampled_strings(rank):
    """Without the clip, f(x_1 ... x_T) = a_0 A_x1 ... A_xT a, pseudo-inverses written out."""
    truth = Weighted(7, least_stop=0.3)
    teacher = Automaton(truth.first, truth.moves, truth.stops)
    counts = count_words(LANGUAGE, sampled(teacher, 4000, 1), HankelSettings(2, 100))
    h = counts.joint[:, counts.futures.index(())]
    g = counts.joint[counts.histories.index(())]
    left, right = torch.diag(h**-0.5), torch.diag(g**-0.5)
    v = torch.linalg.svd(left @ counts.joint @ right).Vh[:rank].T
    back = torch.linalg.pinv(left @ counts.joint @ right @ v)
    state = counts.first @ right @ v
    end, stop = back @ left @ h, back @ left @ counts.stops
    student = factors(counts, 100).model(LANGUAGE, rank)
    here = student.initial(1)
    for token in (1, 0, 0):
        values = [state @ back @ left @ counts.moved[x] @ right @ v @ end for x in range(2)]
        weights = torch.stack([*values, state @ stop])
        assert bool((weights > 0).all())
        law = student.law(here)[0].exp()
        torch.testing.assert_close(law, weights / weights.sum(), rtol=1e-8, atol=1e-10)
        state = state @ back @ left @ counts.moved[token] @ right @ v
        here, _ = student.step(here, torch.tensor([token]))


def test_words_show_what_tokens_do_not():
    """Strings of 3, 7, 11, ... letters: a token shows two of four states, words show all."""
    moves, ends = torch.zeros(2, 4, 4).double(), torch.tensor([0.0, 0.0, 0.0, 0.5]).double()
    for state in range(4):
        moves[:, state, (state + 1) % 4] = (1 - ends[state]) / 2
    teacher = Automaton(torch.tensor([1.0, 0.0, 0.0, 0.0]).double(), moves, ends)
    data, test = sampled(teacher, 40_000, 2), Strings(*sampled(teacher, 1000, 3)[:2])
    truth = score_by_steps(teacher, test)
    tokens, words = (learn_hankel(LANGUAGE, data, HankelSettings(n)) for n in (1, 4))
    assert tokens.singular_values[2] < 0.2 * tokens.singular_values[1]  # noise
    far, near = tokens.model(LANGUAGE, 2).score(test), words.model(LANGUAGE, 4).score(test)
    assert float((truth - near).mean()) < 0.1
    assert float((truth - far).mean()) > 1.0


def test_more_strings_bring_it_closer():
    truth = Weighted(3, least_stop=0.3)
    teacher = Automaton(truth.first, truth.moves, truth.stops)
    words = all_words(6)
    exact = torch.tensor([truth.probability(w) for w in words]).double()
    errors = []
    for count in (300, 100_000):
        found = learn_hankel(LANGUAGE, sampled(teacher, count, 4), HankelSettings(2))
        scores = found.model(LANGUAGE, 3).score(strings([[*w, STOP] for w in words])).exp()
        errors.append(float((scores - exact).abs().sum()))
    assert errors[1] < errors[0] / 3, errors


def test_letters_never_seen_are_impossible():
    wide = Spec((*numbered(5), "<stop>"), 5, None, "unset")
    data = evidence([[0, 1, 5], [1, 5], [5], [0, 0, 5]])
    student = learn_hankel(wide, data, HankelSettings(2)).model(wide, 2)
    assert bool(student.steps[0].change.isfinite().all())
    assert float(student.score(strings([[0, 3, 5]]))) == -torch.inf
    law = student.law(student.initial(1)).exp()
    assert float(law[0, 2:5].sum()) == 0.0
    assert float(law.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["longest", "words", "max_rank"])
def test_settings_that_allow_nothing_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        HankelSettings(**{name: 0})


def test_what_cannot_be_learned_from_is_refused():
    settings = HankelSettings(2)
    endless = Spec(numbered(3), None, None, "unset")
    with pytest.raises(InputError, match="no stop token"):
        learn_hankel(endless, evidence([[0, 2]]), settings)
    with pytest.raises(InputError, match="1 of 2 strings did not stop"):
        learn_hankel(LANGUAGE, evidence([[0, STOP], [0, 1]]), settings)
    with pytest.raises(InputError, match="at least one token"):
        learn_hankel(LANGUAGE, evidence([[0, STOP], []]), settings)
    prompted = evidence([[0, STOP]])._replace(given=torch.tensor([1]))
    with pytest.raises(InputError, match="prompts"):
        learn_hankel(LANGUAGE, prompted, settings)
    with pytest.raises(InputError, match="too many to number"):
        learn_hankel(LANGUAGE, evidence([[0, STOP]]), HankelSettings(60))
    with pytest.raises(InputError, match="sequence 1 has 3"):
        learn_hankel(LANGUAGE, evidence([[0, STOP], [3, STOP]]), settings)
    with pytest.raises(InputError, match="stop"):
        learn_hankel(LANGUAGE, evidence([[0, STOP, 1, STOP]]), settings)
    for counts in ([1.0, 0.0], [1.0, -1.0], [1.0, torch.nan]):
        with pytest.raises(InputError, match="positive and finite"):
            learn_hankel(LANGUAGE, evidence([[0, STOP], [1, STOP]], counts), settings)


def test_ranks_are_those_that_the_words_show():
    """Strings 0^n with a chance of going on of one half: rank 1, and nothing of rounding."""
    rows = [[0] * n + [STOP] for n in range(120)]
    data = evidence(rows, [0.5 ** (n + 1) for n in range(120)])
    found = learn_hankel(LANGUAGE, data, HankelSettings(3))
    assert len(found.singular_values) == 1
    for rank in (0, 2):
        with pytest.raises(InputError, match=f"show ranks 1 to 1, got {rank}"):
            found.model(LANGUAGE, rank)
    few = learn_hankel(LANGUAGE, Weighted(1).evidence(), HankelSettings(3, max_rank=2))
    assert len(few.singular_values) == 2


def sampled(teacher, count, seed):
    text = sample_by_steps(teacher, count, torch.Generator().manual_seed(seed), 200)
    none = torch.zeros_like(text.lengths)
    return merged(*text, none, torch.ones(count).double())
