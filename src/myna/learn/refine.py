"""From the spanner's copy to maximum likelihood over all recorded answers.

    positive   no negative entries: a quasi-Newton ascent that no answer can stop, first on
               a tenth of the draws, then on draws worth two million tokens
    signed     the general low-rank model, from there, on all rows; kept where it explains
               strings that neither stage saw better than the positive one does

The signed model is the larger family, but an unseen string may get a negative weight in
it; that is why it has to win on held-out strings, and why it is also tried a little back
on the line to the positive one. Each stage's figure is reported.
"""

import math
from typing import NamedTuple

import torch

from myna.learn.evidence import Evidence
from myna.lowrank.ascent import maximise, maximise_positive
from myna.lowrank.likelihood import Operators, Rows, log_likelihood
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import Strings
from myna.spec import Spec

_SUBSET = 0.1  # of the draws, for the first ascent
_POSITIVE = 2_000_000  # tokens for the second: it only leads to where the signed one starts
_BACK = (0.1, 0.3)  # shares of the way back from the signed copy to the positive one
_FIRST_STEPS, _ALL_STEPS, _SIGNED_STEPS = 60, 60, 40
_MORE_STEPS = 200  # of the signed ascent that goes on over all rows
_FAR = 30.0  # nats that one string can count between two copies: one may hold it impossible


class Refined(NamedTuple):
    """Operators and how they came to be.

    operators: the stage that explains held-out strings best
    stages: (name, mean log-likelihood of held-out strings, nats a token)
    positive: a stage without negative entries, which no answer can contradict
    """

    operators: Operators
    stages: tuple[tuple[str, float], ...]
    positive: Operators


def refine(
    start: Operators,
    evidence: Evidence,
    held_out: Strings,
    language: Spec,
    generator: torch.Generator,
) -> Refined:
    """All stages from a start without negative entries."""
    thinned = some_draws(evidence, _POSITIVE, generator)
    part = Rows.of(*thinned)
    rows = part if thinned is evidence else Rows.of(*evidence)
    some = Rows.of(*some_draws(evidence, int(_SUBSET * evidence.sampled_tokens), generator))
    positive, _ = maximise_positive(start, some, max_steps=_FIRST_STEPS, tolerance=1e-5)
    if log_likelihood(positive, part)[0] < log_likelihood(start, part)[0]:
        positive = start
    positive, _ = maximise_positive(positive, part, max_steps=_ALL_STEPS, tolerance=1e-6)
    signed, _ = maximise(positive, rows, max_steps=_SIGNED_STEPS, tolerance=1e-6)

    found = {"spanner": start, "positive": positive, "signed": signed}
    found |= {f"signed, {s:.0%} back": _between(signed, positive, s) for s in _BACK}
    refined = _judged(Refined(start, (), positive), found, held_out, language)
    if refined.operators is positive and part is not rows:
        whole, _ = maximise_positive(positive, rows, max_steps=_ALL_STEPS, tolerance=1e-6)
        refined = _judged(refined, {"positive on all rows": whole}, held_out, language)
    return refined


def continued(refined: Refined, evidence: Evidence, held_out: Strings, language: Spec) -> Refined:
    """The signed ascent again, over more answers; kept where held-out strings prefer it."""
    rows, start = Rows.of(*evidence), refined.operators
    if log_likelihood(start, rows)[0] == -math.inf:
        start = refined.positive
    found, _ = maximise(start, rows, max_steps=_MORE_STEPS, tolerance=1e-6)
    more = {
        f"signed on all rows, {share:.0%} back": _between(found, refined.positive, share)
        for share in (0.0, *_BACK)
    }
    return _judged(refined, more, held_out, language)


def _judged(
    refined: Refined, found: dict[str, Operators], held_out: Strings, language: Spec
) -> Refined:
    """Further stages by name; one is kept where held-out strings prefer it to all before."""
    for name, operators in found.items():
        value = held_out_nats(low_rank(operators, language), held_out)
        better = value > max((value for _, value in refined.stages), default=-math.inf)
        kept = operators if better else refined.operators
        refined = Refined(kept, (*refined.stages, (name, value)), refined.positive)
    return refined


def _between(signed: Operators, positive: Operators, share: float) -> Operators:
    """On the line between two models of one basis; both sum to one, so it does."""
    steps = zip(signed.steps, positive.steps, strict=True)
    return Operators(
        torch.lerp(signed.first, positive.first, share),
        tuple(torch.lerp(far, near, share) for far, near in steps),
    )


def some_draws(evidence: Evidence, tokens: int, generator: torch.Generator) -> Evidence:
    """Random draws worth about so many generated tokens; at least one.

    Draws are thinned, not rows: a row holds all draws of one answer, and without the other
    answers to its prompt it would be a biased sample.
    """
    if evidence.sampled_tokens <= tokens:
        return evidence
    share = torch.full_like(evidence.counts, tokens / evidence.sampled_tokens)
    counts = torch.binomial(evidence.counts, share, generator=generator)
    kept = counts > 0
    if not bool(kept.any()):
        return evidence
    thinned = evidence._replace(counts=counts)
    return Evidence(*(column[kept] for column in thinned))


def held_out_nats(model: LowRankModel, strings: Strings) -> float:
    """Mean log-likelihood of strings under a model, nats a token."""
    value = float(model.score(strings).sum()) / float(strings.lengths.sum())
    return value if not math.isnan(value) else -math.inf


def clearly_better(one: LowRankModel, other: LowRankModel, strings: Strings) -> bool:
    """Whether strings are likelier under one model by more than two standard errors.

    String by string, so that what is hard for both says nothing.
    """
    gain = (one.score(strings) - other.score(strings)).nan_to_num(0.0).clamp(-_FAR, _FAR)
    return float(gain.mean()) > 2 * float(gain.std()) / math.sqrt(len(gain))


def low_rank(operators: Operators, language: Spec) -> LowRankModel:
    """The model with L[i, o] = (A_o 1)_i and G[i, o, :] = A_o[i, :] / L[i, o]."""
    steps = []
    for table in operators.steps:
        laws = table.sum(2).T.contiguous()
        safe = torch.where(laws.abs() > 1e-300, laws, torch.ones_like(laws))
        steps.append(Step(laws, (table.transpose(0, 1) / safe[:, :, None]).contiguous()))
    return LowRankModel.of(language, operators.first, tuple(steps))


def unrolled(operators: Operators, horizon: int) -> Operators:
    """A stationary model written with one step a cut; the last one leads nowhere."""
    (table,) = operators.steps
    return Operators(operators.first, (*[table] * (horizon - 1), table.sum(2, keepdim=True)))
