"""Random HMMs (8 states, 8 symbols, length 16) from samples alone, beside the rivals.

    python bench/sampled_hmms.py --part ours|truth|random|cross [--device cuda]
        [--concentration .3] [--seed 0] [--budget 3000000] [--structure stationary] [--matched]
    python bench/sampled_hmms.py --picture

Claim: told that it is stationary our student has TV <= .05 at 3M tokens and <= .03 at 10M;
with one basis a cut <= .10 and <= .06. Beside it, on as many tokens: expectation maximisation
started at the truth (what maximum likelihood has at best: the floor) and from three random
starts (the likeliest after 100 iterations goes on to convergence), both by squared extrapolation,
two or three passes over the strings an iteration (rows of c = .3 at 3M tokens, and the first
random one, by plain steps); and TT-cross on estimated conditionals. There a string's probability is the product
of its next-token frequencies; a prefix's are counted in n draws, once, and kept. n draws of a
prefix are one multinomial draw from its exact law. Distinct prefixes x n are the tokens. n is
matched to the budget by a first run at n = 10; that run and n = 100 and 10,000 are shown, too.
TV is the mean of (1 - Q/P)+ over 50,000 fresh strings. Options that pick cases may be given so
that processes share the work; each keeps its own JSON.
"""

import argparse
import dataclasses
import itertools
import math
import time
from typing import Any

import altair as alt
import numpy as np
import torch
from exact_hmms import distinct_prefixes
from results import FOLDER
from sampled import Rows, em, em_from, fresh_variation, kept_rows, ours, plain

from myna.app.picture import write_picture
from myna.learn.baum_welch import EmSettings, HmmParameters
from myna.learn.report import Structure
from myna.lowrank.student import Strings, Student
from myna.teachers.hmm import Hmm

_NOTE = "EM ends when an iteration gains less than 1e-8 nats a token, or at 2,000 iterations"
_SHORT = 100  # iterations of every random start, before the likeliest goes on
_FRESH_STRINGS = 50_000


def mk(seed: int, concentration: float) -> HmmParameters:
    """The HMMs of the earlier comparison with TT-cross (its definition, copied)."""
    random = np.random.default_rng(seed)
    first = random.dirichlet(np.ones(8))
    moves = random.dirichlet(concentration * np.ones(8), size=8)
    emits = random.dirichlet(concentration * np.ones(8), size=8)
    tables = (first, moves[None], emits[None])
    return HmmParameters(*(torch.from_numpy(np.ascontiguousarray(t)) for t in tables))


def spread(truth: HmmParameters, structure: Structure, horizon: int) -> HmmParameters:
    """The same numbers with one table a position where that is the structure."""
    if structure is Structure.STATIONARY:
        return truth
    repeated = (t.repeat(horizon, 1, 1) for t in (truth.transition, truth.emission))
    return HmmParameters(truth.initial, *repeated)


class Estimated:
    """Probabilities of strings from next-token frequencies, one estimate a prefix."""

    def __init__(self, teacher: Hmm, draws: int, seed: int):
        self._teacher, self._draws = teacher, draws
        self._random = np.random.default_rng(seed)
        self._known: dict[bytes, np.ndarray] = {}
        self.asked: list[np.ndarray] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """P-hat, scaled by O^H against underflow."""
        rows = rows.long()
        self.asked.append(rows.numpy().astype(np.uint8))
        state, result = self._teacher.initial(len(rows)), torch.ones(len(rows)).double()
        for t in range(rows.shape[1]):
            laws = self._frequencies(rows[:, :t], self._teacher.law(state).exp())
            result *= laws.gather(1, rows[:, t, None])[:, 0] * laws.shape[1]
            state, _ = self._teacher.step(state, rows[:, t])
        return result

    def _frequencies(self, prefixes: torch.Tensor, laws: torch.Tensor) -> torch.Tensor:
        keys = [row.tobytes() for row in prefixes.numpy().astype(np.uint8)]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            exact = laws[list(new.values())].numpy()
            drawn = self._random.multinomial(self._draws, exact / exact.sum(1, keepdims=True))
            self._known.update(zip(new, drawn / self._draws, strict=True))
        return torch.from_numpy(np.stack([self._known[key] for key in keys]))

    @property
    def tokens(self) -> int:
        """Draws of distinct prefixes."""
        return self._draws * distinct_prefixes(self.asked)


def cross(teacher: Hmm, draws: int, seed: int) -> dict:
    """TT-cross by tntorch, told the true rank; a run that breaks down is told as such."""
    import tntorch as tn

    symbols, horizon = teacher.spec.num_tokens, teacher.spec.horizon or 0
    joint = Estimated(teacher, draws, seed)
    torch.manual_seed(seed)  # tntorch starts from the global generator
    started = time.perf_counter()
    told: dict = {"draws": draws}
    try:
        tensor: Any = tn.cross(
            function=joint, domain=[torch.arange(symbols).double() for _ in range(horizon)],
            function_arg="matrix", ranks_tt=8, kickrank=3, rmax=16, eps=1e-8, max_iter=10,
            verbose=False, suppress_warnings=True,
        )  # fmt: skip
        told |= cross_variation(teacher, tensor.cores)
    except (RuntimeError, ValueError, AssertionError) as error:
        told |= {"total_variation": 1.0, "failed": str(error)[:200]}
    seconds = time.perf_counter() - started
    evaluations = sum(len(batch) for batch in joint.asked)
    return {**told, "tokens": joint.tokens, "evaluations": evaluations, "seconds": seconds}


def cross_variation(teacher: Hmm, cores: list[torch.Tensor]) -> dict:
    """TV of the tensor, divided by its own sum; what is negative counts as zero."""
    fresh: Strings = teacher.sample(_FRESH_STRINGS, torch.Generator().manual_seed(1_000_003))
    vector, total = torch.ones((_FRESH_STRINGS, 1)).double(), torch.ones(1).double()
    for t, core in enumerate(cores):
        vector = torch.einsum("na,anb->nb", vector, core[:, fresh.tokens[:, t], :])
        total = total @ core.sum(1)
    mass = float(total) / math.prod(core.shape[1] for core in cores)
    if not mass > 0:
        return {"total_variation": 1.0, "mass": mass}
    scale = len(cores) * math.log(teacher.spec.num_tokens)
    ratio = vector[:, 0] / mass * (-teacher.score(fresh) - scale).exp()
    return {"total_variation": float((1 - ratio.clamp(min=0)).clamp(min=0).mean()), "mass": mass}


def crossed(rows: Rows, teacher: Hmm, row: dict, seed: int, matched_only: bool) -> None:
    """Ten draws a prefix, then as many as match the budget, then 100 and 10,000."""
    probe = cross(teacher, 10, seed)
    matched = max(1, row["budget"] // max(1, probe["tokens"] // 10))
    rows.add({**row, "learner": "cross, n = 10", **probe})
    others = [("matched", matched)]
    if not matched_only:
        others += [("100", 100), ("10000", 10_000)]
    for name, draws in others:
        rows.add({**row, "learner": f"cross, n = {name}", **cross(teacher, draws, seed)})


def run(part: str, chosen: argparse.Namespace) -> None:
    marks = [f"{value:g}" for value in (*chosen.concentration, *chosen.seed, *chosen.budget)]
    marks += chosen.structure if len(chosen.structure) == 1 else []
    marks += ["matched"] if chosen.matched else []
    rows = Rows(f"{title(chosen.quick)}.{part}-{'-'.join(marks)}", _NOTE)
    for c, seed, budget in itertools.product(chosen.concentration, chosen.seed, chosen.budget):
        truth = mk(seed, c)
        teacher = Hmm(*truth.tables, horizon=16)
        case = {"concentration": c, "seed": seed, "budget": budget, "part": part}
        if part == "cross":
            few = chosen.quick or chosen.matched
            crossed(rows, teacher, {**case, "structure": "time-varying"}, seed, few)
            continue
        for structure in map(Structure, chosen.structure):
            row = {**case, "structure": structure.value, "learner": part}
            started = time.perf_counter()
            student, told = learned(part, teacher, truth, structure, row, chosen)
            told["learning_seconds"] = time.perf_counter() - started
            far = fresh_variation(teacher, student, _FRESH_STRINGS) if student else {}
            rows.add({**row, **far, **told})


def learned(
    part: str,
    teacher: Hmm,
    truth: HmmParameters,
    structure: Structure,
    row: dict,
    chosen: argparse.Namespace,
) -> tuple[Student | None, dict]:
    """One student of one learner, and what it tells."""
    seed, budget = row["seed"], row["budget"]
    if part == "ours":
        return ours(teacher, budget, seed, structure)
    evidence = plain(teacher, budget, seed)
    most = 20 if chosen.quick else 2000
    settings = EmSettings(structure, accelerated=True, max_iterations=most)
    if part == "truth":
        return em_from(teacher, evidence, spread(truth, structure, 16), settings, chosen.device)
    settings = dataclasses.replace(settings, restarts=3)
    return em(teacher, evidence, 8, settings, seed, chosen.device, short=min(most, _SHORT))


def title(quick: bool) -> str:
    return "sampled_hmms_quick" if quick else "sampled_hmms"


def picture(name: str) -> None:
    rows = list(kept_rows(name))
    chart = (
        alt.Chart(alt.Data(values=rows), width=240, height=240)
        .mark_point(filled=True, size=60, opacity=0.7)
        .encode(
            x=alt.X("learner:N", title=None),
            y=alt.Y("total_variation:Q", scale=alt.Scale(type="log"), title="TV"),
            color=alt.Color("concentration:N", title="c"),
            row=alt.Row("structure:N", title=None),
            column=alt.Column("budget:N", title="tokens"),
            tooltip=["seed:Q", "tokens:Q", "total_variation:Q"],
        )
    )
    write_picture(alt.vconcat(chart), FOLDER, name)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parts = ["ours", "truth", "random", "cross"]
    parser.add_argument("--part", choices=parts, action="append", default=[])
    parser.add_argument("--concentration", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, nargs="+", default=[3_000_000, 10_000_000])
    both = [structure.value for structure in (Structure.STATIONARY, Structure.TIME_VARYING)]
    parser.add_argument("--structure", choices=both, nargs="+", default=both)
    parser.add_argument("--device", default="cpu", help="where expectation maximisation runs")
    parser.add_argument("--matched", action="store_true", help="cross: no draws beyond the budget")
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one tiny case, files of its own")
    chosen = parser.parse_args()
    if not (chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    if chosen.quick:
        chosen.concentration, chosen.seed, chosen.budget = [1.0], [0], [100_000]
    for part in chosen.part:
        run(part, chosen)
    if chosen.picture:
        picture(title(chosen.quick))


if __name__ == "__main__":
    main()
