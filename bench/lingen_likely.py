"""LINGEN's regression beside likelihood, on common futures and on the targets' own.

    python bench/lingen_likely.py [stories260k | charrnn-shakespeare | charrnn-darwin] [--own 40]
        [--histories 1200] [--futures 100] [--targets 50] [--picture]

The prompts, futures, targets and judged continuations of `bench/lingen.py`: windows of text of
their own, 50 targets, one continuation of 15 tokens each, total KL(teacher || copy) along it.
Four combinations of the same histories, each from the same start:
    squares            least squares of all logits on the common futures (LINGEN)
    likelihood         the same futures
    squares, own       also the target's own continuations, a draw a place passed
    likelihood, own    both
The continuations fitted are of another stream than the one judged. The weight of a common
place (.2 draws) was looked at on four of the other 30 targets; nothing is chosen on the 50.
"""

import argparse
import json
import time

import altair as alt
import torch
from lingen import (
    FUTURE,
    LENGTH,
    REPORTED,
    SIZES,
    TOKENS,
    TUNING,
    along,
    corpus,
    kl,
    summary,
    windows,
)
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.logits.likeliest import Common, Places, common_rows, fit_weights, places_of, read_rows
from myna.teachers.ledger import LawsView, Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def prompts(
    name: str, histories: int, targets: int, futures: int
) -> tuple[str, Prefixes, Prefixes, Prefixes]:
    """The teacher's URI, then histories, targets and futures: the first of bench/lingen.py's."""
    uri, stories = corpus(name)
    most = max(s for s in SIZES if s + 100 + TUNING + REPORTED <= len(stories))
    picked = windows(stories, most + TUNING + REPORTED, LENGTH, 0)
    aimed = Prefixes.of(picked[most + TUNING :][:targets])
    after = Prefixes.of(windows(stories, futures, FUTURE, 1))
    return uri, Prefixes.of(picked[:histories]), aimed, after


def squares(places: Places, ridge: float) -> torch.Tensor:
    """Weighted least squares of all logits, the ridge that the common futures chose."""
    aimed = (places.laws - places.laws.mean(1, keepdim=True)) @ places.directions.mT
    gram = places.gram.clone()
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    heavy = (aimed * places.weights[:, None]).flatten()
    return torch.linalg.solve(gram, places.coordinates.flatten(1) @ heavy)


def measured(judged: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor) -> float:
    """Total KL along one continuation."""
    logits, true = judged
    return kl(true, torch.einsum("h,hto->to", weights, logits).log_softmax(1))


def one_target(
    fitting: LawsView, judging: LawsView, targets: Prefixes, target: int, histories: Prefixes,
    common: Common, own: int,
) -> dict[str, float]:  # fmt: skip
    """Total KL of all four ways along a continuation that none of them saw."""
    this = targets.take(torch.tensor([target]))
    judged = judging.complete(this, 1, max_tokens=TOKENS).tokens[0, 0]
    row = Prefixes.of([judged.tolist()])
    read = read_rows(judging, histories, row, common.rows.directions)
    logits = read.coordinates @ read.directions
    one = logits, along(judging, this, judged.tolist())[0]
    drawn = fitting.complete(this, own, max_tokens=TOKENS).tokens[0]
    start = common.start.weights[:, target]
    told = {}
    for name, futures in (("", None), (", own", Prefixes.of(drawn.tolist()))):
        places = places_of(fitting, targets, target, histories, common, futures)
        plain = start if futures is None else squares(places, common.start.ridge)
        fit = fit_weights(places, start)
        for kind, weights in (("squares", plain), ("likelihood", fit.weights)):
            told[kind + name] = measured(one, weights)
    return told


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    names = ("stories260k", "charrnn-shakespeare", "charrnn-darwin")
    parser.add_argument("name", nargs="?", choices=names, default=names[0])
    parser.add_argument("--own", type=int, default=40, help="continuations a target draws")
    parser.add_argument("--histories", type=int, default=1200)
    parser.add_argument("--futures", type=int, default=100)
    parser.add_argument("--targets", type=int, default=REPORTED)
    parser.add_argument("--picture", action="store_true", help="of the kept result, nothing run")
    chosen = parser.parse_args()
    mark = f"lingen_likely.{chosen.name}"
    if chosen.picture:
        return picture(mark)
    uri, histories, targets, futures = prompts(
        chosen.name, chosen.histories, chosen.targets, chosen.futures
    )
    ledger = Ledger(open_teacher(uri))
    fitting, judging = ledger.laws("fit"), ledger.laws("lingen")
    began = time.perf_counter()
    common = common_rows(fitting, targets, histories, futures)
    print(f"common futures in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, list[float]] = {}
    for t in range(len(targets.lengths)):
        told = one_target(fitting, judging, targets, t, histories, common, chosen.own)
        for name, lost in told.items():
            found.setdefault(name, []).append(lost)
        print(t, {name: round(v[-1], 4) for name, v in found.items()}, flush=True)
        kept = {name: summary(values) if t else {} for name, values in found.items()}
        record = {
            "model": chosen.name,
            "histories": chosen.histories,
            "history_tokens": LENGTH,
            "futures": chosen.futures,
            "own_continuations": chosen.own,
            "generated_tokens": TOKENS,
            "targets": t + 1,
            "ridge": common.start.ridge,
            "total_kl": kept,
            "each": found,
            "directions": len(common.rows.directions),
            "queries": {n: a.next_token_queries for n, a in ledger.accounts().items()},
            "seconds": time.perf_counter() - began,
        }
        save(mark, record)
    picture(mark)


def picture(name: str) -> None:
    """Every target, method by method."""
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    rows = [
        {"method": method, "target": t, "kl": max(value, 1e-4)}
        for method, values in kept["each"].items()
        for t, value in enumerate(values)
    ]
    methods = list(kept["each"])
    base = alt.Chart(alt.Data(values=rows), width=420, height=200).encode(
        y=alt.Y("method:N", sort=methods, title=None)
    )
    x = alt.X("kl:Q", scale=alt.Scale(type="log"), title="KL over 15 tokens, nats: every target")
    points = base.mark_point(filled=True, size=30, opacity=0.5).encode(x=x, tooltip=["target:Q"])
    means = base.mark_tick(thickness=3, size=24, color="black").encode(x="mean(kl):Q")
    write_picture(alt.vconcat(points + means, title=name), FOLDER, name)


if __name__ == "__main__":
    main()
