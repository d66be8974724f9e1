"""A classifier that tells a teacher's strings from a student's: a set A with P(A) > Q(A).

TV(P, Q) >= P(A) - Q(A) for every set A of strings, so any classifier gives a lower bound
once it is fixed and judged on strings that it never saw. Ours is linear in what the
student can compute of a string,

    s(x) = sum_t -log R(x_t | x_<t),   e(x) = sum_t entropy of Q(. | x_<t),
    max_t -log R(x_t | x_<t),   the length,
    r_P(x) + s(x),   r_P(x) - r_Q(x),

with R the student above a floor (`raised`), and where r_P and r_Q are log-probabilities under position-wise bigram tables (add one half)
of teacher and student strings: r_P + s is the log-likelihood ratio of that reference to the
student. Tables are fitted on a quarter of the strings, weights (logistic regression) and
cut on the next quarter, so that a table's fit to its own strings misleads neither.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.evaluate.distance import usable_law
from myna.evaluate.raised import raised
from myna.lowrank.student import State, Strings, Student
from myna.spec import Spec

_ROWS = 4096  # strings that the student reads at once
_MOST_ENTRIES = 4_000_000  # of a bigram table; larger ones forget position, then context
_NEWTON_STEPS = 15
_RIDGE = 1e-3  # per string: keeps separable data finite


class StringClassifier(NamedTuple):
    """A = {x : weights . (features(x) - mean) / scale > cut}.

    weights, mean, scale: (feature,)
    cut: threshold of the score
    tables: log-probabilities of the reference for teacher strings, then for the student's
    """

    weights: Float[Tensor, " feature"]
    mean: Float[Tensor, " feature"]
    scale: Float[Tensor, " feature"]
    cut: float
    tables: tuple[Float[Tensor, "place context token"], Float[Tensor, "place context token"]]

    def chosen(self, student: Student, strings: Strings, floor: float) -> Tensor:
        """Whether each string is in A, (string,)."""
        features = _features(student, strings, floor, self.tables)
        return ((features - self.mean) / self.scale) @ self.weights > self.cut


def part(strings: Strings, start: int, stop: int) -> Strings:
    """Rows start .. stop - 1."""
    return Strings(strings.tokens[start:stop], strings.lengths[start:stop])


def fit_classifier(
    student: Student, teachers: Strings, students: Strings, floor: float, width: int
) -> StringClassifier:
    """Fit on training strings of both: tables on each one's first half, the rest on its second.

    width: the largest number of tokens in a string
    """
    p_half, q_half = len(teachers.lengths) // 2, len(students.lengths) // 2
    tables = (
        _bigram_table(student.spec, part(teachers, 0, p_half), width),
        _bigram_table(student.spec, part(students, 0, q_half), width),
    )
    p = _features(student, part(teachers, p_half, len(teachers.lengths)), floor, tables)
    q = _features(student, part(students, q_half, len(students.lengths)), floor, tables)
    both = torch.cat([p, q])
    mean, scale = both.mean(0), both.std(0)
    scale = torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)  # constants: no say
    p, q = (p - mean) / scale, (q - mean) / scale
    weights = _logistic(p, q)
    return StringClassifier(weights, mean, scale, _cut(p @ weights, q @ weights), tables)


def _features(
    student: Student, strings: Strings, floor: float, tables: Sequence[Tensor]
) -> Float[Tensor, "string feature"]:
    """The six features of the module's text."""
    surprise, entropy, largest = _along(student, strings, floor)
    of_teacher, of_student = (_reference(strings, table) for table in tables)
    length = strings.lengths.double()
    ratios = (of_teacher + surprise, of_teacher - of_student)
    return torch.stack([surprise, entropy, largest, length, *ratios], 1)


def _along(student: Student, strings: Strings, floor: float) -> Float[Tensor, "kind string"]:
    """Total surprise under R, total entropy of Q's laws, largest surprise; nats."""
    found = torch.zeros((3, len(strings.lengths)), dtype=torch.float64)
    order = strings.lengths.argsort(descending=True)
    for group in order.split(_ROWS):
        state = student.initial(len(group))
        for t in range(int(strings.lengths[group[0]])):
            rows = group[strings.lengths[group] > t]
            state = State(state.vector[: len(rows)], state.position)
            law, read = usable_law(student, state), strings.tokens[rows, t]
            surprise = -raised(law, floor).gather(1, read[:, None])[:, 0]
            found[0, rows] += surprise
            found[1, rows] -= torch.special.xlogy(law.exp(), law.exp()).sum(1)
            found[2, rows] = torch.maximum(found[2, rows], surprise)
            state, _ = student.step(state, read.to(state.vector.device))
    return found


def _table_shape(spec: Spec, width: int) -> tuple[int, int, int]:
    """Places, contexts, tokens; context O stands for the start of the string."""
    tokens = spec.num_tokens
    if width * (tokens + 1) * tokens <= _MOST_ENTRIES:
        return width, tokens + 1, tokens
    if (tokens + 1) * tokens <= _MOST_ENTRIES:
        return 1, tokens + 1, tokens
    return 1, 1, tokens


def _bigrams(strings: Strings, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The cell of a flattened table that each token falls in, (string, width); and which are tokens."""
    places, contexts, num_tokens = shape
    width = strings.tokens.shape[1]
    inside = torch.arange(width) < strings.lengths[:, None]
    tokens = strings.tokens.masked_fill(~inside, 0)
    before = torch.nn.functional.pad(tokens, (1, 0), value=num_tokens)[:, :width]
    place = torch.arange(width).clamp(max=places - 1)
    cells = (place * contexts + before.clamp(max=contexts - 1)) * num_tokens + tokens
    return cells, inside


def _bigram_table(spec: Spec, strings: Strings, width: int) -> Float[Tensor, "place context token"]:
    """log((count + 1/2) / (total + O/2))."""
    shape = _table_shape(spec, width)
    cells, inside = _bigrams(strings, shape)
    size = shape[0] * shape[1] * shape[2]
    counts = torch.bincount(cells[inside], minlength=size).double().reshape(shape) + 0.5
    return (counts / counts.sum(2, keepdim=True)).log()


def _reference(strings: Strings, table: Tensor) -> Float[Tensor, " string"]:
    """log-probability under a table, nats."""
    cells, inside = _bigrams(strings, table.shape)
    return table.reshape(-1)[cells].masked_fill(~inside, 0.0).sum(1)


def _logistic(
    p: Float[Tensor, "teachers feature"], q: Float[Tensor, "students feature"]
) -> Float[Tensor, " feature"]:
    """Ridge logistic regression by Newton's method, both classes of equal weight."""
    x = torch.cat([torch.cat([p, q]), torch.ones((len(p) + len(q), 1), dtype=p.dtype)], 1)
    y = torch.cat([torch.ones(len(p)), torch.zeros(len(q))]).to(p)
    mass = torch.cat(
        [torch.full_like(p[:, 0], 0.5 / len(p)), torch.full_like(q[:, 0], 0.5 / len(q))]
    )
    ridge = _RIDGE * torch.eye(x.shape[1], dtype=p.dtype)
    beta = torch.zeros(x.shape[1], dtype=p.dtype)
    for _ in range(_NEWTON_STEPS):
        rate = (x @ beta).sigmoid()
        slope = x.T @ (mass * (y - rate)) - ridge @ beta
        curvature = (x * (mass * rate * (1 - rate))[:, None]).T @ x + ridge
        beta = beta + torch.linalg.solve(curvature, slope)
    return beta[:-1]


def _cut(p: Float[Tensor, " teachers"], q: Float[Tensor, " students"]) -> float:
    """The threshold with the largest P(score > cut) - Q(score > cut) on these scores."""
    scores, order = torch.cat([p, q]).sort()
    steps = torch.cat([torch.full_like(p, 1 / len(p)), torch.full_like(q, -1 / len(q))])[order]
    above = -steps.cumsum(0)  # of the set of scores beyond scores[i]
    ties = torch.cat([scores[1:] == scores[:-1], torch.zeros(1, dtype=torch.bool)])
    return float(scores[above.masked_fill(ties, -torch.inf).argmax()])
