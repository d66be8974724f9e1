import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from myna.errors import FormatError, InputError
from myna.lowrank.student import Strings, strings
from myna.teachers.hmm import Hmm
from myna.teachers.hmmer3 import read_fasta, read_profile, read_profile_numbers
from myna.teachers.npz import read_hmm
from myna.teachers.pautomac import read_automaton, read_solution, read_strings
from myna.teachers.uri import open_teacher

ODD = range(1, 48, 2)

MODEL = """I: (state)
\t(0) 1.0
F: (state)
\t(1) 0.5
S: (state,symbol)
\t(0,0) 0.25
\t(0,1) 0.75
\t(1,1) 1.0
T: (state,symbol,state)
\t(0,0,1) 1.0
\t(0,1,0) 0.4
\t(0,1,1) 0.6
\t(1,1,0) 1.0
"""

PROFILE = """HMMER3/f [3.2 | April 2018]
NAME  tiny
LENG  3
ALPH  DNA
HMM          A        C        G        T
            m->m     m->i     m->d     i->m     i->i     d->m     d->d
  COMPO   1.38629  1.38629  1.38629  1.38629
          1.38629  1.38629  1.38629  1.38629
          0.51083  1.60944  1.60944  0.69315  0.69315  0.00000        *
      1   0.35667  2.30259  2.30259  2.30259      1 a - - -
          1.20397  1.20397  1.60944  1.60944
          0.51083  1.60944  1.60944  0.35667  1.20397  0.69315  0.69315
      2   2.30259  0.35667  2.30259  2.30259      2 c - - -
          1.38629  1.38629  1.38629  1.38629
          0.22314  2.30259  2.30259  0.69315  0.69315  0.91629  0.51083
      3   2.30259  2.30259  0.35667  2.30259      3 g - - -
          1.38629  1.38629  1.38629  1.38629
          0.10536  2.30259        *  0.69315  0.69315  0.00000        *
//
"""


def with_stop(batch, stop):
    rows = zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
    return strings([[*row[:n], stop] for row, n in rows])


@pytest.fixture
def write(tmp_path):
    def written(text, name="file"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def test_pautomac_model_is_its_formula(write):
    teacher = read_automaton(write(MODEL))
    assert teacher.spec.alphabet == ("0", "1", "<stop>")
    score = teacher.score(strings([[0, 2], [1, 0, 2], [1, 1, 2], [2]])).exp()
    both = 0.75 * 0.4 * 0.75 * 0.6 * 0.5 + 0.75 * 0.6 * 0.5 * 0.0
    expected = [0.25 * 0.5, 0.75 * 0.4 * 0.25 * 0.5, both, 0.0]
    torch.testing.assert_close(score, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("(0,0) 0.25", "(0,0) quarter", r"line 6, section S: wanted a probability, got 'quarter'"),
        ("(0,0) 0.25", "(0) 0.25", r"line 6, section S: wanted \(number, number\) value"),
        (
            "(0,0) 0.25",
            "(0,0) 0.30",
            r"section S: the probabilities of row \[0\] must sum to 1.*1.05",
        ),
        ("\t(1,1,0) 1.0\n", "", r"state 1 symbol 1, and section T has no target"),
        ("F: (state)\n\t(1) 0.5\n", "", r"lacks section F"),
        ("\t(0) 1.0\n", "", r"section I names no initial state"),
        ("I: (state)\n", "", r"line 1, section None: wanted a section header"),
    ],
)
def test_pautomac_errors_name_line_and_field(write, before, after, message):
    with pytest.raises(FormatError, match=message):
        read_automaton(write(MODEL.replace(before, after, 1)))


def test_string_and_solution_errors(write):
    with pytest.raises(FormatError, match="line 2: wanted a length"):
        read_strings(write("1 2\n3 0 1\n"))
    with pytest.raises(FormatError, match="promises 2 strings"):
        read_strings(write("2 2\n1 0\n"))
    with pytest.raises(FormatError, match="line 1"):
        read_strings(write(""))
    with pytest.raises(FormatError, match="line 3: wanted a probability"):
        read_solution(write("2\n0.5\nhalf\n"))
    with pytest.raises(FormatError, match="cannot be read"):
        read_strings(Path("/nowhere/at/all"))


@pytest.mark.parametrize("problem", ODD)
def test_pautomac_targets_give_the_solutions(shared_data, problem):
    folder = shared_data / "pautomac"
    teacher = read_automaton(folder / f"{problem}.pautomac_model.txt")
    batch, _ = read_strings(folder / f"{problem}.pautomac.test")
    solution = read_solution(folder / f"{problem}.pautomac_solution.txt")
    ours = teacher.score(with_stop(batch, teacher.spec.stop)).softmax(0)
    assert float((ours / solution - 1).abs().max()) < 1e-9


def paths_probability(profile, row):
    """P(row) by a forward table over nodes in order, silent deletes included."""
    length = len(profile.match)
    n = len(row)
    m, i, d = (np.zeros((length + 2, n + 1)) for _ in range(3))
    m[0, 0] = 1.0
    moves = profile.moves.numpy()
    for used in range(n + 1):
        for k in range(length + 2):
            if k > 0:
                mm, mi, md, im, ii, dm, dd = moves[k - 1]
                if k <= length and used:
                    into = (
                        m[k - 1, used - 1] * mm + i[k - 1, used - 1] * im + d[k - 1, used - 1] * dm
                    )
                    m[k, used] = into * float(profile.match[k - 1, row[used - 1]])
                if k <= length:
                    d[k, used] = m[k - 1, used] * md + d[k - 1, used] * dd
            if k <= length and used:
                mm, mi, md, im, ii, dm, dd = moves[k]
                stay = m[k, used - 1] * mi + i[k, used - 1] * ii
                i[k, used] = stay * float(profile.insert[k, row[used - 1]])
    mm, mi, md, im, ii, dm, dd = moves[length]
    return m[length, n] * (mm + md) + i[length, n] * im + d[length, n] * (dm + dd)


def test_profiles_lose_nothing_with_their_silent_states(write):
    path = write(PROFILE)
    profile, teacher = read_profile_numbers(path), read_profile(path)
    stop = teacher.spec.stop
    rows = [list(r) for n in range(5) for r in itertools.product(range(4), repeat=n)]
    ours = teacher.score(strings([[*row, stop] for row in rows])).exp()
    naive = torch.tensor([paths_probability(profile, row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=0)
    assert naive[0] > 0  # all three nodes deleted


def test_profile_strings_exhaust_the_mass(write, generator):
    teacher = read_profile(write(PROFILE))
    mass = torch.zeros(1, dtype=torch.float64)
    state = teacher.initial(1).vector
    for _ in range(400):
        law = state @ torch.cat([teacher._emission[0]])
        mass = mass + law[:, -1]
        state = (state * (1 - teacher._emission[0][:, -1])) @ teacher._transition[0]
    assert float(mass) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("HMMER3/f", "HMMER2.0", "line 1: wanted a HMMER3 profile"),
        ("//\n", "", "wanted '//' after node 3"),
        ("      2   2.30259", "      7   2.30259", r"line 13: wanted node 2 \(match emissions"),
        (
            "0.22314  2.30259",
            "0.22314  x",
            "line 15: wanted numbers or .* in transitions of node 2",
        ),
        ("LENG  3", "LENG  many", "LENG n"),
        ("      1   0.35667", "      1   3.35667", "match emissions, row 0, must sum to 1"),
    ],
)
def test_profile_errors_name_line_and_field(write, before, after, message):
    with pytest.raises(FormatError, match=message):
        read_profile(write(PROFILE.replace(before, after, 1)))


def test_fasta(write):
    alphabet = tuple("ACGT")
    batch = read_fasta(write(">one\nAC\nGT\n>two\nTT\n"), alphabet)
    assert batch.lengths.tolist() == [4, 2]
    assert batch.tokens[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(FormatError, match=r"line 2: sequence 'one' has 'X'"):
        read_fasta(write(">one\nAX\n"), alphabet)
    with pytest.raises(FormatError, match="wanted a name"):
        read_fasta(write("AC\n"), alphabet)


def test_real_profiles_have_all_their_mass(shared_data, generator):
    sizes = {"globins4": 300, "Pkinase": 522, "RRM_1": 144, "fn3": 174, "MADE1": 162, "ecori": 14}
    for name, states in sizes.items():
        teacher = read_profile(shared_data / "pfam" / f"{name}.hmm")
        assert teacher.num_states == states
        drawn = teacher.sample(20, generator)
        assert bool((drawn.tokens.gather(1, drawn.lengths[:, None] - 1) == teacher.spec.stop).all())
    assert (
        len(
            read_fasta(shared_data / "pfam" / "globins45.fa", tuple("ACDEFGHIKLMNPQRSTVWY")).lengths
        )
        == 45
    )


def test_npz_reads_and_explains(tmp_path):
    path = tmp_path / "h.npz"
    table = np.array([[0.9, 0.1], [0.2, 0.8]])
    np.savez(path, pi=np.array([0.5, 0.5]), T=table, E=table)
    assert read_hmm(path, 5).spec.horizon == 5
    np.savez(path, pi=np.array([0.5, 0.5]), T=table)
    with pytest.raises(FormatError, match="lacks key 'E'"):
        read_hmm(path, 5)
    np.savez(path, pi=np.array([0.5, 0.5]), T=table[:, :1], E=table)
    with pytest.raises(FormatError, match=r"wanted pi \(S,\) and T"):
        read_hmm(path, 5)
    np.savez(path, pi=np.array([0.5, 0.5]), T=table, E=table * 2)
    with pytest.raises(FormatError, match="row of the emission must sum to 1"):
        read_hmm(path, 5)
    path.write_text("no archive")
    with pytest.raises(FormatError, match="numpy archive"):
        read_hmm(path, 5)


def _sparse(**changed):
    """Three states over four tokens, as entries out of order."""
    parts = {
        "initial": np.array([0.5, 0.5, 0.0]),
        "transition": np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [1.0, 0.0, 0.0]]),
        "emission_rows": np.array([2, 0, 1, 0], dtype=np.int32),
        "emission_cols": np.array([3, 0, 1, 2], dtype=np.int32),
        "emission_values": np.array([1.0, 0.25, 1.0, 0.75]),
        "emission_shape": np.array([3, 4]),
        "symbols": np.array(["a", "b", "c", "\u4e00"]),
    }
    return {name: part for name, part in (parts | changed).items() if part is not None}


def test_emissions_as_entries(tmp_path):
    path = tmp_path / "h.npz"
    np.savez(path, **_sparse())
    teacher = open_teacher(f"hmm:{path}")
    assert isinstance(teacher, Hmm)
    expected = [[0.25, 0, 0.75, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert teacher.emission[0].tolist() == expected
    assert teacher.spec.horizon is None and teacher.spec.alphabet == ("a", "b", "c", "\u4e00")
    assert teacher.initial_law.tolist() == [0.5, 0.5, 0.0]
    np.savez(path, pi=teacher.initial_law, T=teacher.transition[0], E=np.array(expected))
    assert open_teacher(f"hmm:{path}?horizon=4").spec.horizon == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"emission_values": np.array([1.0, 0.25, 1.0, 0.5])}, r"row \[0\] sums to 0.75"),
        ({"emission_rows": np.array([2, 0, 1, 3])}, r"entry 3 .* \[3, 2\], outside of 3 x 4"),
        ({"emission_cols": np.array([3, -1, 1, 2])}, r"entry 1 .* \[0, -1\], outside"),
        ({"emission_rows": np.array([2.0, 0.0, 1.0, 0.0])}, "must hold whole numbers"),
        ({"emission_cols": np.array([3, 0, 1, 0])}, r"\[0, 0\] of the emission is given twice"),
        ({"emission_values": np.ones(3)}, "lists of one length"),
        ({"emission_shape": np.array([3, 4, 1])}, "must be two sizes"),
        ({"emission_shape": np.array([3, 2**40])}, "asks for a table"),
        ({"emission_shape": None}, "lacks key 'emission_shape'"),
        ({"emission": np.ones((3, 4)) / 4}, "has E twice"),
        ({"symbols": np.array(["a", "b"])}, "for each of 4 tokens"),
        ({"symbols": np.array(["a", "b", "c", "c"])}, "repeats a name"),
        ({"symbols": np.arange(4)}, "must hold names"),
        ({"symbols": np.array([None, "b", "c", "d"])}, "must hold names"),
    ],
)
def test_entries_that_make_no_emission_are_refused(tmp_path, changed, message):
    path = tmp_path / "h.npz"
    np.savez(path, **_sparse(**changed))
    with pytest.raises(FormatError, match=message):
        read_hmm(path, 5)


def test_the_part_of_speech_model_of_jieba(shared_data):
    path = shared_data / "jieba" / "jieba_pos_hmm.npz"
    if not path.is_file():
        pytest.skip(f"jieba's model is not here: {path} is absent")
    teacher = read_hmm(path, None)
    kept = np.load(path, allow_pickle=False)
    assert (teacher.num_states, teacher.spec.num_tokens) == (163, 8870)
    assert int((teacher.emission != 0).sum()) == len(kept["emission_values"])
    row, column = int(kept["emission_rows"][-1]), int(kept["emission_cols"][-1])
    assert float(teacher.emission[0, row, column]) == kept["emission_values"][-1]
    assert teacher.spec.alphabet[column] == str(kept["symbols"][column])


def test_anchor_likelihood(shared_data):
    teacher = read_hmm(shared_data / "hmm_task.npz", 64)
    held_out = torch.from_numpy(np.load(shared_data / "hmm_task.npz")["Xte"])
    scores = teacher.score(Strings(held_out, torch.full((2000,), 64)))
    assert -float(scores.mean()) == pytest.approx(210.4437, abs=1e-3)
    assert math.isfinite(float(scores.sum()))


def test_horizons_must_be_positive(tmp_path):
    path = tmp_path / "h.npz"
    np.savez(path, pi=np.ones(1), T=np.ones((1, 1)), E=np.ones((1, 1)))
    with pytest.raises(InputError, match="horizon must be at least 1"):
        read_hmm(path, 0)
