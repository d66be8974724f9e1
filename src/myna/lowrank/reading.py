"""What a copy consists of, cut by cut, in a form that people can read.

At cut t the copy knows a few basis histories h_i. For each: its next-token law L[i, .], its most
likely futures under the copy itself, and the basis history whose law of the next few tokens is
nearest in total variation.
For each token o: G[i, o, .], the coefficients of h_i o over the next basis, which is what reading o
does to a coefficient vector, up to Bayes' factor L[i, o] / q_o.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import State

_WORDS = 4096


@dataclasses.dataclass(frozen=True)
class Future:
    """A continuation and its probability under the copy."""

    tokens: tuple[int, ...]
    probability: float


@dataclasses.dataclass(frozen=True)
class BasisReading:
    """One basis history.

    history: its tokens
    law: next tokens and their probabilities, most likely first
    futures: the likeliest continuations found by a beam, most likely first
    nearest: the basis history whose law over the next few tokens (`CutReading.words`) is nearest,
        and their total variation; None where it is the only one
    """

    history: tuple[int, ...]
    law: tuple[tuple[int, float], ...]
    futures: tuple[Future, ...]
    nearest: tuple[int, float] | None


@dataclasses.dataclass(frozen=True)
class MoveReading:
    """What one token does: each basis history's coefficients after it.

    token: o
    change: (rank, next_rank) G[:, o, :]
    """

    token: int
    change: Float[Tensor, "rank next_rank"]


@dataclasses.dataclass(frozen=True)
class CutReading:
    """One stored cut.

    cut: t, or None where one step serves all positions
    words: tokens over which laws of basis histories are compared, at most 4,096 words
    """

    cut: int | None
    words: int
    basis: tuple[BasisReading, ...]
    moves: tuple[MoveReading, ...]


def read_cut(
    model: LowRankModel, cut: int, depth: int = 5, count: int = 4, tokens: int = 8
) -> CutReading:
    """Read one stored cut of a copy.

    depth: tokens of a future
    count: futures and next tokens shown of each history
    tokens: moves shown, of the tokens that are likeliest over the basis

    Raises:
        InputError: where the copy stores no such cut.
    """
    if not 0 <= cut < len(model.steps):
        raise InputError(
            f"the copy stores cuts 0..{len(model.steps) - 1}, and cut {cut} was asked for"
        )
    step = model.steps[cut]
    laws = model.law(State(torch.eye(step.rank, dtype=step.laws.dtype), cut)).exp()
    words = max(1, min(depth, int(math.log(_WORDS, max(2, model.spec.num_tokens)) + 1e-9)))
    ahead = _word_laws(model, cut, words)
    apart = torch.cdist(ahead, ahead, p=1) / 2
    apart.fill_diagonal_(torch.inf)
    basis = []
    for i in range(step.rank):
        top = laws[i].topk(min(count, laws.shape[1]))
        likely = tuple((int(o), float(p)) for p, o in zip(*top, strict=True) if float(p) > 0)
        nearest = None
        if step.rank > 1:
            other = int(apart[i].argmin())
            nearest = (other, float(apart[i, other]))
        history = step.histories[i] if step.histories else ()
        futures = _futures(model, i, cut, depth, count)
        basis.append(BasisReading(history, likely, futures, nearest))
    order = laws.mean(0).argsort(descending=True, stable=True)[:tokens].tolist()
    ends = model.spec.horizon is not None and cut + 1 >= model.spec.horizon
    shown = [o for o in order if o != model.spec.stop and not ends]
    moves = tuple(MoveReading(o, step.change[:, o]) for o in shown)
    return CutReading(cut if len(model.steps) > 1 else None, words, tuple(basis), moves)


def _word_laws(model: LowRankModel, position: int, length: int) -> Float[Tensor, "rank word"]:
    """P(w | h_i) of all words of `length` tokens, and of those that end before."""
    spec, rank = model.spec, model.step_at(position).rank
    going = torch.tensor([o for o in range(spec.num_tokens) if o != spec.stop])
    state = State(torch.eye(rank, dtype=torch.float64), position)
    mass, ended = torch.ones((rank, 1), dtype=torch.float64), []
    for last in range(1, length + 1):
        joint = mass[:, :, None] * model.law(state).exp().unflatten(0, (rank, -1))
        if spec.stop is not None:
            ended.append(joint[:, :, spec.stop])
        mass = joint[:, :, going].flatten(1)
        if last == length or state.position + 1 == spec.horizon:
            break
        rows = torch.arange(len(state.vector)).repeat_interleave(len(going))
        state, _ = model.step(state.take(rows), going.repeat(len(state.vector)))
    return torch.cat([mass, *ended], 1)


def _futures(
    model: LowRankModel, row: int, position: int, depth: int, count: int
) -> tuple[Future, ...]:
    """The likeliest continuations of basis history `row`, by a beam four times as wide."""
    spec, width, rank = model.spec, 4 * count, model.step_at(position).rank
    state = State(torch.eye(rank, dtype=torch.float64)[row : row + 1], position)
    beam: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[tuple[int, ...], float]] = []
    for _ in range(depth):
        if spec.horizon is not None and state.position >= spec.horizon:
            break
        scores = torch.tensor([s for _, s in beam])[:, None] + model.law(state)
        best = scores.flatten().topk(min(width, scores.numel()))
        kept = [(float(s), divmod(int(i), spec.num_tokens)) for s, i in zip(*best, strict=True)]
        kept = [(s, place) for s, place in kept if s > -torch.inf]
        done += [((*beam[r][0], o), s) for s, (r, o) in kept if o == spec.stop]
        going = [(s, r, o) for s, (r, o) in kept if o != spec.stop]
        if not going:
            beam = []
            break
        rows = torch.tensor([r for _, r, _ in going])
        state, _ = model.step(state.take(rows), torch.tensor([o for _, _, o in going]))
        beam = [((*beam[r][0], o), s) for s, r, o in going]
    found = sorted([*done, *beam], key=lambda pair: -pair[1])[:count]
    return tuple(Future(t, math.exp(s)) for t, s in found)
