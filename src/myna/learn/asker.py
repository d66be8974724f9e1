"""Asking for completions, keeping every answer as evidence, and planning what they cost.

Every completion is used whole: each of its tokens is an answer at its own prefix, and all
answers enter the likelihood. The price of a request is what the budget counts: generated
tokens, and the prompts too where that is asked.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from myna.errors import BudgetExhausted
from myna.learn.evidence import Evidence
from myna.learn.table import History
from myna.lowrank.student import Strings
from myna.teachers.draws import joined
from myna.teachers.ledger import SamplesView
from myna.teachers.prefixes import Prefixes


class Asker:
    """A view whose answers are kept, and a purse.

    view: the teacher, charged to one purpose
    budget: tokens that may be spent, generated ones (and prompts, with `count_prompts`); a
        hard limit
    """

    def __init__(self, view: SamplesView, budget: int, *, count_prompts: bool):
        """Nothing asked yet."""
        self._view = view
        self._budget = budget
        self._count_prompts = count_prompts
        self._next: dict[tuple[History, int | None], int] = {}
        self._parts: list[Evidence] = []

    @property
    def spec(self):
        """The teacher's spec."""
        return self._view.spec

    @property
    def spent(self) -> int:
        """Tokens of the budget's kind that this view has spent."""
        account = self._view.spent()
        return account.tokens_received + self._count_prompts * account.tokens_sent

    @property
    def left(self) -> int:
        """What may still be spent."""
        return self._budget - self.spent

    def price(self, prompt: int, completion: int) -> int:
        """The most that one completion of a prompt can cost."""
        horizon = self.spec.horizon
        room = completion if horizon is None else min(completion, horizon - prompt)
        return room + self._count_prompts * prompt

    def ask(
        self, histories: Sequence[History], count: int, max_tokens: int | None
    ) -> Int[Tensor, "history draw width"]:
        """`count` further completions of each history, -1 past their ends.

        Histories of one call that were asked differently often before are asked apart.

        Raises:
            BudgetExhausted: where the purse does not hold the most that they can cost.
        """
        self._require(histories, count, max_tokens)
        groups: dict[int, list[int]] = {}
        for i, history in enumerate(histories):
            groups.setdefault(self._next.get((history, max_tokens), 0), []).append(i)
        found: list[tuple[list[int], Tensor]] = []
        for first, rows in groups.items():
            batch = Prefixes.of([histories[i] for i in rows])
            answer = self._view.complete(batch, count, max_tokens=max_tokens, first_draw=first)
            self._parts.append(answered(batch, answer.tokens, answer.lengths))
            found.append((rows, answer.tokens))
            for i in rows:
                self._next[histories[i], max_tokens] = first + count
        width = max((tokens.shape[2] for _, tokens in found), default=0)
        result = torch.full((len(histories), count, width), -1, dtype=torch.int64)
        for rows, tokens in found:
            result[rows, :, : tokens.shape[2]] = tokens
        return result

    def _require(self, histories: Sequence[History], count: int, max_tokens: int | None) -> None:
        room = self.spec.horizon if max_tokens is None else max_tokens
        if room is None:
            return  # completions without a bound: the ledger refuses them where it has a budget
        most = count * sum(self.price(len(history), room) for history in histories)
        if most > self.left:
            raise BudgetExhausted(
                f"{self.left:,} tokens are left for {self._view.purpose!r} and the next request can "
                f"cost {most:,}"
            )

    def strings(self, count: int, max_tokens: int | None) -> Strings:
        """`count` further completions of the empty history."""
        tokens = self.ask([()], count, max_tokens)[0]
        return Strings(tokens, (tokens >= 0).sum(1))

    def evidence(self) -> Evidence:
        """All answers so far, equal rows merged."""
        self._parts = [pooled(self._parts)]
        return self._parts[0]


def answered(
    prompts: Prefixes, tokens: Int[Tensor, "batch draw width"], lengths: Int[Tensor, "batch draw"]
) -> Evidence:
    """Prompt and completion run together, one row a draw, equal rows merged."""
    batch, count, width = tokens.shape
    repeated = prompts.take(torch.arange(batch).repeat_interleave(count))
    rows = joined(repeated, tokens.reshape(batch * count, width)).tokens
    given, drawn = repeated.lengths, lengths.reshape(-1)
    return merged(rows, given + drawn, given, torch.ones(len(drawn)).double())


def pooled(parts: Sequence[Evidence]) -> Evidence:
    """Several answers' evidence as one, equal rows merged; at least one."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = [
        torch.nn.functional.pad(part.tokens, (0, width - part.tokens.shape[1]), value=-1)
        for part in parts
    ]
    rest = [torch.cat(column) for column in list(zip(*parts, strict=True))[1:]]
    return merged(torch.cat(tokens), *rest)


def merged(tokens: Tensor, lengths: Tensor, given: Tensor, counts: Tensor) -> Evidence:
    """Equal rows (tokens and prompt) once, with their counts added up."""
    kind = np.int16 if tokens.numel() and int(tokens.max()) < 2**15 else np.int32
    table = torch.cat([given[:, None], tokens], 1).numpy().astype(kind)
    packed = np.ascontiguousarray(table).view(np.dtype((np.void, table.itemsize * table.shape[1])))
    _, first, inverse = np.unique(packed[:, 0], return_index=True, return_inverse=True)
    summed = np.bincount(inverse.reshape(-1), weights=counts.numpy(), minlength=len(first))
    rows = torch.from_numpy(first)
    return Evidence(tokens[rows], lengths[rows], given[rows], torch.from_numpy(summed))
