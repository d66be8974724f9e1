"""Ascent of a low-rank model's likelihood: quasi-Newton steps in a metric of counts.

Two families of operators. *Signed* ones keep sum_o A_o 1 = 1 by projecting the gradient
on its tangent space; entries may be negative, which the general low-rank model needs. A
step that gives any answer a probability <= 0 is shortened. The metric is Fisher's
information, one Kronecker block a cut and token. *Positive* ones are A[i] = softmax(u[i]):
no answer can get probability zero, and in the metric of expected counts the first step is
one of expectation maximisation (Lange's quasi-Newton acceleration of EM).

Source: L-BFGS by Nocedal and Wright (2006), algorithm 7.4; started from a consistent
estimate, this is Le Cam's one-step argument iterated. We differ from EM as said.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.lowrank.likelihood import Operators, Rows, backward_pass, forward_pass, log_likelihood


def penalised(operators: Operators, rows: Rows, pseudo: float) -> tuple[float, Operators]:
    """Log-likelihood plus pseudo x mean over basis members of sum_o log L[i, o], and gradient.

    The second term is a barrier at the simplex of the basis' laws.
    """
    value, gradient = log_likelihood(operators, rows)
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
        backward_pass(operators, tree, forward_pass(operators, tree), scratch, (left, right))
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
        value, gradient = penalised(model, rows, pseudo)
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
        value, gradient = penalised(here, rows, pseudo)
        joint = [a * g for a, g in zip(here.steps, gradient.steps, strict=True)]
        steps = tuple(
            j - a * j.sum((0, 2), keepdim=True) for a, j in zip(here.steps, joint, strict=True)
        )
        first = here.first * gradient.first
        first = first - here.first * first.sum()
        return value * scale, _flat(Operators(first, steps)) * scale

    counts = visits(begin, rows)
    metric = (
        _flat(
            Operators(
                begin.first * rows.tokens,
                tuple(a * n[None, :, None] + 1.0 for a, n in zip(begin.steps, counts, strict=True)),
            )
        )
        * scale
    )
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
        before = forward_pass(operators, tree).before
        for t, (level, state) in enumerate(zip(tree, before, strict=True)):
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
