"""Spectra of a model's histories x futures: in probability, in log-probability, in logits.

    ratios              P(f | h) / mean over h' of P(f | h')
    log-probabilities   log P(f | h)
    centred logits      log P(o | h g) less its mean over tokens o, columns (g, o)

    energy(r) = (s_1^2 + ... + s_r^2) / (s_1^2 + s_2^2 + ...)
    s_i ~ C i^-alpha:   log s_i on log i by least squares, each rank weighted by 1 / i
    D_avg(r) = mean over h and g of KL(softmax(L_h,g) || softmax(A_h,g)),  A = L cut to rank r

Source: Golowich, Liu, Shetty (arXiv 2510.24966). alpha > 1/2 means that a rank which does
not grow with the matrix reaches any error. They give no interval: ours is a jackknife that
leaves out a tenth of the histories (of whole futures also a tenth of the futures).
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.logits.blocks import Blocks
from myna.logits.embedding import Embedding, embed
from myna.logits.singular import double_centred_gram, of_gram, principal_cosines

RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # where D_avg and angles are taken
_FIRST = 5  # rank where the fit of an exponent begins; before it stand the means
_GROUPS = 10  # of the jackknife
_HELD = 2**28  # bytes of logits kept to measure D_avg on
_DIMENSION = 50  # of embeddings


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """s_i ~ C i^-exponent.

    low, high: exponent -+ 1.96 standard errors of the jackknife
    first, last: the ranks fitted
    how: in words
    """

    exponent: float
    low: float
    high: float
    first: int
    last: int
    how: str


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix.

    entries: "probability ratios", "log-probabilities" or "centred logits"
    rows, columns: its shape
    values: s_1 >= s_2 >= ...
    energy: the share of the first r values' squares in all, r = 1, 2, ...
    rank_90, rank_99, rank_999: the least rank with that share
    power: None where there are too few ranks to fit
    """

    entries: str
    rows: int
    columns: int
    values: tuple[float, ...]
    energy: tuple[float, ...]
    rank_90: int
    rank_99: int
    rank_999: int
    power: PowerLaw | None


@dataclasses.dataclass(frozen=True)
class Size:
    """The same for a part of the histories and futures: how stable a spectrum is.

    part: "1/4", "1/2", "all"; "first half" and "second half" have no history in common
    """

    entries: str
    part: str
    histories: int
    futures: int
    exponent: float | None
    rank_90: int
    rank_99: int


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What cutting the centred logits to a rank does.

    d_avg: mean KL (nats) from the laws to those of the truncated logits
    fresh: share of the energy of histories not used that the span of half of them holds
    own: that share for the histories used
    laws: how many laws d_avg is a mean of
    """

    rank: int
    d_avg: float
    own: float
    fresh: float
    laws: int


@dataclasses.dataclass(frozen=True)
class Study:
    """All spectra of one set of blocks.

    spectra: of the three kinds of entries, of kinds that exist
    sizes: of log-probabilities and centred logits
    truncations: of the centred logits
    left: (history, rank) left singular vectors of the centred logits, for `angles`
    embedding: of the histories by their centred logits, None without
    """

    histories: int
    futures: int
    double_centred: bool
    spectra: tuple[Spectrum, ...]
    sizes: tuple[Size, ...]
    truncations: tuple[Truncation, ...]
    left: Float[Tensor, "history rank"]
    embedding: Embedding | None = None


@dataclasses.dataclass(frozen=True)
class Angles:
    """Principal angles between the leading column spaces of two matrices on the same histories.

    cosines: largest first; 1: a common direction
    near: how many are at least .9
    by_chance: the mean squared cosine of random subspaces, rank / histories
    mean_square: the mean squared cosine here
    """

    rank: int
    cosines: tuple[float, ...]
    near: int
    mean_square: float
    by_chance: float


class _Sums:
    """What one pass over the blocks adds up."""

    def __init__(self, blocks: Blocks):
        matrix = blocks.matrix
        self.count, self.futures = matrix.shape
        self.tokens = matrix.kept
        self.whole = torch.empty(matrix.shape, dtype=torch.float64)
        self.gram = torch.zeros((self.count, self.count), dtype=torch.float64)
        self.sums = torch.zeros(self.count, dtype=torch.float64)
        self.columns = 0
        self.parts: dict[int, tuple[Tensor, Tensor, int]] = {}
        self.held: list[Tensor] = []
        marks = sorted({max(1, self.futures // 4), max(1, self.futures // 2), self.futures})
        each = max(1, len(matrix.nodes) // self.futures) * matrix.kept * self.count * 8
        some = max(1, min(self.futures, _HELD // each))
        chosen = set(torch.linspace(0, self.futures - 1, some).long().tolist())
        for block in blocks:
            self.whole[:, block.futures.start : block.futures.stop] = block.whole
            first = int(matrix.nodes_of(block.futures)[0]) if block.logits.shape[1] else 0
            for future in block.futures:
                nodes = matrix.nodes_of(range(future, future + 1)) - first
                if future in chosen and len(nodes):
                    low, high = int(nodes[0]) * matrix.kept, int(nodes[-1] + 1) * matrix.kept
                    self.held.append(block.logits[:, low:high].double())
            self._add(block.futures, marks, block.logits, matrix, first)

    def _add(self, futures: range, marks: list[int], logits: Tensor, matrix, first: int) -> None:
        """Columns in order, stopping at the marks to note what there is."""
        start = futures.start
        for stop in [*(m for m in marks if start < m < futures.stop), futures.stop]:
            nodes = matrix.nodes_of(range(start, stop)) - first
            if len(nodes):
                low, high = int(nodes[0]) * self.tokens, int(nodes[-1] + 1) * self.tokens
                part = logits[:, low:high].double()
                self.gram.addmm_(part, part.T)
                self.sums += part.sum(1)
                self.columns += high - low
            if stop in marks:
                self.parts[stop] = (self.gram.clone(), self.sums.clone(), self.columns)
            start = stop


def study(blocks: Blocks, *, double_centre: bool = False) -> Study:
    """Everything that one pass over the blocks tells.

    double_centre: take row and column means out of each matrix first (not for D_avg)

    Raises:
        InputError: fewer than 8 histories or futures; a future that some history cannot take.
    """
    count, futures = blocks.matrix.shape
    if min(count, futures) < 8:
        raise InputError(
            f"a spectrum needs at least 8 histories and 8 futures, got {count} and {futures}"
        )
    found = _Sums(blocks)
    if bool(found.whole.isneginf().any()):
        row, column = found.whole.isneginf().nonzero()[0].tolist()
        raise InputError(
            f"future {column} has probability zero after history {row}, and its logarithm is minus "
            "infinity; choose futures that every history can take"
        )
    ratios = ratios_of(found.whole)
    spectra = [
        _of_matrix("probability ratios", ratios, double_centre),
        _of_matrix("log-probabilities", found.whole, double_centre),
    ]
    sizes = _sizes_of_matrix("log-probabilities", found.whole, double_centre)
    truncations: list[Truncation] = []
    left, embedding = torch.zeros((count, 0), dtype=torch.float64), None
    if found.columns:
        embedding = embed(found.gram, min(_DIMENSION, count))
        plain = of_gram(found.gram)
        left = plain.left
        part = (found.gram, found.sums, found.columns)
        spectra.append(_of_gram("centred logits", *part, double_centre))
        sizes += _sizes_of_gram(found, double_centre)
        truncations = _truncations(found, left)
    return Study(
        count, futures, double_centre, tuple(spectra), tuple(sizes), tuple(truncations), left, embedding
    )  # fmt: skip


def ratios_of(whole: Float[Tensor, "history future"]) -> Float[Tensor, "history future"]:
    """P(f | h) over its mean over histories."""
    return (whole - whole.logsumexp(0) + math.log(len(whole))).exp()


def angles(study: Study, other: Study, ranks: tuple[int, ...] = RANKS) -> tuple[Angles, ...]:
    """Angles between the leading column spaces of centred logits on the same histories.

    Raises:
        InputError: where the histories differ in number, or there are no logits.
    """
    if study.left.shape != other.left.shape or not study.left.shape[1]:
        raise InputError("angles need centred logits of the same histories")
    found = []
    for rank in ranks:
        if rank <= study.histories // 2:
            cosines = principal_cosines(study.left[:, :rank], other.left[:, :rank])
            square = float(cosines.square().mean())
            near = int((cosines >= 0.9).sum())
            chance = rank / study.histories
            found.append(Angles(rank, tuple(cosines.tolist()), near, square, chance))
    return tuple(found)


def _centred(matrix: Tensor, double_centre: bool) -> Tensor:
    if not double_centre:
        return matrix
    return matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()


def _of_matrix(entries: str, matrix: Tensor, double_centre: bool) -> Spectrum:
    values = torch.linalg.svdvals(_centred(matrix, double_centre))
    others = []
    for group in range(_GROUPS):
        rows, columns = (torch.arange(n) % _GROUPS != group for n in matrix.shape)
        others.append(torch.linalg.svdvals(_centred(matrix[rows][:, columns], double_centre)))
    left_out = "a tenth of the histories and of the futures"
    return _spectrum(entries, (matrix.shape[0], matrix.shape[1]), values, others, left_out)


def _of_gram(
    entries: str, gram: Tensor, sums: Tensor, columns: int, double_centre: bool
) -> Spectrum:
    every = torch.ones(len(gram), dtype=torch.bool)
    values = _gram_values(gram, sums, columns, every, double_centre)
    others = []
    for group in range(_GROUPS):
        rows = torch.arange(len(gram)) % _GROUPS != group
        others.append(_gram_values(gram, sums, columns, rows, double_centre))
    shape = (len(gram), columns)
    return _spectrum(entries, shape, values, others, "a tenth of the histories")


def _gram_values(
    gram: Tensor, sums: Tensor, columns: int, rows: Tensor, double_centre: bool
) -> Tensor:
    part = gram[rows][:, rows]
    if double_centre:
        part = double_centred_gram(part, sums[rows], columns)
    return torch.linalg.eigvalsh(part).flip(0).clamp(min=0).sqrt()[:columns]


def _spectrum(
    entries: str, shape: tuple[int, int], values: Tensor, others: list[Tensor], left_out: str
) -> Spectrum:
    energy = values.square().cumsum(0) / values.square().sum()
    return Spectrum(
        entries,
        rows=shape[0],
        columns=shape[1],
        values=tuple(values.tolist()),
        energy=tuple(energy.tolist()),
        rank_90=_rank_of(energy, 0.9),
        rank_99=_rank_of(energy, 0.99),
        rank_999=_rank_of(energy, 0.999),
        power=_power(values, others, left_out),
    )


def _rank_of(energy: Tensor, share: float) -> int:
    return int((energy < share).sum()) + 1


def _power(values: Tensor, others: list[Tensor], left_out: str) -> PowerLaw | None:
    last = len(values) // 4
    exponent = _slope(values, last)
    if exponent is None:
        return None
    again = [_slope(other, last) for other in others]
    known = [slope for slope in again if slope is not None]
    if len(known) < _GROUPS:
        return None
    mean = sum(known) / _GROUPS
    error = math.sqrt((_GROUPS - 1) / _GROUPS * sum((slope - mean) ** 2 for slope in known))
    how = (
        f"least squares of log s_i on log i, ranks {_FIRST} to {last} (a quarter of all), each "
        f"weighted 1/i; 95% interval from {_GROUPS} fits that leave out {left_out}"
    )
    return PowerLaw(exponent, exponent - 1.96 * error, exponent + 1.96 * error, _FIRST, last, how)


def _slope(values: Tensor, last: int) -> float | None:
    """Minus the slope over ranks _FIRST .. last; None with too few, or down at rounding."""
    if last < _FIRST + 5 or last > len(values):
        return None
    if float(values[last - 1]) <= 1e-7 * float(values[0]):
        return None
    rank = torch.arange(_FIRST, last + 1, dtype=torch.float64)
    weight = 1 / rank
    x, y = rank.log(), values[_FIRST - 1 : last].log()
    x = x - (weight * x).sum() / weight.sum()
    y = y - (weight * y).sum() / weight.sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


def _size(entries: str, part: str, rows: int, futures: int, values: Tensor) -> Size:
    energy = values.square().cumsum(0) / values.square().sum()
    slope = _slope(values, len(values) // 4)
    ranks = (_rank_of(energy, 0.9), _rank_of(energy, 0.99))
    return Size(entries, part, rows, futures, slope, *ranks)


def _sizes_of_matrix(entries: str, matrix: Tensor, double_centre: bool) -> list[Size]:
    count, futures = matrix.shape
    half = (count // 2, futures // 2)
    parts = {
        "1/4": matrix[: count // 4, : futures // 4],
        "1/2": matrix[: half[0], : half[1]],
        "all": matrix,
        "first half": matrix[: half[0], : half[1]],
        "second half": matrix[half[0] :, half[1] :],
    }
    return [
        _size(
            entries,
            name,
            part.shape[0],
            part.shape[1],
            torch.linalg.svdvals(_centred(part, double_centre)),
        )
        for name, part in parts.items()
    ]


def _sizes_of_gram(found: _Sums, double_centre: bool) -> list[Size]:
    """Quarter and half of both; the halves of histories with all futures."""
    sizes = []
    rows = torch.arange(found.count)
    quarter, half = max(1, found.futures // 4), max(1, found.futures // 2)
    for name, mask, futures in (
        ("1/4", rows < found.count // 4, quarter),
        ("1/2", rows < found.count // 2, half),
        ("all", rows >= 0, found.futures),
        ("first half", rows < found.count // 2, found.futures),
        ("second half", rows >= found.count // 2, found.futures),
    ):
        values = _gram_values(*found.parts[futures], mask, double_centre)
        sizes.append(_size("centred logits", name, int(mask.sum()), futures, values))
    return sizes


def _truncations(found: _Sums, left: Tensor) -> list[Truncation]:
    """D_avg on the logits held; energy of fresh histories in the span of the first half."""
    half = found.count // 2
    first, cross = found.gram[:half, :half], found.gram[half:, :half]
    values, vectors = of_gram(first)
    energy, fresh_energy = first.trace(), found.gram[half:, half:].trace()
    found_in = []
    for rank in [r for r in RANKS if r <= half and float(values[r - 1]) > 1e-7 * float(values[0])]:
        # A_2 V with V = A_1' U / s, and A_2 A_1' is the off-diagonal part of the Gram matrix
        inside = (cross @ vectors[:, :rank] / values[:rank]).square().sum()
        own = values[:rank].square().sum() / energy
        d_avg, laws = _d_avg(found, left[:, :rank])
        found_in.append(Truncation(rank, d_avg, float(own), float(inside / fresh_energy), laws))
    return found_in


def _d_avg(found: _Sums, basis: Tensor) -> tuple[float, int]:
    total, laws = 0.0, 0
    for logits in found.held:
        cut = basis @ (basis.T @ logits)
        shape = (found.count, -1, found.tokens)
        real, other = (part.reshape(shape).log_softmax(2) for part in (logits, cut))
        total += float((real.exp() * (real - other)).sum())
        laws += real.shape[0] * real.shape[1]
    return total / laws, laws
