import itertools

import naive
import pytest
import torch

from myna.errors import InputError
from myna.lowrank.student import State, strings
from myna.teachers.uri import family_of, open_teacher, zoo_table
from myna.teachers.zoo import FAMILIES, Copy, Parity


def ranks(uri):
    teacher = open_teacher(uri)
    return [
        naive.numerical_rank(naive.hankel_block(teacher, t)) for t in range(teacher.spec.horizon)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_parity_ranks(seed):
    assert tuple(ranks(f"zoo:parity?bits=5&seed={seed}")) == Parity(bits=5, seed=seed).ranks()
    assert set(ranks(f"zoo:parity?bits=5&seed={seed}&noise=0.5")) == {1}


def test_parity_is_its_definition():
    family = Parity(bits=4, noise=0.2, seed=1)
    secret = family.secret().tolist()
    for bits in itertools.product((0, 1), repeat=4):
        label = sum(b * s for b, s in zip(bits, secret, strict=True)) % 2
        scores = family.teacher().score(strings([[*bits, label], [*bits, 1 - label]])).exp()
        assert scores.tolist() == pytest.approx([0.8 / 16, 0.2 / 16])


@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 2), (2, 3)])
def test_copy_ranks(n, k):
    assert tuple(ranks(f"zoo:copy?n={n}&k={k}")) == Copy(n=n, k=k).ranks()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("zoo:hmm?states=3&symbols=2&horizon=5", [1, 2, 3, 3, 2]),
        ("zoo:hmm?states=3&symbols=2&horizon=5&varying=true", [1, 2, 3, 3, 2]),
        ("zoo:mixture?components=2&states=2&symbols=3&horizon=4", [1, 3, 4, 3]),
        ("zoo:permutation?states=3&symbols=2&horizon=5", [1, 2, 3, 3, 2]),
        ("zoo:permutation?states=3&symbols=2&horizon=4&slip=1", [1, 1, 1, 1]),
        ("zoo:unigram?symbols=3&horizon=4", [1, 1, 1, 1]),
        ("zoo:markov?symbols=3&horizon=4", [1, 3, 3, 3]),
        ("zoo:logit2?length=5", [1, 2, 4, 3, 2]),
    ],
)
def test_documented_ranks(uri, expected):
    assert ranks(uri) == expected


def test_label_ranks_are_at_most_the_states():
    found = ranks("zoo:labels?states=3&length=3&letters=2&seed=1")
    assert max(found) <= 3


def test_register_rows_and_rank():
    """2^k + 2 distinct laws of all futures, k + 3 dimensions, by explicit futures."""
    teacher = open_teacher("zoo:registers?k=2")
    states = torch.eye(teacher.num_states, dtype=torch.float64)
    letters = range(teacher.spec.num_tokens)
    words = [w for n in range(1, 4) for w in itertools.product(letters, repeat=n)]
    words = [w for w in words if teacher.spec.stop not in w[:-1]]
    columns = []
    for word in words:
        state, total = State(states, 0), torch.zeros(len(states), dtype=torch.float64)
        for token in word:
            state, info = teacher.step(state, torch.full((len(states),), token))
            total = total + info.log_prob
        columns.append(total.exp())
    block = torch.stack(columns, 1)
    assert naive.numerical_rank(block) == 2 + 3
    assert len(torch.unique(block.round(decimals=9), dim=0)) == 2**2 + 2


def test_models_are_their_seeds():
    one, same, other = (open_teacher(f"zoo:hmm?seed={seed}").spec.fingerprint for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("parity", "named scheme:rest"),
        ("nowhere:x", "one of the schemes zoo, pautomac"),
        ("zoo:dodo", "the zoo has parity, hmm"),
        ("zoo:parity?legs=2", "takes bits, noise, seed; got 'legs'"),
        ("zoo:parity?bits=many", "bits must be a whole number of at least 1"),
        ("zoo:parity?bits=0", "bits must be a whole number of at least 1"),
        ("zoo:parity?noise=0.7", "at most 0.5, got '0.7'"),
        ("zoo:parity?bits=4&bits=5", "has one twice"),
        ("zoo:hmm?varying=maybe", "true or false"),
        ("zoo:logit2?length=8", "odd length"),
        ("hmm:file.npz?horizon=0", "whole number of at least 1"),
        ("pautomac:/nowhere.txt", "cannot be read"),
        ("pautomac:x?y=1", "takes no parameters"),
        ("student:/nowhere", "no saved copy"),
    ],
)
def test_uris_explain_themselves(uri, message):
    with pytest.raises(InputError, match=message):
        open_teacher(uri)


def test_the_table_lists_every_parameter():
    table = {entry.name: entry for entry in zoo_table()}
    assert set(table) == set(FAMILIES)
    assert table["parity"].parameters == ("bits=64", "noise=0.1", "seed=0")
    assert family_of("parity", {"bits": "9"}) == Parity(bits=9)
    assert all(entry.summary and entry.rank for entry in table.values())


def test_the_page_is_the_table(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "zoo.md").read_text()
    for entry in zoo_table():
        parameters = " ".join(entry.parameters)
        assert f"| `zoo:{entry.name}` | `{parameters}` | {entry.summary} | {entry.rank} |" in page
