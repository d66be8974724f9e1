"""Automata from queries: registers and AALpy's random Dfas, beside AALpy's L#.

    python bench/machines.py [--k 3 5 7] [--most 7] [--sizes 50 100 200 500]

k one-bit registers that letters flip; a read shows one bit and clears them all: 2^k contents in
k + 3 dimensions. Random Dfas: 4 letters, n states of which half accept, a teacher by
`myna.teachers.aalpy_objects`. Three learners:

    ours, exact    the exact learner, then the machine read off the copy at no query (registers)
    ours, states   `myna.learn.states` with its defaults
    L#             AALpy's, with its random W-method: on registers, as a Mealy machine, 12 walks of at
                   most 12 letters a state, and twice as many until it is right; on Dfas of at most
                   30, once 50 a state and once 20, as many as our words to check. Random choices:
                   the seed

Units: a query of ours is the law after one distinct prefix. A word is a prefix that was asked and
none of whose extensions was (for learning and for checking apart); L#'s query is one word, answered
letter by letter, repeated words not counted, and its steps are letters, repeated ones counted. What
is spent on checking is shown apart. `same`: the machine found equals the true one, by AALpy's
bisimilarity for Dfas and Mealy machines, by tables in canonical order for registers of ours. States
on registers are, for ours, with the two rows "a bit is shown next". Rows of an earlier run stay
where this run has no such row. L# needs aalpy and pydot; the Dfas, too.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator

import torch
from results import FOLDER, save

from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.learn.states import StatesSettings, learn_states
from myna.lowrank.machine import Machine, read_machine, shortest_first
from myna.spec import Spec
from myna.teachers.aalpy_objects import dfa_of, read_dfa
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

try:
    from aalpy.automata import MealyMachine
    from aalpy.learning_algs import run_Lsharp
    from aalpy.oracles import RandomWMethodEqOracle
    from aalpy.SULs import AutomatonSUL
    from aalpy.utils import bisimilar, generate_random_deterministic_automata
except ImportError:
    run_Lsharp = None


WALKS = (50, 20)  # of L#'s check on Dfas, a state
MORE_WALKS = (12, 24, 48, 96, 192)  # on registers


def true_registers(k: int) -> Machine:
    """By hand: contents, then the two rows "a bit is shown next"."""
    contents, show = 2**k, torch.zeros((2, 2 * k + 3), dtype=torch.float64)
    laws = torch.full((contents, 2 * k + 3), 0.9 / (2 * k), dtype=torch.float64)
    laws[:, 2 * k : 2 * k + 2], laws[:, -1] = 0.0, 0.1
    show[0, 2 * k] = show[1, 2 * k + 1] = 1.0
    moves = torch.full((contents + 2, 2 * k + 3), -1)
    for held in range(contents):
        for i in range(k):
            moves[held, i], moves[held, k + i] = held ^ (1 << i), contents + (held >> i & 1)
    moves[contents, 2 * k] = moves[contents + 1, 2 * k + 1] = 0
    names = [f"flip{i}" for i in range(k)] + [f"read{i}" for i in range(k)] + ["0", "1", "<stop>"]
    spec = Spec(tuple(names), 2 * k + 2, None, "")
    return shortest_first(spec, torch.cat([laws, show]), moves)


def mealy_registers(k: int) -> "MealyMachine":
    setup = {}
    for held in range(2**k):
        flips = {f"flip{i}": ("done", held ^ (1 << i)) for i in range(k)}
        setup[held] = flips | {f"read{i}": (held >> i & 1, 0) for i in range(k)}
    return MealyMachine.from_state_setup(setup)


def equal(found: Machine, truth: Machine) -> bool:
    """Whether tables are equal, each in the order of shortest histories."""
    mine = shortest_first(found.spec, found.laws, found.moves)
    return torch.equal(mine.moves, truth.moves) and torch.allclose(mine.laws, truth.laws, atol=1e-9)


def ours_exact(k: int, seed: int) -> dict:
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
        "same": equal(machine, true_registers(k)),
    }


def ours_states(teacher, seed: int) -> tuple[Machine, dict]:
    ledger = Ledger(teacher)
    result = learn_states(ledger, StatesSettings(), torch.Generator().manual_seed(seed))
    report = result.report
    spent = {name: account.next_token_queries for name, account in report.accounts.items()}
    return result.machine, {
        "learner": "ours, states",
        "outcome": report.outcome.value,
        "states": report.states,
        "queries_learning": spent["learn"],
        "words_learning": report.words["learn"],
        "queries_checking": spent["check"],
        "words_checking": report.words["check"],
        "rounds": report.rounds,
        "seconds": report.seconds,
    }


def l_sharp(truth, kind: str, walks: int, length: int, seed: int) -> dict:
    random.seed(seed)
    letters, system, began = truth.get_input_alphabet(), AutomatonSUL(truth), time.perf_counter()
    check = RandomWMethodEqOracle(letters, system, walks_per_state=walks, walk_len=length)
    found, info = run_Lsharp(
        letters, system, check, automaton_type=kind, return_data=True, print_level=0
    )
    seconds = time.perf_counter() - began
    return {
        "learner": "L#",
        "states": info["automaton_size"],
        "queries_learning": info["queries_learning"],
        "steps_learning": info["steps_learning"],
        "queries_checking": info["queries_eq_oracle"],
        "steps_checking": info["steps_eq_oracle"],
        "seconds": seconds,
        "same": bisimilar(found, truth),
    }


def on_registers(k: int, most: int) -> list[dict]:
    machine, row = ours_states(open_teacher(f"zoo:registers?k={k}"), 0)
    rows = [ours_exact(k, 0), row | {"same": equal(machine, true_registers(k))}]
    if run_Lsharp is not None and k <= most:
        rows += until_right(k)
    return [{"k": k, **row} for row in rows]


def until_right(k: int) -> Iterator[dict]:
    """L# with more and more walks a state, until its machine is the true one."""
    for walks in MORE_WALKS:
        row = l_sharp(mealy_registers(k), "mealy", walks, 12, 0)
        yield row | {"walks": walks}
        if row["same"]:
            return


def on_random(states: int, seed: int, largest: int) -> list[dict]:
    random.seed(seed)
    truth = generate_random_deterministic_automata(
        "dfa",
        num_states=states,
        input_alphabet_size=4,
        output_alphabet_size=2,
        num_accepting_states=states // 2,
    )
    machine, row = ours_states(read_dfa(truth), seed)
    rows = [row | {"same": bisimilar(dfa_of(machine), truth)}]
    if states <= largest:
        rows += [l_sharp(truth, "dfa", walks, 30, seed) | {"walks": walks} for walks in WALKS]
    for row in rows:
        row["total"] = row["queries_checking"] + row["queries_learning"]
        if "words_learning" in row:
            row["total_words"] = row["words_checking"] + row["words_learning"]
        else:
            row["total_steps"] = row["steps_checking"] + row["steps_learning"]
    return [{"dfa": states, "seed": seed, **row} for row in rows]


def keep(rows: list[dict]) -> None:
    """Write these rows in the place of earlier ones with the same task."""
    path = FOLDER / "machines.json"
    old = json.loads(path.read_text())["runs"] if path.exists() else []

    def task(row: dict) -> tuple:
        return row.get("k", 0), row.get("dfa", 0), row.get("seed", 0)

    done = {task(row) for row in rows}
    save("machines", {"runs": sorted([r for r in old if task(r) not in done] + rows, key=task)})


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--k", type=int, nargs="*", default=[3, 5, 7])
    parser.add_argument("--most", type=int, default=7, help="the largest k given to L#")
    parser.add_argument("--sizes", type=int, nargs="*", default=[50, 100, 200, 500])
    parser.add_argument("--largest", type=int, default=500, help="the largest Dfa given to L#")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    if run_Lsharp is None:
        print("L# and Dfas left out: aalpy is not installed (bench/requirements-peers.txt)")
        chosen.sizes = []
    tasks = [(on_registers, (k, chosen.most)) for k in chosen.k]
    tasks += [(on_random, (n, seed, chosen.largest)) for n in chosen.sizes for seed in chosen.seeds]
    for learners, task in tasks:
        rows = learners(*task)
        keep(rows)
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
