"""Sketches and sampled coefficients that a low-rank model can give of itself.

At cut t, draw k futures of a few tokens from each basis history, f_1 ... f_m in all, and

    R[i, j] = Q(f_j | h_i) / (m D(f_j)),    D the mean of the Q(. | h_i),

the representative vectors (`sketch`) of the model's own basis: what a region needs to tell
how far apart two coefficient vectors are. A cut-off future is an event, and the laws of
events have no higher rank. The coefficients of drawn histories are the points of a hull.
Source: Liu and Moitra (arXiv 2411.07536), Algorithm 2; we let the model draw its futures,
where a learner that has asked the teacher for them has better ones.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.sketch import representative_vectors, stratified_log_proposal
from myna.lowrank.student import State, draw


def basis_sketch(
    model: LowRankModel, cut: int, each: int, length: int, generator: torch.Generator
) -> Float[Tensor, "rank future"]:
    """R at a cut, from `each` futures of at most `length` tokens of every basis history.

    Raises:
        InputError: where the model has no step at the cut, or nothing is to be drawn.
    """
    spec = model.spec
    if not 0 <= cut < (spec.horizon or cut + 1) or each < 1 or length < 1:
        raise InputError(
            f"a basis is sketched at a cut before the horizon {spec.horizon} with at least one "
            f"future of at least one token, got cut {cut}, {each} futures, {length} tokens"
        )
    rank = model.step_at(cut).rank
    length = length if spec.horizon is None else min(length, spec.horizon - cut)
    start = torch.eye(rank, dtype=torch.float64, device=model.first.device)
    state = State(start.repeat_interleave(each, 0), cut)
    columns = []
    for t in range(length):
        uniform = torch.rand(
            rank * each, dtype=torch.float64, generator=generator, device=generator.device
        ).to(start.device)
        columns.append(draw(model.law(state), uniform))
        if t + 1 < length:
            state, _ = model.step(state, columns[-1])
    futures = _cut_at_stop(torch.stack(columns, 1), spec.stop)
    # every basis history reads every future
    log_probs = _log_probs(model, cut, start, futures)
    return representative_vectors(log_probs, stratified_log_proposal(log_probs))


def _cut_at_stop(futures: Int[Tensor, "future length"], stop: int | None) -> Tensor:
    """Tokens after the stop become -1."""
    if stop is None:
        return futures
    stopped = (futures == stop).cumsum(1)
    return futures.masked_fill((stopped - (futures == stop).int()) > 0, -1)


def _log_probs(
    model: LowRankModel,
    cut: int,
    start: Float[Tensor, "rank rank"],
    futures: Int[Tensor, "future length"],
) -> Float[Tensor, "rank future"]:
    """Log Q(f_j | h_i); a future's tokens end at the first -1."""
    rank, count = len(start), len(futures)
    state = State(start.repeat_interleave(count, 0), cut)
    tokens, total = futures.repeat(rank, 1), start.new_zeros(rank * count)
    for t in range(tokens.shape[1]):
        going = tokens[:, t] >= 0
        read = tokens[:, t].clamp(min=0)
        if t + 1 < tokens.shape[1]:
            state, info = model.step(state, read)
            log_prob = info.log_prob
        else:
            log_prob = model.law(state).gather(1, read[:, None])[:, 0]
        total = torch.where(going, total + log_prob, total)
    return total.reshape(rank, count)


def sampled_coefficients(
    model: LowRankModel, count: int, tokens: int, generator: torch.Generator
) -> tuple[Float[Tensor, "history _"], ...]:
    """Coefficients after 0, 1, ... `tokens` - 1 tokens of `count` strings drawn from Q.

    Strings that have ended by then are left out.
    """
    strings = model.sample(count, generator, max_tokens=tokens)
    device = model.first.device
    state, rows, found = model.initial(count), torch.arange(count, device=device), []
    for t in range(tokens):
        found.append(state.vector)
        going = strings.lengths.to(device)[rows] > t + 1
        if t + 1 == tokens or not bool(going.any()):
            break
        index = going.nonzero()[:, 0]
        state, rows = state.take(index), rows[index]
        state, _ = model.step(state, strings.tokens.to(device)[rows, t])
    return tuple(found)
