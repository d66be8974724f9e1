"""A hidden Markov model fitted to a teacher's whole laws along the teacher's own text.

    minimise  sum over strings x, t  of  KL(P(. | x_<t) || Q(. | x_<t)),
    Q(o | x_<t) = sum_s a_t(s) E(s, o),
    a_0 = pi,   a_t+1 = (a_t * E(., x_t)) T / Q(x_t | x_<t),

over the initial law pi, transitions T and emissions E of S states, one table for all positions.
Expectation maximisation, the rule for such surrogates (GeLaTo: Zhang et al., arXiv 2304.07438;
Ctrl-G: Zhang et al., arXiv 2406.13892), fits the same model to drawn tokens: of each law that
the teacher computes it sees one draw. Here each visited prefix gives its whole law, and the
noise that is left lies in the choice of prefixes. A law is one query, a drawn token one token.

It starts at `surrogate_start`, latent variable distillation by laws. Then Adam on softmax
parameters, back-propagated through a part of a string; the belief goes on to the next part.
Normalised expected counts would be no ascent: a token that was not drawn enters with its weight
P(o | x_<t) as a ratio Q(x_<t o) / Q(x_<t), so the counts are signed, as with prompts in
`baum_welch`.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.between import DivergenceRate, rate_of
from myna.learn.baum_welch import HmmParameters
from myna.learn.forward_backward import HmmTables
from myna.learn.surrogate_start import Emissions, surrogate_start
from myna.logits.text_laws import TextLaws, text_laws
from myna.lowrank.model import LowRankModel
from myna.spec import Spec
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger

_HELD_OUT = 0.1  # of the laws
_CLIP = 1.0
_BETAS = (0.9, 0.99)
_TOGETHER = 64  # strings read at once where nothing is fitted
_TINY = 1e-30  # least probability whose logarithm is taken where something is fitted
_NORMAL = 1.96  # 95% of a normal law lies within so many standard deviations


@dataclasses.dataclass(frozen=True)
class SurrogateSettings:
    """What may be chosen; the defaults were chosen on charrnn-darwin (bench/surrogates.py).

    states: S, of the hidden Markov model
    laws: next-token queries in all, at most; one in ten is held out, in whole strings
    max_tokens: strings are cut here
    epochs: passes over the fitted laws; the best on held-out laws is kept
    batch: strings a step
    segment: tokens of them a step: gradients run back so far, beliefs go on to the next step
    learning_rate: at its peak; it falls to nothing along a cosine
    """

    states: int = 256
    laws: int = 100_000
    max_tokens: int = 128
    epochs: int = 20
    batch: int = 32
    segment: int = 32
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be fitted."""
        for name in ("states", "max_tokens", "epochs", "batch", "segment"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.laws < 1000:
            raise InputError(f"a surrogate needs 1,000 laws at least, got {self.laws:,}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"the learning rate must be a positive number, got {self.learning_rate}"
            )


@dataclasses.dataclass(frozen=True)
class Climb:
    """How a fit went; KL(P || Q) a token, nats: sums over strings by sums of their tokens.

    fitted_kl: over each epoch, while it was fitted
    held_out_kl: on the held-out strings, at the start and after each epoch
    kept: the epoch whose parameters are returned, the lowest of `held_out_kl`; 0 is the start
    """

    fitted_kl: tuple[float, ...]
    held_out_kl: tuple[float, ...]
    kept: int


@dataclasses.dataclass(frozen=True)
class SurrogateReport:
    """What fitting reached and what it cost.

    reason: one sentence for people
    climb: epoch by epoch
    held_out_kl: KL(P || Q) a token on held-out strings, nats; the epoch was chosen on them
    half_width: of its 95% interval, over strings (delta method, normal approximation)
    laws, held_out_laws: how many, next-token queries
    accounts: what each purpose spent. Strings are completions of the teacher and their tokens
        counted as received; a learner that draws from the laws it asks needs the laws alone
    seconds, asking_seconds: wall-clock time in all, and until the laws were there
    """

    reason: str
    climb: Climb
    held_out_kl: float
    half_width: float
    laws: int
    held_out_laws: int
    accounts: dict[str, Account]
    seconds: float
    asking_seconds: float


@dataclasses.dataclass(frozen=True)
class SurrogateResult:
    """A student in hidden Markov form, its tables and the report on it."""

    student: LowRankModel
    parameters: HmmParameters
    report: SurrogateReport


@dataclasses.dataclass(frozen=True)
class SurrogateProgress:
    """Where fitting stands: stage, share of the steps done, the last epoch's KL, queries."""

    stage: str
    done: float
    kl: float
    queries: int


def fit_surrogate(
    ledger: Ledger,
    settings: SurrogateSettings,
    generator: torch.Generator,
    progress: Callable[[SurrogateProgress], None] = lambda _: None,
) -> SurrogateResult:
    """Draw text from the ledger's teacher, ask its laws, and fit S states to them.

    Raises:
        TeacherError: where the teacher does not show laws.
        BudgetExhausted: where the ledger allows fewer laws than the settings.
        InputError: laws for less than two strings, or more states than places to cluster.
    """
    began = time.perf_counter()

    def tell(stage: str, done: float = 0.0, kl: float = math.nan) -> None:
        progress(SurrogateProgress(stage, done, kl, ledger.total().next_token_queries))

    tell("laws")
    shares = _shares(ledger.spec, settings)
    data = text_laws(ledger.laws("learn"), shares.fitted, shares.length)
    fresh = text_laws(ledger.laws("held out"), shares.held_out, shares.length)
    asking_seconds = time.perf_counter() - began
    tell("start")
    start = surrogate_start(data, settings.states, Emissions.LAWS, generator)
    parameters, climb = fit_laws(
        data, fresh, start, settings, generator, lambda done, kl: tell("fit", done, kl)
    )
    reached = divergence(parameters, fresh)
    report = SurrogateReport(
        reason=(
            f"on {reached.strings:,} held-out strings the copy of {settings.states} states is "
            f"{reached.mean:.4f} nats a token from its teacher, +- {reached.half_width:.4f}"
        ),
        climb=climb,
        held_out_kl=reached.mean,
        half_width=reached.half_width,
        laws=data.total,
        held_out_laws=fresh.total,
        accounts=ledger.accounts(),
        seconds=time.perf_counter() - began,
        asking_seconds=asking_seconds,
    )
    return SurrogateResult(parameters.model(ledger.spec), parameters, report)


class _Shares(NamedTuple):
    """What is asked: laws to fit and laws held out, in strings of `length` tokens at most."""

    fitted: int
    held_out: int
    length: int


def _shares(spec: Spec, settings: SurrogateSettings) -> _Shares:
    """The laws in two shares of whole strings, or a refusal before anything is asked."""
    horizon = spec.horizon
    length = settings.max_tokens if horizon is None else min(horizon, settings.max_tokens)
    strings = settings.laws // length
    if strings < 2:
        raise InputError(
            f"a surrogate is fitted to some strings and watched on others; {settings.laws:,} laws "
            f"are {strings} of {length} tokens: allow more laws or cut strings shorter"
        )
    kept = math.ceil(_HELD_OUT * strings) * length
    fitted = strings * length - kept
    if settings.states > fitted:
        raise InputError(
            f"{settings.states:,} states are clusters of places in the fitted text, and of "
            f"{settings.laws:,} laws {fitted:,} are fitted, one a place; allow more laws or take "
            "fewer states"
        )
    return _Shares(fitted, kept, length)


def divergence(parameters: HmmParameters, data: TextLaws) -> DivergenceRate:
    """KL(P || Q) a token, nats, with a 95% interval over strings.

    A ratio of sums: every law weighs the same, as in what is minimised.

    Raises:
        InputError: as `string_divergences`.
    """
    lengths = (data.tokens >= 0).sum(1)
    return rate_of(string_divergences(parameters, data), lengths, _NORMAL)


def string_divergences(parameters: HmmParameters, data: TextLaws) -> Float[Tensor, " string"]:
    """KL(P || Q) summed over the places of each string, nats, in double precision.

    Infinite where Q excludes a token that P allows.

    Raises:
        InputError: tables that change with the position.
    """
    tables = _stationary(parameters)
    found = []
    for rows in torch.arange(len(data.tokens)).split(_TOGETHER):
        belief = tables.initial.expand(len(rows), -1)
        laws = data.laws[rows].double()
        crossed, _ = cross_entropies(belief, tables, data.tokens[rows], laws)
        found.append((crossed - data.entropy[rows]).sum(1))
    return torch.cat(found)


def _stationary(parameters: HmmParameters) -> HmmTables:
    """The tables, where there is one for all positions."""
    moves, emits = len(parameters.transition), len(parameters.emission)
    if (moves, emits) != (1, 1):
        raise InputError(
            "a surrogate has one table of transitions and one of emissions for all positions, and "
            f"these parameters have {moves} and {emits}; give those of a stationary model"
        )
    return parameters.tables


def cross_entropies(
    belief: Float[Tensor, "row state"],
    tables: HmmTables,
    tokens: Int[Tensor, "row time"],
    laws: Float[Tensor, "row time token"],
    floor: float = 0.0,
) -> tuple[Float[Tensor, "row time"], Float[Tensor, "row state"]]:
    """-sum_o P(o) log Q(o) at each place, nats, and the beliefs after the last one.

    0 after the end of a string, where laws are zeros.

    floor: what probabilities count at least, to keep gradients finite; with 0 a place where
        Q(o) = 0 < P(o) is infinite
    """
    moves, emits = tables.transition[0], tables.emission[0]
    # an embedding's gradient is summed by token in one pass, an indexed table's is not
    seen = torch.nn.functional.embedding(tokens.clamp(min=0).T, emits.T.contiguous())
    beliefs = []
    for here in seen:
        beliefs.append(belief)
        joint = belief * here
        share = joint.sum(1, keepdim=True)
        share = share.clamp(min=floor) if floor else share.where(share > 0, 1.0)
        belief = (joint / share) @ moves
    predicted = torch.stack(beliefs, 1) @ emits
    if floor:
        return -(laws * predicted.clamp(min=floor).log()).sum(2), belief
    return -torch.where(laws > 0, laws * predicted.log(), 0.0).sum(2), belief


class _Softmax(torch.nn.Module):
    """The tables of a hidden Markov model as softmax parameters, in single precision."""

    def __init__(self, start: HmmParameters):
        super().__init__()
        self.logits = torch.nn.ParameterList(
            table.clamp(min=_TINY).log().float() for table in _stationary(start)
        )

    def tables(self) -> HmmTables:
        """The probabilities, with their way back to the parameters."""
        return HmmTables(*(logits.softmax(-1) for logits in self.logits))

    def parameters_now(self) -> HmmParameters:
        """Tables in double precision whose rows sum to one in it."""
        with torch.no_grad():
            return HmmParameters(*(logits.double().softmax(-1) for logits in self.logits))


def fit_laws(
    data: TextLaws,
    held_out: TextLaws,
    start: HmmParameters,
    settings: SurrogateSettings,
    generator: torch.Generator,
    tell: Callable[[float, float], None] = lambda _done, _kl: None,
) -> tuple[HmmParameters, Climb]:
    """Adam from a stationary start, with a cosine; the epoch that is best on held-out laws.

    start: its zeros begin as 1e-30, and may grow
    tell: is given the share of the steps done and the last epoch's KL

    Raises:
        InputError: a start whose tables change with the position.
    """
    model = _Softmax(start)
    descent = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=_BETAS)
    parts = torch.arange(data.tokens.shape[1]).split(settings.segment)
    steps = settings.epochs * math.ceil(len(data.tokens) / settings.batch) * len(parts)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    best, kept = model.parameters_now(), 0
    seen, fitted = [divergence(best, held_out).mean], list[float]()
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(data.tokens), generator=generator).split(settings.batch):
            belief = None
            for part in parts:
                tell(rate.last_epoch / steps, fitted[-1] if fitted else math.nan)
                excess, belief = _step(model, descent, belief, data, rows, part)
                rate.step()
                total += excess
        fitted.append(total / data.total)
        now = model.parameters_now()
        seen.append(divergence(now, held_out).mean)
        if seen[-1] < seen[kept]:
            best, kept = now, epoch
    return best, Climb(tuple(fitted), tuple(seen), kept)


def _step(
    model: _Softmax,
    descent: torch.optim.Optimizer,
    belief: Float[Tensor, "row state"] | None,
    data: TextLaws,
    rows: Int[Tensor, " row"],
    part: Int[Tensor, " time"],
) -> tuple[float, Float[Tensor, "row state"]]:
    """Descend once on a part of some strings: their KL before it, nats, and beliefs after them.

    belief: before the part; None at the beginning of strings
    """
    tables = model.tables()
    if belief is None:
        belief = tables.initial.expand(len(rows), -1)
    place = rows[:, None], part
    seen = int((data.tokens[place] >= 0).sum())
    if not seen:  # all strings have stopped: momentum alone is no step
        return 0.0, belief
    crossed, after = cross_entropies(belief, tables, data.tokens[place], data.laws[place], _TINY)
    descent.zero_grad()
    (crossed.sum() / seen).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    descent.step()
    return float(crossed.detach().sum()) - float(data.entropy[place].sum()), after.detach()
