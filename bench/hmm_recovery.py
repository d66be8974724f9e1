"""HMMs recovered: tables beside the truth's, from exact access and from samples.

    python bench/hmm_recovery.py --part exact [--seeds 0 1 2 3 4]
    python bench/hmm_recovery.py --part samples [--seeds 0] [--budget 1000000]

zoo:hmm with 4 states, 8 symbols, horizon 16, Dirichlet(1) rows; stationary students. Claim: with
exact access each entry of pi, T and E within 1e-8 of the truth after the best order of states (by
scipy's linear_sum_assignment on the rows of E); from samples an error at most 3 times that of
expectation maximisation started at the truth on as many plain tokens. Errors: the largest of
any entry of T and E, and the mean of |rows|_1. The learner from samples skips its own refinement
(`refine=False`) and draws most of its budget as plain strings, as the polish on the recorded
answers climbs the same likelihood with fewer parameters. pi is left out of the samples' errors:
one string says one draw of it. EM from the truth, by squared extrapolation, goes on until an
iteration gains less than 1e-10 nats a token, or to 2,000: ended early it would show the truth and
not the maximum beside it.
Each part and set of seeds keeps its own JSON.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from sampled import Rows, plain
from scipy.optimize import linear_sum_assignment

from myna.learn.baum_welch import EmSettings, HmmParameters, fit_hmm
from myna.learn.exact import learn_exact
from myna.learn.from_samples import learn_sampled
from myna.learn.hmm_recovery import recover_hmm, whole_strings
from myna.learn.recorded import recorded_evidence
from myna.learn.report import ExactSettings, Structure
from myna.learn.sampled_report import SampledSettings
from myna.lowrank.equivalents import uniqueness
from myna.lowrank.hidden import hidden_form
from myna.lowrank.model import LowRankModel
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.uri import open_teacher

_NOTE = "errors after the best order of states; ratio: ours over EM started at the truth"


def errors(model: LowRankModel, truth: Hmm) -> dict[str, float]:
    """Of the tables, states in the order that fits E best."""
    assert model.transitions is not None
    distance = torch.cdist(truth.emission[0], model.steps[0].laws, p=1)
    order = torch.from_numpy(linear_sum_assignment(distance.numpy())[1])
    emission = model.steps[0].laws[order] - truth.emission[0]
    transition = model.transitions[0][order][:, order] - truth.transition[0]
    initial = model.first[order] - truth.initial_law
    rows = torch.cat([emission.abs().sum(1), transition.abs().sum(1)])
    return {
        "largest": max(float(emission.abs().max()), float(transition.abs().max())),
        "mean_l1": float(rows.mean()),
        "initial": float(initial.abs().max()),
    }


def exact(seed: int) -> dict:
    """Learned from whole laws, then diagonalised."""
    teacher = truth_of(seed)
    started = time.perf_counter()
    ledger, random = Ledger(teacher), torch.Generator().manual_seed(seed)
    student = learn_exact(ledger, ExactSettings(structure=Structure.STATIONARY), random).student
    form = hidden_form(student, random)
    told = {"queries": ledger.total().next_token_queries, "residual": form.residual}
    if form.model is None:
        return {**told, "refused": form.reason}
    found = errors(form.model, teacher)
    seconds = time.perf_counter() - started
    return {**told, **found, "unique": uniqueness(form.model).unique, "seconds": seconds}


def samples(seed: int, budget: int) -> dict:
    """Learned from completions, polished on the recorded answers; EM from the truth beside it."""
    teacher = truth_of(seed)
    started = time.perf_counter()
    settings = SampledSettings(
        budget=budget, structure=Structure.STATIONARY, refine=False, max_rounds=1,
        plain=0.75, table=0.1, words=0.05,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asked.ledger"
        with Ledger(teacher, Budget(sampled_tokens=budget), seed, file=path, job="learn") as ledger:
            result = learn_sampled(ledger, settings, random)
        evidence = recorded_evidence(path, teacher.spec, "learn")
        held_out = whole_strings(recorded_evidence(path, teacher.spec, "check"))
    learning = time.perf_counter() - started
    model, told = recover_hmm(result.student, teacher.num_states, evidence, held_out, random)
    ours = errors(model, teacher)
    polishing = time.perf_counter() - started - learning
    start = HmmParameters(teacher.initial_law, teacher.transition, teacher.emission)
    parameters, climb = fit_hmm(
        plain(teacher, budget, seed),
        start,
        EmSettings(tolerance_nats=1e-10, accelerated=True),
    )
    floor = errors(parameters.model(teacher.spec), teacher)
    return {
        "budget": budget,
        "tokens": result.report.sampled_tokens,
        "rank": result.report.ranks[0],
        "start": told.start,
        "iterations": told.climb.iterations,
        "model_nats": told.model_nats,  # the student's own may be -inf: it is not refined
        "ours": ours,
        "em_from_truth": floor,
        "em_iterations": climb.iterations,
        "ratio": {name: ours[name] / floor[name] for name in ("largest", "mean_l1")},
        "seconds": {"learning": learning, "polishing": polishing},
    }


def truth_of(seed: int) -> Hmm:
    teacher = open_teacher(f"zoo:hmm?states=4&symbols=8&horizon=16&seed={seed}")
    assert isinstance(teacher, Hmm)
    return teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("exact", "samples"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=int, default=1_000_000)
    chosen = parser.parse_args()
    marks = "-".join(map(str, chosen.seeds))
    rows = Rows(f"hmm_recovery.{chosen.part}-{marks}", _NOTE)
    for seed in chosen.seeds:
        found = exact(seed) if chosen.part == "exact" else samples(seed, chosen.budget)
        rows.add({"part": chosen.part, "seed": seed, **found})


if __name__ == "__main__":
    main()
