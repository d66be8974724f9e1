"""Delayed pairs: where the quantities of the spectral and fidelity learners vanish.

    python bench/no_fidelity.py --part exact|ours|fidelity|spectral|em [--budget 100000 ...]
    python bench/no_fidelity.py --picture

The family: a clock of six hours and a bit, so 12 states, over 3 symbols, length 13. At hour 0
the symbol shows the bit (.8 against .1); at the five other hours both states of a pair emit
alike, (.2, .2, .6), and differ in what follows six tokens later only. The clock stands still
with probability .02 and the bit flips with .02 at each move.

Claim: just after the bit was shown (cuts 1 to 3) the futures that the spectral learner (one
token) and the fidelity learner (3 tokens, its default) compare barely tell histories apart:
of P(futures | histories), scaled to a largest singular value of 1, the second is .016 at cut
1 and below .001 at cuts 2 and 3, where 6 tokens have .39 to .40. Fidelity as such does not vanish here, what these
learners measure does. Part "exact" prints this from the model at every cut. Ours lengthens
its futures where its check demands it.
TV (mean of (1 - Q/P)+ over 50,000 fresh strings) against tokens, 3 seeds, all shown.
Parts keep their own JSON.
"""

import argparse
import time

import altair as alt
import torch
from results import FOLDER, save
from sampled import Rows, em, fresh_variation, kept_rows, ours, plain, spectral

from myna.app.picture import write_picture
from myna.errors import InputError
from myna.learn.baum_welch import EmSettings
from myna.learn.fidelity import FidelitySettings, learn_fidelity
from myna.learn.report import Structure
from myna.lowrank.student import Student
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger

_HOURS, _HORIZON, _SLIP = 6, 13, 0.02
_NOTE = "EM: 12 states, stationary, 3 random starts, 1e-8 nats a token or 2,000 iterations"


def tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Initial law, transition, emission; state 2 * hour + bit."""
    states = 2 * _HOURS
    moves = torch.zeros((states, states), dtype=torch.float64)
    emits = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).repeat(states, 1)
    for state in range(states):
        hour, bit = divmod(state, 2)
        after = 2 * ((hour + 1) % _HOURS)
        moves[state, state] = _SLIP
        moves[state, after + bit] = (1 - _SLIP) ** 2
        moves[state, after + 1 - bit] = (1 - _SLIP) * _SLIP
    emits[0] = torch.tensor([0.8, 0.1, 0.1])
    emits[1] = torch.tensor([0.1, 0.8, 0.1])
    first = torch.zeros(states, dtype=torch.float64)
    first[:2] = 0.5
    return first, moves, emits


def family() -> Hmm:
    first, moves, emits = tables()
    return Hmm(first, moves[None], emits[None], horizon=_HORIZON)


def joint_with_states(cut: int) -> torch.Tensor:
    """(history, state): P(x, s) of all histories of a length."""
    first, moves, emits = tables()
    found = first[None]
    for _ in range(cut):
        found = torch.einsum("hs,so,sr->hor", found, emits, moves).flatten(0, 1)
    return found


def futures(length: int) -> torch.Tensor:
    """(state, future): P(f | s) of all futures of a length."""
    _, moves, emits = tables()
    found = torch.ones((len(moves), 1), dtype=torch.float64)
    for _ in range(length):
        found = torch.einsum("so,sr,rf->sof", emits, moves, found).flatten(1)
    return found


def correlations(cut: int, length: int) -> list[float]:
    """Singular values of diag P(x)^1/2 (P(f | x)) diag P(f)^-1/2: 1, then what tells apart.

    From S x S Gram matrices: all histories and futures without a table of both.
    """
    before, after = joint_with_states(cut), futures(length)
    left = before.T @ (before / before.sum(1, keepdim=True))
    right = after @ (after / after.T.matmul(before.sum(0))[:, None].T).T
    values = torch.linalg.eigvals(left @ right).real.clamp(min=0).sqrt()
    return values.sort(descending=True).values[:4].tolist()


def exact(rows: Rows) -> None:
    """What each learner's quantity truly is, cut by cut."""
    for cut in range(1, _HORIZON):
        for name, length in (("1 token (P21)", 1), ("3 tokens", 3), ("6 tokens", 6)):
            if length <= _HORIZON - cut:
                values = correlations(cut, length)
                rows.add({"learner": "exact", "cut": cut, "futures": name, "values": values})


def fidelity(teacher: Hmm, budget: int, seed: int) -> tuple[Student | None, dict]:
    """The fidelity learner by its default settings; None where it refuses."""
    view = Ledger(teacher, seed=seed).samples("learn")
    random = torch.Generator().manual_seed(seed)
    try:
        fit = learn_fidelity(view, FidelitySettings(budget), random)
    except InputError as error:
        return None, {"refused": str(error)}
    cuts = fit.report.cuts
    return fit.student, {
        "tokens": fit.report.sampled_tokens,
        "ranks": [cut.rank for cut in cuts],
        "fidelity": [cut.fidelity for cut in cuts],
        "noise": [cut.noise for cut in cuts],
        "residual": [cut.residual for cut in cuts],
    }


def learned(
    part: str, teacher: Hmm, budget: int, seed: int, most: int
) -> tuple[Student | None, dict]:
    if part == "ours":
        return ours(teacher, budget, seed)
    if part == "fidelity":
        return fidelity(teacher, budget, seed)
    evidence = plain(teacher, budget, seed)
    if part == "spectral":
        return spectral(teacher, evidence, Structure.TIME_VARYING, seed)
    return em(teacher, evidence, 2 * _HOURS, EmSettings(restarts=3, max_iterations=most), seed)


def run(part: str, chosen: argparse.Namespace) -> None:
    mark = "" if part == "exact" else "-" + "-".join(str(b) for b in chosen.budget)
    rows = Rows(f"{title(chosen.quick)}.{part}{mark}", _NOTE)
    if part == "exact":
        exact(rows)
        return
    teacher = family()
    for budget in chosen.budget:
        for seed in range(1 if chosen.quick else 3):
            began = time.perf_counter()
            most = 20 if chosen.quick else 2000
            student, told = learned(part, teacher, budget, seed, most)
            seconds = {"learning_seconds": time.perf_counter() - began}
            far = fresh_variation(teacher, student, 50_000) if student else {}
            row = {"learner": part, "budget": budget, "seed": seed}
            rows.add({**row, **far, **told, **seconds})


def title(quick: bool) -> str:
    return "no_fidelity_quick" if quick else "no_fidelity"


def picture(name: str) -> None:
    rows = list(kept_rows(name))
    chart = (
        alt.Chart(
            alt.Data(values=[r for r in rows if "total_variation" in r]),
            width=460,
            height=320,
            title="Delayed pairs (12 states, 3 symbols): every seed",
        )
        .mark_point(filled=True, size=60, opacity=0.7)
        .encode(
            x=alt.X("tokens:Q", scale=alt.Scale(type="log"), title="sampled tokens"),
            y=alt.Y("total_variation:Q", scale=alt.Scale(type="log"), title="TV"),
            color=alt.Color("learner:N"),
            tooltip=["learner:N", "seed:Q", "tokens:Q", "total_variation:Q"],
        )
    )
    write_picture(alt.vconcat(chart), FOLDER, name)
    save(name, {"note": _NOTE, "runs": rows})


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parts = ["exact", "ours", "fidelity", "spectral", "em"]
    grid = [100_000, 300_000, 1_000_000, 3_000_000]
    parser.add_argument("--part", choices=parts, action="append", default=[])
    parser.add_argument("--budget", type=int, nargs="+", default=grid)
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one tiny case, files of its own")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.budget = [50_000]
    for part in chosen.part:
        run(part, chosen)
    if chosen.picture:
        picture(title(chosen.quick))


if __name__ == "__main__":
    main()
