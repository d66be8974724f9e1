"""Character LSTMs: torch's own LSTM as the second opinion, and what a folder may hold."""

import json

import naive
import pytest
import torch
from safetensors.torch import load_file, save_file

from myna.errors import FormatError, InputError
from myna.lowrank.student import strings
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

SIZE, INPUT, HIDDEN = 4, 3, 5


@pytest.fixture
def folder(tmp_path):
    """Random weights over four characters, a newline and a blank among them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embedding": (SIZE, INPUT),
        "lstm.0.kernel": (INPUT + HIDDEN, 4 * HIDDEN),
        "lstm.0.bias": (4 * HIDDEN,),
        "lstm.1.kernel": (2 * HIDDEN, 4 * HIDDEN),
        "lstm.1.bias": (4 * HIDDEN,),
        "softmax.weight": (HIDDEN, SIZE),
        "softmax.bias": (SIZE,),
    }
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "vocab.json").write_text(json.dumps({"0": " ", "1": "a", "2": "\n", "3": "b"}))
    return tmp_path


def torch_laws(folder, text):
    """Laws after each character, by torch.nn.LSTM with gates reordered and the forget bias in."""
    weights = load_file(folder / "weights.safetensors")
    hidden = weights["softmax.weight"].shape[0]
    width = weights["embedding"].shape[1]
    lstm = torch.nn.LSTM(width, hidden, 2, batch_first=True).double()
    for layer in range(2):
        parts = weights[f"lstm.{layer}.kernel"].double().T.chunk(4)  # i, j, f, o
        kernel = torch.cat([parts[0], parts[2], parts[1], parts[3]])
        i, j, f, o = weights[f"lstm.{layer}.bias"].double().chunk(4)
        state = {
            f"weight_ih_l{layer}": kernel[:, : kernel.shape[1] - hidden],
            f"weight_hh_l{layer}": kernel[:, kernel.shape[1] - hidden :],
            f"bias_ih_l{layer}": torch.cat([i, f + 1, j, o]),
            f"bias_hh_l{layer}": torch.zeros(4 * hidden).double(),
        }
        lstm.load_state_dict(state, strict=False)
    with torch.no_grad():
        out, _ = lstm(weights["embedding"].double()[torch.tensor([text])])
    logits = out[0] @ weights["softmax.weight"].double() + weights["softmax.bias"].double()
    return logits.log_softmax(1)


def test_laws_are_those_of_torch(folder):
    teacher = open_teacher(f"rnn:{folder}?horizon=9")
    assert teacher.spec.alphabet == ("\u2581", "a", "<U+000A>", "b")
    assert (teacher.spec.stop, teacher.spec.horizon) == (None, 9)
    row = [1, 3, 0, 2, 1]
    laws = teacher.laws(Prefixes.of([row[:n] for n in range(6)]))
    torch.testing.assert_close(laws, torch_laws(folder, [2, *row]), rtol=0, atol=1e-12)
    score = teacher.score(strings([row]))
    assert float(score[0]) == pytest.approx(naive.chain_rule(teacher, row), abs=1e-12)


def test_the_beginning_character_is_chosen(folder):
    teacher = open_teacher(f"rnn:{folder}?begin=b")
    laws = teacher.laws(Prefixes.of([[1]]))
    torch.testing.assert_close(laws[0], torch_laws(folder, [3, 1])[-1], rtol=0, atol=1e-12)
    other = open_teacher(f"rnn:{folder}")
    assert teacher.spec.fingerprint != other.spec.fingerprint
    assert open_teacher(f"rnn:{folder}?begin=%20").laws(Prefixes.of([[]])).shape == (1, SIZE)
    with pytest.raises(InputError, match="begin must be a character"):
        open_teacher(f"rnn:{folder}?begin=z")
    with pytest.raises(InputError, match="horizon must be a whole number"):
        open_teacher(f"rnn:{folder}?horizon=0")


def test_bad_folders(folder):
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "softmax.bias": torch.zeros(7)}, folder / "weights.safetensors")
    with pytest.raises(FormatError, match="do not fit"):
        open_teacher(f"rnn:{folder}")
    save_file({"embedding": weights["embedding"]}, folder / "weights.safetensors")
    with pytest.raises(FormatError, match="lacks softmax"):
        open_teacher(f"rnn:{folder}")
    (folder / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="does not read as safetensors"):
        open_teacher(f"rnn:{folder}")
    for text in ("[1]", '{"0": ""}', '{"1": "a"}', "{", "{}"):
        (folder / "vocab.json").write_text(text)
        with pytest.raises(FormatError, match=r"vocab\.json"):
            open_teacher(f"rnn:{folder}")


@pytest.mark.parametrize(
    ("name", "bits"), [("charrnn-shakespeare", 1.852), ("charrnn-darwin", 3.644)]
)
def test_real_models_score_text_as_their_readme_says(shared_data, name, bits):
    """Bits a character of an English sentence lie near what the models reach on English."""
    teacher = open_teacher(f"rnn:{shared_data / name}?horizon=60")
    place = {c: i for i, c in enumerate(teacher.spec.alphabet)}
    text = "the king is in the house of the man, and the ".replace(" ", "\u2581")
    row = [place[c] for c in text]
    laws = teacher.laws(Prefixes.of([row[:n] for n in range(len(row))]))
    expected = torch_laws(shared_data / name, [place["<U+000A>"], *row])[:-1]
    torch.testing.assert_close(laws, expected, rtol=0, atol=1e-10)
    found = -float(laws.gather(1, torch.tensor(row)[:, None]).mean()) / torch.log(torch.tensor(2.0))
    assert found < bits + 0.8
