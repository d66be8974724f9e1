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
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.batch import alive_counts, apply_in_order, order_by_token


class Operators(NamedTuple):
    """A low-rank model in operator form.

    first: (rank,), sums to one
    steps: step t is steps[min(t, len(steps) - 1)], (token, rank, next_rank); over tokens
        and next coefficients each row sums to one
    """

    first: Float[Tensor, " rank"]
    steps: tuple[Float[Tensor, "token _ _"], ...]


_CHUNK = 8192  # rows worked on together: their states stay in the cache


@dataclasses.dataclass(frozen=True)
class Rows:
    """Weighted strings with prompts, in chunks, each longest first.

    chunks: independent parts of the rows
    tokens: weighted completion tokens, the unit of a mean log-likelihood
    """

    chunks: tuple["Chunk", ...]
    tokens: float

    @staticmethod
    def of(
        tokens: Int[Tensor, "row width"],
        lengths: Int[Tensor, " row"],
        given: Int[Tensor, " row"],
        weights: Float[Tensor, " row"],
    ) -> "Rows":
        """Sort rows by length; rows without a completion are dropped."""
        kept = (lengths > given).nonzero()[:, 0]
        order = kept[torch.argsort(lengths[kept], descending=True, stable=True)]
        chunks = tuple(
            Chunk.of(tokens[part], lengths[part], given[part], weights[part])
            for part in order.split(_CHUNK)
        )
        return Rows(chunks, float((weights * (lengths - given)).sum()))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows with their tokens sorted at every position, once for all evaluations.

    given: (row,), tokens of the prompt
    weights: (row,)
    orders: at each position, the rows that have a token there sorted by it
    counts: at each position, how many of each token
    backs: at each position, the inverse of the order
    ends: at each position t, whether the prompt is x_1 .. x_t, or None where no row's is
    """

    given: Int[Tensor, " row"]
    weights: Float[Tensor, " row"]
    orders: tuple[Int[Tensor, " alive"], ...]
    counts: tuple[list[int], ...]
    backs: tuple[Int[Tensor, " alive"], ...]

    @staticmethod
    def of(
        tokens: Int[Tensor, "row width"],
        lengths: Int[Tensor, " row"],
        given: Int[Tensor, " row"],
        weights: Float[Tensor, " row"],
    ) -> "Chunk":
        """Rows longest first."""
        columns = tokens.T.contiguous()
        num_tokens = int(tokens.max()) + 1
        orders, counts, backs = [], [], []
        for t, alive in enumerate(alive_counts(lengths, len(columns))):
            order, count = order_by_token(columns[t, :alive], num_tokens)
            back = torch.empty_like(order)
            back[order] = torch.arange(alive, device=order.device)
            orders.append(order)
            counts.append(count)
            backs.append(back)
        return Chunk(given, weights, tuple(orders), tuple(counts), tuple(backs))


def log_likelihood(operators: Operators, rows: Rows) -> tuple[float, Operators]:
    """Weighted log-likelihood (nats) and its plain gradient, in the operators' shape.

    -inf, with an unfinished gradient, where any row has probability <= 0.
    """
    gradient = Operators(
        torch.zeros_like(operators.first), tuple(torch.zeros_like(s) for s in operators.steps)
    )
    total = 0.0
    for chunk in rows.chunks:
        forward, chances = _forward(operators, chunk)
        smallest = min(float(chance.min()) for chance in chances)
        if not smallest > 0:
            return -math.inf, gradient
        for t, chance in enumerate(chances):
            seen = chunk.weights[: len(chance)] * (chunk.given[: len(chance)] <= t)
            total += float(seen @ chance.log())
        _backward(operators, chunk, forward, chances, gradient)
    return total, gradient


def _forward(operators: Operators, chunk: Chunk) -> tuple[list[Tensor], list[Tensor]]:
    """a_t before each token, sorted by the token, and the token's chance q, unsorted."""
    state = operators.first.expand(len(chunk.given), -1)
    states, chances = [], []
    for t, (order, counts, back) in enumerate(
        zip(chunk.orders, chunk.counts, chunk.backs, strict=True)
    ):
        step = operators.steps[min(t, len(operators.steps) - 1)]
        state = state[order]
        states.append(state)
        moved = state.new_empty((len(order), step.shape[2]))
        apply_in_order(step, state, counts, moved)
        moved = moved[back]
        chance = moved.sum(1)
        chances.append(chance)
        state = moved / chance.clamp(min=torch.finfo(chance.dtype).tiny)[:, None]
    return states, chances


def _backward(
    operators: Operators,
    chunk: Chunk,
    forward: list[Tensor],
    chances: list[Tensor],
    gradient: Operators,
    moments: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None,
) -> None:
    """Add the chunk's part of the gradient (and of Fisher's factors), last position first."""
    backward = None
    for t in reversed(range(len(chunk.orders))):
        order, which = chunk.orders[t], min(t, len(operators.steps) - 1)
        step, into = operators.steps[which], gradient.steps[which]
        # 1. b_t+1 of rows that go on, and ones for rows that end here
        started = 0 if backward is None else len(backward)
        after = step.new_ones((len(order), step.shape[2]))
        if backward is not None:
            after[:started] = backward
        after = after[order]
        after /= chances[t][order][:, None]
        weighted = forward[t] * chunk.weights[order][:, None]
        # 2. a_t (x) b_t+1 / q, token by token;   3. b_t = A b_t+1 / q
        moved = after.new_empty((len(order), step.shape[1]))
        start = 0
        for token, number in enumerate(chunk.counts[t]):
            if number:
                part = slice(start, start + number)
                into[token].addmm_(weighted[part].T, after[part])
                if moments is not None:
                    share = chunk.weights[order][part]
                    moments[0][which][token] += weighted[part].T @ forward[t][part]
                    moments[1][which][token] += (after[part] * share[:, None]).T @ after[part]
                    moments[2][which][token] += share.sum()
                torch.mm(after[part], step[token].T, out=moved[part])
                start += number
        backward = moved[chunk.backs[t]]
        # 4. at the end of the prompt its own probability is divided out
        if t > 0:
            backward -= (chunk.given[: len(order)] == t)[:, None].to(backward.dtype)
    gradient.first.add_(chunk.weights @ backward)


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
    """The approximate information at a model, inverted, in units of one weighted token.

    ridge: added to each factor, as a share of its mean eigenvalue
    """
    left = [
        torch.zeros(*s.shape[:2], s.shape[1], dtype=s.dtype, device=s.device)
        for s in operators.steps
    ]
    right = [
        torch.zeros(s.shape[0], s.shape[2], s.shape[2], dtype=s.dtype, device=s.device)
        for s in operators.steps
    ]
    mass = [torch.zeros(len(s), dtype=s.dtype, device=s.device) for s in operators.steps]
    scratch = Operators(
        torch.zeros_like(operators.first), tuple(torch.zeros_like(s) for s in operators.steps)
    )
    for chunk in rows.chunks:
        forward, chances = _forward(operators, chunk)
        _backward(operators, chunk, forward, chances, scratch, (left, right, mass))
    return Fisher(
        tuple(
            _inverted(a, m, ridge) * m.clamp(min=1.0)[:, None, None]
            for a, m in zip(left, mass, strict=True)
        ),
        tuple(_inverted(b, m, ridge) * rows.tokens for b, m in zip(right, mass, strict=True)),
    )


def _inverted(blocks: Tensor, mass: Tensor, ridge: float) -> Tensor:
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
    """How often each coefficient is in use at each step: sum of weights x a_t."""
    found = [a.new_zeros(a.shape[1]) for a in operators.steps]
    for chunk in rows.chunks:
        forward, _ = _forward(operators, chunk)
        for t, state in enumerate(forward):
            found[min(t, len(found) - 1)] += chunk.weights[chunk.orders[t]] @ state
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
