"""Noisy parity with 8 to 128 bits: rank by cut, queries against bits, exactness at 8.

    python bench/parity.py

Five secrets for each size; every one is shown.
"""

import math
import time

import altair as alt
import torch
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.evaluate.certify import certify
from myna.evaluate.distance import enumerate_distance
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import Parity


def one(bits: int, seed: int) -> dict:
    family = Parity(bits=bits, seed=seed)
    teacher = family.teacher()
    ledger = Ledger(teacher)
    started = time.perf_counter()
    result = learn_exact(ledger, ExactSettings(), torch.Generator().manual_seed(seed))
    seconds = time.perf_counter() - started
    row = {
        "bits": bits,
        "seed": seed,
        "outcome": result.report.outcome.value,
        "ranks_as_documented": result.report.ranks == family.ranks(),
        "rounds": result.report.rounds,
        "learn_queries": ledger.account("learn").next_token_queries,
        "verify_queries": ledger.account("verify").next_token_queries,
        "queries": ledger.total().next_token_queries,
        "seconds": seconds,
    }
    if bits == 8:
        found = enumerate_distance(Ledger(teacher).laws("certify"), result.student)
        row["enumerated_total_variation"] = found.total_variation
    elif seed == 0:
        certificate = certify(ledger.laws("certify"), result.student, samples=2000)
        row["certified_total_variation"] = certificate.total_variation.high
    return row


def growth(rows: list[dict]) -> float:
    """Least-squares slope of log queries against log bits."""
    x = torch.tensor([math.log(r["bits"]) for r in rows], dtype=torch.float64)
    y = torch.tensor([math.log(r["learn_queries"]) for r in rows], dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> None:
    rows = []
    for bits in (8, 16, 32, 64, 128):
        for seed in range(5):
            rows.append(one(bits, seed))
            print(rows[-1], flush=True)
    exponent = growth([r for r in rows if r["bits"] >= 16])
    print(f"learning queries grow as bits^{exponent:.2f} from 16 bits on")
    points = (
        alt.Chart(alt.Data(values=rows), width=480, height=300, title="Noisy parity: queries")
        .transform_fold(["learn_queries", "verify_queries"], as_=["purpose", "count"])
        .mark_point(filled=True, size=60, opacity=0.8)
        .encode(
            x=alt.X("bits:Q", scale=alt.Scale(type="log", base=2), title="bits"),
            y=alt.Y("count:Q", scale=alt.Scale(type="log"), title="next-token queries"),
            color=alt.Color("purpose:N"),
            tooltip=["bits:Q", "seed:Q", "purpose:N", "count:Q"],
        )
    )
    write_picture(alt.vconcat(points), FOLDER, "parity")
    save("parity", {"exponent_from_16_bits": exponent, "runs": rows})


if __name__ == "__main__":
    main()
