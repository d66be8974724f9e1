"""Laws of a ragged batch for models whose steps are dear: no shared part is read twice.

The distinct prefixes of a batch form a tree. A node is *needed* where a row of the batch
ends at it, or where a child of it is needed and not kept from before; going up from the
leaves finds the needed nodes, going down computes each of them once, one step a level:

    needed(v) = ends(v) or some child w: needed(w) and not kept(w)

A stretch of levels on which nothing ends, branches or is kept is one step of many tokens.
Rows are taken in sorted order, a bounded number at a time, so that neighbours in the tree
are walked together and the states of one level always fit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.teachers.prefixes import TOKEN_BYTES, Level, Prefixes, tree_levels
from myna.teachers.stepped import RecentStates

Extend = Callable[[Tensor, Tensor], Tensor]  # rows, (batch, new) tokens -> rows


class Distinct(NamedTuple):
    """The distinct rows of a batch in sorted order.

    first: (distinct,) one row of the batch for each
    place: (batch,) which of them each row is
    """

    first: Int[Tensor, " distinct"]
    place: Int[Tensor, " batch"]


def distinct(prefixes: Prefixes) -> Distinct:
    """Sort and merge equal prefixes."""
    keys = prefixes.keys()
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    order = {key: place for place, key in enumerate(sorted(first))}
    rows = torch.tensor([first[key] for key in order], dtype=torch.int64)
    return Distinct(rows, torch.tensor([order[key] for key in keys], dtype=torch.int64))


class _Plan(NamedTuple):
    """What one level of a walk computes.

    level: its place in the tree
    keys: of the needed nodes
    kept: their rows from before, or None
    parents: the needed nodes' parents, as places among the needed nodes above
    tokens: the needed nodes' last tokens
    rows, places: which rows of the batch end here, and at which needed node
    """

    level: Level
    keys: list[bytes]
    kept: list[Tensor | None]
    parents: Int[Tensor, " needed"]
    tokens: Int[Tensor, " needed"]
    rows: Int[Tensor, " ends"]
    places: Int[Tensor, " ends"]

    @property
    def passes(self) -> bool:
        """Whether nothing ends or is kept here, so that the level need not be halted at."""
        return not len(self.rows) and all(row is None for row in self.kept)

    def follows(self, above: int) -> bool:
        """Whether each of so many nodes above has exactly one child here, none kept."""
        return (
            len(self.parents) == above
            and torch.equal(self.parents, torch.arange(above))
            and all(row is None for row in self.kept)
        )


def _plans(prefixes: Prefixes, recent: RecentStates) -> list[_Plan]:
    """Bottom up: the needed nodes of each level that has any, the root's level first."""
    keys = prefixes.keys()
    levels = list(tree_levels(prefixes))
    found: list[tuple[Level, Tensor, list[bytes], list[Tensor | None]]] = []
    wanted_above = torch.empty(0, dtype=torch.int64)
    for level in reversed(levels):
        needed = torch.zeros(max(1, len(level.parents)), dtype=torch.bool)
        needed[level.nodes] = True
        needed[wanted_above] = True
        nodes = needed.nonzero()[:, 0]
        size = level.depth * TOKEN_BYTES
        names = [keys[row][:size] for row in level.below[nodes].tolist()]
        kept = recent.find(names)
        lacking = torch.tensor([row is None for row in kept], dtype=torch.bool)
        wanted_above = level.parents[nodes[lacking]] if level.depth else nodes[:0]
        found.append((level, nodes, names, kept))
    plans = []
    place = torch.zeros(1, dtype=torch.int64)
    for level, nodes, names, kept in reversed(found):
        parents = place[level.parents[nodes]] if level.depth else nodes[:0]
        tokens = level.tokens[nodes] if level.depth else nodes[:0]
        place = torch.full((max(1, len(level.parents)),), -1, dtype=torch.int64)
        place[nodes] = torch.arange(len(nodes))
        if len(nodes):
            ends = place[level.nodes]
            plans.append(_Plan(level, names, kept, parents, tokens, level.rows, ends))
    return plans


def walk(
    root: Float[Tensor, "1 width"],
    extend: Extend,
    read: Callable[[Tensor], Float[Tensor, "batch token"]],
    prefixes: Prefixes,
    recent: RecentStates,
) -> Float[Tensor, "batch token"]:
    """`read` of each prefix's row, every needed node computed once.

    root: the row of the empty prefix
    extend: the rows after further tokens
    read: what is wanted of rows
    """
    answers: Tensor | None = None
    above = root
    waiting: list[Tensor] = []  # tokens of levels that were passed over
    plans = _plans(prefixes, recent)
    for plan, below in zip(plans, [*plans[1:], None], strict=True):
        if plan.level.depth:
            if plan.passes and below is not None and below.follows(len(plan.keys)):
                above = above[plan.parents.to(above.device)] if not waiting else above
                waiting.append(plan.tokens)
                continue
            above = _computed(above, plan, waiting, extend, recent)
            waiting = []
        if len(plan.rows):
            values = read(above)[plan.places.to(above.device)].cpu()
            if answers is None:
                answers = values.new_empty((len(prefixes.lengths), values.shape[1]))
            answers[plan.rows] = values
    return read(above[:0]).cpu() if answers is None else answers


def _computed(
    above: Tensor, plan: _Plan, waiting: list[Tensor], extend: Extend, recent: RecentStates
) -> Tensor:
    """The rows of a level's needed nodes: kept ones, and the others computed and kept."""
    lacking = [i for i, row in enumerate(plan.kept) if row is None]
    new = torch.tensor(lacking, dtype=torch.int64)
    kept = [row for row in plan.kept if row is not None]
    if not lacking:
        return torch.stack(kept)
    parents = plan.parents[new]
    tokens = torch.stack([*waiting, plan.tokens[new]], 1)
    straight = len(parents) == len(above) and torch.equal(parents, torch.arange(len(above)))
    rows = extend(above if straight else above[parents.to(above.device)], tokens)
    recent.keep([plan.keys[i] for i in lacking], rows)
    if not kept:
        return rows
    whole = rows.new_empty((len(plan.keys), rows.shape[1]))
    whole[new.to(rows.device)] = rows
    old = torch.tensor([i for i, row in enumerate(plan.kept) if row is not None])
    whole[old.to(rows.device)] = torch.stack(kept)
    return whole
