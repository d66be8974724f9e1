"""Whole batches through a low-rank model: the same Q as `LowRankModel.step`, faster.

Reading token o multiplies a row's coefficients by the operator A_o[i, j] = L[i, o] G[i, o, j].
Rows that read the same token share one matrix product, so each step sorts its rows by
token (a radix sort of small integers) and moves them once; rows stay in that order
until the next step. The weights of all next tokens and their sum come from one product
with [L | L 1]: where no weight is negative, which one reduction tells, the sum is the
normaliser of Q and nothing has to be clipped.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Weights(NamedTuple):
    """Unnormalised next-token weights, max(q, 0), and their sums.

    values: (batch, token)
    total: (batch,), at least one value is positive, so this is
    """

    values: Float[Tensor, "batch token"]
    total: Float[Tensor, " batch"]


def summed_laws(laws: Float[Tensor, "rank token"]) -> Float[Tensor, "rank columns"]:
    """[L | L 1]: the laws with their row sums as a last column."""
    return torch.cat([laws, laws.sum(1, keepdim=True)], 1)


def next_weights(
    vectors: Float[Tensor, "batch rank"], summed: Float[Tensor, "rank columns"]
) -> tuple[Float[Tensor, "batch token"], Weights]:
    """q, and its clipped form: Q(o | x) = values / total.

    Rows without any positive entry get the uniform law.
    """
    both = vectors @ summed
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
) -> Float[Tensor, "batch next_rank"]:
    """Rows sorted by token, each times its token's operator: one product a token."""
    moved = vectors.new_empty((len(vectors), operators.shape[2]))
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
    moved = apply_in_order(operators, vectors[order], counts)
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
