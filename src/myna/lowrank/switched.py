"""States of a switched linear network along many strings at once, with their gradient.

    x_0 given,   x_{t+1} = x_t A_{o_t},   for strings o_0 ... o_{T-1} read side by side.

The gradient runs back along the same products. With g_t = dL/dx_t of what reads x_t:

    u_T = g_T,   u_t = g_t + u_{t+1} A_{o_t}',   dL/dA_o = sum over (t, string), o_t = o, of x_t' u_{t+1}.

Rows that read the same token share a matrix product, and the sum over positions is one product
a token; a general-purpose graph would hold one matrix gradient for each position instead.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.batch import apply_in_order, order_by_token


def switched_states(
    first: Float[Tensor, "string rank"],
    operators: Float[Tensor, "token rank rank"],
    columns: Int[Tensor, "time string"],
) -> Float[Tensor, "places string rank"]:
    """x_0 ... x_T of each string (places = time + 1); differentiable in `first` and `operators`."""
    return _Switched.apply(first, operators, columns)  # pyright: ignore[reportReturnType]


class _Switched(torch.autograd.Function):
    """Forward and backward as in the module's equations."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, operators: Tensor, columns: Tensor) -> Tensor:
        steps, num_tokens = len(columns), len(operators)
        orders = [order_by_token(column, num_tokens) for column in columns]
        states = first.new_empty((steps + 1, *first.shape))
        states[0] = first
        moved = torch.empty_like(first)
        for t, (order, counts) in enumerate(orders):
            apply_in_order(operators, states[t][order], counts, moved)
            states[t + 1].index_copy_(0, order, moved)
        ctx.save_for_backward(operators, columns, states)
        ctx.orders = orders
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        operators, columns, states = ctx.saved_tensors
        back = gradients[0].clone()  # g_t, which becomes u_t
        backward = operators.transpose(1, 2).contiguous()
        moved = torch.empty_like(back[0])
        for t in range(len(columns) - 1, -1, -1):
            order, counts = ctx.orders[t]
            apply_in_order(backward, back[t + 1][order], counts, moved)
            back[t].index_add_(0, order, moved)
        order, counts = order_by_token(columns.flatten(), len(operators))
        before = states[:-1].flatten(0, 1)[order]
        after = back[1:].flatten(0, 1)[order]
        total, start = torch.zeros_like(operators), 0
        for token, count in enumerate(counts):
            if count:
                stop = start + count
                torch.mm(before[start:stop].T, after[start:stop], out=total[token])
                start = stop
        return back[0], total, None
