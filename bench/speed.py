"""Scoring and sampling, rank 16, 32 symbols, length 64, beside HMM libraries in one run.

    python bench/speed.py

The HMM is anchor A's. hmmlearn, dynamax and pomegranate hold its tables; myna holds a
stationary copy that it learned from queries, twice, both float64: as learned (a general
operator for each token, "myna operators") and in the hidden Markov form found from that
copy ("myna"), which is what the others hold too. Everyone scores the same 10,000 strings and draws 10,000 of length 64 (pomegranate, which draws
one by one, 50); each is warmed up, then the median of fifteen runs counts. The libraries
take turns, so that a drift of the machine meets all of them.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from results import need_shared, save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.hidden import hidden_form
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm

COUNT, LENGTH, REPEATS = 10_000, 64, 15

Task = tuple[Callable[[], object], int]  # what to run, and the tokens it handles


def myna_tasks(path, strings: Strings) -> dict[str, dict[str, Task]]:
    settings = ExactSettings(structure=Structure.STATIONARY)
    student = learn_exact(
        Ledger(read_hmm(path, LENGTH)), settings, torch.Generator().manual_seed(0)
    ).student
    form = hidden_form(student, torch.Generator().manual_seed(0))
    if form.model is None:
        raise SystemExit(form.reason)
    print(f"{form.reason}, residual {form.residual:.1e}")
    random = torch.Generator().manual_seed(1)

    def tasks(model: LowRankModel) -> dict[str, Task]:
        return {
            "score": (lambda: model.score(strings).numpy(), COUNT * LENGTH),
            "sample": (lambda: model.sample(COUNT, random), COUNT * LENGTH),
        }

    return {"myna": tasks(form.model), "myna operators": tasks(student)}


def hmmlearn_tasks(tables, strings: Strings) -> dict[str, Task]:
    from hmmlearn.hmm import CategoricalHMM

    model = CategoricalHMM(n_components=16, n_features=32, implementation="scaling")
    model.startprob_, model.transmat_, model.emissionprob_ = tables
    flat = strings.tokens.numpy().reshape(-1, 1)
    lengths = [LENGTH] * COUNT
    return {
        "score": (lambda: model.score(flat, lengths), COUNT * LENGTH),
        "sample": (lambda: model.sample(500 * LENGTH, random_state=1), 500 * LENGTH),
    }


def dynamax_tasks(tables, strings: Strings) -> dict[str, Task]:
    """Its filter with looked-up log-emissions, in both precisions: its fastest form here.

    `marginal_log_prob` of its model class is over ten times slower.
    """
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import CategoricalHMM, hmm_filter

    jax.config.update("jax_enable_x64", True)
    seen = jnp.asarray(strings.tokens.numpy())

    def scorer(kind):
        arrays = (tables[0], tables[1], np.log(tables[2]).T)
        first, moves, logs = (jnp.asarray(t.astype(kind)) for t in arrays)
        run = jax.jit(
            lambda p, t, e, x: jax.vmap(lambda row: hmm_filter(p, t, e[row]).marginal_loglik)(x)
        )
        return lambda: np.asarray(run(first, moves, logs, seen))

    first, moves, emits = (np.asarray(t, np.float32) for t in tables)
    model = CategoricalHMM(16, 1, 32)
    params, _ = model.initialize(
        jax.random.PRNGKey(0),
        initial_probs=jnp.asarray(first),
        transition_matrix=jnp.asarray(moves),
        emission_probs=jnp.asarray(emits[:, None, :]),
    )
    keys = jax.random.split(jax.random.PRNGKey(1), COUNT)
    sample = jax.jit(jax.vmap(lambda key: model.sample(params, key, LENGTH)[1]))
    return {
        "score": (scorer(np.float64), COUNT * LENGTH),
        "score_float32": (scorer(np.float32), COUNT * LENGTH),
        "sample": (lambda: sample(keys).block_until_ready(), COUNT * LENGTH),
    }


def pomegranate_tasks(tables, strings: Strings) -> dict[str, Task]:
    from pomegranate.distributions import Categorical
    from pomegranate.hmm import DenseHMM

    def model(kind, ends=None):  # float32 is its fast form; its sampler needs rows that sum to one
        first, moves, emits = (np.asarray(t, kind) for t in tables)
        return DenseHMM(
            [Categorical(row[None]) for row in emits],
            edges=moves,
            starts=first,
            ends=ends,
        )

    # without ends of weight one its scores are off by ln 16; with them its sampler fails
    fast, exact = model(np.float32, np.ones(16, np.float32)), model(np.float64)
    exact.sample_length = LENGTH
    seen = strings.tokens[:, :, None]
    return {
        "score_float32": (lambda: fast.log_probability(seen).numpy(), COUNT * LENGTH),
        "sample": (lambda: exact.sample(50), 50 * LENGTH),
    }


def score_error(found, truth: np.ndarray) -> float:
    """Largest error a string; hmmlearn gives one total, so its error is a mean."""
    found = np.asarray(found, np.float64)
    if found.ndim == 0:
        return float(abs(found - truth.sum()) / len(truth))
    return float(np.abs(found - truth).max())


def main() -> None:
    path = need_shared() / "hmm_task.npz"
    data = np.load(path)
    tables = [data[key] / data[key].sum(-1, keepdims=True) for key in ("pi", "T", "E")]
    drawn = read_hmm(path, LENGTH).sample(COUNT, torch.Generator().manual_seed(7))
    makers = {
        "hmmlearn": lambda: hmmlearn_tasks(tables, drawn),
        "dynamax": lambda: dynamax_tasks(tables, drawn),
        "pomegranate": lambda: pomegranate_tasks(tables, drawn),
    }
    tasks = myna_tasks(path, drawn)
    skipped = []
    for name, make in makers.items():
        try:
            tasks[name] = make()
        except ImportError as error:
            skipped.append(f"{name}: {error}")
    truth = read_hmm(path, LENGTH).score(drawn).numpy()
    errors = {
        f"{name} {what}": score_error(run(), truth)
        for name, both in tasks.items()
        for what, (run, _) in both.items()
        if what != "sample"
    }
    print("largest error of a string's score, nats:", errors)
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(REPEATS + 1):  # the first round warms up and is dropped
        for name, both in tasks.items():
            for what, (run, _) in both.items():
                started = time.perf_counter()
                run()
                if repeat:
                    seconds.setdefault((name, what), []).append(time.perf_counter() - started)
    rates: dict[str, dict[str, float]] = {"score": {}, "score_float32": {}, "sample": {}}
    for (name, what), times in seconds.items():
        rates[what][name] = tasks[name][what][1] / statistics.median(times)
    for what, found in rates.items():
        for name, rate in found.items():
            print(f"{what:14s} {name:15s} {rate:14,.0f} tokens/s")
    ratios = {
        f"{what} {mine}": rates["sample" if what == "sample" else "score"][mine]
        / max(rate for name, rate in found.items() if not name.startswith("myna"))
        for what, found in rates.items()
        for mine in ("myna", "myna operators")
        if any(not name.startswith("myna") for name in found)
    }
    print("myna (float64) over the fastest other:")
    for name, ratio in ratios.items():
        print(f"  {name:30s} {ratio:.2f}")
    save(
        "speed",
        {
            "tokens_per_second": rates,
            "score_errors_nats": errors,
            "myna_over_fastest_other": ratios,
            "skipped": skipped,
        },
    )


if __name__ == "__main__":
    main()
