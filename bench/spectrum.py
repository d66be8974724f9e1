"""Histories x futures of stories260k: speed beside whole strings, and spectra.

    python bench/spectrum.py speed [SIZE ...]     N = 250, 500, 1000 unless said
    python bench/spectrum.py spectra [SIZE]       1000 unless said, with all controls
    python bench/spectrum.py centred [SIZE]       the same matrices, double-centred, no controls

Histories and futures are pieces of 32 tokens of shared/data/tinystories, seed 0. `speed`
times, in one run and in turns,
    peak     the best of 30 products of 1024 x 1024 float32 matrices
    naive    transformers on whole strings (beginning, history, future) in batches of the best
             of 16, 64, 256; logits of the future's places, log-softmax, gathered and summed
    ours     log P(f | h) by `crossed`
on one thread by processor time, which other processes on the machine lengthen less than the
clock, and on all threads by the clock; then N x N by ours on all threads, by both. Operations are those of the products needed: all matrices of the network for the 31
tokens of a future that are read, and attention to what each sees.
"""

import json
import os
import statistics
import sys
import time

import torch
from results import FOLDER, need_shared, save

from myna.app import block_spectrum
from myna.app.picture import write_picture
from myna.logits.strings import from_texts
from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.encode import encoded, read_texts
from myna.teachers.prefixes import Prefixes
from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

TOKENS, ROUNDS, NAIVE = 32, 5, (16, 64, 256)
GOAL = 10_000


def strings(teacher, uri: str, count: int) -> tuple[Prefixes, Prefixes]:
    path = str(need_shared() / "tinystories" / "tinystories_sample.txt")
    texts = encoded(uri, teacher.spec, read_texts([path]))
    random = torch.Generator().manual_seed(0)
    return from_texts(texts, count, count, TOKENS, random, teacher.spec.stop)


def flops_a_pair(config) -> float:
    """Of the products for one future's tokens 1 .. 31 after a history and the beginning."""
    heads, past = config.num_attention_heads * config.head_dim, TOKENS + 1
    keys = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * heads + 2 * keys + 3 * config.intermediate_size)
    fixed = config.num_hidden_layers * layer + config.hidden_size * config.vocab_size
    seen = sum(past + t for t in range(1, TOKENS))
    return 2 * ((TOKENS - 1) * fixed + config.num_hidden_layers * 2 * heads * seen)


def peak(clock) -> float:
    """FLOP/s, the best of 30 products."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 1e9
    for _ in range(30):
        began = clock()
        a @ b
        best = min(best, clock() - began)
    return 2 * 1024**3 / best


def naive(model, begin: int, history: torch.Tensor, futures: torch.Tensor) -> torch.Tensor:
    """Log P(f | h) of a batch of whole strings."""
    first = torch.full((len(futures), 1), begin)
    whole = torch.cat([first, history.expand(len(futures), -1), futures], 1)
    with torch.inference_mode():
        laws = model(whole).logits[:, len(history) : -1].log_softmax(-1)
        return laws.gather(2, futures[:, :, None])[:, :, 0].sum(1)


def timed(run, clock) -> tuple[float, torch.Tensor]:
    began = clock()
    answer = run()
    return clock() - began, answer


def ratios(teacher, histories: Prefixes, futures: Prefixes, threads: int, clock) -> dict:
    """Pairs per second, in turns; medians of rounds."""
    model, begin = teacher._net.model, teacher._begin
    some = futures.take(torch.arange(min(256, len(futures.lengths))))
    rows: dict[str, list[float]] = {}
    flops = flops_a_pair(model.config)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for turn in range(ROUNDS + 1):
        history = histories.take(torch.arange(turn, turn + 1))
        eight = histories.take(torch.arange(8 * turn, 8 * turn + 8))
        found = {"peak": peak(clock)}
        for batch in NAIVE:
            part = some.tokens[:batch]
            taken, theirs = timed(
                lambda part=part, history=history: naive(model, begin, history.tokens[0], part),
                clock,
            )
            found[f"naive {batch}"] = batch / taken
        taken, _ = timed(lambda eight=eight: crossed(teacher, eight, some).log_probs, clock)
        found["ours"] = 8 * len(some.lengths) / taken
        ours = crossed(teacher, history, some).log_probs[0, : len(theirs)]
        found["error"] = float((ours - theirs).abs().max())
        if turn:  # the first round warms up
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    torch.set_num_threads(before)
    best = max(statistics.median(rows[f"naive {batch}"]) for batch in NAIVE)
    ours, top = statistics.median(rows["ours"]), statistics.median(rows["peak"])
    return {
        "threads": threads,
        "pairs_a_second": ours,
        "naive_pairs_a_second": best,
        "times_naive": ours / best,
        "flops_a_pair": flops,
        "peak_flops": top,
        "share_of_peak": ours * flops / top,
        "largest_difference_nats": max(rows["error"]),
        "load_average": os.getloadavg()[0],
        "rounds": rows,
    }


def growth(teacher, histories: Prefixes, futures: Prefixes, sizes: list[int]) -> dict:
    rows = []
    for size in sizes:
        part = torch.arange(size)
        columns = futures.take(part)
        began, used = time.perf_counter(), time.process_time()
        crossed(teacher, histories.take(part), columns)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        tree = FutureTree.of(columns)
        distinct = int((tree.pairs[:, 1] > 0).sum())  # a token each, after the history's own
        rows.append(
            {
                "n": size,
                "seconds": wall,
                "processor_seconds": cpu,
                "pairs_a_second": size**2 / wall,
                "pairs_a_processor_second": size**2 / cpu,
                "tokens_read": size * size * (TOKENS - 1),
                "tokens_that_a_tree_would_share": size * (size * (TOKENS - 1) - distinct),
            }
        )
        print(rows[-1])
    last = rows[-1]
    factor = (GOAL / last["n"]) ** 2
    return {
        "threads": torch.get_num_threads(),
        "sizes": rows,
        "computed_for": GOAL,
        "computed_seconds": last["seconds"] * factor,
        "computed_seconds_if_alone": last["processor_seconds"] * factor / 2,
    }


def main() -> None:
    uri = f"hf:{need_shared() / 'stories260k'}"
    teacher = open_teacher(uri)
    sizes = [int(word) for word in sys.argv[2:]]
    if sys.argv[1] == "speed":
        sizes = sizes or [250, 500, 1000]
        histories, futures = strings(teacher, uri, max(sizes))
        given = (teacher, histories, futures)
        record = {
            "seed": 0,
            "one_thread_by_processor_time": ratios(*given, 1, time.process_time),
            "all_threads_by_the_clock": ratios(*given, torch.get_num_threads(), time.perf_counter),
        }
        for shown in list(record.values())[1:]:
            print(json.dumps({k: v for k, v in shown.items() if k != "rounds"}, indent=1))
        record["growth"] = growth(teacher, histories, futures, sizes)
        save("spectrum.speed", record)
        return
    spectra(teacher, uri, sizes[0] if sizes else 1000, sys.argv[1] == "centred")


def spectra(teacher: TransformerTeacher, uri: str, size: int, centred: bool) -> None:
    """As `myna spectrum` has them; the picture is of those with controls."""
    text = str(need_shared() / "tinystories" / "tinystories_sample.txt")
    request = block_spectrum.Request(
        uri, size, size, TOKENS, [text], "last", None, centred, not centred, None, 1024, 0
    )
    began, used = time.perf_counter(), time.process_time()
    record = block_spectrum.block_spectrum(teacher, request, teacher)
    record |= {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - used,
    }
    record["teacher"] = "stories260k"
    if not centred:
        write_picture(block_spectrum.page(record), FOLDER, "spectrum")
        (FOLDER / "spectrum.html").unlink()
    block_spectrum.show(record, None)
    for one in record["spectra"].values():
        for spectrum in one["spectra"]:  # every rank is in the picture
            spectrum["values"] = [float(f"{v:.5g}") for v in spectrum["values"][::10]]
            spectrum["energy"] = [float(f"{v:.7g}") for v in spectrum["energy"][::10]]
    for angle in record.get("angles", []):
        angle["cosines"] = [float(f"{v:.4g}") for v in angle["cosines"]]
    save("spectrum.centred" if centred else "spectrum.spectra", record)


if __name__ == "__main__":
    main()
