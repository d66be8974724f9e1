"""Plain transcriptions of the definitions, to hold the fast code against."""

import itertools
import math

import torch

from myna.lowrank.student import strings
from myna.teachers.prefixes import Prefixes


def all_strings(spec):
    """Every whole string of a finite language, by the definition of its end."""
    found = []
    for length in range(1, spec.horizon + 1):
        for row in itertools.product(range(spec.num_tokens), repeat=length):
            if spec.stop in row[:-1]:
                continue
            if length == spec.horizon or (spec.stop is not None and row[-1] == spec.stop):
                found.append(list(row))
    return found


def hmm_probability(initial, transition, emission, row):
    """Sum over all hidden paths, written out."""
    total = 0.0
    states = range(len(initial))
    for path in itertools.product(states, repeat=len(row)):
        p = float(initial[path[0]])
        for t, token in enumerate(row):
            p *= float(emission[min(t, len(emission) - 1)][path[t]][token])
            if t + 1 < len(row):
                p *= float(transition[min(t, len(transition) - 1)][path[t]][path[t + 1]])
        total += p
    return total


def chain_rule(teacher, row):
    """log P(row) by one law a prefix."""
    total = 0.0
    for t, token in enumerate(row):
        value = float(teacher.laws(Prefixes.of([row[:t]]))[0, token])
        total += value
        if value == -math.inf:
            break
    return total


def talk_model(model, row):
    """log Q(row) by the talk's formulas, with Python numbers and loops."""
    c = model.first.tolist()
    total = 0.0
    for t, o in enumerate(row):
        step = model.steps[min(t, len(model.steps) - 1)]
        laws, change = step.laws.tolist(), step.change.tolist()
        q = [sum(c[i] * laws[i][token] for i in range(len(c))) for token in range(len(laws[0]))]
        clipped = [max(value, 0.0) for value in q]
        if sum(clipped) == 0:
            clipped = [1.0] * len(q)
        if clipped[o] == 0:
            return -math.inf
        total += math.log(clipped[o] / sum(clipped))
        if q[o] <= 0:
            c = [0.0] * len(change[0][0])
            continue
        c = [
            sum(c[i] * laws[i][o] * change[i][o][j] for i in range(len(c))) / q[o]
            for j in range(len(change[0][0]))
        ]
    return total


def hankel_block(model, cut):
    """P(future | history) over all histories of positive probability and all futures."""
    spec = model.spec
    histories = [
        list(h) for h in itertools.product(range(spec.num_tokens), repeat=cut) if spec.stop not in h
    ]
    futures = [
        list(f) for f in itertools.product(range(spec.num_tokens), repeat=spec.horizon - cut)
    ]
    batch = strings([h + f for h in histories for f in futures])
    joint = model.score(batch).exp().reshape(len(histories), len(futures))
    mass = joint.sum(1, keepdim=True)
    return (joint / mass)[mass[:, 0] > 0]


def numerical_rank(block, tolerance=1e-9):
    values = torch.linalg.svdvals(block)
    return int((values > tolerance * values[0]).sum())


_DECLARED = {
    "samples": ["complete"],
    "top_laws": ["complete", "top_laws"],
    "laws": ["complete", "top_laws", "laws"],
    "student": ["initial", "step", "law", "score", "sample"],
}


class Opaque:
    """Shows what a teacher or student declares and nothing else: no class, no parameters."""

    def __init__(self, model, level):
        for name in _DECLARED[level]:
            setattr(self, name, _forward(model, name))
        self.spec = model.spec
        if level in ("top_laws", "laws"):
            self.k = model.k


def _forward(teacher, name):
    bound = getattr(teacher, name)
    return lambda *args, **kwargs: bound(*args, **kwargs)  # noqa: PLW0108 - hides __self__
