"""A low-rank model's tables, multiplied out once and laid out for vector instructions.

For each step, with rows padded by zeros to whole vectors,

    laws[i, o] = L[i, o],        emissions[o, i] = L[i, o],
    moves[o, i, j] = A_o[i, j] = L[i, o] G[i, o, j],

or moves[i, j] = T[i, j] where the model is a hidden Markov model as it stands (G[i, o, :] =
T[i, :]): then A_o = diag(L[:, o]) T, and one table serves all tokens.

Where nothing is negative, all laws sum to one and so do the rows of G that are ever used, the
sum of coefficients that are never divided is the probability of what was read,

    sum_j (c A_x1 ... A_xt)_j = Q(x_1 ... x_t),

and a score needs no next-token weights. This is the forward algorithm (Rabiner, 1989).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.lowrank.model import LowRankModel
from myna.lowrank.step import ROUNDING, Step

_WIDEST = 64  # bytes of the longest vector; machines with shorter ones take several
_NEAR = 2**14  # numbers of all operators of a step that stay in the nearest caches


class FusedStep(NamedTuple):
    """One step's tables.

    laws: (rank, padded token)
    emissions: (token, padded rank)
    moves: (token, rank, padded next_rank), or with one transition (rank, padded next_rank)
    rank, next_rank: before padding
    """

    laws: Float[Tensor, "rank wide"]
    emissions: Float[Tensor, "token tall"]
    moves: Float[Tensor, "*token rank next_wide"]
    rank: int
    next_rank: int


class Fused(NamedTuple):
    """All steps, and what scoring may leave out.

    first: (rank,)
    lanes: numbers in a vector
    positive: no weight can be negative, so sums of coefficients are probabilities
    shared: moves are transitions, one for all tokens
    blocks: operators are too many for the nearest cache: read equal tokens together
    """

    first: Float[Tensor, " rank"]
    steps: tuple[FusedStep, ...]
    lanes: int
    positive: bool
    shared: bool
    blocks: bool

    @property
    def widest(self) -> int:
        """The largest rank."""
        return max(len(self.first), *(max(s.rank, s.next_rank) for s in self.steps))

    @property
    def one_rank(self) -> int:
        """The rank where all are equal and so small that loops over it cost, else 0."""
        ranks = {len(self.first), *(step.rank for step in self.steps)}
        return ranks.pop() if len(ranks) == 1 and ranks <= {2, 4, 8} else 0

    def work_at(self, position: int, *, last: bool) -> tuple[int, int]:
        """Numbers that scoring one token touches, and multiply-adds, before padding.

        last: the string ends with this token, so no coefficients follow
        """
        step = self.steps[min(position, len(self.steps) - 1)]
        weighing = step.rank * len(step.emissions)
        if last:
            reading = step.rank if self.positive else weighing
            return step.rank + reading, reading
        square, both = step.rank * step.next_rank, step.rank + step.next_rank
        reading = (step.rank if self.shared else 0) if self.positive else weighing
        return square + both + reading, square + reading


def fuse(model: LowRankModel, dtype: torch.dtype) -> Fused:
    """A model's tables on the CPU, in a precision (float64 or float32)."""
    transitions = model.transitions
    size = torch.empty(0, dtype=dtype).element_size()
    widest = max(len(model.first), model.spec.num_tokens, *(s.change.shape[2] for s in model.steps))
    lanes = min(_WIDEST // size, max(16 // size, 1 << (widest - 1).bit_length()))
    steps = []
    for t, step in enumerate(model.steps):
        moves = step.operators if transitions is None else transitions[t]
        laws, emissions, moves = (
            _padded(table, lanes, dtype) for table in (step.laws, step.laws.T, moves)
        )
        steps.append(FusedStep(laws, emissions, moves, step.rank, step.change.shape[2]))
    return Fused(
        model.first.to("cpu", dtype).contiguous(),
        tuple(steps),
        lanes,
        _positive(model),
        transitions is not None,
        transitions is None and max(step.moves.numel() for step in steps) > _NEAR,
    )


def _padded(table: Float[Tensor, "*rows _"], lanes: int, dtype: torch.dtype) -> Tensor:
    """Rows of whole vectors."""
    missing = -table.shape[-1] % lanes
    return torch.nn.functional.pad(table.to("cpu", dtype), (0, missing)).contiguous()


def _positive(model: LowRankModel) -> bool:
    """Whether sums of undivided coefficients are probabilities, up to ROUNDING a token."""
    if bool((model.first < 0).any()) or abs(float(model.first.sum()) - 1) > ROUNDING:
        return False
    return all(
        _conserves(step, model.spec.stop, last=model.spec.horizon == t + 1)
        for t, step in enumerate(model.steps)
    )


def _conserves(step: Step, stop: int | None, *, last: bool) -> bool:
    """Nonnegative, and mass one goes to mass one wherever a string goes on."""
    negative = bool((step.laws < 0).any()) or bool((step.change < 0).any())
    if negative or bool(((step.laws.sum(1) - 1).abs() > ROUNDING).any()):
        return False
    goes_on = step.laws > 0
    if stop is not None:
        goes_on[:, stop] = False
    lost = (step.change.sum(2) - 1).abs() > ROUNDING
    return last or not bool((lost & goes_on).any())
