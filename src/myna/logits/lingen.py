"""LINGEN: what one prompt would say, generated from what other prompts say.

    v = argmin |L(target, F) - v' L(H, F)|^2 + ridge |v|^2          once
    z_t ~ softmax(sum_h v_h L[. | h z_1 ... z_t-1])                  at every token

L are centred logits, H histories, F futures. The target is asked about F alone, and never
again: at each token only the histories are. The ridge is a multiple of the mean square of a
row, chosen where it predicts the target's rows on futures held out.

Only inner products of rows enter, so L(H, F) is never stored:

    G = L L' over rows of H and targets together,    v = (G_HH + ridge I)^-1 G_Ht.

Source: Golowich, Liu, Shetty (arXiv 2510.24966, algorithm 1). The ridge, and columns that
are laws after all proper prefixes of futures rather than after whole futures, are ours.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.logits.centred import centred
from myna.logits.matrix import LogitMatrix, logit_matrix
from myna.lowrank.student import State, StepInfo, Stepped
from myna.spec import Spec, fingerprint
from myna.teachers.oracle import Laws
from myna.teachers.prefixes import Prefixes

RIDGES = tuple(10.0**e for e in range(-8, 1))
_HELD_OUT = 0.2  # of the futures
_BLOCK_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class RowGram:
    """Inner products of rows of centred logits.

    products: (row, row) sum over columns of L_i L_j
    columns: how many were summed
    """

    products: Float[Tensor, "row row"]
    columns: int

    def __add__(self, other: "RowGram") -> "RowGram":
        """Over the columns of both."""
        return RowGram(self.products + other.products, self.columns + other.columns)


@dataclasses.dataclass(frozen=True)
class Combination:
    """Histories combined into targets.

    weights: (history, target) v
    ridge: of the mean square of a history's row
    held_out: (target,) mean square (nats) of what is left on held-out columns
    unexplained: (target,) the same on them, of the target's own mean square
    """

    weights: Float[Tensor, "history target"]
    ridge: float
    held_out: Float[Tensor, " target"]
    unexplained: Float[Tensor, " target"]


def row_gram(matrix: LogitMatrix, futures: range) -> RowGram:
    """Sum over some of a matrix's futures, a bounded part at a time."""
    rows = range(len(matrix.histories.lengths))
    nodes = max(1, len(matrix.nodes) // max(1, len(matrix.futures.lengths)))
    width = matrix.teacher.spec.num_tokens
    step = max(1, _BLOCK_BYTES // (8 * max(1, len(rows)) * nodes * width))
    total = torch.zeros((len(rows), len(rows)), dtype=torch.float64)
    columns = 0
    for first in range(futures.start, futures.stop, step):
        logits = matrix.block(rows, range(first, min(first + step, futures.stop))).logits
        total += logits @ logits.mT
        columns += logits.shape[1]
    return RowGram(total, columns)


def combine(
    fitted: RowGram, held_out: RowGram, histories: Int[Tensor, " history"], targets: Int[Tensor, " target"],
    ridges: Sequence[float] = RIDGES,
) -> Combination:  # fmt: skip
    """The weights with the ridge that leaves least of the targets on held-out columns.

    The weights are then fitted again on all columns.

    histories, targets: which rows of both matrices

    Raises:
        InputError: without histories, targets or ridges, or with no held-out column.
    """
    if not len(histories) or not len(targets) or not ridges:
        raise InputError("a combination needs at least one history, one target and one ridge")
    if not held_out.columns:
        raise InputError(
            "the held-out futures have no prefix that the others lack; give longer or more futures"
        )
    own = held_out.products[targets, targets].clamp(min=torch.finfo(torch.float64).tiny)
    left = {
        ridge: _left(held_out, histories, targets, _solved(fitted, histories, targets, ridge))
        for ridge in ridges
    }
    ridge = min(left, key=lambda r: float((left[r] / own).mean()))
    weights = _solved(fitted + held_out, histories, targets, ridge)
    return Combination(weights, ridge, left[ridge] / held_out.columns, left[ridge] / own)


def _solved(gram: RowGram, rows: Tensor, targets: Tensor, ridge: float) -> Tensor:
    square = gram.products[rows][:, rows]
    damped = square + ridge * square.diagonal().mean() * torch.eye(len(rows), dtype=square.dtype)
    aimed = gram.products[rows][:, targets]
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return torch.linalg.lstsq(damped, aimed, driver="gelsd").solution
    return torch.cholesky_solve(aimed, factor)


def _left(gram: RowGram, rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """|L_t - v' L_H|^2 of each target."""
    square, aimed = gram.products[rows][:, rows], gram.products[rows][:, targets]
    explained = (weights * (square @ weights)).sum(0) - 2 * (weights * aimed).sum(0)
    return (gram.products[targets, targets] + explained).clamp(min=0)


class CombinedHistories(Stepped):
    """Other prompts, combined: a Student whose every token asks the histories alone.

    teacher: or a ledger's view of one
    histories: H
    weights: v
    horizon: tokens that may be generated, None: until the stop token
    """

    def __init__(
        self,
        teacher: Laws,
        histories: Prefixes,
        weights: Float[Tensor, " history"],
        horizon: int | None,
    ):
        """Ask nothing yet."""
        self._teacher, self._histories = teacher, histories
        self.weights = weights
        old = teacher.spec
        mark = fingerprint("lingen", old.fingerprint, *histories, weights, horizon)
        self._spec = Spec(old.alphabet, old.stop, horizon, mark)

    @property
    def spec(self) -> Spec:
        """The teacher's alphabet; what is left of its horizon after the longest prompt."""
        return self._spec

    def initial(self, batch: int) -> State:
        """Nothing generated yet: a state is the tokens so far."""
        return State(torch.empty((batch, 0), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log-probabilities (nats): each distinct row asks every history once."""
        lengths = torch.full((len(state.vector),), state.position)
        vector = state.vector.long()
        if not len(vector):
            return state.vector.new_zeros((0, self.spec.num_tokens))
        distinct, place = vector[:1], torch.zeros_like(lengths)
        if state.position:
            distinct, place = torch.unique(vector, dim=0, return_inverse=True)
        words = Prefixes(distinct, lengths[: len(distinct)])
        laws = centred(self._teacher.laws(self._histories.extended(words)))
        logits = laws.unflatten(0, (-1, len(distinct)))
        mixed = torch.einsum("h,hwo->wo", self.weights, logits)
        return mixed.log_softmax(1)[place]

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Append the token; its probability is read from the law before it."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        vector = torch.cat([state.vector, tokens[:, None].double()], 1)
        return State(vector, state.position + 1), StepInfo(log_prob)


def lingen(
    teacher: Laws,
    targets: Prefixes,
    histories: Prefixes,
    futures: Prefixes,
    k: int | None = None,
    ridges: Sequence[float] = RIDGES,
) -> tuple[list[CombinedHistories], Combination]:
    """One student a target, from histories on futures; the targets are asked about F alone.

    k: columns kept at each place, the most likely tokens; None: all

    Raises:
        InputError: fewer than two futures, or too much alike; a law with a zero.
    """
    split, count = fitted_futures(futures), len(futures.lengths)
    rows = stacked_prefixes(histories, targets)
    matrix = logit_matrix(teacher, rows, futures, k=k)
    fitted, held = row_gram(matrix, range(split)), row_gram(matrix, range(split, count))
    n, all_rows = len(histories.lengths), torch.arange(len(rows.lengths))
    found = combine(fitted, held, all_rows[:n], all_rows[n:], ridges)
    return combined_students(teacher, targets, histories, found.weights), found


def combined_students(
    teacher: Laws,
    targets: Prefixes,
    histories: Prefixes,
    weights: Float[Tensor, "history target"],
) -> list[CombinedHistories]:
    """One student a target; what is left of a horizon after the longest prompt is theirs."""
    room = room_after(teacher.spec, targets, histories)
    return [CombinedHistories(teacher, histories, v, room) for v in weights.mT]


def room_after(spec: Spec, targets: Prefixes, histories: Prefixes) -> int | None:
    """Tokens that may follow the longest prompt, of any; None: no horizon."""
    longest = max(int(rows.lengths.max()) for rows in (targets, histories))
    return None if spec.horizon is None else spec.horizon - longest


def fitted_futures(futures: Prefixes) -> int:
    """How many of the futures weights are fitted on, the first; the others choose the ridge.

    Raises:
        InputError: fewer than two.
    """
    count = len(futures.lengths)
    if count < 2:
        raise InputError(f"one future is fitted and one held out at least; got {count} in all")
    return min(count - 1, max(1, round((1 - _HELD_OUT) * count)))


def stacked_prefixes(first: Prefixes, second: Prefixes) -> Prefixes:
    """Both batches one below the other."""
    return Prefixes.of([list(row) for row in (*first.rows(), *second.rows())])


def shuffled(futures: Prefixes, generator: torch.Generator) -> Prefixes:
    """Nonsense: each row's tokens in random order."""
    rows = []
    for row in futures.rows():
        order = torch.randperm(len(row), generator=generator)
        rows.append([row[i] for i in order.tolist()])
    return Prefixes.of(rows)
