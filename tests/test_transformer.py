"""Transformers as teachers: shared keys and values against one forward pass a prefix."""

import json
import sys

import catalogue
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM

from myna import teachers
from myna.app import cli
from myna.errors import FormatError, InputError, TeacherError
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers import hf_folder, uri
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.transformer import TransformerTeacher

STREAM = Stream("test", 3)
KINDS = {"llama": catalogue.tiny_llama, "gpt2": catalogue.tiny_gpt2}
TOLERANCE = 1e-5  # nats; float32 laws of models this small


@pytest.fixture(params=KINDS)
def teacher(request):
    return KINDS[request.param]()


def naive_laws(teacher, rows):
    """One forward pass a prefix, nothing kept."""
    laws = []
    for row in rows:
        with torch.no_grad():
            logits = teacher._net.model(torch.tensor([[teacher._begin, *row]])).logits[0, -1]
        laws.append(logits.double().log_softmax(0))
    return torch.stack(laws)


ROWS = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=12)


@settings(max_examples=15)
@given(ROWS, ROWS, st.integers(1, 5), st.sampled_from(list(KINDS)))
def test_laws_are_those_of_one_prefix_at_a_time(first, second, batch, kind):
    """Ragged batches with repeats, a small batch size, and states kept from another call."""
    teacher = KINDS[kind](batch=batch)
    for rows in (first, second):
        laws = teacher.laws(Prefixes.of(rows))
        torch.testing.assert_close(laws, naive_laws(teacher, rows), rtol=0, atol=TOLERANCE)


def counted(teacher):
    """How many tokens the model is given, from now on."""
    seen = []
    extend = teacher._net.extend

    def counting(rows, tokens):
        seen.append(tokens.numel())
        return extend(rows, tokens)

    teacher._net.extend = counting
    return seen


@given(ROWS)
def test_each_distinct_prefix_is_read_once(rows):
    teacher = catalogue.tiny_llama()
    seen = counted(teacher)
    teacher.laws(Prefixes.of(rows))
    nodes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert sum(seen) == len(nodes)
    teacher.laws(Prefixes.of(rows))
    assert sum(seen) == len(nodes)
    teacher.laws(Prefixes.of([[*row, 1] for row in rows]))
    extended = {(*row, 1) for row in rows} - {tuple(row) for row in rows}
    assert sum(seen) <= len(nodes) + len(extended)


def test_a_lonely_prefix_is_one_pass(teacher):
    seen = counted(teacher)
    teacher.laws(Prefixes.of([[1, 2, 3, 0, 3, 2]]))
    assert seen == [6]


def test_nothing_kept_changes_nothing_but_the_work(teacher):
    rows = [[1, 2, 3], [1, 2, 0], [0], []]
    warm = teacher.laws(Prefixes.of(rows))
    teacher._kept._capacity_bytes = 0
    teacher._kept.clear()
    seen = counted(teacher)
    cold = teacher.laws(Prefixes.of(rows))
    torch.testing.assert_close(cold, warm, rtol=0, atol=TOLERANCE)
    assert sum(seen) == 5


def test_scores_are_the_chain_rule(teacher):
    rows = [[1, 2, 3, 4], [0], [2, 2, 2, 2, 2, 2, 0]]
    scores = teacher.score(strings(rows))
    for row, score in zip(rows, scores.tolist(), strict=True):
        laws = naive_laws(teacher, [row[:t] for t in range(len(row))])
        expected = sum(float(law[token]) for law, token in zip(laws, row, strict=True))
        assert score == pytest.approx(expected, abs=10 * TOLERANCE)


def test_completions_do_not_depend_on_how_many_fit(teacher, monkeypatch):
    prefixes = Prefixes.of([[], [1, 2], [3]])
    whole = teacher.complete(prefixes, 20, stream=STREAM)
    monkeypatch.setattr("myna.teachers.transformer._DRAWS", 7)
    parts = teacher.complete(prefixes, 20, stream=STREAM)
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.lengths, parts.lengths)
    none = teacher.complete(Prefixes.of([]), 4, stream=STREAM)
    assert none.tokens.shape[:2] == (0, 4)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch(error):
    teacher = catalogue.tiny_llama(batch=8)
    rows = [[a, b] for a in range(3) for b in range(4)]
    expected = naive_laws(teacher, rows)
    extend = teacher._net.extend

    def cramped(states, tokens):
        if len(tokens) > 2:
            raise error
        return extend(states, tokens)

    teacher._net.extend = cramped
    torch.testing.assert_close(teacher.laws(Prefixes.of(rows)), expected, rtol=0, atol=TOLERANCE)
    assert teacher.batch == 2

    def full(states, tokens):
        raise error

    teacher._net.extend = full
    teacher._kept.clear()
    with pytest.raises(TeacherError, match="does not fit in memory"):
        teacher.laws(Prefixes.of(rows))


def test_other_failures_are_not_taken_for_want_of_memory(teacher):
    def broken(states, tokens):
        raise RuntimeError("shapes do not match")

    teacher._net.extend = broken
    with pytest.raises(RuntimeError, match="shapes"):
        teacher.laws(Prefixes.of([[1]]))


def test_float64_laws_do_not_depend_on_the_batch():
    teacher = catalogue.tiny_llama(dtype=torch.float64)
    rows = [[1, 2, 3], [1], [], [1, 2]]
    torch.testing.assert_close(
        teacher.laws(Prefixes.of(rows)), naive_laws(teacher, rows), rtol=0, atol=1e-13
    )


@pytest.fixture
def folder(tmp_path):
    """A saved model without tokenizer; token 0 begins, token 4 ends."""
    model = catalogue.tiny_llama()._net.model
    model.config.bos_token_id, model.config.eos_token_id = 0, 4
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = 0, 4
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_opens(folder):
    teacher = uri.open_teacher(f"hf:{folder}?horizon=6&device=cpu&batch=3")
    assert isinstance(teacher, TransformerTeacher)
    spec = teacher.spec
    assert spec.alphabet == ("0", "1", "2", "3", "4") and (spec.stop, spec.horizon) == (4, 6)
    rows = [[1, 2, 3], [0]]
    torch.testing.assert_close(
        teacher.laws(Prefixes.of(rows)), naive_laws(teacher, rows), rtol=0, atol=TOLERANCE
    )
    assert uri.open_teacher(f"hf:{folder}").spec.horizon == 16  # the context
    assert uri.open_teacher(f"hf:{folder}?stop=none").spec.stop is None


def test_fingerprints_follow_weights_and_meaning(folder):
    marks = [
        uri.open_teacher(f"hf:{folder}{query}").spec.fingerprint
        for query in ("", "", "?horizon=6", "?begin=2", "?stop=3", "?dtype=float64")
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 5
    changed = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (folder / "config.json").write_text(json.dumps(changed))
    assert uri.open_teacher(f"hf:{folder}").spec.fingerprint not in marks


def test_several_ends_mean_the_first_of_generation(folder):
    text = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": [2, 4]}
    (folder / "generation_config.json").write_text(json.dumps(text))
    assert uri.open_teacher(f"hf:{folder}").spec.stop == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("horizon=17", "at most 16; got horizon 17"),
        ("horizon=0", "horizon must be a whole number of at least 1"),
        ("batch=x", "batch must be a whole number"),
        ("dtype=int8", "dtype must be one of float32"),
        ("device=nowhere", "device must name one"),
        ("begin=5", "begin must be a token's number in 0..4"),
        ("stop=9", "stop must be a token's number in 0..4"),
        ("temperature=1", "hf takes horizon"),
        ("only=0,9", "'9' is no token of this model"),
    ],
)
def test_bad_parameters(folder, query, message):
    with pytest.raises(InputError, match=message):
        uri.open_teacher(f"hf:{folder}?{query}")


def test_bad_folders(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        uri.open_teacher(f"hf:{tmp_path}")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FormatError, match="does not load"):
        uri.open_teacher(f"hf:{folder}")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match="safetensors"):
        uri.open_teacher(f"hf:{folder}")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(FormatError, match="one JSON object"):
        uri.open_teacher(f"hf:{folder}")


def test_a_folder_without_beginning_needs_one(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"\?begin=N"):
        uri.open_teacher(f"hf:{folder}")
    assert uri.open_teacher(f"hf:{folder}?begin=1").spec.stop is None


def test_code_in_a_folder_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(FormatError, match="does not load"):
        uri.open_teacher(f"hf:{folder}")


def test_a_model_without_keys_and_values_is_read_whole():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, state_size=2)
    teacher = TransformerTeacher(MambaForCausalLM(config).eval(), 0, Spec(numbered(5), 4, 8, "m"))
    rows = [[1, 2, 3], [1, 2], [], [3, 3, 3, 3]]
    torch.testing.assert_close(
        teacher.laws(Prefixes.of(rows)), naive_laws(teacher, rows), rtol=0, atol=TOLERANCE
    )


def test_stories260k(shared_data):
    teacher = uri.open_teacher(f"hf:{shared_data}/stories260k?horizon=24")
    assert teacher.spec.stop == 1 and teacher.spec.num_tokens == 512
    rows = Prefixes(*teacher.sample(6, torch.Generator().manual_seed(0))).rows()
    cut = [list(row[: 3 * i]) for i, row in enumerate(rows)]
    torch.testing.assert_close(
        teacher.laws(Prefixes.of(cut)), naive_laws(teacher, cut), rtol=0, atol=1e-4
    )
    text = "".join(teacher.spec.alphabet[token] for token in rows[0])
    assert text.startswith("\u2581Once\u2581upon\u2581a\u2581time"), text


def test_the_bundled_model_speaks_its_language():
    teacher = uri.open_teacher("hf:bundled")
    assert teacher.spec.alphabet[:3] == ("<s>", "</s>", "\u2581")
    drawn = teacher.sample(20, torch.Generator().manual_seed(0))
    texts = [
        "".join(teacher.spec.alphabet[t] for t in row).replace("\u2581", " ")
        for row in Prefixes(*drawn).rows()
    ]
    words = {w for text in texts for w in text.removesuffix(".</s>").split(" ")}
    assert len(words & {"the", "cat", "dogs", "sees", "run", "two", "a"}) >= 5, texts
    size = sum(path.stat().st_size for path in hf_folder.folder_of("bundled").iterdir())
    assert size < 2_000_000


def test_the_command_line_learns_and_samples(tmp_path, monkeypatch, capsys):
    name = "hf:bundled?horizon=3&device=cpu"
    out = str(tmp_path / "copy")
    learn = ["learn", name, "-o", out, "--tolerance", "1e-5", "--mismatch", "1e-4", "--json"]
    said = []
    for command in (learn, ["sample", name, "-n", "2", "--json"], ["info", name, "--json"]):
        monkeypatch.setattr("sys.argv", ["myna", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["outcome"] == "verified" and said[2]["spec"]["horizon"] == 3
    assert len(said[1]["tokens"]) == 2


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "myna.teachers.hf_folder", None)
    monkeypatch.delattr(teachers, "hf_folder")
    with pytest.raises(InputError, match=r"pip install 'myna\[transformers\]'"):
        uri.open_teacher("hf:bundled")
