"""How fast a model scores and steps, beside a copy of memory in the same run, and when float32 is safe.

Everything runs on one thread, after a warming run, and the best of a few runs counts. Bytes that
scoring moves are, a token,

    8 (the token) + bytes of a number * (numbers of tables and coefficients read or written once),

zeros of padding left out (`Fused.work_at`). A copy of memory, as in STREAM (McCalpin, 1995), moves
every byte twice: read and written. Tables mostly stay in caches, so a fraction of a copy may exceed
one; `memory_fraction` counts only what must come from memory: the tokens, and each table once.

Single precision is safe for a model where, on fresh strings, the log-probability of none differs
from double precision's by more than SAFE nats a token.
"""

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from myna.errors import InputError
from myna.lowrank.batch import alive_counts
from myna.lowrank.fused import Fused
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision
from myna.lowrank.student import Strings, Student
from myna.teachers.compiled import CompiledModel

SAFE = 1e-5  # nats a token
_ENOUGH = 0.3  # of a copy's bandwidth, or of a matrix product's arithmetic
_COPIED = 2**26  # bytes: beyond every cache


@dataclasses.dataclass(frozen=True)
class Pace:
    """One model's speed.

    tokens_per_second: of scoring all strings at once
    step_microseconds: one token of one string and the law after it, the median
    """

    tokens_per_second: float
    step_microseconds: float


@dataclasses.dataclass(frozen=True)
class SpeedReport:
    """A compiled model beside the plain one.

    difference: largest difference of a string's score, nats a token
    copy_bandwidth: bytes a second, read and written
    bytes_per_token, multiply_adds_per_token: means over the strings
    bandwidth_fraction: of the copy's, by what scoring moves
    memory_fraction: of the copy's, by what must come from memory
    arithmetic_fraction: of the multiply-adds a second of a large matrix product
    fused: whether a C compiler was found; else the compiled model is the plain one
    """

    plain: Pace
    compiled: Pace
    difference: float
    copy_bandwidth: float
    bytes_per_token: float
    multiply_adds_per_token: float
    bandwidth_fraction: float
    memory_fraction: float
    arithmetic_fraction: float
    fused: bool

    @property
    def binds(self) -> str:
        """What keeps scoring from being faster."""
        if not self.fused:
            return "no C compiler was found: the plain model answers"
        if self.arithmetic_fraction >= _ENOUGH:
            return (
                f"arithmetic: {self.multiply_adds_per_token:.0f} multiply-adds a token, at "
                f"{self.arithmetic_fraction:.0%} of a large matrix product's rate"
            )
        if self.memory_fraction >= _ENOUGH:
            return "memory: tokens and tables that must come from it"
        if self.bandwidth_fraction >= _ENOUGH:
            return "caches: rows and tables there, each token waiting for the one before"
        return "each token waiting for the one before: too little work between them"


def compiled_safely(
    model: LowRankModel, precision: Precision, drawn: Strings
) -> tuple[CompiledModel, float]:
    """The compiled model, and its largest difference from the plain one (nats a token).

    drawn: fresh strings of the model, none empty

    Raises:
        InputError: where single precision differs by more than SAFE.
    """
    compiled = CompiledModel(model, precision)
    found = largest_difference(model, compiled, drawn)
    if precision is Precision.SINGLE and not found <= SAFE:
        raise InputError(
            f"float32 is not safe for this copy: on {len(drawn.lengths)} fresh strings scores differ "
            f"by up to {found:.2g} nats a token, and {SAFE:g} is allowed; compile it without --float32"
        )
    return compiled, found


def largest_difference(plain: Student, other: Student, drawn: Strings) -> float:
    """Of a string's score, nats a token; strings must be possible under the plain model."""
    gap = (plain.score(drawn) - other.score(drawn)).abs() / drawn.lengths.clamp(min=1)
    return float(gap.max())


def measure(model: LowRankModel, compiled: CompiledModel, drawn: Strings) -> SpeedReport:
    """Both models on the same strings, on one thread, beside a copy and a matrix product."""
    with _one_thread():
        bandwidth, products = copy_bandwidth(), product_rate(compiled.precision)
        plain, fast = (
            Pace(scoring_rate(each, drawn), step_latency(each, drawn)) for each in (model, compiled)
        )
    rate = fast.tokens_per_second
    touched, work = _work(compiled.fused, drawn)
    tables = [part for step in compiled.fused.steps for part in (step.laws, step.moves)]
    once = sum(table.numel() * table.element_size() for table in tables)
    fresh = 8 + once / int(drawn.lengths.sum())
    return SpeedReport(
        plain,
        fast,
        largest_difference(model, compiled, drawn),
        bandwidth,
        touched,
        work,
        rate * touched / bandwidth,
        rate * fresh / bandwidth,
        rate * work / products,
        compiled.passes is not None,
    )


def _work(fused: Fused, drawn: Strings) -> tuple[float, float]:
    """Bytes moved and multiply-adds, means a token."""
    size = fused.first.element_size()
    alive = [*alive_counts(drawn.lengths, drawn.tokens.shape[1]), 0]
    moved = added = 0
    for t, (here, beyond) in enumerate(itertools.pairwise(alive)):
        for count, last in ((beyond, False), (here - beyond, True)):
            numbers, products = fused.work_at(t, last=last)
            moved, added = moved + count * numbers, added + count * products
    return 8 + size * moved / sum(alive), added / sum(alive)


def copy_bandwidth() -> float:
    """Bytes a second that one thread reads and writes copying memory."""
    source = np.ones(_COPIED // 8)
    target = np.empty_like(source)
    return 2 * _COPIED / _seconds(lambda: np.copyto(target, source))


def product_rate(precision: Precision) -> float:
    """Multiply-adds a second of a matrix product."""
    size = 512
    table = torch.ones(size, size, dtype=precision.dtype)
    return size**3 / _seconds(lambda: torch.mm(table, table))


def scoring_rate(model: Student, drawn: Strings, repeats: int = 5) -> float:
    """Tokens a second, the best of so many runs after one that warms up."""
    return int(drawn.lengths.sum()) / _seconds(lambda: model.score(drawn), repeats)


def step_latency(model: Student, drawn: Strings) -> float:
    """Microseconds of one step of one string and the law after it: the median over tokens."""
    spent = []
    for row, length in zip(drawn.tokens[:50], drawn.lengths[:50].tolist(), strict=True):
        state = model.initial(1)
        for token in row[: min(length, 100) - 1].split(1):
            started = time.perf_counter()
            state, _ = model.step(state, token)
            model.law(state)
            spent.append(time.perf_counter() - started)
    return 1e6 * statistics.median(spent) if spent else float("nan")


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The best of a few runs, after one that warms up."""
    run()
    found = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - started)
    return found


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Tensor operations on one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
