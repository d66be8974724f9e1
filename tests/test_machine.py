"""Machines read off learned copies: as many states as distinct rows, the same laws."""

import json

import pytest
import torch

from myna.app.cli import main
from myna.errors import InputError
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.machine import read_machine
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.spec import Spec
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher


def learned(uri: str, structure: Structure | None = None):
    teacher = open_teacher(uri)
    result = learn_exact(
        Ledger(teacher), ExactSettings(structure=structure), torch.Generator().manual_seed(0)
    )
    assert isinstance(result.student, LowRankModel)
    return teacher, result.student


def same_laws(teacher, machine, max_tokens=None):
    drawn = teacher.sample(200, torch.Generator().manual_seed(1), max_tokens)
    torch.testing.assert_close(
        machine.model().score(drawn), teacher.score(drawn), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(("k", "states", "rank"), [(3, 10, 6), (5, 34, 8)])
def test_registers_have_more_rows_than_dimensions(k, states, rank):
    teacher, copy = learned(f"zoo:registers?k={k}")
    machine = read_machine(copy)
    assert (machine.num_states, machine.rank) == (states, rank)
    same_laws(teacher, machine)


def minimal_states(moves: torch.Tensor, accepts: torch.Tensor) -> int:
    """States of the minimal machine whose letters show the next state's bit, by pairs apart."""
    reached, frontier = {0}, [0]
    while frontier:
        frontier = [int(j) for i in frontier for j in moves[i] if int(j) not in reached]
        frontier = list(dict.fromkeys(frontier))
        reached |= set(frontier)
    bits = accepts[moves]
    apart = {(i, j) for i in reached for j in reached if bool((bits[i] != bits[j]).any())}
    while True:
        more = {
            (i, j)
            for i in reached
            for j in reached
            if (i, j) not in apart
            and any((int(a), int(b)) in apart for a, b in zip(moves[i], moves[j], strict=True))
        }
        if not more:
            break
        apart |= more
    classes = []
    for i in sorted(reached):
        if all((i, c) in apart for c in classes):
            classes.append(i)
    return len(classes)


def endless_labels(moves: torch.Tensor, accepts: torch.Tensor) -> LowRankModel:
    """A letter, then its state's accept bit, for ever: states (letter next) and (bit next)."""
    n, letters = moves.shape
    laws = torch.zeros((2 * n, letters + 2), dtype=torch.float64)
    laws[:n, :letters] = 1 / letters
    laws[n + torch.arange(n), letters + accepts] = 1.0
    change = torch.zeros((2 * n, letters + 2, 2 * n), dtype=torch.float64)
    for i in range(n):
        for a in range(letters):
            change[i, a, n + moves[i, a]] = 1.0
        change[n + i, letters + accepts[i], i] = 1.0
    first = torch.zeros(2 * n, dtype=torch.float64)
    first[0] = 1.0
    spec = Spec((*(f"a{i}" for i in range(letters)), "no", "yes"), None, None, "")
    return LowRankModel.of(spec, first, (Step(laws, change),))


@pytest.mark.parametrize("seed", range(5))
def test_label_models_give_the_minimal_automaton(seed):
    """The states where a letter comes next are those of the minimal DFA; also of a rough copy."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randint(8, (8, 2), generator=generator)
    accepts = torch.randint(2, (8,), generator=generator)
    machine = read_machine(endless_labels(moves, accepts))
    waiting = int((machine.laws[:, :2].sum(1) > 0.5).sum())
    assert waiting == minimal_states(moves, accepts)
    again = read_machine(machine.model())
    assert again.num_states == machine.num_states and torch.equal(again.moves, machine.moves)


@pytest.mark.parametrize("share", [0.25, 1 / 128, 0.1234565])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9])
def test_rows_that_agree_to_rounding_are_one_state(share, noise):
    """Wherever their probabilities lie: a grid has edges."""
    laws = torch.tensor([[share, 1 - share], [share + noise, 1 - share - noise]]).double()
    change = torch.zeros((2, 2, 2), dtype=torch.float64)
    change[:, 0, 0] = change[:, 1, 1] = 1.0
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    spec = Spec(("a", "b"), None, None, "")
    assert read_machine(LowRankModel.of(spec, first, (Step(laws, change),))).num_states == 1


def test_each_position_has_its_rows_under_a_horizon():
    """Parity: two rows from the first secret bit on; the start is shared by all."""
    teacher, copy = learned("zoo:parity?bits=5&seed=3")
    machine = read_machine(copy)
    assert machine.num_states == sum(min(2, r) for r in copy.ranks)
    same_laws(teacher, machine)
    assert machine.moves[-1].tolist() == [-1, -1]
    assert len(machine.histories[-1]) == 5


def test_endless_beliefs_are_refused():
    _, copy = learned("zoo:hmm?states=3&symbols=3&horizon=30&seed=1", Structure.STATIONARY)
    with pytest.raises(InputError, match=r"more than 50 .* at most 10\^14, one for each history"):
        read_machine(copy, max_states=50)


def test_a_horizon_bounds_the_rows():
    _, copy = learned("zoo:hmm?states=3&symbols=4&horizon=6&seed=2")
    with pytest.raises(InputError, match="at most 1,365, one for each history"):
        read_machine(copy, max_states=100)
    assert read_machine(copy, max_states=2000).num_states <= 1365


def test_the_command_writes_a_graph(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        return done.value.code, capsys.readouterr()

    copy, graph, kept = tmp_path / "copy", tmp_path / "m.dot", tmp_path / "machine"
    assert run("learn", "zoo:registers?k=2", "-o", copy)[0] == 0
    code, said = run("automaton", copy, "--dot", graph, "-o", kept, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["states"] == 6 and record["rank"] == 5
    text = graph.read_text()
    assert text.startswith("digraph") and 'label="flip0 0.225"' in text
    assert text.count("->") == record["edges"] + 1
    code, said = run("certify", kept, f"student:{copy}", "--json")
    assert code == 0 and json.loads(said.out)["total_variation"]["high"] < 1e-3 + 0.02
    code, said = run("automaton", copy, "--max-states", 3)
    assert code == 2 and "more than 3" in said.err
