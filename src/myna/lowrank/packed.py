"""Compact tables: fewer bytes for the same model, or for nearly the same.

A table of laws or of changes of basis is stored as its nonzero entries and one bit an entry that
says which they are, where that is smaller than all entries. Where a step is a hidden Markov
model's, G[i, o, :] = T[i, :], T alone is stored. Entries may be rounded to fewer bits; rows that
summed to one are divided by their sums after reading, so that rounding does not leak mass. What
is read back is a plain model in double precision. Packing that once more may round once more, as
its rows were divided: what is measured is the model read back, and what is packed the one before.
"""

import enum
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step, forgetful
from myna.spec import Spec

_SUMS = 1e-9  # a row whose sum is so near to one is meant to sum to one


class Precision(enum.Enum):
    """How entries are stored."""

    DOUBLE = "float64"
    SINGLE = "float32"
    HALF = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """Of tensors."""
        return {
            Precision.DOUBLE: torch.float64,
            Precision.SINGLE: torch.float32,
            Precision.HALF: torch.bfloat16,
        }[self]


class Packed:
    """Named tensors, and how each step's tables are stored (JSON types)."""

    def __init__(self, tensors: dict[str, Tensor], steps: list[dict[str, Any]]):
        """Keep both."""
        self.tensors, self.steps = tensors, steps

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


def pack(model: LowRankModel, precision: Precision) -> Packed:
    """A model's tables in as few bytes as these means allow."""
    tensors, steps = {"first": model.first.cpu().contiguous()}, []
    for t, step in enumerate(model.steps):
        shared = step.transition
        change = step.change if shared is None else shared
        steps.append(
            {
                "shared": shared is not None,
                "laws": _store(tensors, f"laws.{t}", step.laws.cpu(), precision),
                "change": _store(tensors, f"change.{t}", change.cpu(), precision),
            }
        )
    return Packed(tensors, steps)


def unpack(
    language: Spec,
    tensors: dict[str, Tensor],
    described: list[dict[str, Any]],
    histories: tuple[tuple[tuple[int, ...], ...], ...],
) -> LowRankModel:
    """The model that a packed form stands for, with the fingerprint of its own numbers.

    Raises:
        InputError: where a table has other entries than its shape says.
    """
    steps = []
    for t, (form, names) in enumerate(zip(described, histories, strict=True)):
        laws = _read(tensors, f"laws.{t}", form["laws"])
        change = _read(tensors, f"change.{t}", form["change"])
        if form["shared"]:
            change = forgetful(change, language.num_tokens)
            change = change.masked_fill((laws <= 0)[:, :, None], 0.0)
        steps.append(Step(laws, change, names))
    return LowRankModel.of(language, tensors["first"].double(), tuple(steps))


def rounded(model: LowRankModel, precision: Precision) -> tuple[LowRankModel, int]:
    """The model that comes back from a packed form, and its bytes."""
    packed = pack(model, precision)
    names = tuple(step.histories for step in model.steps)
    return unpack(model.spec, packed.tensors, packed.steps, names), packed.num_bytes


def _store(
    tensors: dict[str, Tensor], name: str, table: Float[Tensor, "*shape"], precision: Precision
) -> dict[str, Any]:
    """Put a table among the tensors; how it was stored."""
    sums = table.sum(-1)
    even = bool((((sums - 1).abs() < _SUMS) | (table == 0).all(-1)).all())
    values = table.to(precision.dtype).contiguous()
    filled = values != 0
    dense = values.numel() * values.element_size()
    sparse = int(filled.sum()) * values.element_size() + math.ceil(values.numel() / 8)
    if sparse < dense:
        bits = np.packbits(filled.reshape(-1).numpy())
        tensors[name] = values[filled].contiguous()
        tensors[f"{name}.where"] = torch.from_numpy(bits)
    else:
        tensors[name] = values
    return {"shape": list(table.shape), "sparse": sparse < dense, "sums_to_one": even}


def _read(tensors: dict[str, Tensor], name: str, form: dict[str, Any]) -> Float[Tensor, "*shape"]:
    """The table that `_store` put away; entries are counted before a table is made."""
    shape = tuple(form["shape"])
    values, entries = tensors[name].double(), math.prod(shape)
    if form["sparse"]:
        where = tensors[f"{name}.where"]
        _require(len(where) == math.ceil(entries / 8), name)
        filled = torch.from_numpy(np.unpackbits(where.numpy(), count=entries)).bool()
        _require(int(filled.sum()) == values.numel(), name)
        table = torch.zeros(entries, dtype=torch.float64)
        table[filled] = values
        values = table
    _require(values.numel() == entries, name)
    values = values.reshape(shape)
    if form["sums_to_one"]:
        sums = values.sum(-1, keepdim=True)
        values = torch.where(sums == 0, values, values / sums)
    return values


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise InputError(f"the packed table {name!r} does not have the entries that its shape says")
