"""Where the recorded answers contradict a copy that was fitted to them.

The answers are a tree of prefixes. A prefix with n >= 2 next tokens drawn, k_o of them o,
has under the copy's law q Pearson's statistic

    X^2 = sum_o k_o^2 / (n q_o) - n,     mean O - 1,
    variance 2 (O - 1) + (sum_o 1 / q_o - O^2 - 2 O + 2) / n        (Haldane 1937),

and over all prefixes of a length the excesses X^2 - (O - 1) add up, their variances too.
Two draws a prefix say nothing alone; thousands of such prefixes together show a dimension
that the copy lacks (noisy parity's last bit, say). Fitting to the same answers only lowers
the statistic, so what stands out is real. We know no source for the pooled test.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.learn.evidence import Evidence
from myna.learn.table import History
from myna.lowrank.likelihood import Level, Operators, Rows, forward_pass

LEAST = 1e-4  # probabilities of the copy are taken as at least this
_FAR = 6.0  # standard deviations of a length's sum that contradict the copy, and
_LEAST_NATS = 2e-3  # what it must be worth a draw: half of the mean chi-square distance


class Misfit(NamedTuple):
    """A length at which the answers contradict the copy.

    cut: length of the prefixes
    excess: sum of X^2 - (O - 1) over its standard deviation
    history: the prefix that stands out most
    """

    cut: int
    excess: float
    history: History


def pearson_excess(
    counts: Float[Tensor, "history token"], law: Float[Tensor, "history token"]
) -> tuple[Float[Tensor, " history"], Float[Tensor, " history"]]:
    """X^2 less its mean, and its variance."""
    draws, size = counts.sum(1), law.shape[1]
    excess = (counts.square() / law).sum(1) / draws - draws - (size - 1)
    spread = 2 * (size - 1) + ((1 / law).sum(1) - size**2 - 2 * size + 2) / draws
    return excess, spread.clamp(min=1.0)


def misfits(operators: Operators, evidence: Evidence) -> tuple[Misfit, ...]:
    """Lengths whose prefixes together contradict the operators, the clearest first."""
    # one tree: a prefix whose draws lie in two would have a part of them in each
    (tree,) = Rows.of(*evidence, block=len(evidence.lengths)).trees
    states, found = forward_pass(operators, tree).states, []
    for t, level in enumerate(tree):
        counts, parents = _counts(level, len(states[t]), len(operators.steps[0]))
        if not len(counts):
            continue
        step = operators.steps[min(t, len(operators.steps) - 1)]
        # a prefix that the copy holds impossible leaves no law: the same chance for every token
        law = (states[t][parents] @ step.sum(2).T).nan_to_num(0.0, 0.0, 0.0).clamp(min=LEAST)
        excess, variance = pearson_excess(counts, law / law.sum(1, keepdim=True))
        together = float(excess.sum()) / float(variance.sum()) ** 0.5
        nats = float(excess.sum() / counts.sum()) / 2
        if together > _FAR and nats > _LEAST_NATS:
            clearest = int(parents[(excess / variance.sqrt()).argmax()])
            found.append(Misfit(t, together, _history(tree, t, clearest)))
    return tuple(sorted(found, key=lambda misfit: -misfit.excess))


def _counts(level: Level, above: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(parent, token) reads of the parents with at least two, and which parents these are."""
    token = torch.arange(len(level.counts)).repeat_interleave(torch.tensor(level.counts))
    table = level.reads.new_zeros(above * num_tokens)
    table[level.parents * num_tokens + token.to(level.parents)] = level.reads
    table = table.view(above, num_tokens)
    enough = (table.sum(1) >= 2).nonzero()[:, 0]
    return table[enough], enough


def _history(tree: tuple[Level, ...], cut: int, node: int) -> History:
    """The tokens that lead to a node at a cut, read upwards."""
    tokens: list[int] = []
    for level in reversed(tree[:cut]):
        ends = torch.tensor(level.counts).cumsum(0)
        tokens.append(int(torch.searchsorted(ends, node, right=True)))
        node = int(level.parents[node])
    return tuple(reversed(tokens))
