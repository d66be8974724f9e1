"""A transformer as a state: the keys and values of all tokens so far, and the next logits.

The state of a prefix x_1 ... x_t, after the beginning token x_0, is one row

    [ logits(x_0 ... x_t) | kv(x_0) | kv(x_1) | ... | kv(x_t) ],

kv(x_i) being every layer's key and value at token i, end to end. One more token is one
forward pass of that token alone, which reads the row and appends to it. Rows of equal
length are batched without padding, so nothing in a batch can lean on its neighbours.
A model without keys and values (a state-space model) keeps its tokens and reads them anew.
"""

import abc
import inspect
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

# how far a law by steps may be from the law of one pass, by bytes a number
_AGREES = {8: 1e-9, 4: 1e-3, 2: 0.05}


class NoKeysAndValues(Exception):
    """The model keeps something else of what it read, or more than keys and values."""


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


class Net(abc.ABC):
    """A causal language model of `transformers`, stepped from rows of state.

    A row begins with the next token's logits; what follows is the subclass's.

    model: in evaluation mode, on its device
    num_tokens: O
    width: numbers that a token adds to a row
    root: (1, O + width), the row of the empty prefix
    """

    model: Any
    num_tokens: int
    width: int
    root: Tensor

    @abc.abstractmethod
    def extend(
        self, rows: Float[Tensor, "batch width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch wider"]:
        """The rows after one or more further tokens, all read in one pass."""

    def logits(self, rows: Float[Tensor, "batch width"]) -> Float[Tensor, "batch token"]:
        """The next token's logits."""
        return rows[:, : self.num_tokens]

    @abc.abstractmethod
    def follow(
        self, row: Float[Tensor, "1 width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch new token"]:
        """Logits after each of the tokens, every batch row read after the same row."""

    def row_numbers(self, length: int) -> int:
        """Numbers in the row of a prefix of `length` tokens."""
        return self.num_tokens + (length + 1) * self.width

    def whole(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time token"]:
        """Logits after each of the tokens, from one pass that keeps nothing."""
        with torch.no_grad():
            return self.model(input_ids=tokens.to(self.model.device), use_cache=False).logits


class KeyValueNet(Net):
    """A model that keeps keys and values of each token; see the module's text.

    begin: x_0, the token before every prefix
    """

    def __init__(self, model: Any, begin: int):
        """Read the beginning token, which also tells what a row holds.

        Raises:
            NoKeysAndValues: for a model that keeps something else of what it read.
        """
        self.model = model
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        first = torch.tensor([[begin]], device=model.device)
        try:
            logits, past = self._forward(first, _Past([], 0))
        except (IndexError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise NoKeysAndValues from error
        self._slices, self.width = _layout(past.new)
        self.num_tokens = logits.shape[1]
        self.root = torch.cat([logits, self._flat(past)], 1)
        self._check(first)

    def _check(self, first: Int[Tensor, "1 1"]) -> None:
        """Three tokens stepped must give what one pass over them gives."""
        step = self.extend(self.extend(self.root, first), first)
        whole = self.whole(first.expand(1, 3))[:, -1]
        error = step[:, : self.num_tokens].float().softmax(1) - whole.float().softmax(1)
        if not bool(error.abs().max() < _AGREES[whole.element_size()]):
            raise NoKeysAndValues

    def _forward(self, tokens: Int[Tensor, "batch new"], past: _Past) -> tuple[Tensor, _Past]:
        return self._run(tokens, past, self._last_only)[:, -1], past

    def _run(
        self, tokens: Int[Tensor, "batch new"], past: _Past, more: dict[str, int]
    ) -> Float[Tensor, "batch read token"]:
        before = past.get_seq_length()
        places = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        given = {self._cache_name: past, "use_cache": True, **more}
        with torch.no_grad():
            return self.model(input_ids=tokens, position_ids=places, **given).logits

    def _flat(self, past: _Past) -> Float[Tensor, "batch new_width"]:
        """What the new tokens add to each row."""
        parts = [
            block.transpose(1, 2).flatten(2)
            for layer in range(len(past.new))
            for block in past.new[layer]
        ]
        return torch.cat(parts, 2).flatten(1)

    def extend(
        self, rows: Float[Tensor, "batch width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch wider"]:
        """One pass of the new tokens, which see the keys and values in the rows."""
        if not len(rows):
            return rows.new_empty((0, rows.shape[1] + tokens.shape[1] * self.width))
        flat = rows[:, self.num_tokens :]
        blocks = self.blocks(rows)
        given = _Past(blocks, blocks[0][0].shape[2])
        logits, past = self._forward(tokens.to(self.model.device), given)
        return torch.cat([logits, flat, self._flat(past)], 1)

    def blocks(self, rows: Float[Tensor, "batch width"]) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values in the rows, (batch, head, time, size)."""
        flat = rows[:, self.num_tokens :]
        stacked = flat.unflatten(1, (flat.shape[1] // self.width, self.width))
        return [(keys.read(stacked), values.read(stacked)) for keys, values in self._slices]

    def follow(
        self, row: Float[Tensor, "1 width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch new token"]:
        """One pass; the row's keys and values are shared."""
        blocks = [
            (keys.expand(len(tokens), -1, -1, -1), values.expand(len(tokens), -1, -1, -1))
            for keys, values in self.blocks(row)
        ]
        past = _Past(blocks, blocks[0][0].shape[2])
        return self._run(tokens.to(self.model.device), past, {})


def _layout(new: dict[int, tuple[Tensor, Tensor]]) -> tuple[list[tuple[_Slice, _Slice]], int]:
    """Where each layer's keys and values go in a token's part of a row, and its width."""
    blocks = [block for pair in new.values() for block in pair]
    if sorted(new) != list(range(len(new))) or not new or any(b.ndim != 4 for b in blocks):
        raise NoKeysAndValues
    slices, width = [], 0
    for layer in range(len(new)):
        pair = []
        for block in new[layer]:
            pair.append(_Slice(width, block.shape[1], block.shape[3]))
            width += block.shape[1] * block.shape[3]
        slices.append((pair[0], pair[1]))
    return slices, width


class WholeNet(Net):
    """Any causal model: a row keeps the tokens themselves, and each step reads them all."""

    def __init__(self, model: Any, begin: int):
        """Read the beginning token."""
        self.model = model
        self.width = 1
        self.root = self._rows(torch.tensor([[begin]], device=model.device))
        self.num_tokens = self.root.shape[1] - 1

    def _rows(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch width"]:
        logits = self.whole(tokens)[:, -1].double()  # float64 holds a token's number exactly
        return torch.cat([logits, tokens.double()], 1)

    def extend(
        self, rows: Float[Tensor, "batch width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch wider"]:
        """One pass over all tokens, from the beginning token on."""
        if not len(rows):
            return rows.new_empty((0, rows.shape[1] + tokens.shape[1]))
        before = rows[:, self.num_tokens :].long()
        return self._rows(torch.cat([before, tokens.to(before.device)], 1))

    def follow(
        self, row: Float[Tensor, "1 width"], tokens: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch new token"]:
        """One pass over whole strings."""
        before = row[:, self.num_tokens :].long().expand(len(tokens), -1)
        whole = torch.cat([before, tokens.to(before.device)], 1)
        return self.whole(whole)[:, before.shape[1] :]


def net_of(model: Any, begin: int) -> Net:
    """The model stepped by keys and values where it has them, else read whole each time."""
    try:
        return KeyValueNet(model, begin)
    except NoKeysAndValues:
        return WholeNet(model, begin)
