import json

import catalogue
import pytest
import safetensors.torch
import torch

from myna.errors import FormatError, InputError
from myna.lowrank.model import LowRankModel
from myna.lowrank.projected import ProjectedModel
from myna.lowrank.region import Truncate
from myna.lowrank.step import Step
from myna.teachers.copies import CopyTeacher, load_copy, open_copy, save_copy
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


@pytest.fixture(scope="module")
def model():
    return catalogue.learned(catalogue.function_teacher()).student


def test_round_trip_is_exact(tmp_path, model):
    save_copy(tmp_path / "s", model, {"teacher": "a function"})
    saved = load_copy(tmp_path / "s")
    assert saved.model.spec == model.spec
    assert saved.about["teacher"] == "a function" and "commit" in saved.about
    assert torch.equal(saved.low_rank.first, model.first)
    for a, b in zip(saved.low_rank.steps, model.steps, strict=True):
        assert torch.equal(a.laws, b.laws) and torch.equal(a.change, b.change)
        assert a.histories == b.histories
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["model.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def projected(model):
    """Truncation at every step but the first."""
    regions = tuple(Truncate(0.4) if t else None for t in range(len(model.steps)))
    return ProjectedModel.of(model, regions)


def test_projected_models_come_back_exactly(tmp_path):
    """A hidden Markov teacher, whose coefficients mix, so that truncation changes scores."""
    model = catalogue.learned(open_teacher("zoo:hmm?states=3&symbols=4&horizon=5")).student
    kept = projected(model)
    save_copy(tmp_path / "s", kept, {"teacher": "a function"})
    saved = load_copy(tmp_path / "s")
    assert isinstance(saved.model, ProjectedModel)
    assert saved.model.spec == kept.spec and saved.model.regions == kept.regions
    assert saved.projection == "truncate" and saved.low_rank.ranks == model.ranks
    drawn = kept.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(saved.model.score(drawn), kept.score(drawn))
    assert not torch.allclose(kept.score(drawn), model.score(drawn))
    assert torch.equal(open_copy(tmp_path / "s").score(drawn), kept.score(drawn))


@pytest.mark.parametrize("varying", ["true", "false"])
def test_networks_come_back_exactly(tmp_path, varying):
    network = open_teacher(f"zoo:isan?dim=3&symbols=4&horizon=6&varying={varying}").student
    save_copy(tmp_path / "s", network, {})
    saved = load_copy(tmp_path / "s")
    assert saved.model.spec == network.spec and saved.projection is None
    assert saved.low_rank.num_parameters == network.num_parameters
    text = json.loads((tmp_path / "s" / "model.json").read_text())
    assert text["version"] == 3 and text["space"] == "logits"
    drawn = network.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(open_copy(tmp_path / "s").score(drawn), network.score(drawn))
    tensors = safetensors.torch.load_file(tmp_path / "s" / "model.safetensors")
    tensors["logits.0"] += 1.0
    safetensors.torch.save_file(tensors, tmp_path / "s" / "model.safetensors")
    with pytest.raises(FormatError, match="changed"):
        load_copy(tmp_path / "s")


def test_programs_come_back_exactly(tmp_path):
    kept = catalogue.learned_provably(open_teacher("zoo:isan?dim=3&symbols=3&horizon=5"))
    save_copy(tmp_path / "s", kept, {})
    saved = load_copy(tmp_path / "s")
    assert saved.model.spec == kept.spec and saved.projection is None
    assert saved.low_rank.num_parameters == kept.num_parameters
    assert saved.low_rank.ranks == kept.ranks
    drawn = kept.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(open_copy(tmp_path / "s").score(drawn), kept.score(drawn))
    path = tmp_path / "s" / "model.json"
    text = json.loads(path.read_text())
    text["program"]["bound"] = 3.0
    path.write_text(json.dumps(text))
    with pytest.raises(FormatError, match="changed"):
        load_copy(tmp_path / "s")
    del text["program"]["bound"]
    path.write_text(json.dumps(text))
    with pytest.raises(FormatError, match="lacks or garbles"):
        load_copy(tmp_path / "s")


def test_versions_tell_a_projection(tmp_path, model):
    for name, student, version in (("plain", model, 1), ("kept", projected(model), 2)):
        save_copy(tmp_path / name, student, {})
        text = json.loads((tmp_path / name / "model.json").read_text())
        assert text["version"] == version and ("projection" in text) == (version == 2)
    path = tmp_path / "kept" / "model.json"
    text["projection"]["regions"][1]["bound"] = 5.0
    path.write_text(json.dumps(text))
    with pytest.raises(FormatError, match="do not match the fingerprint"):
        load_copy(tmp_path / "kept")
    del text["projection"]
    path.write_text(json.dumps(text))
    with pytest.raises(FormatError, match="lacks or garbles"):
        load_copy(tmp_path / "kept")


def test_only_low_rank_models_are_saved(tmp_path, model):
    with pytest.raises(InputError, match="only a low-rank model, a projected or mixed one"):
        save_copy(tmp_path / "s", CopyTeacher(model), {})
    assert list(tmp_path.iterdir()) == []


def test_saved_copies_are_teachers(tmp_path, model):
    save_copy(tmp_path / "s", model, {})
    view = Ledger(open_copy(tmp_path / "s")).laws("learn")
    expected = model.law(model.initial(1))
    assert torch.equal(view.laws(Prefixes.of([[]])), expected)


def test_nothing_is_overwritten_by_accident(tmp_path, model):
    save_copy(tmp_path / "s", model, {"teacher": "first"})
    with pytest.raises(InputError, match="holds a saved copy already"):
        save_copy(tmp_path / "s", model, {"teacher": "second"})
    save_copy(tmp_path / "s", model, {"teacher": "second"}, overwrite=True)
    assert load_copy(tmp_path / "s").about["teacher"] == "second"
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="is no saved copy"):
        save_copy(tmp_path / "other", model, {}, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a writable folder"):
        save_copy(tmp_path / "file" / "s", model, {})


def test_a_failed_save_leaves_what_was_there(tmp_path, model):
    save_copy(tmp_path / "s", model, {"teacher": "first"})
    with pytest.raises(TypeError):
        save_copy(tmp_path / "s", model, {"teacher": object()}, overwrite=True)
    assert load_copy(tmp_path / "s").about["teacher"] == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "else"}, "is not a 'myna low-rank model'"),
        ({"ranks": [1, 2, 3, 4, 5, 6]}, "lacks or garbles"),
        ({"spec": {"alphabet": ["a"]}}, "lacks or garbles"),
        (
            {"spec": {"alphabet": ["a", "a"], "stop": None, "horizon": 4, "fingerprint": ""}},
            "names must differ",
        ),
    ],
)
def test_texts_that_cannot_be_vouched_for(tmp_path, model, change, message):
    save_copy(tmp_path / "s", model, {})
    path = tmp_path / "s" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message):
        load_copy(tmp_path / "s")


def test_tensors_that_cannot_be_vouched_for(tmp_path, model):
    save_copy(tmp_path / "s", model, {})
    path = tmp_path / "s" / "model.safetensors"
    whole = safetensors.torch.load_file(path)

    def refused(change, message):
        safetensors.torch.save_file(whole | change, path)
        with pytest.raises(FormatError, match=message):
            load_copy(tmp_path / "s")

    refused({"first": whole["first"] * 2}, "do not match the fingerprint")
    refused({"laws.0": whole["laws.0"] * torch.nan}, "not finite")
    refused({"first": torch.ones(7, dtype=torch.float64)}, "step 0 has rank")
    path.write_bytes(b"not tensors")
    with pytest.raises(FormatError, match="does not read as safetensors"):
        load_copy(tmp_path / "s")
    (tmp_path / "s" / "model.json").write_text("{")
    with pytest.raises(FormatError, match="does not read as JSON"):
        load_copy(tmp_path / "s")
    with pytest.raises(FormatError, match="is no saved copy"):
        load_copy(tmp_path / "absent")


def test_models_check_their_shapes(model):
    step = Step(torch.ones(2, 2).double(), torch.ones(2, 2, 3).double())
    spec = catalogue.signed_model().spec
    first = torch.ones(2).double()
    with pytest.raises(InputError, match="must be square"):
        LowRankModel(spec, first, (step,))
    with pytest.raises(InputError, match="at least one step"):
        LowRankModel(spec, first, ())
    with pytest.raises(InputError, match="alphabet"):
        LowRankModel(model.spec, first, (step,))
    assert catalogue.signed_model().num_parameters == 2 + 4 + 8


def test_devices_hold_the_same_model(model):
    """One code path for every device; the CPU stands in where there is no other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moved = model.to(device)
    drawn = model.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved.score(drawn).cpu(), model.score(drawn))
