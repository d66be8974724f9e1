"""The hidden Markov form: a basis of states in which the change of basis forgets the token.

A hidden Markov model with emissions E (state, token) and transitions T (state, state) is
the low-rank model whose basis "histories" are its states: laws E, and G[s, o, :] = T[s, :]
for every token o. A learned student holds the same model in a basis of histories. If row i
of B is the belief over states after basis history h_i, then

    A_o = B diag(E[:, o]) T B^-1,      L = B E,      first B = the initial belief,

so with A the sum of all A_o the matrices A_o A^-1 = B diag(E[:, o]) B^-1 share the
eigenvectors B, which one random combination reveals (simultaneous diagonalisation, as in
Anandkumar, Hsu and Kakade, arXiv 1203.0683). Rows of B sum to one, which fixes the scale.

It needs as many states as the rank, invertible transitions and states that emit
differently; otherwise there is no such form of this size, or it cannot be found so, and
the reason is returned. We differ from the source in starting from a student, not from
moments of samples, and in refusing by the residual instead of assuming success.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step


@dataclasses.dataclass(frozen=True)
class HiddenForm:
    """A hidden Markov form of a student, or why there is none.

    model: laws E and change[s, o, :] = T[s, :], all entries >= 0; None where refused
    residual: the largest entry of |A_o - B diag(E[:, o]) T B^-1|, |L - B E| and of the
        negative parts that were set to zero; inf where it could not be computed
    reason: one sentence
    """

    model: LowRankModel | None
    residual: float
    reason: str


def hidden_form(
    model: LowRankModel, generator: torch.Generator, tolerance: float = 1e-8
) -> HiddenForm:
    """The student as a hidden Markov model with `rank` states, where it is one.

    tolerance: the largest residual accepted; Q changes by about that much a token.

    Raises:
        InputError: where the model is not stationary, or has a stop token.
    """
    if len(model.steps) != 1 or model.spec.stop is not None:
        raise InputError(
            "the hidden Markov form is for a stationary student without a stop token; "
            f"this one has {len(model.steps)} steps and stop token {model.spec.stop}; "
            "learn with --structure stationary"
        )
    step = model.steps[0]
    beliefs, reason = _beliefs(step, generator)
    if beliefs is None:
        return HiddenForm(None, float("inf"), reason)
    inverse = torch.linalg.inv(beliefs)
    raw = (
        model.first @ beliefs,
        inverse @ step.laws,
        inverse @ step.operators.sum(0) @ beliefs,
    )
    start, emission, transition = (_stochastic(table) for table in raw)
    rebuilt = torch.einsum("is,so,st,tj->oij", beliefs, emission, transition, inverse)
    gaps = (
        rebuilt - step.operators,
        beliefs @ emission - step.laws,
        *(table.clamp(max=0) for table in raw),
    )
    residual = max(float(gap.abs().max()) for gap in gaps)
    if not residual <= tolerance:
        return HiddenForm(
            None,
            residual,
            f"no hidden Markov model with {step.rank} states fits: the residual is "
            f"{residual:.2g}, more than {tolerance:g}",
        )
    change = transition[:, None, :].expand(-1, model.spec.num_tokens, -1).contiguous()
    found = LowRankModel.of(model.spec, start, (Step(emission, change),))
    return HiddenForm(found, residual, f"a hidden Markov model with {step.rank} states")


def _beliefs(
    step: Step, generator: torch.Generator
) -> tuple[Float[Tensor, "rank state"] | None, str]:
    """B, from the eigenvectors of a random combination of A_o A^-1."""
    operators = step.operators
    everything = operators.sum(0)
    if float(torch.linalg.cond(everything)) > 1e12:
        return None, "the operators sum to a singular matrix, so the states cannot be told apart"
    weights = torch.rand(len(operators), generator=generator, dtype=operators.dtype)
    mixed = torch.einsum("o,oij->ij", weights.to(operators.device), operators)
    values, vectors = torch.linalg.eig(torch.linalg.solve(everything, mixed, left=False))
    if float(values.imag.abs().max()) > 1e-9 or float(torch.linalg.cond(vectors)) > 1e12:
        return None, "the operators share no real basis of eigenvectors"
    scale = torch.linalg.solve(vectors.real, vectors.real.new_ones(len(vectors)))
    return vectors.real * scale, ""


def _stochastic(table: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows columns"]:
    """Negative parts set to zero, rows divided by their sums."""
    positive = table.clamp(min=0)
    return positive / positive.sum(-1, keepdim=True)
