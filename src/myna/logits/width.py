"""The hidden width of a model, from next-token laws alone.

A model that ends in logits = W u(x), u(x) in R^d the normalised hidden state, W (token, d), has

    z(x) = W' u(x),    W' = W less its mean row:    the rows z(x) span min(d, O - 1) dimensions,

so singular values of many rows fall to the rounding of the arithmetic after the d-th. The
width is where they fall most, if they fall by a factor _LEAST_GAP; otherwise only a lower
bound is known: of O tokens one direction is lost to centring, so d >= O - 1 cannot be told.
A smaller fall, of _UNCLEAR_GAP or more, may be a width under laws that were rounded: then the
bound is its place.

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
_UNCLEAR_GAP = 10.0  # a fall between the two may be a width under rounded or noisy laws
_NOTHING = 1e-10  # nats: rounding of a uniform law
_MARGIN = 32  # rows more than the alphabet's dimensions, unless said
_MOST_ROWS = 2048  # unless said
_LONGEST = 16  # tokens of a history that is drawn here


@dataclasses.dataclass(frozen=True)
class Width:
    """What next-token laws say of a hidden width.

    hidden_width: d = the place of the largest gap, None where no gap is large enough
    at_least: d where it is known, the place of an unclear gap where there is one, else
        min(rows, tokens - 1); 0 where all laws are uniform
    gap: s_d / s_d+1, the largest ratio of neighbours; 1 where all are zero
    mean_removed: whether rows less their mean have one dimension fewer; None without a width,
        or where all rows are alike
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
    known = None if gap < _LEAST_GAP else place
    if not place:
        least, removed = 0, None
        reason = "all laws are uniform, to the last digits: nothing of a width shows"
    elif known is None:
        least, removed = (place if gap >= _UNCLEAR_GAP else min(rows, tokens - 1)), None
        reason = _without_width(rows, tokens, place, gap)
    else:
        # Against the level of the gap: what is left of a direction is rounding, or is not.
        level = (values[place - 1] * values[place]).sqrt()
        left = int((torch.linalg.svdvals(logits - logits.mean(0)) > level).sum())
        least, removed = place, left < place if left else None
        reason = (
            f"singular value {place} is {values[place - 1]:.3g} and the next {values[place]:.3g}, "
            f"{gap:.3g} times less; {_normalisation(removed, place)}"
        )
    return Width(known, least, gap, removed, rows, tokens, shown, queries, reason)


def _without_width(rows: int, tokens: int, place: int, gap: float) -> str:
    """Why no width is told."""
    if gap >= _UNCLEAR_GAP:
        seen = f"this is at place {place}, a width where the laws are rounded or noisy"
    elif rows >= tokens - 1:
        seen = f"an alphabet of {tokens} shows widths below {tokens - 1}"
    else:
        seen = f"{rows} histories show widths below {rows}; ask for more"
    return (
        f"no gap: neighbouring singular values differ by {gap:.3g} times at most, and a width "
        f"would show as {_LEAST_GAP:g} or more; {seen}"
    )


def _normalisation(removed: bool | None, place: int) -> str:
    """What the rows less their mean say of the final normalisation."""
    if removed is None:
        return "all histories have one law, which says nothing of the final normalisation"
    if removed:
        return "the final normalisation removes the mean (LayerNorm)"
    return (
        "the final normalisation removes no mean (RMSNorm), or removes it and adds no bias: "
        f"then the width is {place + 1}"
    )


def _largest_gap(values: Float[Tensor, " place"]) -> tuple[int, float]:
    """How many values stand before the largest ratio of neighbours, and that ratio."""
    if not len(values) or float(values[0]) < _NOTHING:
        return 0, 1.0
    if len(values) < 2:
        return 1, 1.0
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
