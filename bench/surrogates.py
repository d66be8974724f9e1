"""Hidden Markov surrogates of a real model: whole laws against sampled tokens.

    python bench/surrogates.py [stories260k|charrnn-darwin] --part ours em-clusters em-laws em-random
        [--seed 0 1 2] [--states 256] [--tokens 12500 25000 50000 100000]
    python bench/surrogates.py --picture

Every row: KL(teacher || student), nats a token, along 500 fresh strings of 128 tokens that no learner
saw, with a 95% interval over strings; tokens spent; seconds of the start and of fitting, the teacher's
own apart (every part asks the same text). Each part of a seed reads the same N tokens of text, 10% of
them held out for stopping, and fits S hidden states, one table for all positions:

    ours         whole laws: N next-token queries, from clusters that emit mean laws
    em-clusters  the published recipe: clusters that emit counted tokens (latent variable distillation),
                 then expectation maximisation on N sampled tokens. It clusters embeddings of the
                 teacher; here it is given ours, which are made of the N laws
    em-laws      the same on N sampled tokens, from the very start of ours
    em-random    N sampled tokens alone, from rows drawn uniformly from the simplex

Expectation maximisation ends where the held-out likelihood has not risen for 20 iterations, and its best
iterate is kept. An iteration goes over all tokens: GeLaTo does so, and the chunks of Ctrl-G's schedule
are of 100,000 strings, more than there are here. What was chosen was chosen on charrnn-darwin
(docs/hidden-markov.md).
"""

import argparse
import math
import time
from pathlib import Path

import altair as alt
import torch
from results import FOLDER
from sampled import Rows, kept_rows
from text_students import uri_of

from myna.app.picture import write_picture
from myna.learn.baum_welch import EmSettings, HmmParameters, fit_hmm, random_start
from myna.learn.evidence import Evidence
from myna.learn.report import Structure
from myna.learn.surrogate import SurrogateSettings, divergence, fit_laws
from myna.learn.surrogate_start import Emissions, surrogate_start
from myna.logits.text_laws import TextLaws, text_laws
from myna.spec import Spec
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

LENGTH, FRESH, HELD_OUT = 128, 500, 0.1
PSEUDO = 0.01  # expectation maximisation's, in every cell
PARTS = ["ours", "em-clusters", "em-laws", "em-random"]


def cut(data: TextLaws, strings: slice) -> TextLaws:
    return TextLaws(*(part[strings] for part in data))


def evidence(data: TextLaws) -> Evidence:
    lengths = (data.tokens >= 0).sum(1)
    return Evidence(
        data.tokens, lengths, torch.zeros_like(lengths), torch.ones(len(lengths)).double()
    )


def ours(data: TextLaws, held: TextLaws, start: HmmParameters, states: int, seed: int):
    settings = SurrogateSettings(states=states)
    parameters, climb = fit_laws(data, held, start, settings, torch.Generator().manual_seed(seed))
    return parameters, {"kept": climb.kept, "rounds": settings.epochs, "trace": climb.held_out_kl}


def em(data: TextLaws, held: TextLaws, start: HmmParameters, most: int):
    settings = EmSettings(
        tolerance_nats=0.0, max_iterations=most, validate_every=2, patience=10,
        transition_pseudo=PSEUDO, emission_pseudo=PSEUDO,
    )  # fmt: skip
    parameters, report = fit_hmm(evidence(data), start, settings, evidence(held))
    trace = [point.validation for point in report.trace if point.validation is not None]
    stop = {"stop": report.stop.value, "kept": report.kept, "rounds": report.iterations}
    return parameters, {**stop, "trace": trace}


def fitted(
    part: str, data: TextLaws, held: TextLaws, spec: Spec, chosen: argparse.Namespace, seed: int
) -> tuple[HmmParameters, dict]:
    """One student, with the seconds that it took from the laws or tokens at hand."""
    began, busy = time.perf_counter(), time.process_time()
    generator = torch.Generator().manual_seed(seed)
    if part == "em-random":
        start = random_start(spec, chosen.states, Structure.STATIONARY, generator)
    else:
        emissions = Emissions.TOKENS if part == "em-clusters" else Emissions.LAWS
        start = surrogate_start(data, chosen.states, emissions, generator)
    start_seconds = time.process_time() - busy
    if part == "ours":
        parameters, told = ours(data, held, start, chosen.states, seed)
    else:
        parameters, told = em(data, held, start, chosen.most)
    return parameters, {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - busy,
        "start_processor_seconds": start_seconds,
        **told,
    }


def distance(parameters: HmmParameters, fresh: TextLaws) -> dict:
    reached = divergence(parameters, fresh)
    return {"kl": reached.mean, "half_width": reached.half_width}


def text(uri: str, strings: int, seed: int, keep: Path | None) -> tuple[TextLaws, dict]:
    """Text with its laws, and what it cost; asked once where it is kept."""
    file = keep and keep / f"{Path(uri).name.split('?')[0]}-{strings}-{seed}.pt"
    if file and file.exists():
        data, cost = torch.load(file)
        return TextLaws(*data), cost
    began = time.process_time()
    ledger = Ledger(open_teacher(uri), seed=seed)
    data = text_laws(ledger.laws("learn"), strings * LENGTH, LENGTH)
    spent = ledger.total()
    cost = {
        "asking_processor_seconds": time.process_time() - began,
        "asked_laws": spent.next_token_queries,
        "asked_tokens": spent.tokens_received,
    }
    if file:
        torch.save((tuple(data), cost), file)
    return data, cost


def run(chosen: argparse.Namespace) -> None:
    """All parts and sizes of each seed; the smaller texts are the beginnings of the largest."""
    uri = uri_of(chosen.name)
    spec = open_teacher(uri).spec
    fresh, _ = text(uri, FRESH, 999, chosen.keep)
    for seed in chosen.seed:
        data, cost = text(uri, max(chosen.tokens) // LENGTH, seed, chosen.keep)
        kept = {
            part: Rows(
                f"surrogates.{chosen.name}-{part}-{chosen.states}-{seed}-{max(chosen.tokens)}",
                "one thread, a busy machine: wall seconds are too long",
            )
            for part in chosen.part
        }
        for tokens in chosen.tokens:
            strings = tokens // LENGTH
            held = math.ceil(HELD_OUT * strings)
            parts = cut(data, slice(held, strings)), cut(data, slice(0, held))
            row = {"model": chosen.name, "states": chosen.states, "seed": seed}
            row["tokens"] = strings * LENGTH
            for part in chosen.part:
                parameters, told = fitted(part, *parts, spec, chosen, seed)
                kept[part].add({**row, "part": part, **distance(parameters, fresh), **told, **cost})


def picture() -> None:
    """KL against tokens and against processor seconds: every seed a mark, with its interval."""
    rows = [row for row in kept_rows("surrogates") if row["model"] == "stories260k"]
    for row in rows:
        row.pop("trace")
        row["low"], row["high"] = row["kl"] - row["half_width"], row["kl"] + row["half_width"]
    log = alt.Scale(type="log", nice=False, padding=12)
    charts = []
    for field, title in (
        ("tokens", "tokens sampled, or laws asked"),
        ("processor_seconds", "processor seconds of start and fit"),
    ):
        base = alt.Chart(alt.Data(values=rows), width=300, height=260).encode(
            x=alt.X(f"{field}:Q", scale=log, title=title),
            color=alt.Color("part:N", title=None, sort=PARTS),
        )
        y = alt.Y("kl:Q", scale=log, title="KL a token, nats")
        marks = base.mark_point(filled=True, size=45, opacity=0.8).encode(
            y=y, tooltip=["seed:Q", "tokens:Q", "kl:Q", "half_width:Q", "processor_seconds:Q"]
        )
        charts.append(base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q") + marks)
    write_picture(alt.vconcat(alt.hconcat(*charts)), FOLDER, "surrogates")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    names = ["stories260k", "charrnn-darwin"]
    parser.add_argument("name", choices=names, nargs="?", default=names[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=[])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    parser.add_argument("--most", type=int, default=500, help="iterations of EM at most")
    parser.add_argument("--keep", type=Path, help="folder where text is kept between runs")
    parser.add_argument("--picture", action="store_true")
    chosen = parser.parse_args()
    if not (chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    if chosen.part:
        run(chosen)
    if chosen.picture:
        picture()


if __name__ == "__main__":
    main()
