"""Logits with errors: noise of a known size, and laws counted from completions.

Run by `logit_learners.py` (noise, samples). Each learner is told the size of the error, and
makes one copy with no repair, so that what is seen is what errors become along a string.
"""

import math
import statistics

import altair as alt
import torch
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.logits.estimated import EstimatedLaws, completions_needed, error_of
from myna.logits.exact import learn_logits
from myna.logits.provable import ProvableSettings, learn_provably
from myna.logits.report import LogitSettings
from myna.lowrank.isan import Isan, IsanStep
from myna.spec import fingerprint
from myna.teachers.copies import CopyTeacher
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.zoo import RandomIsan

SEEDS = tuple(range(10))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- noise ------------------------------------------------------------------------------

NOISES = (1e-6, 1e-4, 1e-2)
NOISE_DIM, NOISE_STRINGS = 8, 8


class Noisy(CopyTeacher):
    """A network whose every logit is off by a fixed error, uniform in [-noise, noise]."""

    def __init__(self, network: Isan, noise: float):
        super().__init__(network)
        self._noise = noise

    def laws(self, prefixes):
        """The same error each time a prefix is asked, told by its tokens alone."""
        laws = super().laws(prefixes)
        seeds = [int(fingerprint("noise", row)[:12], 16) for row in prefixes.rows()]
        errors = torch.stack(
            [torch.rand(laws.shape[1], generator=generator(s)).double() for s in seeds]
        )
        return (laws + self._noise * (2 * errors - 1)).log_softmax(1)


def faint(network: Isan, factor: float) -> Isan:
    """Half of the directions at each step are read out `factor` as strongly."""
    steps = []
    for step in network.steps:
        logits = step.logits.clone()
        logits[: len(logits) // 2] *= factor
        steps.append(IsanStep(logits, step.change))
    return Isan.of(network.spec, network.first, tuple(steps))


def along(network: Isan, student, seed: int) -> dict:
    """Errors of logits and laws by position, on strings of the network without noise."""
    tokens = network.sample(NOISE_STRINGS, generator(seed)).tokens
    truth, state = network.initial(len(tokens)), student.initial(len(tokens))
    off, variation = [], []
    for t in range(tokens.shape[1]):
        true, found = network.law(truth), student.law(state)
        gap = (found - found.mean(1, keepdim=True)) - (true - true.mean(1, keepdim=True))
        off.append(float(gap.abs().amax(1).mean()))
        variation.append(float((found.exp() - true.exp()).abs().sum(1).mean() / 2))
        if t + 1 < tokens.shape[1]:
            truth, _ = network.step(truth, tokens[:, t])
            state, _ = student.step(state, tokens[:, t])
    return {"logit_error": off, "tv": variation}


KINDS = (("as drawn", 1.0), ("half of the directions at 1/20", 0.05))


def noise() -> None:
    """A seed at a time, saved as they come."""
    runs = []
    for seed in SEEDS:
        for kind, factor in KINDS:
            network = RandomIsan(dim=NOISE_DIM, seed=seed).teacher().student
            network = faint(network, factor) if factor < 1 else network
            for amount in NOISES:
                runs += noisy_runs(kind, network, amount, seed)
        for row in summary(runs):
            print({k: v for k, v in row.items() if "median" not in k}, flush=True)
        record = {"dim": NOISE_DIM, "seeds": seed + 1, "summary": summary(runs), "runs": runs}
        save("logit_learners.noise", record)
        noise_picture(runs)


def noise_picture(runs: list[dict]) -> None:
    rows = [
        {
            "kind": r["kind"],
            "learner": r["learner"],
            "noise": r["noise"],
            "t": t,
            "error": e / r["noise"],
        }
        for r in summary(runs)
        for t, e in enumerate(r["median_logit_error"])
        if t
    ]
    chart = (
        alt.Chart(alt.Data(values=rows), width=230, height=200)
        .mark_line()
        .encode(
            x=alt.X("t:Q", title="tokens read"),
            y=alt.Y("error:Q", scale=alt.Scale(type="log"), title="logit error / noise (median)"),
            color=alt.Color("noise:N", scale=alt.Scale(scheme="viridis")),
            column=alt.Column("learner:N"),
            row=alt.Row("kind:N"),
        )
    )
    write_picture(alt.vconcat(chart), FOLDER, "logit_noise")


def noisy_runs(kind: str, network: Isan, amount: float, seed: int) -> list[dict]:
    """The learners once, told the noise, with no repair: what propagation does by itself.

    A row counts as in the span within 2 x noise x sqrt(columns), what noise leaves of a row,
    and a program within that as solved. Counting the columns of one word alone instead keeps
    nearly all histories that were drawn.
    """
    teacher, o = Noisy(network, amount), network.spec.num_tokens
    plain = LogitSettings(
        tolerance=2 * amount * math.sqrt(o), mismatch=0.999, verify_histories=1, verify_strings=1
    )
    students = {"exact rank": learn_logits(Ledger(teacher), plain, generator(0)).student}
    columns = {"linear program": o * (o + 1), "linear program, more histories": o}
    for name, count in columns.items():
        bounded = ProvableSettings(
            tolerance=2 * amount * math.sqrt(count),
            allowed=2 * amount * math.sqrt(o * (o + 1)),
            mismatch=0.999,
            verify_histories=1,
            verify_strings=1,
            max_epochs=1,
        )
        students[name] = learn_provably(Ledger(teacher), bounded, generator(0)).student
    return [
        {
            "kind": kind,
            "noise": amount,
            "seed": seed,
            "learner": name,
            "ranks": max(student.ranks),
            "largest_coefficient": largest_coefficient(network, student, 1000 + seed),
            **along(network, student, 1000 + seed),
        }
        for name, student in students.items()
    ]


def largest_coefficient(network: Isan, student, seed: int) -> float:
    """Over all prefixes of the strings that `along` follows."""
    rows = network.sample(NOISE_STRINGS, generator(seed)).tokens[:, :-1]
    if not isinstance(student, Isan):
        paths = [student.coefficients_after(tuple(row)) for row in rows.tolist()]
        return max(float(c.abs().max()) for path in paths for c in path)
    state, found = student.initial(len(rows)), 0.0
    for t in range(rows.shape[1]):
        state, _ = student.step(state, rows[:, t])
        found = max(found, float(state.vector.abs().max()))
    return found


def summary(runs: list[dict]) -> list[dict]:
    """Medians and worst over seeds, and the growth from the first tokens to the last."""
    found = []
    for key in dict.fromkeys((r["kind"], r["noise"], r["learner"]) for r in runs):
        rows = [r for r in runs if (r["kind"], r["noise"], r["learner"]) == key]
        errors = torch.tensor([r["logit_error"] for r in rows])
        last, early = errors[:, -4:].mean(1), errors[:, 1:5].mean(1)
        found.append(
            {
                "kind": key[0],
                "noise": key[1],
                "learner": key[2],
                "median_logit_error": errors.median(0).values.tolist(),
                "early_over_noise": float(early.median()) / key[1],
                "late_over_noise": float(last.median()) / key[1],
                "worst_late_over_noise": float(last.max()) / key[1],
                "largest_tv": max(max(r["tv"]) for r in rows),
                "histories_kept": [min(r["ranks"] for r in rows), max(r["ranks"] for r in rows)],
                "largest_coefficient": max(r["largest_coefficient"] for r in rows),
            }
        )
    return found


# -- samples ----------------------------------------------------------------------------

SAMPLE_DIM, SAMPLE_SYMBOLS, SAMPLE_HORIZON, SAMPLE_SCALE = 4, 8, 16, 0.7
DRAWS = (1_000, 10_000, 100_000)


def samples() -> None:
    """Laws counted from completions, told the largest logit; saved as they come."""
    runs = []
    for draws in DRAWS:
        for seed in SEEDS[:5]:
            runs.append(counted(draws, seed))
            print({k: v for k, v in runs[-1].items() if k not in ("tv", "logit_error")}, flush=True)
            save("logit_learners.samples", {"network": samples_family(0).__dict__, "runs": runs})


def samples_family(seed: int) -> RandomIsan:
    return RandomIsan(
        dim=SAMPLE_DIM,
        symbols=SAMPLE_SYMBOLS,
        horizon=SAMPLE_HORIZON,
        scale=SAMPLE_SCALE,
        seed=seed,
    )


def counted(draws: int, seed: int) -> dict:
    network = samples_family(seed).teacher().student
    largest = largest_logit(network)
    inner = Ledger(as_samples(CopyTeacher(network)))
    laws = EstimatedLaws(inner.samples("learn"), draws, largest)
    o = network.spec.num_tokens
    typical = math.exp(largest / 2) * math.sqrt(o / draws)  # of a logit halfway to the floor
    settings = LogitSettings(
        tolerance=2 * typical * math.sqrt(o), mismatch=0.999, verify_histories=1, verify_strings=1
    )
    student = learn_logits(Ledger(laws), settings, generator(0)).student
    found = along(network, student, 1000 + seed)
    return {
        "completions_a_law": draws,
        "seed": seed,
        "largest_logit": largest,
        "guaranteed_error": error_of(draws, largest, o, 0.01),
        "completions_for_0.1_nats": completions_needed(largest, o, 0.1, 0.01),
        "rank": max(student.ranks),
        "sampled_tokens": inner.total().tokens_received,
        "first_logit_error": found["logit_error"][0],
        "last_logit_error": found["logit_error"][-1],
        "mean_tv": statistics.mean(found["tv"]),
        "largest_mean_tv": max(found["tv"]),
        **found,
    }


def largest_logit(network: Isan) -> float:
    """Over the prefixes of strings of the network: the bound that the floor stands on."""
    tokens = network.sample(2000, generator(9)).tokens
    state, found = network.initial(len(tokens)), 0.0
    for t in range(tokens.shape[1]):
        law = network.law(state)
        found = max(found, float((law - law.mean(1, keepdim=True)).abs().max()))
        state, _ = network.step(state, tokens[:, t])
    return found
