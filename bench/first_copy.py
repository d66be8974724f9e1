"""A first copy of a real model: the openings of stories260k, 16 tokens, horizon 12.

    python bench/first_copy.py [--part spectrum | laws | top5 | samples | more | picture]

spectrum  at each cut, the singular values of

    M[h, f] = P(h)^1/2 P(f | h) / P(f)^1/2

          over 400 distinct histories drawn from the model (weighted by how often they came)
          and all futures of up to three tokens; the first value is one, a model of rank r
          has r values above zero, and the sum of the squares beyond r is the chi-square
          distance that rank r leaves. In float64, so that rounding is no rank.
laws      the exact learner, its tolerance and cap loosened, by budgets of queries
top5      the same where only the five most likely tokens are shown: the rest's mass is
          spread evenly over the other eleven, which is a guess
samples   the learner from completions, by budgets of generated tokens; and what a teacher
          of all 512 tokens would cost by rejection

TV is the mean of (1 - Q(x) / P(x))+ over 4,000 fresh strings, with its standard error; the
certificate of the best copy from laws is myna's own, on strings that learning never saw.
"""

import argparse
import itertools
import time

import altair as alt
import torch
from results import FOLDER, save
from sampled import Rows, fresh_variation, kept_rows, ours
from story_opening import HORIZON, TOKENS, opening, whole

from myna.app.picture import write_picture
from myna.evaluate.certify import certify
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import as_top_k
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

FRESH, SEED = 4000, 0
BUDGETS = (300, 1000, 3000, 10_000, 30_000, 100_000)
LADDER = ((0.3, 0.3), (0.1, 0.1), (0.03, 0.03), (0.01, 0.01))  # tolerance, mismatch
CAP = 512
SAMPLED, MORE = (10_000, 30_000, 100_000), (300_000,)


def spectrum() -> None:
    teacher = opening(dtype="float64")
    rows = []
    drawn = teacher.sample(3000, torch.Generator().manual_seed(SEED))
    size = teacher.spec.num_tokens
    for cut in range(1, HORIZON):
        seen: dict[tuple[int, ...], int] = {}
        for row in drawn.tokens[:, :cut].tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
        kept = sorted(seen.items(), key=lambda item: -item[1])[:400]
        histories = [history for history, _ in kept]
        weight = torch.tensor([count for _, count in kept], dtype=torch.float64)
        weight /= weight.sum()
        joint = torch.ones((len(histories), 1), dtype=torch.float64)
        for length in range(min(3, HORIZON - cut)):
            words = list(itertools.product(range(size), repeat=length))
            asked = Prefixes.of(histories).extended(Prefixes.of(words))
            laws = teacher.laws(asked).exp().reshape(len(histories), len(words), size)
            joint = (joint[:, :, None] * laws).flatten(1)
        mass = weight @ joint
        matrix = weight.sqrt()[:, None] * joint[:, mass > 0] / mass[mass > 0].sqrt()
        values = torch.linalg.svdvals(matrix)
        left = values.square().flip(0).cumsum(0).flip(0)
        rows.append(
            {
                "cut": cut,
                "histories": len(histories),
                "share_of_strings": sum(count for _, count in kept) / len(drawn.tokens),
                "singular_values": values[:100].tolist(),
                "above": {f"{t:g}": int((values > t).sum()) for t in (0.1, 1e-2, 1e-3, 1e-6, 1e-9)},
                "chi_square_beyond_rank": {
                    r: float(left[r]) for r in (1, 4, 16, 64) if r < len(left)
                },
            }
        )
        print(
            cut, len(histories), rows[-1]["above"], rows[-1]["chi_square_beyond_rank"], flush=True
        )
        save("first_copy.spectrum", {"alphabet": list(teacher.spec.alphabet), "runs": rows})


class Guessed:
    """Laws from the k most likely tokens: the others share the rest's mass evenly."""

    def __init__(self, teacher):
        self._teacher = teacher
        self.spec, self.k = teacher.spec, teacher.spec.num_tokens
        self.complete = teacher.complete

    def laws(self, prefixes: Prefixes) -> torch.Tensor:
        top = self._teacher.top_laws(prefixes)
        each = top.log_rest - torch.tensor(float(self.k - top.tokens.shape[1])).log()
        laws = each[:, None].repeat(1, self.k)
        return laws.scatter(1, top.tokens, top.log_probs)

    def top_laws(self, prefixes: Prefixes):
        raise NotImplementedError


def by_queries(part: str) -> None:
    teacher = opening()
    source = teacher if part == "laws" else Guessed(as_top_k(teacher, 5))
    rows = Rows(f"first_copy.{part}", __doc__ or "")
    best = None
    for tolerance, mismatch in LADDER:
        for budget in BUDGETS:
            began = time.perf_counter()
            ledger = Ledger(source, Budget(queries=budget), seed=SEED)
            settings = ExactSettings(tolerance=tolerance, mismatch=mismatch, max_rank=CAP)
            result = learn_exact(ledger, settings, torch.Generator().manual_seed(SEED))
            report = result.report
            row = {
                "road": part,
                "tolerance": tolerance,
                "budget": budget,
                "queries": ledger.total().next_token_queries,
                "outcome": report.outcome.value,
                "ranks": list(report.ranks),
                "seconds": time.perf_counter() - began,
            }
            if result.student is not None:
                row |= fresh_variation(teacher, result.student, FRESH)
                if best is None or row["total_variation"] < best[0]:
                    best = (row["total_variation"], result.student)
            rows.add(row)
            if report.outcome.value != "budget exhausted":
                break  # a larger budget changes nothing
    if part == "laws" and best is not None:
        ledger = Ledger(teacher, seed=SEED + 1)
        certificate = certify(ledger.laws("certify"), best[1], samples=FRESH)
        rows.add({"certificate_of_best": certificate.as_json()})


def rejection(teacher) -> dict:
    """Tokens that a teacher of all 512 would have to draw for each accepted one: 1 / P(S | x)."""
    drawn = teacher.sample(500, torch.Generator().manual_seed(SEED)).tokens
    inner = open_teacher(whole())
    tokens = torch.tensor(sorted(TOKENS))
    every = Prefixes.of([row[:t] for row in tokens[drawn].tolist() for t in range(HORIZON)])
    cost = (-inner.laws(every)[:, tokens].logsumexp(1)).exp()
    return {
        "by_rejection": True,
        "drawn_per_accepted": {
            "mean": float(cost.mean()),
            "median": float(cost.median()),
            "largest": float(cost.max()),
            "share_of_places_above_1000": float((cost > 1000).double().mean()),
        },
    }


def by_samples(budgets: tuple[int, ...], name: str) -> None:
    teacher = opening()
    rows = Rows(name, __doc__ or "")
    rows.add(rejection(teacher))
    for budget in budgets:
        student, row = ours(teacher, budget, SEED)
        row = {"budget": budget, **row}
        if student is not None:
            row |= fresh_variation(teacher, student, FRESH)
        rows.add(row)


def picture() -> None:
    values = []
    for row in kept_rows("first_copy"):
        if "total_variation" not in row:
            continue
        sampled = "tokens" in row
        road = "samples (tokens)" if sampled else "laws" if row["road"] == "laws" else "top-5"
        cost = row["tokens"] if sampled else row["queries"]
        values.append({"road": road, "cost": cost, "tv": row["total_variation"]})
    chart = (
        alt.Chart(alt.Data(values=values), width=560, height=300)
        .mark_point(filled=True)
        .encode(
            x=alt.X("cost:Q", scale=alt.Scale(type="log"), title="queries (samples: tokens)"),
            y=alt.Y("tv:Q", title="total variation", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("road:N", title="access"),
        )
    )
    write_picture(
        alt.vconcat(chart, title="stories260k, 16 tokens, horizon 12"), FOLDER, "first_copy"
    )
    (FOLDER / "first_copy.html").unlink()


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="all")
    part = parser.parse_args().part
    runs = {
        "spectrum": spectrum,
        "laws": lambda: by_queries("laws"),
        "top5": lambda: by_queries("top5"),
        "samples": lambda: by_samples(SAMPLED, "first_copy.samples"),
        "more": lambda: by_samples(MORE, "first_copy.samples-more"),
        "picture": picture,
    }
    for name, run in runs.items():
        if part in ("all", name):
            run()


if __name__ == "__main__":
    main()
