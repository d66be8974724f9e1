"""The hidden Markov form: a basis of states in which the change of basis forgets the token.

A hidden Markov model with emissions E (state, token) and transitions T (state, state) is
the low-rank model whose basis "histories" are its states: laws E, and G[s, o, :] = T[s, :]
for every token o. A learned student holds the same model in a basis of histories. If row i
of B is the belief over states after basis history h_i, then

    A_o = B diag(E[:, o]) T B^-1,      L = B E,      first B = the initial belief,

so with A the sum of all A_o the matrices A_o A^-1 = B diag(E[:, o]) B^-1 share the
eigenvectors B, which one random combination reveals (simultaneous diagonalisation, as in
Anandkumar, Hsu and Kakade, arXiv 1203.0683). Rows of B sum to one, which fixes the scale.

It needs as many states as the rank and invertible transitions. States that emit alike share
an eigenvalue, so their eigenvectors are only known up to a mixing within their group, and
one that leaves no negative entry is searched for (`equivalents`). A student that is minimal
(its rank is the rank of its futures) has this B alone, so where B has complex or negative
parts no hidden Markov model of that size has its laws: `excluded`. We differ from the source
in starting from a student, not from moments of samples, and in refusing by the residual
instead of assuming success.
"""

import dataclasses

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.equivalents import (
    ALIKE,
    SINGULAR,
    hidden_model,
    nonnegative_member,
    process_rank,
    undecided,
)
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step

_COMPLEX = 1e-9  # imaginary parts above it are no rounding


@dataclasses.dataclass(frozen=True)
class HiddenForm:
    """A hidden Markov form of a student, or why there is none.

    model: laws E and change[s, o, :] = T[s, :], all entries >= 0; None where refused
    residual: the largest entry of |A_o - B diag(E[:, o]) T B^-1|, |L - B E| and of the
        negative parts that were set to zero; inf where it could not be computed
    reason: one sentence
    excluded: no hidden Markov model with as many states as the student's rank has its laws (to
        the tolerance), and none with fewer; false where not decided, as where the horizon is short
    """

    model: LowRankModel | None
    residual: float
    reason: str
    excluded: bool = False


def hidden_form(
    model: LowRankModel, generator: torch.Generator, tolerance: float = 1e-8
) -> HiddenForm:
    """The student as a hidden Markov model with `rank` states, where it is one.

    tolerance: the largest residual accepted; Q changes by about that much a token.

    Raises:
        InputError: where the model is not stationary, or has a stop token.
    """
    if model.spec.stop is not None:
        raise InputError(
            "the hidden Markov form is for a student without a stop token, and this one has "
            f"{model.spec.alphabet[model.spec.stop]!r}; learn from a teacher that has none"
        )
    if len(model.steps) != 1:
        raise InputError(
            "the hidden Markov form is for a stationary student, and this one has "
            f"{len(model.steps)} steps; learn with --structure stationary"
        )
    step = model.steps[0]
    everything = step.operators.sum(0)
    if not float(torch.linalg.cond(everything)) < SINGULAR:
        why = "the operators sum to a singular matrix, so the states cannot be told apart"
        return HiddenForm(None, float("inf"), why)
    values, vectors = _eigen(step, everything, generator)
    groups = (values[:, None] - values).abs() <= ALIKE
    found, alike = None, bool((groups.sum(1) > 1).any())
    if float(values.imag.abs().max()) <= (ALIKE if alike else _COMPLEX):
        found = _beliefs(vectors, groups)
    if found is None:
        return _refused(
            model, float("inf"), "the operators share no real basis of eigenvectors", alike
        )
    return _read(model, everything, found, groups if alike else None, tolerance, generator)


def _read(
    model: LowRankModel,
    everything: Float[Tensor, "rank rank"],
    beliefs: Float[Tensor, "rank state"],
    groups: Bool[Tensor, "state state"] | None,
    tolerance: float,
    generator: torch.Generator,
) -> HiddenForm:
    """The tables in the basis of states, where they fit.

    groups: which states emit alike; None where none do
    """
    step = model.steps[0]
    if groups is not None:
        moves = torch.linalg.solve(beliefs, everything @ beliefs)
        beliefs = beliefs @ nonnegative_member(model.first @ beliefs, moves, groups, generator)
    inverse = torch.linalg.inv(beliefs)
    raw = (model.first @ beliefs, inverse @ step.laws, inverse @ everything @ beliefs)
    start, emission, transition = (_stochastic(table) for table in raw)
    rebuilt = torch.einsum("is,so,st,tj->oij", beliefs, emission, transition, inverse)
    gaps = (
        rebuilt - step.operators,
        beliefs @ emission - step.laws,
        *(table.clamp(max=0) for table in raw),
    )
    residual = max(float(gap.abs().max()) for gap in gaps)
    if not residual <= tolerance:
        why = f"the residual is {residual:.2g}, more than {tolerance:g}"
        return _refused(model, residual, why, groups is not None)
    found = hidden_model(model, start, transition, emission)
    return HiddenForm(found, residual, f"a hidden Markov model with {step.rank} states")


def _refused(model: LowRankModel, residual: float, why: str, alike: bool) -> HiddenForm:
    """No model, and whether none exists."""
    states, rank = model.steps[0].rank, process_rank(model)
    if alike:
        reason = (
            f"no hidden Markov model with {states} states was found: some would emit alike, and of "
            f"their mixings none without negative entries was found ({why})"
        )
        return HiddenForm(None, residual, reason)
    if rank < states:
        reason = (
            f"no hidden Markov model with {states} states was found ({why}); the student's futures "
            f"have rank {rank} only, so one of another form may exist"
        )
        return HiddenForm(None, residual, reason)
    short = undecided(model)
    if short is not None:
        reason = f"no hidden Markov model with {states} states was found ({why}); {short}"
        return HiddenForm(None, residual, reason)
    return HiddenForm(
        None, residual, f"no hidden Markov model with {states} states or fewer fits: {why}", True
    )


def _eigen(
    step: Step, everything: Float[Tensor, "rank rank"], generator: torch.Generator
) -> tuple[Complex[Tensor, " state"], Complex[Tensor, "rank state"]]:
    """Eigenvalues and eigenvectors of a random combination of A_o A^-1."""
    operators = step.operators
    weights = torch.rand(len(operators), generator=generator, dtype=operators.dtype)
    mixed = torch.einsum("o,oij->ij", weights.to(operators.device), operators)
    return torch.linalg.eig(torch.linalg.solve(everything, mixed, left=False))


def _beliefs(
    vectors: Complex[Tensor, "rank state"], groups: Bool[Tensor, "state state"]
) -> Float[Tensor, "rank state"] | None:
    """B: within each group a basis of its eigenspace, scaled so that rows of B sum to one.

    None where the eigenvectors are no basis.
    """
    basis = []
    for first in _firsts(groups):
        members = groups[first].nonzero()[:, 0].tolist()
        # real and imaginary parts span the real eigenspace, also where rounding paired vectors
        both = torch.cat([vectors[:, members].real, vectors[:, members].imag], 1)
        basis.append(torch.linalg.svd(both).U[:, : len(members)])
    whole = torch.cat(basis, 1)
    if not float(torch.linalg.cond(whole)) < SINGULAR:
        return None
    scale = torch.linalg.solve(whole, whole.new_ones(len(whole)))
    sizes = [part.shape[1] for part in basis]
    parts = [_turned(part, c) for part, c in zip(basis, scale.split(sizes), strict=True)]
    scaled = torch.cat(parts, 1)
    # columns stand where their group's first state stood, so groups are put in one order
    order = [s for first in _firsts(groups) for s in groups[first].nonzero()[:, 0].tolist()]
    return torch.empty_like(scaled).index_copy_(
        1, torch.tensor(order, device=scaled.device), scaled
    )


def _firsts(groups: Bool[Tensor, "state state"]) -> list[int]:
    """The first state of each group."""
    return sorted(set(groups.int().argmax(1).tolist()))


def _turned(
    part: Float[Tensor, "rank member"], scale: Float[Tensor, " member"]
) -> Float[Tensor, "rank member"]:
    """Another basis of the same space whose columns sum to `part @ scale`.

    A reflection takes (1, ..., 1) / sqrt(k) to scale / |scale|.
    """
    size = scale.norm()
    even = torch.full_like(scale, len(scale) ** -0.5)
    normal = even - scale / size
    reflection = torch.eye(len(scale)).to(scale)
    if float(normal.norm()) > 0:
        reflection -= 2 * torch.outer(normal, normal) / normal.dot(normal)
    return part @ reflection * size * len(scale) ** -0.5


def _stochastic(table: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows columns"]:
    """Negative parts set to zero, rows divided by their sums."""
    positive = table.clamp(min=0)
    return positive / positive.sum(-1, keepdim=True)
