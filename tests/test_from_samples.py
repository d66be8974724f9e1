"""Certificates from samples alone: each statistic by enumeration, then the whole by coverage."""

import itertools
import json
import math
from collections import Counter

import catalogue
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.errors import InputError
from myna.evaluate import from_samples
from myna.evaluate.betting import mean_upper_limit, price
from myna.evaluate.distance import enumerate_distance
from myna.evaluate.from_samples import certify_from_samples
from myna.evaluate.next_tokens import (
    DrawnLaws,
    divergence_excess,
    drawn_laws,
    next_token_draws,
    split_witness,
    variation_excess,
)
from myna.evaluate.raised import most_surprise, raised, raising_distances
from myna.evaluate.sample_plan import USEFUL, plan_samples, variation_from_kl
from myna.evaluate.string_classifier import _bigram_table, _cut, _reference
from myna.lowrank.student import Strings, strings
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hmm(seed, noise=0.0, horizon=3):
    """A two-state HMM over three tokens, and with noise one with other emissions mixed in."""
    random = generator(seed)
    first, moves, emits, other = (
        rows / rows.sum(-1, keepdim=True)
        for rows in (
            torch.rand(shape, dtype=torch.float64, generator=random)
            for shape in ((2,), (1, 2, 2), (1, 2, 3), (1, 2, 3))
        )
    )
    return Hmm(first, moves, (1 - noise) * emits + noise * other, horizon=horizon)


def coin(heads):
    """One token: the language in which every bound but the samples' own is tight."""
    one = torch.ones((1, 1, 1), dtype=torch.float64)
    emits = torch.tensor([[[1 - heads, heads]]], dtype=torch.float64)
    return Hmm(one[0, 0], one, emits, horizon=1)


def certificate(teacher, student, budget, seed=0, **settings):
    view = Ledger(as_samples(teacher), Budget(tokens=budget), seed).samples("certify")
    return certify_from_samples(
        view, student, budget_tokens=budget, generator=generator(seed), **settings
    )


# The limit of a mean


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_the_limit_exceeds_the_mean_as_often_as_it_says(rate):
    """300 limits at 90%: fewer than 255 would have probability below 1e-3.

    Values come from two strata of different means, with entries below zero.
    """
    n, random = 200, generator(1)
    strata = torch.tensor([0.5 * rate, 1.5 * rate]).double().repeat(n // 2)
    draws = (torch.rand((300, n), dtype=torch.float64, generator=random) < strata).double()
    draws += torch.randn((300, n), dtype=torch.float64, generator=random).clamp(-3, 3) / 50 - 0.06
    truth = rate - 0.06
    shift = max(0.0, -truth)  # the average mean may not be negative
    limits = [mean_upper_limit(row + shift, 1.06 + shift, 0.1) - shift for row in draws]
    assert sum(limit >= truth for limit in limits) >= 255
    assert sum(m >= truth for m in draws.mean(1).tolist()) < 255  # no width: the test can fail


def test_the_limit_solves_its_equation_and_knows_the_variance():
    values = torch.rand(4000, dtype=torch.float64, generator=generator(2)) * 0.02
    limit = mean_upper_limit(values, 1.0, 0.01)
    stakes = [0.5**k for k in range(7)]
    logs = torch.stack([torch.log1p(b * (limit - values)).sum() for b in stakes])
    assert float(logs.logsumexp(0)) - math.log(7) == pytest.approx(math.log(100), abs=1e-6)
    rate = price(4000, 0.01) / 4000
    expected = 0.01 + math.sqrt(2 * float(values.var()) * rate) + rate
    assert limit == pytest.approx(expected, abs=rate)
    assert limit < 0.1 * (0.5 + math.sqrt(rate))  # far below what the range alone would give
    assert mean_upper_limit(values.flip(0), 1.0, 0.01) == pytest.approx(limit, abs=1e-12)


def test_the_limit_refuses_what_it_cannot_bound():
    with pytest.raises(InputError, match="at most 1 are needed"):
        mean_upper_limit(torch.tensor([2.0]).double(), 1.0, 0.1)
    with pytest.raises(InputError, match="got 0 with"):
        mean_upper_limit(torch.zeros(0).double(), 1.0, 0.1)
    with pytest.raises(InputError, match="probability of error"):
        mean_upper_limit(torch.zeros(1).double(), 1.0, 0.0)


# The three statistics, over all outcomes of n draws


def all_draws(p, q, n, floor):
    """Every outcome of n draws with its probability under p."""
    tokens = torch.tensor(list(itertools.product(range(len(p)), repeat=n)))
    log_q = q.log()[None]
    log_r = raised(log_q, floor)[0]
    alive = torch.ones(len(tokens), dtype=torch.bool)
    drawn = DrawnLaws(tokens, log_q[0][tokens], log_r[tokens], alive)
    return drawn, p[tokens].prod(1), log_r.exp()


laws = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(
    lambda w: torch.tensor(w).double() + torch.tensor([1e-3, 0.0, 0.0])
)


@given(laws, laws, st.sampled_from([4, 5]), st.sampled_from([1e-6, 0.05]))
def test_the_statistics_have_the_means_that_they_claim(p, q, n, floor):
    p, q = p / p.sum(), q / q.sum()
    drawn, mass, r = all_draws(p, q, n, floor)
    variation = float((p - q).abs().sum()) / 2
    v, d = variation_excess(drawn), divergence_excess(drawn)
    share, chosen = split_witness(drawn)
    assert float((mass * v).sum()) >= variation - 1e-12
    assert float((mass * (share - chosen)).sum()) <= variation + 1e-12
    remainder = 0.0
    for k in range(n, 6000):
        remainder += float((p * (1 - p) ** k).sum()) / k
    divergence = float(torch.special.xlogy(p, p / r).sum())
    tail = float((1 - p[p > 0]).clamp(min=0).pow(6000).sum()) + 1e-12
    assert float((mass * d).sum()) == pytest.approx(divergence + remainder, abs=1e-9 + tail)
    assert float(d.max()) <= most_surprise(floor, 3) + 1e-12
    assert float(v.min()) >= 0 and float(v.max()) <= 1


def test_the_statistics_are_their_definitions():
    p, q = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([0.1, 0.0, 0.9]).double()
    drawn, _, r = all_draws(p, q, 5, 0.02)
    v, d, (share, chosen) = variation_excess(drawn), divergence_excess(drawn), split_witness(drawn)
    psi = torch.digamma(torch.arange(6).double())
    for i, row in enumerate(drawn.tokens.tolist()):
        counts = Counter(row)
        first, second = Counter(row[:2]), Counter(row[2:])
        kept = [o for o in range(3) if first[o] / 2 > q[o]]
        assert float(v[i]) == pytest.approx(sum(max(counts[o] / 5 - q[o], 0) for o in range(3)))
        terms = [c / 5 * (psi[c] - psi[5] - r[o].log()) for o, c in counts.items()]
        assert float(d[i]) == pytest.approx(float(sum(terms)))
        assert float(share[i]) == pytest.approx(sum(second[o] for o in kept) / 3)
        assert float(chosen[i]) == pytest.approx(float(sum(q[o] for o in kept)))


def test_an_ended_string_counts_as_agreement():
    tokens = torch.full((1, 4), -1)
    drawn = DrawnLaws(
        tokens, torch.zeros(1, 4).double(), torch.zeros(1, 4).double(), tokens[:, 0] >= 0
    )
    for values in (variation_excess(drawn), divergence_excess(drawn), *split_witness(drawn)):
        assert float(values[0]) == 0


# Draws and the student's laws


def test_draws_are_fresh_for_every_unit_and_follow_the_prefix():
    teacher, n = hmm(3), 400
    view = Ledger(as_samples(teacher)).samples("certify")
    answer = view.complete(Prefixes.of([[]]), n)
    drawn_strings = Strings(answer.tokens[0], answer.lengths[0])
    positions = torch.arange(n) % 3
    tokens = next_token_draws(view, drawn_strings, positions, 8)
    own = drawn_strings.tokens.gather(1, positions[:, None])[:, 0]
    assert torch.equal(tokens[:, 0], own)
    rows = (positions == 0).nonzero()[:, 0]
    assert len({tuple(row) for row in tokens[rows, 1:].tolist()}) > 0.9 * len(rows)
    assert view.spent().completions == n + 7 * n
    assert view.spent().tokens_sent == 7 * int(positions.sum())
    grouped: dict = {}
    for i in range(n):
        prefix = tuple(drawn_strings.tokens[i, : positions[i]].tolist())
        grouped.setdefault(prefix, []).append(tokens[i])
    for prefix, found in grouped.items():
        seen = torch.cat(found)
        law = teacher.laws(Prefixes.of([list(prefix)])).exp()[0]
        shares = torch.bincount(seen, minlength=3) / len(seen)
        assert float((shares - law).abs().max()) < 4.5 / (2 * math.sqrt(len(seen)))


def test_the_students_laws_are_those_after_each_prefix():
    student, n = catalogue.function_teacher(4), 60
    view = Ledger(as_samples(student)).samples("certify")
    answer = view.complete(Prefixes.of([[]]), n)
    drawn_strings = Strings(answer.tokens[0], answer.lengths[0])
    positions = torch.arange(n) % 4
    tokens = next_token_draws(view, drawn_strings, positions, 3)
    copy = catalogue.learned(student).student
    found = drawn_laws(copy, drawn_strings, positions, tokens, 0.3)
    assert torch.equal(found.alive, answer.lengths[0] > positions) and not bool(found.alive.all())
    assert bool((tokens[~found.alive] == -1).all())
    for i in found.alive.nonzero()[:, 0].tolist():
        prefix = drawn_strings.tokens[i, : positions[i]].tolist()
        law = student.laws(Prefixes.of([prefix]))
        assert found.log_q[i].tolist() == pytest.approx(law[0, tokens[i]].tolist(), abs=1e-9)
        lifted = law.exp().clamp(min=0.3)
        expected = (lifted / lifted.sum()).log()[0, tokens[i]]
        assert found.log_r[i].tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_raising_a_floor_costs_what_it_says():
    student, floor = hmm(4, horizon=2), 0.3
    rows = [[a, b] for a in range(3) for b in range(3)]
    along = raising_distances(student, strings(rows), floor)
    for row, total in zip(rows, along.tolist(), strict=True):
        prefixes = Prefixes.of([row[:0], row[:1]])
        q = student.laws(prefixes)
        assert total == pytest.approx(
            float((q.exp() - raised(q, floor).exp()).abs().sum()) / 2, abs=1e-12
        )
    assert float(along.max()) <= 2 * 3 * floor / (1 + 3 * floor)
    q = torch.tensor([[1.0, 0.0, 0.0]]).double().log()
    assert float(-raised(q, 1e-3).min()) <= most_surprise(1e-3, 3) + 1e-12
    assert float(raising_distances(student, strings(rows), 1e-9).max()) < 1e-15


def test_the_chain_bound_on_tv_is_one():
    """Two laws of two tokens: TV never exceeds the bound, and comes near it at small KL."""
    for a, b in itertools.product((0.001, 0.3, 0.5, 0.9, 0.999), repeat=2):
        p, q = torch.tensor([a, 1 - a]).double(), torch.tensor([b, 1 - b]).double()
        kl = float((p * (p / q).log()).sum())
        assert abs(a - b) <= variation_from_kl(max(kl, 0.0)) + 1e-12
    kl = 0.51 * math.log(0.51 / 0.5) + 0.49 * math.log(0.49 / 0.5)
    assert variation_from_kl(kl) == pytest.approx(0.01, rel=1e-3)
    assert variation_from_kl(5.0) < 1


# The classifier


def test_the_reference_is_the_bigram_table_by_position():
    rows = [[0, 1, 1], [0, 1], [2, 1, 1]]
    spec = catalogue.function_teacher(3).spec
    table = _bigram_table(spec, strings(rows), 3)
    assert table.shape == (3, 4, 3)
    assert float(table[0, 3, 0].exp()) == pytest.approx(2.5 / 4.5)
    assert float(table[1, 0, 1].exp()) == pytest.approx(2.5 / 3.5)
    assert float(table[2, 1, 1].exp()) == pytest.approx(2.5 / 3.5)
    expected = float(table[0, 3, 0] + table[1, 0, 1])
    assert float(_reference(strings(rows), table)[1]) == pytest.approx(expected)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
)
def test_the_cut_is_the_best_one(p, q):
    p, q = torch.tensor(p).double(), torch.tensor(q).double()
    cut = _cut(p, q)
    gains = [float((p > c).double().mean() - (q > c).double().mean()) for c in range(5)]
    gain = float((p > cut).double().mean() - (q > cut).double().mean())
    assert gain == pytest.approx(max(gains), abs=1e-12)


# The whole


def trials(monkeypatch, teacher, student, budget, seeds, confidence):
    """Many certificates; the plan, which looks at the student alone, is made once."""
    width = student.spec.horizon
    plan = plan_samples(student, width, budget, (1 - confidence) / 4, generator())
    monkeypatch.setattr(from_samples, "plan_samples", lambda *_: plan)
    return [
        certificate(teacher, student, budget, seed, confidence=confidence) for seed in range(seeds)
    ]


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_certificates_cover_the_truth(monkeypatch, noise):
    """25 certificates at 90%: fewer than 18 hits would have probability below 0.01."""
    teacher, student = hmm(5), hmm(5, noise)
    truth = enumerate_distance(Ledger(teacher).laws("c"), student).total_variation
    found = trials(monkeypatch, teacher, student, 12_000, 25, 0.9)
    ends = [f.total_variation for f in found]
    assert sum(e.low <= truth <= e.high for e in ends) >= 18
    assert len({e.estimate for e in ends}) > 12
    assert max(e.high for e in ends) < 1
    if noise == 1.0:
        assert max(e.low for e in ends) > 0.3 * truth


@pytest.mark.parametrize("student_heads", [0.5, 0.62])
def test_each_end_covers_where_it_is_tight(monkeypatch, student_heads):
    """A coin: there Pinsker's bound and the best witness are almost TV itself.

    Each of the four limits has an error of at most 10%, so of 40 fewer than 30 hits would
    have probability below 0.002. Without their widths about half miss, so the test can fail.
    """
    teacher, student = coin(0.62), coin(student_heads)
    truth = abs(0.62 - student_heads)
    found = trials(monkeypatch, teacher, student, 3_000, 40, 0.6)
    limits = {
        "chain": [f.upper.from_kl >= truth for f in found],
        "hybrid": [f.upper.hybrid_high >= truth for f in found],
        "strings": [f.strings_witness.low <= truth for f in found],
        "tokens": [f.next_token_witness.low <= truth for f in found],
    }
    for name, hits in limits.items():
        assert sum(hits) >= 30, name
    if truth:
        bare = {
            "chain": [variation_from_kl(max(f.upper.kl_nats, 0.0)) >= truth for f in found],
            "strings": [
                f.strings_witness.teacher_share - f.strings_witness.student_share <= truth
                for f in found
            ],
        }
        for name, hits in bare.items():
            assert sum(hits) < 30, name


def test_a_wrong_parity_is_told_by_one_position():
    """Only the label differs: from uniform bits, and by an unknown half of the labels."""
    teacher = open_teacher("zoo:parity?bits=6&seed=7&noise=0.1")
    student = open_teacher("zoo:parity?bits=6&seed=8&noise=0.1")
    found = certificate(teacher, student, 100_000)
    assert found.next_token_witness.what.endswith("position 6")
    assert 0.1 < found.next_token_witness.low < 0.2  # TV is 0.4, a witness shows half at most
    assert 0.3 < found.strings_witness.low < 0.4 < found.total_variation.high
    worst = max(found.upper.parts, key=lambda part: part.total_variation)
    assert worst.position == 6 and worst.prefixes * 7 == found.total_variation.samples


def test_more_tokens_tighten_a_perfect_copy():
    teacher = hmm(6)
    highs = [
        certificate(teacher, teacher, b).total_variation.high for b in (2_000, 20_000, 200_000)
    ]
    assert highs[0] > 2 * highs[1] > 4 * highs[2] and highs[2] < 0.1


def test_a_student_wrong_on_a_zero_is_covered():
    """Q = 0 on most strings of P, and laws of Q do not exist after most prefixes."""
    uniform = open_teacher("zoo:unigram?symbols=2&horizon=4")
    copy = open_teacher("zoo:copy?n=2&k=2")
    truth = enumerate_distance(Ledger(uniform).laws("c"), copy).total_variation
    found = certificate(uniform, copy, 20_000).total_variation
    assert 0.5 * truth < found.low <= truth <= found.high <= 1


def test_stops_and_cuts():
    """Strings that end early; and without a horizon only the first tokens are compared."""
    teacher = open_teacher("zoo:registers?k=1")
    found = certificate(teacher, teacher, 60_000, max_tokens=4)
    assert found.total_variation.low == 0 and found.total_variation.high < 0.5
    assert len(found.upper.parts) == 4
    with pytest.raises(InputError, match="no horizon"):
        certificate(teacher, teacher, 60_000)


@pytest.mark.parametrize("budget", [1, 1_000, 3_000, 17_001])
def test_a_budget_is_kept_or_the_least_that_would_do_is_named(budget):
    teacher = hmm(7)
    try:
        found = certificate(teacher, teacher, budget)
    except InputError as error:
        named = int(str(error).split("at least ")[1].split()[0].replace(",", ""))
        assert named > budget
        assert certificate(teacher, teacher, named).total_variation.high < 1
        delta = 0.01 / 4
        assert plan_samples(teacher, 3, named, delta, generator()).expected_high <= USEFUL
        with pytest.raises(InputError, match="at least"):
            plan_samples(teacher, 3, int(0.99 * named) - 2, delta, generator())
        return
    assert found.tokens <= budget < 3 * found.tokens
    assert found.tokens == found.queries.tokens_sent + found.queries.tokens_received


def test_laws_too_wide_for_any_budget_are_refused():
    wide = open_teacher("zoo:unigram?symbols=3000&horizon=4")
    with pytest.raises(InputError, match="too many tokens"):
        certificate(wide, wide, 10_000)


def test_a_certificate_is_json_and_says_that_it_is_weak():
    found = certificate(hmm(8), hmm(8, 0.5), 10_000)
    record = json.loads(json.dumps(found.as_json()))
    assert record["tokens"] == found.tokens
    assert len(record["upper"]["parts"]) == 3
    assert "much weaker" in record["total_variation"]["method"]


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="models of one language"):
        certificate(hmm(1), coin(0.5), 10_000)
    with pytest.raises(InputError, match="confidence level"):
        certificate(hmm(1), hmm(1), 10_000, confidence=1.0)
    with pytest.raises(InputError, match="max_tokens=0"):
        certificate(hmm(1), hmm(1), 10_000, max_tokens=0)
