"""What a prompt would say from what other prompts say: KL over 15 generated tokens.

    python bench/lingen.py stories260k | charrnn-shakespeare | charrnn-darwin | bundled
        [--openings] [--nonsense] [--futures 60] [--most 2000] [--quick]

Histories, targets and futures are windows of text of their own: histories and targets of 24
tokens from different stories (with --openings their first 24), futures of 8, from anywhere.
50 targets to report and 30 others to choose on: how many columns LINGEN keeps of each place
(the k most likely tokens), and the single token's ridge; nothing is chosen on the 50. For each
target one continuation of 15 tokens is drawn from the teacher, and KL(teacher || copy) is
added up along it, over full laws. LINGEN's ridge is the one that leaves least on held-out
futures. All k are shown. Beside LINGEN:
    single token   the same fit on the law after the target alone
    last 5, 10     the law after the target's last tokens
    nearest        the history whose rows on the futures are nearest to the target's
    best of N      the single history with the least total KL (chosen on the answer itself)
"""

import argparse
import itertools
import math
import time

import altair as alt
import torch
from results import FOLDER, need_shared, save

from myna.app.picture import write_picture
from myna.logits.centred import centred
from myna.logits.lingen import RIDGES, RowGram, combine, shuffled, stacked_prefixes
from myna.logits.matrix import LogitMatrix, logit_matrix
from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.encode import encoded
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

LENGTH, FUTURE, TOKENS = 24, 8, 15
SIZES = (100, 300, 600, 1200, 2000)
TUNING, REPORTED = 30, 50
TOGETHER = 8  # futures whose block is held at once
KEPT = (10, 25, 50, 100, 200)  # columns of a place that are tried, and all of them


def windows(
    stories: list[tuple[int, ...]], count: int, length: int, seed: int, *, opening: bool = False
) -> list[list[int]]:
    """One window a story, of stories drawn without repeats."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in torch.randperm(len(stories), generator=generator).tolist():
        if len(stories[i]) >= length and len(rows) < count:
            most = len(stories[i]) - length + 1
            start = 0 if opening else int(torch.randint(most, (1,), generator=generator))
            rows.append(list(stories[i][start : start + length]))
    assert len(rows) == count, f"{len(rows)} windows of {count}"
    return rows


def corpus(name: str) -> tuple[str, list[tuple[int, ...]]]:
    """The teacher's URI, and texts as tokens."""
    if name == "bundled":
        uri = "hf:bundled?horizon=64&device=cpu&stop=none"
        teacher = open_teacher(uri)
        drawn = teacher.complete(Prefixes.of([[]]), 4000, stream=Stream("texts", 0), max_tokens=40)
        return uri, [tuple(row) for row in drawn.tokens[0].tolist()]
    shared = need_shared()
    if name == "stories260k":
        uri = f"hf:{shared / name}?horizon=128&device=cpu&stop=none"
        text = (shared / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
        spec = open_teacher(uri).spec
        parts = [part.strip() for part in text.split("<|endoftext|>")]
        return uri, [tuple(row) for row in encoded(uri, spec, [part for part in parts if part])]
    uri = f"rnn:{shared / name}?horizon=128"
    teacher = open_teacher(uri)
    drawn = teacher.complete(Prefixes.of([[]]), 4000, stream=Stream("texts", 0), max_tokens=64)
    return uri, [tuple(row) for row in drawn.tokens[0].tolist()]


def along(view, histories: Prefixes, row: list[int]) -> torch.Tensor:
    """(history, time, token): laws before each token of a continuation."""
    future = Prefixes.of([row])
    pairs = FutureTree.of(future).pairs
    return crossed(view, histories, future, pairs).laws


def kl(true: torch.Tensor, copy: torch.Tensor) -> float:
    return float((true.exp() * (true - copy)).sum())


def grams_of(matrix: LogitMatrix, futures: range) -> dict[int, RowGram]:
    """Inner products of rows over some futures: of the k most likely tokens, for each k."""
    width = matrix.kept
    kept = [k for k in KEPT if k < width] + [width]
    rows = len(matrix.histories.lengths)
    total = {k: RowGram(torch.zeros((rows, rows), dtype=torch.float64), 0) for k in kept}
    for first in range(futures.start, futures.stop, TOGETHER):
        part = range(first, min(first + TOGETHER, futures.stop))
        logits = matrix.block(range(rows), part).logits
        places = logits.unflatten(1, (-1, width))
        for k in kept:
            columns = places[:, :, :k].flatten(1)
            total[k] += RowGram(columns @ columns.mT, columns.shape[1])
    return total


def measure(view, rows: Prefixes, n: int, sizes, grams, single, shown: range) -> dict:
    """Total KL of every method on the shown targets."""
    histories, found = rows.take(torch.arange(n)), {}
    fits = {}
    targets = torch.tensor([n + i for i in shown])
    for size, k in itertools.product(sizes, grams[0]):
        chosen = torch.arange(size)
        both = combine(grams[0][k], grams[1][k], chosen, targets, RIDGES)
        fits[f"lingen top {k} {size}"] = [(v, size) for v in both.weights.mT]
    for ridge in RIDGES:
        one = combine(single, single, torch.arange(sizes[-1]), targets, (ridge,)).weights
        fits[f"single token {ridge:g}"] = [(v, sizes[-1]) for v in one.mT]
    every = max(grams[0])
    whole = (grams[0][every] + grams[1][every]).products
    for at, target in enumerate(targets.tolist()):
        prompt = list(rows.rows()[target])
        drawn = view.complete(Prefixes.of([prompt]), 1, max_tokens=TOKENS)
        row = drawn.tokens[0, 0].tolist()
        true = along(view, Prefixes.of([prompt]), row)[0]
        laws = along(view, histories, row)
        logits = centred(laws)
        together = torch.zeros((n, len(fits)), dtype=torch.float64)
        for column, weights in enumerate(fits.values()):
            v, size = weights[at]
            together[:size, column] = v
        copies = (together.mT @ logits.flatten(1)).unflatten(1, logits.shape[1:]).log_softmax(2)
        for name, copy in zip(fits, copies, strict=True):
            found.setdefault(name, []).append(kl(true, copy))
        for last in (5, 10):
            copy = along(view, Prefixes.of([prompt[-last:]]), row)[0]
            found.setdefault(f"last {last}", []).append(kl(true, copy))
        each = (true.exp() * (true - laws)).sum((1, 2))
        for size in sizes:
            distance = whole.diagonal()[:size] - 2 * whole[:size, target]
            found.setdefault(f"nearest of {size}", []).append(float(each[int(distance.argmin())]))
            found.setdefault(f"best of {size}", []).append(float(each[:size].min()))
    return found


def summary(values: list[float]) -> dict:
    data = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(data.std()) / math.sqrt(len(data))
    mean = float(data.mean())
    return {"mean": mean, "interval": [mean - half, mean + half], "median": float(data.median())}


def least(found: dict[str, list[float]], start: str) -> str:
    """Which of the methods that start so is best in all."""
    sums = {name: sum(values) for name, values in found.items() if name.startswith(start)}
    return min(sums, key=sums.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser()
    names = ("stories260k", "charrnn-shakespeare", "charrnn-darwin", "bundled")
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nonsense", action="store_true", help="histories shuffled")
    parser.add_argument("--openings", action="store_true", help="the first tokens of stories")
    parser.add_argument("--futures", type=int, default=60)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="histories")
    chosen = parser.parse_args()
    sizes = SIZES[:2] if chosen.quick else tuple(s for s in SIZES if s <= chosen.most)
    uri, stories = corpus(chosen.name)
    sizes = tuple(s for s in sizes if s + 100 + TUNING + REPORTED <= len(stories))
    n, began = sizes[-1], time.perf_counter()
    picked = windows(stories, n + TUNING + REPORTED, LENGTH, 0, opening=chosen.openings)
    past = Prefixes.of(picked[:n])
    if chosen.nonsense:
        past = shuffled(past, torch.Generator().manual_seed(1))
    futures = Prefixes.of(windows(stories, chosen.futures, FUTURE, 1))
    rows = stacked_prefixes(past, Prefixes.of(picked[n:]))
    ledger = Ledger(open_teacher(uri))
    view = ledger.laws("lingen")
    # one token fewer than all: then columns stand by likelihood, and the first k are the top k
    matrix = logit_matrix(view, rows, futures, k=view.spec.num_tokens - 1)
    split = round(0.8 * len(futures.lengths))
    grams = grams_of(matrix, range(split)), grams_of(matrix, range(split, len(futures.lengths)))
    first = centred(view.laws(rows))
    single = RowGram(first @ first.mT, first.shape[1])
    fitted = time.perf_counter() - began
    print(f"fitted in {fitted:.0f} s", flush=True)
    tuning = measure(view, rows, n, (n,), grams, single, range(TUNING))
    best = least(tuning, "single token")
    columns = least(tuning, "lingen").removesuffix(f" {n}")
    reported = measure(view, rows, n, sizes, grams, single, range(TUNING, TUNING + REPORTED))
    kept = {
        ("single token" if name == best else name): summary(values)
        for name, values in reported.items()
        if not name.startswith("single") or name == best
    }
    kept |= {
        name.replace(columns, "LINGEN"): v for name, v in kept.items() if columns + " " in name
    }
    for name, value in kept.items():
        print(name, value, flush=True)
    record = {
        "model": chosen.name,
        "nonsense_histories": chosen.nonsense,
        "history_tokens": LENGTH,
        "futures": chosen.futures,
        "future_tokens": FUTURE,
        "generated_tokens": TOKENS,
        "targets": REPORTED,
        "tuning_targets": TUNING,
        "openings": chosen.openings,
        "chosen_on_the_tuning_targets": {"single token": best, "columns": columns},
        "total_kl": kept,
        "queries": ledger.total().next_token_queries,
        "seconds_to_fit": fitted,
        "seconds": time.perf_counter() - began,
    }
    mark = f"lingen.{chosen.name}{'-openings' if chosen.openings else ''}"
    mark += "-nonsense" if chosen.nonsense else ""
    save(mark + ("-quick" if chosen.quick else ""), record)
    if not chosen.quick:
        picture(kept, mark)


def picture(kept: dict, mark: str) -> None:
    rows = []
    sizes = [int(name.split()[-1]) for name in kept if name.startswith("LINGEN")]
    for name, value in kept.items():
        words = name.rsplit(" ", 1)
        sized = words[-1].isdigit() and not name.startswith("last")
        kind = words[0].removesuffix(" of") if sized else name
        if kind.startswith("lingen"):
            continue  # every k is in the JSON; the chosen one is drawn as LINGEN
        for size in [int(words[-1])] if sized else sizes:
            low, high = value["interval"]
            rows.append(
                {"method": kind, "histories": size, "kl": value["mean"],
                 "low": max(low, 1e-3), "high": high}
            )  # fmt: skip
    base = alt.Chart(alt.Data(values=rows), width=520, height=320).encode(
        x=alt.X("histories:Q", scale=alt.Scale(type="log", nice=False)),
        color=alt.Color("method:N", scale=alt.Scale(scheme="tableau10"), sort=None),
    )
    y = alt.Y("kl:Q", scale=alt.Scale(type="log"), title="KL over 15 tokens, nats (mean, 95%)")
    chart = base.mark_line(point=True).encode(y=y) + base.mark_rule().encode(y="low:Q", y2="high:Q")
    write_picture(alt.vconcat(chart, title=mark), FOLDER, mark)


if __name__ == "__main__":
    main()
