"""A real part-of-speech model with 8,870 symbols, copied from next-token laws alone.

    python bench/jieba.py [FOLDER]     # save the copy there

The Chinese part-of-speech HMM of jieba (163 states, stationary), asked as a teacher. Bars: at most 4
times the dense numbers of the original (163^2 + 163 x 8,870 + 163 = 1.47M), everything included;
peak resident memory below 8 GiB, teacher included; KL <= 1e-6 nats a token along fresh text.
"""

import sys
import time
from pathlib import Path

import torch
from results import need_shared, save

from myna.learn.wide import WideSettings, learn_wide
from myna.teachers.copies import save_copy
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm


def teacher() -> Hmm:
    return read_hmm(need_shared() / "jieba" / "jieba_pos_hmm.npz", horizon=None)


def main() -> None:
    torch.set_num_threads(1)
    model = teacher()
    dense = 163**2 + 163 * 8870 + 163
    began = time.process_time()
    result = learn_wide(
        Ledger(model),
        WideSettings(),
        torch.Generator().manual_seed(0),
        lambda text: print(f"{time.process_time() - began:8.0f} s  {text}", flush=True),
    )
    report = result.report
    row = {
        "rank": report.rank,
        "parts": report.parts,
        "tolerance": report.tolerance,
        "children": report.children,
        "worst_residual": report.worst,
        "left_out": report.left_out,
        "kl": report.kl,
        "half_width": report.half_width,
        "parameters": report.parameters,
        "dense_parameters": dense,
        "ratio": report.parameters / dense,
        "queries": {name: a.next_token_queries for name, a in report.accounts.items()},
        "seconds": report.seconds,
        "processor_seconds": time.process_time() - began,
    }
    print(row)
    if sys.argv[1:] and result.student is not None:
        save_copy(
            Path(sys.argv[1]),
            result.student,
            {"teacher": "jieba part-of-speech HMM"},
            overwrite=True,
        )
    save("jieba", {"runs": [row]})


if __name__ == "__main__":
    main()
