"""Models of other libraries: read from stand-ins always, and from the libraries where they are."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from myna.errors import FormatError, InputError
from myna.lowrank.student import strings
from myna.teachers import hmm_objects
from myna.teachers.hmm import Hmm
from myna.teachers.hmm_objects import as_dynamax, as_hmmlearn, as_pomegranate, hmm_from_object
from myna.teachers.npz import read_hmm, write_hmm
from myna.teachers.uri import open_teacher

WORDS = [[0, 1, 2, 2], [2], [1, 0], [0, 0, 0, 2], [1, 2, 1]]


@pytest.fixture
def model():
    return open_teacher("zoo:hmm?states=3&symbols=3&horizon=4&seed=4")


def tables(model):
    return model.initial_law.numpy(), model.transition[0].numpy(), model.emission[0].numpy()


def hmmlearn_like(pi, moves, emits):
    return SimpleNamespace(startprob_=pi, transmat_=moves, emissionprob_=emits)


def dynamax_like(pi, moves, emits):
    return SimpleNamespace(
        initial=SimpleNamespace(probs=pi),
        transitions=SimpleNamespace(transition_matrix=moves),
        emissions=SimpleNamespace(probs=np.asarray(emits)[:, None]),
    )


def pomegranate_like(pi, moves, emits, ends=None):
    """Logarithms, as parameters that ask for gradients."""

    def logged(table):
        return torch.nn.Parameter(torch.as_tensor(np.asarray(table)).log())

    laws = [SimpleNamespace(probs=torch.nn.Parameter(torch.tensor(row)[None])) for row in emits]
    return SimpleNamespace(
        starts=logged(pi),
        edges=logged(moves),
        distributions=laws,
        ends=None if ends is None else logged(ends),
    )


LIKE = {"hmmlearn": hmmlearn_like, "dynamax": dynamax_like, "pomegranate": pomegranate_like}


@pytest.mark.parametrize("kind", LIKE)
def test_stand_ins_read_as_the_same_law(kind, model):
    found = hmm_from_object(LIKE[kind](*tables(model)), 4)
    assert found.spec.horizon == 4 and found.spec.stop is None
    words = strings(WORDS)
    torch.testing.assert_close(found.score(words), model.score(words), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("hmmlearn", ("startprob_", "transmat_", "emissionprob_")),
        ("dynamax", ("initial.probs", "transitions.transition_matrix", "emissions.probs")),
        ("pomegranate", ("starts", "edges", "distributions")),
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_rows_that_do_not_normalise_are_named_with_their_sum(kind, names, which, model):
    wrong = [table.copy() for table in tables(model)]
    wrong[which].reshape(-1, 3)[-1] *= 1.25
    row = 0 if which == 0 else 2
    named = names[which].replace(".", r"\.")
    with pytest.raises(
        InputError, match=rf"the {named} must sum to 1; row \[{row}\] sums to 1\.25"
    ):
        hmm_from_object(LIKE[kind](*wrong), 4)


def test_rows_rounded_to_float32_are_divided_by_their_sums(model):
    rounded = [table.astype(np.float32) for table in tables(model)]
    found = hmm_from_object(hmmlearn_like(*rounded), 4)
    assert float((found.transition.sum(-1) - 1).abs().max()) < 1e-15
    torch.testing.assert_close(found.transition, model.transition, rtol=0, atol=1e-7)


def test_a_constant_end_is_left_out_and_others_become_a_stop_token(model):
    pi, moves, emits = tables(model)
    found = hmm_from_object(pomegranate_like(pi, moves, emits, ends=[1 / 3] * 3), 4)
    torch.testing.assert_close(found.score(strings(WORDS)), model.score(strings(WORDS)))
    ends = np.array([0.1, 0.4, 0.25])
    kept = moves * (1 - ends)[:, None]
    stopping = hmm_from_object(pomegranate_like(pi, kept, emits, ends), 9)
    assert stopping.spec.alphabet == ("0", "1", "2", "<stop>") and stopping.spec.stop == 3
    for word in WORDS:
        weight = pi * emits[:, word[0]]
        for token in word[1:]:
            weight = (weight @ kept) * emits[:, token]
        found = float(stopping.score(strings([[*word, 3]]))[0])
        assert found == pytest.approx(np.log(weight @ ends), abs=1e-12)
    with pytest.raises(InputError, match=r"edges with ends must sum to 1; row \[0\] sums to 1\.1"):
        hmm_from_object(pomegranate_like(pi, moves, emits, ends), 9)


def test_probabilities_are_told_from_logarithms(model):
    pi, moves, emits = tables(model)
    plain = pomegranate_like(pi, moves, emits)
    plain.starts, plain.edges = torch.tensor(pi), torch.tensor(moves)
    torch.testing.assert_close(hmm_from_object(plain, 4).transition, model.transition)
    single = pomegranate_like([1.0], [[1.0]], [[0.5, 0.5]])
    assert float(hmm_from_object(single, 4).score(strings([[0, 1]]))[0]) == pytest.approx(
        np.log(0.25)
    )


def test_objects_of_other_kinds_are_refused(model):
    pi, moves, emits = tables(model)
    two = dynamax_like(pi, moves, emits)
    two.emissions.probs = np.repeat(two.emissions.probs, 2, 1)
    counts = hmmlearn_like(pi, moves, emits)
    counts.n_trials = 2
    unfitted = SimpleNamespace(startprob_=pi, transmat_=moves)
    bernoulli = pomegranate_like(pi, moves, emits)
    bernoulli.distributions[0].probs = torch.tensor([0.5])
    for wrong, message in [
        (object(), "which has the attributes of none"),
        (two, r"\(states, 1, tokens\)"),
        (counts, "use its CategoricalHMM"),
        (unfitted, "emissionprob_ must be a table"),
        (hmmlearn_like(pi[:2], moves, emits), "the same states"),
        (hmmlearn_like(pi, "abc", emits), "transmat_ must be a table of numbers"),
        (bernoulli, r"distributions\[0\]\.probs must be a table with 2 dimensions"),
    ]:
        with pytest.raises(InputError, match=message):
            hmm_from_object(wrong, 4)


@pytest.mark.parametrize("write", [as_hmmlearn, as_dynamax, as_pomegranate])
def test_what_the_libraries_cannot_hold_is_refused(write):
    varying = open_teacher("zoo:hmm?states=2&symbols=3&horizon=4&varying=true")
    with pytest.raises(InputError, match="has 4 tables and stop token None"):
        write(varying)


@pytest.mark.parametrize(
    ("write", "package"),
    [(as_hmmlearn, "hmmlearn"), (as_dynamax, "dynamax"), (as_pomegranate, "pomegranate")],
)
def test_an_absent_library_is_named(write, package, model, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(hmm_objects.importlib, "import_module", absent)
    with pytest.raises(InputError, match=f"pip install {package}"):
        write(model)


def own_score(kind, made, words):
    """Log-probabilities by the library itself."""
    if kind == "hmmlearn":
        return [made.score(np.array(word)[:, None]) for word in words]
    if kind == "pomegranate":
        return [float(made.log_probability(torch.tensor(word)[None, :, None])[0]) for word in words]
    dynamax = pytest.importorskip("dynamax.hidden_markov_model")
    reader = dynamax.CategoricalHMM(3, 1, 3)
    return [float(reader.marginal_log_prob(made, np.array(word)[:, None])) for word in words]


@pytest.mark.filterwarnings("default")  # theirs, of each other
@pytest.mark.parametrize(
    ("kind", "module", "write", "tolerance"),
    [
        ("hmmlearn", "hmmlearn.hmm", as_hmmlearn, 1e-10),
        ("dynamax", "dynamax.hidden_markov_model", as_dynamax, 1e-5),  # float32
        ("pomegranate", "pomegranate.hmm", as_pomegranate, 1e-5),  # float32
    ],
)
def test_round_trips_keep_the_probability_of_every_string(kind, module, write, tolerance, model):
    pytest.importorskip(module, reason=f"{kind} is not installed")
    made = write(model)
    words = [list(word) for n in (1, 2, 3) for word in itertools.product(range(3), repeat=n)]
    expected = model.score(strings(words))
    again = hmm_from_object(made, 4)
    torch.testing.assert_close(again.score(strings(words)), expected, rtol=0, atol=tolerance)
    found = torch.tensor(own_score(kind, made, words), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("underscore", ["_", ""])
def test_archives_may_use_the_names_of_hmmlearn(underscore, model, tmp_path):
    path = tmp_path / "h.npz"
    names = [f"{name}{underscore}" for name in ("startprob", "transmat", "emissionprob")]
    np.savez(path, **dict(zip(names, tables(model), strict=True)))
    torch.testing.assert_close(
        read_hmm(path, 4).score(strings(WORDS)), model.score(strings(WORDS)), rtol=0, atol=0
    )
    np.savez(path, pi=tables(model)[0], **dict(zip(names, tables(model), strict=True)))
    with pytest.raises(FormatError, match="one table under two names, pi and startprob"):
        read_hmm(path, 4)


@pytest.mark.parametrize(
    ("hmmlearn", "keys"),
    [(False, ["pi", "T", "E"]), (True, ["startprob_", "transmat_", "emissionprob_"])],
)
def test_written_archives_read_back(hmmlearn, keys, model, tmp_path):
    path = tmp_path / "h.npz"
    parts = model.initial_law, model.transition[0], model.emission[0]
    write_hmm(path, *parts, hmmlearn=hmmlearn)
    assert np.load(path).files == keys
    again = read_hmm(path, 4)
    assert isinstance(again, Hmm)
    torch.testing.assert_close(again.emission, model.emission, rtol=0, atol=0)
