"""Rank and factors of a matrix whose entries are known with noise of known size.

    Y[i, j] = (C U)[i, j] + noise,      sd(noise[i, j]) = S[i, j],      rank(C U) = r.

**Rank.** The whitened matrix Y / S is signal plus entries of variance at most one. Were
the rank r, what is left after its r largest singular values would be noise on n - r rows
and m - r columns, whose largest singular value exceeds `noise_edge` with probability
`level`. The rank found is the first r whose next singular value does not. That is
Johnstone's test (Annals of Statistics 29, 2001) applied in sequence, as Kritchman and
Nadler (2008) do; multinomial entries are negatively correlated within a block, which only
lowers the singular values of noise.

**Factors.** Alternating least squares weighs every entry by 1 / S^2; entries never
measured have infinite S. This is the change of basis by weighted regression that Liu and
Moitra's learner (arXiv 2411.07536) needs; we differ in estimating all rows' coefficients
together, so that the noise in the basis rows is averaged out and not regressed on.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_TRACY_WIDOM = {0.05: 0.9793, 0.01: 2.0234, 0.001: 3.2712}  # upper quantiles, beta = 1


def noise_edge(rows: int, columns: int, level: float = 0.01) -> float:
    """The largest singular value that pure noise exceeds with probability `level`.

    For a (rows, columns) standard Gaussian matrix, from Johnstone's theorem 1:
    sigma^2 <= mu + s TW, mu = (sqrt(n-1) + sqrt(m))^2, s = sqrt(mu) (1/sqrt(n-1) + 1/sqrt(m))^(1/3).

    level: one of 0.05, 0.01, 0.001
    """
    if rows < 1 or columns < 1:
        return 0.0
    n, m = math.sqrt(max(1, rows - 1)), math.sqrt(columns)
    spread = (n + m) * (1 / n + 1 / m) ** (1 / 3)
    return math.sqrt((n + m) ** 2 + spread * _TRACY_WIDOM[level])


class NoisyRank(NamedTuple):
    """A rank with its evidence.

    rank: singular values above the edge of noise, in sequence
    singular_values: of the whitened matrix, largest first
    edges: what the next singular value was held against at rank 0, 1, ..., rank
    """

    rank: int
    singular_values: tuple[float, ...]
    edges: tuple[float, ...]


def noisy_rank(
    whitened: Float[Tensor, "row column"], level: float = 0.01, max_rank: int | None = None
) -> NoisyRank:
    """The rank of a matrix plus noise of variance at most one an entry."""
    rows, columns = whitened.shape
    values = torch.linalg.svdvals(whitened).tolist() if whitened.numel() else []
    rank, edges = 0, []
    limit = len(values) if max_rank is None else min(max_rank, len(values))
    while True:
        edges.append(noise_edge(rows - rank, columns - rank, level))
        if rank >= limit or values[rank] <= edges[-1]:
            return NoisyRank(rank, tuple(values), tuple(edges))
        rank += 1


def weighted_factors(
    matrix: Float[Tensor, "row column"],
    spread: Float[Tensor, "row column"],
    rank: int,
    *,
    sweeps: int = 30,
    ridge: float = 1e-3,
) -> tuple[Float[Tensor, "row rank"], Float[Tensor, "rank column"]]:
    """C and U with C U close to the matrix in the metric of its noise.

    spread: standard deviation of each entry; inf where it was not measured
    ridge: added to every normal matrix, as a share of its mean diagonal
    """
    weights = spread.square().reciprocal()
    filled = torch.where(weights > 0, matrix, 0.0)
    centre = (weights * filled).sum(0) / weights.sum(0).clamp(min=1e-300)
    filled = torch.where(weights > 0, matrix, centre)
    scale = weights.mean(1).sqrt()
    _, _, v = torch.linalg.svd(filled * scale[:, None], full_matrices=False)
    right = v[:rank]
    for _ in range(sweeps):
        left = _solved(filled, weights, right, ridge)
        left, _ = torch.linalg.qr(left * scale[:, None])
        right = _solved(filled.T, weights.T, (left / scale[:, None]).T, ridge).T
        right = torch.linalg.qr(right.T)[0].T
    return _solved(filled, weights, right, ridge), right


def _solved(
    matrix: Float[Tensor, "row column"],
    weights: Float[Tensor, "row column"],
    right: Float[Tensor, "rank column"],
    ridge: float,
) -> Float[Tensor, "row rank"]:
    """For every row c the minimiser of sum_j weight_j (y_j - (c U)_j)^2."""
    normal = torch.einsum("rj,ij,sj->irs", right, weights, right)
    size = normal.shape[1]
    lift = ridge * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)
    normal = normal + lift[:, None, None] * torch.eye(
        size, dtype=matrix.dtype, device=matrix.device
    )
    target = torch.einsum("rj,ij,ij->ir", right, weights, matrix)
    return torch.linalg.solve(normal, target[:, :, None])[:, :, 0]


def convex_coefficients(
    vectors: Float[Tensor, "row rank"], corners: Float[Tensor, "corner rank"], sweeps: int = 500
) -> Float[Tensor, "row corner"]:
    """For every row the nearest convex combination of the corners (Euclidean).

    Accelerated projected gradient (Beck and Teboulle 2009) over the simplex.
    """
    gram = corners @ corners.T
    target = vectors @ corners.T
    pace = 1.0 / torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-300)
    found = torch.full_like(target, 1.0 / len(corners))
    ahead, momentum = found, 1.0
    for _ in range(sweeps):
        new = _onto_simplex(ahead - pace * (ahead @ gram - target))
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - found)
        found, momentum = new, following
    return found


def _onto_simplex(rows: Float[Tensor, "row corner"]) -> Float[Tensor, "row corner"]:
    """The nearest points with entries >= 0 that sum to one (Held, Wolfe and Crowder 1974)."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    place = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    count = (ordered * place > excess).sum(1, keepdim=True)
    shift = excess.gather(1, count - 1) / count
    return (rows - shift).clamp(min=0)
