"""What combinations of other prompts say, beside what the teacher says: samples to read.

    python bench/lingen_samples.py [--targets 6] [--own 40]

stories260k; the histories, futures and the first targets of `bench/lingen_likely.py`, 1,200 and
100 of them. For each target one continuation of 24 tokens by the teacher, by LINGEN's least squares
and by likelihood on the target's own continuations as well: the first draw of each, none left out.
"""

import argparse

import torch
from lingen import TOKENS
from lingen_likely import prompts
from results import save

from myna.logits.likeliest import common_rows, fit_weights, places_of
from myna.logits.lingen import CombinedHistories
from myna.spec import Spec
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

HISTORIES, FUTURES, SAID = 1_200, 100, 24


def text(spec: Spec, tokens: torch.Tensor) -> str:
    """As people read it."""
    whole = "".join(spec.alphabet[t] for t in tokens.tolist() if t >= 0)
    return whole.replace("▁", " ").replace("<0x0A>", " / ").strip()


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", type=int, default=6)
    parser.add_argument("--own", type=int, default=40)
    chosen = parser.parse_args()
    uri, histories, targets, futures = prompts("stories260k", HISTORIES, chosen.targets, FUTURES)
    ledger = Ledger(open_teacher(uri))
    fitting, saying = ledger.laws("fit"), ledger.laws("say")
    common = common_rows(fitting, targets, histories, futures)
    rows = []
    for t in range(chosen.targets):
        this = targets.take(torch.tensor([t]))
        start = common.start.weights[:, t]
        drawn = fitting.complete(this, chosen.own, max_tokens=TOKENS).tokens[0]
        own = Prefixes.of(drawn.tolist())
        places = places_of(fitting, targets, t, histories, common, own)
        said = {"teacher": saying.complete(this, 1, max_tokens=SAID).tokens[0, 0]}
        for name, weights in (
            ("squares", start),
            ("likelihood, own", fit_weights(places, start).weights),
        ):
            student = CombinedHistories(saying, histories, weights, SAID)
            generator = torch.Generator().manual_seed(t)
            said[name] = student.sample(1, generator, SAID).tokens[0]
        spec = saying.spec
        rows.append({"target": text(spec, this.tokens[0])})
        rows[-1] |= {name: text(spec, tokens) for name, tokens in said.items()}
        print(rows[-1], flush=True)
        save("lingen_samples", {"own_continuations": chosen.own, "samples": rows})


if __name__ == "__main__":
    main()
