"""A low-rank model whose coefficients are kept within a region at every token.

    c'_j = sum_i c_i L[i, o] G[i, o, j] / q_o   (Bayes' rule, `model`),   then
    c'  <-  argmin over K of d(c R, c' R)        where c' has left K      (`region`)

Source: Liu and Moitra (arXiv 2411.07536), Algorithm 6: estimation errors compound over the
tokens, and putting the estimate back into a set that holds the truth, nearest in KL, never
adds to the error. Where we differ: K is a choice, and a point within K is not touched, so
with exact laws the model is the one it was made of. The law of the next token is clipped
and normalised as in `model`; `score` and `sample` go by steps, so both are the same Q.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.lowrank.divergence import Divergence
from myna.lowrank.model import LowRankModel
from myna.lowrank.region import Box, Hull, Region, Truncate
from myna.lowrank.student import State, StepInfo, Stepped
from myna.spec import Spec, fingerprint


@dataclasses.dataclass(frozen=True)
class ProjectedModel(Stepped):
    """A low-rank model with a region for each stored step: a Student.

    spec: the model's language, with a fingerprint that covers the regions
    model: laws and changes of basis
    regions: region t is for coefficients over the basis of step t, None for no projection;
        the first is used only where one step serves all positions
    divergence: what "nearest" means

    Raises:
        InputError: where regions do not fit the model's steps.
    """

    spec: Spec
    model: LowRankModel
    regions: tuple[Region | None, ...]
    divergence: Divergence

    def __post_init__(self) -> None:
        """Check that each region is for its step's basis."""
        if len(self.regions) != len(self.model.steps):
            raise InputError(
                f"a model with {len(self.model.steps)} steps needs as many regions (or None), "
                f"got {len(self.regions)}"
            )
        for t, (region, step) in enumerate(zip(self.regions, self.model.steps, strict=True)):
            if region is not None and region.rank not in (None, step.rank):
                raise InputError(
                    f"the region of step {t} is for rank {region.rank} and the step has rank "
                    f"{step.rank}; they must be equal"
                )

    @classmethod
    def of(
        cls,
        model: LowRankModel,
        regions: tuple[Region | None, ...],
        divergence: Divergence = Divergence.KL,
    ) -> "ProjectedModel":
        """With a fingerprint of the model's and the regions' numbers."""
        tensors, text = describe_regions(regions, divergence)
        mark = fingerprint("projected model", model.spec.fingerprint, text, *tensors.values())
        return cls(dataclasses.replace(model.spec, fingerprint=mark), model, regions, divergence)

    def to(self, device: torch.device | str) -> "ProjectedModel":
        """The same model on another device."""
        regions = tuple(None if r is None else r.to(device) for r in self.regions)
        return ProjectedModel(self.spec, self.model.to(device), regions, self.divergence)

    def region_at(self, position: int) -> Region | None:
        """The region of the coefficients after `position` tokens; None beyond the last basis."""
        last = len(self.regions) - 1
        horizon = self.model.spec.horizon
        if horizon is not None and position >= max(horizon, last + 1):
            return None
        return self.regions[min(position, last)]

    def initial(self, batch: int) -> State:
        """The model's own; it is exact, so it is not projected."""
        return self.model.initial(batch)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """The model's law (nats)."""
        return self.model.law(state)

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Bayes' rule, then back into the region."""
        moved, info = self.model.step(state, tokens)
        region = self.region_at(moved.position)
        if region is None:
            return moved, info
        settled = region.settle(moved.vector, self.divergence)
        return State(settled.coefficients, moved.position), info


def describe_regions(
    regions: tuple[Region | None, ...], divergence: Divergence
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Regions as named tensors and a description of JSON types; `read_regions` undoes it.

    Raises:
        InputError: for a region of a kind that is not stored.
    """
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any] | None] = []
    for t, region in enumerate(regions):
        if region is None:
            described.append(None)
        elif isinstance(region, Truncate):
            described.append({"kind": "truncate", "bound": region.bound})
        elif isinstance(region, Box):
            tensors[f"region.{t}.sketch"] = region.sketch.cpu().contiguous()
            described.append({"kind": "box", "bound": region.bound, "floor": region.floor})
        elif isinstance(region, Hull):
            tensors[f"region.{t}.sketch"] = region.sketch.cpu().contiguous()
            tensors[f"region.{t}.points"] = region.points.cpu().contiguous()
            described.append({"kind": "hull", "margin": region.margin, "floor": region.floor})
        else:
            raise InputError(
                f"only Box, Hull and Truncate can be stored, got {type(region).__name__}"
            )
    return tensors, {"divergence": divergence.value, "regions": described}


def read_regions(
    tensors: Mapping[str, Tensor], text: Mapping[str, Any]
) -> tuple[tuple[Region | None, ...], Divergence]:
    """What `describe_regions` described.

    Raises:
        FormatError: where a part is missing or of an unknown kind.
    """
    try:
        regions = tuple(
            None if entry is None else _read_region(f"region.{t}", tensors, entry)
            for t, entry in enumerate(text["regions"])
        )
        return regions, Divergence(text["divergence"])
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"the stored projection lacks or garbles {error}; save the model again"
        ) from error


def _read_region(name: str, tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Region:
    kind = entry["kind"]
    if kind == "truncate":
        return Truncate(float(entry["bound"]))
    if kind == "box":
        return Box(tensors[f"{name}.sketch"], float(entry["bound"]), float(entry["floor"]))
    if kind == "hull":
        points, sketch = tensors[f"{name}.points"], tensors[f"{name}.sketch"]
        return Hull(points, sketch, float(entry["margin"]), float(entry["floor"]))
    raise FormatError(f"the stored projection has a region of kind {kind!r}, unknown here")
