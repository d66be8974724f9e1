"""What both structures of the exact learner share: finding where a copy goes wrong.

A counterexample is a history x at which the copy's law is wrong. Its coefficients
were exact at the empty history, so along x there is a cut r where they still explain
all futures in the table and a next one where they do not:

    P(w | x_1..x_r+1) != sum_i c_i(x_1..x_r+1) P(w | h_i)    for a word w in the table.

Bayes' rule and the changes of basis are exact on the table, so the word o w, with
o = x_r+1, tells x_1..x_r apart from its combination at cut r: adding both raises the
rank there. Bisection finds such an r with log2(length) rows; this is the step of
Rivest and Schapire's L*, in coefficients instead of states.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.learn.report import CutReport, ExactSettings
from myna.learn.table import Basis, History, Table
from myna.learn.verify import Check, Counterexample
from myna.lowrank.model import LowRankModel
from myna.lowrank.spanner import spanned_rank
from myna.lowrank.step import Step

_TINY = 1e-300


@runtime_checkable
class Hypothesis(Protocol):
    """A structure that is closed into a model and repaired by counterexamples."""

    def close(self) -> LowRankModel:
        """Grow until every child of the basis is explained; the model of the tables."""
        ...

    def repair(self, model: LowRankModel, check: Check) -> bool:
        """Add what the counterexamples show; False where nothing new was found."""
        ...

    def partial(self) -> LowRankModel | None:
        """The best model of what is known when the budget ends."""
        ...

    def reports(self) -> tuple[CutReport, ...]:
        """What was found at each cut of the last model, closed or partial."""
        ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Where the coefficients stop explaining: at `cut` they still do on the table.

    history: x_1 .. x_r
    word: the future o w that tells it apart
    coefficients: the model's, after that history
    """

    history: History
    word: History
    coefficients: Float[Tensor, " rank"]


def find_splits(
    model: LowRankModel,
    counterexamples: Sequence[Counterexample],
    table_at,
    basis_at,
    tolerance: float,
) -> list[Split]:
    """One split a counterexample, all bisected together.

    table_at, basis_at: the table and the basis of a cut
    """
    found = []
    for example in counterexamples:
        paths = coefficients_along(model, example.string[: example.position])
        low, high, word = 0, example.position, None
        while high - low > 1 or word is None:
            middle = (low + high) // 2 if high - low > 1 else high
            worst = _worst_word(
                example.string[:middle],
                paths[middle],
                table_at(middle),
                basis_at(middle),
                tolerance,
            )
            if worst is None and middle == high:
                break  # the deviation is below what the table resolves
            if worst is None:
                low = middle
            else:
                high, word = middle, worst
        if word is not None and high > 0:
            path = example.string
            found.append(Split(path[: high - 1], (path[high - 1], *word), paths[high - 1]))
    return found


def telling_words(
    splits: Sequence[Split], rows: Table, basis: Basis, tolerance: float
) -> list[History]:
    """Few words that tell apart as many of the split histories as all the words do.

    With D[h, f] = P(f | h) - sum_i c_i(h) P(f | h_i), scaled by column, the words are
    chosen greedily by how much they raise the rank of D. One word brings a column for
    every token, so a handful often does for many histories.
    """
    words = list(dict.fromkeys(split.word for split in splits))
    table = rows.with_futures(words)
    explained = torch.einsum(
        "hi,iwo->hwo",
        torch.stack([split.coefficients for split in splits]),
        table.peek(basis.histories).nan_to_num(nan=0.0),
    )
    truth = table.peek([split.history for split in splits])
    scale = torch.maximum(truth.nan_to_num(nan=0.0), explained).amax(0).clamp(min=_TINY)
    gaps = ((truth - explained) / scale).nan_to_num(nan=0.0)
    columns = {word: gaps[:, table.futures.index(word)] for word in words}
    kept: list[History] = []
    found, rank = gaps[:, :0, 0], 0
    while columns:
        ranks = {w: _rank(torch.cat([found, block], 1), tolerance) for w, block in columns.items()}
        best = max(ranks, key=ranks.__getitem__)
        if ranks[best] <= rank:
            break
        rank = ranks[best]
        found = torch.cat([found, columns.pop(best)], 1)
        kept.append(best)
    return kept


def _rank(rows: Float[Tensor, "row column"], tolerance: float) -> int:
    """Singular values above an absolute tolerance."""
    return int((torch.linalg.svdvals(rows) > tolerance).sum())


def coefficients_along(model: LowRankModel, history: History) -> list[Float[Tensor, " rank"]]:
    """The model's coefficients after each prefix of a history, the empty one first."""
    state = model.initial(1)
    path = [state.vector[0].cpu()]
    for token in history:
        state, _ = model.step(state, torch.tensor([token], device=state.vector.device))
        path.append(state.vector[0].cpu())
    return path


def _worst_word(
    history: History,
    coefficients: Float[Tensor, " rank"],
    table: Table,
    basis: Basis,
    tolerance: float,
) -> History | None:
    """The table's word whose probability the coefficients explain worst, if any."""
    truth = table.peek([history])[0]
    rows = table.rows(basis.histories)
    explained = torch.einsum("i,iwo->wo", coefficients, rows)
    scale = rows.amax(0) if len(rows) else torch.zeros_like(truth)
    error = ((explained - truth).abs() / scale.clamp(min=_TINY)).nan_to_num(nan=0.0).amax(1)
    worst = int(error.argmax())
    return table.futures[worst] if float(error[worst]) > tolerance else None


def change_of_basis(
    histories: Sequence[History],
    num_tokens: int,
    after: Basis,
) -> Float[Tensor, "rank token next_rank"]:
    """The coefficients of every child in the basis after it; zero where there is none."""
    change = torch.zeros((len(histories), num_tokens, len(after.histories)), dtype=torch.float64)
    for i, history in enumerate(histories):
        for o in range(num_tokens):
            coefficients = after.coefficients.get((*history, o))
            if coefficients is not None:
                change[i, o] = coefficients
    return change


def frozen_step(laws: Float[Tensor, "rank token"], histories: tuple[History, ...]) -> Step:
    """A step that leaves the coefficients as they are: the law no longer moves."""
    rank, num_tokens = laws.shape
    still = torch.eye(rank, dtype=laws.dtype)[:, None, :].expand(rank, num_tokens, rank)
    return Step(laws, still.contiguous(), histories)


def cut_report(cut: int | None, table: Table, basis: Basis, settings: ExactSettings) -> CutReport:
    """The report on one closed cut."""
    laws = table.laws(list(basis.coefficients))
    values = table.singular_values(basis.histories)
    scale = laws.amax(0) if len(laws) else laws.sum(0)
    scaled = laws[:, scale > 0] / scale[scale > 0]
    return CutReport(
        cut=cut,
        rank=len(basis.histories),
        next_token_rank=spanned_rank(scaled, settings.tolerance),
        candidates=len(basis.coefficients),
        futures=len(table.futures),
        longest_future=table.longest_future,
        condition=basis.condition,
        singular_values=tuple(values.tolist()),
    )
