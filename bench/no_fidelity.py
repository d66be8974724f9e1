"""A hidden parity and a faint coin: no fidelity, no full rank, and still learned.

    python bench/no_fidelity.py --part exact|ours|fidelity|long|spectral|em [--budget 100000 ...]
    python bench/no_fidelity.py --picture

The family: twelve bits, each nearly fair, and a label that shows the parity of a secret
subset, right with probability .9. A coin is thrown once and hidden: it tilts every bit by
.002. As a hidden Markov model it has 8 states (parity, last bit, coin) over 2 symbols; states
with the same last bit emit alike, so emissions have rank 2 and 1 token cannot tell states
apart. Rank is 4 at most cuts: parity and coin.

Of P(futures | histories) / sqrt(P(futures)), histories weighted by P and scaled to a largest
singular value of 1, the smallest that is not zero (fidelity is about this) is below .0001 at
cuts 1 to 11, with all futures to the end, for the coin can hardly be seen. The second, which
the parity should give, is .8 there, but below .0001 as well with the futures that the
spectral learner (1 token) and the fidelity learner (3 tokens, its default) compare, up to
cuts 11 and 9. Part "exact" prints these from the model. "long" is the fidelity learner told to compare all
tokens to the end. TV (mean of (1 - Q/P)+ over 50,000 fresh strings) against tokens, 3 secrets,
all shown. Parts keep their own JSON.
"""

import argparse
import itertools
import time
from typing import NamedTuple

import altair as alt
import torch
from results import FOLDER
from sampled import Rows, em, fresh_variation, kept_rows, ours, plain, spectral

from myna.app.picture import write_picture
from myna.errors import InputError
from myna.learn.baum_welch import EmSettings
from myna.learn.fidelity import FidelitySettings, learn_fidelity
from myna.learn.report import Structure
from myna.lowrank.student import Student
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import Parity

_BITS, _TILT, _NOISE = 12, 0.002, 0.1
_HORIZON = _BITS + 1
_NOTE = (
    "EM: 4 states, one table a position, 2 random starts, squared extrapolation, 1e-10 nats a token "
    "or 20,000 iterations"
)
_EM = EmSettings(
    Structure.TIME_VARYING, True, restarts=2, tolerance_nats=1e-10, max_iterations=20_000
)


class Tables(NamedTuple):
    """Initial law (state,), transitions (step, state, state), emissions (step, state, token).

    State 4 * parity + 2 * last bit + coin; the parity counts the last bit if it is secret.
    """

    first: torch.Tensor
    moves: torch.Tensor
    emits: torch.Tensor


def tables(seed: int) -> Tables:
    secret = Parity(bits=_BITS, seed=seed).secret().tolist()
    first = torch.zeros(8, dtype=torch.float64)
    moves = torch.zeros((_BITS, 8, 8), dtype=torch.float64)
    emits = torch.zeros((_HORIZON, 8, 2), dtype=torch.float64)
    for coin, bit in itertools.product(range(2), range(2)):
        chance = 0.5 + _TILT * (1 if bit == coin else -1)
        first[4 * (bit * secret[0]) + 2 * bit + coin] += 0.5 * chance
        for t, parity, last in itertools.product(range(1, _BITS), range(2), range(2)):
            after = 4 * (parity ^ (bit * secret[t])) + 2 * bit + coin
            moves[t - 1, 4 * parity + 2 * last + coin, after] = chance
    moves[-1] = torch.eye(8, dtype=torch.float64)
    for state in range(8):
        parity, last = divmod(state // 2, 2)
        emits[:-1, state, last] = 1.0
        emits[-1, state, parity], emits[-1, state, 1 - parity] = 1 - _NOISE, _NOISE
    return Tables(first, moves, emits)


def family(seed: int) -> Hmm:
    return Hmm(*tables(seed), horizon=_HORIZON)


def joint_with_states(model: Tables, cut: int) -> torch.Tensor:
    """(history, state): P(x, s) of all histories of a length, s the state that emits next."""
    found = model.first[None]
    for t in range(cut):
        found = torch.einsum("hs,so,sr->hor", found, model.emits[t], model.moves[t]).flatten(0, 1)
    return found


def futures(model: Tables, cut: int, length: int) -> torch.Tensor:
    """(state, future): P(f | s) of all futures of a length after a cut."""
    found = torch.ones((8, 1), dtype=torch.float64)
    for t in reversed(range(cut, cut + length)):
        moved = found if t == _BITS else model.moves[t] @ found
        found = torch.einsum("so,sf->sof", model.emits[t], moved).flatten(1)
    return found


def correlations(model: Tables, cut: int, length: int) -> list[float]:
    """Singular values of diag P(x)^1/2 (P(f | x)) diag P(f)^-1/2: 1, then what tells apart.

    From S x S Gram matrices: all histories and futures without a table of both.
    """
    before, after = joint_with_states(model, cut), futures(model, cut, length)
    left = before.T @ (before / before.sum(1, keepdim=True))
    right = after @ (after / (before.sum(0) @ after)[:, None].T).T
    values = torch.linalg.eigvals(left @ right).real.clamp(min=0).sqrt()
    return values.sort(descending=True).values[:4].tolist()


def exact(rows: Rows) -> None:
    """What each learner's quantity truly is, cut by cut, for the first secret."""
    model = tables(0)
    for cut in range(1, _HORIZON):
        for name, length in (("1 token (P21)", 1), ("3 tokens", 3), ("all", _HORIZON - cut)):
            if length <= _HORIZON - cut:
                values = correlations(model, cut, length)
                rows.add({"learner": "exact", "cut": cut, "futures": name, "values": values})


def fidelity(teacher: Hmm, settings: FidelitySettings, seed: int) -> tuple[Student | None, dict]:
    """The fidelity learner; None where it refuses."""
    view = Ledger(teacher, seed=seed).samples("learn")
    random = torch.Generator().manual_seed(seed)
    try:
        fit = learn_fidelity(view, settings, random)
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


def learned(part: str, teacher: Hmm, budget: int, seed: int) -> tuple[Student | None, dict]:
    if part == "ours":
        return ours(teacher, budget, seed)
    if part == "fidelity":
        return fidelity(teacher, FidelitySettings(budget), seed)
    if part == "long":
        return fidelity(teacher, FidelitySettings(budget, future_tokens=_HORIZON), seed)
    evidence = plain(teacher, budget, seed)
    if part == "spectral":
        return spectral(teacher, evidence, Structure.TIME_VARYING, seed)
    return em(teacher, evidence, 4, _EM, seed)


def run(part: str, chosen: argparse.Namespace) -> None:
    mark = "" if part == "exact" else "-" + "-".join(str(b) for b in chosen.budget)
    rows = Rows(f"{title(chosen.quick)}.{part}{mark}", _NOTE)
    if part == "exact":
        exact(rows)
        return
    for budget in chosen.budget:
        for seed in range(1 if chosen.quick else 3):
            teacher = family(seed)
            began = time.perf_counter()
            student, told = learned(part, teacher, budget, seed)
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
            title="Hidden parity and faint coin (8 states, 2 symbols): every secret",
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


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parts = ["exact", "ours", "fidelity", "long", "spectral", "em"]
    grid = [30_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--part", choices=parts, action="append", default=[])
    parser.add_argument("--budget", type=int, nargs="+", default=grid)
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one tiny case, files of its own")
    chosen = parser.parse_args()
    if not (chosen.part or chosen.picture):
        parser.error("say what to run: --part PART, or --picture")
    if chosen.quick:
        chosen.budget = [50_000]
    for part in chosen.part:
        run(part, chosen)
    if chosen.picture:
        picture(title(chosen.quick))


if __name__ == "__main__":
    main()
