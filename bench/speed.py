"""Scoring and sampling, rank 16, 32 symbols, length 64, beside HMM libraries in one run.

    python bench/speed.py

The HMM is anchor A's. hmmlearn, dynamax and pomegranate hold its tables; myna holds a
stationary copy that it learned from queries (general operators, float64). Everyone
scores the same 10,000 strings and draws 10,000 of length 64 (pomegranate, which draws
one by one, 50); each is warmed up, then the median of five runs counts. The libraries
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
from myna.lowrank.student import Strings
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm

COUNT, LENGTH, REPEATS = 10_000, 64, 5

Task = tuple[Callable[[], object], int]  # what to run, and the tokens it handles


def myna_tasks(path, strings: Strings) -> dict[str, Task]:
    settings = ExactSettings(structure=Structure.STATIONARY)
    student = learn_exact(
        Ledger(read_hmm(path, LENGTH)), settings, torch.Generator().manual_seed(0)
    ).student
    random = torch.Generator().manual_seed(1)
    return {
        "score": (lambda: student.score(strings), COUNT * LENGTH),
        "sample": (lambda: student.sample(COUNT, random), COUNT * LENGTH),
    }


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
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import CategoricalHMM

    first, moves, emits = (np.asarray(t, np.float32) for t in tables)
    model = CategoricalHMM(16, 1, 32)
    params, _ = model.initialize(
        jax.random.PRNGKey(0),
        initial_probs=jnp.asarray(first),
        transition_matrix=jnp.asarray(moves),
        emission_probs=jnp.asarray(emits[:, None, :]),
    )
    seen = jnp.asarray(strings.tokens.numpy())[:, :, None]
    keys = jax.random.split(jax.random.PRNGKey(1), COUNT)
    score = jax.jit(jax.vmap(lambda x: model.marginal_log_prob(params, x)))
    sample = jax.jit(jax.vmap(lambda key: model.sample(params, key, LENGTH)[1]))
    return {
        "score": (lambda: score(seen).block_until_ready(), COUNT * LENGTH),
        "sample": (lambda: sample(keys).block_until_ready(), COUNT * LENGTH),
    }


def pomegranate_tasks(tables, strings: Strings) -> dict[str, Task]:
    from pomegranate.distributions import Categorical
    from pomegranate.hmm import DenseHMM

    def model(kind):  # float32 is its fast form; its sampler needs rows that sum to one
        first, moves, emits = (np.asarray(t, kind) for t in tables)
        return DenseHMM([Categorical(row[None]) for row in emits], edges=moves, starts=first)

    fast, exact = model(np.float32), model(np.float64)
    exact.sample_length = LENGTH
    seen = strings.tokens[:, :, None]
    return {
        "score": (lambda: fast.log_probability(seen), COUNT * LENGTH),
        "sample": (lambda: exact.sample(50), 50 * LENGTH),
    }


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
    tasks = {"myna": myna_tasks(path, drawn)}
    skipped = []
    for name, make in makers.items():
        try:
            tasks[name] = make()
        except ImportError as error:
            skipped.append(f"{name}: {error}")
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(REPEATS + 1):  # the first round warms up and is dropped
        for name, both in tasks.items():
            for what, (run, _) in both.items():
                started = time.perf_counter()
                run()
                if repeat:
                    seconds.setdefault((name, what), []).append(time.perf_counter() - started)
    rates: dict[str, dict[str, float]] = {"score": {}, "sample": {}}
    for (name, what), times in seconds.items():
        rates[what][name] = tasks[name][what][1] / statistics.median(times)
    for what, found in rates.items():
        for name, rate in found.items():
            print(f"{what:7s} {name:12s} {rate:14,.0f} tokens/s")
    ratios = {
        what: found["myna"] / max(rate for name, rate in found.items() if name != "myna")
        for what, found in rates.items()
        if len(found) > 1
    }
    print("myna over the fastest other:", ratios)
    save(
        "speed",
        {"tokens_per_second": rates, "myna_over_fastest_other": ratios, "skipped": skipped},
    )


if __name__ == "__main__":
    main()
