"""The spectral learner of Hsu, Kakade and Zhang, from plain strings.

With P1 the law of a token, P21[i, j] = P(next = i, previous = j) and P3x1[x][i, j] =
P(third = i, second = x, first = j), and U the top m left singular vectors of P21,

    b_1 = U^T P1,    b_inf = (P21^T U)^+ P1,    B_x = U^T P3x1[x] (U^T P21)^+,
    P(x_1 ... x_T) = b_inf^T B_{x_T} ... B_{x_1} b_1.

Source: "A spectral algorithm for learning hidden Markov models" (arXiv 0811.4413),
recalled. It needs P21 to have the rank of the hidden chain, so that sigma_m(P21) > 0:
states that emit alike, or more states than symbols, break it; the report shows the
singular values and which of them are no larger than sampling noise.

Where we differ. (1) A language with a horizon may have one P21 and P3x1 a position; the
last law is U b. (2) The rank, if not given, is counted up while sigma_k(P21) exceeds the
.99 quantile of || (I - U' U'^T) (P21* - P21) (I - V' V'^T) ||_2, with P21* redrawn
(Poisson weights) and U', V' the top k - 1 singular vectors: to first order that norm is
what noise makes of a k-th singular value that is truly zero, so a rank is claimed too
high with probability about .01. (3) The result is the same Q as a low-rank model. Rows of
B_x^T are stored in another basis: row i is the (estimated) law after token j_i, the tokens
being a spanner, so that b_inf becomes the vector of ones and the normaliser a sum of
coefficients. Entries may be negative; Q clips and normalises as `lowrank.model` says.
"""

import dataclasses
import enum
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.evidence import Evidence
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.spanner import barycentric_spanner
from myna.lowrank.step import Step, divided
from myna.spec import Spec

_NUMERICAL = 1e-10  # a singular value this much below the largest is rounding


class Windows(enum.Enum):
    """Which triples of a string a stationary learner counts."""

    FIRST = "the first three tokens: holds for every start"
    ALL = "all triples: holds where the chain starts in its stationary law"


@dataclasses.dataclass(frozen=True)
class SpectralSettings:
    """What the spectral learner may choose.

    structure: one set of moments, or one a position
    windows: which triples the stationary form counts
    rank: m; None takes what stands out of sampling noise
    replicates: of the redrawn P21, for that test
    """

    structure: Structure = Structure.STATIONARY
    windows: Windows = Windows.FIRST
    rank: int | None = None
    replicates: int = 100

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        if self.rank is not None and self.rank < 1:
            raise InputError(f"the rank must be at least 1, got {self.rank}; or leave it out")
        if self.replicates < 2:
            raise InputError(f"noise needs at least 2 replicates, got {self.replicates}")


@dataclasses.dataclass(frozen=True)
class SpectralCut:
    """What P21 showed at one cut.

    cut: t, between the previous and the next token; None for the stationary form
    rank: m used
    singular_values: of P21, largest first
    noise: for k = 1, 2, ..., what the k-th must exceed; ends with the first that does not
    """

    cut: int | None
    rank: int
    singular_values: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def sigma(self) -> float:
        """sigma_m(P21): the theorem's condition is that it does not vanish."""
        return self.singular_values[self.rank - 1]

    @property
    def resolved(self) -> int:
        """How many singular values exceed the noise; the others vanish as far as is known."""
        pairs = zip(self.singular_values, self.noise, strict=False)
        return sum(value > noise for value, noise in pairs)


@dataclasses.dataclass(frozen=True)
class SpectralReport:
    """What the spectral learner found.

    cuts: one entry for the stationary form, else cuts 1 .. H - 1
    triples: triples counted
    seconds: wall time
    """

    cuts: tuple[SpectralCut, ...]
    triples: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class SpectralFit:
    """The student and what its moments showed."""

    student: LowRankModel
    report: SpectralReport


class Moments(NamedTuple):
    """Joint laws around one cut.

    previous: (previous,), P1: the token before the cut
    pairs: (next, previous), P21
    triples: (token, third, previous), P3x1 with the token just after the cut second;
        None at the last cut
    """

    previous: Float[Tensor, " token"]
    pairs: Float[Tensor, "token token"]
    triples: Float[Tensor, "token token token"] | None


def learn_spectral(
    language: Spec, evidence: Evidence, settings: SpectralSettings, generator: torch.Generator
) -> SpectralFit:
    """Learn from plain strings.

    Raises:
        InputError: prompts, a stop token, strings too short, or one set of moments a
            position without a horizon.
    """
    began = time.perf_counter()
    _check(language, evidence, settings)
    stationary = settings.structure is Structure.STATIONARY
    if stationary:
        last = evidence.tokens.shape[1] - 2 if settings.windows is Windows.ALL else 1
        spans = [(0, last)]
    else:
        spans = [(t, t + 1) for t in range((language.horizon or 1) - 1)]
    counted = [_Counted.of(evidence, language.num_tokens, span) for span in spans]
    moments = [part.moments() for part in counted]
    cuts = []
    for t, (part, found) in enumerate(zip(counted, moments, strict=True), start=1):
        cuts.append(_look(None if stationary else t, part, found, settings, generator))
    if stationary:
        student = spectral_stationary(language, moments[0], cuts[0].rank)
    else:
        first = _first_law(evidence, language.num_tokens)
        student = spectral_varying(language, first, moments, [cut.rank for cut in cuts])
    triples = int(sum(part.triples for part in counted))
    return SpectralFit(student, SpectralReport(tuple(cuts), triples, time.perf_counter() - began))


def _look(
    cut: int | None,
    counted: "_Counted",
    moments: Moments,
    settings: SpectralSettings,
    generator: torch.Generator,
) -> SpectralCut:
    """The singular values of P21, the noise test, and the rank."""
    u, values, vh = torch.linalg.svd(moments.pairs)
    errors = counted.redrawn(settings.replicates, generator) - moments.pairs
    noise: list[float] = []
    for k in range(len(values)):
        left, right = u[:, k:], vh[k:]  # what is orthogonal to the k vectors above
        norms = torch.linalg.matrix_norm(left.T @ errors @ right.T, ord=2)
        noise.append(float(norms.quantile(0.99)))
        if float(values[k]) <= noise[k]:
            break
    found = SpectralCut(cut, 1, tuple(values.tolist()), tuple(noise))
    rank = settings.rank or max(1, found.resolved)
    rank = min(rank, int((values > _NUMERICAL * values[0]).sum()))
    return dataclasses.replace(found, rank=rank)


def _check(language: Spec, evidence: Evidence, settings: SpectralSettings) -> None:
    if bool((evidence.given > 0).any()):
        raise InputError(
            "the spectral learner needs plain strings, and some rows have prompts; "
            "draw completions of the empty prefix"
        )
    if language.stop is not None:
        raise InputError(
            "this spectral learner is for strings without a stop token, and this language stops at "
            f"{language.alphabet[language.stop]!r}; `myna.learn.hankel` learns from words of whole strings"
        )
    shortest = 3
    if settings.structure is Structure.TIME_VARYING:
        if language.horizon is None:
            raise InputError(
                "moments at each position need a language with a horizon, and this one has none; "
                "learn it as stationary"
            )
        shortest = language.horizon
    if not len(evidence.lengths) or int(evidence.lengths.min()) < shortest:
        raise InputError(f"the spectral learner needs strings of at least {shortest} tokens each")


class _Counted(NamedTuple):
    """Pairs and triples of some windows, as codes.

    pairs: (window,), next * O + previous
    triple_codes: (window,), (second * O + third) * O + first; empty where strings end
    rows: (window,), the row that the window is of
    counts: (row,), how often each row came
    num_tokens: O
    """

    pairs: Int[Tensor, " window"]
    triple_codes: Int[Tensor, " either"]
    rows: Int[Tensor, " window"]
    counts: Float[Tensor, " row"]
    num_tokens: int

    @staticmethod
    def of(evidence: Evidence, num_tokens: int, span: tuple[int, int]) -> "_Counted":
        """Windows that start at positions span[0] .. span[1] - 1."""
        start, stop = span
        tokens, width = evidence.tokens, evidence.tokens.shape[1]
        positions = torch.arange(start, stop, device=tokens.device)
        needed = 3 if stop + 1 < width else 2
        inside = positions + needed <= evidence.lengths[:, None]
        rows, which = inside.nonzero().unbind(1)
        first, second = tokens[rows, positions[which]], tokens[rows, positions[which] + 1]
        codes = rows[:0]
        if needed == 3:
            third = tokens[rows, positions[which] + 2]
            codes = (second * num_tokens + third) * num_tokens + first
        return _Counted(second * num_tokens + first, codes, rows, evidence.counts, num_tokens)

    @property
    def triples(self) -> float:
        """How many triples there are, repeats counted."""
        return float(self.counts[self.rows].sum()) if len(self.triple_codes) else 0.0

    def pair_law(self, counts: Float[Tensor, " row"]) -> Float[Tensor, "token token"]:
        """P21 with other counts of the rows."""
        o = self.num_tokens
        table = torch.bincount(self.pairs, counts[self.rows], minlength=o * o).view(o, o)
        return table / table.sum()

    def moments(self) -> Moments:
        """Relative frequencies."""
        o, triples, pairs = self.num_tokens, None, self.pair_law(self.counts)
        if len(self.triple_codes):
            weights = self.counts[self.rows]
            triples = torch.bincount(self.triple_codes, weights, minlength=o**3).view(o, o, o)
            triples = triples / triples.sum()
        return Moments(pairs.sum(0), pairs, triples)

    def redrawn(
        self, replicates: int, generator: torch.Generator
    ) -> Float[Tensor, "replicate token token"]:
        """P21 over again, with Poisson counts for the observed ones.

        Windows of one string depend on one another, so strings are redrawn; where each
        string has one window that is the same as redrawing the cells, which is faster.
        """
        o, tables = self.num_tokens, []
        apart = len(self.rows) == len(self.counts)
        drawn = self.counts
        if apart:
            drawn = torch.bincount(self.pairs, self.counts[self.rows], minlength=o * o)
        for _ in range(replicates):
            new = torch.poisson(drawn.to(generator.device), generator=generator).to(drawn.device)
            tables.append(new.view(o, o) / new.sum() if apart else self.pair_law(new))
        return torch.stack(tables)


def _first_law(evidence: Evidence, num_tokens: int) -> Float[Tensor, " token"]:
    """The frequencies of the first token."""
    table = torch.bincount(evidence.tokens[:, 0], evidence.counts, minlength=num_tokens)
    return table / table.sum()


class _Cut(NamedTuple):
    """One cut's coordinates; a state is b with entries <U_k, law of the next token>.

    basis: (token, rank), U
    seen: (rank, token), U^T P21
    total: (rank,), b_inf: the functional that is one on every state
    gauge: (rank, rank), row i is the state after token j_i
    """

    basis: Float[Tensor, "token rank"]
    seen: Float[Tensor, "rank token"]
    total: Float[Tensor, " rank"]
    gauge: Float[Tensor, "rank rank"]

    @staticmethod
    def of(moments: Moments, rank: int) -> "_Cut":
        """U, U^T P21, b_inf, and the states after a spanner of tokens."""
        basis = torch.linalg.svd(moments.pairs).U[:, :rank]
        seen = basis.T @ moments.pairs
        total = torch.linalg.pinv(seen.T) @ moments.previous
        # joint vectors, not conditional ones: rare tokens would be chosen for their noise
        chosen = barycentric_spanner(seen.T, tolerance=0.0, max_rank=rank).indices
        return _Cut(basis, seen, total, seen[:, chosen].T / moments.previous[chosen, None])


def _step(before: _Cut, triples: Float[Tensor, "token token token"], after: _Cut) -> Step:
    """B_x^T in the gauges of both cuts; its normaliser gives the laws."""
    operators = after.basis.T @ triples @ torch.linalg.pinv(before.seen)  # B_x
    moved = before.gauge @ operators.transpose(1, 2) @ torch.linalg.inv(after.gauge)
    laws = (moved @ (after.gauge @ after.total)).T
    return divided(laws, moved.transpose(0, 1))


def spectral_stationary(language: Spec, moments: Moments, rank: int) -> LowRankModel:
    """The student of given moments, exact or estimated.

    Raises:
        InputError: without triples.
    """
    if moments.triples is None:
        raise InputError("a stationary spectral student needs the law of triples; it is missing")
    cut = _Cut.of(moments, rank)
    first = torch.linalg.solve(cut.gauge.T, cut.basis.T @ moments.previous)
    return LowRankModel.of(language, first, (_step(cut, moments.triples, cut),))


def spectral_varying(
    language: Spec, first: Float[Tensor, " token"], moments: Sequence[Moments], ranks: Sequence[int]
) -> LowRankModel:
    """The student of given moments around cuts 1 .. H - 1.

    first: (token,), the law of the first token
    """
    one = first.new_ones(1)
    if not moments:
        return LowRankModel.of(
            language, one, (Step(first[None], first.new_zeros(1, len(first), 0)),)
        )
    cuts = [_Cut.of(part, rank) for part, rank in zip(moments, ranks, strict=True)]
    after_first = torch.linalg.solve(cuts[0].gauge, cuts[0].seen.T, left=False)
    steps = [divided(first[None], after_first[None])]
    for part, here, after in zip(moments[:-1], cuts[:-1], cuts[1:], strict=True):
        if part.triples is None:
            raise InputError("every cut but the last needs the law of triples; one is missing")
        steps.append(_step(here, part.triples, after))
    laws = cuts[-1].gauge @ cuts[-1].basis.T
    steps.append(Step(laws, laws.new_zeros(*laws.shape, 0)))
    return LowRankModel.of(language, one, tuple(steps))
