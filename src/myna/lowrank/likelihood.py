"""The likelihood of a low-rank model, its gradient, and its maximisation.

With operators A_o (one family a cut, or one for all) a low-rank model gives a string

    Q(x_1 .. x_T) = c A_x1 A_x2 ... A_xT 1,        sum_o A_o 1 = 1,   c 1 = 1,

and evidence of completions f after prompts h has log-likelihood sum log Q(f | h) =
sum log Q(h f) - log Q(h). With forward rows a_t = c A_x1 .. A_xt / Q(x_1 .. x_t) and
backward columns b_t scaled to a_t b_t = 1,

    d log Q(f | h) / d A_o [t] = sum over rows with x_t+1 = o of  a_t (x) b_t+1 / q_t+1,

where at the end of the prompt b becomes b - 1: the prompt's own probability is divided
out (after it a b = 1, before it a b = 0). The two linear constraints are kept by
projecting the gradient on their tangent space, so a step needs no multiplier.

Source: the operators are those of Jaeger's observable operator models and of `model`;
started from a consistent estimate, ascent of this likelihood is Le Cam's one-step
argument iterated. We differ from EM in that entries of A may be negative, which the
general low-rank model needs; a step that gives any evidence a probability <= 0 is
shortened, and a pseudo-count on every basis law keeps those laws inside the simplex.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
    ) -> "Rows":
        """Rows tokens[i, : lengths[i]] of which the first given[i] were the prompt."""
        kept = (lengths > given).nonzero()[:, 0]
        order = kept[torch.from_numpy(np.lexsort(tokens[kept].cpu().numpy().T[::-1])).to(kept)]
        trees = tuple(
            _tree(tokens[part], lengths[part], given[part], counts[part])
            for part in order.split(_BLOCK)
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
        states, chances = _forward(operators, tree)
        for level, chance in zip(tree, chances, strict=True):
            if not float(chance.min()) > 0:
                return -math.inf, gradient
            total += float(level.reads @ chance.log())
        _backward(operators, tree, states, chances, gradient)
    return total, gradient


def _forward(
    operators: Operators, tree: Sequence[Level]
) -> tuple[list[Tensor], list[Tensor]]:
    """a of every node's parent, in the node's place, and the chance q of its token."""
    state = operators.first[None]
    states, chances = [], []
    for t, level in enumerate(tree):
        step = operators.steps[min(t, len(operators.steps) - 1)]
        before = state[level.parents]
        moved = before.new_empty((len(before), step.shape[2]))
        apply_in_order(step, before, level.counts, moved)
        chance = moved.sum(1)
        states.append(before)
        chances.append(chance)
        state = moved / chance.clamp(min=torch.finfo(chance.dtype).tiny)[:, None]
    return states, chances


def _backward(
    operators: Operators,
    tree: Sequence[Level],
    states: list[Tensor],
    chances: list[Tensor],
    gradient: Operators,
    moments: tuple[list[Tensor], list[Tensor]] | None = None,
) -> None:
    """Add the tree's part of the gradient (and of Fisher's factors), last level first.

    With u = a A_o, q = u 1, a' = u / q and g = d l / d a':  d l / d u = (g + (reads - a' g) 1) / q.
    """
    behind = None
    for t in reversed(range(len(tree))):
        level, which = tree[t], min(t, len(operators.steps) - 1)
        step, into, before = operators.steps[which], gradient.steps[which], states[t]
        # 1. b = d l / d u at every node
        bent = level.reads[:, None].expand(-1, step.shape[2])
        if behind is not None:
            bent = behind + bent
        bent = bent / chances[t][:, None]
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
        parents = tree[t - 1] if t else None
        size = len(parents.parents) if parents is not None else 1
        behind = before.new_zeros((size, step.shape[1])).index_add_(0, level.parents, moved)
        # 4. a' of the parent sums to one: the part of g along it changes nothing
        if t:
            own = before.new_zeros(size).index_add_(0, level.parents, (before * moved).sum(1))
            behind -= own[:, None]
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
    """sum reads a a^T, and sum b b^T / reads where there are any."""
    left, right = moments
    left[which][token].addmm_((before * reads[:, None]).T, before)
    right[which][token].addmm_((bent / reads.clamp(min=1.0)[:, None]).T, bent)


def with_pseudo_counts(
    operators: Operators, value: float, gradient: Operators, pseudo: float
) -> tuple[float, Operators]:
    """Add sum over basis members of pseudo x mean_o log L[i, o]: a barrier at the simplex."""
    grads = []
    for step, grad in zip(operators.steps, gradient.steps, strict=True):
        laws = step.sum(2)
        if not bool((laws > 0).all()):
            return -math.inf, gradient
        value += pseudo * float(laws.log().sum()) / len(laws)
        grads.append(grad + (pseudo / len(laws) / laws)[:, :, None])
    return value, Operators(gradient.first, tuple(grads))


class Fisher(NamedTuple):
    """A Kronecker approximation of the information, one block a cut and token.

    The block of A_o at cut t is  sum w (a a^T) (x) (b b^T) / q^2, approximated by
    (sum w a a^T) (x) (sum w b b^T / q^2) / sum w; stored are inverses of the factors.

    left: (token, rank, rank) a step
    right: (token, next_rank, next_rank) a step
    """

    left: tuple[Float[Tensor, "token _ _"], ...]
    right: tuple[Float[Tensor, "token _ _"], ...]


def fisher(operators: Operators, rows: Rows, ridge: float = 1e-3) -> Fisher:
    """The approximate information at a model, inverted, in units of one generated token.

    ridge: added to each factor, as a share of its mean eigenvalue
    """
    left = [s.new_zeros(s.shape[0], s.shape[1], s.shape[1]) for s in operators.steps]
    right = [s.new_zeros(s.shape[0], s.shape[2], s.shape[2]) for s in operators.steps]
    scratch = Operators(
        torch.zeros_like(operators.first), tuple(torch.zeros_like(s) for s in operators.steps)
    )
    for tree in rows.trees:
        states, chances = _forward(operators, tree)
        _backward(operators, tree, states, chances, scratch, (left, right))
    mass = [blocks.diagonal(dim1=1, dim2=2).sum(1) for blocks in left]
    return Fisher(
        tuple(
            _inverted(a, ridge) * m.clamp(min=1.0)[:, None, None]
            for a, m in zip(left, mass, strict=True)
        ),
        tuple(_inverted(b, ridge) * rows.tokens for b in right),
    )


def _inverted(blocks: Tensor, ridge: float) -> Tensor:
    """(block + ridge)^-1; blocks that no evidence touches become the identity over mass."""
    size = blocks.shape[1]
    level = blocks.diagonal(dim1=1, dim2=2).mean(1) * ridge + 1e-3
    eye = torch.eye(size, dtype=blocks.dtype, device=blocks.device)
    return torch.linalg.inv(blocks + level[:, None, None] * eye)


def _flat(operators: Operators) -> Float[Tensor, " number"]:
    return torch.cat([operators.first, *(step.reshape(-1) for step in operators.steps)])


def _shaped(numbers: Float[Tensor, " number"], like: Operators) -> Operators:
    sizes = [like.first.numel(), *(step.numel() for step in like.steps)]
    first, *steps = numbers.split(sizes)
    return Operators(first, tuple(s.view_as(old) for s, old in zip(steps, like.steps, strict=True)))


def tangent(gradient: Operators) -> Operators:
    """Projected so that c 1 and every sum_o A_o 1 stay what they are."""
    return Operators(
        gradient.first - gradient.first.mean(),
        tuple(step - step.mean((0, 2), keepdim=True) for step in gradient.steps),
    )


@dataclasses.dataclass(frozen=True)
class Ascent:
    """How a maximisation went.

    values: the penalised log-likelihood after each step, nats a token
    steps: L-BFGS steps taken
    converged: whether the gain over ten steps fell below the tolerance
    """

    values: tuple[float, ...]
    steps: int
    converged: bool


def maximise(
    start: Operators,
    rows: Rows,
    *,
    pseudo: float = 1.0,
    tolerance: float = 1e-7,
    max_steps: int = 200,
    memory: int = 20,
) -> tuple[Operators, Ascent]:
    """L-BFGS on the penalised log-likelihood from a model of positive likelihood.

    tolerance: nats a token gained over ten steps below which the ascent ends
    """
    scale = 1.0 / max(1.0, rows.tokens)

    def evaluate(numbers: Tensor) -> tuple[float, Tensor]:
        model = _shaped(numbers, start)
        value, gradient = log_likelihood(model, rows)
        value, gradient = with_pseudo_counts(model, value, gradient, pseudo)
        return value * scale, _flat(tangent(gradient)) * scale

    blocks = fisher(start, rows)

    def scaled(numbers: Tensor) -> Tensor:
        parts = _shaped(numbers, start)
        steps = tuple(
            left @ step @ right
            for left, step, right in zip(blocks.left, parts.steps, blocks.right, strict=True)
        )
        return _flat(tangent(Operators(parts.first, steps)))

    found, ascent = lbfgs(
        evaluate, _flat(start), scaled, tolerance=tolerance, max_steps=max_steps, memory=memory
    )
    return _shaped(found, start), ascent


def maximise_positive(
    start: Operators,
    rows: Rows,
    *,
    pseudo: float = 1.0,
    tolerance: float = 1e-7,
    max_steps: int = 200,
    memory: int = 20,
) -> tuple[Operators, Ascent]:
    """The same over models without negative entries: A[i] = softmax(u[i]) over (o, j).

    No evidence can get probability zero, so nothing bounds a step. The metric is the
    expected counts, with which the first step is one of expectation maximisation
    (Lange's quasi-Newton acceleration of EM).
    """
    scale = 1.0 / max(1.0, rows.tokens)
    begin = floored(start, 1e-4)

    def model(numbers: Tensor) -> Operators:
        parts = _shaped(numbers, begin)
        return Operators(parts.first.softmax(0), tuple(_row_softmax(u) for u in parts.steps))

    def evaluate(numbers: Tensor) -> tuple[float, Tensor]:
        here = model(numbers)
        value, gradient = log_likelihood(here, rows)
        value, gradient = with_pseudo_counts(here, value, gradient, pseudo)
        joint = [a * g for a, g in zip(here.steps, gradient.steps, strict=True)]
        steps = tuple(
            j - a * j.sum((0, 2), keepdim=True) for a, j in zip(here.steps, joint, strict=True)
        )
        first = here.first * gradient.first
        first = first - here.first * first.sum()
        return value * scale, _flat(Operators(first, steps)) * scale

    counts = visits(begin, rows)
    metric = _flat(
        Operators(
            begin.first * rows.tokens,
            tuple(
                a * n[None, :, None] + 1.0 for a, n in zip(begin.steps, counts, strict=True)
            ),
        )
    ) * scale
    logs = _flat(Operators(begin.first.log(), tuple(a.log() for a in begin.steps)))
    found, ascent = lbfgs(
        evaluate,
        logs,
        lambda gradient: gradient / metric,
        tolerance=tolerance,
        max_steps=max_steps,
        memory=memory,
    )
    return model(found), ascent


def floored(operators: Operators, share: float) -> Operators:
    """Mixed with the uniform choice, so that no entry is zero."""
    return Operators(
        (1 - share) * operators.first + share / len(operators.first),
        tuple(
            (1 - share) * a.clamp(min=0) + share / (a.shape[0] * a.shape[2])
            for a in operators.steps
        ),
    )


def visits(operators: Operators, rows: Rows) -> list[Float[Tensor, " rank"]]:
    """How often each coefficient is in use at each step: sum of reads x a."""
    found = [a.new_zeros(a.shape[1]) for a in operators.steps]
    for tree in rows.trees:
        states, _ = _forward(operators, tree)
        for t, (level, state) in enumerate(zip(tree, states, strict=True)):
            found[min(t, len(found) - 1)] += level.reads @ state
    return found


def _row_softmax(u: Float[Tensor, "token rank next_rank"]) -> Float[Tensor, "token rank next_rank"]:
    """Softmax over token and next coefficient, row by row."""
    token, rank, following = u.shape
    flat = u.transpose(0, 1).reshape(rank, token * following).softmax(1)
    return flat.reshape(rank, token, following).transpose(0, 1).contiguous()


def lbfgs(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    start: Float[Tensor, " number"],
    scaled: Callable[[Tensor], Tensor],
    *,
    tolerance: float,
    max_steps: int,
    memory: int,
) -> tuple[Float[Tensor, " number"], Ascent]:
    """Maximise by limited-memory BFGS with a backtracking line search; -inf is a wall."""
    x, (value, gradient) = start, evaluate(start)
    values, pairs = [value], []
    for _ in range(max_steps):
        direction = _two_loop(gradient, pairs, scaled)
        slope = float(direction @ gradient)
        if slope <= 0:
            pairs, direction = [], scaled(gradient)
            slope = float(direction @ gradient)
        length = 1.0
        for _ in range(30):
            new = x + length * direction
            new_value, new_gradient = evaluate(new)
            if new_value >= value + 1e-4 * length * slope:
                break
            length *= 0.5 if math.isfinite(new_value) else 0.25
        else:
            if not pairs:
                break
            pairs = []
            continue
        moved, bent = new - x, gradient - new_gradient
        if float(moved @ bent) > 1e-12 * float(moved.norm() * bent.norm()):
            pairs = [*pairs, (moved, bent)][-memory:]
        x, value, gradient = new, new_value, new_gradient
        values.append(value)
        if len(values) > 10 and values[-1] - values[-11] < tolerance:
            return x, Ascent(tuple(values), len(values) - 1, True)
    return x, Ascent(tuple(values), len(values) - 1, False)


def _two_loop(
    gradient: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    scaled: Callable[[Tensor], Tensor],
) -> Tensor:
    """The quasi-Newton direction of steepest ascent (Nocedal's two-loop recursion)."""
    direction, factors = gradient.clone(), []
    for moved, bent in reversed(pairs):
        factor = float(moved @ direction) / float(moved @ bent)
        direction -= factor * bent
        factors.append(factor)
    direction = scaled(direction)
    for (moved, bent), factor in zip(pairs, reversed(factors), strict=True):
        direction += moved * (factor - float(bent @ direction) / float(moved @ bent))
    return direction
