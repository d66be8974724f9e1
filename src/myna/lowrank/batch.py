"""Whole batches through a low-rank model: the same Q as `LowRankModel.step`, faster.

Reading token o multiplies a row's coefficients by the operator A_o[i, j] = L[i, o] G[i, o, j].
Rows that read the same token share one matrix product, so each step sorts its rows by
token (a radix sort of small integers) and moves them once; rows stay in that order
until the next step. The weights of all next tokens and their sum come from one product
with [L | L 1]: where no weight is negative, which one reduction tells, the sum is the
normaliser of Q and nothing has to be clipped.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.step import Step


class Weights(NamedTuple):
    """Unnormalised next-token weights, max(q, 0), and their sums.

    values: (batch, token)
    total: (batch,), at least one value is positive, so this is
    """

    values: Float[Tensor, "batch token"]
    total: Float[Tensor, " batch"]


def next_weights(
    vectors: Float[Tensor, "batch rank"], summed: Float[Tensor, "rank columns"]
) -> tuple[Float[Tensor, "batch token"], Weights]:
    """q, and its clipped form: Q(o | x) = values / total."""
    return split_weights(vectors @ summed)


def split_weights(
    both: Float[Tensor, "batch columns"],
) -> tuple[Float[Tensor, "batch token"], Weights]:
    """The same from the product with [L | L 1]; no positive entry gives the uniform law."""
    q, total = both[:, :-1], both[:, -1]
    if both.numel() and float(both.amin()) >= 0 and float(total.amin()) > 0:
        return q, Weights(q, total)
    values = q.clamp(min=0)
    values = values.masked_fill(values.sum(1, keepdim=True) <= 0, 1.0)
    return q, Weights(values, values.sum(1))


def order_by_token(
    tokens: Int[Tensor, " batch"], num_tokens: int
) -> tuple[Int[Tensor, " batch"], list[int]]:
    """The rows sorted by token, and how many there are of each token."""
    kind = np.uint8 if num_tokens <= 2**8 else np.uint16 if num_tokens <= 2**16 else np.int64
    small = tokens.cpu().numpy().astype(kind)
    order = torch.from_numpy(np.argsort(small, kind="stable")).to(tokens.device)
    return order, np.bincount(small, minlength=num_tokens).tolist()


def apply_in_order(
    operators: Float[Tensor, "token rank next_rank"],
    vectors: Float[Tensor, "batch rank"],
    counts: list[int],
    moved: Float[Tensor, "batch next_rank"],
) -> Float[Tensor, "batch next_rank"]:
    """Rows sorted by token, each times its token's operator, written to `moved`."""
    start = 0
    for token, count in enumerate(counts):
        if count:
            stop = start + count
            torch.mm(vectors[start:stop], operators[token], out=moved[start:stop])
            start = stop
    return moved


def apply_by_token(
    operators: Float[Tensor, "token rank next_rank"],
    vectors: Float[Tensor, "batch rank"],
    tokens: Int[Tensor, " batch"],
) -> Float[Tensor, "batch next_rank"]:
    """vectors[n] @ operators[tokens[n]], in the order given."""
    order, counts = order_by_token(tokens, len(operators))
    moved = vectors.new_empty((len(vectors), operators.shape[2]))
    apply_in_order(operators, vectors[order], counts, moved)
    result = torch.empty_like(moved)
    result[order] = moved
    return result


def bayes(
    moved: Float[Tensor, "batch next_rank"], q_o: Float[Tensor, " batch"]
) -> Float[Tensor, "batch next_rank"]:
    """Divide by q_o; where the token was impossible nothing remains (zeros, not NaN)."""
    if len(q_o) and float(q_o.amin()) > 0:
        return moved.div_(q_o[:, None])
    possible = (q_o > 0)[:, None]
    return torch.where(possible, moved / torch.where(possible, q_o[:, None], 1.0), 0.0)


def alive_counts(lengths: Int[Tensor, " batch"], width: int) -> list[int]:
    """How many rows have a token at positions 0, 1, ... (until none has)."""
    longer = torch.bincount(lengths, minlength=width + 1).flip(0).cumsum(0).flip(0)[1:]
    return [int(n) for n in longer.tolist() if n]


def score_columns(
    first: Float[Tensor, " rank"],
    steps: Sequence[Step],
    columns: Int[Tensor, "width batch"],
    alive: list[int],
) -> Float[Tensor, " batch"]:
    """Log Q of rows given column by column, longest first; `alive` rows have column t.

    The three large tables live in buffers made once: in trials that was faster, and
    steadier, than fresh ones every step.
    """
    rows, num_tokens = columns.shape[1], steps[0].laws.shape[1]
    widest = max(len(first), *(step.rank for step in steps))
    xs, ys = first.new_empty(rows * widest), first.new_empty(rows * widest)
    qs = first.new_empty(rows * (num_tokens + 1))
    log_probs = first.new_zeros((max(1, len(alive)), rows))
    y = first.expand(rows, -1)
    place = torch.arange(rows, device=first.device)  # row r is y[place[r]]
    for t, count in enumerate(alive):
        step = steps[min(t, len(steps) - 1)]
        order, counts = order_by_token(columns[t, :count], num_tokens)
        x = xs[: count * step.rank].view(count, step.rank)
        torch.index_select(y, 0, place[order], out=x)
        both = qs[: count * (num_tokens + 1)].view(count, -1)
        q, weights = split_weights(torch.mm(x, step.summed, out=both))
        chosen = columns[t, :count][order][:, None]
        log_probs[t, order] = (weights.values.gather(1, chosen)[:, 0] / weights.total).log()
        if t + 1 < len(alive):
            width = step.change.shape[2]
            moved = ys[: count * width].view(count, width)
            apply_in_order(step.operators, x, counts, moved)
            y = bayes(moved, q.gather(1, chosen)[:, 0])
            place = torch.empty_like(order)
            place[order] = torch.arange(count, device=first.device)
    return log_probs.sum(0)


def filter_columns(
    first: Float[Tensor, " rank"],
    steps: Sequence[Step],
    transitions: Sequence[Float[Tensor, "_ _"]],
    columns: Int[Tensor, "width batch"],
    alive: list[int],
) -> Float[Tensor, " batch"]:
    """`score_columns` where every step has a transition T: the forward filter.

    With joint_i = x_i L[i, o]:  q_o = sum_i joint_i,  x' = joint T / q_o.
    No sorting, since all rows share T, and nothing to clip.
    """
    rows, tiny = columns.shape[1], torch.finfo(first.dtype).tiny
    emissions = [step.laws.T.contiguous() for step in steps]
    widest = max(len(first), *(step.rank for step in steps), *(t.shape[1] for t in transitions))
    joints, xs = first.new_empty(rows * widest), first.new_empty(rows * widest)
    masses = first.new_ones((max(1, len(alive)), rows))
    x = first.expand(rows, -1)
    for t, count in enumerate(alive):
        emission, transition = (table[min(t, len(steps) - 1)] for table in (emissions, transitions))
        joint = joints[: count * len(transition)].view(count, -1)
        torch.index_select(emission, 0, columns[t, :count], out=joint).mul_(x[:count])
        mass = torch.sum(joint, 1, out=masses[t, :count])
        if t + 1 < len(alive):
            x = xs[: count * transition.shape[1]].view(count, -1)
            # an impossible token leaves zeros, not NaN: its own log is -inf already
            torch.mm(joint, transition, out=x).div_(mass.clamp(min=tiny)[:, None])
    return masses.log_().sum(0)
