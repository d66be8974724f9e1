"""A copy that projects its coefficients at every token, onto sets drawn from the copy itself.

    K_t = the box, or the hull, of coefficients of histories that the copy samples,
          or {c : |c_i| <= 2}

in the sketch of a few futures of each basis history (`lowrank.region`, `lowrank.projected`).
The hull of a finite sample does not surely contain the truth; the share of fresh histories
outside it is returned beside the student.
"""

import torch

from myna.learn.sampled_report import Projection
from myna.lowrank.basis_sketch import basis_sketch, sampled_coefficients
from myna.lowrank.divergence import Divergence
from myna.lowrank.model import LowRankModel
from myna.lowrank.projected import ProjectedModel
from myna.lowrank.region import Box, Hull, Region, Truncate, fraction_outside
from myna.lowrank.student import Student

_TRUNCATED_AT = 2.0  # the spanner bound: exact coefficients over a spanner are no larger
_HULL_POINTS, _FRESH_POINTS = 200, 100  # histories that make a hull, and that judge it
_STATIONARY_TOKENS = 20  # lengths of histories in a stationary hull
_SKETCH_EACH, _SKETCH_TOKENS = 16, 3  # futures a basis history, tokens a future


def projected(
    model: LowRankModel, projection: Projection, generator: torch.Generator
) -> tuple[Student, float | None]:
    """The student that projects, and the share of fresh histories outside K."""
    if projection is Projection.NONE:
        return model, None
    points, fresh = (_points(model, count, generator) for count in (_HULL_POINTS, _FRESH_POINTS))
    regions, outside = [], []
    for cut in range(len(model.steps)):
        region = _region(model, cut, projection, points[cut], generator)
        regions.append(region)
        outside.append(fraction_outside(region, fresh[cut]))
    return ProjectedModel.of(model, tuple(regions), Divergence.KL), sum(outside) / len(outside)


def _points(
    model: LowRankModel, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Coefficients of drawn histories at each stored step; at all lengths where there is one."""
    if len(model.steps) > 1:
        return sampled_coefficients(model, count, len(model.steps), generator)
    length = min(_STATIONARY_TOKENS, model.spec.horizon or _STATIONARY_TOKENS)
    each = sampled_coefficients(model, max(2, count // length), length, generator)
    return (torch.cat(each),)


def _region(
    model: LowRankModel,
    cut: int,
    projection: Projection,
    points: torch.Tensor,
    generator: torch.Generator,
) -> Region:
    if projection is Projection.TRUNCATE:
        return Truncate(_TRUNCATED_AT)
    sketch = basis_sketch(model, cut, _SKETCH_EACH, _SKETCH_TOKENS, generator)
    return Box.around(points, sketch) if projection is Projection.BOX else Hull(points, sketch)
