"""Combining histories by likelihood: the weights whose laws are nearest to the target's.

    v = argmin  sum over places n of w_n KL(p_n || softmax(v' L_n))

L_n are all histories' centred logits at a place n, that is after the tokens said since; p_n
is the target's law there. The sum is convex in v: log-sum-exp of a linear map, less a linear
one. Places are the prefixes of futures, and of continuations that the target itself draws.
With w_n = how many of m continuations pass through n, the chain rule makes the latter

    (1/m) sum_n w_n KL_n  ->  KL of whole continuations, which is what a copy is judged by.

The least squares of LINGEN (arXiv 2510.24966, algorithm 1; `logits/lingen`) count an error in
the logit of every token alike, likely or not; they are the start here. Futures of the target's
own and the likelihood are ours.

A model that ends in `W u` has logits in few directions (its hidden width): L_n = X_n B with
orthonormal rows B, found as blocks come, and only X_n is kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.logits.centred import centred
from myna.logits.lingen import (
    RIDGES,
    Combination,
    CombinedHistories,
    RowGram,
    combine,
    combined_students,
    fitted_futures,
    stacked_prefixes,
)
from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.oracle import Laws
from myna.teachers.prefixes import Prefixes

COMMON = 0.2  # draws that a place of the common futures counts as
_NEGLIGIBLE = 1e-6  # of a block's norm: directions below it are rounding
_DAMPING = 1e-3  # of the preconditioner, times its mean diagonal
_BLOCK_BYTES = 2**28


class Rows(NamedTuple):
    """Centred logits at some places, in the directions that they take.

    coordinates: (row, place, direction) X; a row is a history
    directions: (direction, token) B, orthonormal rows
    tree: whose nodes the places are
    """

    coordinates: Float[Tensor, "row place direction"]
    directions: Float[Tensor, "direction token"]
    tree: FutureTree


@dataclasses.dataclass(frozen=True)
class Places:
    """What weights are fitted to.

    coordinates, directions: of the histories' logits, as in `Rows`
    laws: (place, token) the target's log-probabilities, nats
    weights: (place,) w, draws
    gram: (history, history) sum over places of w X X'
    """

    coordinates: Float[Tensor, "history place direction"]
    directions: Float[Tensor, "direction token"]
    laws: Float[Tensor, "place token"]
    weights: Float[Tensor, " place"]
    gram: Float[Tensor, "history history"]


@dataclasses.dataclass(frozen=True)
class Likeliest:
    """Weights fitted by likelihood.

    weights: (history,) v
    before, after: weighted mean KL (nats a place) of the start and of the weights
    iterations: of the solver
    """

    weights: Float[Tensor, " history"]
    before: float
    after: float
    iterations: int


def read_rows(
    teacher: Laws,
    histories: Prefixes,
    futures: Prefixes,
    directions: Float[Tensor, "direction token"] | None = None,
) -> Rows:
    """Ask every history at every node of the `FutureTree` of some futures.

    directions: known ones, kept as the first; more are added where logits leave their span

    Raises:
        InputError: futures that do not fit; a law with a zero.
    """
    width, tree = teacher.spec.num_tokens, FutureTree.of(futures)
    known = torch.empty((0, width), dtype=torch.float64) if directions is None else directions
    step = max(1, _BLOCK_BYTES // (8 * width * len(tree.pairs)))
    parts = []
    for rows in torch.arange(len(histories.lengths)).split(step):
        logits = centred(crossed(teacher, histories.take(rows), futures, tree.pairs).laws)
        known = _widened(known, logits.flatten(0, 1))
        parts.append(logits @ known.mT)
    whole = torch.zeros((len(histories.lengths), len(tree.pairs), len(known)), dtype=torch.float64)
    for rows, part in zip(torch.arange(len(whole)).split(step), parts, strict=True):
        whole[rows, :, : part.shape[2]] = part  # rounding alone lies in directions found later
    return Rows(whole, known, tree)


def _widened(known: Tensor, logits: Tensor) -> Tensor:
    """The directions, and those of what they leave of some logits."""
    least = _NEGLIGIBLE**2 * float((logits**2).sum())
    left = logits - (logits @ known.mT) @ known
    if float((left**2).sum()) <= least:
        return known
    if len(left) < left.shape[1]:  # the smaller of both tables of inner products
        sizes, mixed = torch.linalg.eigh(left @ left.mT)
        found = torch.linalg.qr(left.mT @ mixed[:, sizes > least]).Q
    else:
        sizes, every = torch.linalg.eigh(left.mT @ left)
        found = every[:, sizes > least]
    return torch.cat([known, found.mT])


def fit_weights(
    places: Places, start: Float[Tensor, " history"], iterations: int = 60
) -> Likeliest:
    """Limited-memory BFGS on z where v = start + C z, C C' = (sum w X X' + damping)^-1.

    Raises:
        InputError: no place of any weight.
    """
    if not float(places.weights.sum()) > 0:
        raise InputError("weights are fitted to places, and none has any weight")
    X, B, w = places.coordinates.flatten(1), places.directions, places.weights
    probs, share = places.laws.exp(), w / w.sum()
    gram = places.gram / w.sum()
    gram.diagonal().add_(_DAMPING * float(gram.diagonal().mean()))
    factor = torch.linalg.cholesky(gram)
    base = (start @ X).unflatten(0, (len(w), -1))
    z = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [z], max_iter=iterations, history_size=30, line_search_fn="strong_wolfe",
        tolerance_grad=1e-8, tolerance_change=1e-10,
    )  # fmt: skip
    values: list[float] = []

    def moved() -> Tensor:
        return torch.linalg.solve_triangular(factor.mT, z[:, None], upper=True)[:, 0]

    def divergence() -> Tensor:
        laws = ((base + (moved() @ X).view_as(base)) @ B).log_softmax(1)
        return share @ (probs * (places.laws - laws)).sum(1)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = divergence()
        value.backward()
        values.append(float(value.detach()))
        return value

    optimiser.step(closure)
    with torch.no_grad():
        after, found = float(divergence()), start + moved()
    if not after <= values[0]:  # a search that broke down gives the start back
        return Likeliest(start, values[0], values[0], 0)
    return Likeliest(found, values[0], after, optimiser.state[z]["n_iter"])


class Common(NamedTuple):
    """What all targets share: histories and targets at the nodes of common futures.

    rows: the histories' rows, then the targets'
    gram: (row, row) their inner products
    start: least squares on them, as in LINGEN
    """

    rows: Rows
    gram: Float[Tensor, "row row"]
    start: Combination


def common_rows(
    teacher: Laws,
    targets: Prefixes,
    histories: Prefixes,
    futures: Prefixes,
    ridges: Sequence[float] = RIDGES,
) -> Common:
    """Ask all, and combine by least squares with a ridge chosen on futures held out.

    Raises:
        InputError: fewer than two futures, or too much alike; a law with a zero.
    """
    split, n = fitted_futures(futures), len(histories.lengths)
    rows = read_rows(teacher, stacked_prefixes(histories, targets), futures)
    first = rows.tree.pairs[:, 0] < split
    fitted, held = _gram(rows, first), _gram(rows, ~first)
    every = torch.arange(len(rows.coordinates))
    start = combine(fitted, held, every[:n], every[n:], ridges)
    return Common(rows, (fitted + held).products, start)


def _gram(rows: Rows, chosen: Tensor) -> RowGram:
    flat = rows.coordinates[:, chosen].flatten(1)
    return RowGram(flat @ flat.mT, int(chosen.sum()) * rows.directions.shape[1])


def places_of(
    teacher: Laws,
    targets: Prefixes,
    target: int,
    histories: Prefixes,
    common: Common,
    own: Prefixes | None,
    weight: float = COMMON,
) -> Places:
    """The common places, and those of a target's own continuations.

    target: which of the targets
    own: continuations that it drew; None: the common places alone
    weight: draws that a common place counts as
    """
    n, (rows, B, _) = len(histories.lengths), common.rows
    gram = weight * common.gram[:n, :n]
    laws = (rows[n + target] @ B).log_softmax(1)
    shared = torch.full((rows.shape[1],), weight, dtype=torch.float64)
    if own is None:
        return Places(rows[:n], B, laws, shared, gram)
    here = read_rows(teacher, histories, own, B)
    tree = here.tree
    before = torch.nn.functional.pad(rows[:n], (0, len(here.directions) - len(B)))
    draws = torch.bincount(tree.node_of[tree.node_of >= 0], minlength=len(tree.pairs)).double()
    true = crossed(teacher, targets.take(torch.tensor([target])), own, tree.pairs).laws[0]
    heavy = (here.coordinates * draws[:, None]).flatten(1)
    return Places(
        torch.cat([before, here.coordinates], 1),
        here.directions,
        torch.cat([laws, true]),
        torch.cat([shared, draws]),
        gram + heavy @ here.coordinates.flatten(1).mT,
    )


def likeliest_lingen(
    teacher: Laws,
    targets: Prefixes,
    histories: Prefixes,
    futures: Prefixes,
    own: Sequence[Prefixes] | None = None,
    ridges: Sequence[float] = RIDGES,
) -> tuple[list[CombinedHistories], list[Likeliest], Combination]:
    """One student a target by likelihood, its fit, and the least squares they started from.

    own: continuations that each target drew, judged by others afterwards; None: the common
        futures alone, about which every target is asked

    Raises:
        InputError: as `common_rows`; continuations of another number of targets.
    """
    count = len(targets.lengths)
    if own is not None and len(own) != count:
        raise InputError(f"each of {count} targets needs continuations of its own, got {len(own)}")
    common = common_rows(teacher, targets, histories, futures, ridges)
    fits = [
        fit_weights(
            places_of(teacher, targets, t, histories, common, None if own is None else own[t]),
            common.start.weights[:, t],
        )
        for t in range(count)
    ]
    weights = torch.stack([fit.weights for fit in fits], 1)
    return combined_students(teacher, targets, histories, weights), fits, common.start
