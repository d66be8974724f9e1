"""Packed tables: fewer bytes, the same model in double precision, near it in fewer bits."""

import pytest
import torch

from myna.errors import FormatError
from myna.learn.compress import CompressSettings, compress
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.hidden import hidden_form
from myna.lowrank.packed import Precision, pack, rounded
from myna.teachers.copies import load_copy, save_packed
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher


def copy_of(uri: str, structure: Structure | None = None):
    result = learn_exact(
        Ledger(open_teacher(uri)),
        ExactSettings(structure=structure, verify_histories=50),
        torch.Generator().manual_seed(0),
    )
    assert result.student is not None
    return result.student


HMM = "zoo:hmm?states=4&symbols=5&horizon=8&seed=1"


def test_double_precision_loses_nothing():
    model = copy_of("zoo:parity?bits=6")
    back, size = rounded(model, Precision.DOUBLE)
    drawn = model.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(back.score(drawn), model.score(drawn), atol=1e-14, rtol=0)
    plain = 8 * model.num_parameters
    assert size < plain  # a parity's tables have many zeros, which cost a bit each


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [(Precision.SINGLE, 0, 1e-5), (Precision.HALF, 1e-5, 0.3)],
)
def test_fewer_bits_are_a_little_off_and_still_laws(precision, least, most):
    model = copy_of(HMM)
    back, size = rounded(model, precision)
    assert size < 8 * model.num_parameters
    drawn = model.sample(200, torch.Generator().manual_seed(0))
    gap = float((back.score(drawn) - model.score(drawn)).abs().max())
    assert least < gap < most
    for step in back.steps:
        sums = step.laws.sum(1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-12, rtol=0)


def test_a_hidden_markov_model_keeps_one_transition_table():
    model = copy_of(HMM, Structure.STATIONARY)
    form = hidden_form(model, torch.Generator().manual_seed(0)).model
    assert form is not None
    packed = pack(form, Precision.DOUBLE)
    assert packed.steps[0]["shared"]
    assert packed.tensors["change.0"].shape == (4, 4)
    back, _ = rounded(form, Precision.SINGLE)
    assert back.transitions is not None  # still scored by the forward filter
    drawn = model.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(back.score(drawn), model.score(drawn), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", list(Precision))
def test_saved_and_read_again(tmp_path, precision):
    model = copy_of("zoo:registers?k=2")
    save_packed(tmp_path / "small", model, precision, {"teacher": "registers"})
    read = load_copy(tmp_path / "small")
    same, _ = rounded(model, precision)
    assert read.model.spec.fingerprint == same.spec.fingerprint
    assert read.about["teacher"] == "registers"
    # rows of registers divide into themselves: rounded again and saved again, the same file
    save_packed(tmp_path / "again", read.model, precision, {})
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "again")]
    assert files[0] == files[1]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_saved_is_what_was_measured(tmp_path, seed):
    """Rounded twice, each of these would be another model, in the last bits at least."""
    model = copy_of(f"zoo:hmm?states=4&symbols=8&horizon=6&seed={seed}", Structure.STATIONARY)
    settings = CompressSettings(max_kl=2e-6, strings=200)
    found = compress(model, settings, torch.Generator().manual_seed(0))
    save_packed(tmp_path / "small", found.unrounded, found.precision, {})
    read = load_copy(tmp_path / "small").model
    assert read.spec.fingerprint == found.student.spec.fingerprint


def test_a_changed_file_is_refused(tmp_path):
    model = copy_of("zoo:registers?k=2")
    save_packed(tmp_path / "small", model, Precision.DOUBLE, {})
    path = tmp_path / "small" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError):
        load_copy(tmp_path / "small")
