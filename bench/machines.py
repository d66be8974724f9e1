"""Automata from queries: registers, beside AALpy's L#.

    python bench/machines.py [--k 3 5 7] [--most 5]    # L# needs aalpy and pydot, else it is left out

k one-bit registers that letters flip; a read shows one bit and clears them all: 2^k contents in
k + 3 dimensions. Ours: the exact learner (a query is one law), then the machine read off the copy at
no query. L#: the same registers as a Mealy machine (a query is one word, answered letter by
letter; steps are letters), equivalence by AALpy's random W-method with 12 walks a state. What each
spends on checking is shown apart. With k = 7 L# had not ended after several minutes and was left out.
States found are, for ours, with the two rows "a bit is shown next".
"""

import argparse
import time

import torch
from results import save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.lowrank.machine import read_machine
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

try:
    from aalpy.base import SUL
    from aalpy.learning_algs import run_Lsharp
    from aalpy.oracles import RandomWMethodEqOracle
except ImportError:
    SUL = object
    run_Lsharp = None


class Registers(SUL):
    """The Mealy machine."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.pre()

    def pre(self) -> None:
        self.bits = [0] * self.k

    def post(self) -> None:
        """Nothing to put away."""

    def step(self, letter):
        if letter is None:
            return None
        kind, i = letter
        if kind == "flip":
            self.bits[i] ^= 1
            return "done"
        shown, self.bits = self.bits[i], [0] * self.k
        return shown


def ours(k: int, seed: int) -> dict:
    ledger, began = Ledger(open_teacher(f"zoo:registers?k={k}")), time.perf_counter()
    result = learn_exact(ledger, ExactSettings(), torch.Generator().manual_seed(seed))
    machine = read_machine(result.student)
    spent = {name: account.next_token_queries for name, account in ledger.accounts().items()}
    return {
        "learner": "ours",
        "outcome": result.report.outcome.value,
        "states": machine.num_states,
        "rank": machine.rank,
        "queries_learning": spent["learn"],
        "queries_checking": spent["verify"],
        "seconds": time.perf_counter() - began,
    }


def l_sharp(k: int) -> dict:
    letters = [(kind, i) for kind in ("flip", "read") for i in range(k)]
    system, began = Registers(k), time.perf_counter()
    check = RandomWMethodEqOracle(letters, system, walks_per_state=12, walk_len=12)
    _, info = run_Lsharp(
        letters, system, check, automaton_type="mealy", return_data=True, print_level=0
    )
    return {
        "learner": "L#",
        "states": info["automaton_size"],
        "queries_learning": info["queries_learning"],
        "steps_learning": info["steps_learning"],
        "queries_checking": info["queries_eq_oracle"],
        "steps_checking": info["steps_eq_oracle"],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--k", type=int, nargs="+", default=[3, 5, 7])
    rows = []
    parser.add_argument("--most", type=int, default=5, help="the largest k given to L#")
    chosen = parser.parse_args()
    for k in chosen.k:
        found = [ours(k, 0)]
        if run_Lsharp is None:
            print("L# left out: aalpy is not installed (bench/requirements-peers.txt)")
        elif k <= chosen.most:
            found.append(l_sharp(k))
        for row in found:
            rows.append({"k": k, **row})
            print(rows[-1], flush=True)
            save("machines", {"runs": rows})


if __name__ == "__main__":
    main()
