"""History embeddings: what makes two prompts alike, read off the extended logit matrix.

    L - 1 m' = U S V',        e(h) = (U S^p)_h, its first coordinates,

L[h, .] the centred logits after h and each prefix of the futures, m the mean row. With p = 1
inner products of embeddings are those of the rows themselves, up to what the dropped directions
hold: two histories are near where the teacher would say the same after both, whatever they look
like. What is said next is most of that; p = 0 lets weaker directions speak as loud, such as what
a text is about.

Source: Golowich, Liu, Shetty (arXiv 2510.24966, section 4); taking out the mean row, p, and
comparing by cosine are ours.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError

_ROUNDING = 1e-12  # of the largest eigenvalue: what is below is no direction


class Embedding(NamedTuple):
    """Coordinates of histories.

    coordinates: (history, dimension) U S^p, the largest direction first; nats where p = 1
    share: of the energy of L - 1 m' that they hold
    """

    coordinates: Float[Tensor, "history dimension"]
    share: float


def embed(
    products: Float[Tensor, "history history"], dimension: int, power: float = 1.0
) -> Embedding:
    """From the inner products of rows, L L'; `power` is p.

    Raises:
        InputError: a dimension that so many histories cannot have.
    """
    if not 1 <= dimension <= len(products):
        raise InputError(
            f"{len(products)} histories have embeddings of dimension 1..{len(products)}, "
            f"got {dimension}"
        )
    rows = products - products.mean(0, keepdim=True)
    values, vectors = torch.linalg.eigh(rows - rows.mean(1, keepdim=True))
    values = values.clamp(min=0).flip(0)
    kept = values[:dimension].sqrt() ** power
    kept[values[:dimension] <= _ROUNDING * values[0]] = 0.0  # also where p is 0
    total = float(values.sum())
    share = float(values[:dimension].sum()) / total if total > 0 else 1.0
    return Embedding(vectors.flip(1)[:, :dimension] * kept, share)


def neighbours(
    coordinates: Float[Tensor, "history dimension"], count: int
) -> Int[Tensor, "history count"]:
    """The nearest other histories of each by cosine, nearest first.

    Raises:
        InputError: more neighbours than there are other histories.
    """
    if not 1 <= count < len(coordinates):
        raise InputError(
            f"{len(coordinates)} histories have 1..{len(coordinates) - 1} neighbours, got {count}"
        )
    unit = torch.nn.functional.normalize(coordinates, dim=1)
    alike = unit @ unit.mT
    alike.fill_diagonal_(-torch.inf)
    return alike.topk(count, dim=1).indices


def retrieval(
    coordinates: Float[Tensor, "history dimension"], groups: Int[Tensor, " history"], count: int
) -> float:
    """The share of histories that have one of their own group among the `count` nearest."""
    near = neighbours(coordinates, count)
    return float((groups[near] == groups[:, None]).any(1).double().mean())
