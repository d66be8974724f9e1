"""How far a student Q is from a teacher P, per string and by enumeration.

    TV = 1/2 sum_x |P(x) - Q(x)| = E_P (1 - Q(x)/P(x))_+
    KL = sum_x P(x) log(P(x)/Q(x)) = E_P sum_t KL(P(. | x_<t) || Q(. | x_<t))

The second form of KL is used on samples: drawing a string by its laws shows every law
along it, so each step's divergence is exact and only the string is random.

The floored student Q_tau(o | x) = (1 - tau) Q(o | x) + tau / O has KL(p || Q_tau) <=
log(O / tau) at every step, whatever Q is; after a prefix that Q cannot produce its law
is taken as uniform.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.lowrank.student import State, Strings, Student
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes


class AlongStrings(NamedTuple):
    """What P and Q say of drawn strings.

    log_p, log_q: (string,), log P(x) and log Q(x), nats
    floored_kl: (string,), sum_t KL(P(. | x_<t) || Q_tau(. | x_<t)), nats
    """

    log_p: Float[Tensor, " string"]
    log_q: Float[Tensor, " string"]
    floored_kl: Float[Tensor, " string"]


def along_strings(view: LawsView, student: Student, strings: Strings, floor: float) -> AlongStrings:
    """Step the student along strings that the teacher produced.

    view: its laws at every prefix are asked (and cached, if the strings were drawn by laws)
    floor: tau, in (0, 1)
    """
    order = torch.argsort(strings.lengths, descending=True, stable=True)
    tokens, lengths = strings.tokens[order], strings.lengths[order]
    totals = torch.zeros((3, len(order)), dtype=torch.float64)
    state = student.initial(len(order))
    for t in range(tokens.shape[1]):
        alive = int((lengths > t).sum())
        if not alive:
            break
        state = State(state.vector[:alive], state.position)
        prefixes = Prefixes(tokens[:alive, :t], torch.full((alive,), t))
        p, q = view.laws(prefixes), usable_law(student, state)
        here = tokens[:alive, t : t + 1]
        totals[0, :alive] += p.gather(1, here)[:, 0]
        totals[2, :alive] += floored_step_kl(p, q, floor)
        state, info = student.step(state, here[:, 0].to(state.vector.device))
        totals[1, :alive] += info.log_prob.cpu()
    result = torch.empty_like(totals)
    result[:, order] = totals
    return AlongStrings(*result)


def usable_law(student: Student, state: State) -> Float[Tensor, "batch token"]:
    """Q's log-law; uniform where the student has no law (a prefix it cannot produce)."""
    law = student.law(state).cpu().double()
    dead = ~(law.exp().sum(1, keepdim=True) > 0.5)
    return law.masked_fill(dead, -math.log(law.shape[1]))


def floored_step_kl(
    p: Float[Tensor, "batch token"], q: Float[Tensor, "batch token"], floor: float
) -> Float[Tensor, " batch"]:
    """KL(p || (1 - tau) q + tau / O) of log-laws, nats; at least 0."""
    return step_kl(p, ((1 - floor) * q.exp() + floor / q.shape[1]).log())


def step_kl(
    p: Float[Tensor, "batch token"], q: Float[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """KL(p || q) of log-laws, nats; at least 0, infinite where q excludes what p allows."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(1).clamp(min=0)


class Enumerated(NamedTuple):
    """Exact distances over all strings.

    total_variation: TV
    kl_nats: KL(P || Q), inf where Q misses a string of P
    strings: how many strings either can produce
    log_ratio: largest |log Q(x) - log P(x)| over the strings of P
    """

    total_variation: float
    kl_nats: float
    strings: int
    log_ratio: float


def enumerate_distance(view: LawsView, student: Student) -> Enumerated:
    """Walk the tree of all strings that P or Q can produce; the language must be finite.

    The teacher is never asked after a prefix of P-probability zero.
    """
    spec, count = view.spec, 0
    variation, divergence, ratio = 0.0, 0.0, 0.0
    prefixes = torch.empty((1, 0), dtype=torch.int64)
    log_p = log_q = torch.zeros(1, dtype=torch.float64)
    state = student.initial(1)
    for t in range(spec.horizon or 0):
        p = _laws_where_possible(view, prefixes, log_p) + log_p[:, None]
        q = usable_law(student, state) + log_q[:, None]
        rows, tokens = ((p > -torch.inf) | (q > -torch.inf)).nonzero().unbind(1)
        log_p, log_q = p[rows, tokens], q[rows, tokens]
        ended = torch.full_like(tokens, t + 1 == spec.horizon, dtype=torch.bool)
        if spec.stop is not None:
            ended |= tokens == spec.stop
        seen = log_p[ended] > -torch.inf
        count += int(ended.sum())
        variation += float((log_p[ended].exp() - log_q[ended].exp()).abs().sum()) / 2
        gap = (log_p - log_q)[ended][seen]
        divergence += float((log_p[ended][seen].exp() * gap).sum())
        ratio = max(ratio, float(gap.abs().max())) if len(gap) else ratio
        going = (~ended).nonzero()[:, 0]
        if not len(going):
            break
        rows, tokens, log_p, log_q = rows[going], tokens[going], log_p[going], log_q[going]
        prefixes = torch.cat([prefixes[rows], tokens[:, None]], 1)
        device = state.vector.device
        state, _ = student.step(state.take(rows.to(device)), tokens.to(device))
    return Enumerated(variation, max(divergence, 0.0), count, ratio)


def _laws_where_possible(
    view: LawsView, prefixes: Tensor, log_p: Float[Tensor, " prefix"]
) -> Float[Tensor, "prefix token"]:
    laws = torch.full((len(prefixes), view.spec.num_tokens), -torch.inf, dtype=torch.float64)
    possible = (log_p > -torch.inf).nonzero()[:, 0]
    asked = prefixes[possible]
    laws[possible] = view.laws(Prefixes(asked, torch.full((len(asked),), prefixes.shape[1])))
    return laws
