"""Barycentric spanners: a few vectors that all others combine with small coefficients.

x_1 ... x_S is a C-approximate barycentric spanner of a set Omega when every x in Omega
is sum_i l_i x_i with |l_i| <= C. By Cramer's rule l_i = det(.., x in place of x_i, ..) /
det(x_1 .. x_S), so a set whose |det| no single exchange raises by more than C is one.

Source: Awerbuch and Kleinberg, "Online linear optimization and adaptive routing"
(2008), Propositions 2.2 and 2.4; the talk, "Barycentric spanners". Two forms: from explicit vectors,
and from an oracle that maximises linear functionals over Omega.

Where we differ: explicit vectors start from a row-pivoted Gram-Schmidt choice, which
also finds the rank; exchanges compare |det|, never the signed determinant.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError


class Spanner(NamedTuple):
    """A spanner chosen among the rows of a matrix X.

    indices: (rank,), the chosen rows
    coefficients: (history, rank), least squares: X ~ coefficients @ X[indices]
    residuals: (history,), Euclidean norm of each row of X - coefficients @ X[indices]
    condition: largest over smallest singular value of X[indices]
    swaps: exchanges after the pivoted start
    """

    indices: Int[Tensor, " rank"]
    coefficients: Float[Tensor, "history rank"]
    residuals: Float[Tensor, " history"]
    condition: float
    swaps: int

    @property
    def bound(self) -> float:
        """The largest |coefficient| in use."""
        return float(self.coefficients.abs().max()) if self.coefficients.numel() else 0.0


def barycentric_spanner(
    vectors: Float[Tensor, "history feature"],
    *,
    bound: float = 2.0,
    tolerance: float = 1e-9,
    max_rank: int | None = None,
    preferred: Int[Tensor, " start"] | None = None,
    choosable: int | None = None,
) -> Spanner:
    """A C-approximate barycentric spanner of the rows, C = `bound`.

    tolerance: rows are added until all lie within this Euclidean distance of the span,
        so it decides the numerical rank; it has the units of the vectors
    max_rank: stop adding at this many rows
    preferred: rows to start from (those that depend on earlier ones are passed over)
    choosable: only the first so many rows span and are spanned so; the others are written over
        them as well, and may lie outside

    Raises:
        InputError: for a bound of at most 1, or vectors that are not finite.
    """
    if not bound > 1:
        raise InputError(f"a spanner needs a bound C > 1 to be found efficiently, got {bound}")
    if not bool(torch.isfinite(vectors).all()):
        raise InputError("a spanner needs finite vectors, and some entry is NaN or infinite")
    first = vectors[:choosable]
    indices = _pivoted_rows(first, tolerance, max_rank, preferred)
    coefficients = basis_coefficients(first, indices)
    indices, swaps = _exchange(coefficients, indices, bound)
    if swaps or len(first) < len(vectors):
        coefficients = basis_coefficients(vectors, indices)
    residuals = (vectors - coefficients @ vectors[indices]).norm(dim=1)
    condition = float(torch.linalg.cond(vectors[indices])) if len(indices) else 1.0
    return Spanner(indices, coefficients, residuals, condition, swaps)


def spanned_rank(vectors: Float[Tensor, "history feature"], tolerance: float) -> int:
    """How many rows `barycentric_spanner` needs: all others lie within tolerance of their span.

    Singular values above a tolerance count noise that many rows share, which grows like
    the root of their number; distances do not.
    """
    return len(_pivoted_rows(vectors, tolerance, None, None))


_PHASE = 1e-3  # norms are downdated over three digits, then computed afresh


def _pivoted_rows(
    vectors: Float[Tensor, "history feature"],
    tolerance: float,
    max_rank: int | None,
    preferred: Int[Tensor, " start"] | None,
) -> Int[Tensor, " rank"]:
    """Row-pivoted Gram-Schmidt: always the row farthest from the span next.

    Squared distances are downdated, d_i^2 -= <r_i, q>^2, which costs one product a
    pivot; cancellation would spoil them, so after each drop by `_PHASE` the residuals
    are computed afresh. The lowest index wins ties.
    """
    limit = min(vectors.shape) if max_rank is None else min(max_rank, *vectors.shape)
    chosen = _independent(vectors, preferred, tolerance)[:limit]
    residual = _deflated(vectors, torch.linalg.qr(vectors[chosen].T)[0])
    while len(chosen) < limit:
        squares = residual.square().sum(1)
        top = float(squares.max().sqrt())
        if top <= tolerance:
            break
        directions = residual.new_empty((residual.shape[1], 0))
        while len(chosen) < limit:
            pivot = int(squares.argmax())
            if float(squares[pivot]) <= max(_PHASE * top, tolerance) ** 2:
                break
            direction = _deflated(residual[pivot : pivot + 1], directions)[0]
            direction /= direction.norm()
            chosen.append(pivot)
            directions = torch.cat([directions, direction[:, None]], 1)
            squares -= (residual @ direction).square()
        residual = _deflated(residual, directions)
    return torch.tensor(chosen, dtype=torch.int64, device=vectors.device)


def _independent(
    vectors: Float[Tensor, "history feature"],
    preferred: Int[Tensor, " start"] | None,
    tolerance: float,
) -> list[int]:
    """The preferred rows, without those within tolerance of the span of earlier ones."""
    if preferred is None or not len(preferred):
        return []
    while True:
        _, r = torch.linalg.qr(vectors[preferred].T)
        dependent = r.diagonal().abs() <= tolerance
        dependent = torch.nn.functional.pad(
            dependent, (0, len(preferred) - len(dependent)), value=True
        )
        if not bool(dependent.any()):
            return preferred.tolist()
        first = int(dependent.int().argmax())
        preferred = torch.cat([preferred[:first], preferred[first + 1 :]])


def _deflated(
    rows: Float[Tensor, "history feature"], directions: Float[Tensor, "feature found"]
) -> Float[Tensor, "history feature"]:
    """Rows minus their projections; done twice, which leaves only rounding."""
    for _ in range(2 if directions.shape[1] else 0):
        rows = rows - (rows @ directions) @ directions.T
    return rows.clone() if not directions.shape[1] else rows


def basis_coefficients(
    vectors: Float[Tensor, "history feature"], indices: Int[Tensor, " rank"]
) -> Float[Tensor, "history rank"]:
    """Least-squares coefficients of every row over the chosen rows.

    By QR of the chosen rows (normal equations would square the condition number), with
    one step of iterative refinement. A chosen row's own coefficients are exactly one
    and zero.
    """
    q, r = torch.linalg.qr(vectors[indices].T)

    def solve(rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(r, q.T @ rows.T, upper=True).T

    coefficients = solve(vectors)
    coefficients = coefficients + solve(vectors - coefficients @ vectors[indices])
    coefficients[indices] = torch.eye(len(indices), dtype=vectors.dtype, device=vectors.device)
    return coefficients


def _exchange(
    coefficients: Float[Tensor, "history rank"], indices: Int[Tensor, " rank"], bound: float
) -> tuple[Int[Tensor, " rank"], int]:
    """Swap the row with the largest coefficient in while that raises |det| by over C.

    |det| grows by exactly |coefficient|. With c the row of coefficients that enters at
    column j, the others change by the rank-one update L - L_j (c - e_j) / c_j.
    """
    table, indices, swaps = coefficients.clone(), indices.clone(), 0
    if not table.numel():
        return indices, 0
    while True:
        row, column = divmod(int(table.abs().argmax()), table.shape[1])
        if float(table[row, column].abs()) <= bound:
            return indices, swaps
        entering = table[row].clone()
        pivot = entering[column].clone()
        entering[column] -= 1
        table.addr_(table[:, column] / pivot, entering, alpha=-1)
        indices[column] = row
        swaps += 1


class OracleSpanner(NamedTuple):
    """A spanner found through a linear-optimisation oracle.

    vectors: (dimension, dimension), one spanner element a row
    calls: oracle calls
    swaps: exchanges after the first pass
    """

    vectors: Float[Tensor, "dimension dimension"]
    calls: int
    swaps: int


def spanner_from_oracle(
    oracle: Callable[[Float[Tensor, " dimension"]], Float[Tensor, " dimension"]],
    dimension: int,
    *,
    bound: float = 2.0,
) -> OracleSpanner:
    """Awerbuch and Kleinberg's spanner of a compact set that spans the space.

    oracle: takes a direction g, returns an x of the set that maximises <g, x>; it is
        called for g and -g, so |det| is maximised

    Raises:
        InputError: for a bound of at most 1, or a set that does not span the space.
    """
    if not bound > 1:
        raise InputError(f"a spanner needs a bound C > 1 to be found efficiently, got {bound}")
    columns = torch.eye(dimension, dtype=torch.float64)
    calls = 0

    def best(i: int) -> tuple[Tensor, Tensor]:
        """The x with the largest |det(.., x, ..)| / |det|, and that ratio."""
        nonlocal calls
        direction = torch.linalg.inv(columns)[i]  # <direction, x> = det(x for i) / det
        calls += 2
        found = torch.stack([oracle(direction), oracle(-direction)])
        ratios = (found @ direction).abs()
        return found[ratios.argmax()], ratios.max()

    for i in range(dimension):  # 1. replace the unit vectors one by one
        x, ratio = best(i)
        if float(ratio) <= 1e-12:
            raise InputError(
                f"the set must span {dimension} dimensions, but it lies in fewer; project it first"
            )
        columns[:, i] = x
    swaps, i, clean = 0, 0, 0
    while clean < dimension:  # 2. exchange while that raises |det| by more than C
        x, ratio = best(i)
        if float(ratio) > bound:
            columns[:, i] = x
            swaps, clean = swaps + 1, 0
        else:
            clean += 1
        i = (i + 1) % dimension
    return OracleSpanner(columns.T.contiguous(), calls, swaps)


def swap_bound(dimension: int, bound: float) -> int:
    """The most exchanges that can follow the first pass: O(S log_C S).

    The first pass is greedy elimination: its element i maximises the distance from the
    span of the elements before it (the other columns are unit vectors, whose
    determinant is the i-th pivot). In coordinates where the first S elements are
    triangular with pivots p_i, every x of the set has |i-th coordinate| <= p_i once
    reduced, so any S elements have |det| <= S! p_1 ... p_S, and Hadamard's inequality
    on rows scaled by p_i improves S! to S^(S/2). Each exchange multiplies |det| by more
    than C, so there are at most log_C S^(S/2) = (S/2) log_C S of them.

    >>> swap_bound(16, 2.0)
    32

    Raises:
        InputError: for a dimension below 1 or a bound of at most 1.
    """
    if dimension < 1 or not bound > 1:
        raise InputError(
            f"the swap bound needs a dimension >= 1 and C > 1, got {dimension} and {bound}"
        )
    return math.floor(dimension / 2 * math.log(dimension) / math.log(bound))
