"""Expected counts of a hidden Markov model over a weighted tree of prefixes.

The answers of a run share prefixes, so they are kept as a tree: node n is a distinct
prefix and u(n) its parent. With c_n the draws that read the last token of n beyond their
prompt, the conditional log-likelihood of all answers together is

    l(Q) = sum_n c_n log Q(token of n | u(n)) = sum_n e_n log Q(n),
    e_n = (draws that end at n) - (draws whose prompt ends at n).

Each prompt is thus scored once, with negative weight, on the way of its own completions.
With a_n(s) = P(state s at n's token | n) and m_n = Q(token of n | u(n)), the scaled
recursions of Rabiner (1989, section V.A), on a tree instead of a string, are

    forward    a_n(s) = (a_u(n) T)(s) E(s, o_n) / m_n,
    backward   b_n(s) = e_n + sum over children k of sum_s' T(s, s') r_k(s'),
               r_n(s) = E(s, o_n) b_n(s) / m_n,
    counts     emission(s, o_n) += a_n(s) b_n(s),    transition += T * (a_u(n)^T r_n),

and d l / d log theta = the counts, which may be negative where there are prompts. We
differ from the source in the tree and in that the weights e_n enter the backward pass at
the ends, so that nothing is weighted afterwards.

On a CPU with a C compiler a compiled pass answers (`tree_pass`); elsewhere the one in torch, here.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.evidence import Evidence
from myna.learn.tree_pass import compiled_pass
from myna.teachers.hmm import check_stochastic

# On a CPU a block's matrices should stay in its cache; on a GPU few large ones are best.
_CPU_ROWS, _GPU_ROWS = 2**13, 2**20


class HmmTables(NamedTuple):
    """The numbers of a hidden Markov model; table t serves position t, the last all later.

    initial: (state,), the law of the first hidden state
    transition: (step, state, state), table t moves from position t to t + 1
    emission: (estep, state, token)
    """

    initial: Float[Tensor, " state"]
    transition: Float[Tensor, "step state state"]
    emission: Float[Tensor, "estep state token"]

    def check(self) -> None:
        """Refuse shapes that disagree and rows that are no probability laws.

        Raises:
            InputError: naming the table.
        """
        states = len(self.initial)
        if self.transition.shape[1:] != (states, states) or self.emission.shape[1] != states:
            raise InputError(
                f"tables of one hidden Markov model must have the same states; got {states} "
                f"initial, transition {tuple(self.transition.shape)}, "
                f"emission {tuple(self.emission.shape)}"
            )
        for name, table in zip(("initial law", "transition", "emission"), self, strict=True):
            check_stochastic(name, table)


class Counts(NamedTuple):
    """What one pass over the tree gives: l(Q) and its derivatives by log theta.

    log_likelihood: nats, all answers together
    tables: expected counts, in the shapes of the parameters
    """

    log_likelihood: float
    tables: HmmTables


class TreeLevel(NamedTuple):
    """The distinct prefixes of one length.

    tokens: (node,), o_n
    parents: (node,), indices into the level above; None where they are 0, 1, 2, ...
    reads: (node,), c_n
    ends: (node,), e_n
    """

    tokens: Int[Tensor, " node"]
    parents: Int[Tensor, " node"] | None
    reads: Float[Tensor, " node"]
    ends: Float[Tensor, " node"]


Tree = tuple[TreeLevel, ...]


def prefix_trees(
    evidence: Evidence, num_tokens: int, device: torch.device | None = None
) -> tuple[Tree, ...]:
    """The evidence as trees of a limited number of rows; identical rows become one path.

    device: where the trees are kept; None keeps the evidence's own

    Raises:
        InputError: tokens outside the alphabet, prompts longer than their row, negative
            counts, or no completion at all.
    """
    device = device or evidence.tokens.device
    evidence = Evidence(*(part.cpu() for part in evidence))
    _check(evidence, num_tokens)
    useful = (evidence.counts > 0) & (evidence.lengths > evidence.given)
    evidence = Evidence(*(part[useful] for part in evidence))
    if not len(evidence.lengths):
        raise InputError("a model is fitted to completions, and the evidence has none; draw some")
    order = torch.from_numpy(np.lexsort(evidence.tokens.numpy().T[::-1]))
    rows = _CPU_ROWS if device.type == "cpu" else _GPU_ROWS
    return tuple(
        _tree(Evidence(*(part[block] for part in evidence)), num_tokens, device)
        for block in order.split(rows)
    )


def _check(evidence: Evidence, num_tokens: int) -> None:
    tokens, lengths, given, counts = evidence
    inside = torch.arange(tokens.shape[1]) < lengths[:, None]
    bad = (inside & ((tokens < 0) | (tokens >= num_tokens))).any(1)
    for wrong, wanted in (
        (bad, f"tokens in 0..{num_tokens - 1}"),
        ((given < 0) | (given > lengths), "a prompt within the row"),
        (~(counts >= 0), "a count >= 0"),
    ):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InputError(f"evidence needs {wanted} in every row, and row {row} has not")


def _tree(evidence: Evidence, num_tokens: int, device: torch.device) -> Tree:
    """Level by level: a node is a distinct pair (parent, token)."""
    tokens, lengths, given, counts = evidence
    levels: list[TreeLevel] = []
    node, above = torch.zeros_like(lengths), 1
    for t in range(int(lengths.max())):
        alive = lengths > t
        tokens, lengths, given, counts = (p[alive] for p in (tokens, lengths, given, counts))
        keys, node = torch.unique(node[alive] * num_tokens + tokens[:, t], return_inverse=True)
        parents = keys // num_tokens
        unary = len(parents) == above and bool((parents == torch.arange(above)).all())
        weights = (
            counts * (given <= t),
            counts * ((lengths == t + 1).int() - (given == t + 1).int()),
        )
        reads, ends = (torch.bincount(node, w.double(), minlength=len(keys)) for w in weights)
        above_of = None if unary else parents.to(device)
        levels.append(
            TreeLevel((keys % num_tokens).to(device), above_of, reads.to(device), ends.to(device))
        )
        above = len(keys)
    return tuple(levels)


class ForwardBackward:
    """Passes over fixed trees, with buffers that are made once; compiled where that can be.

    trees: from `prefix_trees`
    num_states: S of every model that will be passed
    """

    def __init__(self, trees: tuple[Tree, ...], num_states: int):
        """Make room for the largest tree."""
        self._pass = compiled_pass(trees, num_states) or _TorchPass(trees, num_states)
        reads = [level.reads for tree in trees for level in tree]
        self.tokens = float(torch.stack([r.sum() for r in reads]).sum())

    def log_likelihood(self, tables: HmmTables) -> float:
        """l(Q), nats, all answers together: the forward pass alone."""
        return self._pass.log_likelihood(tables)

    def counts(self, tables: HmmTables) -> Counts:
        """l(Q) and the expected counts."""
        total, found = self._pass.counts(tables)
        return Counts(total, HmmTables(*found))


class _TorchPass:
    """The passes level by level, on any device."""

    def __init__(self, trees: tuple[Tree, ...], num_states: int):
        self._trees = trees
        like = trees[0][0].reads
        nodes = max(sum(len(level.tokens) for level in tree) for tree in trees)
        widest = max(len(level.tokens) for tree in trees for level in tree)
        self._filtered = like.new_empty((nodes, num_states))
        self._mass = like.new_empty(nodes)
        self._scratch = tuple(like.new_empty((widest, num_states)) for _ in range(3))

    def log_likelihood(self, tables: HmmTables) -> float:
        emissions = tables.emission.transpose(1, 2).contiguous()
        return float(sum(self._forward(tree, tables, emissions) for tree in self._trees))

    def counts(self, tables: HmmTables) -> tuple[float, HmmTables]:
        emissions = tables.emission.transpose(1, 2).contiguous()
        initial = torch.zeros_like(tables.initial)
        moves, emitted = torch.zeros_like(tables.transition), torch.zeros_like(emissions)
        total = 0.0
        for tree in self._trees:
            total += self._forward(tree, tables, emissions)
            self._backward(tree, tables, emissions, HmmTables(initial, moves, emitted))
        found = HmmTables(initial, moves * tables.transition, emitted.transpose(1, 2).contiguous())
        return float(total), found

    def _slots(self, tree: Tree) -> list[tuple[Tensor, Tensor]]:
        """Each level's part of the buffers of a and m."""
        sizes = [len(level.tokens) for level in tree]
        parts = self._filtered[: sum(sizes)].split(sizes), self._mass[: sum(sizes)].split(sizes)
        return list(zip(*parts, strict=True))

    def _forward(self, tree: Tree, tables: HmmTables, emissions: Tensor) -> Tensor:
        """Fill a and m; the log-likelihood of one tree."""
        total, before = tables.initial.new_zeros(()), tables.initial[None]
        tiny = torch.finfo(before.dtype).tiny
        for t, (level, (a, mass)) in enumerate(zip(tree, self._slots(tree), strict=True)):
            if t:
                moved = self._scratch[0][: len(before)]
                torch.mm(before, _at(tables.transition, t - 1), out=moved)
            else:
                moved = before
            predicted = moved
            if level.parents is not None:
                predicted = self._scratch[1][: len(a)]
                torch.index_select(moved, 0, level.parents, out=predicted)
            torch.index_select(_at(emissions, t), 0, level.tokens, out=a).mul_(predicted)
            torch.sum(a, 1, out=mass)
            total += torch.xlogy(level.reads, mass).sum()
            # an impossible token leaves zeros, not NaN: its log is -inf already
            a.div_(mass.clamp_(min=tiny)[:, None])
            before = a
        return total

    def _backward(self, tree: Tree, tables: HmmTables, emissions: Tensor, into: HmmTables) -> None:
        """Add a tree's counts; transitions without their factor T, emissions (token, state)."""
        slots = self._slots(tree)
        b = tree[-1].ends[:, None].expand_as(slots[-1][0])
        for t in range(len(tree) - 1, -1, -1):
            level, (a, mass) = tree[t], slots[t]
            r = self._scratch[0][: len(a)]
            torch.mul(a, b, out=r)
            _at(into.emission, t).index_add_(0, level.tokens, r)
            if t == 0:
                into.initial.add_(r.sum(0))
                return
            torch.index_select(_at(emissions, t), 0, level.tokens, out=r)
            r.mul_(b).div_(mass[:, None])
            above = slots[t - 1][0]
            if level.parents is not None:
                gathered = self._scratch[1][: len(above)].zero_()
                r = gathered.index_add_(0, level.parents, r)
            _at(into.transition, t - 1).addmm_(above.T, r)
            b = self._scratch[2][: len(above)]
            table = _at(tables.transition, t - 1)
            torch.addmm(tree[t - 1].ends[:, None].expand_as(b), r, table.T, out=b)


def _at(tables: Tensor, position: int) -> Tensor:
    """The table that serves a position."""
    return tables[min(position, len(tables) - 1)]
