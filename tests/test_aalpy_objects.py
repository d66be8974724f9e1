"""AALpy's automata as teachers and back; reading needs no AALpy, writing does."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch

from myna.errors import InputError
from myna.learn.states import StatesSettings, learn_states
from myna.teachers.aalpy_objects import dfa_of, mealy_of, moore_of, read_dfa, read_mealy, read_moore
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def learned(teacher):
    generator = torch.Generator().manual_seed(0)
    machine = learn_states(Ledger(teacher), StatesSettings(check_words=400), generator).machine
    assert machine is not None
    return machine


def ends_in_b():
    """Two states over a and b, built by hand: accepted after b."""
    no, yes = (
        SimpleNamespace(state_id=name, is_accepting=name == "yes", output=name, transitions={})
        for name in ("no", "yes")
    )
    for state in (no, yes):
        state.transitions = {"b": yes, "a": no}
        state.output_fun = {"a": "quiet", "b": "again" if state is yes else "first"}
    return SimpleNamespace(initial_state=no, states=[yes, no])


def test_a_dfa_shows_acceptance_as_the_chance_to_stop():
    teacher = read_dfa(ends_in_b())
    assert teacher.spec.alphabet == ("a", "b", "<stop>") and teacher.spec.stop == 2
    laws = teacher.laws(Prefixes.of([[], [1], [1, 0], [0, 1, 1]])).exp()
    no, yes = [0.45, 0.45, 0.1], [0.4, 0.4, 0.2]
    torch.testing.assert_close(laws, torch.tensor([no, yes, no, yes], dtype=torch.float64))


def test_a_mealy_machine_answers_each_letter():
    teacher = read_mealy(ends_in_b())
    assert teacher.spec.alphabet == ("a", "b", "/again", "/first", "/quiet")
    assert teacher.spec.stop is None
    laws = teacher.laws(Prefixes.of([[], [1], [1, 3], [1, 3, 1], [1, 3, 0]])).exp()
    assert laws[0].tolist() == laws[2].tolist() == [0.5, 0.5, 0, 0, 0]
    assert laws[1:].argmax(1).tolist() == [3, 0, 2, 4] and laws[3].max() == 1
    with pytest.raises(InputError, match="probability zero"):
        teacher.laws(Prefixes.of([[1, 2]]))


def test_a_moore_machine_shows_the_state_it_comes_to():
    teacher = read_moore(ends_in_b())
    assert teacher.spec.alphabet == ("a", "b", "/no", "/yes")
    laws = teacher.laws(Prefixes.of([[1], [1, 3, 0], [0]])).exp()
    assert laws.argmax(1).tolist() == [3, 2, 2]


def test_a_missing_letter_is_refused():
    automaton = ends_in_b()
    del automaton.states[0].transitions["a"]
    automaton.states[0].transitions = {"b": automaton.states[0]}
    with pytest.raises(InputError, match=r"'yes'.*no letter 'a'"):
        read_dfa(automaton)


def test_without_aalpy_writing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aalpy", None)
    with pytest.raises(InputError, match="pip install aalpy"):
        dfa_of(learned(read_dfa(ends_in_b())))


def test_other_forms_are_refused():
    registers = learned(open_teacher("zoo:registers?k=1"))
    with pytest.raises(InputError, match="a Dfa is a machine"):
        dfa_of(registers)
    with pytest.raises(InputError, match="letters and certain outputs"):
        mealy_of(registers)
    with pytest.raises(InputError, match="needs a stop token"):
        dfa_of(learned(read_mealy(ends_in_b())))
    with pytest.raises(InputError, match="letters and certain outputs"):
        mealy_of(learned(read_dfa(ends_in_b())))


@pytest.fixture
def aalpy_utils():
    return pytest.importorskip("aalpy.utils", reason="AALpy is not installed: pip install aalpy")


@pytest.mark.parametrize("seed", range(3))
def test_random_dfas_come_back(aalpy_utils, seed):
    random.seed(seed)
    truth = aalpy_utils.generate_random_deterministic_automata(
        "dfa", num_states=15, input_alphabet_size=3, output_alphabet_size=2, num_accepting_states=7
    )
    found = dfa_of(learned(read_dfa(truth)))
    assert aalpy_utils.bisimilar(found, truth)
    truth.minimize()
    assert found.size == truth.size
    found.states[-1].is_accepting = not found.states[-1].is_accepting
    assert not aalpy_utils.bisimilar(found, truth)


@pytest.mark.parametrize("kind", ["mealy", "moore"])
def test_random_machines_come_back(aalpy_utils, kind):
    random.seed(4)
    truth = aalpy_utils.generate_random_deterministic_automata(
        kind, num_states=10, input_alphabet_size=2, output_alphabet_size=3
    )
    teacher = read_mealy(truth) if kind == "mealy" else read_moore(truth)
    found = mealy_of(learned(teacher))
    for _ in range(50):
        word = random.choices(truth.get_input_alphabet(), k=12)
        found.reset_to_initial()
        truth.reset_to_initial()
        assert [found.step(a) for a in word] == [str(truth.step(a)) for a in word]


def test_any_machine_is_a_moore_machine(aalpy_utils):
    machine = learned(open_teacher("zoo:registers?k=1"))
    found = moore_of(machine)
    assert found.size == machine.num_states + 1 and found.is_input_complete()
    found.reset_to_initial()
    assert found.step("flip0")[1] == 0.45  # read0 comes with (1 - .1) / 2
    assert found.step("read0")[3] == 1.0  # a 1 is shown
    assert found.step("flip0") is None and found.step("read0") is None
