"""When does taming the error pay? Error against length, for each set K and divergence.

    python bench/taming.py       (two processes; about 16 minutes on two shared cores)

An exact stationary copy is spoiled as N samples would spoil it, then runs along strings of
the teacher; at each position the total variation between its next-token law and the
teacher's is kept, for every string and seed. What is kept in K is the only difference.

Families: `hmm`, a random hidden Markov model, which forgets; `mixture` and `permutation`,
which never or hardly do; and `designed`: two near-permutation chains, never left, with
emissions that are nearly parallel but for one rare token, and one basis history too many,
whose coefficient is pure noise. N = 1,000 everywhere.

Noise: laws are multinomial frequencies of N draws; a change of basis after token o comes
from about N P(o | h) futures, so its entries get normal noise of deviation
(N P(o | h))^-1/2, less where P(o | h) N < 1, and its rows are put back to sum one. The
hull's points are teacher histories' own coefficients with noise N^-1/2, not run forward.
No setting was tuned on these figures: hull and box are the defaults of `region` (both also
keep sketches nonnegative), and the undilated hull has margin zero.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import altair as alt
import numpy as np
import torch
from results import FOLDER, save

from myna.app.picture import write_picture
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.basis_sketch import basis_sketch, sampled_coefficients
from myna.lowrank.divergence import Divergence
from myna.lowrank.model import LowRankModel
from myna.lowrank.polytope import Polytope
from myna.lowrank.projected import ProjectedModel
from myna.lowrank.projection import project
from myna.lowrank.region import MARGIN, Box, Hull, Truncate, fraction_outside
from myna.lowrank.step import Step
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.zoo import Mixture, Permutation, RandomHmm

LENGTH, STRINGS, POINTS, SEEDS = 512, 32, 60, (0, 1, 2)
SAMPLES, FAMILIES = 1000, ("hmm", "mixture", "permutation", "designed")
MARKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 511)


def designed(seed: int) -> Hmm:
    """Two 3-cycles with slip 1%; emissions share a law but for 15%, and a token of 1%."""
    random = np.random.default_rng(seed)
    shared, own = random.dirichlet(np.ones(4)), random.dirichlet(np.ones(4), size=6)
    emission = np.concatenate([0.85 * shared + 0.15 * own, np.zeros((6, 1))], 1)
    rare = np.array([0.02, 0.0, 0.0, 0.0, 0.01, 0.0])  # tells the chains and phases apart
    emission = emission * (1 - rare[:, None])
    emission[:, 4] = rare
    cycle = 0.99 * np.roll(np.eye(3), 1, axis=1) + 0.01 / 3
    chains = np.kron(np.eye(2), cycle)
    tables = (np.full(6, 1 / 6), chains[None], emission[None])
    return Hmm(*(torch.from_numpy(table) for table in tables), horizon=LENGTH)


def teacher_of(family: str, seed: int):
    if family == "designed":
        return designed(seed)
    kinds = {
        "hmm": RandomHmm(states=6, symbols=6, horizon=LENGTH, seed=seed),
        "mixture": Mixture(components=3, states=2, symbols=6, horizon=LENGTH, seed=seed),
        "permutation": Permutation(states=6, symbols=6, horizon=LENGTH, slip=0.01, seed=seed),
    }
    return kinds[family].teacher()


def one_too_many(model: LowRankModel, generator: torch.Generator) -> LowRankModel:
    """The same Q over a basis with a redundant member: histories' mixture with law a.

    (-a, 1) then stands for nothing, and each change of basis gets a share of it, uniform in
    [-1/2, 1/2].
    """
    step = model.steps[0]
    a = torch.full((step.rank,), 1 / step.rank).double()
    laws = torch.cat([step.laws, (a @ step.laws)[None]])
    joint = torch.einsum("i,io,ioj->oj", a, step.laws, step.change)
    last = joint / laws[-1].clamp(min=1e-300)[:, None]
    change = torch.cat([step.change, last[None]])
    share = torch.rand(change.shape[:2], generator=generator, dtype=torch.float64) - 0.5
    change = torch.cat([change - share[:, :, None] * a, share[:, :, None]], 2)
    first = torch.cat([model.first, torch.zeros(1).double()])
    return LowRankModel.of(model.spec, first, (Step(laws, change),))


def spoiled(model: LowRankModel, samples: int, generator: torch.Generator) -> LowRankModel:
    """Laws and change of basis as estimated from `samples` draws."""
    step = model.steps[0]
    draws = torch.multinomial(step.laws.clamp(min=0), samples, True, generator=generator)
    counts = torch.zeros_like(step.laws).scatter_add_(1, draws, torch.ones(draws.shape).double())
    deviation = (samples * step.laws).clamp(min=1).rsqrt()[:, :, None]
    noise = torch.randn(step.change.shape, generator=generator, dtype=torch.float64)
    change = step.change + deviation * noise
    total = change.sum(2, keepdim=True)
    change = change + (1 - total) / step.rank
    return LowRankModel.of(model.spec, model.first, (Step(counts / samples, change),))


def errors(teacher, student, tokens: torch.Tensor) -> torch.Tensor:
    """(string, position) total variation of the next-token laws along teacher strings."""
    true, ours, found = teacher.initial(len(tokens)), student.initial(len(tokens)), []
    for t in range(tokens.shape[1]):
        difference = teacher.law(true).exp() - student.law(ours).exp()
        found.append(difference.abs().sum(1) / 2)
        if t + 1 < tokens.shape[1]:
            true, _ = teacher.step(true, tokens[:, t])
            ours, _ = student.step(ours, tokens[:, t])
    return torch.stack(found, 1)


def students(noisy: LowRankModel, points: torch.Tensor, generator: torch.Generator):
    """Each choice of K, by name."""
    sketch = basis_sketch(noisy, 1, 12, 8, generator)
    box, hull = Box.around(points, sketch), Hull(points, sketch)
    chosen = {"nothing": (None, Divergence.KL), "truncate": (Truncate(box.bound), Divergence.KL)}
    chosen |= {"box, kl": (box, Divergence.KL)}
    chosen |= {f"hull, {d.value}": (hull, d) for d in Divergence}
    chosen |= {"undilated hull, kl": (Hull(points, sketch, 0.0), Divergence.KL)}
    return {name: ProjectedModel.of(noisy, (k,), d) for name, (k, d) in chosen.items()}, hull


def one(family: str, seed: int) -> list[dict]:
    torch.set_num_threads(1)
    teacher = teacher_of(family, seed)
    generator = torch.Generator().manual_seed(seed)
    settings = ExactSettings(structure=Structure.STATIONARY)
    exact = learn_exact(Ledger(teacher), settings, generator).student
    assert exact is not None
    # histories of all lengths; the exact model's coefficients, each with its own noise
    reached = torch.cat(sampled_coefficients(exact, POINTS, LENGTH, generator)[1::8])
    points = reached[torch.randperm(len(reached), generator=generator)[: 2 * POINTS]]
    if family == "designed":
        exact = one_too_many(exact, generator)
        share = torch.rand((len(points), 1), generator=generator, dtype=torch.float64) - 0.5
        points = torch.cat([points - share / points.shape[1], share], 1)
    samples = SAMPLES
    noisy = spoiled(exact, samples, generator)
    points = points + samples**-0.5 * torch.randn(points.shape, generator=generator).double()
    made, hull = students(noisy, points[:POINTS], generator)
    tokens = teacher.sample(STRINGS, generator).tokens
    rows = []
    for name, student in made.items():
        started = time.perf_counter()
        e = errors(teacher, student, tokens)
        flat = e.flatten()
        rows.append(
            {
                "family": family,
                "seed": seed,
                "set": name,
                "rank": exact.steps[0].rank,
                "samples": samples,
                "mean": float(flat.mean()),
                "q95": float(flat.quantile(0.95)),
                "q99": float(flat.quantile(0.99)),
                "max": float(flat.max()),
                "by_position": {str(t): float(e[:, t].mean()) for t in MARKS},
                "mean_last_64": float(e[:, -64:].mean()),
                "by_string": [round(float(v), 5) for v in e.mean(1)],
                "hull_fresh_outside": fraction_outside(hull, points[POINTS:]),
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        shown = ("family", "seed", "set", "mean", "q99", "max", "seconds")
        print({k: rows[-1][k] for k in shown}, flush=True)
    return rows


def figures(rows: list[dict]) -> alt.VConcatChart:
    """Error against length, and mean and tails; every seed a point."""
    lengths = [
        {"family": r["family"], "seed": r["seed"], "set": r["set"], "position": int(t), "tv": v}
        for r in rows
        for t, v in r["by_position"].items()
    ]
    curve = (
        alt.Chart(alt.Data(values=lengths), width=230, height=180)
        .mark_line(opacity=0.8)
        .encode(
            x=alt.X("position:Q", scale=alt.Scale(type="log"), title="tokens read"),
            y=alt.Y("tv:Q", scale=alt.Scale(type="log"), title="next-token total variation"),
            color=alt.Color("set:N", title="kept in"),
            detail="seed:N",
        )
        .facet(alt.Facet("family:N", title=None), columns=4)
    )
    tails = (
        alt.Chart(alt.Data(values=rows))
        .transform_fold(["mean", "q95", "q99", "max"], as_=["figure", "tv"])
        .mark_point(filled=True, size=45, opacity=0.8)
        .encode(
            x=alt.X("tv:Q", scale=alt.Scale(type="log"), title="total variation over prefixes"),
            y=alt.Y("set:N", title=None),
            color=alt.Color("figure:N", sort=["mean", "q95", "q99", "max"], title=None),
        )
        .properties(width=230, height=150)
        .facet(alt.Facet("family:N", title=None), columns=4)
    )
    return alt.vconcat(curve, tails).resolve_scale(color="independent")


def l1_picture() -> dict:
    """The talk's example: x = (1, 1) onto conv{(0, 0), (1, 2)}, seen from y = (1, 2)."""
    ends = torch.tensor([[0.0, 0.0], [1.0, 2.0]]).double()
    k = Polytope(torch.eye(2).double(), ends, 0.0, torch.inf, torch.zeros(2).double())
    x, y = torch.tensor([[1.0, 1.0]]).double(), ends[1:]
    marks, record = [{"name": "x", "a": 1.0, "b": 1.0}, {"name": "y", "a": 1.0, "b": 2.0}], {}
    for d in (Divergence.L1, Divergence.KL):
        found = project(x, k, d)
        a, b = found.sketches[0].tolist()
        marks.append({"name": f"{d.value} projection of x", "a": a, "b": b})
        record[d.value] = {
            "projection": [a, b],
            "from_y_before": float(d.between(y, x)),
            "from_y_after": float(d.between(y, found.sketches)),
        }
    axes = {
        "x": alt.X("a:Q", scale=alt.Scale(domain=[0, 1.6])),
        "y": alt.Y("b:Q", scale=alt.Scale(domain=[0, 2.2])),
    }
    segment = [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 2.0}]
    title = (
        f"l1 from y: {record['l1']['from_y_before']:.2f} before, {record['l1']['from_y_after']:.2f} "
        f"after the l1 projection. KL from y: {record['kl']['from_y_before']:.3f} before, "
        f"{record['kl']['from_y_after']:.3f} after the KL projection"
    )
    line = alt.Chart(alt.Data(values=segment), width=420, height=420, title=title)
    dots = alt.Chart(alt.Data(values=marks)).encode(**axes)
    whole = line.mark_line(strokeWidth=3).encode(**axes) + dots.mark_point(filled=True, size=90)
    whole += dots.mark_text(align="left", dx=8).encode(text="name:N")
    write_picture(alt.vconcat(whole), FOLDER, "l1_projection")
    return record


def main() -> None:
    example = l1_picture()
    print(example)
    jobs = [(family, seed) for family in FAMILIES for seed in SEEDS]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(one, *zip(*jobs, strict=True)))
    rows = [row for found in runs for row in found]
    write_picture(figures(rows), FOLDER, "taming")
    settings = {"length": LENGTH, "strings": STRINGS, "points": POINTS, "margin": MARGIN}
    save("taming", {**settings, "talk_example": example, "runs": rows})


if __name__ == "__main__":
    main()
