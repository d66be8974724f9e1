"""Language models whose rank is known exactly: what a learner must find.

Each family is a frozen record: its fields are its parameters, `teacher()` builds the
model, and `rank_text` says the exact rank at each cut t (after t tokens) of the block
P(future | history), and where it is known the logit rank: that of the block of centred
next-token logits, histories against futures followed by a token. Random choices come from `seed` alone.
"""

import dataclasses
import math
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.isan import Isan, IsanStep
from myna.spec import Spec, numbered
from myna.teachers.automaton import Automaton
from myna.teachers.copies import CopyTeacher
from myna.teachers.hmm import Hmm
from myna.teachers.scripted import CopyModel, LabelModel, LogitTwoModel, ParityModel
from myna.teachers.stepped import SteppedTeacher


@runtime_checkable
class Family(Protocol):
    """A zoo family: a dataclass of parameters that builds a teacher."""

    summary: ClassVar[str]
    rank_text: ClassVar[str]

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        ...


def number(default: Any, low: int | float, high: int | float = math.inf) -> Any:
    """A parameter with its inclusive range."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class Parity:
    """Uniform bits, then the parity of a secret subset of them, flipped with `noise`."""

    bits: int = number(64, 1, 4096)
    noise: float = number(0.1, 0, 0.5)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "uniform bits, then the noisy parity of a secret subset"
    rank_text: ClassVar[str] = (
        "2 at the cuts from just after the first secret bit to just before the label, 1 elsewhere; "
        "logit rank 1 at every cut (0 < noise < 1/2)"
    )

    def secret(self) -> Int[Tensor, " bit"]:
        """The secret subset as zeros and ones; at least one bit is in it."""
        random = np.random.default_rng(self.seed)
        chosen = random.integers(0, 2, self.bits)
        chosen[random.integers(self.bits)] = 1
        return torch.from_numpy(chosen)

    def ranks(self) -> tuple[int, ...]:
        """The exact rank at cuts 0 .. bits."""
        if self.noise == 0.5:
            return (1,) * (self.bits + 1)
        first = int(self.secret().argmax())
        return (1,) * (first + 1) + (2,) * (self.bits - first)

    def logit_ranks(self) -> tuple[int, ...]:
        """The logit rank at cuts 0 .. bits: one column, the label's sign, flips with the parity.

        Raises:
            InputError: without noise, where some tokens have no logit.
        """
        if self.noise == 0:
            raise InputError("noise 0 leaves labels of probability zero, which have no logit")
        return (0 if self.noise == 0.5 else 1,) * (self.bits + 1)

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        return ParityModel(self.secret(), self.noise)


def _dirichlet(random: np.random.Generator, concentration: float, *shape: int) -> Tensor:
    """Rows drawn from a symmetric Dirichlet law; the last axis sums to one."""
    rows = random.dirichlet(np.full(shape[-1], concentration), size=shape[:-1])
    return torch.from_numpy(np.asarray(rows, dtype=np.float64)).reshape(shape)


@dataclasses.dataclass(frozen=True)
class RandomHmm:
    """A hidden Markov model with Dirichlet rows."""

    states: int = number(8, 1, 1024)
    symbols: int = number(8, 2, 10_000)
    horizon: int = number(16, 1)
    concentration: float = number(1.0, 1e-3)
    varying: bool = False
    seed: int = number(0, 0)

    summary: ClassVar[str] = "a hidden Markov model with Dirichlet rows, stationary or time-varying"
    rank_text: ClassVar[str] = (
        "almost surely min(states, symbols^t, symbols^(horizon-t)); never above states"
    )

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        steps = self.horizon if self.varying else 1
        first = _dirichlet(random, 1.0, self.states)
        moves = _dirichlet(random, self.concentration, steps, self.states, self.states)
        emits = _dirichlet(random, self.concentration, steps, self.states, self.symbols)
        return Hmm(first, moves, emits, horizon=self.horizon)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One of several hidden Markov models, chosen at the start and never left."""

    components: int = number(3, 1, 64)
    states: int = number(2, 1, 64)
    symbols: int = number(4, 2, 10_000)
    horizon: int = number(16, 1)
    concentration: float = number(1.0, 1e-3)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "a never-mixing mixture: a component is chosen once and kept"
    rank_text: ClassVar[str] = (
        "almost surely min(components x states, symbols^t, symbols^(horizon-t))"
    )

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        blocks = _dirichlet(random, self.concentration, self.components, self.states, self.states)
        total = self.components * self.states
        emits = _dirichlet(random, self.concentration, 1, total, self.symbols)
        first = _dirichlet(random, 1.0, total)
        return Hmm(first, torch.block_diag(*blocks)[None], emits, horizon=self.horizon)


@dataclasses.dataclass(frozen=True)
class Permutation:
    """A hidden chain that follows a permutation and slips rarely."""

    states: int = number(6, 2, 1024)
    symbols: int = number(6, 2, 10_000)
    horizon: int = number(32, 1)
    slip: float = number(0.03, 0, 1)
    concentration: float = number(0.5, 1e-3)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "a near-permutation chain: errors are forgotten slowly"
    rank_text: ClassVar[str] = (
        "almost surely min(states, symbols^t, symbols^(horizon-t)) for slip < 1; "
        "slip = 1 forgets everything: rank 1"
    )

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        order = torch.from_numpy(random.permutation(self.states))
        moves = torch.full((self.states, self.states), self.slip / self.states, dtype=torch.float64)
        moves[torch.arange(self.states), order] += 1 - self.slip
        emits = _dirichlet(random, self.concentration, 1, self.states, self.symbols)
        first = torch.full((self.states,), 1 / self.states, dtype=torch.float64)
        return Hmm(first, moves[None], emits, horizon=self.horizon)


@dataclasses.dataclass(frozen=True)
class Registers:
    """k one-bit registers that tokens flip; a read shows one bit and clears them all.

    While nothing is being read, the stop comes with probability `stop` and all flips
    and reads share the rest. After a flip the law is affine in the registers' bits
    (only the first read sees them), so 2^k contents span k + 1 dimensions.
    """

    k: int = number(3, 1, 9)
    stop: float = number(0.1, 1e-6, 0.999)

    summary: ClassVar[str] = "k registers that are flipped and read: few dimensions, many states"
    rank_text: ClassVar[str] = "k + 3 over all cuts together; 2^k + 2 distinct rows"

    def teacher(self) -> SteppedTeacher:
        """States: the 2^k contents, then "a 0 is shown next" and "a 1 is shown next"."""
        contents, k = 2**self.k, self.k
        moves = torch.zeros((2 * k + 2, contents + 2, contents + 2), dtype=torch.float64)
        share = (1 - self.stop) / (2 * k)
        bits = torch.arange(contents)
        for i in range(k):
            moves[i, bits, bits ^ (1 << i)] = share
            moves[k + i, bits, contents + ((bits >> i) & 1)] = share
        for bit in (0, 1):
            moves[2 * k + bit, contents + bit, 0] = 1.0
        first = torch.zeros(contents + 2, dtype=torch.float64)
        first[0] = 1.0
        stopping = torch.full((contents + 2,), self.stop, dtype=torch.float64)
        stopping[contents:] = 0.0
        names = [f"flip{i}" for i in range(k)] + [f"read{i}" for i in range(k)] + ["0", "1"]
        return Automaton(first, moves, stopping, letters=tuple(names))


@dataclasses.dataclass(frozen=True)
class Copy:
    """Repeat after me: n uniform symbols over k letters, then the same n again."""

    n: int = number(4, 1, 64)
    k: int = number(2, 2, 1000)

    summary: ClassVar[str] = '"repeat after me": n uniform symbols, then the same n again'
    rank_text: ClassVar[str] = "k^min(t, 2n - t)"

    def ranks(self) -> tuple[int, ...]:
        """The exact rank at cuts 0 .. 2n - 1."""
        return tuple(self.k ** min(t, 2 * self.n - t) for t in range(2 * self.n))

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        return CopyModel(self.n, self.k)


@dataclasses.dataclass(frozen=True)
class Labels:
    """A label model of a random automaton: a uniform letter, then its accept bit."""

    states: int = number(5, 1, 10_000)
    letters: int = number(2, 1, 26)
    length: int = number(8, 1)
    noise: float = number(0.0, 0, 0.5)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "a random DFA's accept bit after each uniform letter"
    rank_text: ClassVar[str] = (
        "at an even cut at most the number of reachable states with different futures; at an "
        "odd cut at most that number too: the rank of the rows of accept bits over words"
    )

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        moves = torch.from_numpy(random.integers(0, self.states, (self.states, self.letters)))
        accepts = torch.from_numpy(random.integers(0, 2, self.states))
        return LabelModel(moves, accepts, self.length, self.noise)


@dataclasses.dataclass(frozen=True)
class Unigram:
    """Independent tokens."""

    symbols: int = number(4, 1, 100_000)
    horizon: int = number(8, 1)
    concentration: float = number(1.0, 1e-3)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "independent tokens"
    rank_text: ClassVar[str] = "1"

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        law = _dirichlet(np.random.default_rng(self.seed), self.concentration, 1, 1, self.symbols)
        one = torch.ones((1, 1, 1), dtype=torch.float64)
        return Hmm(one[0, 0], one, law, horizon=self.horizon)


@dataclasses.dataclass(frozen=True)
class Markov:
    """A Markov chain of order one, seen directly."""

    symbols: int = number(4, 1, 1024)
    horizon: int = number(8, 1)
    concentration: float = number(1.0, 1e-3)
    seed: int = number(0, 0)

    summary: ClassVar[str] = "a Markov chain of order one"
    rank_text: ClassVar[str] = "1 at cut 0, almost surely symbols at the cuts after it"

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        first = _dirichlet(random, self.concentration, self.symbols)
        moves = _dirichlet(random, self.concentration, 1, self.symbols, self.symbols)
        return Hmm(
            first, moves, torch.eye(self.symbols, dtype=torch.float64)[None], horizon=self.horizon
        )


@dataclasses.dataclass(frozen=True)
class LogitTwo:
    """Bits x, bits f, and a label with log-odds s(x) - s(f): logit rank 2.

    s(b) = scale x (0.b_1 b_2 ... in binary). The block at the middle cut is a Cauchy
    matrix in exp(s), so in exact arithmetic it has full rank.
    """

    length: int = number(9, 3, 401)
    scale: float = number(4.0, 1e-6, 100)

    summary: ClassVar[str] = "logit rank 2, and probability rank exponential in exact arithmetic"
    rank_text: ClassVar[str] = (
        "min(2^t, 2^(length-1-t) + 1) at cut t in exact arithmetic, far less numerically when long; "
        "logit rank 2, and 1 at the first and the last cut"
    )

    def logit_ranks(self) -> tuple[int, ...]:
        """The logit rank at cuts 0 .. length - 1."""
        return (1, *(2,) * (self.length - 2), 1)

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        if self.length % 2 == 0:
            raise InputError(f"the logit-rank-2 model needs an odd length, got {self.length}")
        return LogitTwoModel(self.length // 2, self.scale)


@dataclasses.dataclass(frozen=True)
class RandomIsan:
    """An input-switched affine network whose matrices are random rotations.

    first, of length 1, and the columns of each B are drawn from Gaussian laws, those of B with
    standard deviation `scale`; each A_{t,o} is a rotation drawn from the Haar measure. So x
    keeps its length, and the logits at every step and history have standard deviation `scale`
    over draws of B: the laws neither settle nor become certain as tokens are read.
    """

    dim: int = number(4, 1, 1024)
    symbols: int = number(16, 2, 10_000)
    horizon: int = number(32, 1)
    scale: float = number(2.0, 1e-6, 100)
    varying: bool = True
    seed: int = number(0, 0)

    summary: ClassVar[str] = (
        "an input-switched affine network of random rotations, stationary or time-varying"
    )
    rank_text: ClassVar[str] = (
        "logit rank almost surely min(dim, symbols^t, symbols^(horizon-t) - 1), where t > 0; "
        "the rank of probabilities has no such bound"
    )

    def logit_ranks(self) -> tuple[int, ...]:
        """The almost sure logit rank at cuts 0 .. horizon - 1."""
        o = self.symbols
        return tuple(
            min(self.dim, o ** min(t, 64), o ** min(self.horizon - t, 64) - 1)
            for t in range(self.horizon)
        )

    def teacher(self) -> SteppedTeacher:
        """Build the model."""
        random = np.random.default_rng(self.seed)
        first = torch.from_numpy(random.standard_normal(self.dim))
        steps = tuple(self._step(random) for _ in range(self.horizon if self.varying else 1))
        language = Spec(numbered(self.symbols), None, self.horizon, "unset")
        return CopyTeacher(Isan.of(language, first / first.norm(), steps))

    def _step(self, random: np.random.Generator) -> IsanStep:
        logits = self.scale * random.standard_normal((self.dim, self.symbols))
        q, r = np.linalg.qr(random.standard_normal((self.symbols, self.dim, self.dim)))
        rotations = q * np.sign(np.einsum("oii->oi", r))[:, None, :]  # makes q Haar distributed
        change = torch.from_numpy(rotations).transpose(0, 1).contiguous()
        return IsanStep(torch.from_numpy(logits), change)


FAMILIES: dict[str, type[Family]] = {
    "parity": Parity,
    "hmm": RandomHmm,
    "mixture": Mixture,
    "permutation": Permutation,
    "registers": Registers,
    "copy": Copy,
    "labels": Labels,
    "unigram": Unigram,
    "markov": Markov,
    "logit2": LogitTwo,
    "isan": RandomIsan,
}
