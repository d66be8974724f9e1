"""The compiled form beside the plain one and a copy of memory, on one thread.

    python bench/compiled.py

Models: noisy parity with 16 bits, learned from queries (rank 2, one table a position); hidden Markov
models with 16 and 64 states, 32 symbols, length 64, drawn at random, as they stand ("hidden") and over
a skewed basis that has signed operators ("operators", what a learned copy looks like). Each in float64
and, where it is safe, in float32. What counts as moved bytes is in `myna.evaluate.speed`.
"""

import dataclasses

import torch
from results import save

from myna.errors import InputError
from myna.evaluate.speed import compiled_safely, measure
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision
from myna.lowrank.step import Step
from myna.spec import Spec, numbered
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

SYMBOLS, LENGTH, STRINGS = 32, 64, 500


def simplex_rows(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Rows that sum to one: exponential entries, each row divided by its sum."""
    table = -torch.rand(*shape, dtype=torch.float64, generator=generator).clamp(min=1e-9).log()
    return table / table.sum(-1, keepdim=True)


def hidden(states: int) -> LowRankModel:
    generator = torch.Generator().manual_seed(states)
    laws, moves = simplex_rows(generator, states, SYMBOLS), simplex_rows(generator, states, states)
    change = moves[:, None].expand(-1, SYMBOLS, -1).contiguous()
    spec = Spec(numbered(SYMBOLS), None, LENGTH, "unset")
    return LowRankModel.of(spec, simplex_rows(generator, states), (Step(laws, change),))


def operators(model: LowRankModel) -> LowRankModel:
    """The same language over another basis: laws B L, operators B A_o B^-1, coefficients c B^-1."""
    step, generator = model.steps[0], torch.Generator().manual_seed(1)
    mixed = torch.eye(step.rank, dtype=torch.float64)
    mixed = mixed + 0.3 * simplex_rows(generator, step.rank, step.rank)
    mixed = mixed / mixed.sum(1, keepdim=True)
    back = torch.linalg.inv(mixed)
    laws = mixed @ step.laws
    moved = torch.einsum("ji,oik,kl->jol", mixed, step.operators, back)
    return LowRankModel.of(model.spec, model.first @ back, (Step(laws, moved / laws[:, :, None]),))


def models() -> dict[str, LowRankModel]:
    teacher = Ledger(open_teacher("zoo:parity?bits=16"))
    parity = learn_exact(teacher, ExactSettings(), torch.Generator().manual_seed(0)).student
    if parity is None:
        raise SystemExit("parity was not learned")
    found = {"parity, 16 bits, rank 2": parity}
    for states in (16, 64):
        form = hidden(states)
        found[f"hidden, rank {states}"] = form
        found[f"operators, rank {states}"] = operators(form)
    return found


def main() -> None:
    rows = {}
    for name, model in models().items():
        drawn = model.sample(STRINGS, torch.Generator().manual_seed(0))
        for precision in (Precision.DOUBLE, Precision.SINGLE):
            label = f"{name}, {precision.value}"
            try:
                compiled, _ = compiled_safely(model, precision, drawn)
            except InputError as error:
                rows[label] = {"refused": str(error)}
                continue
            report = measure(model, compiled, drawn)
            rows[label] = dataclasses.asdict(report) | {"binds": report.binds}
            print(
                f"{label:36s} {report.plain.tokens_per_second / 1e6:6.1f} -> "
                f"{report.compiled.tokens_per_second / 1e6:6.1f} M tokens/s, "
                f"{report.plain.step_microseconds:5.0f} -> {report.compiled.step_microseconds:4.0f} us, "
                f"{report.difference:.0e} nats, copy {report.copy_bandwidth / 1e9:.1f} GB/s, moved "
                f"{report.bandwidth_fraction:.2f}, memory {report.memory_fraction:.3f}, arithmetic "
                f"{report.arithmetic_fraction:.2f}; {report.binds}"
            )
    save("compiled", {"strings": STRINGS, "models": rows})


if __name__ == "__main__":
    main()
