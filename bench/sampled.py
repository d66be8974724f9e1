"""What the benchmarks of the learner from samples share: rows kept, distances, rivals.

TV is the mean of (1 - Q(x) / P(x))+ over fresh x from P, of a stream that no learner saw.
Rivals get plain strings worth the same tokens, drawn with the seed of the run.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from results import FOLDER, save

from myna.errors import BudgetExhausted, InputError
from myna.learn.baum_welch import EmReport, EmSettings, HmmParameters, baum_welch, fit_hmm
from myna.learn.evidence import Evidence
from myna.learn.from_samples import learn_sampled
from myna.learn.report import Structure
from myna.learn.sampled_report import SampledSettings
from myna.learn.spectral import SpectralSettings, learn_spectral
from myna.lowrank.student import Strings, Student
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.stepped import SteppedTeacher

_FRESH = 1_000_003  # the seed of strings that no learner saw


class Rows:
    """Rows in one JSON, written after each, so that a stopped run keeps what it has."""

    def __init__(self, name: str, note: str):
        """Start an empty file; an earlier run's rows are replaced."""
        self._name, self._note, self.rows = name, note, list[dict]()

    def add(self, row: dict) -> None:
        """Keep and show a row."""
        self.rows.append(row)
        print(row, flush=True)
        save(self._name, {"note": self._note, "runs": self.rows})


def kept_rows(prefix: str) -> Iterator[dict]:
    """The rows of all files results/prefix.PART.json."""
    for path in sorted(FOLDER.glob(f"{prefix}.*.json")):
        record = json.loads(path.read_text())
        for row in record["runs"]:
            yield {**row, "commit": record["commit"], "command": record["command"]}


def fresh_variation(teacher: SteppedTeacher, student: Student, strings: int) -> dict:
    """TV by fresh strings, with its standard error."""
    fresh = teacher.sample(strings, torch.Generator().manual_seed(_FRESH))
    lost = (1 - (student.score(fresh) - teacher.score(fresh)).exp()).clamp(min=0)
    return {
        "total_variation": float(lost.mean()),
        "standard_error": float(lost.std()) / math.sqrt(strings),
    }


def ours(
    teacher: SteppedTeacher,
    budget: int,
    seed: int,
    structure: Structure | None = None,
    **changes: Any,
) -> tuple[Student | None, dict]:
    """Our student by the default settings; None with the sentence where it refuses.

    changes: other settings, where a claim is about them
    """
    settings = SampledSettings(budget=budget, structure=structure, **changes)
    paid = settings.count_prompts
    limit = Budget(tokens=budget) if paid else Budget(sampled_tokens=budget)
    ledger = Ledger(teacher, limit, seed)
    try:
        result = learn_sampled(ledger, settings, torch.Generator().manual_seed(seed))
    except (InputError, BudgetExhausted) as error:
        return None, {"refused": str(error)}
    report = result.report
    return result.student, {
        "tokens": report.sampled_tokens,
        "prompt_tokens": report.prompt_tokens,
        "seconds": report.seconds,
        "ranks": list(report.ranks),
        "rounds": report.rounds,
        "reason": report.reason,
        "stages": report.stages,
    }


def plain(teacher: SteppedTeacher, budget: int, seed: int) -> Evidence:
    """Whole strings worth a budget of tokens; the language must have a horizon, no stop."""
    count = budget // (teacher.spec.horizon or 1)
    drawn: Strings = teacher.sample(count, torch.Generator().manual_seed(seed))
    none = torch.zeros_like(drawn.lengths)
    return Evidence(drawn.tokens, drawn.lengths, none, torch.ones(count, dtype=torch.float64))


def _told(reports: tuple[EmReport, ...]) -> list[dict]:
    return [
        {
            "iterations": report.iterations,
            "stop": report.stop.value,
            "seconds": report.seconds,
            "log_likelihood": report.trace[report.kept].log_likelihood,
        }
        for report in reports
    ]


def em(
    teacher: SteppedTeacher,
    evidence: Evidence,
    states: int,
    settings: EmSettings,
    seed: int,
    device: str = "cpu",
    short: int | None = None,
) -> tuple[Student, dict]:
    """Baum-Welch from random starts; all are told, the likeliest is kept.

    short: iterations of each start; the likeliest then goes on by the settings
    """
    moved = Evidence(*(part.to(device) for part in evidence))
    random = torch.Generator().manual_seed(seed)
    first = dataclasses.replace(settings, max_iterations=short or settings.max_iterations)
    fit = baum_welch(teacher.spec, moved, states, first, random)
    told = {"tokens": evidence.sampled_tokens, "restarts": _told(fit.restarts)}
    if short is None or fit.report.converged:
        return fit.student.to("cpu"), told
    best, report = fit_hmm(moved, fit.parameters, settings)
    return best.model(teacher.spec).to("cpu"), {**told, "went_on": _told((report,))}


def em_from(
    teacher: SteppedTeacher,
    evidence: Evidence,
    start: HmmParameters,
    settings: EmSettings,
    device: str = "cpu",
) -> tuple[Student, dict]:
    """Baum-Welch from one given start."""
    moved = Evidence(*(part.to(device) for part in evidence))
    at = HmmParameters(*(table.to(device) for table in start.tables))
    parameters, report = fit_hmm(moved, at, settings)
    told = {"tokens": evidence.sampled_tokens, "restarts": _told((report,))}
    return parameters.model(teacher.spec).to("cpu"), told


def spectral(
    teacher: SteppedTeacher, evidence: Evidence, structure: Structure, seed: int
) -> tuple[Student, dict]:
    """Hsu, Kakade and Zhang's learner, its rank by its own noise test."""
    began = time.perf_counter()
    settings = SpectralSettings(structure=structure)
    random = torch.Generator().manual_seed(seed)
    fit = learn_spectral(teacher.spec, evidence, settings, random)
    return fit.student, {
        "tokens": evidence.sampled_tokens,
        "seconds": time.perf_counter() - began,
        "ranks": [cut.rank for cut in fit.report.cuts],
        "sigma": [cut.sigma for cut in fit.report.cuts],
        "second_singular_value": [cut.singular_values[1] for cut in fit.report.cuts],
        "resolved": [cut.resolved for cut in fit.report.cuts],
    }
