"""Fresh histories: does the student's law agree with the teacher's where neither chose?

Whole strings are drawn from the teacher, by its laws on the verification stream, and
from the student; along each, at every prefix x, the two laws are compared:

    deviation(x) = max over o of |P(o | x) - Q(o | x)|.

Strings from the teacher certify (see Verification.bad_string_bound); strings from the
student find what the copy makes up.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.learn.report import ExactSettings, Verification
from myna.learn.table import History
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings, stacked
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """A string and the first prefix of it at which the laws differ."""

    string: History
    position: int


@dataclasses.dataclass(frozen=True)
class Check:
    """What one round of verification found."""

    verification: Verification
    counterexamples: tuple[Counterexample, ...]
    teacher_strings: tuple[History, ...]


class Verifier:
    """Draws fresh strings, never the same twice, and compares laws along them."""

    def __init__(self, view: LawsView, settings: ExactSettings, generator: torch.Generator):
        """Open the verification stream at its first draw."""
        self._view = view
        self._settings = settings
        self._generator = generator
        self._next_draw = 0

    def check(self, student: LowRankModel) -> Check:
        """Compare at all prefixes of fresh strings from each side."""
        limit = None if self._view.spec.horizon else self._settings.max_tokens
        drawn = self._enough(lambda n: self._from_teacher(n, limit))
        own = self._enough(lambda n: student.sample(n, self._generator, limit))
        batch = stacked(drawn, own)
        worst, histories, found = self._walk(student, batch)
        verification = Verification(
            teacher_strings=len(drawn.lengths),
            student_strings=len(own.lengths),
            histories=histories,
            worst=worst,
            clean=not found,
        )
        return Check(verification, tuple(found), tuple(_rows(drawn)))

    def _from_teacher(self, count: int, limit: int | None) -> Strings:
        answer = self._view.draw_by_laws(count, self._next_draw, limit)
        self._next_draw += count
        return Strings(answer.tokens[0], answer.lengths[0])

    def _enough(self, sample: Callable[[int], Strings]) -> Strings:
        """Whole strings: at least so many, with at least so many prefixes in all."""
        wanted = self._settings.verify_histories
        batch = sample(self._settings.verify_strings)
        while (seen := int(batch.lengths.sum())) < wanted:
            mean = max(1.0, seen / len(batch.lengths))
            batch = stacked(batch, sample(math.ceil((wanted - seen) / mean)))
        return batch

    def _walk(
        self, student: LowRankModel, batch: Strings
    ) -> tuple[float, int, list[Counterexample]]:
        """Step all strings together; a string that mismatched is not followed further."""
        strings = _rows(batch)
        alive = torch.arange(len(strings))
        state = student.initial(len(strings))
        worst, histories, found = 0.0, 0, []
        for t in range(batch.tokens.shape[1]):
            prefixes = Prefixes(batch.tokens[alive, :t], torch.full_like(alive, t))
            truth = self._view.laws(prefixes).exp()
            deviation = _deviation(truth, student.law(state).cpu())
            histories += len(alive)
            worst = max(worst, float(deviation.max()))
            bad = deviation > self._settings.mismatch
            found += [Counterexample(strings[i], t) for i in alive[bad].tolist()]
            tokens = batch.tokens[alive, t]
            possible = truth.gather(1, tokens[:, None])[:, 0] > 0
            going = (~bad & possible & (batch.lengths[alive] > t + 1)).nonzero()[:, 0]
            if not len(going):
                break
            alive, tokens = alive[going], tokens[going]
            device = state.vector.device
            state, _ = student.step(state.take(going.to(device)), tokens.to(device))
        return worst, histories, found


def _deviation(
    truth: Float[Tensor, "history token"], log_law: Float[Tensor, "history token"]
) -> Float[Tensor, " history"]:
    return (truth - log_law.exp()).abs().amax(1)


def _rows(batch: Strings) -> list[History]:
    return Prefixes(*batch).rows()
