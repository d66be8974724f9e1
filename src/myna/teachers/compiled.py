"""A low-rank model compiled for use: the same Q as `lowrank.model`, in one pass of C a string.

    Q(o | x) = max(q_o, 0) / sum_o' max(q_o', 0),    q = c(x) L,    c(x o) = c(x) A_o / q_o

on tables multiplied out once (`lowrank.fused`). In double precision scores agree with the plain
model's to rounding, and the same generator draws the same strings; where signed weights cancel to
0 in one of the two, rounding (1e-16 of the law) may be left in the other. In single precision
tables and coefficients have 24 bits; logarithms are kept in double. Where nothing compiles C, the
plain model answers in its own (double) precision. The passes run a compiler, so this module is not
in `lowrank`.
"""

import ctypes
import dataclasses
import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.c_source import built
from myna.errors import InputError
from myna.lowrank.fused import Fused, FusedStep, fuse
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision
from myna.lowrank.student import (
    State,
    StepInfo,
    Strings,
    check_count,
    check_strings,
    sampling_limit,
)
from myna.spec import Spec, fingerprint

_REALS = {Precision.DOUBLE: ("double", 8), Precision.SINGLE: ("float", 4)}
_NO_MEMORY = 1
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Step(ctypes.Structure):
    _fields_ = [(n, _POINTER) for n in ("laws", "emissions", "moves")] + [
        (n, _LONG) for n in ("rank", "next")
    ]


class _Model(ctypes.Structure):
    _fields_ = [(n, _POINTER) for n in ("steps", "first")] + [
        (n, _LONG) for n in ("count", "tokens", "stop", "widest", "positive", "shared", "blocks")
    ]


class _Text(ctypes.Structure):
    _fields_ = [(n, _POINTER) for n in ("tokens", "lengths", "order")] + [
        (n, _LONG) for n in ("count", "width")
    ]


class _Rows(ctypes.Structure):
    _fields_ = [(n, _POINTER) for n in ("x", "y", "token", "log_prob", "law", "uniform")] + [
        (n, _LONG) for n in ("count", "position")
    ]


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """A low-rank model in its form for use: a Student, on the CPU.

    model: the plain one
    precision: DOUBLE, or SINGLE where that was measured to be safe

    Raises:
        InputError: for a precision that no arithmetic is done in.
    """

    model: LowRankModel
    precision: Precision = Precision.DOUBLE

    def __post_init__(self) -> None:
        """Only what a C compiler knows."""
        if self.precision not in _REALS:
            raise InputError(
                f"a model is compiled in float64 or float32, got {self.precision.value}"
            )

    @property
    def spec(self) -> Spec:
        """The plain model's; in single precision with a fingerprint of its own."""
        return self._spec

    @functools.cached_property
    def _spec(self) -> Spec:
        plain = self.model.spec
        if self.precision is Precision.DOUBLE:
            return plain
        mark = fingerprint("compiled", plain.fingerprint, self.precision.value)
        return dataclasses.replace(plain, fingerprint=mark)

    @functools.cached_property
    def fused(self) -> Fused:
        """The tables."""
        return fuse(self.model, self.precision.dtype)

    @functools.cached_property
    def passes(self) -> ctypes.CDLL | None:
        """The C passes, or None where nothing compiles them: then the plain model answers."""
        name, size = _REALS[self.precision]
        width, rank = self.fused.lanes * size, self.fused.one_rank
        options = (f"-DREAL={name}", f"-DBYTES={width}", f"-DRANK={rank}")
        return built("teachers/fused_passes.c", *options)

    @functools.cached_property
    def _described(self) -> tuple[_Model, Any]:
        """The tables as C sees them, and the array of steps that they point to."""
        fused, spec = self.fused, self.model.spec
        steps = (_Step * len(fused.steps))(*(_described_step(step) for step in fused.steps))
        found = _Model(
            ctypes.addressof(steps),
            fused.first.data_ptr(),
            len(steps),
            spec.num_tokens,
            -1 if spec.stop is None else spec.stop,
            fused.widest,
            fused.positive,
            fused.shared,
            fused.blocks,
        )
        return found, steps

    @property
    def num_parameters(self) -> int:
        """How many numbers the plain model stores."""
        return self.model.num_parameters

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank at each stored cut."""
        return self.model.ranks

    def initial(self, batch: int) -> State:
        """The coefficients of the empty history, repeated."""
        if self.passes is None:
            return self.model.initial(batch)
        return State(self.fused.first.expand(batch, -1), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log Q(o | x) (nats), in double precision."""
        if self.passes is None:
            return self.model.law(state)
        law = torch.empty((len(state.vector), self.spec.num_tokens), dtype=torch.float64)
        self._rows(state, law=law)
        return law

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Bayes' rule; an impossible token leaves no coefficients (all zero)."""
        if self.passes is None:
            return self.model.step(state, tokens)
        log_prob = torch.empty(len(tokens), dtype=torch.float64)
        y = self._moved(state)
        self._rows(state, y=y, token=tokens.contiguous(), log_prob=log_prob)
        return State(y, state.position + 1), StepInfo(log_prob)

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log Q(x) in nats, one a sequence."""
        if self.passes is None:
            return self.model.score(strings)
        tokens, lengths = strings.tokens.contiguous(), strings.lengths.contiguous()
        result = torch.zeros(len(lengths), dtype=torch.float64)
        if not len(lengths):
            return result
        if self.spec.horizon is not None and int(lengths.max()) > self.spec.horizon:
            check_strings(self.spec, strings)  # says which
        ragged = int(lengths.min()) < int(lengths.max())
        order = torch.argsort(lengths, descending=True, stable=True) if ragged else None
        text = _Text(
            tokens.data_ptr(),
            lengths.data_ptr(),
            None if order is None else order.data_ptr(),
            len(lengths),
            tokens.shape[1],
        )
        status = self.passes.myna_score(
            ctypes.byref(self._described[0]), ctypes.byref(text), _POINTER(result.data_ptr())
        )
        if status:
            self._explain(status, strings)
        return result

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences from Q: what `sample_by_steps` draws, a pass a step."""
        if self.passes is None:
            return self.model.sample(count, generator, max_tokens)
        check_count(count)
        limit = sampling_limit(self.spec, max_tokens)
        state, alive = self.initial(count), torch.arange(count)
        lengths = torch.zeros(count, dtype=torch.int64)
        columns: list[Tensor] = []
        while len(alive) and (limit is None or len(columns) < limit):
            uniform = torch.rand(
                len(alive), dtype=torch.float64, generator=generator, device=generator.device
            ).cpu()
            tokens, y = torch.empty(len(alive), dtype=torch.int64), self._moved(state)
            self._rows(state, y=y, token=tokens, uniform=uniform)
            column = torch.full((count,), -1, dtype=torch.int64)
            column[alive] = tokens
            columns.append(column)
            lengths[alive] += 1
            state = State(y, state.position + 1)
            going = tokens != self.spec.stop if self.spec.stop is not None else None
            if going is not None and not bool(going.all()):
                alive, state = alive[going], state.take(going.nonzero()[:, 0])
        width = torch.stack(columns, 1) if columns else torch.empty((count, 0), dtype=torch.int64)
        return Strings(width, lengths)

    def _moved(self, state: State) -> Float[Tensor, "batch next_rank"]:
        """Room for the next step's coefficients."""
        step = self.model.step_at(state.position)
        return self.fused.first.new_empty((len(state.vector), step.change.shape[2]))

    def _rows(self, state: State, **wanted: Tensor) -> None:
        """One position of each row; `wanted` are contiguous and filled or read in place."""
        assert self.passes is not None
        x = state.vector.contiguous()
        self._check(x, state.position, wanted.get("token") if "uniform" not in wanted else None)
        pointers = {name: tensor.data_ptr() for name, tensor in wanted.items()}
        rows = _Rows(x=x.data_ptr(), count=len(x), position=state.position, **pointers)
        status = self.passes.myna_rows(ctypes.byref(self._described[0]), ctypes.byref(rows))
        if status:
            self._explain(status, None)

    def _check(self, x: Tensor, position: int, read: Tensor | None) -> None:
        """What C would read beyond a table for.

        Raises:
            InputError: for vectors of another step or precision, and tokens outside the alphabet.
        """
        rank = self.model.step_at(position).rank
        if x.shape[1] != rank or x.dtype != self.precision.dtype:
            raise InputError(
                f"coefficients at position {position} are {rank} numbers in {self.precision.value}, "
                f"got {x.shape[1]} in {x.dtype}"
            )
        if read is not None and len(read):
            low, high = (int(end) for end in read.aminmax())
            if low < 0 or high >= self.spec.num_tokens or len(read) != len(x):
                raise InputError(
                    f"tokens must lie in 0..{self.spec.num_tokens - 1}, one for each of {len(x)} "
                    f"rows; got {len(read)} in {low}..{high}"
                )

    def _explain(self, status: int, strings: Strings | None) -> None:
        """Raise what a pass could not work with."""
        if status == _NO_MEMORY:
            raise MemoryError("no memory for the rows of a compiled model")
        if strings is not None:
            check_strings(self.spec, strings)
            width = strings.tokens.shape[1]
            raise InputError(f"lengths must lie in 0..{width}, the number of columns of tokens")


def _described_step(step: FusedStep) -> _Step:
    """One step's tables as C sees them."""
    tables = (step.laws, step.emissions, step.moves)
    return _Step(*(table.data_ptr() for table in tables), step.rank, step.next_rank)
