"""Fresh strings: does the copy's law agree with the teacher's where neither chose?

Whole strings are drawn from the teacher, by its laws on the verification stream, and from
the copy; along each, at every prefix x,

    deviation(x) = (1/2) sum_o |P(o | x) - Q(o | x)|,

the total variation of the two next-token laws. By the hybrid argument the total variation
of whole strings is at most the sum over cuts of its mean under the teacher's prefixes.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.lowrank.student import State, Strings, Student, stacked
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

History = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Miss:
    """A string and the first prefix of it at which the laws differ."""

    string: History
    position: int


@dataclasses.dataclass(frozen=True)
class Compared:
    """Laws compared along strings; a string that missed is not followed further.

    deviations: by position, the total variations at the prefixes of that length
    misses: the strings with a deviation above the mismatch, in the order of their positions
    """

    deviations: tuple[Float[Tensor, " _"], ...]
    misses: tuple[Miss, ...]

    @property
    def worst(self) -> float:
        """The largest deviation; zero where nothing was compared."""
        return max((float(row.max()) for row in self.deviations if len(row)), default=0.0)

    @property
    def histories(self) -> int:
        """Prefixes compared, repeats counted."""
        return sum(len(row) for row in self.deviations)


class FreshStrings:
    """Draws whole strings from both sides, never the teacher's same draw twice.

    histories, strings: the fewest prefixes and the fewest strings of a call
    max_tokens: without a horizon, strings are cut at this length
    """

    def __init__(
        self,
        view: LawsView,
        generator: torch.Generator,
        *,
        histories: int,
        strings: int,
        max_tokens: int | None,
    ):
        """Open the verification stream at its first draw."""
        self._view = view
        self._generator = generator
        self._histories, self._strings = histories, strings
        self._limit = max_tokens if view.spec.horizon is None else None
        self._next_draw = 0

    def from_teacher(self) -> Strings:
        """Further strings of the teacher."""
        return self._enough(self._drawn)

    def from_student(self, student: Student) -> Strings:
        """Strings of the copy."""
        return self._enough(lambda count: student.sample(count, self._generator, self._limit))

    def _drawn(self, count: int) -> Strings:
        answer = self._view.draw_by_laws(count, self._next_draw, self._limit)
        self._next_draw += count
        return Strings(answer.tokens[0], answer.lengths[0])

    def _enough(self, sample: Callable[[int], Strings]) -> Strings:
        batch = sample(self._strings)
        while (seen := int(batch.lengths.sum())) < self._histories:
            mean = max(1.0, seen / len(batch.lengths))
            batch = stacked(batch, sample(math.ceil((self._histories - seen) / mean)))
        return batch


def compare(view: LawsView, student: Student, batch: Strings, mismatch: float) -> Compared:
    """Step all strings together, comparing laws at every prefix."""
    batch = Strings(batch.tokens.cpu(), batch.lengths.cpu())
    strings = Prefixes(*batch).rows()
    alive = torch.arange(len(strings))
    state = student.initial(len(strings))
    deviations, misses = [], []
    for t in range(batch.tokens.shape[1]):
        prefixes = Prefixes(batch.tokens[alive, :t], torch.full_like(alive, t))
        truth = view.laws(prefixes).exp()
        deviation = (truth - student.law(state).cpu().exp()).abs().sum(1) / 2
        deviations.append(deviation)
        bad = ~(deviation <= mismatch)  # NaN compares false, so it is caught too
        misses += [Miss(strings[i], t) for i in alive[bad].tolist()]
        tokens = batch.tokens[alive, t]
        possible = truth.gather(1, tokens[:, None])[:, 0] > 0
        going = (~bad & possible & (batch.lengths[alive] > t + 1)).nonzero()[:, 0]
        if not len(going):
            break
        alive, state = alive[going], _stepped(student, state, going, tokens[going])
    return Compared(tuple(deviations), tuple(misses))


def _stepped(student: Student, state: State, rows: Tensor, tokens: Tensor) -> State:
    device = state.vector.device
    return student.step(state.take(rows.to(device)), tokens.to(device))[0]
