"""From the spanner's copy to maximum likelihood over all recorded answers.

    positive   no negative entries: a quasi-Newton ascent that no answer can stop, first on
               a tenth of the rows, then on all
    signed     the general low-rank model, from there; kept where it explains strings that
               neither stage saw better than the positive one does

The signed model is the larger family, but an unseen string may get a negative weight in
it; that is why it has to win on held-out strings. Each stage's figure is reported.
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

_SUBSET = 0.1  # of the rows, for the first ascent
_FIRST_STEPS, _ALL_STEPS, _SIGNED_STEPS = 60, 60, 40


class Refined(NamedTuple):
    """Operators and how they came to be.

    operators: the stage that explains held-out strings best
    stages: (name, mean log-likelihood of held-out strings, nats a token)
    """

    operators: Operators
    stages: tuple[tuple[str, float], ...]


def refine(
    start: Operators,
    evidence: Evidence,
    held_out: Strings,
    language: Spec,
    generator: torch.Generator,
) -> Refined:
    """All stages from a start without negative entries."""
    candidates = [("spanner", start)]
    rows = Rows.of(*evidence)
    part = torch.randperm(len(evidence.lengths), generator=generator)
    part = part[: max(1, int(_SUBSET * len(part)))]
    some = Rows.of(*(column[part] for column in evidence))
    positive, _ = maximise_positive(start, some, max_steps=_FIRST_STEPS, tolerance=1e-5)
    if log_likelihood(positive, rows)[0] < log_likelihood(start, rows)[0]:
        positive = start
    positive, _ = maximise_positive(positive, rows, max_steps=_ALL_STEPS, tolerance=1e-6)
    candidates.append(("positive", positive))
    signed, _ = maximise(positive, rows, max_steps=_SIGNED_STEPS, tolerance=1e-6)
    candidates.append(("signed", signed))
    stages = [
        (name, held_out_nats(low_rank(found, language), held_out)) for name, found in candidates
    ]
    best = max(range(len(stages)), key=lambda i: stages[i][1])
    return Refined(candidates[best][1], tuple(stages))


def held_out_nats(model: LowRankModel, strings: Strings) -> float:
    """Mean log-likelihood of strings under a model, nats a token."""
    value = float(model.score(strings).sum()) / float(strings.lengths.sum())
    return value if not math.isnan(value) else -math.inf


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
