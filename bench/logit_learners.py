"""Learners in logit space on random networks: exactness, queries, size, noise, samples.

    python bench/logit_learners.py exact     dimensions 4, 8, 16, ten seeds, both learners
    python bench/logit_learners.py solved    the same linear programs, each given to HiGHS
    python bench/logit_learners.py size      the largest dimension of the linear program's learner
    python bench/logit_learners.py noise     errors along strings under noise in the logits
    python bench/logit_learners.py ranks     rank of probabilities beside logit rank
    python bench/logit_learners.py samples   logits estimated from completions

Networks are those of the zoo, zoo:isan?dim=..&seed=0 .. 9, 16 tokens, horizon 32, none
discarded. Seed 0 of dimensions 8, 12 and 16 was also used while the learners were written. Settings were
fixed before: exact-rank learner, rows within 1e-9 nats of a span lie in it; linear programs
solved by HiGHS to 1e-9.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import altair as alt
import torch
from logit_noise import SEEDS, generator, noise, samples
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.logits.check import compare
from myna.logits.exact import learn_logits
from myna.logits.provable import ProvableSettings, learn_provably
from myna.logits.report import LogitSettings
from myna.lowrank.isan import Isan
from myna.lowrank.program import LP_TOLERANCE
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import LogitTwo, Parity, RandomIsan

DIMS = (4, 8, 16)
MEASURED = 100  # strings from each side on which a copy is measured
MINUTES = 10.0
ALL_SOLVED = "linear program, all solved"


# -- exactness --------------------------------------------------------------------------


def about(network: Isan, strings: int = 20_000) -> dict:
    """Entropies over log O, and how far the best unigrams and bigrams are (nats a token).

    Both are fitted to each position by itself, on the very strings that measure them.
    """
    o = network.spec.num_tokens
    tokens = network.sample(strings, generator(1)).tokens
    state, entropies, unigram, bigram = network.initial(strings), [], [], []
    for t in range(tokens.shape[1]):
        law = network.law(state)
        chances = law.exp()
        entropy = float(-(chances * law).sum(1).mean())
        entropies.append(entropy / math.log(o))
        mean = chances.mean(0)
        unigram.append(float(-(mean * mean.log()).sum()) - entropy)
        if t:
            last = tokens[:, t - 1]
            summed = torch.zeros(o, o).double().index_add_(0, last, chances)
            count = torch.bincount(last, minlength=o).double().clamp(min=1)
            logs = (summed / count[:, None]).clamp(min=1e-300).log()
            bigram.append(float(-(summed * logs).sum()) / strings - entropy)
        state, _ = network.step(state, tokens[:, t])
    return {
        "entropy_8_16_32": [entropies[t - 1] for t in (8, 16, 32)],
        "unigram_nats_away": statistics.mean(unigram),
        "bigram_nats_away": statistics.mean(bigram),
    }


def good(row: dict) -> bool:
    """What the issue asks of an instance."""
    far = min(row["unigram_nats_away"], row["bigram_nats_away"]) >= 0.3
    return far and all(0.3 < e < 0.9 for e in row["entropy_8_16_32"])


def worst(teacher, student, seed: int, count: int = MEASURED) -> dict:
    """The largest next-token total variation on fresh strings of either side."""
    view = Ledger(teacher).laws("measure")
    sides = (("teacher", teacher, seed), ("student", student, 1_000_000 + seed))
    return {
        f"worst_{name}": compare(view, student, model.sample(count, generator(own)), 2.0).worst
        for name, model, own in sides
    }


def measured(learner: str, family: RandomIsan) -> dict:
    teacher = family.teacher()
    ledger = Ledger(teacher)
    if learner == "exact rank":
        found = learn_logits(ledger, LogitSettings(), generator(0))
        more = {"rounds": found.report.rounds}
    else:
        settings = ProvableSettings(shortcut=learner == "linear program")
        found = learn_provably(ledger, settings, generator(0))
        report = found.report
        more = {"rounds": report.epochs, "restarts": report.restarts, "strings": report.strings}
        more |= {"programs": report.programs, "solves": report.solves}
    accounts = found.report.accounts
    count = MEASURED // 4 if learner == ALL_SOLVED else MEASURED
    errors = worst(teacher, found.student, 100 + family.seed, count)
    if learner != "exact rank":
        model = found.student
        more |= {"prefixes_in_all": model.prefixes, "widened_in_all": model.widened}
        more |= {"without_solution": model.without_solution, "worst_error": model.worst_error}
    return {
        "learner": learner,
        "dim": family.dim,
        "seed": family.seed,
        "outcome": found.report.outcome.value,
        "largest_rank": max(found.student.ranks),
        "learn_queries": accounts["learn"].next_token_queries,
        "verify_queries": accounts["verify"].next_token_queries,
        "seconds": found.report.seconds,
        **more,
        "strings_measured": count,
        **errors,
    }


def solved() -> None:
    """HiGHS at every prefix; saved as they come, since dimension 16 is slow."""
    runs = []
    for dim in DIMS:
        for seed in SEEDS:
            runs.append(measured(ALL_SOLVED, RandomIsan(dim=dim, seed=seed)))
            print(runs[-1], flush=True)
            save("logit_learners.solved", {"lp_tolerance": LP_TOLERANCE, "runs": runs})


def exact() -> None:
    instances, runs = [], []
    for dim in DIMS:
        for seed in SEEDS:
            family = RandomIsan(dim=dim, seed=seed)
            row = {"dim": dim, "seed": seed, **about(family.teacher().student)}
            instances.append({**row, "as_asked": good(row)})
            print(instances[-1], flush=True)
    for dim in DIMS:
        for seed in SEEDS:
            for learner in ("exact rank", "linear program"):
                runs.append(measured(learner, RandomIsan(dim=dim, seed=seed)))
                print(runs[-1], flush=True)
    record = {
        "lp_tolerance": LP_TOLERANCE,
        "all_instances_as_asked": all(row["as_asked"] for row in instances),
        "all_within_1e-6": all(r["worst_teacher"] <= 1e-6 >= r["worst_student"] for r in runs),
        "instances": instances,
        "runs": runs,
    }
    picture(runs)
    save("logit_learners.exact", record)


def picture(runs: list[dict]) -> None:
    """Queries and errors against the dimension."""
    base = alt.Chart(alt.Data(values=runs), width=300, height=240)
    color = alt.Color("learner:N", title="learner", scale=alt.Scale(scheme="tableau10"))
    across = alt.X("dim:O", title="dimension", axis=alt.Axis(labelAngle=0))
    left, right = (
        base.mark_point().encode(
            x=across,
            y=alt.Y(f"{what}:Q", scale=alt.Scale(type="log"), title=title),
            color=color,
            tooltip=["learner:N", "dim:Q", "seed:Q", f"{what}:Q"],
        )
        for what, title in (
            ("learn_queries", "next-token queries to learn"),
            ("worst_teacher", "largest next-token TV on teacher strings"),
        )
    )
    title = "Random networks, 16 tokens, horizon 32, ten seeds"
    write_picture(alt.vconcat(alt.hconcat(left, right), title=title), FOLDER, "logit_learners")


# -- size -------------------------------------------------------------------------------


def size() -> None:
    runs = []
    for learner in ("linear program", ALL_SOLVED):
        for dim in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256):
            runs.append(timed(learner, dim))
            print(runs[-1], flush=True)
            save(
                "logit_learners.size", {"minutes": MINUTES, "largest": largest(runs), "runs": runs}
            )
            if runs[-1]["outcome"] != "verified":
                break


def timed(learner: str, dim: int) -> dict:
    """One run of the linear program's learner, in a process that the minutes end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=learned, args=(there, learner, dim))
    process.start()
    there.close()  # a process that fails is an error here, and not out of time
    row = {"outcome": "out of time"}
    if here.poll(60 * MINUTES):
        row = here.recv()
    process.kill()
    process.join()
    return {"learner": learner, "dim": dim, "seed": 0, **row}


def learned(answer: Connection, learner: str, dim: int) -> None:
    """Learn, and send what came of it; seconds are those of learning alone."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    ledger = Ledger(RandomIsan(dim=dim, seed=0).teacher())
    settings = ProvableSettings(shortcut=learner != ALL_SOLVED)
    report = learn_provably(ledger, settings, generator(0)).report
    answer.send(
        {
            "outcome": report.outcome.value,
            "epochs": report.epochs,
            "restarts": report.restarts,
            "largest_rank": max(report.ranks, default=0),
            "seconds": time.perf_counter() - started,
            "queries": ledger.total().next_token_queries,
        }
    )


def largest(runs: list[dict]) -> dict:
    """The largest dimension that each learner verified in time."""
    return {row["learner"]: row["dim"] for row in runs if row["outcome"] == "verified"}


# -- ranks ------------------------------------------------------------------------------


def ranks() -> None:
    """Blocks by enumeration: singular values above 1e-9 of the largest."""
    runs = []
    for family in (Parity(bits=8), LogitTwo(length=9), LogitTwo(length=11), LogitTwo(length=13)):
        teacher = family.teacher()
        report = learn_logits(Ledger(teacher), LogitSettings(), generator(0)).report
        cut = teacher.spec.horizon // 2
        values = block_values(teacher, cut)
        runs.append(
            {
                "family": str(family),
                "cut": cut,
                "logit_ranks": report.ranks,
                "queries": sum(a.next_token_queries for a in report.accounts.values()),
                "probability_rank_1e-9": int((values > 1e-9 * values[0]).sum()),
                "probability_rank_1e-14": int((values > 1e-14 * values[0]).sum()),
                "probability_singular_values": (values / values[0])[:12].tolist(),
            }
        )
        print(runs[-1], flush=True)
    save("logit_learners.ranks", {"runs": runs})


def block_values(teacher, cut: int) -> torch.Tensor:
    """Singular values of P(future | history) over all histories of a length, whole futures."""
    from myna.lowrank.student import strings

    o, horizon = teacher.spec.num_tokens, teacher.spec.horizon
    digits = torch.cartesian_prod(*[torch.arange(o)] * horizon)
    whole = teacher.score(strings(digits.tolist())).exp().reshape(o**cut, -1)
    return torch.linalg.svdvals(whole / whole.sum(1, keepdim=True))


PARTS = {
    "exact": exact,
    "solved": solved,
    "size": size,
    "noise": noise,
    "ranks": ranks,
    "samples": samples,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    PARTS[parser.parse_args().part]()


if __name__ == "__main__":
    main()
