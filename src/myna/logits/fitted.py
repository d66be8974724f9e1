"""A stationary network of chosen dimension, fitted to a teacher's laws along its own text.

    minimise  sum over strings x, t  of  KL(P(. | x_<t) || softmax(c + y_t C)),
    y_0 given,   y_{t+1} = b_o + y_t W_o,   o = x_t,

over y_0, C, c, b and W. Real models have no exact logit rank, so nothing is verified here: what
the copy reaches is measured on strings that fitting never saw. Only whole laws are fitted, not
drawn tokens: the target has no sampling noise beyond the choice of prefixes.

The network is `affine.AffineNetwork`, whose matrices cannot make long products explode. Decay is
on what a token adds to the shared matrix, so rare tokens move as all others do.

Network: Foerster et al. (2017), whose training by back-propagation this is; Golowich, Liu and
Shetty (arXiv 2510.24966) tie it to low logit rank. The norm, the sharing and the start are ours.
"""

import dataclasses
import enum
import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.evaluate.between import DivergenceRate, rate_of
from myna.logits.affine import AffineNetwork
from myna.logits.network_start import random_start, spectral_start
from myna.logits.text_laws import TextLaws, text_laws
from myna.lowrank.isan import Isan
from myna.spec import Spec
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger

_HELD_OUT, _MOST_HELD_OUT = 0.05, 40_000  # a share of the laws, and no more than so many
_START, _MOST_START = 0.1, 20_000
_CLIP = 1.0
_NORMAL = 1.96  # 95% of a normal law lies within so many standard deviations
_BETAS = (0.9, 0.99)
_WARM = 0.02  # of the steps


class Start(enum.Enum):
    """Where fitting begins."""

    SPECTRAL = "spectral"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What may be chosen; the defaults were chosen on charrnn-darwin (bench/text_students.py).

    dimension: of the network's state, the constant coordinate included
    laws: next-token queries in all: 5% (40,000 at most) are held out, and 10% (20,000 at most) go
        to a spectral start
    max_tokens: strings are cut here
    epochs: passes over the fitted laws
    batch: strings a step
    segment: tokens of them a step: gradients run back so far, states go on to the next step
    learning_rate: at its peak; it falls to nothing along a cosine
    decay: on what a token's matrix adds to the shared one
    """

    dimension: int = 128
    laws: int = 2_000_000
    max_tokens: int = 128
    epochs: int = 20
    batch: int = 128
    segment: int = 32
    learning_rate: float = 8e-3
    decay: float = 0.01
    start: Start = Start.SPECTRAL

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be fitted."""
        if self.dimension < 2:
            raise InputError(f"a fitted network needs dimension 2 or more, got {self.dimension}")
        for name in ("epochs", "batch", "segment", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.laws < 1000:
            raise InputError(f"fitting needs 1,000 laws at least, got {self.laws:,}")
        if not (self.learning_rate > 0 and self.decay >= 0):
            raise InputError(
                "the learning rate must be positive and the decay not negative, got "
                f"{self.learning_rate} and {self.decay}"
            )


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What fitting reached and what it cost.

    reason: one sentence for people
    fitted_kl: mean KL(P || Q) a token over each epoch, nats, while it was fitted
    start_kl, held_out_kl: the same on held-out strings, before and after
    half_width: of the held-out mean's 95% interval, over strings (normal approximation)
    laws, held_out_laws: how many, a spectral start's not among them
    largest_norm: of the operators W_o
    accounts: what each purpose spent
    seconds, start_seconds: wall-clock time in all, and until the start stood
    """

    reason: str
    fitted_kl: tuple[float, ...]
    start_kl: float
    held_out_kl: float
    half_width: float
    laws: int
    held_out_laws: int
    largest_norm: float
    accounts: dict[str, Account]
    seconds: float
    start_seconds: float


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A student and the report on it."""

    student: Isan
    report: FitReport


@dataclasses.dataclass(frozen=True)
class FitProgress:
    """Where fitting stands: stage, share of the steps done, the last epoch's KL, queries."""

    stage: str
    done: float
    kl: float
    queries: int


def fit_network(
    ledger: Ledger,
    settings: FitSettings,
    generator: torch.Generator,
    progress: Callable[[FitProgress], None] = lambda _: None,
) -> FitResult:
    """Draw text from the ledger's teacher, ask its laws, and fit a network to them.

    Raises:
        TeacherError: where the teacher does not show laws.
        BudgetExhausted: where the ledger allows fewer laws than the settings.
        InputError: a horizon, a law or a budget that does not fit.
    """
    began = time.perf_counter()
    length, width = _length(ledger.spec, settings), settings.dimension - 1

    def tell(stage: str, done: float = 0.0, kl: float = math.nan) -> None:
        progress(FitProgress(stage, done, kl, ledger.total().next_token_queries))

    begun = min(int(settings.laws * _START), _MOST_START)
    begun = begun if settings.start is Start.SPECTRAL else 0
    tell("start")
    if begun:
        start = spectral_start(ledger.laws("start"), begun, width, length, generator)
    else:
        start = random_start(ledger.spec.num_tokens, width, generator)
    network = AffineNetwork(start)
    start_seconds = time.perf_counter() - began
    tell("laws")
    kept = min(int(settings.laws * _HELD_OUT), _MOST_HELD_OUT)
    data = text_laws(ledger.laws("learn"), settings.laws - kept - begun, length)
    fresh = text_laws(ledger.laws("held out"), kept, length)
    before = divergence(network, fresh)
    epochs = _fit(network, data, settings, generator, lambda done, kl: tell("fit", done, kl))
    after = divergence(network, fresh)
    student = network.exported(ledger.spec)
    report = FitReport(
        reason=(
            f"on {after.strings:,} fresh strings the copy is {after.mean:.4f} nats a token "
            f"from its teacher, +- {after.half_width:.4f}"
        ),
        fitted_kl=tuple(epochs),
        start_kl=before.mean,
        held_out_kl=after.mean,
        half_width=after.half_width,
        laws=data.total,
        held_out_laws=fresh.total,
        largest_norm=network.largest_norm(),
        accounts=ledger.accounts(),
        seconds=time.perf_counter() - began,
        start_seconds=start_seconds,
    )
    return FitResult(student, report)


def _length(spec: Spec, settings: FitSettings) -> int:
    """Tokens of a string; four are needed for histories and futures of a start."""
    length = settings.max_tokens if spec.horizon is None else min(spec.horizon, settings.max_tokens)
    if length < 4:
        raise InputError(f"fitting needs strings of 4 tokens or more, and they have {length}")
    return length


def divergence(network: AffineNetwork, data: TextLaws) -> DivergenceRate:
    """KL(P || Q) a token, nats, with a 95% interval over strings: every law weighs the same."""
    found = []
    with torch.no_grad():
        for rows in torch.arange(len(data.tokens)).split(256):
            each, _ = _kl(network, network.initial(len(rows)), data, rows, slice(None))
            found.append(each.sum(1))
    return rate_of(torch.cat(found).double(), (data.tokens >= 0).sum(1), _NORMAL)


def _kl(
    network: AffineNetwork, x: Tensor, data: TextLaws, rows: Int[Tensor, " row"], part: slice
) -> tuple[Float[Tensor, "row time"], Float[Tensor, "row rank"]]:
    """KL(P || Q) at some places of some strings read from x, nats; and x after them.

    0 after the end of a string.
    """
    laws, after = network.laws(x, data.tokens[rows, part])
    crossed = (data.laws[rows, part].transpose(0, 1) * laws).sum(2).T
    return -crossed - data.entropy[rows, part], after


def _fit(
    network: AffineNetwork,
    data: TextLaws,
    settings: FitSettings,
    generator: torch.Generator,
    tell: Callable[[float, float], None],
) -> list[float]:
    """AdamW with a cosine; the mean KL of each epoch."""
    decayed = [network.own]
    others = [p for p in network.parameters() if p is not network.own]
    groups = [
        {"params": decayed, "weight_decay": settings.decay / settings.learning_rate},
        {"params": others, "weight_decay": 0.0},
    ]
    descent = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS)
    length = data.tokens.shape[1]
    parts = [slice(i, i + settings.segment) for i in range(0, length, settings.segment)]
    per_epoch = math.ceil(len(data.tokens) / settings.batch) * len(parts)
    steps = per_epoch * settings.epochs
    rate = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: _rate(step / steps))
    epochs, mean = [], math.nan
    for epoch in range(settings.epochs):
        total = 0.0
        order = torch.randperm(len(data.tokens), generator=generator).split(settings.batch)
        for i, rows in enumerate(order):
            x = network.initial(len(rows))
            for j, part in enumerate(parts):
                tell((epoch * per_epoch + i * len(parts) + j) / steps, mean)
                each, after = _kl(network, x, data, rows, part)
                descent.zero_grad()
                (each.sum() / max(1, int((data.tokens[rows, part] >= 0).sum()))).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
                descent.step()
                rate.step()
                x = after.detach()
                total += float(each.detach().sum())
        mean = total / data.total
        epochs.append(mean)
    return epochs


def _rate(done: float) -> float:
    """Of the peak: a short rise, then half a cosine down to nothing."""
    return min(done / _WARM, 0.5 + 0.5 * math.cos(math.pi * done)) if done else 1e-3
