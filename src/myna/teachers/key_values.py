"""A transformer as a state: the keys and values of all tokens so far, and the next logits.

The state of a prefix x_1 ... x_t, after the beginning token x_0, is one row

    [ logits(x_0 ... x_t) | kv(x_0) | kv(x_1) | ... | kv(x_t) ],

kv(x_i) being every layer's key and value at token i, end to end. One more token is one
forward pass of that token alone, which reads the row and appends to it. Rows of equal
length are batched without padding, so nothing in a batch can lean on its neighbours.
"""

import inspect
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache


class _Slice(NamedTuple):
    """Where one layer's keys (or values) lie in a token's part of a row."""

    start: int
    heads: int
    size: int

    def read(self, past: Float[Tensor, "batch time width"]) -> Tensor:
        """(batch, head, time, size)."""
        part = past[:, :, self.start : self.start + self.heads * self.size]
        return part.unflatten(2, (self.heads, self.size)).transpose(1, 2)


class _Past(DynamicCache):
    """Keys and values given from outside; those of the new tokens are kept aside."""

    def __init__(self, blocks: list[tuple[Tensor, Tensor]], length: int):
        super().__init__()
        self._blocks = blocks
        self._length = length
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any):
        """All keys and values of a layer, the given ones first."""
        self.new[layer_idx] = (key_states, value_states)
        if not self._length:
            return key_states, value_states
        keys, values = self._blocks[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Tokens given."""
        return self._length

    def get_mask_sizes(self, query: Any, *_: Any, **__: Any) -> tuple[int, int]:
        """Keys that a query sees, and where they start; `query` is a count or positions."""
        return self._length + (query if isinstance(query, int) else len(query)), 0


class KeyValueNet:
    """A causal language model of `transformers`, stepped from rows of state.

    model: in evaluation mode, on its device
    begin: x_0, the token before every prefix
    """

    def __init__(self, model: Any, begin: int):
        """Read the beginning token, which also tells what a row holds.

        Raises:
            NotImplementedError: for a model that keeps no keys and values of each token.
        """
        self.model = model
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._slices: list[tuple[_Slice, _Slice]] = []
        logits, past = self._forward(self.tokens([[begin]]), _Past([], 0))
        if sorted(past.new) != list(range(len(past.new))) or not past.new:
            raise NotImplementedError
        width = 0
        for layer in range(len(past.new)):
            pair = []
            for block in past.new[layer]:
                if block.ndim != 4 or block.shape[2] != 1:
                    raise NotImplementedError
                pair.append(_Slice(width, block.shape[1], block.shape[3]))
                width += block.shape[1] * block.shape[3]
            self._slices.append((pair[0], pair[1]))
        self.num_tokens = logits.shape[1]
        self.width = width
        self.root = torch.cat([logits, self._flat(past)], 1)

    def tokens(self, rows: Any) -> Int[Tensor, "batch new"]:
        """Tokens on the model's device."""
        return torch.as_tensor(rows, dtype=torch.int64).to(self.model.device)

    def _forward(self, tokens: Int[Tensor, "batch new"], past: _Past) -> tuple[Tensor, _Past]:
        before = past.get_seq_length()
        places = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        given = {self._cache_name: past, "use_cache": True, **self._last_only}
        with torch.no_grad():
            answer = self.model(input_ids=tokens, position_ids=places, **given)
        return answer.logits[:, -1], past

    def _flat(self, past: _Past) -> Float[Tensor, "batch new_width"]:
        """What the new tokens add to each row."""
        parts = [
            block.transpose(1, 2).flatten(2)
            for layer in range(len(past.new))
            for block in past.new[layer]
        ]
        return torch.cat(parts, 2).flatten(1)

    def row_numbers(self, length: int) -> int:
        """Numbers in the row of a prefix of `length` tokens."""
        return self.num_tokens + (length + 1) * self.width

    def extend(
        self, rows: Float[Tensor, "batch width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch wider"]:
        """The rows after one or more further tokens, all read in one pass."""
        if not len(rows):
            room = tokens.shape[1] * self.width
            return rows.new_empty((0, rows.shape[1] + room))
        flat = rows[:, self.num_tokens :]
        time = flat.shape[1] // self.width
        stacked = flat.unflatten(1, (time, self.width))
        blocks = [(keys.read(stacked), values.read(stacked)) for keys, values in self._slices]
        logits, past = self._forward(tokens.to(self.model.device), _Past(blocks, time))
        return torch.cat([logits, flat, self._flat(past)], 1)

    def logits(self, rows: Float[Tensor, "batch width"]) -> Float[Tensor, "batch token"]:
        """The next token's logits."""
        return rows[:, : self.num_tokens]

    def whole(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time token"]:
        """Logits after each of the tokens, from one pass that keeps nothing."""
        with torch.no_grad():
            return self.model(input_ids=tokens.to(self.model.device), use_cache=False).logits
