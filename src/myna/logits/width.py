"""The hidden width of a model, from next-token laws alone.

A model that ends in logits = W u(x), u(x) in R^d the normalised hidden state, W (token, d), has

    z(x) = W' u(x),    W' = W less its mean row:    the rows z(x) span min(d, O - 1) dimensions,

so singular values of many rows fall to the rounding of the arithmetic after the d-th. The
width is where they fall most, if they fall by a factor _LEAST_GAP; otherwise only a lower
bound is known: of O tokens one direction is lost to centring, so d >= O - 1 cannot be told.

What the final normalisation does shows in the rows less their mean:

    no mean removal (RMSNorm, none)       u fills R^d: still d dimensions
    mean removal (LayerNorm)              u lies in a plane: one dimension fewer
    mean removal without a bias           that plane goes through 0: d - 1 dimensions either way,
                                          which no law tells from a width of d - 1

Source: Carlini et al. (arXiv 2403.06634), Finlayson et al. (2403.09539). They take the first
large gap of logits; ours is the largest gap of centred logits, with its size as evidence.
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.logits.centred import centred
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

_LEAST_GAP = 100.0  # factor between neighbours: natural spectra fall by far less
_MARGIN = 32  # rows more than the alphabet's dimensions, unless said
_MOST_ROWS = 2048  # unless said
_LONGEST = 16  # tokens of a history that is drawn here


@dataclasses.dataclass(frozen=True)
class Width:
    """What next-token laws say of a hidden width.

    hidden_width: d = the place of the largest gap, None where no gap is large enough
    at_least: d where it is known, else min(rows, tokens - 1)
    gap: s_d / s_d+1, the largest ratio of neighbours
    mean_removed: whether rows less their mean have one dimension fewer; None without a width
    rows, tokens: the shape of the matrix of centred logits
    singular_values: s_1 .. s_min(rows, tokens - 1), nats
    queries: next-token queries that this took
    reason: in words
    """

    hidden_width: int | None
    at_least: int
    gap: float
    mean_removed: bool | None
    rows: int
    tokens: int
    singular_values: tuple[float, ...]
    queries: int
    reason: str


def hidden_width(
    view: LawsView,
    rows: int | None = None,
    read: Callable[[Prefixes], Float[Tensor, "batch token"]] | None = None,
) -> Width:
    """Ask the laws after random histories of the teacher's own, and find the width.

    rows: how many histories; tokens + 31 unless said, at most 2,048
    read: how laws (nats) are had, where not from the view: through an API that shows less

    Raises:
        InputError: fewer than two rows or tokens, a teacher with too few histories, a law
            with a zero.
    """
    tokens = view.spec.num_tokens
    wanted = min(tokens - 1 + _MARGIN, _MOST_ROWS) if rows is None else rows
    if wanted < 2 or tokens < 3:
        raise InputError(
            f"a width needs at least 2 histories and 3 tokens, got {wanted} and {tokens}"
        )
    before = view.spent().next_token_queries
    logits = centred((read or view.laws)(_histories(view, wanted)))
    return width_of(logits, view.spent().next_token_queries - before)


def width_of(logits: Float[Tensor, "history token"], queries: int = 0) -> Width:
    """The width of a matrix of centred logits."""
    rows, tokens = logits.shape
    values = torch.linalg.svdvals(logits)[: tokens - 1]
    place, gap = _largest_gap(values)
    shown = tuple(values.tolist())
    if gap < _LEAST_GAP:
        least = min(rows, tokens - 1)
        seen = (
            f"an alphabet of {tokens} shows widths below {tokens - 1}"
            if rows >= tokens - 1
            else f"{rows} histories show widths below {rows}; ask for more"
        )
        reason = (
            f"no gap: neighbouring singular values differ by {gap:.3g} times at most, and a width "
            f"would show as {_LEAST_GAP:g} or more; {seen}"
        )
        return Width(None, least, gap, None, rows, tokens, shown, queries, reason)
    # Against the level of the gap: what is left of a direction is rounding, or is not.
    level = (values[place - 1] * values[place]).sqrt()
    left = int((torch.linalg.svdvals(logits - logits.mean(0)) > level).sum())
    removed = left < place
    norm = (
        "the final normalisation removes the mean (LayerNorm)"
        if removed
        else "the final normalisation removes no mean (RMSNorm), or removes it and adds no bias: "
        f"then the width is {place + 1}"
    )
    reason = (
        f"singular value {place} is {values[place - 1]:.3g} and the next {values[place]:.3g}, "
        f"{gap:.3g} times less; {norm}"
    )
    return Width(place, place, gap, removed, rows, tokens, shown, queries, reason)


def _largest_gap(values: Float[Tensor, " place"]) -> tuple[int, float]:
    """How many values stand before the largest ratio of neighbours, and that ratio."""
    if len(values) < 2:
        return len(values), 1.0
    floor = values[0] * torch.finfo(values.dtype).eps  # below it nothing is measured
    kept = values.clamp(min=float(floor))
    ratios = kept[:-1] / kept[1:]
    place = int(ratios.argmax())
    return place + 1, float(ratios[place])


def _histories(view: LawsView, count: int) -> Prefixes:
    """Distinct prefixes of the teacher's own draws, of all lengths up to _LONGEST."""
    horizon = view.spec.horizon
    longest = _LONGEST if horizon is None else min(_LONGEST, horizon - 1)
    found: dict[tuple[int, ...], None] = {}
    first = 0
    while len(found) < count and first < 20 * count:
        drawn = view.complete(Prefixes.of([[]]), count, max_tokens=longest + 1, first_draw=first)
        first += count
        pairs = zip(drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True)
        for i, (row, length) in enumerate(pairs):
            ended = view.spec.stop is not None and length and row[length - 1] == view.spec.stop
            cut = min(1 + (first + i) % max(1, longest), longest, length - bool(ended))
            found[tuple(row[: max(0, cut)])] = None
    if len(found) < count:
        raise InputError(
            f"{count} distinct histories were wanted, and {first:,} draws of the teacher have "
            f"{len(found)}; ask for fewer with --histories"
        )
    return Prefixes.of([list(row) for row in list(found)[:count]])
