"""A causal language model of `transformers` as a teacher.

Over sequences x_1 ... x_T its next-token laws are

    P(o | x_1 ... x_t) = softmax(logits(x_0 x_1 ... x_t))_o,

x_0 being the beginning token, which stands before every prefix and is no part of it. The
stop token ends a sequence, and so does the horizon, which the model's context caps: the
law of x_H is read from x_0 ... x_{H-1}, so a context of C tokens allows H <= C. Nothing
else is changed: no temperature, no forbidden tokens, no truncation.

Logits have the model's own precision; the softmax is taken in float64. The keys and values
of prefixes asked before are kept, and a batch is read along its prefix tree.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import TeacherError
from myna.lowrank.student import State, StepInfo, Strings, check_strings
from myna.spec import Spec, fingerprint
from myna.teachers.crossing import Crossing, FutureTree, crossed_by_laws
from myna.teachers.draws import complete_in_parts, draw_limits, sample_by_completing
from myna.teachers.key_values import net_of
from myna.teachers.llama_cross import LlamaCross
from myna.teachers.oracle import Completions, Stream
from myna.teachers.prefixes import Prefixes, check_prefixes
from myna.teachers.stepped import RecentStates, SteppedTeacher, bytes_of
from myna.teachers.transformer_cross import Crosser
from myna.teachers.tree_walk import distinct, walk

_LARGEST_BATCH = 1024  # beyond it nothing is gained on the models tried
_COPIES = 6  # of a row that exist at once while a batch is read
_SHARE = 0.25  # of the free memory, for a batch; as much again for what is kept
_KEPT_BYTES = 2**31  # states kept, where memory allows
_DRAWS = 2**15  # draws completed together
_TOGETHER = 32  # histories read in one pass
_TREE = 0.5  # futures with fewer distinct places than this share of all are walked as a tree

_Read = TypeVar("_Read")


class TransformerTeacher(SteppedTeacher):
    """All three levels of access to a causal language model.

    model: a `transformers` model in evaluation mode, on its device
    begin: x_0
    spec: alphabet in the order of the logits, stop, horizon and fingerprint
    batch: the most prefixes read together, where they fit in memory
    """

    def __init__(self, model: Any, begin: int, spec: Spec, batch: int | None = None):
        """Read the beginning token."""
        self._net = net_of(model, begin)
        self._begin = begin
        self._spec = spec
        self._room = int(_SHARE * free_memory(model.device))
        self._kept_bytes = min(_KEPT_BYTES, self._room)
        self._batch = batch or _LARGEST_BATCH
        self._kept = RecentStates(self._kept_bytes)

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    @property
    def num_bytes(self) -> int | None:
        """Of all parameters, in the model's own precision."""
        return bytes_of(self._net.model.parameters())

    @property
    def batch(self) -> int:
        """The most prefixes read together, halved each time that memory ran out."""
        return self._batch

    def initial(self, batch: int) -> State:
        """The state after the beginning token."""
        return State(self._net.root.expand(batch, -1), 0)

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Read one more token of each row."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        rows = self._net.extend(state.vector, tokens[:, None])
        return State(rows, state.position + 1), StepInfo(log_prob)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats), normalised in float64."""
        return _law(self._net.logits(state.vector))

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats) of each prefix, on the CPU."""
        check_prefixes(self._spec, prefixes)
        sorted_rows = distinct(prefixes)
        once = prefixes.take(sorted_rows.first)
        laws = torch.empty((len(once.lengths), self._spec.num_tokens), dtype=torch.float64)
        longest = int(once.lengths.max()) if len(laws) else 0
        fits = max(1, self._room // (_COPIES * self._row_bytes(longest)))
        done = 0
        while done < len(laws):
            rows = torch.arange(done, min(len(laws), done + min(fits, self._batch)))
            answer = self._within_memory(self._walk, once.take(rows))
            if answer is not None:
                laws[rows] = answer
                done += len(rows)
        return laws[sorted_rows.place]

    def _walk(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        net = self._net
        return walk(net.root, net.extend, lambda rows: _law(net.logits(rows)), prefixes, self._kept)

    def _within_memory(self, read: Callable[[Any], _Read], part: Any) -> _Read | None:
        """What `read` makes of a part; None where memory ran out and the batch was halved.

        Raises:
            TeacherError: where a single prefix does not fit.
        """
        try:
            return read(part)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            self._kept.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self._batch == 1:
                raise TeacherError(
                    "one prefix at a time still does not fit in memory; use shorter prefixes, "
                    "a smaller dtype, or a machine with more"
                ) from error
        self._batch = max(1, self._batch // 2)
        return None

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion.

        Draws that have read the same share its state; a part of the draws at a time, so
        that the states of all of them can be kept.
        """
        check_prefixes(self._spec, prefixes)
        limits = draw_limits(self._spec, prefixes.lengths, max_tokens)
        longest = int((prefixes.lengths + limits.clamp(max=64)).max()) if len(limits) else 0
        room = max(1, min(_DRAWS, self._kept_bytes // (2 * self._row_bytes(longest))))
        return complete_in_parts(
            self,
            prefixes,
            count,
            stream=stream,
            max_tokens=max_tokens,
            first_draw=first_draw,
            room=room,
        )

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log P(x) in nats, one a sequence, each read in one pass.

        Sequences are padded on the right, where a causal model cannot look.
        """
        check_strings(self._spec, strings)
        total = torch.empty(len(strings.lengths), dtype=torch.float64)
        order, done = torch.argsort(strings.lengths), 0
        logits = 8 * self._spec.num_tokens * max(1, strings.tokens.shape[1])
        fits = max(1, self._room // (_COPIES * logits))
        while done < len(order):
            rows = order[done : done + min(fits, self._batch)]
            part = Strings(strings.tokens[rows], strings.lengths[rows])
            answer = self._within_memory(self._score, part)
            if answer is not None:
                total[rows] = answer
                done += len(rows)
        return total

    def _score(self, strings: Strings) -> Float[Tensor, " batch"]:
        width = int(strings.lengths.max())
        tokens = strings.tokens[:, :width].cpu()
        if not width:
            return torch.zeros(len(tokens), dtype=torch.float64)
        first = torch.full((len(tokens), 1), self._begin)
        given = torch.cat([first, tokens[:, :-1].clamp(min=0)], 1)
        laws = _law(self._net.whole(given)).cpu()
        steps = laws.gather(2, tokens.clamp(min=0)[:, :, None])[:, :, 0]
        inside = torch.arange(width) < strings.lengths[:, None]
        return torch.where(inside, steps, 0.0).sum(1)

    def cross(
        self, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
    ) -> Crossing:
        """Log P(f | h) of every history and future, and the kept laws; see `crossed`."""
        distinct_places = len(FutureTree.of(futures).pairs)
        if distinct_places < _TREE * int(futures.lengths.sum()):
            return crossed_by_laws(self, histories, futures, kept)
        longest = int(histories.lengths.max()) + int(futures.lengths.max())
        logits = 12 * self._spec.num_tokens * int(futures.lengths.max())
        fits = max(1, self._room // (_COPIES * (self._row_bytes(longest) + logits)))
        while True:
            batch = min(fits, self._batch)
            crosser = Crosser(self._net, self._llama, futures, kept, batch)
            states = self._states(histories)
            answer = self._within_memory(crosser.cross, states)
            if answer is not None:
                return answer

    def _states(self, histories: Prefixes) -> list[Tensor]:
        """The row of each history, kept for the next futures."""
        net, keys = self._net, histories.keys()
        found = self._kept.find(keys)
        for length in histories.lengths.unique().tolist():
            rows = [
                i
                for i, row in enumerate(found)
                if row is None and int(histories.lengths[i]) == length
            ]
            for some in torch.tensor(rows, dtype=torch.int64).split(_TOGETHER):
                tokens = histories.tokens[some, :length]
                root = net.root.expand(len(some), -1)
                states = net.extend(root, tokens) if length else root
                self._kept.keep([keys[i] for i in some.tolist()], states)
                for i, state in zip(some.tolist(), states, strict=True):
                    found[i] = state
        return [row[None] for row in found if row is not None]

    def untrained(self, seed: int) -> "TransformerTeacher":
        """A model of the same shape whose weights were never trained."""
        model = self._net.model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(model)(model.config).eval().to(model.device, model.dtype)
        mark = fingerprint("untrained", self._spec.fingerprint, seed)
        spec = dataclasses.replace(self._spec, fingerprint=mark)
        return TransformerTeacher(fresh, self._begin, spec, self._batch)

    @functools.cached_property
    def _llama(self) -> LlamaCross | None:
        return LlamaCross.of(self._net.model)

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences (outside any ledger: for tests and benchmarks)."""
        return sample_by_completing(self, count, generator, max_tokens)

    def _row_bytes(self, length: int) -> int:
        """Bytes that a prefix of a length takes: its row, and its law in float64."""
        row = self._net.row_numbers(length) * self._net.root.element_size()
        return row + 8 * self._spec.num_tokens


def _law(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _out_of_memory(error: Exception) -> bool:
    """CUDA says so by type, the CPU's allocator in words only."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
