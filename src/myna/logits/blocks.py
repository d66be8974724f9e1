"""The blocks of a logit matrix as they come, within a memory and kept on disk.

A block is all histories x some futures, so that sums over columns, as Gram matrices are, add
up block by block. With a folder each block is written when it is made, under the digest of
all that its entries depend on; blocks found there are read and not made again.
"""

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.logits.matrix import Block, LogitMatrix

_COPIES = 3  # of a block's laws that exist at once while it is made
_TRIAL = (8, 32)  # histories and futures that tell how long a block takes


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a pass over the blocks is.

    done, pairs: pairs of history and future read, and in all
    seconds_left: an estimate; before the first block from a small trial
    """

    done: int
    pairs: int
    seconds_left: float


Report = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A logit matrix cut into blocks; iterating makes or reads them, as often as wanted.

    matrix: what is cut
    memory: most bytes of a block while it is made
    folder: where blocks are kept; None keeps none
    dtype: of the logits (whole futures are float64)
    report: is told of the progress
    """

    matrix: LogitMatrix
    memory: int = 2**30
    folder: Path | None = None
    dtype: torch.dtype = torch.float64
    report: Report | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be held or kept.

        Raises:
            InputError: saying the bytes.
        """
        if self._future_bytes > self.memory:
            raise InputError(
                f"one future with all {self.matrix.shape[0]:,} histories takes "
                f"{_size(self._future_bytes)}, and {_size(self.memory)} is the limit; allow more, "
                "or ask for fewer histories or the laws before last tokens only"
            )
        if self.folder is not None:
            self._check_disk(self.folder)

    @functools.cached_property
    def _bytes(self) -> Int[Tensor, " future"]:
        """Of each future while a block is made: laws in float64, whatever is kept of them.

        Laws that futures share are made with the first of them, so early futures take more.
        """
        count, futures = self.matrix.shape
        laws = torch.bincount(self.matrix.nodes[:, 0], minlength=futures)
        return 8 * count * (1 + _COPIES * laws * self.matrix.teacher.spec.num_tokens)

    @property
    def _future_bytes(self) -> int:
        """Of the largest future."""
        return int(self._bytes.max())

    @functools.cached_property
    def ranges(self) -> list[range]:
        """The futures of each block: as many as the memory holds."""
        ends = self._bytes.cumsum(0)
        found, start, before = [], 0, 0
        while start < len(ends):
            stop = int(torch.searchsorted(ends, before + self.memory, right=True))
            found.append(range(start, stop))
            start, before = stop, int(ends[stop - 1])
        return found

    @property
    def bytes_kept(self) -> int:
        """What all blocks take on disk."""
        count, futures = self.matrix.shape
        logits = len(self.matrix.nodes) * self.matrix.kept * self.dtype.itemsize
        return count * (8 * futures + logits)

    def __iter__(self) -> Iterator[Block]:
        """The blocks in order."""
        count, futures = self.matrix.shape
        todo = [part for part in self.ranges if not self._is_kept(part)]
        left, spent, made = sum(map(len, todo)), 0.0, 0
        if self.report is not None and todo:
            self.report(Progress(count * (futures - left), count * futures, self._trial(left)))
        for part in self.ranges:
            if self._is_kept(part):
                yield self._read(part)
                continue
            began = time.perf_counter()
            block = self.matrix.block(range(count), part)
            block = block._replace(logits=block.logits.to(self.dtype))
            self._keep(block)
            spent, made, left = (
                spent + time.perf_counter() - began,
                made + len(part),
                left - len(part),
            )
            if self.report is not None:
                done = count * (futures - left)
                self.report(Progress(done, count * futures, spent / made * left))
            yield block

    def _trial(self, futures: int) -> float:
        """Seconds that so many futures should take, from a few histories and futures."""
        rows, columns = (min(n, m) for n, m in zip(_TRIAL, self.matrix.shape, strict=True))
        part = (range(rows), range(columns))
        self.matrix.block(*part)  # the first time takes longer
        began = time.perf_counter()
        self.matrix.block(*part)
        pairs = self.matrix.shape[0] * futures
        return (time.perf_counter() - began) * pairs / (rows * columns)

    def _name(self, part: range) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.matrix.mark[:24]}-{kind}-{part.start}-{part.stop}.safetensors"

    def _path(self, part: range) -> Path | None:
        return None if self.folder is None else self.folder / self._name(part)

    def _is_kept(self, part: range) -> bool:
        path = self._path(part)
        return path is not None and path.is_file()

    def _keep(self, block: Block) -> None:
        """Write a block, whole or not at all."""
        path = self._path(block.futures)
        if path is None:
            return
        draft = path.with_suffix(f".draft-{os.getpid()}")
        tensors = {"whole": block.whole.contiguous(), "logits": block.logits.contiguous()}
        try:
            safetensors.torch.save_file(tensors, draft)
            draft.replace(path)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise InputError(
                f"a block cannot be written to {path}: {error}; free some space and start "
                "again, what is there is not made again"
            ) from error

    def _read(self, part: range) -> Block:
        path = self._path(part)
        try:
            found = safetensors.torch.load_file(str(path))
            return Block(range(self.matrix.shape[0]), part, found["whole"], found["logits"])
        except (OSError, SafetensorError, KeyError) as error:
            raise FormatError(
                f"{path} does not read as a block: {error}; remove the file and start again"
            ) from error

    def _check_disk(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise InputError(f"blocks cannot be kept in {folder}: {error}") from error
        paths = [folder / name for name in map(self._name, self.ranges)]
        there = sum(path.stat().st_size for path in paths if path.is_file())
        if self.bytes_kept - there > free:
            raise InputError(
                f"the blocks take {_size(self.bytes_kept - there)} more and {folder} has "
                f"{_size(free)} free; keep fewer tokens a law, fewer histories or futures, or use "
                "another disk"
            )


def _size(count: int) -> str:
    names = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(names) - 1, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {names[power]}"
