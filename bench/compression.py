"""Smaller copies of exact copies: bytes and nanoseconds a token against KL.

    python bench/compression.py [--picture]

Exact copies, compressed once each; of all choices measured the smallest that keeps each limit on KL is
listed. KL is measured along 4,000 fresh strings of the copy (99% interval). No limit was tuned here:
how directions are chosen was decided on zoo:hmm?states=12&symbols=6&horizon=12&seed=1.
"""

import argparse
import time

import altair as alt
import torch
from results import FOLDER, need_shared, save
from sampled import kept_rows

from myna.app.picture import write_picture
from myna.learn.compress import CompressSettings, compress
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

LIMITS = (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2)


def cases() -> dict[str, tuple[str, Structure | None, int | None]]:
    """Name, teacher, structure, and where strings are cut."""
    shared = need_shared()
    return {
        "HMM, 16 states": (f"hmm:{shared / 'hmm_task.npz'}?horizon=64", Structure.STATIONARY, None),
        "HMM, 24 states, one table a position": (
            "zoo:hmm?states=24&symbols=8&horizon=16&seed=7", Structure.TIME_VARYING, None,
        ),
        "position-dependent HMM": (
            "zoo:hmm?states=8&symbols=8&horizon=16&varying=true&seed=7", None, None,
        ),
        "PAutomaC 1": (f"pautomac:{shared / 'pautomac' / '1.pautomac_model.txt'}", None, 200),
        "parity, 16 bits": ("zoo:parity?bits=16", None, None),
    }  # fmt: skip


def run(name: str, uri: str, structure: Structure | None, max_tokens: int | None) -> dict:
    result = learn_exact(
        Ledger(open_teacher(uri)),
        ExactSettings(structure=structure),
        torch.Generator().manual_seed(0),
    )
    copy = result.student
    assert copy is not None, result.report.reason
    began = time.perf_counter()
    settings = CompressSettings(max_kl=0.0, max_tokens=max_tokens)
    report = compress(copy, settings, torch.Generator().manual_seed(1)).report
    points = [
        {
            "bytes": c.bytes, "kl": c.kl.mean, "high": c.kl.high, "rank": max(c.ranks),
            "tables": len(c.ranks), "convex": c.convex, "entries": c.precision.value, "nanoseconds": c.nanoseconds,
        }
        for c in report.choices
    ]  # fmt: skip
    best = {}
    for limit in LIMITS[1:]:
        fits = [p for p in points if p["high"] <= limit]
        if fits:
            best[f"{limit:g}"] = min(fits, key=lambda p: p["bytes"])
    return {
        "case": name, "teacher": uri.replace(str(need_shared()), "shared"), "whole": points[0], "best": best, "points": points,
        "tying": report.tying, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def picture() -> None:
    rows = [
        {"case": row["case"], **point, "kl": max(point["kl"], 1e-12),
         "share": point["bytes"] / row["whole"]["bytes"]}
        for row in kept_rows("compression")
        for point in row["points"]
        if point["kl"] < float("inf")
    ]  # fmt: skip
    chart = (
        alt.Chart(alt.Data(values=rows), width=260, height=220)
        .mark_point(filled=True, size=45, opacity=0.8)
        .encode(
            x=alt.X(
                "kl:Q", scale=alt.Scale(type="log"), title="KL a token, nats (1e-12: rounding)"
            ),
            y=alt.Y("share:Q", scale=alt.Scale(type="log"), title="bytes, of the copy's"),
            color=alt.Color("entries:N", title="entries"),
            shape=alt.Shape("convex:N", title="convex weights"),
            tooltip=["bytes:Q", "kl:Q", "rank:Q", "tables:Q", "nanoseconds:Q"],
        )
        .facet(facet=alt.Facet("case:N", title=None), columns=2)
    )
    write_picture(alt.vconcat(chart), FOLDER, "compression")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", action="store_true", help="of kept results, and no run")
    if parser.parse_args().picture:
        picture()
        return
    rows = []
    for name, case in cases().items():
        rows.append(run(name, *case))
        shown = {limit: (p["bytes"], p["rank"]) for limit, p in rows[-1]["best"].items()}
        print(name, rows[-1]["whole"]["bytes"], shown, rows[-1]["tying"], flush=True)
        save("compression.copies", {"runs": rows})
    picture()


if __name__ == "__main__":
    main()
