"""Small recurrent and attention networks fitted to strings: the rivals from text modelling.

    maximise  sum over strings x, t  of  log softmax(f(B x_0 ... x_{t-1}))[x_t],      B a first symbol,

f one layer of long short-term memory (Hochreiter and Schmidhuber 1997), or two pre-norm blocks of
causal attention over sinusoidal positions (Vaswani et al. 2017; a last norm after them), with as many
numbers as asked for. AdamW; a part of the strings is held out, the rate is halved where some epochs
brought nothing new there, and the best numbers on it are kept. A student's state is the prefix itself: a law costs a
pass over it, and `score` reads whole strings at once.
"""

import copy
import dataclasses
import enum
import math
import time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.plain import not_empty, plain_strings
from myna.lowrank.student import State, StepInfo, Stepped, Strings, check_strings
from myna.spec import Spec, fingerprint
from myna.teachers.account import Account
from myna.teachers.ledger import Ledger

_HELD_OUT = 0.05  # of the strings
_TOGETHER = 2**14  # tokens of strings that are scored at once
_HEADS = 2


class Kind(enum.Enum):
    """What a network is made of."""

    RECURRENT = "recurrent"
    ATTENTION = "attention"


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """What may be chosen.

    kind: recurrent or attention
    parameters: about how many numbers the network has
    epochs: passes over the strings at most
    patience: epochs without a new best before the rate is halved
    halvings: of the rate before fitting ends
    batch: strings a step
    learning_rate: at the beginning
    """

    kind: Kind = Kind.RECURRENT
    parameters: int = 10_000
    epochs: int = 200
    patience: int = 3
    halvings: int = 4
    batch: int = 64
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be fitted."""
        for name in ("parameters", "epochs", "patience", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (0 < self.learning_rate <= 1 and self.halvings >= 0):
            raise InputError(
                "the learning rate must lie in (0, 1] and the halvings not be negative, got "
                f"{self.learning_rate} and {self.halvings}"
            )


class _Recurrent(torch.nn.Module):
    """One layer over one-hot symbols: 4w(O + 1) + 4w^2 + 8w numbers and wO + O to read it."""

    @staticmethod
    def numbers(tokens: int, width: int = 1) -> int:
        """How many it has."""
        return width * (5 * tokens + 4 * width + 12) + tokens

    @staticmethod
    def of(tokens: int, parameters: int) -> "_Recurrent":
        """The widest with at most so many numbers."""
        width = 1
        while _Recurrent.numbers(tokens, width + 1) <= parameters:
            width += 1
        return _Recurrent(tokens, width)

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.symbols = tokens + 1
        self.inner = torch.nn.LSTM(self.symbols, width, batch_first=True)
        self.out = torch.nn.Linear(width, tokens)

    def forward(self, before: Int[Tensor, "string time"]) -> Float[Tensor, "string time token"]:
        """Logits after each symbol."""
        hot = torch.nn.functional.one_hot(before, self.symbols).to(self.out.weight)
        return self.out(self.inner(hot)[0])


class _Attention(torch.nn.Module):
    """Two blocks: w(O + 1) + 8w^2 + 20w + 2f(2w + 1) numbers, and wO + O to read them.

    f: width inside each block's feed-forward part
    """

    step = 2 * _HEADS  # of w: heads divide it, sines and cosines share it

    @staticmethod
    def numbers(tokens: int, width: int = step, inside: int = 4 * step) -> int:
        """How many it has."""
        return width * (2 * tokens + 8 * width + 21) + 2 * inside * (2 * width + 1) + tokens

    @staticmethod
    def of(tokens: int, parameters: int) -> "_Attention":
        """The w for which f = 4w comes nearest to so many numbers, and then f to have at most them."""
        step, width = _Attention.step, _Attention.step

        def above(w: int) -> int:
            return _Attention.numbers(tokens, w, 4 * w) - parameters

        while abs(above(width + step)) <= abs(above(width)):
            width += step
        left = parameters - _Attention.numbers(tokens, width, 0)
        return _Attention(tokens, width, left // (2 * (2 * width + 1)))

    def __init__(self, tokens: int, width: int, inside: int):
        super().__init__()
        self.width = width
        self.read = torch.nn.Embedding(tokens + 1, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                width, _HEADS, inside, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = torch.nn.LayerNorm(width)
        self.out = torch.nn.Linear(width, tokens)

    def forward(self, before: Int[Tensor, "string time"]) -> Float[Tensor, "string time token"]:
        """Logits after each symbol."""
        read = self.read(before)
        x = read * math.sqrt(self.width) + self._positions(before.shape[1]).to(read)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(
            before.shape[1], dtype=x.dtype, device=x.device
        )
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.out(self.norm(x))

    def _positions(self, length: int) -> Float[Tensor, "time width"]:
        """Sines and cosines of the position at geometric speeds."""
        speeds = 1e4 ** (-torch.arange(0, self.width, 2) / self.width)
        angles = torch.arange(length)[:, None] * speeds
        return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


_MODULES = {Kind.RECURRENT: _Recurrent, Kind.ATTENTION: _Attention}


class Network(Stepped):
    """A Student that reads its whole prefix."""

    def __init__(self, language: Spec, module: _Recurrent | _Attention):
        """Keep the module, in double precision."""
        self._module = copy.deepcopy(module).double().eval().requires_grad_(False)
        mark = fingerprint(
            "network", language.alphabet, language.stop, language.horizon,
            *self._module.state_dict().values(),
        )  # fmt: skip
        self._spec = dataclasses.replace(language, fingerprint=mark)

    @property
    def spec(self) -> Spec:
        """The language, with a fingerprint of the numbers."""
        return self._spec

    @property
    def num_parameters(self) -> int:
        """Numbers fitted."""
        return sum(p.numel() for p in self._module.parameters())

    def initial(self, batch: int) -> State:
        """Nothing has been read."""
        return State(torch.zeros((batch, 0), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log-probabilities (nats) after the prefix."""
        return _laws(self._module, state.vector.long(), self._spec.num_tokens)[:, -1]

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """One token more to read."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        vector = torch.cat([state.vector, tokens[:, None].double()], 1)
        return State(vector, state.position + 1), StepInfo(log_prob)

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log Q(x) in nats, one a sequence; a pass over each."""
        check_strings(self._spec, strings)
        return _scores(self._module, strings, self._spec.num_tokens)


def _laws(
    module: torch.nn.Module, tokens: Int[Tensor, "string time"], first: int
) -> Float[Tensor, "string places token"]:
    """Log-laws before each token and after the last (places = time + 1).

    first: the symbol that stands before every string, and after its end
    """
    before = torch.nn.functional.pad(tokens, (1, 0), value=first)
    return module(before.masked_fill(before < 0, first)).log_softmax(2)


def _log_probs(
    module: torch.nn.Module, tokens: Int[Tensor, "string time"], first: int
) -> Float[Tensor, "string time"]:
    """Of every token (nats); 0 after a string's end."""
    if not tokens.shape[1]:
        return torch.zeros(tokens.shape, dtype=torch.float64)
    laws = _laws(module, tokens[:, :-1], first)
    found = laws.gather(2, tokens.clamp(min=0)[:, :, None])[:, :, 0]
    return torch.where(tokens >= 0, found, 0.0)


def _scores(module: torch.nn.Module, strings: Strings, first: int) -> Float[Tensor, " batch"]:
    """Log Q(x) in nats, strings of about equal length side by side."""
    total = torch.zeros(len(strings.lengths), dtype=torch.float64)
    with torch.no_grad():
        for rows in _by_length(strings.lengths):
            text = strings.tokens[rows, : int(strings.lengths[rows].max())]
            total[rows] = _log_probs(module, text, first).double().sum(1)
    return total


def _by_length(lengths: Int[Tensor, " batch"]) -> list[Int[Tensor, " some"]]:
    """Rows of about equal length together, about `_TOGETHER` tokens of them."""
    order = torch.argsort(lengths, stable=True)
    # rows cost their length: cut where the running sum passes multiples of the limit
    block = lengths[order].cumsum(0) // _TOGETHER
    return list(order.split(block.unique_consecutive(return_counts=True)[1].tolist()))


def _add_gradient(module: torch.nn.Module, strings: Strings, first: int) -> None:
    """That of minus the mean log-probability a token.

    Strings of at most 8, 32, 128, ... tokens side by side: one pass over all of them would work
    mostly on the padding of short ones.
    """
    total, done, width = strings.lengths.sum(), 0, 8
    while done < int(strings.lengths.max()):
        rows = (strings.lengths > done) & (strings.lengths <= width)
        if bool(rows.any()):
            text = strings.tokens[rows, : int(strings.lengths[rows].max())]
            (-_log_probs(module, text, first).sum() / total).backward()
        done, width = width, 4 * width


@dataclasses.dataclass(frozen=True)
class NetworkReport:
    """How fitting went.

    parameters: numbers fitted
    held_out: mean held-out log-probability a token (nats) after each epoch
    kept: the epoch whose numbers are kept, from 1
    converged: nothing new came for `patience` epochs after the last halving of the rate
    tokens: of all strings, the held-out ones among them
    accounts: what each purpose spent
    seconds: wall-clock time
    """

    parameters: int
    held_out: tuple[float, ...]
    kept: int
    converged: bool
    tokens: int
    accounts: dict[str, Account]
    seconds: float


@dataclasses.dataclass(frozen=True)
class NetworkResult:
    """A student and the report on it."""

    student: Network
    report: NetworkReport


def learn_strings(
    ledger: Ledger, tokens: int, settings: NetworkSettings, generator: torch.Generator,
    max_tokens: int = 128,
) -> NetworkResult:  # fmt: skip
    """Fit a network to strings that the ledger's teacher draws.

    tokens: generated tokens to spend
    max_tokens: without a horizon, strings are cut here

    Raises:
        BudgetExhausted: where the ledger allows fewer tokens.
        InputError: fewer than two strings.
    """
    view = ledger.samples("learn")
    text = plain_strings(view, tokens, max_tokens)
    result = fit_strings(view.spec, text, settings, generator)
    report = dataclasses.replace(result.report, accounts=ledger.accounts())
    return NetworkResult(result.student, report)


def fit_strings(
    language: Spec, text: Strings, settings: NetworkSettings, generator: torch.Generator
) -> NetworkResult:
    """Fit a network to given strings in random order; the first twentieth is held out.

    Empty strings say nothing and are left out.

    Raises:
        InputError: fewer than two strings, tokens that the language lacks, or a number of
            parameters for which the smallest network is too large.
    """
    began = time.perf_counter()
    check_strings(language, text)
    text = not_empty(text)
    if len(text.lengths) < 2:
        raise InputError(
            f"a network needs at least 2 strings, one to stop by; got {len(text.lengths)}"
        )
    kept = max(1, round(_HELD_OUT * len(text.lengths)))
    fresh, seen = (Strings(*(p[s] for p in text)) for s in (slice(kept), slice(kept, None)))
    module = _module(settings, language.num_tokens, generator)
    held_out, best, converged = _fit(language, module, seen, fresh, settings, generator)
    student = Network(language, best)
    report = NetworkReport(
        student.num_parameters, tuple(held_out), 1 + held_out.index(max(held_out)), converged,
        int(text.lengths.sum()), {}, time.perf_counter() - began,
    )  # fmt: skip
    return NetworkResult(student, report)


def _module(
    settings: NetworkSettings, tokens: int, generator: torch.Generator
) -> _Recurrent | _Attention:
    """A network with about as many numbers and no more, started by the generator."""
    made = _MODULES[settings.kind]
    if made.numbers(tokens) > settings.parameters:
        raise InputError(
            f"the smallest {settings.kind.value} network over {tokens} tokens has "
            f"{made.numbers(tokens)} numbers, and {settings.parameters} were allowed; allow more"
        )
    with torch.random.fork_rng(devices=[]):  # modules start from the CPU's generator alone
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return made.of(tokens, settings.parameters)


def _fit(
    language: Spec,
    module: _Recurrent | _Attention,
    seen: Strings,
    fresh: Strings,
    settings: NetworkSettings,
    generator: torch.Generator,
) -> tuple[list[float], _Recurrent | _Attention, bool]:
    """Held-out figures by epoch, the best module, and whether halving the rate stopped helping."""
    rate, since, halved = settings.learning_rate, 0, 0
    descent = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99))
    held_out: list[float] = []
    best = copy.deepcopy(module)
    for _ in range(settings.epochs):
        order = torch.randperm(len(seen.lengths), generator=generator)
        for rows in order.split(settings.batch):
            descent.zero_grad()
            _add_gradient(module, Strings(*(part[rows] for part in seen)), language.num_tokens)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            descent.step()
        scores = _scores(module, fresh, language.num_tokens)
        value = float(scores.sum() / fresh.lengths.sum())
        if not math.isfinite(value):
            raise InputError(
                f"held-out strings have log-probability {value} after epoch {len(held_out) + 1}; "
                f"lower the learning rate, {settings.learning_rate:g}"
            )
        if not held_out or value > max(held_out):
            best, since = copy.deepcopy(module), 0
        else:
            since += 1
        held_out.append(value)
        if since == settings.patience:
            if halved == settings.halvings:
                return held_out, best, True
            since, halved = 0, halved + 1
            for group in descent.param_groups:
                group["lr"] /= 2
    return held_out, best, False
