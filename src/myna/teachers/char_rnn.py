"""Character LSTMs in a folder: weights.safetensors and vocab.json.

Two layers, each with a cell c and an output h, both zero at the start. With x the layer's
input, [x h] times the kernel plus the bias is cut into four runs i, j, f, o, and

    c' = sigmoid(f + 1) c + sigmoid(i) tanh(j),      h' = sigmoid(o) tanh(c'),

after Hochreiter and Schmidhuber (1997) in TensorFlow's BasicLSTMCell. The next character's
law is the softmax of the last layer's output through one linear map.

The model has no start symbol: it predicts the second character from the first. As a model
over sequences it reads a beginning character before every prefix, a newline unless said
otherwise. There is no stop, and the horizon is the caller's. The float32 weights are used
in float64, so that laws do not depend on the batch beyond 1e-13.
"""

from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.lowrank.student import State, StepInfo
from myna.spec import Spec, fingerprint
from myna.teachers.files import check_plain, read_json
from myna.teachers.stepped import SteppedTeacher, bytes_of
from myna.teachers.token_names import visible_names

_FORGET = 1.0  # added to f when running; it is no part of the stored bias


class LstmWeights(NamedTuple):
    """What a folder holds, in float64.

    embedding: (token, input)
    kernels, biases: a layer each, (input + hidden, 4 hidden) and (4 hidden,)
    out, out_bias: (hidden, token) and (token,)
    """

    embedding: Float[Tensor, "token input"]
    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    out: Float[Tensor, "hidden token"]
    out_bias: Float[Tensor, " token"]


class CharRnn(SteppedTeacher):
    """A character LSTM, stepped: its state is every layer's (c, h), end to end."""

    def __init__(
        self, weights: LstmWeights, names: tuple[str, ...], begin: int, horizon: int | None
    ):
        """Read the beginning character.

        begin: the character before every prefix
        """
        self._weights = weights
        mark = fingerprint(
            "rnn",
            weights.embedding,
            *weights.kernels,
            *weights.biases,
            weights.out,
            weights.out_bias,
            names,
            begin,
            horizon,
        )
        self._spec = Spec(names, None, horizon, mark)
        zero = torch.zeros((1, 2 * sum(len(b) // 4 for b in weights.biases)), dtype=torch.float64)
        self._first = self._read(zero, torch.tensor([begin]))

    @property
    def spec(self) -> Spec:
        """Characters, no stop, the caller's horizon."""
        return self._spec

    @property
    def num_bytes(self) -> int | None:
        """Of all weights, in double precision."""
        w = self._weights
        return bytes_of([w.embedding, *w.kernels, *w.biases, w.out, w.out_bias])

    def initial(self, batch: int) -> State:
        """The state after the beginning character."""
        return State(self._first.repeat(batch, 1), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-character log-probabilities (nats)."""
        hidden = self._weights.out.shape[0]
        logits = state.vector[:, -hidden:] @ self._weights.out + self._weights.out_bias
        return logits.log_softmax(1)

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Read one more character of each row."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        return State(self._read(state.vector, tokens), state.position + 1), StepInfo(log_prob)

    def _read(
        self, vector: Float[Tensor, "batch width"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch width"]:
        x, start = self._weights.embedding[tokens], 0
        parts = []
        for kernel, bias in zip(self._weights.kernels, self._weights.biases, strict=True):
            size = len(bias) // 4
            cell, out = vector[:, start : start + 2 * size].chunk(2, 1)
            i, j, f, o = torch.addmm(bias, torch.cat([x, out], 1), kernel).chunk(4, 1)
            cell = (f + _FORGET).sigmoid() * cell + i.sigmoid() * j.tanh()
            x = o.sigmoid() * cell.tanh()
            parts += [cell, x]
            start += 2 * size
        return torch.cat(parts, 1)


def read_rnn(folder: Path, horizon: int | None = None, begin: str | None = None) -> CharRnn:
    """The character LSTM of a folder.

    begin: a character's name, a newline unless said otherwise

    Raises:
        FormatError: naming what is missing or has the wrong shape.
        InputError: for a beginning character that is not in the vocabulary.
    """
    characters = _characters(folder / "vocab.json")
    weights = _weights(folder / "weights.safetensors", len(characters))
    names = visible_names(characters, len(characters))
    wanted = visible_names([begin if begin is not None else "\n"], 1)[0]
    if wanted not in names:
        raise InputError(
            f"begin must be a character of {folder}, got {wanted!r}; its characters are "
            f"{' '.join(names)}"
        )
    return CharRnn(weights, names, names.index(wanted), horizon)


def _characters(path: Path) -> list[str]:
    """Characters by number, from {"0": "e", "1": "t", ...}."""
    try:
        found = read_json(path)
        characters = [found[str(i)] for i in range(len(found))]
    except (KeyError, TypeError) as error:
        raise FormatError(
            f'{path} must map "0", "1", ... to characters, and does not: {error}'
        ) from error
    if not characters or not all(isinstance(c, str) and c for c in characters):
        raise FormatError(f"{path} must map each number to a character")
    return characters


def _weights(path: Path, size: int) -> LstmWeights:
    check_plain(path)
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise FormatError(f"{path} does not read as safetensors: {error}") from error
    layers = sum(1 for name in found if name.startswith("lstm.") and name.endswith(".kernel"))
    names = ["embedding", "softmax.weight", "softmax.bias"]
    names += [f"lstm.{layer}.{part}" for layer in range(layers) for part in ("kernel", "bias")]
    missing = [name for name in names if name not in found]
    if missing or not layers:
        raise FormatError(f"{path} lacks {', '.join(missing) or 'lstm.0.kernel'}")
    weights = LstmWeights(
        found["embedding"].double(),
        tuple(found[f"lstm.{layer}.kernel"].double() for layer in range(layers)),
        tuple(found[f"lstm.{layer}.bias"].double() for layer in range(layers)),
        found["softmax.weight"].double(),
        found["softmax.bias"].double(),
    )
    _check_shapes(path, weights, size)
    return weights


def _check_shapes(path: Path, weights: LstmWeights, size: int) -> None:
    """Refuse layers that do not fit each other or the vocabulary."""
    width = weights.embedding.shape[-1]
    fits = weights.embedding.shape == (size, width)
    for kernel, bias in zip(weights.kernels, weights.biases, strict=True):
        hidden = bias.numel() // 4
        fits = fits and bias.shape == (4 * hidden,) and kernel.shape == (width + hidden, 4 * hidden)
        width = hidden
    fits = fits and weights.out.shape == (width, size) and weights.out_bias.shape == (size,)
    if not fits:
        raise FormatError(
            f"{path} must hold an LSTM over the {size} characters of vocab.json, and its tensors "
            "do not fit each other"
        )
