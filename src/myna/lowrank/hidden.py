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
parts no hidden Markov model of that size has its laws: `excluded`. Errors of the student count
in B as often as cond(A) cond(B)^2 / (the smallest gap of eigenvalues), so that is only said of
parts larger than the tolerance times it. We differ from the source in starting from a student,
not from moments of samples, and in refusing by the residual instead of assuming success.
"""

import dataclasses
import math

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
_READ, _LENGTH = 100, 24  # strings of the student that laws are compared on; without a horizon


@dataclasses.dataclass(frozen=True)
class HiddenForm:
    """A hidden Markov form of a student, or why there is none.

    model: laws E and change[s, o, :] = T[s, :], all entries >= 0; None where refused
    residual: the largest entry of |A_o - B diag(E[:, o]) T B^-1|, |L - B E| and of the
        negative parts that were set to zero; inf where it could not be computed
    laws: where the residual is finite and exceeds the tolerance, the largest difference of a
        next-token probability along 100 strings drawn from the student; else 0
    reason: one sentence
    excluded: no hidden Markov model with as many states as the student's rank has its laws (to
        the tolerance), and none with fewer; false where not decided, as where the horizon is short
    """

    model: LowRankModel | None
    residual: float
    reason: str
    excluded: bool = False
    laws: float = 0.0


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
        why = "not decided: the operators sum to a singular matrix, as where states move alike"
        return HiddenForm(None, float("inf"), why)
    values, vectors = _eigen(step, everything, generator)
    alone = torch.eye(len(values), dtype=torch.bool, device=values.device)
    groups = (values[:, None] - values).abs() <= ALIKE
    alike = not torch.equal(groups, alone)
    # states that are nearly alike may still be told apart; the error decides
    form = _in_states(model, everything, values, vectors, alone, tolerance, generator)
    if form.model is None and alike:
        form = _in_states(model, everything, values, vectors, groups, tolerance, generator)
    if form.model is not None:
        return form
    # two complex values come together as the root of an error
    size = form.residual if math.isfinite(form.residual) else float(values.imag.abs().max()) ** 2
    error = tolerance * _amplified(everything, values, vectors)
    return _refused(model, form, alike, None if size > error else error)


def _in_states(
    model: LowRankModel,
    everything: Float[Tensor, "rank rank"],
    values: Complex[Tensor, " state"],
    vectors: Complex[Tensor, "rank state"],
    groups: Bool[Tensor, "state state"],
    tolerance: float,
    generator: torch.Generator,
) -> HiddenForm:
    """The tables in the basis of states, where they fit the operators or the laws.

    groups: which states are taken to emit alike
    """
    alike = bool((groups.sum(1) > 1).any())
    beliefs = None
    if float(values.imag.abs().max()) <= (ALIKE if alike else _COMPLEX):
        beliefs = _beliefs(vectors, groups)
    if beliefs is None:
        return HiddenForm(None, math.inf, "the operators share no real basis of eigenvectors")
    step = model.steps[0]
    if alike:
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
    found, name = hidden_model(model, start, transition, emission), f"{step.rank} states"
    if residual <= tolerance:
        return HiddenForm(found, residual, f"a hidden Markov model with {name}")
    apart, length = _apart(model, found, generator), model.spec.horizon or _LENGTH
    if apart <= tolerance:
        return HiddenForm(
            found, residual, f"a hidden Markov model with {name}: next-token probabilities differ "
            f"by at most {apart:.2g} along {_READ} strings of {length} tokens", laws=apart,
        )  # fmt: skip
    why = f"the residual is {residual:.2g}, more than {tolerance:g}"
    return HiddenForm(None, residual, why, laws=apart)


def _apart(model: LowRankModel, other: LowRankModel, generator: torch.Generator) -> float:
    """The largest difference of a next-token probability along strings that the first draws."""
    drawn = model.sample(_READ, generator, None if model.spec.horizon else _LENGTH).tokens
    mine, theirs, apart = model.initial(_READ), other.initial(_READ), 0.0
    for tokens in drawn.unbind(1):
        gap = float((model.law(mine).exp() - other.law(theirs).exp()).abs().max())
        if not gap <= 1:  # a token that the other cannot draw: nothing follows it
            return math.inf
        apart = max(apart, gap)
        mine, theirs = model.step(mine, tokens)[0], other.step(theirs, tokens)[0]
    return apart


def _amplified(
    everything: Float[Tensor, "rank rank"],
    values: Complex[Tensor, " state"],
    vectors: Complex[Tensor, "rank state"],
) -> float:
    """How often an error of the operators counts in the tables, to first order."""
    apart = (values[:, None] - values).abs()
    apart.fill_diagonal_(1.0)
    conditions = torch.linalg.cond(everything) * torch.linalg.cond(vectors) ** 2
    return float(conditions / apart.min().clamp(max=1.0))


def _refused(model: LowRankModel, form: HiddenForm, alike: bool, error: float | None) -> HiddenForm:
    """No model, and whether none exists.

    error: what may be an error in the tables, where what was found is no more
    """
    states, rank, why = model.steps[0].rank, process_rank(model), form.reason
    none = f"no hidden Markov model with {states} states"
    if alike:
        reason = (
            f"{none} was found: some would emit alike, and of "
            f"their mixings none without negative entries was found ({why})"
        )
        return dataclasses.replace(form, reason=reason)
    if rank < states:
        reason = (
            f"{none} was found ({why}); the student's futures "
            f"have rank {rank} only, so one of another form may exist"
        )
        return dataclasses.replace(form, reason=reason)
    short = undecided(model)
    if short is None and error is not None:
        short = f"an error of the tolerance in the student may look like {error:.2g} there"
    if short is not None:
        return dataclasses.replace(form, reason=f"{none} was found ({why}); {short}")
    return dataclasses.replace(form, reason=f"{none} or fewer fits: {why}", excluded=True)


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
