"""AALpy's automata as teachers, and machines as AALpy's automata.

A Dfa over letters: after a word the string stops or a letter follows,

    P(stop | w) = .2 where w is accepted, .1 where not,     P(a | w) = (1 - P(stop | w)) / letters.

A Mealy or Moore machine: for ever a letter, all equally likely, then the output that it meets
(of a Moore machine: that of the state it leads to), certain. Outputs are named "/" and their text.

Back, a machine of the first form is a Dfa and one of the second a Mealy machine; any machine is a
Moore machine whose output is the law, with the state None where a token cannot come. AALpy is
imported when it is needed: pip install aalpy.
"""

import types
from typing import Any

import torch

from myna.errors import InputError
from myna.lowrank.machine import Machine, shortest_first
from myna.spec import Spec
from myna.teachers.machine import MachineTeacher

_ACCEPTED, _REFUSED = 0.2, 0.1
_NEAR = 1e-5
_DIGITS = 9


def read_dfa(automaton: Any) -> MachineTeacher:
    """The teacher that shows acceptance as the chance of the stop token.

    Raises:
        InputError: a letter that some state does not have.
    """
    letters, states, moves = _graph(automaton)
    count = len(letters)
    laws = torch.empty((len(states), count + 1), dtype=torch.float64)
    stops = [_ACCEPTED if state.is_accepting else _REFUSED for state in states]
    laws[:, count] = torch.tensor(stops, dtype=torch.float64)
    laws[:, :count] = (1 - laws[:, count:]) / count
    spec = Spec((*map(str, letters), "<stop>"), count, None, "")
    moves = torch.nn.functional.pad(torch.tensor(moves), (0, 1), value=-1)
    return MachineTeacher(shortest_first(spec, laws, moves))


def read_mealy(automaton: Any) -> MachineTeacher:
    """The teacher of letters and outputs in turn.

    Raises:
        InputError: a letter that some state does not have.
    """
    letters, states, moves = _graph(automaton)
    shown = [[state.output_fun[letter] for letter in letters] for state in states]
    return _in_turn(letters, moves, shown)


def read_moore(automaton: Any) -> MachineTeacher:
    """The teacher of letters and outputs in turn; the first state's output is not seen at first.

    Raises:
        InputError: a letter that some state does not have.
    """
    letters, states, moves = _graph(automaton)
    return _in_turn(letters, moves, [[states[target].output for target in row] for row in moves])


def dfa_of(machine: Machine) -> Any:
    """The Dfa behind a machine of the form that `read_dfa` gives.

    Raises:
        InputError: another form, or no AALpy.
    """
    stop = machine.spec.stop
    if stop is None:
        raise InputError("a Dfa needs a stop token whose chance shows acceptance; there is none")
    chance = machine.laws[:, stop]
    accepts = (chance - _ACCEPTED).abs() <= _NEAR
    moves = torch.cat([machine.moves[:, :stop], machine.moves[:, stop + 1 :]], 1)
    if bool((~accepts & ((chance - _REFUSED).abs() > _NEAR)).any()) or bool((moves < 0).any()):
        raise InputError(
            f"a Dfa is a machine that stops with probability {_ACCEPTED} or {_REFUSED} and follows "
            "every letter; use moore_of for others"
        )
    letters = [name for token, name in enumerate(machine.spec.alphabet) if token != stop]
    setup = {
        i: (accepted, dict(zip(letters, row, strict=True)))
        for i, (accepted, row) in enumerate(zip(accepts.tolist(), moves.tolist(), strict=True))
    }
    return _aalpy().Dfa.from_state_setup(setup)


def mealy_of(machine: Machine) -> Any:
    """The Mealy machine behind a machine of the form that `read_mealy` gives.

    Raises:
        InputError: another form, or no AALpy.
    """
    names = machine.spec.alphabet
    outputs = torch.tensor([name.startswith("/") for name in names])
    certain = machine.laws.amax(1) >= 1 - _NEAR
    told = certain & outputs[machine.laws.argmax(1)]
    leads = (machine.moves >= 0) == torch.where(told[:, None], machine.laws > 0.5, ~outputs)
    # a letter leads to where its output is certain, an output to where letters follow
    after = told[machine.moves.clamp(min=0)]
    turns = (machine.moves < 0) | (after == ~told[:, None])
    if machine.spec.stop is not None or not bool((leads & turns).all()) or bool(told[0]):
        raise InputError(
            "a Mealy machine is one of letters and certain outputs in turn, without a stop; use "
            "moore_of for others"
        )
    setup = {}
    for state in (~told).nonzero()[:, 0].tolist():
        setup[state] = row = {}
        for letter in (~outputs).nonzero()[:, 0].tolist():
            between = int(machine.moves[state, letter])
            shown = int(machine.laws[between].argmax())
            row[names[letter]] = (names[shown][1:], int(machine.moves[between, shown]))
    return _aalpy().MealyMachine.from_state_setup(setup)


def moore_of(machine: Machine) -> Any:
    """Any machine: inputs are tokens, a state's output its law, rounded to nine digits.

    A token that leads nowhere goes to the state None, whose output is None, and stays there.

    Raises:
        InputError: no AALpy.
    """
    names = machine.spec.alphabet
    setup: dict[int | None, tuple[tuple[float, ...] | None, dict[str, int | None]]] = {
        state: (
            tuple(round(p, _DIGITS) for p in law),
            {name: None if to < 0 else to for name, to in zip(names, row, strict=True)},
        )
        for state, (law, row) in enumerate(
            zip(machine.laws.tolist(), machine.moves.tolist(), strict=True)
        )
    }
    setup[None] = (None, dict.fromkeys(names))
    return _aalpy().MooreMachine.from_state_setup(setup)


def _aalpy() -> types.ModuleType:
    try:
        from aalpy import automata  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError as absent:
        raise InputError("AALpy's automata need AALpy: pip install aalpy") from absent
    return automata


def _graph(automaton: Any) -> tuple[list[Any], list[Any], list[list[int]]]:
    """Letters in the order of their text, states with the first one first, moves by number."""
    states = [automaton.initial_state]
    states += [state for state in automaton.states if state is not automaton.initial_state]
    letters = sorted({letter for state in states for letter in state.transitions}, key=str)
    number = {id(state): i for i, state in enumerate(states)}
    for i, state in enumerate(states):
        lacking = [letter for letter in letters if letter not in state.transitions]
        if lacking:
            raise InputError(
                f"state {state.state_id!r} (number {i}) has no letter {lacking[0]!r}; every state "
                "must have every letter (AALpy's make_input_complete adds them)"
            )
    moves = [[number[id(state.transitions[letter])] for letter in letters] for state in states]
    return letters, states, moves


def _in_turn(letters: list[Any], moves: list[list[int]], shown: list[list[Any]]) -> MachineTeacher:
    """States where a letter comes next, then one for each (state, output) that follows."""
    outputs = sorted({output for row in shown for output in row}, key=str)
    spec = Spec((*map(str, letters), *(f"/{output}" for output in outputs)), None, None, "")
    met = {
        (to, out) for row in zip(moves, shown, strict=True) for to, out in zip(*row, strict=True)
    }
    between = {pair: len(moves) + i for i, pair in enumerate(sorted(met, key=str))}
    count, size = len(letters), spec.num_tokens
    laws = torch.zeros((len(moves) + len(between), size), dtype=torch.float64)
    laws[: len(moves), :count] = 1 / count
    table = torch.full((len(laws), size), -1)
    for state, row in enumerate(zip(moves, shown, strict=True)):
        table[state, :count] = torch.tensor([between[pair] for pair in zip(*row, strict=True)])
    for (target, output), state in between.items():
        token = count + outputs.index(output)
        laws[state, token] = 1.0
        table[state, token] = target
    return MachineTeacher(shortest_first(spec, laws, table))
