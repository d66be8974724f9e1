"""Laws per second of transformers: `hf:` beside transformers called as people call it.

    python bench/transformers_speed.py

The prefixes are those that the exact learner asks, batch by batch, of a restricted
stories260k (16 tokens, horizon 12) and of the bundled transformer (horizon 12), until its
budget ends. The same batches are then answered by
    one      one forward pass a prefix (a random 300 of them)
    padded   padded batches without sharing, sorted by length, logits read at the last token
             only; the fastest of batch sizes 16, 64, 256
    myna     `TransformerTeacher.laws`, opened anew for each repetition
The three take turns; the median of five rounds counts. One thread, float32.
"""

import random
import statistics
import time
from pathlib import Path

import altair as alt
import torch
from results import FOLDER, save
from story_opening import TOKENS, whole

from myna.app.picture import write_picture
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.restricted import restrict
from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

ROUNDS, QUERIES, ONE_BY_ONE, PADDED = 5, 6000, 300, (16, 64, 256)


class Recorder:
    """A teacher that remembers the batches it was asked."""

    def __init__(self, teacher: TransformerTeacher):
        self._teacher = teacher
        self.spec, self.k = teacher.spec, teacher.k
        self.top_laws, self.complete = teacher.top_laws, teacher.complete
        self.batches: list[Prefixes] = []

    def laws(self, prefixes: Prefixes) -> torch.Tensor:
        self.batches.append(prefixes)
        return self._teacher.laws(prefixes)


def asked(teacher: TransformerTeacher, only: list[str] | None) -> list[Prefixes]:
    """What the exact learner asks within its budget."""
    recorder = Recorder(teacher)
    source = recorder if only is None else restrict(recorder, only)
    settings = ExactSettings(tolerance=1e-4, mismatch=1e-3, max_rank=64)
    ledger = Ledger(source, Budget(queries=QUERIES))
    learn_exact(ledger, settings, torch.Generator().manual_seed(0))
    return recorder.batches


def one_by_one(model, begin: int, rows: list[tuple[int, ...]]) -> torch.Tensor:
    laws = []
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([[begin, *row]])).logits[0, -1]
            laws.append(logits.double().log_softmax(0))
    return torch.stack(laws)


def padded(model, begin: int, rows: list[tuple[int, ...]], size: int) -> torch.Tensor:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    laws = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            width = 1 + max(len(rows[i]) for i in part)
            tokens = torch.zeros((len(part), width), dtype=torch.int64)
            mask = torch.zeros_like(tokens)
            for at, i in enumerate(part):  # padded on the left, so that the last token is last
                tokens[at, width - 1 - len(rows[i]) :] = torch.tensor([begin, *rows[i]])
                mask[at, width - 1 - len(rows[i]) :] = 1
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(
                input_ids=tokens, attention_mask=mask, position_ids=places, logits_to_keep=1
            ).logits[:, -1]
            for i, law in zip(part, logits.double().log_softmax(1), strict=True):
                laws[i] = law
    return torch.stack(laws)


def timed(run) -> tuple[float, torch.Tensor]:
    began = time.perf_counter()
    answer = run()
    return time.perf_counter() - began, answer


def measure(name: str, uri: str, only: list[str] | None) -> dict:
    teacher = open_teacher(uri)
    batches = asked(teacher, only)
    model, begin, spec = teacher._net.model, teacher._begin, teacher.spec
    rows = [row for batch in batches for row in batch.rows()]
    some = random.Random(0).sample(rows, min(ONE_BY_ONE, len(rows)))
    some_of = {row: i for i, row in enumerate(some)}
    seconds: dict[str, list[float]] = {}
    answers = {}

    def ours() -> torch.Tensor:
        fresh = TransformerTeacher(model, begin, spec)
        return torch.cat([fresh.laws(batch) for batch in batches])

    for repeat in range(ROUNDS + 1):  # the first round warms up
        found = {"one": timed(lambda: one_by_one(model, begin, some)), "myna": timed(ours)}
        for size in PADDED:
            found[f"padded {size}"] = timed(
                lambda size=size: torch.cat(
                    [padded(model, begin, batch.rows(), size) for batch in batches]
                )
            )
        for road, (taken, answer) in found.items():
            answers[road] = answer
            if repeat:
                seconds.setdefault(road, []).append(taken)
    counts = {road: len(some) if road == "one" else len(rows) for road in seconds}
    rates = {road: counts[road] / statistics.median(times) for road, times in seconds.items()}
    best = max(rate for road, rate in rates.items() if road != "myna")
    truth = answers["one"]
    picked = [next(i for i, row in enumerate(rows) if row == want) for want in some_of]
    errors = {
        road: float((answer[picked] - truth).abs().max())
        for road, answer in answers.items()
        if road != "one"
    }
    return {
        "model": name,
        "prefixes": len(rows),
        "distinct": len(set(rows)),
        "mean_length": statistics.mean(map(len, rows)),
        "batches": len(batches),
        "laws_per_second": rates,
        "myna_over_best_other": rates["myna"] / best,
        "largest_difference_from_one_nats": errors,
    }


def picture(rows: list[dict]) -> None:
    values = [
        {"model": row["model"], "road": road, "rate": rate}
        for row in rows
        for road, rate in row["laws_per_second"].items()
    ]
    chart = (
        alt.Chart(alt.Data(values=values), width=420, height=160)
        .mark_bar()
        .encode(
            x=alt.X("rate:Q", title="laws per second, one thread"),
            y=alt.Y("road:N", title=None, sort="-x"),
            tooltip=["road:N", "rate:Q"],
        )
        .facet(row=alt.Row("model:N", title=None))
    )
    write_picture(alt.vconcat(chart, title="The learner's prefixes"), FOLDER, "transformers_speed")
    (Path(FOLDER) / "transformers_speed.html").unlink()


def main() -> None:
    torch.set_num_threads(1)
    only = [f"#{token}" for token in TOKENS]
    rows = []
    for name, uri, kept in (
        ("stories260k", whole(), only),
        ("bundled", "hf:bundled?horizon=12&device=cpu", None),
    ):
        rows.append(measure(name, uri, kept))
        print(rows[-1], flush=True)
        save("transformers_speed", {"runs": rows})
    picture(rows)


if __name__ == "__main__":
    main()
