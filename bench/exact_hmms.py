"""HMM B and anchor A from exact laws, beside tntorch and Weighted L*, counted alike.

    python bench/exact_hmms.py [--weighted-lstar CLONE] [--lstar-seconds 60]

A next-token query is one distinct prefix whose law was asked. A joint evaluation of a
whole string asks the law at each of its prefixes; the distinct ones are counted over
the run. tntorch is told the true rank; myna is not. Weighted L* (Weiss, Goldberg and
Yahav 2019) is run from a clone of its public repository, and left out where none is
given. Total variation is the mean of |1 - Q/P| / 2 over 10,000 fresh teacher strings.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from results import need_shared, save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.student import Strings
from myna.teachers.hmm import Hmm
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm
from myna.teachers.prefixes import Prefixes


def hmm_b(seed: int, concentration: float, states: int = 8, symbols: int = 8) -> Hmm:
    """The HMMs of the comparison: numpy's generator, Dirichlet rows, horizon 16."""
    random = np.random.default_rng(seed)
    first = random.dirichlet(np.ones(states))
    moves = random.dirichlet(concentration * np.ones(states), size=states)
    emits = random.dirichlet(concentration * np.ones(symbols), size=states)
    tables = [torch.from_numpy(np.ascontiguousarray(t)) for t in (first, moves[None], emits[None])]
    return Hmm(*tables, horizon=16)


def variation(teacher: Hmm, log_q) -> float:
    """Mean |1 - Q/P| / 2 over 10,000 strings that no learner saw."""
    fresh = teacher.sample(10_000, torch.Generator().manual_seed(1_000_003))
    ratio = (log_q(fresh) - teacher.score(fresh)).exp()
    return float((1 - ratio).abs().mean()) / 2


def myna(teacher: Hmm, structure: Structure) -> dict:
    ledger = Ledger(teacher)
    started = time.perf_counter()
    result = learn_exact(
        ledger, ExactSettings(structure=structure), torch.Generator().manual_seed(0)
    )
    return {
        "queries": ledger.total().next_token_queries,
        "of_which_verification": ledger.account("verify").next_token_queries,
        "total_variation": variation(teacher, result.student.score),
        "rank": max(result.report.ranks),
        "outcome": result.report.outcome.value,
        "seconds": time.perf_counter() - started,
    }


def distinct_prefixes(batches: list[np.ndarray]) -> int:
    """Distinct prefixes of lengths 0 .. H-1 over all strings that were evaluated."""
    strings = np.unique(np.concatenate(batches).astype(np.uint8), axis=0)
    # Sorted rows: a prefix of length d is new where the row differs before position d.
    differs = strings[1:] != strings[:-1]
    shared = np.where(differs.any(1), differs.argmax(1), strings.shape[1])
    lengths = np.arange(strings.shape[1])
    return int(len(lengths) + (lengths[None, :] > shared[:, None]).sum())


def tntorch(teacher: Hmm, rank: int) -> dict:
    """TT-cross of the joint probabilities, scaled by O^H against underflow."""
    import tntorch as tn

    symbols, horizon = teacher.spec.num_tokens, teacher.spec.horizon
    asked: list[np.ndarray] = []

    def joint(rows):
        rows = rows.long()
        asked.append(rows.numpy().astype(np.uint8))
        scores = teacher.score(Strings(rows, torch.full((len(rows),), horizon)))
        return (scores + horizon * np.log(symbols)).exp()

    started = time.perf_counter()
    domain = [torch.arange(symbols, dtype=torch.float64) for _ in range(horizon)]
    tensor = tn.cross(
        function=joint, domain=domain, function_arg="matrix", ranks_tt=rank, kickrank=3,
        rmax=2 * rank, eps=1e-8, max_iter=10, verbose=False, suppress_warnings=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started

    def log_q(strings: Strings) -> torch.Tensor:
        vector = torch.ones((len(strings.tokens), 1), dtype=torch.float64)
        for t, core in enumerate(tensor.cores):
            vector = torch.einsum("na,anb->nb", vector, core[:, strings.tokens[:, t], :])
        return vector[:, 0].clamp(min=1e-300).log() - horizon * np.log(symbols)

    return {
        "joint_evaluations": sum(len(batch) for batch in asked),
        "queries": distinct_prefixes(asked),
        "total_variation": variation(teacher, log_q),
        "seconds": seconds,
    }


class ForLstar:
    """The teacher as Weighted L* wants it: states are prefixes, every law is counted."""

    def __init__(self, teacher: Hmm):
        self._view = Ledger(teacher)
        self._horizon = teacher.spec.horizon
        self._laws = self._view.laws("learn")
        self.input_alphabet = list(range(teacher.spec.num_tokens))
        self.end_token = "<end>"
        self.internal_alphabet = [*self.input_alphabet, self.end_token]
        self.informal_name = self.name = "hmm"

    @property
    def queries(self) -> int:
        return self._view.total().next_token_queries

    def initial_state(self):
        return ()

    def next_state(self, state, token):
        return (*state, token)

    def state_probs_dist(self, state):
        if len(state) >= self._horizon:
            return [0.0] * len(self.input_alphabet) + [1.0]
        return [*self._laws.laws(Prefixes.of([list(state)]))[0].exp().tolist(), 0.0]

    def state_char_prob(self, state, token):
        return self.state_probs_dist(state)[self.internal_alphabet.index(token)]


def weighted_lstar(teacher: Hmm, clone: Path, seconds: int) -> dict:
    """Its own learner and settings, cut at a time limit; its PDFA scored by its weights."""
    sys.path.insert(0, str(clone))
    import Learner

    Learner.PDFA.draw_nicely = lambda *_, **__: None  # it would draw every hypothesis
    asked = ForLstar(teacher)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        pdfa, *_ = Learner.learn(
            asked, pdfas_path=folder, prints_path=log, expanding_time_limit=seconds,
            progress_P_print_rate=10**9,
        )  # fmt: skip
    elapsed = time.perf_counter() - started

    def log_q(strings: Strings) -> torch.Tensor:
        weights = [pdfa.weight(tuple(row)) for row in strings.tokens.tolist()]
        return torch.tensor(weights, dtype=torch.float64).clamp(min=1e-300).log()

    return {
        "queries": asked.queries,
        "total_variation": variation(teacher, log_q),
        "states": len(pdfa.transitions),
        "seconds": elapsed,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weighted-lstar", type=Path)
    parser.add_argument("--lstar-seconds", type=int, default=60)
    options = parser.parse_args()
    have_tntorch = importlib.util.find_spec("tntorch") is not None
    record = {"skipped": []}
    if not have_tntorch:
        record["skipped"].append("tntorch: not installed")
    if options.weighted_lstar is None:
        record["skipped"].append("Weighted L*: no clone given")
    for seed in (0, 1):
        for concentration in (0.3, 1.0):
            teacher = hmm_b(seed, concentration)
            row = {"myna": myna(teacher, Structure.TIME_VARYING)}
            if have_tntorch:
                row["tntorch"] = tntorch(teacher, 8)
            if options.weighted_lstar:
                row["weighted_lstar"] = weighted_lstar(
                    teacher, options.weighted_lstar, options.lstar_seconds
                )
            record[f"B seed {seed} concentration {concentration}"] = row
            print(seed, concentration, row, flush=True)
    anchor = read_hmm(need_shared() / "hmm_task.npz", 64)
    row = {structure.value: myna(anchor, structure) for structure in Structure}
    if have_tntorch:
        row["tntorch"] = tntorch(anchor, 16)
    record["A"] = row
    print("A", row)
    save("exact_hmms", record)


if __name__ == "__main__":
    main()
