"""A hidden Markov model from a student that is one only nearly, as after learning from samples.

    start     B of the nearly common eigenvectors, cut to the simplex (`hidden_start`), where the
              student's rank is the number of states and B is regular; beside it
              non-negative factors of what the student says of the next two tokens,

                  phi_t = (P(x_t = . | x_<t), P(x_t+1 = . | x_<t)) = w_t H,   H = (E | T E),
                  w_t+1 = gamma_t T,      gamma_t(s) = w_t(s) E(s, x_t) / sum over states,

              w_t >= 0 over strings that it reads: H from cluster means by the multiplicative rule
              for the Kullback-Leibler divergence (Lee and Seung 2001), then T by the same rule
              both with S states and with spare ones that are merged after a few sweeps
    polish    maximum likelihood (`baum_welch`) on strings drawn from the student, which asks the
              teacher nothing, or on the answers that its ledger recorded

The start decides which maximum is reached; the polish only climbs. Drawn strings can at best
give the student back, recorded ones can give more than it has. We differ from the source in
factoring a student's laws instead of counts, so that the rows of w are beliefs after histories.
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.learn.baum_welch import EmReport, EmSettings, HmmParameters, fit_hmm
from myna.learn.evidence import Evidence
from myna.learn.hidden_start import (
    diagonalised_starts,
    k_means,
    merged_states,
    predicted_laws,
    some_strings,
)
from myna.learn.refine import held_out_nats
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings

_TRIES = 2  # factorisations of different strings, with S states and with more
_SPARE = 0.5  # more states than asked for, merged again: S states alone often end in poor maxima
_RULES = 100  # multiplicative updates of each factor
_READ, _FACTORED = 4000, 500  # strings that starts are compared on, and those factored
_SWEEPS = 60  # of likelihood before starts are compared
_SHARE = 0.02  # of the uniform law mixed into starts, so that nothing is zero for ever
_CLIMB = EmSettings(tolerance_nats=1e-10)  # nats a token: a smaller gain ends a last climb
_LENGTH = 100  # tokens of drawn strings of a student without a horizon


@dataclasses.dataclass(frozen=True)
class Recovery:
    """How a model was recovered.

    start: "diagonalisation", "factorisation" or "factorisation, merged"
    tokens: of the evidence, completions only
    climb: how the likelihood rose, and why it stopped
    student_nats: mean log-likelihood of held-out strings under the student, nats a token
    model_nats: the same under the model
    """

    start: str
    tokens: int
    climb: EmReport
    student_nats: float
    model_nats: float

    @property
    def gain(self) -> float:
        """What the model gains over the student on held-out strings, nats a token."""
        return self.model_nats - self.student_nats


class _Start(NamedTuple):
    """Parameters, and the method that gave them."""

    name: str
    parameters: HmmParameters


def recover_hmm(
    student: LowRankModel,
    states: int,
    evidence: Evidence,
    held_out: Strings,
    generator: torch.Generator,
    settings: EmSettings = _CLIMB,
) -> tuple[LowRankModel, Recovery]:
    """A hidden Markov model of a chosen size near a student.

    student: stationary, without a stop token
    states: S, at least 1; may differ from the student's rank
    evidence: what the likelihood is of, as from `drawn_evidence` or `recorded_evidence`
    held_out: strings that are not in it, to compare student and model by
    settings: of the last climbs

    Raises:
        InputError: for another kind of student, or evidence that does not fit it.
    """
    if student.spec.stop is not None:
        raise InputError(
            "a hidden Markov model is recovered from a student without a stop token, and this one "
            f"has {student.spec.alphabet[student.spec.stop]!r}; learn from a teacher that has none"
        )
    if len(student.steps) != 1:
        raise InputError(
            "a hidden Markov model is recovered from a stationary student, and this one has "
            f"{len(student.steps)} steps; learn with --stationary"
        )
    if states < 1:
        raise InputError(f"a hidden Markov model has at least 1 state, got {states}")
    read = some_strings(evidence, generator, _READ)
    found = _starts(student, read, states, generator)
    few = EmSettings(max_iterations=_SWEEPS)
    tried = [fit_hmm(read, start.parameters, few) for start in found]
    best = max(range(len(tried)), key=lambda i: tried[i][1].trace[-1].log_likelihood)
    parameters, climb = lifted_climb(evidence, tried[best][0], settings)
    model = parameters.model(student.spec)
    told = Recovery(
        start=found[best].name,
        tokens=evidence.sampled_tokens,
        climb=climb,
        student_nats=held_out_nats(student, held_out),
        model_nats=held_out_nats(model, held_out),
    )
    return model, told


def drawn_evidence(student: LowRankModel, count: int, generator: torch.Generator) -> Evidence:
    """Strings from the student itself; the teacher is not asked.

    count: strings; without a horizon each has 100 tokens
    """
    drawn = student.sample(count, generator, None if student.spec.horizon else _LENGTH)
    none = torch.zeros_like(drawn.lengths)
    return Evidence(drawn.tokens, drawn.lengths, none, torch.ones(count, dtype=torch.float64))


def whole_strings(evidence: Evidence) -> Strings:
    """Its completions of the empty prompt, each as often as it was drawn."""
    plain = (evidence.given == 0) & (evidence.lengths > 0)
    rows = plain.nonzero()[:, 0].repeat_interleave(evidence.counts[plain].long())
    return Strings(evidence.tokens[rows], evidence.lengths[rows])


def lifted_climb(
    evidence: Evidence, start: HmmParameters, settings: EmSettings
) -> tuple[HmmParameters, EmReport]:
    """The likelier end of a climb and of another from there, zeros lifted before each.

    Rows are softmaxes in a climb: what few strings sent to zero has no slope and stays.
    """
    once = fit_hmm(evidence, _lifted(start), settings)
    again = fit_hmm(evidence, _lifted(once[0]), settings)
    return max(once, again, key=lambda fit: fit[1].score)


def _lifted(parameters: HmmParameters) -> HmmParameters:
    return HmmParameters(*(_mixed(rows) for rows in parameters.tables))


def _starts(
    student: LowRankModel, read: Evidence, states: int, generator: torch.Generator
) -> list[_Start]:
    """Diagonalised where that gives anything, and factorised with and without spare states."""
    found = []
    if student.steps[0].rank == states:
        real = diagonalised_starts(student, generator)
        found = [_Start("diagonalisation", parameters) for parameters in real]
    wide = states + math.ceil(_SPARE * states)
    for _ in range(_TRIES):
        some = some_strings(read, generator, _FACTORED)
        laws = predicted_laws(student, some)
        plain = factorised_start(laws, some, states, generator)
        many = factorised_start(laws, some, wide, generator)
        many, _ = fit_hmm(read, many, EmSettings(max_iterations=_SWEEPS))
        merged = merged_states(many, states, student.spec.horizon or _LENGTH)
        found += [_Start("factorisation", plain), _Start("factorisation, merged", merged)]
    return found


def factorised_start(
    laws: Float[Tensor, "row width feature"],
    read: Evidence,
    states: int,
    generator: torch.Generator,
) -> HmmParameters:
    """Parameters from non-negative factors of predictions along strings.

    laws: before each token of the strings, the law of it and of the one after it
    states: S
    """
    width, tokens = read.tokens.shape[1], laws.shape[2] // 2
    alive = torch.arange(width, device=read.lengths.device) < read.lengths[:, None]
    rows = laws[alive]
    # factors that start inside the laws' own hull stay near it: of all exact ones, the least sharp
    labels = k_means(rows.sqrt(), states, generator)
    sums = rows.new_zeros((states, rows.shape[1])).index_add_(0, labels, rows) + rows.mean(0)
    features = sums / sums[:, :tokens].sum(1, keepdim=True)
    weights = rows.new_full((len(rows), states), 1 / states)
    for _ in range(_RULES):
        weights = _normal(weights * (_ratio(rows, weights @ features) @ features.T))
        features = features * (weights.T @ _ratio(rows, weights @ features))
        features = features / features[:, :tokens].sum(1, keepdim=True).clamp(min=1e-300)
    emission = features[:, :tokens]
    beliefs = laws.new_zeros((*alive.shape, states))
    beliefs[alive] = weights
    seen = beliefs * emission.T[read.tokens.clamp(min=0)]
    both = alive[:, 1:]
    before, after = _normal(seen[:, :-1][both]), beliefs[:, 1:][both]
    moves = laws.new_full((states, states), 1 / states)
    for _ in range(_RULES if len(before) else 0):
        moves = _normal(moves * (before.T @ _ratio(after, before @ moves)))
    first = beliefs[alive[:, 0], 0].mean(0)
    return HmmParameters(_mixed(first), _mixed(moves)[None], _mixed(emission)[None])


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    return wanted / found.clamp(min=torch.finfo(found.dtype).tiny)


def _normal(rows: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
    """Rows over their sums; a row of zeros becomes even."""
    sums = rows.sum(-1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    return torch.where(sums > tiny, rows / sums.clamp(min=tiny), 1 / rows.shape[-1])


def _mixed(rows: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
    return (1 - _SHARE) * _normal(rows) + _SHARE / rows.shape[-1]
