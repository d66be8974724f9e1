"""PAutomaC: the spectral learners, from the training strings alone.

    python bench/pautomac_spectral.py --part tokens  # single tokens, on 1/100, 1/10, all strings
    python bench/pautomac_spectral.py --part search  # which words, on problem 1
    python bench/pautomac_spectral.py --part words   # words, on the same strings as single tokens

Figures, smoothing and test strings are those of `pautomac_train.py`, whose picture shows these
rows too. Hsu, Kakade and Zhang's learner (`learn.spectral`) has single tokens for histories and
futures and knows no stop: its strings go on with stops for ever, all triples up to the third stop
are counted, and the start is the law of first tokens. With words (`learn.hankel`), their number
and length come from one search: learned from two thirds of problem 1's strings, the best mean
log-probability of the other third. The rank and the share of the unigrams' law are chosen on each
problem by the last tenth of its strings; then all are used.

Estimated weights may be negative; a student clips them at every token and divides by what is
left. `bits_unclipped` scores with the weights f(x) of whole strings themselves, negative ones as
0, rank and share chosen likewise: no distribution, but the competition's score divides by the sum
over the test strings, and participants were free to send such numbers.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
from pautomac_train import (
    PARTS,
    PROBLEMS,
    Problem,
    Score,
    after,
    best_share,
    chosen,
    evidence,
    first,
    mixed,
    unigrams,
)
from results import need_shared
from sampled import Rows

from myna.learn.evidence import Evidence
from myna.learn.hankel import HankelSettings, learn_hankel
from myna.learn.spectral import SpectralSettings, Windows, learn_spectral
from myna.lowrank.batch import apply_by_token
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings, Student
from myna.spec import Spec, numbered

LONGEST, WORDS = (1, 2, 4, 6), (100, 300, 1000)
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 100)


def spectral(language: Spec, text: Strings) -> tuple[Student, int]:
    """The student of the process that goes on with stops for ever, and its rank.

    Operators hold for triples from anywhere, the law of the first token only for the start: it
    replaces the mean law over all positions.
    """
    stop = language.stop or 0
    process = Spec(numbered(language.num_tokens), None, None, language.fingerprint)
    longer = torch.nn.functional.pad(text.tokens, (0, 2), value=-1)
    columns = torch.arange(longer.shape[1])
    inside = columns < text.lengths[:, None] + 2
    longer = torch.where(inside & (longer < 0), stop, longer)
    none = torch.zeros_like(text.lengths)
    rows = Evidence(longer, text.lengths + 2, none, torch.ones_like(none).double())
    settings = SpectralSettings(windows=Windows.ALL)
    fit = learn_spectral(process, rows, settings, torch.Generator().manual_seed(0))
    law = torch.bincount(text.tokens[:, 0], minlength=language.num_tokens).double()
    laws = fit.student.steps[0].laws
    start = torch.linalg.lstsq(laws.T, (law / law.sum())[:, None]).solution[:, 0]
    return LowRankModel.of(process, start, fit.student.steps), fit.report.cuts[0].rank


def from_moments(problem: Problem, part: float) -> dict:
    """The spectral learner; its share by the last tenth of the strings, then on all of them."""
    language, began = problem.language, time.perf_counter()
    text = first(problem.train, round(part * len(problem.train.lengths)))
    cut = len(text.lengths) * 9 // 10
    seen, held_out = first(text, cut), after(text, cut)
    _, share = best_share(
        spectral(language, seen)[0].score, unigrams(language, seen).score, held_out
    )
    student, rank = spectral(language, text)
    zeros = int((student.score(problem.test) == -math.inf).sum())
    log_q = mixed(student.score, unigrams(language, text).score, share)(problem.test)
    more = {"rank": rank, "zeros": zeros, "seconds": time.perf_counter() - began}
    tokens = int(text.lengths.sum())
    return problem.row("spectral", tokens, log_q, part=part, share=share, **more)


def unclipped(model: LowRankModel, text: Strings) -> torch.Tensor:
    """Log f(x), -inf where it is not positive: operators multiplied, nothing divided."""
    (step,) = model.steps
    vector = model.initial(len(text.lengths)).vector
    value = vector.new_zeros(len(vector))
    for t, tokens in enumerate(text.tokens.T):
        read = tokens.clamp(min=0)
        weight = (vector @ step.laws).gather(1, read[:, None])[:, 0]
        value = torch.where(text.lengths == t + 1, weight, value)
        vector = apply_by_token(step.operators, vector, read)
    return value.clamp(min=0).log()


def scores(model: LowRankModel) -> dict[str, Score]:
    """How a copy may be scored: as a student, and by its weights."""
    return {"clipped": model.score, "unclipped": lambda text: unclipped(model, text)}


def best_ranks(language: Spec, seen: Strings, held_out: Strings, settings: HankelSettings) -> dict:
    """For both ways to score: the best held-out value, its rank and its share."""
    found, other = learn_hankel(language, evidence(seen), settings), unigrams(language, seen).score
    tried: dict[str, list[tuple[float, int, float]]] = {}
    for rank in RANKS:
        if rank <= len(found.singular_values):
            for name, score in scores(found.model(language, rank)).items():
                value, share = best_share(score, other, held_out)
                tried.setdefault(name, []).append((value, rank, share))
    return {name: max(values) for name, values in tried.items()}


def search(folder: Path) -> None:
    """Mean held-out log-probability (nats a string) of words of some length and number."""
    problem = Problem.read(folder, 1)
    cut = len(problem.train.lengths) * 2 // 3
    seen, held_out = first(problem.train, cut), after(problem.train, cut)
    rows = Rows("pautomac_train.search-words", __doc__ or "")
    for longest, words in itertools.product(LONGEST, WORDS):
        settings = HankelSettings(longest, words)
        value, rank, share = best_ranks(problem.language, seen, held_out, settings)["clipped"]
        row = {"learner": "spectral, words", "longest": longest, "words": words}
        rows.add({**row, "rank": rank, "share": share, "held_out": value})


def from_words(problem: Problem, part: float) -> dict:
    """Rank and share by the last tenth of the strings, then on all of them."""
    language, began = problem.language, time.perf_counter()
    text = first(problem.train, round(part * len(problem.train.lengths)))
    cut = len(text.lengths) * 9 // 10
    kept = chosen("spectral, words", "search-words")
    settings = HankelSettings(kept["longest"], kept["words"])
    best = best_ranks(language, first(text, cut), after(text, cut), settings)
    found, other = learn_hankel(language, evidence(text), settings), unigrams(language, text).score
    tokens, rows = int(text.lengths.sum()), {}
    for name, (_, rank, share) in best.items():
        score = scores(found.model(language, rank))[name]
        zeros = int((score(problem.test) == -math.inf).sum())
        more = {"rank": rank, "share": share, "zeros": zeros}
        log_q = mixed(score, other, share)(problem.test)
        rows[name] = problem.row("spectral, words", tokens, log_q, part=part, **more)
    raw = {f"{k}_unclipped": rows["unclipped"][k] for k in ("bits", "rank", "share", "zeros")}
    return rows["clipped"] | raw | {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("tokens", "search", "words"), required=True)
    parser.add_argument("--problems", type=int, nargs="*", default=list(PROBLEMS))
    asked = parser.parse_args()
    folder = need_shared() / "pautomac"
    if asked.part == "search":
        search(folder)
        return
    some = "" if asked.problems == list(PROBLEMS) else f"-{asked.problems[0]}-{asked.problems[-1]}"
    name, learned = ("spectral", from_moments) if asked.part == "tokens" else ("words", from_words)
    rows = Rows(f"pautomac_train.{name}{some}", __doc__ or "")
    for number in asked.problems:
        problem = Problem.read(folder, number)
        for share in PARTS:
            rows.add(learned(problem, share))


if __name__ == "__main__":
    main()
