"""Fewer basis histories: what the past tells of the future, cut off where it tells little.

At a cut let x be a history drawn from Q with coefficients c(x), and f a future drawn from the
mean of all laws there, Q_t. With

    Gamma = E_x c(x) c(x)^T,        D_ij = E_f Q(f | h_i) Q(f | h_j) / Q_t(f)^2,

the singular values 1 = s_1 >= s_2 >= ... of D^1/2 Gamma^1/2 are the canonical correlations of
history and future (the correspondence analysis of their joint law), and keeping the first r
loses about sum_{k > r} s_k^2 / 2 nats of what the history tells. Both matrices are means over
strings that the model itself draws: c(x) from one pass forward, Q(f | h_i) from one pass backward.

With s(x) = c(x) K the scores of a history in those r directions (K = D^1/2 times them), the smaller
model stays one of histories: r of the drawn ones, a spanner of the scores, are the new basis.
With R their scores, a history's weights over them and what they stand for are

    U = K R^-1,       V = R (K^T Gamma K)^-1 K^T Gamma,       rows of both made to sum to one,

V the best linear guess of c from s: a kept history is what its scores tell of it. Then

    first' = first U,       L' = V L,       G'[j, o, :] = sum_i V[j, i] L[i, o] G[i, o, :] U' / L'[j, o].

Where r is the rank the whole model is kept, up to rounding.

Signed weights can leave a token that Q allows with no probability at all, and then KL is infinite: the
rule, not the exception, where laws have many zeros. `convex` gives that up for a positive form: kept
histories stand for themselves, weights are those of the nearest point of their convex hull, and with
a small probability e the history is forgotten and the mean one takes its place,

    L' = (1 - e) V L + e m,      m = c_mean L,

so every token that Q allows anywhere at the cut keeps some probability.

This is balanced truncation (Moore, 1981) of a weighted automaton (Balle, Panangaden and Precup,
arXiv 1501.06841), in the chi-square geometry of laws instead of the Hilbert-Schmidt norm of the
Hankel matrix, in which strings of small probability count as little as their squares.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.noisy import convex_coefficients
from myna.lowrank.spanner import barycentric_spanner
from myna.lowrank.step import Step, divided
from myna.lowrank.student import Strings

_CANDIDATES = 1000  # drawn histories of which a basis is chosen, at most, at each stored step
_TINY = 1e-12  # of the largest eigenvalue of D: below it directions are rounding
_POSSIBLE = 1e-12  # a smaller probability of a kept history is rounding
_FORGOTTEN = 1e-5  # e


class Cut(NamedTuple):
    """Past and future at one stored step.

    coefficients: (candidate, rank), of drawn histories
    histories: the candidates, as tokens
    mean: (rank,), the mean of all drawn coefficients
    past: (rank, rank), Gamma
    future: (rank, kept), D^1/2 with rounding cut off: D = future @ future.T
    directions: (kept, kept), columns sorted by what they tell, in the coordinates of c @ future
    correlations: (kept,), s, falling
    """

    coefficients: Float[Tensor, "candidate rank"]
    histories: tuple[tuple[int, ...], ...]
    mean: Float[Tensor, " rank"]
    past: Float[Tensor, "rank rank"]
    future: Float[Tensor, "rank kept"]
    directions: Float[Tensor, "kept kept"]
    correlations: Float[Tensor, " kept"]

    def rank_above(self, correlation: float) -> int:
        """How many directions tell at least so much; never less than one."""
        return max(1, int((self.correlations >= correlation).sum()))

    def lost(self, rank: int) -> float:
        """About how many nats of the past are lost at a rank."""
        return float(self.correlations[rank:].square().sum()) / 2


def cuts_of(model: LowRankModel, drawn: Strings) -> tuple[Cut, ...]:
    """Past and future at every stored step, from strings that the model drew.

    drawn: at least some twenty a basis history, or directions are noise

    Raises:
        InputError: where no string reaches some step.
    """
    forward = _forward(model, drawn)
    served = _served(model, len(forward))
    backward = _backward(model, drawn, forward, served)
    return tuple(_cut(places, forward, backward, drawn) for places in served)


def _served(model: LowRankModel, length: int) -> list[list[int]]:
    """The positions of each stored step, of those below a length."""
    last = len(model.steps) - 1
    served = [[t for t in range(length) if min(t, last) == index] for index in range(last + 1)]
    for index, places in enumerate(served):
        if not places:
            raise InputError(
                f"no drawn string has a token at position {index}, so nothing says what may be "
                "cut there; draw more strings"
            )
    return served


def _forward(model: LowRankModel, drawn: Strings) -> list[Float[Tensor, "_ _"]]:
    """c(x_<t) of the strings that have a token at t, for each t."""
    found, alive = [], torch.arange(len(drawn.lengths))
    state = model.initial(len(alive))
    for t in range(drawn.tokens.shape[1]):
        going = drawn.lengths[alive] > t
        alive, state = alive[going], state.take(going.nonzero()[:, 0])
        if not len(alive):
            break
        found.append(state.vector)
        last = (drawn.lengths[alive] == t + 1).all()
        if not last:
            state, _ = model.step(state, drawn.tokens[alive, t])
    return found


def _backward(
    model: LowRankModel,
    drawn: Strings,
    forward: list[Float[Tensor, "_ _"]],
    served: list[list[int]],
) -> list[Float[Tensor, "_ _"]]:
    """Q(x_t.. | h_i) / Q_s(x_t..) of the same strings, for each t; Q_s of all that step s serves."""
    found: list[Tensor] = []
    means = [torch.cat([forward[t] for t in places]).mean(0) for places in served]
    behind = torch.empty(0)
    for t in reversed(range(len(forward))):
        step = model.step_at(t)
        alive = (drawn.lengths > t).nonzero()[:, 0]
        tokens = drawn.tokens[alive, t]
        value = step.laws.T[tokens]
        goes_on = drawn.lengths[alive] > t + 1
        if bool(goes_on.any()):
            value[goes_on] = _before(step, tokens[goes_on], behind)
        behind = value / (value @ means[min(t, len(means) - 1)])[:, None]
        found.append(behind)
    return found[::-1]


def _before(
    step: Step, tokens: Int[Tensor, " row"], behind: Float[Tensor, "row next_rank"]
) -> Float[Tensor, "row rank"]:
    """A_o times what follows, a token at a time."""
    value = behind.new_empty((len(tokens), step.rank))
    for token in tokens.unique().tolist():
        rows = tokens == token
        value[rows] = behind[rows] @ step.operators[token].T
    return value


def _cut(
    places: list[int],
    forward: list[Float[Tensor, "_ _"]],
    backward: list[Float[Tensor, "_ _"]],
    drawn: Strings,
) -> Cut:
    """One stored step, all places that it serves together."""
    past = torch.cat([forward[t] for t in places])
    ahead = torch.cat([backward[t] for t in places])
    values, vectors = torch.linalg.eigh(ahead.T @ ahead / len(ahead))
    kept = values > _TINY * values[-1]
    future = vectors[:, kept] * values[kept].sqrt()
    features = past @ future
    squares, directions = torch.linalg.eigh(features.T @ features / len(features))
    coefficients, histories = _candidates(places, forward, drawn)
    return Cut(
        coefficients,
        histories,
        past.mean(0),
        past.T @ past / len(past),
        future,
        directions.flip(1),
        squares.flip(0).clamp(min=0).sqrt(),
    )


def _candidates(
    places: list[int], forward: list[Float[Tensor, "_ _"]], drawn: Strings
) -> tuple[Float[Tensor, "candidate rank"], tuple[tuple[int, ...], ...]]:
    """Distinct drawn histories, as many from each place."""
    share = max(1, _CANDIDATES // len(places))
    found: dict[tuple[int, ...], Tensor] = {}
    for t in places:
        alive = (drawn.lengths > t).nonzero()[:share, 0]
        for row, history in enumerate(drawn.tokens[alive, :t].tolist()):
            found.setdefault(tuple(history), forward[t][row])
    return torch.stack(list(found.values())), tuple(found)


def truncated(model: LowRankModel, cuts: tuple[Cut, ...], ranks: tuple[int, ...]) -> LowRankModel:
    """The model with so many basis histories at each stored step, or fewer.

    ranks: one a step; where fewer candidates are independent, fewer are kept
    """
    chosen = [_basis(cut, rank) for cut, rank in zip(cuts, ranks, strict=True)]
    maps = [_onto(cut, rows) for cut, rows in zip(cuts, chosen, strict=True)]
    steps = []
    for t, (step, cut, rows) in enumerate(zip(model.steps, cuts, chosen, strict=True)):
        kept = maps[t][1]
        beyond = maps[min(t + 1, len(maps) - 1)][0]
        last = t == len(model.steps) - 1
        if last and step.change.shape[2] != len(beyond):
            beyond = torch.eye(step.change.shape[2], dtype=kept.dtype)  # nothing follows
        steps.append(_smaller(step, kept, beyond, tuple(cut.histories[int(r)] for r in rows)))
    return LowRankModel.of(model.spec, model.first @ maps[0][0], tuple(steps))


def convex(model: LowRankModel, cuts: tuple[Cut, ...], ranks: tuple[int, ...]) -> LowRankModel:
    """`truncated` in its positive form: more is lost, but no token that the model allows."""
    chosen = [_basis(cut, rank) for cut, rank in zip(cuts, ranks, strict=True)]
    corners = [cut.coefficients[rows] @ cut.future for cut, rows in zip(cuts, chosen, strict=True)]
    steps = []
    for t, (step, cut, rows) in enumerate(zip(model.steps, cuts, chosen, strict=True)):
        kept = torch.cat([cut.coefficients[rows], cut.mean[None]])
        laws = (kept @ step.laws).clamp(min=0)
        laws = torch.where(laws > _POSSIBLE, laws, 0.0)
        beyond = min(t + 1, len(cuts) - 1)
        children = torch.einsum("ji,oik->jok", kept, step.operators)
        weights = children.new_zeros((*laws.shape, len(corners[beyond])))
        if children.shape[2] == len(cuts[beyond].future):  # else nothing follows
            alive = (laws > 0) & (children.abs().sum(2) > 0)
            scaled = children[alive] / laws[alive][:, None]
            weights[alive] = convex_coefficients(scaled @ cuts[beyond].future, corners[beyond])
        moved = laws[:, :, None] * weights
        own, mean = slice(0, len(rows)), len(rows)
        mixed = (1 - _FORGOTTEN) * laws[own] + _FORGOTTEN * laws[mean]
        after = (1 - _FORGOTTEN) * moved[own] + _FORGOTTEN * moved[mean]
        change = after / mixed.clamp(min=_POSSIBLE * _FORGOTTEN)[:, :, None]
        names = tuple(cut.histories[int(r)] for r in rows)
        steps.append(Step(mixed, change, names))
    first = convex_coefficients((model.first @ cuts[0].future)[None], corners[0])[0]
    return LowRankModel.of(model.spec, first, tuple(steps))


def _basis(cut: Cut, rank: int) -> Int[Tensor, " basis"]:
    """Candidates that span the first `rank` directions."""
    scores = cut.coefficients @ cut.future @ cut.directions[:, :rank]
    scale = float(scores.norm(dim=1).max())
    return barycentric_spanner(scores, tolerance=1e-9 * scale, max_rank=rank).indices


def _onto(
    cut: Cut, rows: Int[Tensor, " basis"]
) -> tuple[Float[Tensor, "rank basis"], Float[Tensor, "basis rank"]]:
    """U and V: to weights over the kept histories, and what those stand for."""
    wanted = cut.directions[:, : len(rows)]
    scoring = cut.future @ wanted
    scores = cut.coefficients[rows] @ scoring
    meant = scores @ torch.linalg.solve(scoring.T @ cut.past @ scoring, scoring.T @ cut.past)
    onto = torch.linalg.solve(scores, scoring, left=False)
    meant = meant / meant.sum(1, keepdim=True)
    ones = torch.ones(len(rows), dtype=scores.dtype)
    evened = torch.linalg.solve(scores @ scores.T, ones)
    return onto + (1 - onto.sum(1))[:, None] * (evened / evened.sum()), meant


def _smaller(
    step: Step,
    kept: Float[Tensor, "basis rank"],
    beyond: Float[Tensor, "next_rank next_basis"],
    histories: tuple[tuple[int, ...], ...],
) -> Step:
    """Laws of kept histories, and where their children lie in the next new basis."""
    laws = kept @ step.laws
    moved = torch.einsum("ji,oik->jok", kept, step.operators) @ beyond
    return divided(torch.where(laws > _POSSIBLE, laws, 0.0), moved, histories)
