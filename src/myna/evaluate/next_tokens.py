"""Next-token laws against repeated draws: what n tokens after one prefix tell.

At a prefix with law p (teacher) and q (student), let n_o count token o among n independent
draws from p, and r the student's law above a floor (`raised`). Three statistics, each with a one-sided mean, whatever p and q are:

    V = sum_o (n_o/n - q_o)_+                               E V >= TV(p, q)
    D = sum_o (n_o/n) (psi(n_o) - psi(n) - log r_o)         E D >= KL(p || r)
    W = (share of half 2 in A) - q(A),
        A = {o : share of o in half 1 > q_o}                E W <= TV(p, q)

V by Jensen; its excess is of order sqrt(O/n). D has the digamma form of an entropy estimate
(Zhang 2012; Montgomery-Smith & Schuermann 2005; we use only its mean, which the tests
check by enumeration): E (n_o/n)(psi(n) - psi(n_o)) = sum_{k<n} p_o (1-p_o)^k / k, so

    E D - KL(p || r) = sum_{k>=n} (1/k) sum_o p_o (1 - p_o)^k >= 0,

which vanishes exponentially in n for tokens with p_o >> 1/n (the plug-in's excess is
(O-1)/2n for all). W holds because A is fixed before half 2 is drawn.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.evaluate.distance import usable_law
from myna.evaluate.raised import raised
from myna.lowrank.student import State, Strings, Student
from myna.teachers.ledger import SamplesView
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes

_ROWS = 4096  # strings that the student reads at once


class DrawnLaws(NamedTuple):
    """Draws after chosen prefixes, and what the student says of them.

    tokens: (unit, draw), -1 where the string had ended before the prefix's length
    log_q: (unit, draw), log Q(token | prefix), nats; -inf where Q excludes the token
    log_r: (unit, draw), the same for the student with a floor (see `raised`)
    alive: (unit,), whether there was a prefix to draw after
    """

    tokens: Int[Tensor, "unit draw"]
    log_q: Float[Tensor, "unit draw"]
    log_r: Float[Tensor, "unit draw"]
    alive: Tensor


def next_token_draws(
    view: SamplesView, strings: Strings, positions: Int[Tensor, " unit"], count: int
) -> Int[Tensor, "unit draw"]:
    """`count` draws of the token at `positions[i]` of string i, given what precedes it.

    The string's own token is the first draw; the others are asked on a stream of their own.
    Prefixes that several units share get different draws for each, so units are
    independent. Rows whose string has ended hold -1.
    """
    drawn = torch.full((len(positions), count), -1, dtype=torch.int64)
    alive = (strings.lengths > positions).nonzero()[:, 0]
    drawn[alive, 0] = strings.tokens[alive, positions[alive]]
    if count == 1:
        return drawn
    stream = Stream(f"{view.stream.purpose}: next tokens", view.stream.seed)
    for places in _equally_often(strings, positions, alive):
        # places[i, j]: unit of the j-th occurrence of the i-th distinct prefix
        first, times = places[:, 0], places.shape[1]
        longest = int(positions[first].max())
        columns = torch.arange(longest)
        kept = columns < positions[first][:, None]
        tokens = strings.tokens[first, :longest].masked_fill(~kept, -1)
        asked = Prefixes(tokens, positions[first])
        answer = view.complete(asked, times * (count - 1), stream=stream, max_tokens=1)
        drawn[places.reshape(-1), 1:] = answer.tokens[:, :, 0].reshape(-1, count - 1)
    return drawn


def _equally_often(
    strings: Strings, positions: Int[Tensor, " unit"], alive: Int[Tensor, " living"]
) -> list[Int[Tensor, "prefix occurrence"]]:
    """Units by their prefix, prefixes that occur equally often together."""
    columns = torch.arange(strings.tokens.shape[1])
    inside = columns < positions[alive][:, None]
    words = strings.tokens[alive].masked_fill(~inside, -1)
    _, label, times = words.unique(dim=0, return_inverse=True, return_counts=True)
    order = alive[label.argsort(stable=True)]
    starts = times.cumsum(0) - times
    return [order[starts[times == c][:, None] + torch.arange(c)] for c in times.unique().tolist()]


def drawn_laws(
    student: Student,
    strings: Strings,
    positions: Int[Tensor, " unit"],
    tokens: Int[Tensor, "unit draw"],
    floor: float,
) -> DrawnLaws:
    """What the student says of each draw, its prefix being positions[i] tokens of string i."""
    log_q, log_r = torch.zeros((2, *tokens.shape), dtype=torch.float64)
    living = (strings.lengths > positions).nonzero()[:, 0]
    for group in living.split(_ROWS):
        rows = group[positions[group].argsort(descending=True)]
        depth, state = positions[rows], student.initial(len(rows))
        for t in range(int(depth[0]) + 1):
            here = int((depth >= t).sum())  # the others' prefixes are shorter
            ending = rows[:here][depth[:here] == t]
            state = State(state.vector[:here], state.position)
            if len(ending):
                law = usable_law(student, State(state.vector[here - len(ending) :], t))
                log_q[ending] = law.gather(1, tokens[ending])
                log_r[ending] = raised(law, floor).gather(1, tokens[ending])
            state = State(state.vector[: here - len(ending)], state.position)
            if len(state.vector):
                read = strings.tokens[rows[: len(state.vector)], t]
                state, _ = student.step(state, read.to(state.vector.device))
    return DrawnLaws(tokens, log_q, log_r, strings.lengths > positions)


def variation_excess(drawn: DrawnLaws) -> Float[Tensor, " unit"]:
    """V, one a unit, in [0, 1]; 0 where the string had ended."""
    n = drawn.tokens.shape[1]
    times = _occurrences(drawn.tokens, drawn.tokens)
    # each distinct token is met n_o times, so a draw carries 1/n_o of its term
    value = ((times / n - drawn.log_q.exp()).clamp(min=0) / times).sum(1)
    return torch.where(drawn.alive, value.clamp(max=1), 0.0)


def divergence_excess(drawn: DrawnLaws) -> Float[Tensor, " unit"]:
    """D against R, nats, one a unit, at most the largest -log R; 0 where the string had ended."""
    n = drawn.tokens.shape[1]
    times = _occurrences(drawn.tokens, drawn.tokens)
    whole = torch.digamma(torch.tensor(float(n), dtype=torch.float64))
    value = (torch.digamma(times) - whole - drawn.log_r).mean(1)
    return torch.where(drawn.alive, value, 0.0)


def split_witness(drawn: DrawnLaws) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """The share of half 2 in A, and q(A); W is their difference. Zeros where nothing was drawn.

    The first half has floor(n/2) draws; at least 2 draws are needed.
    """
    half = drawn.tokens.shape[1] // 2
    first, second = drawn.tokens[:, :half], drawn.tokens[:, half:]
    q_first, q_second = drawn.log_q[:, :half].exp(), drawn.log_q[:, half:].exp()
    times = _occurrences(first, first)
    chosen = times / half > q_first
    mass = torch.where(chosen, q_first / times, 0.0).sum(1)
    share = (_occurrences(second, first) / half > q_second).double().mean(1)
    return torch.where(drawn.alive, share, 0.0), torch.where(drawn.alive, mass, 0.0)


def _occurrences(
    tokens: Int[Tensor, "unit draw"], among: Int[Tensor, "unit other"]
) -> Float[Tensor, "unit draw"]:
    """How often each draw's token occurs in the same row of `among`."""
    ordered, tokens = among.sort(1).values, tokens.contiguous()
    above = torch.searchsorted(ordered, tokens, right=True)
    return (above - torch.searchsorted(ordered, tokens)).double()
