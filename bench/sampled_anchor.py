"""Anchor A from 640,000 tokens in all: both students, beside EM from random starts.

    python bench/sampled_anchor.py       (long: five seeds, EM to convergence in each)

gap = mean held-out NLL of the fit minus the truth's, nats a sequence. Prompts and
completions both count. EM reads the same number of tokens as plain strings, restarts until
its time is spent, and returns its best start by training likelihood; all seeds are shown.
"""

import time

import altair as alt
import numpy as np
import torch
from results import FOLDER, need_shared, save

from myna.app.picture import write_picture
from myna.learn.baum_welch import EmSettings, baum_welch, fit_hmm, random_start
from myna.learn.evidence import Evidence
from myna.learn.from_samples import learn_sampled
from myna.learn.report import Structure
from myna.learn.sampled_report import Kind, SampledSettings
from myna.lowrank.student import Strings
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm
from myna.teachers.prefixes import Prefixes

TOKENS, HORIZON, STATES, SEEDS, WALLS = 640_000, 64, 16, range(5), (15, 45, 120)


def ours(teacher, seed, kind, gap):
    settings = SampledSettings(
        budget=TOKENS, structure=Structure.STATIONARY, count_prompts=True, kind=kind, states=STATES
    )
    began = time.perf_counter()
    ledger = Ledger(teacher, seed=seed)
    found = learn_sampled(ledger, settings, torch.Generator().manual_seed(seed))
    spent = found.report.sampled_tokens + found.report.prompt_tokens
    seconds = time.perf_counter() - began
    return {
        "who": kind.value,
        "seed": seed,
        "seconds": seconds,
        "gap": gap(found.student),
        "tokens": spent,
    }


def rivals(spec, evidence, seed, gap):
    """EM at equal wall times with as many starts as fit (one per 15 s), then to convergence."""
    for wall in WALLS:
        settings = EmSettings(restarts=wall // 15, max_seconds=float(wall))
        random = torch.Generator().manual_seed(seed)
        fit = baum_welch(spec, evidence, STATES, settings, random)
        yield {"who": "EM restarts", "seed": seed, "seconds": wall, "gap": gap(fit.student)}
    start = random_start(spec, STATES, Structure.STATIONARY, torch.Generator().manual_seed(seed))
    found, report = fit_hmm(evidence, start, EmSettings(max_iterations=5000))
    yield {
        "who": "EM to convergence",
        "seed": seed,
        "seconds": report.seconds,
        "gap": gap(found.model(spec)),
        "stop": report.stop.name,
    }


def main():
    path = need_shared() / "hmm_task.npz"
    teacher = read_hmm(path, HORIZON)
    with np.load(path) as archive:
        test = torch.from_numpy(archive["Xte"].astype(np.int64))
    strings = Strings(test, torch.full((len(test),), HORIZON))
    base = float(Ledger(teacher).laws("evaluate").score(strings).mean())

    def gap(student):
        return base - float(student.score(strings).mean())

    points = []
    for seed in SEEDS:
        points += [ours(teacher, seed, kind, gap) for kind in (Kind.LOW_RANK, Kind.HMM)]
        rows = TOKENS // HORIZON
        view = Ledger(teacher, seed=1000 + seed).samples("rival")
        drawn = view.complete(Prefixes.of([()]), rows)
        none = torch.zeros(rows, dtype=torch.int64)
        tokens, lengths = drawn.tokens.reshape(rows, -1), drawn.lengths.reshape(rows)
        evidence = Evidence(tokens, lengths, none, torch.ones(rows, dtype=torch.float64))
        points += rivals(teacher.spec, evidence, seed, gap)
        print(*points[-6:], sep="\n", flush=True)
    hmm = [p["gap"] for p in points if p["who"] == Kind.HMM.value]
    em = [p["gap"] for p in points if p["who"] == "EM restarts" and p["seconds"] == WALLS[-1]]
    sentence = (
        f"With {TOKENS:,} tokens in all the queries gave gaps of {min(hmm):.3f} to {max(hmm):.3f}; "
        f"EM from random starts, {WALLS[-1]} s, gave {min(em):.3f} to {max(em):.3f}."
    )
    save("sampled_anchor", {"points": points, "bought": sentence})
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_point()
        .encode(x=alt.X("seconds:Q", scale=alt.Scale(type="log")), y="gap:Q", color="who:N")
    )
    write_picture(alt.vconcat(chart), FOLDER, "sampled_anchor")


if __name__ == "__main__":
    main()
