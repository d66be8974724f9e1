"""What a model says after a context: how likely a continuation is, what comes greedily.

    log Q(y | x) = sum_s log Q(y_s | x y_1 .. y_(s-1))
    greedy       y_s = argmax_o Q(o | x y_1 .. y_(s-1)) for every s; the first token where tied

The sum runs over the continuation's own steps. The difference log Q(xy) - log Q(x) is the
same number and loses digits where the context is long.
"""

from collections import Counter
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import State, Stepper, Strings, check_strings, strings
from myna.spec import Spec
from myna.teachers.oracle import Laws, Samples, Stream
from myna.teachers.prefixes import Prefixes


class Continuations(NamedTuple):
    """One continuation a row.

    log_probs: (batch,), log Q(continuation | context), nats; -inf where Q excludes it
    greedy: (batch,), whether every token is the likeliest at its place
    """

    log_probs: Float[Tensor, " batch"]
    greedy: Bool[Tensor, " batch"]


def score_continuations(
    model: Stepper, whole: Strings, starts: Int[Tensor, " batch"]
) -> Continuations:
    """Each row's tokens from `starts` on, given those before.

    Raises:
        InputError: for a context of probability zero, after which nothing has a probability.
    """
    check_strings(model.spec, whole)
    order = torch.argsort(whole.lengths, descending=True, stable=True)
    tokens, lengths, starts = whole.tokens[order], whole.lengths[order], starts[order]
    state = model.initial(len(order))
    log_probs = torch.zeros(len(order), dtype=state.vector.dtype)
    greedy = torch.ones(len(order), dtype=torch.bool)
    for t in range(tokens.shape[1]):
        alive = int((lengths > t).sum())
        if not alive:
            break
        state = State(state.vector[:alive], state.position)
        read = tokens[:alive, t]
        likeliest = model.law(state).argmax(1).cpu()
        state, info = model.step(state, read.to(state.vector.device))
        log_prob, inside = info.log_prob.cpu(), starts[:alive] <= t
        _require_possible(whole, order, log_prob, inside)
        # What follows an impossible token has no law; the continuation stays impossible.
        over = log_probs[:alive] == -torch.inf
        log_probs[:alive] += torch.where(inside & ~over, log_prob, 0.0)
        greedy[:alive] &= (likeliest == read) | ~inside
    back = torch.argsort(order)
    return Continuations(log_probs[back], greedy[back])


def _require_possible(
    whole: Strings,
    order: Int[Tensor, " batch"],
    log_prob: Float[Tensor, " alive"],
    inside: Bool[Tensor, " alive"],
) -> None:
    """Refuse a context that takes a step of probability zero."""
    bad = (log_prob == -torch.inf) & ~inside
    if bool(bad.any()):
        row = int(order[int(bad.nonzero()[0, 0])])
        shown = whole.tokens[row, : int(whole.lengths[row])].tolist()
        raise InputError(
            "the likelihood of a continuation was asked after a context of probability zero, "
            f"which has none: row {row}, tokens {shown}; give contexts that the model can produce"
        )


def complete_greedily(teacher: Laws, prefixes: Prefixes, max_tokens: int) -> Strings:
    """The likeliest token again and again: up to the stop token, the horizon or `max_tokens`.

    A prefix that is already whole is followed by nothing.
    """
    rows = [list(row) for row in prefixes.rows()]
    for _ in range(max_tokens):
        alive = [row for row in rows if _goes_on(teacher.spec, row)]
        if not alive:
            break
        likeliest = teacher.laws(Prefixes.of(alive)).argmax(1).tolist()
        for row, token in zip(alive, likeliest, strict=True):
            row.append(token)
    lengths = prefixes.lengths.tolist()
    made = [row[length:] for row, length in zip(rows, lengths, strict=True)]
    return strings(made)


def complete_each(teacher: Samples, prefixes: Prefixes, max_tokens: int, stream: Stream) -> Strings:
    """One draw after each row; a prefix that comes again gets its next draw.

    A prefix that is already whole is followed by nothing.
    """
    rows = prefixes.rows()
    times = Counter[tuple[int, ...]]()
    turns: dict[int, list[int]] = {}  # draw index: the rows it belongs to, all different
    for i, row in enumerate(rows):
        if _goes_on(teacher.spec, list(row)):
            turns.setdefault(times[row], []).append(i)
            times[row] += 1
    made: list[list[int]] = [[] for _ in rows]
    for draw, here in turns.items():
        answer = teacher.complete(
            Prefixes.of([rows[i] for i in here]),
            1,
            stream=stream,
            max_tokens=max_tokens,
            first_draw=draw,
        )
        drawn = Prefixes(answer.tokens[:, 0], answer.lengths[:, 0]).rows()
        for i, row in zip(here, drawn, strict=True):
            made[i] = list(row)
    return strings(made)


def _goes_on(spec: Spec, row: list[int]) -> bool:
    """Whether anything may follow."""
    return row[-1:] != [spec.stop] and (spec.horizon is None or len(row) < spec.horizon)
