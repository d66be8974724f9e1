"""Learning from conditional samples where the teacher has fidelity.

At each cut t a few histories S = (b_1 ... b_s), met in the teacher's own strings, stand
for all. With futures f of a stated length, d(f) = mean_i P(f | b_i) and D = diag(d),

    Sigma[i, j] = sum_f P(f | b_i) P(f | b_j) / d(f),
    P(o f | b_i) ~ sum_j A_o[i, j] P(f | b'_j)    by least squares weighted with 1 / d',

b' the basis of the next cut; this is Bayes' rule in the form of `lowrank.model`. The
*fidelity* of a cut is the smallest singular value of D^-1/2 P(F | S), the root of Sigma's
smallest eigenvalue; the theorem asks that it, and 1 / ||coefficients||_2, be bounded below.

Source: Kakade, Krishnamurthy, Mahajan and Zhang, "Learning Hidden Markov Models Using
Conditional Samples" (arXiv 2302.14753). The definition of fidelity and the shape of the
algorithm are recalled with low confidence, the paper's body not having been at hand, so
this is a learner in their manner and no transcription. Ours are: Sigma and all residuals
freed of their sampling noise to first order in 1/N; the residual test, which adds the
history whose chi-square distance from the span of the basis exceeds what noise makes of
zero by `threshold` standard errors; fresh draws for the chosen histories; eigenvalues of
Sigma within `_CLEAR` standard errors of zero left out.

Budget: a share pays for whole strings, which give candidate histories, and for pilot draws
of each; the rest is split evenly over cuts, then over the chosen histories.
"""

import dataclasses
import math
import time
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.spec import Spec
from myna.teachers.ledger import SamplesView
from myna.teachers.oracle import Completions
from myna.teachers.prefixes import Prefixes

_CLEAR = 4.0  # standard errors above which an eigenvalue of Sigma counts as nonzero


@dataclasses.dataclass(frozen=True)
class FidelitySettings:
    """What the learner may choose.

    budget: tokens that the teacher may generate
    future_tokens: length of the futures that histories are compared by
    candidates: whole strings drawn; their prefixes are the candidate histories
    pilot_share: of the budget, for these strings and for the candidates' draws
    threshold: standard errors of the residual above zero at which a history is added
    max_rank: largest basis of a cut
    """

    budget: int
    future_tokens: int = 3
    candidates: int = 24
    pilot_share: float = 0.4
    threshold: float = 4.0
    max_rank: int = 32

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        for name in ("budget", "future_tokens", "candidates", "max_rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.pilot_share < 1:
            raise InputError(f"the pilot's share must lie in (0, 1), got {self.pilot_share}")
        if not self.threshold > 0:
            raise InputError(f"the threshold must be positive, got {self.threshold}")


@dataclasses.dataclass(frozen=True)
class FidelityCut:
    """What was measured at one cut.

    cut: t, the length of the histories
    rank: histories in the basis
    candidates: distinct histories looked at
    futures: distinct futures seen from the basis
    draws: completions of each basis history
    fidelity: the smallest singular value of D^-1/2 P(F | S) above noise; that of the basis
        found, so it says nothing of directions that the residual test could not see
    coefficient_norm: the largest ||beta(x)||_2 of a candidate
    residual: the largest residual of a candidate, in standard errors
    noise: what sampling makes of an eigenvalue of Sigma (one standard error)
    """

    cut: int
    rank: int
    candidates: int
    futures: int
    draws: int
    fidelity: float
    coefficient_norm: float
    residual: float
    noise: float


@dataclasses.dataclass(frozen=True)
class FidelityReport:
    """What the learner found and spent.

    cuts: one entry a cut
    sampled_tokens: tokens that the teacher generated
    seconds: wall time
    """

    cuts: tuple[FidelityCut, ...]
    sampled_tokens: int
    seconds: float

    @property
    def fidelity(self) -> float:
        """The smallest fidelity of a cut, Delta* as far as it was seen."""
        return min(cut.fidelity for cut in self.cuts)


@dataclasses.dataclass(frozen=True)
class FidelityFit:
    """The student and the measured assumption."""

    student: LowRankModel
    report: FidelityReport


class _Sampled(NamedTuple):
    """Empirical laws of futures.

    laws: (history, future), relative frequencies
    draws: N of each history
    """

    laws: Float[Tensor, "history future"]
    draws: int


class _Basis(NamedTuple):
    """A cut's chosen histories and their completions.

    histories: the prefixes b_i
    answers: fresh completions of each
    measured: what is reported
    """

    histories: Prefixes
    answers: Completions
    measured: FidelityCut


def learn_fidelity(
    view: SamplesView, settings: FidelitySettings, generator: torch.Generator
) -> FidelityFit:
    """Learn one basis a cut from completions alone.

    generator: chooses the first history of each basis

    Raises:
        InputError: without a horizon, or with a budget too small for two draws a history.
    """
    began, before = time.perf_counter(), view.spent().tokens_received
    spec, horizon = view.spec, view.spec.horizon
    if horizon is None:
        raise InputError("one basis a cut needs a teacher with a horizon, and this one has none")
    _check_budget(horizon, settings)
    pool = view.complete(Prefixes.of([[]]), settings.candidates)
    spent = view.spent().tokens_received - before
    pilot = int(settings.pilot_share * settings.budget) - spent
    pilot_draws = pilot // (settings.candidates * _window_tokens(horizon, settings))
    bases: list[_Basis] = []
    for cut in range(horizon):
        candidates = _prefixes_at(pool, cut, spec.stop)
        if not len(candidates.lengths):
            break  # every string has stopped before
        left = settings.budget - (view.spent().tokens_received - before)
        later = settings.candidates * _window_tokens(horizon, settings, cut)
        share = left - pilot_draws * later
        bases.append(
            _basis(view, candidates, pilot_draws, share // (horizon - cut), settings, generator)
        )
    student = _student(spec, bases, settings)
    cost = view.spent().tokens_received - before
    cuts = tuple(basis.measured for basis in bases)
    return FidelityFit(student, FidelityReport(cuts, cost, time.perf_counter() - began))


def _check_budget(horizon: int, settings: FidelitySettings) -> None:
    """Refuse, before anything is asked, a budget without two draws everywhere."""
    pilot = settings.candidates * (horizon + 2 * _window_tokens(horizon, settings))
    fresh = 2 * horizon * _window(0, horizon, settings)
    share = settings.pilot_share
    needed = math.ceil(max((pilot + 1) / share, (fresh + horizon) / (1 - share)))
    if settings.budget < needed:
        raise InputError(
            f"the budget of {settings.budget:,} tokens gives no two draws of every history; "
            f"it takes at least {needed:,}"
        )


def _window(cut: int, horizon: int, settings: FidelitySettings) -> int:
    """Tokens of a completion at a cut: one token and the future after it."""
    return min(settings.future_tokens + 1, horizon - cut)


def _window_tokens(horizon: int, settings: FidelitySettings, since: int = 0) -> int:
    """The same, summed over a cut and all later: what a pilot draw of one candidate costs."""
    return sum(_window(cut, horizon, settings) for cut in range(since, horizon))


def _prefixes_at(pool: Completions, cut: int, stop: int | None) -> Prefixes:
    """The distinct prefixes of that length which have not stopped."""
    rows = pool.tokens[0, pool.lengths[0] > cut, :cut]
    if stop is not None:
        rows = rows[~(rows == stop).any(1)]
    rows = torch.unique(rows, dim=0) if cut else rows[:1]
    return Prefixes(rows, torch.full((len(rows),), cut))


def _codes(words: Int[Tensor, "*batch token"], num_tokens: int) -> Int[Tensor, "*batch"]:
    """One integer a word; the padding -1 after a stop is a letter of its own.

    Long words would overflow, so columns are numbered afresh as they are added.
    """
    codes = torch.zeros(words.shape[:-1], dtype=torch.int64)
    for column in words.unbind(-1):
        codes = torch.unique(codes * (num_tokens + 1) + column + 1, return_inverse=True)[1]
    return codes


def _frequencies(codes: Int[Tensor, "history draw"], width: int) -> Float[Tensor, "history word"]:
    """Relative frequencies of codes, a row a history."""
    table = torch.zeros((len(codes), width), dtype=torch.float64)
    table.scatter_add_(1, codes, torch.full(codes.shape, 1 / codes.shape[1], dtype=torch.float64))
    return table


def _futures(answers: Completions, length: int, num_tokens: int) -> _Sampled:
    """The empirical laws of the first `length` tokens."""
    codes = _codes(answers.tokens[..., :length], num_tokens)
    return _Sampled(_frequencies(codes, int(codes.max()) + 1), codes.shape[1])


class _Span(NamedTuple):
    """Least squares over basis laws with weights 1 / d.

    laws: (basis, future); weights: (future,), 0 where no basis history was seen to go
    sigma: (basis, basis), freed of noise; noise: one standard error of its diagonal
    inverse: (basis, basis), of sigma without eigenvalues below the noise
    """

    laws: Float[Tensor, "basis future"]
    draws: int
    weights: Float[Tensor, " future"]
    sigma: Float[Tensor, "basis basis"]
    noise: float
    inverse: Float[Tensor, "basis basis"]

    @staticmethod
    def of(sampled: _Sampled) -> "_Span":
        """Sigma, and its pseudo-inverse."""
        laws, draws = sampled
        mean = laws.mean(0)
        weights = torch.where(mean > 0, 1 / mean.clamp(min=1e-300), 0.0)
        scaled = laws * weights
        sigma = scaled @ laws.T
        # half the second derivatives of p_i p_j / d by p_k, times the variance p_k / N; d is
        # the mean of the same draws, so both sigma's rows and the bias's have fixed sums
        sigma -= (torch.diag(scaled.sum(1)) - scaled @ scaled.T / len(laws)) / draws
        # sum_f (v^2 - p / N) / d of pure Poisson noise v has variance 2 sum_f (p / (N d))^2
        noise = float((2 * scaled.square().sum(1)).sqrt().max()) / draws
        values, vectors = torch.linalg.eigh(sigma)
        kept = values > _CLEAR * noise
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        return _Span(laws, draws, weights, sigma, noise, inverse)

    def coefficients(self, rows: Float[Tensor, "row future"]) -> Float[Tensor, "row basis"]:
        """Weighted least squares of rows that are independent of the basis's draws."""
        return (rows * self.weights) @ self.laws.T @ self.inverse

    @property
    def fidelity(self) -> float:
        """The root of the smallest eigenvalue that counts; zero where there is none."""
        values = torch.linalg.eigvalsh(self.sigma)
        above = values[values > _CLEAR * self.noise]
        return float(above.min().sqrt()) if len(above) else 0.0


def _residuals(
    span: _Span, rows: Float[Tensor, "row future"], draws: int
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row basis"]]:
    """Each row's distance from the span in standard errors, and its coefficients.

    With v the residual, tau_f = (p_f + sum_j beta_j^2 P(f | b_j)) / N is v_f's variance if
    the truth lies in the span; sum (v^2 - tau) / d' has mean zero and Poisson variance
    sum (2 tau^2 + tau / N^2) / d'^2. Here d' takes the row itself into the mean.
    """
    beta = span.coefficients(rows)
    size = len(span.laws)
    mean = (span.laws.sum(0) + rows) / (size + 1)
    weights = torch.where(mean > 0, 1 / mean.clamp(min=1e-300), 0.0)
    gap = rows - beta @ span.laws
    tau = rows / draws + beta.square() @ span.laws / span.draws
    excess = ((gap.square() - tau) * weights).sum(1)
    least = min(draws, span.draws)
    error = ((2 * tau.square() + tau / least**2) * weights.square()).sum(1).sqrt()
    return excess / error.clamp(min=1e-300), beta


def _basis(
    view: SamplesView,
    candidates: Prefixes,
    pilot_draws: int,
    share: int,
    settings: FidelitySettings,
    generator: torch.Generator,
) -> _Basis:
    """Pilot draws, the residual test, fresh draws of the chosen histories.

    share: tokens that the fresh draws may cost
    """
    spec, cut = view.spec, int(candidates.lengths[0])
    horizon = spec.horizon or cut + 1
    window = _window(cut, horizon, settings)
    pilot = view.complete(candidates, pilot_draws, max_tokens=window)
    length = min(settings.future_tokens, horizon - cut)
    sampled = _futures(pilot, length, spec.num_tokens)
    start = torch.randint(len(candidates.lengths), (1,), generator=generator).tolist()
    most = min(settings.max_rank, share // (2 * window))
    chosen = _chosen(sampled, start, most, settings.threshold)
    draws = share // (window * len(chosen))
    histories = candidates.take(torch.tensor(chosen))
    answers = view.complete(histories, draws, max_tokens=window, first_draw=pilot_draws)
    shape = (len(candidates.lengths), pilot_draws, len(chosen), draws)
    words = [_widened(part.tokens, window)[..., :length].flatten(0, 1) for part in (pilot, answers)]
    span, rows = _span_and_rows(_codes(torch.cat(words), spec.num_tokens), shape)
    residuals, beta = _residuals(span, rows, pilot_draws)
    measured = FidelityCut(
        cut=cut,
        rank=len(chosen),
        candidates=len(rows),
        futures=int((span.weights > 0).sum()),
        draws=draws,
        fidelity=span.fidelity,
        coefficient_norm=float(beta.norm(dim=1).max()),
        residual=float(residuals.max()),
        noise=span.noise,
    )
    return _Basis(histories, answers, measured)


def _span_and_rows(
    codes: Int[Tensor, " draw"], shape: tuple[int, int, int, int]
) -> tuple[_Span, Float[Tensor, "row future"]]:
    """The basis's span and the candidates' laws from one list of coded futures.

    shape: candidates, draws of each, basis histories, draws of each, in that order
    """
    candidates, pilot_draws, chosen, draws = shape
    width, split = int(codes.max()) + 1, candidates * pilot_draws
    basis = _frequencies(codes[split:].view(chosen, draws), width)
    rows = _frequencies(codes[:split].view(candidates, pilot_draws), width)
    return _Span.of(_Sampled(basis, draws)), rows


def _widened(tokens: Int[Tensor, "batch draw width"], width: int) -> Int[Tensor, "batch draw new"]:
    """Padded with -1 up to a width."""
    return torch.nn.functional.pad(tokens, (0, width - tokens.shape[2]), value=-1)


def _chosen(sampled: _Sampled, start: list[int], most: int, threshold: float) -> list[int]:
    """Add the history with the largest residual while it is above the threshold."""
    chosen = list(start)
    while len(chosen) < min(most, len(sampled.laws)):
        span = _Span.of(_Sampled(sampled.laws[chosen], sampled.draws))
        residuals, _ = _residuals(span, sampled.laws, sampled.draws)
        residuals[chosen] = -torch.inf
        if float(residuals.max()) <= threshold:
            break
        chosen.append(int(residuals.argmax()))
    return chosen


def _student(spec: Spec, bases: list[_Basis], settings: FidelitySettings) -> LowRankModel:
    """Laws and changes of basis between consecutive cuts."""
    steps = []
    for cut, basis in enumerate(bases):
        first = basis.answers.tokens[..., 0]
        laws = _frequencies(first, spec.num_tokens)
        change = laws.new_zeros((*laws.shape, 0))
        if cut + 1 < len(bases):
            change = _change(laws, basis, bases[cut + 1], spec, settings)
        histories = tuple(basis.histories.rows())
        steps.append(Step(laws, change, histories))
    return LowRankModel.of(spec, torch.ones(1, dtype=torch.float64), tuple(steps))


def _change(
    laws: Float[Tensor, "basis token"],
    here: _Basis,
    after: _Basis,
    spec: Spec,
    settings: FidelitySettings,
) -> Float[Tensor, "basis token after"]:
    """G from P(o f | b_i) ~ sum_j A_o[i, j] P(f | b'_j), A_o = L G."""
    length = min(settings.future_tokens, (spec.horizon or 0) - after.measured.cut)
    tokens = _widened(here.answers.tokens, length + 1)
    ahead = _widened(after.answers.tokens, length)[..., :length]
    words = torch.cat([ahead.flatten(0, 1), tokens[..., 1 : length + 1].flatten(0, 1)])
    codes = _codes(words, spec.num_tokens)
    width, split = int(codes.max()) + 1, ahead.shape[0] * ahead.shape[1]
    span = _Span.of(
        _Sampled(_frequencies(codes[:split].view(ahead.shape[:2]), width), ahead.shape[1])
    )
    joint = tokens[..., 0] * width + codes[split:].view(tokens.shape[:2])
    rows = _frequencies(joint, spec.num_tokens * width).view(-1, width)
    moved = span.coefficients(rows).view(*laws.shape, -1)
    possible = laws > 0
    if spec.stop is not None:
        possible[:, spec.stop] = False
    return torch.where(possible[..., None], moved / laws.clamp(min=1e-300)[..., None], 0.0)
