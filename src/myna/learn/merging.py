"""Students from state merging: what Alergia learned, made proper.

Alergia (Carrasco and Oncina, 1994) merges states of the prefix tree of the strings seen whose
relative frequencies do not differ by more than a bound, and gives a deterministic automaton
P(o, q' | q), which has zeros wherever nothing was seen. The student is

    Q(o | q) = (1 - f) P(o | q) + f U(o),        Q(o | lost) = U(o),

U the law of single tokens, f the floor. A token that q never showed leads to the state `lost`,
which is never left. One coordinate a state: the copy is a low-rank model.

Merging itself is AALpy's (Muskardin et al. 2021): `run_Alergia(pairs(strings), "smm")`, a
stochastic Mealy machine with one input. This module reads the machine and needs no AALpy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import Strings
from myna.spec import Spec

INPUT = 0  # the machine's one input: nothing is asked of it but the next token


@runtime_checkable
class MealyState(Protocol):
    """A state of AALpy's StochasticMealyMachine: transitions[input] = (target, output, P)."""

    transitions: Mapping[Any, Sequence[tuple["MealyState", Any, float]]]


@runtime_checkable
class StochasticMealy(Protocol):
    """AALpy's StochasticMealyMachine."""

    states: Sequence[MealyState]
    initial_state: MealyState


def pairs(text: Strings) -> list[list[tuple[int, int]]]:
    """Strings as AALpy reads them: (input, output) pairs."""
    rows = zip(text.tokens.tolist(), text.lengths.tolist(), strict=True)
    return [[(INPUT, token) for token in row[:length]] for row, length in rows]


def merged_student(
    language: Spec, machine: StochasticMealy, unigrams: Float[Tensor, " token"], floor: float
) -> LowRankModel:
    """The proper student of a machine with one input.

    unigrams: (token,), U, no entry zero
    floor: f

    Raises:
        InputError: a floor outside 0 ... 1, or an output that is no token.
    """
    if not 0 < floor <= 1:
        raise InputError(f"the floor must be above 0 and at most 1, got {floor}")
    place = {id(state): i for i, state in enumerate(machine.states)}
    lost = len(place)
    laws = torch.zeros((lost + 1, language.num_tokens), dtype=torch.float64)
    change = torch.zeros((*laws.shape, lost + 1), dtype=torch.float64)
    for state in machine.states:
        q = place[id(state)]
        for target, token, probability in state.transitions.get(INPUT, ()):
            if not 0 <= token < language.num_tokens:
                raise InputError(f"state {q} shows {token!r}, which is no token of the language")
            laws[q, token] = probability
            change[q, token, place[id(target)]] = 1
    seen = laws.sum(1) > 0  # behind a stop nothing was seen: such a state is `lost`
    laws = torch.where(seen[:, None], (1 - floor) * laws + floor * unigrams, unigrams)
    change[..., lost] = 1 - change[..., :lost].sum(2)
    first = torch.zeros(lost + 1, dtype=torch.float64)
    first[place[id(machine.initial_state)]] = 1
    return LowRankModel.of(language, first, (Step(laws, change),))
