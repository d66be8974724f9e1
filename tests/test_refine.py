"""Refinement: what is thinned, which stage is kept, and how it goes on over more answers."""

import torch

from myna.learn.asker import merged
from myna.learn.evidence import Evidence
from myna.learn.refine import Refined, continued, held_out_nats, low_rank, refine, some_draws
from myna.lowrank.likelihood import Operators, Rows, log_likelihood
from myna.lowrank.student import Strings
from myna.teachers.zoo import RandomHmm

TEACHER = RandomHmm(states=3, symbols=3, horizon=6, concentration=0.5, seed=3).teacher()


def drawn(count: int, seed: int) -> Strings:
    return TEACHER.sample(count, torch.Generator().manual_seed(seed))


def evidence_of(strings: Strings) -> Evidence:
    ones = torch.ones(len(strings.lengths), dtype=torch.float64)
    return merged(strings.tokens, strings.lengths, torch.zeros_like(strings.lengths), ones)


def start(rank: int, generator: torch.Generator) -> Operators:
    table = torch.rand(3, rank, rank, generator=generator, dtype=torch.float64)
    first = torch.full((rank,), 1 / rank, dtype=torch.float64)
    return Operators(first, (table / table.sum((0, 2), keepdim=True),))


def test_thinning_keeps_every_answer_of_a_prompt_in_proportion(generator):
    """Two answers to one prompt, 10,000 and 30,000 draws: a fifth of both, not one of them."""
    whole = Evidence(
        torch.tensor([[0, 1], [0, 2]]),
        torch.tensor([2, 2]),
        torch.tensor([1, 1]),
        torch.tensor([10_000.0, 30_000.0], dtype=torch.float64),
    )
    part = some_draws(whole, 8_000, generator)
    assert len(part.counts) == 2
    # five standard deviations of the binomial laws
    assert abs(float(part.counts[0]) - 2_000) < 5 * (10_000 * 0.2 * 0.8) ** 0.5
    assert abs(float(part.counts[1]) - 6_000) < 5 * (30_000 * 0.2 * 0.8) ** 0.5


def test_little_evidence_is_used_whole(generator):
    evidence = evidence_of(drawn(20, 0))
    assert some_draws(evidence, 10_000, generator) is evidence
    assert float(some_draws(evidence, 1, generator).counts.sum()) >= 1


def test_the_stage_that_held_out_strings_prefer_is_kept(generator):
    held_out = drawn(500, 1)
    refined = refine(
        start(3, generator), evidence_of(drawn(3000, 0)), held_out, TEACHER.spec, generator
    )
    best = max(value for _, value in refined.stages)
    assert held_out_nats(low_rank(refined.operators, TEACHER.spec), held_out) == best
    assert best > dict(refined.stages)["spanner"] + 0.01
    (table,) = refined.operators.steps
    assert torch.allclose(table.sum((0, 2)), torch.ones(3).double())
    assert all(bool((step >= 0).all()) for step in refined.positive.steps)


def test_going_on_starts_at_the_positive_copy_where_answers_contradict_the_signed_one(generator):
    evidence, held_out = evidence_of(drawn(2000, 0)), drawn(300, 1)
    positive = start(2, generator)
    wrong = torch.zeros_like(positive.steps[0])
    wrong[0] = torch.eye(2).double()  # only token 0 is possible
    refined = Refined(Operators(positive.first, (wrong,)), (("signed", -9.0),), positive)
    assert log_likelihood(refined.operators, Rows.of(*evidence))[0] == -torch.inf
    found = continued(refined, evidence, held_out, TEACHER.spec)
    before = held_out_nats(low_rank(positive, TEACHER.spec), held_out)
    assert held_out_nats(low_rank(found.operators, TEACHER.spec), held_out) > before
    assert found.stages[: len(refined.stages)] == refined.stages
