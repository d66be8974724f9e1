"""Which hidden Markov models have the laws of a given one.

Two models (pi, A_o) and (pi', A'_o) of equal size that are minimal (as many states as the rank
r of their futures given histories) have equal laws exactly where one invertible M takes one to
the other, pi' = pi M and A'_o = M^-1 A_o M; M is unique, and M 1 = 1 (Ito, Amari and Kobayashi
1992, "Identifiability of hidden Markov information sources and their minimum degrees of freedom",
recalled). With A_o = diag(E[:, o]) T and T invertible, A_o A^-1 = diag(E[:, o]), so M carries
common eigenvectors to common eigenvectors:

- rows of E all distinct: M is a permutation, and the model is the only one of its size.
- groups of k states with equal rows of E: M is any invertible matrix within each group whose rows
  sum to one, a family of sum k (k - 1) dimensions. Of it those count for which pi M and
  M^-1 T M have no negative entry.

Where T is singular or the model not minimal this says nothing, and neither do we. With a horizon
of H tokens the laws of longer strings are nobody's: the A_o are fixed by strings alone only where
histories of t tokens and futures of s tokens reach rank r and t + 1 + s <= H. We differ from
the source in asking for the operators themselves, whose products are known from strings alone,
and in giving a second model as a witness where there is one.
"""

import dataclasses
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step, forgetful

ALIKE = 1e-6  # rows of E that differ by less count as equal
SINGULAR = 1e12  # condition numbers above it count as infinite
_SMALL = 1e-9  # singular values below it, of the largest, count as zero
_MOVES = (0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)  # how far a witness is looked for, the farthest first
_DIFFERS = 1e-4  # entries by which a witness must differ
_STARTS, _ITERATIONS = 20, 200  # of the search for a member without negative entries


@dataclasses.dataclass(frozen=True)
class Uniqueness:
    """Whether a hidden Markov model is the only one of its size with its laws.

    unique: proved to be, up to the order of its states, by strings up to the horizon
    free: dimension of the family that M ranges over; 0 where unique, None where not known
    other: a different model of the same size with equal laws, where one was found
    why: one sentence
    """

    unique: bool
    free: int | None
    other: LowRankModel | None
    why: str


def uniqueness(model: LowRankModel) -> Uniqueness:
    """What is known of other models with as many states and the same laws.

    model: stationary, in hidden Markov form, without a stop token

    Raises:
        InputError: for a model of another form.
    """
    if model.transitions is None or len(model.steps) != 1 or model.spec.stop is not None:
        raise InputError(
            "uniqueness is told of a stationary hidden Markov model without a stop token; read one "
            "off the student first (myna hmm)"
        )
    step, moves = model.steps[0], model.transitions[0]
    rank = process_rank(model)
    short = undecided(model)
    if short is not None:
        return Uniqueness(False, None, None, short)
    if rank < step.rank:
        why = f"rank {rank} needs no {step.rank} states, so other models may have the same laws"
        return Uniqueness(False, None, None, why)
    if not float(torch.linalg.cond(moves)) < SINGULAR:
        return Uniqueness(False, None, None, "the transitions are singular: not decided")
    same = torch.cdist(step.laws, step.laws, p=torch.inf) <= ALIKE
    free = int(same.sum()) - step.rank  # k (k - 1) a group
    if not free:
        why = (
            f"as many states as the rank ({rank}), invertible transitions and distinct emissions: "
            "the only such model, up to the order of its states"
        )
        return Uniqueness(True, 0, None, why)
    other = _witness(model, moves, same)
    told = (
        "another one is given" if other else "near this one none without negative entries was found"
    )
    why = f"states that emit alike can be mixed in {free} dimensions with equal laws; {told}"
    return Uniqueness(False, free, other, why)


def hidden_model(
    model: LowRankModel,
    first: Float[Tensor, " state"],
    transition: Float[Tensor, "state next_state"],
    emission: Float[Tensor, "state token"],
) -> LowRankModel:
    """The tables as a low-rank model of the same language: change[s, o, :] = T[s, :]."""
    change = forgetful(transition, model.spec.num_tokens)
    return LowRankModel.of(model.spec, first, (Step(emission, change),))


def process_rank(model: LowRankModel) -> int:
    """Rank of futures given histories of a stationary model, read on past its horizon.

    The span of first A_w over all words w, against the span of A_w 1.
    """
    histories, futures, _ = _closures(model)
    values = torch.linalg.svdvals(histories @ futures.T)
    return int((values > _SMALL * values[0]).sum())


def undecided(model: LowRankModel) -> str | None:
    """Why strings up to the horizon do not fix the operators; None where they do.

    A sentence, for a stationary model.
    """
    *_, tokens = _closures(model)
    horizon = model.spec.horizon
    if horizon is None or tokens <= horizon:
        return None
    return (
        f"strings of {horizon} tokens, the horizon, do not tell all models apart; those of {tokens} "
        "would, so nothing is proved"
    )


def _closures(
    model: LowRankModel,
) -> tuple[Float[Tensor, "history rank"], Float[Tensor, "future rank"], int]:
    """Spans of histories and of futures, and the tokens of a string that shows both and one between."""
    operators = model.steps[0].operators
    histories, before = _closure(model.first[None], operators)
    ones = operators.new_ones((1, operators.shape[1]))
    futures, after = _closure(ones, operators.transpose(1, 2))
    return histories, futures, before + 1 + after


def _closure(
    rows: Float[Tensor, "some rank"], operators: Float[Tensor, "token rank rank"]
) -> tuple[Float[Tensor, "dimension rank"], int]:
    """Orthonormal rows that span all rows times products of operators, and the longest product."""
    span, length = rows / rows.norm(), 0
    while True:
        further = torch.einsum("ki,oij->okj", span, operators).flatten(0, 1)
        _, values, vectors = torch.linalg.svd(torch.cat([span, further]), full_matrices=False)
        found = vectors[values > _SMALL * values[0]]
        if len(found) <= len(span):
            return span, length
        span, length = found, length + 1


def _witness(
    model: LowRankModel, moves: Float[Tensor, "state state"], same: Bool[Tensor, "state state"]
) -> LowRankModel | None:
    """A model with one state mixed into one that emits alike: M = I + t e_a (e_b - e_a)."""
    first, emission, identity = model.first, model.steps[0].laws, torch.eye(len(moves)).to(moves)
    for size in _MOVES:
        for a, b in _pairs(same):
            for t in (size, -size):
                mix = identity.clone()
                mix[a, a] -= t
                mix[a, b] += t
                start, mixed = first @ mix, torch.linalg.solve(mix, moves @ mix)
                whole = min(float(start.min()), float(mixed.min())) >= 0
                if whole and float((mixed - moves).abs().max()) > _DIFFERS:
                    start, mixed = start / start.sum(), mixed / mixed.sum(1, keepdim=True)
                    return hidden_model(model, start, mixed, emission)
    return None


def _pairs(same: Bool[Tensor, "state state"]) -> list[tuple[int, int]]:
    """States a, b that emit alike, a other than b."""
    return [(a, b) for a, b in same.nonzero().tolist() if a != b]


def nonnegative_member(
    first: Float[Tensor, " state"],
    transition: Float[Tensor, "state state"],
    groups: Bool[Tensor, "state state"],
    generator: torch.Generator,
) -> Float[Tensor, "state state"]:
    """M within the groups, rows summing to one, with the least negative entries found.

    It minimises the squared negative parts of pi M and M^-1 T M by L-BFGS from random starts.
    """
    best, least = torch.eye(len(first)).to(transition), torch.inf
    for _ in range(_STARTS):
        raw = torch.rand(transition.shape, generator=generator, dtype=transition.dtype)
        mix, lost = _descended(first, transition, groups, raw.to(transition.device))
        if lost < least:
            best, least = mix, lost
        if least < _SMALL:
            break
    return best


def _descended(
    first: Float[Tensor, " state"],
    transition: Float[Tensor, "state state"],
    groups: Bool[Tensor, "state state"],
    raw: Float[Tensor, "state state"],
) -> tuple[Float[Tensor, "state state"], float]:
    """M after one descent, and its largest negative part; inf where it became singular."""
    inside = groups.to(raw)
    raw = raw.clone().requires_grad_(True)

    def mixing() -> Tensor:
        kept = raw * inside
        return kept + inside * (1 - kept.sum(1, keepdim=True)) / inside.sum(1, keepdim=True)

    def negative() -> Tensor:
        mix = mixing()
        moved = torch.linalg.solve_ex(mix, transition @ mix).result
        return torch.cat([first @ mix, moved.flatten()]).clamp(max=0)

    optimiser = torch.optim.LBFGS(
        [raw], max_iter=_ITERATIONS, tolerance_grad=1e-14, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = negative().square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        lost = float(-negative().min())
        return mixing().detach(), lost if math.isfinite(lost) else math.inf
