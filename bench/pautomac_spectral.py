"""PAutomaC: the spectral learners, from the training strings alone.

    python bench/pautomac_spectral.py --part tokens  # single tokens, on 1/100, 1/10, all strings
    python bench/pautomac_spectral.py --part search  # the length of words, on problem 1
    python bench/pautomac_spectral.py --part words   # words, on the same strings as single tokens

Figures and test strings are those of `pautomac_train.py`, whose picture shows these rows too.
Hsu, Kakade and Zhang's learner (`learn.spectral`) has single tokens for histories and futures and
knows no stop: its strings go on with stops for ever, all triples up to the third stop are counted,
and the start is the law of first tokens; its rank is by its noise test. With words
(`learn.hankel`), their longest length comes from a search on problem 1: learned from two thirds of
its training strings, the best mean log-probability of the other third. Their number, the rank and
the smoothing are chosen on each problem by the last tenth of its strings; then all are used.

Estimated weights may be negative. A student clips them at every token, so that one token can make
a whole string impossible; two smoothings are tried: a share of the unigrams' law of whole strings,
as for the other learners, and a floor, that share of the unigrams' law at every token (and all of
it after a clipped token). "spectral, weights" scores by the weights f(x) of whole strings
themselves, negative ones as 0, with a share of the unigrams': no distribution, but the
competition's score divides by the sum over the test strings, so participants were free to send
such numbers. Its choices are made by the same score: held-out strings' weights are divided by
their sum over the distinct ones.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pautomac_train import (
    FLOORS,
    PARTS,
    PROBLEMS,
    Problem,
    after,
    best_share,
    blended,
    chosen,
    evidence,
    first,
    law_of_tokens,
    mixed,
    result_name,
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

LONGEST, WORDS = (1, 2, 4, 6, 8), (100, 300, 1000)  # 3,000 were behind 1,000 on problem 1
SMOOTHINGS = ("share", "floor", "weights")
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)


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


def from_moments(problem: Problem, part: float) -> Iterator[dict]:
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
    yield problem.row("spectral", tokens, log_q, part=part, share=share, **more)


class Read(NamedTuple):
    """What a copy says of some strings, and what they are if their tokens are independent.

    laws: (string, time), Q of each token: 0 for a clipped one, U after it; 1 after the end
    unigrams: (string, time), U of each token; 1 after the end
    weights: (string,), f(x)
    """

    laws: torch.Tensor
    unigrams: torch.Tensor
    weights: torch.Tensor

    @staticmethod
    def of(model: LowRankModel, law: torch.Tensor, text: Strings) -> "Read":
        """Operators multiplied, nothing divided; strings in any order."""
        (step,) = model.steps
        order = text.lengths.argsort(descending=True)
        tokens, lengths = text.tokens[order].clamp(min=0), text.lengths[order]
        vector = model.initial(len(order)).vector
        laws = torch.ones(tokens.shape).double()
        weights, alive = vector.new_ones(len(order)), lengths > 0
        for t in range(int(lengths.max())):
            here = int((lengths > t).sum())
            read, vector = tokens[:here, t], vector[:here]
            told = vector @ step.laws
            weight = told.gather(1, read[:, None])[:, 0]
            weights[:here] = weight
            q = weight.clamp(min=0) / told.clamp(min=0).sum(1)
            laws[:here, t] = torch.where(alive[:here], q, law[read])
            alive[:here] &= weight > 0
            vector = apply_by_token(step.operators, vector, read)
        back = order.argsort()
        inside = torch.arange(tokens.shape[1]) < text.lengths[:, None]
        one = torch.where(inside, law[text.tokens.clamp(min=0)], 1.0)
        return Read(laws[back], one, weights[back])

    def scores(self, smoothing: str, share: float) -> torch.Tensor:
        """Log-probabilities of the strings; of their weights for "weights"."""
        if smoothing == "floor":
            return ((1 - share) * self.laws + share * self.unigrams).log().sum(1)
        own = self.weights.clamp(min=0).log() if smoothing == "weights" else self.laws.log().sum(1)
        return blended(own, self.unigrams.log().sum(1), share)


class Choice(NamedTuple):
    """A held-out value and what gave it; the best is the largest."""

    value: float
    longest: int
    words: int
    rank: int
    smoothing: str
    share: float


def choices(
    language: Spec, seen: Strings, held_out: Strings, lengths: tuple[int, ...]
) -> list[Choice]:
    """The held-out value of everything that may be chosen."""
    law, found = law_of_tokens(language, seen), []
    rows = evidence(seen)
    _, once = np.unique(held_out.tokens.numpy(), axis=0, return_index=True)
    for longest, words in itertools.product(lengths, WORDS):
        factors = learn_hankel(language, rows, HankelSettings(longest, words))
        for rank in RANKS:
            if rank > len(factors.singular_values):
                break
            read = Read.of(factors.model(language, rank), law, held_out)
            for smoothing, share in itertools.product(SMOOTHINGS, FLOORS):
                scores = read.scores(smoothing, share)
                value = float(scores.mean())
                if smoothing == "weights":
                    value -= float(scores[once].logsumexp(0))
                found.append(Choice(value, longest, words, rank, smoothing, share))
    return found


def search(folder: Path) -> None:
    """Mean held-out log-probability (nats a string) of words of some length."""
    problem = Problem.read(folder, 1)
    cut = len(problem.train.lengths) * 2 // 3
    seen, held_out = first(problem.train, cut), after(problem.train, cut)
    rows = Rows("pautomac_train.search-words", __doc__ or "")
    for longest in LONGEST:
        tried = choices(problem.language, seen, held_out, (longest,))
        best = max(c for c in tried if c.smoothing != "weights")
        rows.add({"learner": "spectral, words", "held_out": best.value, **best._asdict()})


def from_words(problem: Problem, part: float) -> Iterator[dict]:
    """Everything chosen by the last tenth of the strings, then on all of them."""
    language, began = problem.language, time.perf_counter()
    text = first(problem.train, round(part * len(problem.train.lengths)))
    cut = len(text.lengths) * 9 // 10
    longest = chosen("spectral, words", "search-words")["longest"]
    tried = choices(language, first(text, cut), after(text, cut), (longest,))
    law, rows = law_of_tokens(language, text), evidence(text)
    for learner, own in (("spectral, words", True), ("spectral, weights", False)):
        best = max(c for c in tried if (c.smoothing != "weights") == own)
        factors = learn_hankel(language, rows, HankelSettings(longest, best.words))
        model = factors.model(language, best.rank)
        read = Read.of(model, law, problem.test)
        log_q = read.scores(best.smoothing, best.share)
        more = best._asdict() | {"seconds": time.perf_counter() - began}
        yield problem.row(learner, int(text.lengths.sum()), log_q, part=part, **more)
        began = time.perf_counter()  # what both need is in the first one's seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("tokens", "search", "words"), required=True)
    parser.add_argument("--problems", type=int, nargs="*", default=list(PROBLEMS))
    asked = parser.parse_args()
    folder = need_shared() / "pautomac"
    if asked.part == "search":
        search(folder)
        return
    name, learned = ("spectral", from_moments) if asked.part == "tokens" else ("words", from_words)
    rows = Rows(result_name(name, asked.problems), __doc__ or "")
    for number, part in itertools.product(asked.problems, PARTS):
        for row in learned(Problem.read(folder, number), part):
            rows.add(row)


if __name__ == "__main__":
    main()
