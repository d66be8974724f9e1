"""Singular values of a matrix that comes in blocks of columns, A = [A_1 A_2 ...].

    Gram          G = sum_b A_b A_b',   s_i = sqrt(eigenvalue_i(G))
    randomised    Y = sum_b A_b W_b for a random W, Q = orth(Y), s_i = s_i(Q' A)

Squares halve the digits: in float64 the first sees values down to 1e-8 of the largest, the
second down to where its sketch ends; each more pass sharpens it (Halko, Martinsson and Tropp,
arXiv 0909.4061, algorithm 4.4).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError

_EXTRA = 10  # columns of a sketch beyond the rank


class Leading(NamedTuple):
    """The leading part of a singular value decomposition.

    values: s_1 >= s_2 >= ...
    left: (row, rank) the left singular vectors
    """

    values: Float[Tensor, " rank"]
    left: Float[Tensor, "row rank"]


def gram(
    blocks: Iterable[Float[Tensor, "row _"]],
) -> Float[Tensor, "row row"]:
    """Sum over blocks of A_b A_b', in float64.

    Raises:
        InputError: without any block.
    """
    total: Tensor | None = None
    for block in blocks:
        part = block.double() @ block.double().T
        total = part if total is None else total.add_(part)
    if total is None:
        raise InputError("a Gram matrix needs at least one block")
    return total


def of_gram(total: Float[Tensor, "row row"]) -> Leading:
    """All singular values and left vectors of a matrix whose Gram matrix this is."""
    values, vectors = torch.linalg.eigh(total)
    return Leading(values.flip(0).clamp(min=0).sqrt(), vectors.flip(1))


def double_centred_gram(
    total: Float[Tensor, "row row"], sums: Float[Tensor, " row"], columns: int
) -> Float[Tensor, "row row"]:
    """The Gram matrix of A less its row means, less its column means, plus its mean.

    sums: of A's rows
    columns: of A
    """
    rows = total - torch.outer(sums, sums) / columns
    rows = rows - rows.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)


def randomised(
    blocks: Iterable[Float[Tensor, "row _"]],
    rank: int,
    generator: torch.Generator,
    passes: int = 2,
) -> Leading:
    """The first `rank` singular values and left vectors, from 2 + passes runs over the blocks.

    blocks: can be iterated again and again, with the same blocks

    Raises:
        InputError: for a rank that the matrix cannot have.
    """
    sketch = _sketch(blocks, rank, generator)
    for _ in range(passes):
        basis = torch.linalg.qr(sketch).Q
        sketch = torch.zeros_like(sketch)
        for block in blocks:
            sketch += block.double() @ (block.double().T @ basis)
    basis = torch.linalg.qr(sketch).Q
    small = gram(basis.T @ block.double() for block in blocks)
    values, vectors = of_gram(small)
    return Leading(values[:rank], (basis @ vectors)[:, :rank])


def _sketch(
    blocks: Iterable[Tensor], rank: int, generator: torch.Generator
) -> Float[Tensor, "row width"]:
    total: Tensor | None = None
    for block in blocks:
        if not 1 <= rank <= len(block):
            raise InputError(f"{len(block)} rows have ranks 1..{len(block)}, got {rank}")
        shape = (block.shape[1], min(len(block), rank + _EXTRA))
        part = block.double() @ torch.randn(shape, generator=generator, dtype=torch.float64)
        total = part if total is None else total.add_(part)
    if total is None:
        raise InputError("singular values need at least one block")
    return total


def principal_cosines(
    left: Float[Tensor, "row rank"], right: Float[Tensor, "row rank"]
) -> Float[Tensor, " rank"]:
    """Cosines of the principal angles between the spans of two orthonormal bases."""
    return torch.linalg.svdvals(left.T @ right).clamp(max=1)
