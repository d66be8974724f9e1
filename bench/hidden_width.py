"""The hidden width through APIs that show less, and the output matrix; requests counted.

    python bench/hidden_width.py

For each model and API: the width found, requests, queries behind them, the largest error of a
recovered centred logit, and the relative error of the output matrix after the best linear map
onto it: |W - S A|_F / |W|_F with S the leading right singular vectors and W the true matrix less
its mean row, which only this benchmark reads.
"""

import functools
import time

import torch
from results import need_shared, save

from myna.logits.biased_api import BiasedApi, by_argmax, by_reference, by_top_one
from myna.logits.centred import centred
from myna.logits.width import _histories, width_of
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

ROADS = {
    "full": None,
    "top 5 + bias": (by_reference, 5),
    "top 20 + bias": (by_reference, 20),
    "top 1 + bias": (by_top_one, 1),
    "argmax + bias": (functools.partial(by_argmax, tolerance=1e-6), 0),
}


FEW = 96  # histories of many tokens, through the most likely token alone: 27 requests a logit


def output_matrix(teacher) -> torch.Tensor | None:
    """W less its mean row, (token, width); None for models without one head."""
    if hasattr(teacher, "_net"):
        weight = teacher._net.model.get_output_embeddings().weight.detach().double()
    elif hasattr(teacher, "_weights"):
        weight = teacher._weights.out.T.double()
    else:
        return None
    return weight - weight.mean(0)


def matrix_error(true: torch.Tensor, logits: torch.Tensor, width: int) -> float:
    """What no linear map of the leading singular vectors gives of the true matrix, relatively."""
    _, _, right = torch.linalg.svd(logits, full_matrices=False)
    basis = right[:width].T
    return float((true - basis @ (basis.T @ true)).norm() / true.norm())


def main() -> None:
    shared, runs = need_shared(), []
    models = {
        "stories260k (64)": (f"hf:{shared / 'stories260k'}?horizon=24&device=cpu", 543),
        "bundled (128, 24 tokens)": ("hf:bundled?horizon=24&device=cpu", 55),
        "charrnn-shakespeare (128, 65 letters)": (f"rnn:{shared / 'charrnn-shakespeare'}", 96),
        "charrnn-darwin (128, 100 letters)": (f"rnn:{shared / 'charrnn-darwin'}", 131),
    }
    for name, (uri, most) in models.items():
        teacher = open_teacher(uri)
        true = output_matrix(teacher)
        for road, how in ROADS.items():
            wide = teacher.spec.num_tokens > 200
            rows = min(most, FEW) if wide and road.startswith("argmax") else most
            ledger = Ledger(teacher)
            view, began = ledger.laws("width"), time.perf_counter()
            prefixes = _histories(view, rows)
            whole = centred(view.laws(prefixes))
            api = BiasedApi(view, how[1]) if how else None
            logits = centred(how[0](api, prefixes)) if how else whole
            found = width_of(logits)
            width = found.hidden_width or found.at_least
            runs.append(
                {
                    "model": name,
                    "api": road,
                    "hidden_width": found.hidden_width,
                    "at_least": found.at_least,
                    "gap": found.gap,
                    "histories": rows,
                    "requests": api.requests if api else rows,
                    "requests_a_logit": (api.requests if api else rows) / logits.numel(),
                    "largest_error_nats": float((logits - whole).abs().max()),
                    "output_matrix_error": None if true is None else matrix_error(true, logits, width),
                    "seconds": time.perf_counter() - began,
                }
            )  # fmt: skip
            print(runs[-1], flush=True)
    save("hidden_width", {"runs": runs})


if __name__ == "__main__":
    main()
