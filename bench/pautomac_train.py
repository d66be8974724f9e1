"""PAutomaC: learners from the training strings beside our exact query learner, by tokens seen.

    python bench/pautomac_train.py --part search    # Alergia's floor and eps, on problem 1
    python bench/pautomac_train.py --part samples   # n-grams and Alergia on 1/100, 1/10 and all strings
    python bench/pautomac_train.py --part queries   # the exact learner on a ladder of token budgets
    python bench/pautomac_train.py --part em        # Baum-Welch on all strings, in number order
    python bench/pautomac_train.py --part starts    # more starts at the sizes that em found best
    python bench/pautomac_train.py --part wider     # twice as many states, from one start
    python bench/pautomac_train.py --part search-networks  # their learning rates, on problem 1
    python bench/pautomac_train.py --part networks  # recurrent and attention networks on all strings
    python bench/pautomac_train.py --part picture   # with what `pautomac_spectral.py` kept

The figure of a copy is its score over the truth's in bits a string, log2(perplexity / truth's),
on the competition's test strings. Tokens seen count every stop; the query learner's are those of
the prefixes sent, checking included. Every learner but the n-grams (smooth already) and the query
learner is smoothed: Alergia by a floor in every state, the others by a share of the unigrams' law
of whole strings. Alergia's floor and eps come from one search: learned from two thirds of problem
1's training strings, the best mean log-probability of the other third. Shares, and Baum-Welch's
number of states and then its start, are chosen on each problem by the last tenth of its strings;
then all are used.
Networks have as many numbers as the query learner's copy (`LEAST` at least); their first learning
rate comes from the search on problem 1, and a twentieth of the strings only halves it.

Alergia needs aalpy and pydot (requirements-peers.txt); without them it is left out. Model files
are opened by the query learner's teacher only.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import altair as alt
import torch
from results import FOLDER, need_shared, save
from sampled import Rows

from myna.app.picture import write_picture
from myna.learn.asker import merged
from myna.learn.baum_welch import EmReport, EmSettings, HmmParameters, baum_welch, fit_hmm
from myna.learn.evidence import Evidence
from myna.learn.exact import learn_exact
from myna.learn.merging import merged_student, pairs
from myna.learn.networks import Kind, NetworkResult, NetworkSettings, fit_strings
from myna.learn.ngrams import Ngrams, count_ngrams, fit_ngrams
from myna.learn.report import ExactSettings
from myna.lowrank.student import Strings
from myna.spec import Spec
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.pautomac import perplexity, read_automaton, read_sample, read_solution

PROBLEMS = range(1, 48, 2)
PARTS = (0.01, 0.1, 1.0)  # of the training strings
BUDGETS = (300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, None)
STATES = (5, 10, 20, 40, 80)  # 160 were behind 80 on problems 1, 3, 5 and 7
STARTS = (1, 2, 3)  # seeds, beside the first start at each size
EM = EmSettings(tolerance_nats=1e-7, max_iterations=20_000, accelerated=True)
FLOORS = (0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
EPS = (0.0005, 0.005, 0.05, 0.5)  # 1.0 had not ended after 100 s on problem 1
LEAST = 2000  # numbers of a network
RATES = (0.002, 0.005, 0.01)
EXACT = 1e-9  # bits a string: a copy that is right but for rounding
RESCUE = 1e-6  # share of the uniform law where a copy from queries gives a test string zero

Score = Callable[[Strings], torch.Tensor]


class Problem(NamedTuple):
    """One problem's strings and solution."""

    number: int
    language: Spec
    train: Strings
    test: Strings
    solution: torch.Tensor

    @staticmethod
    def read(folder: Path, number: int) -> "Problem":
        language, train = read_sample(folder / f"{number}.pautomac.train")
        _, test = read_sample(folder / f"{number}.pautomac.test")
        solution = read_solution(folder / f"{number}.pautomac_solution.txt")
        return Problem(number, language, train, test, solution)

    def row(self, learner: str, tokens: int, log_q: torch.Tensor, **more) -> dict:
        truth = perplexity(self.solution, self.solution.log())
        found = perplexity(self.solution, log_q)
        return {
            "problem": self.number,
            "learner": learner,
            "tokens": tokens,
            "perplexity": found,
            "truth": truth,
            "bits": math.log2(found / truth),
            **more,
        }


def first(text: Strings, count: int) -> Strings:
    return Strings(text.tokens[:count], text.lengths[:count])


def after(text: Strings, count: int) -> Strings:
    return Strings(text.tokens[count:], text.lengths[count:])


def unigrams(language: Spec, text: Strings) -> Ngrams:
    return count_ngrams(language, text, 1)


def law_of_tokens(language: Spec, text: Strings) -> torch.Tensor:
    """The unigrams' law, (token,)."""
    one = unigrams(language, text)
    return one.law(one.initial(1))[0].exp()


def blended(log_q: torch.Tensor, log_u: torch.Tensor, share: float) -> torch.Tensor:
    """Log of (1 - share) Q + share U, whole strings."""
    return torch.logaddexp(log_q + math.log1p(-share), log_u + math.log(share))


def mixed(score: Score, other: Score, share: float) -> Score:
    """The same of two scores."""
    return lambda text: blended(score(text), other(text), share)


def evidence(text: Strings) -> Evidence:
    """Equal strings once."""
    none = torch.zeros_like(text.lengths)
    return merged(text.tokens, text.lengths, none, torch.ones(len(none), dtype=torch.float64))


def alergia(text: Strings, eps: float):
    """AALpy's machine."""
    from aalpy.learning_algs import run_Alergia

    return run_Alergia(pairs(text), "smm", eps=eps)


def has_aalpy() -> bool:
    try:
        import aalpy.learning_algs  # noqa: F401
    except ImportError:
        print("Alergia left out: aalpy is not installed (bench/requirements-peers.txt)")
        return False
    return True


def search(folder: Path) -> None:
    """Mean held-out log-probability (nats a string) of every setting, on problem 1 alone."""
    problem = Problem.read(folder, 1)
    cut = len(problem.train.lengths) * 2 // 3
    seen, held_out = first(problem.train, cut), after(problem.train, cut)
    rows = Rows("pautomac_train.search", __doc__ or "")
    law = law_of_tokens(problem.language, seen)
    for eps in EPS if has_aalpy() else ():
        machine = alergia(seen, eps)
        for floor in FLOORS:
            copy = merged_student(problem.language, machine, law, floor)
            row = {"learner": "Alergia", "eps": eps, "floor": floor, "states": len(machine.states)}
            rows.add({**row, "held_out": float(copy.score(held_out).mean())})


def search_networks(folder: Path) -> None:
    """The same for the learning rates of networks."""
    problem = Problem.read(folder, 1)
    cut = len(problem.train.lengths) * 2 // 3
    seen, held_out = first(problem.train, cut), after(problem.train, cut)
    rows = Rows("pautomac_train.search-networks", __doc__ or "")
    numbers = size_of(folder, 1)
    for kind, rate in itertools.product(Kind, RATES):
        fit = network(problem.language, seen, kind, numbers, rate)
        row = {"learner": kind.value, "rate": rate, "epochs": len(fit.report.held_out)}
        rows.add({**row, "held_out": float(fit.student.score(held_out).mean())})


def size_of(folder: Path, number: int) -> int:
    """Numbers of the copy from queries."""
    teacher = read_automaton(folder / f"{number}.pautomac_model.txt")
    result = learn_exact(Ledger(teacher), ExactSettings(), torch.Generator().manual_seed(0))
    assert result.student is not None
    return max(LEAST, result.student.num_parameters)


def network(language: Spec, text: Strings, kind: Kind, numbers: int, rate: float) -> NetworkResult:
    settings = NetworkSettings(kind=kind, parameters=numbers, learning_rate=rate)
    return fit_strings(language, text, settings, torch.Generator().manual_seed(0))


def from_networks(problem: Problem, folder: Path) -> Iterator[dict]:
    """Both kinds on all strings."""
    tokens, numbers = int(problem.train.lengths.sum()), size_of(folder, problem.number)
    for kind in Kind:
        rate = chosen(kind.value, "search-networks")["rate"]
        fit = network(problem.language, problem.train, kind, numbers, rate)
        report = fit.report
        more = {
            "parameters": report.parameters,
            "epochs": len(report.held_out),
            "converged": report.converged,
            "seconds": report.seconds,
        }
        log_q = fit.student.score(problem.test)
        yield problem.row(f"{kind.value} network", tokens, log_q, part=1.0, rate=rate, **more)


def chosen(learner: str, part: str = "search") -> dict:
    """The setting that the search found best."""
    rows = json.loads((FOLDER / f"pautomac_train.{part}.json").read_text())["runs"]
    return max((r for r in rows if r["learner"] == learner), key=lambda r: r["held_out"])


def from_samples(problem: Problem, part: float) -> Iterator[dict]:
    """N-grams and Alergia on the first strings of the file."""
    text = first(problem.train, round(part * len(problem.train.lengths)))
    language, tokens = problem.language, int(text.lengths.sum())
    began = time.perf_counter()
    ngrams, _ = fit_ngrams(language, text)
    seconds = time.perf_counter() - began
    log_q = ngrams.score(problem.test)
    yield problem.row("n-grams", tokens, log_q, part=part, order=ngrams.order, seconds=seconds)
    if not has_aalpy():
        return
    setting, began = chosen("Alergia"), time.perf_counter()
    machine = alergia(text, setting["eps"])
    law = law_of_tokens(language, text)
    copy = merged_student(language, machine, law, setting["floor"])
    more = {k: setting[k] for k in ("eps", "floor")} | {"states": len(machine.states)}
    log_q, seconds = copy.score(problem.test), time.perf_counter() - began
    yield problem.row("Alergia", tokens, log_q, part=part, seconds=seconds, **more)


def em_on(language: Spec, text: Strings, states: int, seed: int):
    """Baum-Welch to convergence from one random start."""
    random = torch.Generator().manual_seed(seed)
    fit = baum_welch(language, evidence(text), states, EM, random)
    return fit.parameters, fit.report


class Tried(NamedTuple):
    """One climb on nine tenths of the strings; the best of several has the largest `held_out`."""

    held_out: float
    share: float
    parameters: HmmParameters
    row: dict

    @staticmethod
    def climb(problem: Problem, states: int, seed: int) -> "Tried":
        language, cut = problem.language, len(problem.train.lengths) * 9 // 10
        seen, held_out = first(problem.train, cut), after(problem.train, cut)
        parameters, report = em_on(language, seen, states, seed)
        other = unigrams(language, seen).score
        value, share = best_share(parameters.model(language).score, other, held_out)
        row = {"states": states, "seed": seed, "held_out": value, **told_of(report)}
        print(problem.number, row, flush=True)
        return Tried(value, share, parameters, row)


def em(problem: Problem) -> dict:
    """Every number of states from one start, the best of them then on all strings."""
    began = time.perf_counter()
    tried = [Tried.climb(problem, states, states) for states in STATES]
    best = max(tried, key=lambda t: t.held_out)
    return on_all(problem, best, [t.row for t in tried], began)


def more_climbs(problem: Problem, part: str) -> dict:
    """More starts at the number of states kept, or twice as many; the kept row where none is better."""
    began = time.perf_counter()
    row = climbs()[problem.number]
    states = row["states"] if part == "starts" else 2 * row["states"]
    seeds = STARTS if part == "starts" else (states,)
    tried = [Tried.climb(problem, states, seed) for seed in seeds]
    best, rows = max(tried, key=lambda t: t.held_out), row["tried"] + [t.row for t in tried]
    if best.held_out > max(t["held_out"] for t in row["tried"]):
        return on_all(problem, best, rows, began - row["seconds"])
    return row | {"tried": rows, "seconds": row["seconds"] + time.perf_counter() - began}


def on_all(problem: Problem, best: Tried, tried: list[dict], began: float) -> dict:
    """The climb goes on with all strings."""
    parameters, report = fit_hmm(evidence(problem.train), best.parameters, EM)
    one = unigrams(problem.language, problem.train)
    score = mixed(parameters.model(problem.language).score, one.score, best.share)
    told = {"states": best.row["states"], "share": best.share, "tried": tried, **told_of(report)}
    seconds, tokens = time.perf_counter() - began, int(problem.train.lengths.sum())
    return problem.row("Baum-Welch", tokens, score(problem.test), seconds=seconds, **told)


def best_share(score: Score, other: Score, held_out: Strings) -> tuple[float, float]:
    """The best mean log-probability of held-out strings, and the share that gives it."""
    return max((float(mixed(score, other, share)(held_out).mean()), share) for share in FLOORS)


def told_of(report: EmReport) -> dict:
    return {"iterations": report.iterations, "stop": report.stop.value}


def from_queries(problem: Problem, folder: Path, budget: int | None) -> dict:
    """The exact learner; the best copy so far where the budget ended it."""
    teacher = read_automaton(folder / f"{problem.number}.pautomac_model.txt")
    ledger = Ledger(teacher, Budget(tokens=budget))
    result = learn_exact(ledger, ExactSettings(), torch.Generator().manual_seed(0))
    assert result.student is not None  # the cap on the rank is above every problem's
    # a model file may lack the last symbols of the training file; its stop is another number
    tokens, stop = problem.test.tokens, problem.language.stop
    test = Strings(tokens.masked_fill(tokens == stop, teacher.spec.stop), problem.test.lengths)
    log_q = result.student.score(test)
    zeros = int((log_q == -math.inf).sum())
    if zeros:
        uniform = -problem.test.lengths * math.log(problem.language.num_tokens)
        log_q = mixed(lambda _: log_q, lambda _: uniform.double(), RESCUE)(problem.test)
    spent, learned = ledger.total(), ledger.account("learn")
    return problem.row(
        "queries",
        spent.tokens_sent + spent.tokens_received,
        log_q,
        budget=budget,
        outcome=result.report.outcome.value,
        queries=spent.next_token_queries,
        learn_queries=learned.next_token_queries,
        learn_tokens=learned.tokens_sent + learned.tokens_received,
        numbers_received=spent.next_token_queries * teacher.spec.num_tokens,
        zeros=zeros,
        seconds=result.report.seconds,
    )


def result_name(part: str, problems: list[int]) -> str:
    """That of the kept result; where not all problems are run, the first and the last."""
    some = "" if problems == list(PROBLEMS) else f"-{problems[0]}-{problems[-1]}"
    return f"pautomac_train.{part}{some}"


def run(part: str, folder: Path, problems: list[int]) -> None:
    """All problems of one part, a row at a time."""
    rows = Rows(result_name(part, problems), __doc__ or "")
    for number in problems:
        problem = Problem.read(folder, number)
        if part == "samples":
            for share in PARTS:
                for row in from_samples(problem, share):
                    rows.add(row)
        elif part in ("em", "starts", "wider"):
            rows.add(em(problem) if part == "em" else more_climbs(problem, part))
        elif part == "networks":
            for row in from_networks(problem, folder):
                rows.add(row)
        else:
            for budget in BUDGETS:
                rows.add(from_queries(problem, folder, budget))
                if rows.rows[-1]["outcome"] != "budget exhausted":
                    break  # a larger budget changes nothing


def kept(*parts: str) -> list[dict]:
    paths = [path for part in parts for path in sorted(FOLDER.glob(f"pautomac_train.{part}*.json"))]
    return [row for path in paths for row in json.loads(path.read_text())["runs"]]


def kept_from_strings() -> list[dict]:
    return [*kept("samples", "spectral", "words", "networks"), *climbs().values()]


def climbs() -> dict[int, dict]:
    """Baum-Welch's row of each problem: with more starts and states where they were tried."""
    return {row["problem"]: row for row in kept("em", "starts", "wider")}


def picture() -> None:
    """Bits a string above the truth against tokens seen; one colour a learner, a dot a problem."""
    least = 1e-6
    rows = [
        {**row, "shown": max(row["bits"], least)}
        for row in (*kept_from_strings(), *kept("queries"))
    ]
    chart = (
        alt.Chart(alt.Data(values=rows), width=640, height=380)
        .mark_point(filled=True, opacity=0.55, size=28)
        .encode(
            x=alt.X("tokens:Q", title="tokens seen (queries: sent)", scale=alt.Scale(type="log")),
            y=alt.Y(
                "shown:Q",
                title="bits a string above the truth (1e-6: that or less)",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".0e"),
            ),
            color=alt.Color("learner:N", title="learner", scale=alt.Scale(scheme="tableau10")),
            shape=alt.Shape("learner:N", title="learner"),
            tooltip=["problem:Q", "learner:N", "tokens:Q", "bits:Q"],
        )
    )
    title = "PAutomaC, odd problems: what a copy lacks, by tokens seen"
    print(*write_picture(alt.vconcat(chart, title=title), FOLDER, "pautomac_train"))


def worth() -> None:
    """Problem by problem: what queries spend to be as near as the best learner from strings.

    times: tokens of the strings over tokens sent, at the least budget that is as near
    times_numbers: the same, each law counted as one token more for every number in it
    times_exact: tokens of the strings over tokens sent until the copy is exact (`EXACT`), which no
        learner from strings is: this needs no rival
    """
    asked, drawn = kept("queries"), kept_from_strings()
    rows = []
    for number in sorted({row["problem"] for row in asked}):
        best = min((r for r in drawn if r["problem"] == number), key=lambda r: r["bits"])
        near = [r for r in asked if r["problem"] == number and r["bits"] <= best["bits"]]
        least = min(near, key=lambda r: r["tokens"])
        exact = min(r["tokens"] for r in near if r["bits"] <= EXACT)
        rows.append(
            {
                "problem": number,
                "learner": best["learner"],
                "bits": best["bits"],
                "tokens": best["tokens"],
                "query_bits": least["bits"],
                "query_tokens": least["tokens"],
                "queries": least["queries"],
                "times": best["tokens"] / least["tokens"],
                "times_numbers": best["tokens"] / (least["tokens"] + least["numbers_received"]),
                "times_exact": best["tokens"] / exact,
            }
        )
        print(rows[-1])
    summary = {
        name: {"median": statistics.median(all_of), "least": min(all_of), "most": max(all_of)}
        for name in ("bits", "times", "times_numbers", "times_exact")
        for all_of in [[row[name] for row in rows]]
    }
    print(summary)
    save("pautomac_train.worth", {"summary": summary, "gaps": gaps(drawn), "runs": rows})


def gaps(drawn: list[dict]) -> dict[str, dict]:
    """Perplexity minus the truth's, as published scores are compared, by learner.

    nearest: the learner that is nearest on each problem, in hindsight
    """
    by_learner: dict[str, dict[int, float]] = {"nearest": {}}
    for row in drawn:
        if row.get("part", 1.0) == 1.0:
            gap, nearest = row["perplexity"] - row["truth"], by_learner["nearest"]
            by_learner.setdefault(row["learner"], {})[row["problem"]] = gap
            nearest[row["problem"]] = min(gap, nearest.get(row["problem"], math.inf))
    return {
        learner: {
            "problems": len(found),
            "geometric_mean": statistics.geometric_mean(found.values()),
            "median": statistics.median(found.values()),
            "most": max(found.values()),
        }
        for learner, found in by_learner.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    searches = {"search": search, "search-networks": search_networks}
    parts = ("samples", "queries", "em", "starts", "wider", "networks", "picture")
    parser.add_argument("--part", choices=(*searches, *parts), required=True)
    parser.add_argument("--problems", type=int, nargs="*", default=list(PROBLEMS))
    asked = parser.parse_args()
    if asked.part == "picture":
        picture()
        worth()
        return
    folder = need_shared() / "pautomac"
    if asked.part in searches:
        searches[asked.part](folder)
    else:
        run(asked.part, folder, asked.problems)


if __name__ == "__main__":
    main()
