"""Three ways up the likelihood of a hidden Markov model, as iterates that never end.

    maximise  l(theta) + sum k log theta,      rows of theta are probability laws

- `expectation_maximisation` (Baum, Petrie, Soules and Weiss 1970): F(theta) = the expected
  counts, normalised. The objective never falls.
- `squared` (Varadhan and Roland 2008, scheme S3): with r = F(s) - s, v = F(F(s)) - F(s) - r,

      s  <-  s - 2 a r + a^2 v,      a = -|r| / |v|,  at most -1,

  taken where the objective is no lower than at F(s); else F(F(s)), plain EM's point. |a| has a
  cap that grows where leaps as long are taken and shrinks where one is not. We differ in that
  s = sqrt(theta), which distances as Hellinger's suit, no root falls to less than a tenth of
  F(F(s))'s, and squares are normalised: every leap ends at a model without new zeros. Two passes
  over the data an iterate, three where the leap is not taken.
- `gradient`: L-BFGS (Nocedal and Wright, algorithm 7.5, in torch's form with a strong Wolfe
  search) on theta = softmax(u), whose exact gradient is counts - softmax(u) * (sum of counts).
  Zeros of the start become `_FLOOR`. For answers with prompts, whose counts are signed.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.learn.forward_backward import Counts, ForwardBackward, HmmTables

_FLOOR = 1e-10  # softmax has no zeros: the least probability that L-BFGS starts from
_MEMORY = 20  # pairs of differences that L-BFGS keeps

_GROWTH = 4.0  # of the longest leap allowed, after one that was as long and good
_SHRINK = 10.0  # of a root in one leap, at most: a probability of zero would stay

Pseudo = tuple[float, float, float]


class Point(NamedTuple):
    """An iterate: its tables, l, and l plus the log prior (both nats)."""

    tables: HmmTables
    log_likelihood: float
    objective: float


def expectation_maximisation(
    engine: ForwardBackward, tables: HmmTables, pseudo: Pseudo
) -> Iterator[Point]:
    """Iterates of expectation maximisation, the start first.

    pseudo: counts k added to every cell of the initial law, transitions and emissions
    """
    while True:
        counts = engine.counts(tables)
        yield _point(counts, tables, pseudo)
        tables = _maximised(counts, tables, pseudo)


def squared(engine: ForwardBackward, tables: HmmTables, pseudo: Pseudo) -> Iterator[Point]:
    """Iterates of squared extrapolation, the start first."""
    counts, longest = engine.counts(tables), _GROWTH
    while True:
        yield _point(counts, tables, pseudo)
        first = _maximised(counts, tables, pseudo)
        between = engine.counts(first)
        second = _maximised(between, first, pseudo)
        leapt, length = _leap(tables, first, second, longest)
        counts = engine.counts(leapt)
        if _point(counts, leapt, pseudo).objective >= _point(between, first, pseudo).objective:
            tables = leapt
            longest *= _GROWTH if length == longest else 1.0
        else:
            tables, counts = second, engine.counts(second)
            longest = max(_GROWTH, length / _GROWTH)


def gradient(engine: ForwardBackward, tables: HmmTables, pseudo: Pseudo) -> Iterator[Point]:
    """Iterates of L-BFGS on softmax parameters, the start first."""
    loss = _Loss(engine, tables, pseudo)
    optimiser = torch.optim.LBFGS(
        loss.logits,
        max_iter=1,  # one iteration a step, so that every iterate is seen
        max_eval=100,
        history_size=_MEMORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    while True:
        loss()
        yield loss.point
        optimiser.step(loss)


def _point(counts: Counts, tables: HmmTables, pseudo: Pseudo) -> Point:
    """Where tables with these counts stand: l, and l + sum of k log theta."""
    prior = 0.0
    for extra, table in zip(pseudo, tables, strict=True):
        prior += extra * float(table.log().sum()) if extra else 0.0
    return Point(tables, counts.log_likelihood, counts.log_likelihood + prior)


def _maximised(counts: Counts, tables: HmmTables, pseudo: Pseudo) -> HmmTables:
    """One step of expectation maximisation."""
    parts = zip(counts.tables, pseudo, tables, strict=True)
    return HmmTables(*(_normalised(found + extra, old) for found, extra, old in parts))


def _normalised(
    counts: Float[Tensor, "*rows column"], old: Float[Tensor, "*rows column"]
) -> Float[Tensor, "*rows column"]:
    """Rows over their sums; a row without counts stays as it was."""
    sums = counts.sum(-1, keepdim=True)
    return torch.where(sums > 0, counts / sums.clamp(min=torch.finfo(sums.dtype).tiny), old)


def _leap(
    start: HmmTables, first: HmmTables, second: HmmTables, longest: float
) -> tuple[HmmTables, float]:
    """The extrapolation from three iterates of expectation maximisation, and its |a|."""
    roots = [[table.sqrt() for table in tables] for tables in (start, first, second)]
    steps = [b - a for a, b in zip(roots[0], roots[1], strict=True)]
    bends = [c - b - r for b, c, r in zip(roots[1], roots[2], steps, strict=True)]
    step, bend = (sum(float(part.square().sum()) for part in parts) for parts in (steps, bends))
    a = min(longest, max(1.0, (step / bend) ** 0.5)) if bend else 1.0
    leapt = []
    for s, r, v, last, old in zip(roots[0], steps, bends, roots[2], second, strict=True):
        root = torch.maximum(s + 2 * a * r + a * a * v, last / _SHRINK)
        leapt.append(_normalised(root.square(), old))
    return HmmTables(*leapt), a


class _Loss:
    """-(l + log prior) per token as a function of logits, with its gradient."""

    def __init__(self, engine: ForwardBackward, tables: HmmTables, pseudo: Pseudo):
        self._engine, self._pseudo = engine, pseudo
        self.logits = [table.clamp(min=_FLOOR).log() for table in tables]
        self._at: list[Tensor] = []
        self.point = Point(tables, -math.inf, -math.inf)

    def __call__(self) -> Tensor:
        """The value at the present logits; the last one asked is not computed again."""
        known = bool(self._at) and all(map(torch.equal, self._at, self.logits))
        if not known:
            self._at = [logits.clone() for logits in self.logits]
            tables = HmmTables(*(logits.softmax(-1) for logits in self.logits))
            counts = self._engine.counts(tables)
            self.point = _point(counts, tables, self._pseudo)
            parts = zip(self.logits, tables, counts.tables, self._pseudo, strict=True)
            for logits, table, found, extra in parts:
                total = found + extra
                slope = total - table * total.sum(-1, keepdim=True)
                logits.grad = slope / -self._engine.tokens
        return self.logits[0].new_tensor(self.point.objective / -self._engine.tokens)
