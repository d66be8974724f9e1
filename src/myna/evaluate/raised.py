"""The student with a floor under every next-token law, and how far it is from the student.

    R(o | x) = max(Q(o | x), phi) / Z(x),      1 <= Z(x) = sum_o max(Q(o | x), phi) <= 1 + O phi

so that -log R <= log(1/phi + O), whatever Q is. By the hybrid bound along Q's own strings

    TV(Q, R) <= E_{x~Q} sum_t TV(Q(. | x_<t), R(. | x_<t)),

a mean of sums of exactly known values, each at most O phi / (1 + O phi), that strings of the student
bound without any question to a teacher. Where Q never goes below phi the distance is
0: unlike a mixture with the uniform law (`distance`), a raised floor changes nothing then.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.evaluate.distance import usable_law
from myna.lowrank.student import State, Strings, Student

_ROWS = 4096  # strings that the student reads at once


def raised(log_law: Float[Tensor, "batch token"], floor: float) -> Float[Tensor, "batch token"]:
    """R's log-laws from Q's."""
    lifted = log_law.clamp(min=math.log(floor))
    return lifted - lifted.logsumexp(1, keepdim=True)


def most_surprise(floor: float, num_tokens: int) -> float:
    """The largest value of -log R, nats."""
    return math.log(1 / floor + num_tokens)


def raising_distance(
    log_law: Float[Tensor, "batch token"], floor: float
) -> Float[Tensor, " batch"]:
    """TV(Q(. | x), R(. | x)) of each law."""
    return (log_law.exp() - raised(log_law, floor).exp()).clamp(min=0).sum(1)


def raising_distances(student: Student, strings: Strings, floor: float) -> Float[Tensor, " string"]:
    """sum_t TV(Q(. | x_<t), R(. | x_<t)) along each string."""
    total = torch.zeros(len(strings.lengths), dtype=torch.float64)
    order = strings.lengths.argsort(descending=True)
    for group in order.split(_ROWS):
        state = student.initial(len(group))
        for t in range(int(strings.lengths[group[0]])):
            rows = group[strings.lengths[group] > t]
            state = State(state.vector[: len(rows)], state.position)
            total[rows] += raising_distance(usable_law(student, state), floor)
            state, _ = student.step(state, strings.tokens[rows, t].to(state.vector.device))
    return total
