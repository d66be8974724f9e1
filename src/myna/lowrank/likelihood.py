"""The likelihood of a low-rank model over a tree of recorded answers, and its gradient.

With operators A_o (one family a cut, or one for all) a low-rank model gives a string

    Q(x_1 .. x_T) = c A_x1 A_x2 ... A_xT 1,        sum_o A_o 1 = 1,   c 1 = 1.

Answers share prefixes, so they are kept as a tree of distinct prefixes. With a the state
after a node's parent, u = a A_o, q = u 1 and a' = u / q, a node that `reads` draws went
through (not as a prompt) adds reads x log q; prompts lead to nodes and count nothing. So

    l(Q) = sum over nodes of reads x log q,       d l / d A_o += a (x) d l / d u.

The operators are those of Jaeger's observable operator models (2000) and of `model`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.batch import apply_in_order


class Operators(NamedTuple):
    """A low-rank model in operator form.

    first: (rank,), sums to one
    steps: step t is steps[min(t, len(steps) - 1)], (token, rank, next_rank); over tokens
        and next coefficients each row sums to one
    """

    first: Float[Tensor, " rank"]
    steps: tuple[Float[Tensor, "token _ _"], ...]


_BLOCK = 32768  # evidence rows in one tree: their states stay near the cache


class Level(NamedTuple):
    """The distinct prefixes of one length, sorted by their last token.

    parents: (node,), indices into the level above
    counts: how many nodes end in token 0, 1, ...
    reads: (node,), draws that produced the node's last token (not prompts)
    """

    parents: Int[Tensor, " node"]
    counts: list[int]
    reads: Float[Tensor, " node"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Evidence as prefix trees, shared prefixes once.

    trees: independent parts
    tokens: generated tokens, the unit of a mean log-likelihood
    """

    trees: tuple[tuple[Level, ...], ...]
    tokens: float

    @staticmethod
    def of(
        tokens: Int[Tensor, "row width"],
        lengths: Int[Tensor, " row"],
        given: Int[Tensor, " row"],
        counts: Float[Tensor, " row"],
        block: int = _BLOCK,
    ) -> "Rows":
        """Rows tokens[i, : lengths[i]] of which the first given[i] were the prompt.

        block: rows in one tree; prefixes of rows on both sides of a border are in two trees
        """
        kept = (lengths > given).nonzero()[:, 0]
        order = kept[torch.from_numpy(np.lexsort(tokens[kept].cpu().numpy().T[::-1])).to(kept)]
        trees = tuple(
            _tree(tokens[part], lengths[part], given[part], counts[part])
            for part in order.split(block)
        )
        return Rows(trees, float((counts * (lengths - given)).sum()))


def _tree(tokens: Tensor, lengths: Tensor, given: Tensor, counts: Tensor) -> tuple[Level, ...]:
    """Level by level: a node is a distinct pair (last token, parent)."""
    levels, node, above = [], torch.zeros_like(lengths), 1
    for t in range(int(lengths.max())):
        alive = lengths > t
        tokens, lengths, given, counts, node = (
            part[alive] for part in (tokens, lengths, given, counts, node)
        )
        keys, node = torch.unique(tokens[:, t] * above + node, return_inverse=True)
        reads = torch.bincount(node, counts * (given <= t), minlength=len(keys))
        ends_in = torch.bincount(keys // above).tolist()
        levels.append(Level(keys % above, ends_in, reads))
        above = len(keys)
    return tuple(levels)


def log_likelihood(operators: Operators, rows: Rows) -> tuple[float, Operators]:
    """Log-likelihood (nats) and its plain gradient, in the operators' shape.

    -inf, with an unfinished gradient, where any answer has probability <= 0.
    """
    gradient = Operators(
        torch.zeros_like(operators.first), tuple(torch.zeros_like(s) for s in operators.steps)
    )
    total = 0.0
    for tree in rows.trees:
        passed = forward_pass(operators, tree)
        for level, chance in zip(tree, passed.chances, strict=True):
            if not float(chance.min()) > 0:
                return -math.inf, gradient
            total += float(level.reads @ chance.log())
        backward_pass(operators, tree, passed, gradient)
    return total, gradient


class Passed(NamedTuple):
    """What the forward pass keeps of a tree, level by level.

    states: the row a of every node of the level above
    before: the same row in the place of each node that follows it
    chances: q of each node's token
    """

    states: list[Float[Tensor, "parent rank"]]
    before: list[Float[Tensor, "node rank"]]
    chances: list[Float[Tensor, " node"]]


def forward_pass(operators: Operators, tree: Sequence[Level]) -> Passed:
    """Bayes' rule down a tree."""
    state = operators.first[None]
    passed = Passed([], [], [])
    for t, level in enumerate(tree):
        step = operators.steps[min(t, len(operators.steps) - 1)]
        before = state.index_select(0, level.parents)
        moved = before.new_empty((len(before), step.shape[2]))
        apply_in_order(step, before, level.counts, moved)
        chance = moved.sum(1)
        for kept, found in zip(passed, (state, before, chance), strict=True):
            kept.append(found)
        state = moved / chance.clamp(min=torch.finfo(chance.dtype).tiny)[:, None]
    return passed


def backward_pass(
    operators: Operators,
    tree: Sequence[Level],
    passed: Passed,
    gradient: Operators,
    moments: tuple[list[Tensor], list[Tensor]] | None = None,
) -> None:
    """Add the tree's part of the gradient (and of Fisher's factors), last level first.

    With u = a A_o, q = u 1, a' = u / q and g = d l / d a':  d l / d u = (g + (reads - a' g) 1) / q.
    """
    behind = None
    for t in reversed(range(len(tree))):
        level, which = tree[t], min(t, len(operators.steps) - 1)
        step, into, before = operators.steps[which], gradient.steps[which], passed.before[t]
        # 1. b = d l / d u at every node
        bent = level.reads[:, None].expand(-1, step.shape[2])
        if behind is not None:
            bent = behind + bent
        bent = bent / passed.chances[t][:, None]
        # 2. a (x) b, token by token;   3. A b, added up over the children of each parent
        moved = before.new_empty((len(before), step.shape[1]))
        start = 0
        for token, number in enumerate(level.counts):
            if number:
                part = slice(start, start + number)
                into[token].addmm_(before[part].T, bent[part])
                torch.mm(bent[part], step[token].T, out=moved[part])
                if moments is not None:
                    _add_moments(moments, which, token, before[part], bent[part], level.reads[part])
                start += number
        above = passed.states[t]
        behind = torch.zeros_like(above).index_add_(0, level.parents, moved)
        # 4. a' of the parent sums to one: the part of g along it changes nothing
        if t:
            behind -= (above * behind).sum(1, keepdim=True)
    if behind is not None:
        gradient.first.add_(behind[0])


def _add_moments(
    moments: tuple[list[Tensor], list[Tensor]],
    which: int,
    token: int,
    before: Tensor,
    bent: Tensor,
    reads: Tensor,
) -> None:
    """Add sum reads a a^T, and sum b b^T / reads where there are any."""
    left, right = moments
    left[which][token].addmm_((before * reads[:, None]).T, before)
    right[which][token].addmm_((bent / reads.clamp(min=1.0)[:, None]).T, bent)
