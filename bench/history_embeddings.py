"""Does the extended logit matrix know which prompts belong together?

    python bench/history_embeddings.py [--stories 500] [--futures 60]

Two windows of 24 tokens are cut from each of many TinyStories, 8 or more tokens apart; for each
window the nearest others by cosine are looked up, and the figure is how often the other window of
its story is the first, or among the first ten. Embeddings are those of stories260k's logit rows
after whole futures of 16 tokens from other stories; dimension and power of the singular values are
those with most hits on 200 further stories. That whole futures tell stories apart, and their first
places hardly, was found in trials on those 200 too.
Beside them
the mean of the model's own input embeddings (read from its file: a baseline that a query cannot
have), counts of tokens, both less their mean, and the next-token law alone.
"""

import argparse
import json

import safetensors.torch
import torch
from lingen import corpus, windows
from results import need_shared, save

from myna.logits.centred import centred
from myna.logits.embedding import embed, retrieval
from myna.logits.lingen import row_gram
from myna.logits.matrix import logit_matrix
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

LENGTH, GAP, FUTURE, TUNING = 24, 8, 16, 200
DIMENSIONS = (5, 10, 20, 50, 100, 200)
POWERS = (1.0, 0.5, 0.0)


def pairs(stories: list[tuple[int, ...]], count: int, generator: torch.Generator) -> list:
    """Two windows a story, at random places GAP or more apart, one story after another."""
    rows = []
    for i in torch.randperm(len(stories), generator=generator).tolist():
        room = len(stories[i]) - 2 * LENGTH - GAP
        if room >= 0 and len(rows) < 2 * count:
            cuts = sorted(torch.randint(room + 1, (2,), generator=generator).tolist())
            for start in (cuts[0], cuts[1] + LENGTH + GAP):
                rows.append(list(stories[i][start : start + LENGTH]))
    assert len(rows) == 2 * count
    return rows


def found(coordinates: torch.Tensor) -> dict:
    """How often the other window of a story is first, and among the first ten."""
    groups = torch.arange(len(coordinates)) // 2
    centred_rows = coordinates - coordinates.mean(0)
    return {f"first {n}": retrieval(centred_rows, groups, n) for n in (1, 10)}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", type=int, default=500)
    parser.add_argument("--futures", type=int, default=60)
    chosen = parser.parse_args()
    uri, stories = corpus("stories260k")
    rows = pairs(stories, TUNING + chosen.stories, torch.Generator().manual_seed(0))
    futures = Prefixes.of(windows(stories, chosen.futures, FUTURE, 1))
    ledger = Ledger(open_teacher(uri))
    view, tuning = ledger.laws("embed"), 2 * TUNING
    matrix = logit_matrix(view, Prefixes.of(rows), futures, places="last")
    products = row_gram(matrix, range(len(futures.lengths))).products
    parts = {"tuning": slice(tuning), "reported": slice(tuning, None)}
    tried = {
        name: {
            f"power {power:g}, dimension {d}": found(
                embed(products[part][:, part], d, power).coordinates
            )
            for d in DIMENSIONS
            for power in POWERS
        }
        for name, part in parts.items()
    }
    best = max(tried["tuning"], key=lambda name: tried["tuning"][name]["first 1"])
    folder = need_shared() / "stories260k"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"].double()
    tokens = torch.tensor(rows)[tuning:]
    counts = torch.nn.functional.one_hot(tokens, view.spec.num_tokens).sum(1).double()
    result = {
        f"logit rows, {best}": tried["reported"][best],
        "mean input embedding": found(table[tokens].mean(1)),
        "token counts": found(counts),
        "next-token logits": found(centred(view.laws(Prefixes.of(rows[tuning:])))),
        "by chance": {f"first {n}": n / (2 * chosen.stories - 1) for n in (1, 10)},
    }
    print(json.dumps(result, indent=1))
    record = {"stories": chosen.stories, "futures": chosen.futures, "tried": tried}
    save("history_embeddings", record | {"retrieval": result, "queries": ledger.total().next_token_queries})  # fmt: skip


if __name__ == "__main__":
    main()
