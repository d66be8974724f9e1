"""A Llama's futures after one history, on CPUs, at the speed of their matrix products.

    r = 1 / rms(x),  [q k v] = r x W,  x += attend(q, k, v; history's keys and values) O
    r = 1 / rms(x),  [a b]   = r x U,  x += (silu(a) * b) D          for each layer
    log P(f_t | h f_<t) = log softmax(r x E)_{f_t}

The gains of the norms are inside W, U and E. The history is read once; its keys and values
are used where they are by every future of every batch. Batches are small enough for their
rows to stay in the cache, and workers take different histories.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.teachers.llama_passes import at, compiled

_ROWS = 512  # of a batch: all that a layer makes of them fits in a core's cache
_STATIC_ROTARY = ("default", "linear", "llama3")


class _Layer(NamedTuple):
    """Matrices as (in, out), with the gains of the norms before them."""

    attend: Tensor
    output: Tensor
    both: Tensor
    down: Tensor


class _Room(NamedTuple):
    """What a batch of rows is made in."""

    x: Tensor
    norm: Tensor
    attend: Tensor
    mixed: Tensor
    both: Tensor
    gate: Tensor
    logits: Tensor
    read: Tensor

    def first(self, rows: int) -> "_Room":
        """As for fewer rows."""
        return _Room(*(part[:rows] for part in self))


class LlamaCross:
    """The weights of a Llama in float32, laid out for this.

    model: of `transformers`; see `fits`
    """

    def __init__(self, model: Any, passes: ctypes.CDLL):
        """Fold the norms' gains into the matrices."""
        config, inner = model.config, model.model
        self._passes = passes
        self._heads = config.num_key_value_heads
        self._group = config.num_attention_heads // self._heads
        self._size = config.head_dim
        self._epsilon = config.rms_norm_eps
        self._rotary = inner.rotary_emb
        self._embedding = inner.embed_tokens.weight.detach()
        self._layers = [_layer(layer) for layer in inner.layers]
        self._readout = (model.lm_head.weight * inner.norm.weight).detach().T.contiguous()

    @staticmethod
    def of(model: Any) -> "LlamaCross | None":
        """None for other models, other numbers, other devices, or without a compiler."""
        if not fits(model):
            return None
        passes = compiled()
        return None if passes is None else LlamaCross(model, passes)

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return _ROWS

    def room(self, rows: int) -> _Room:
        """For a number of rows."""
        width, inner = self._embedding.shape[1], self._layers[0].down.shape[0]
        heads = self._heads * self._size
        shapes = [
            (width,),
            (),
            (heads * (self._group + 2),),
            (heads * self._group,),
            (2 * inner,),
            (inner,),
            (len(self._embedding),),
            (),
        ]
        return _Room(*(torch.empty((rows, *shape)) for shape in shapes))

    def follow(
        self,
        past: list[tuple[Tensor, Tensor]],
        tokens: Int[Tensor, "future time"],
        room: _Room,
    ) -> tuple[Float[Tensor, "future read"], Float[Tensor, "row token"], Float[Tensor, " row"]]:
        """Log P of each token but the first, given the history and the tokens before it.

        past: each layer's keys and values of the history, (head, time, size), contiguous

        Also returns logits (f_1 ... f_t at row (future, t)) without the last norm's factor,
        and that factor.
        """
        futures, time = tokens.shape[0], tokens.shape[1] - 1
        rows = futures * time
        room = room.first(rows)
        x, norm = room.x, room.norm
        before = past[0][0].shape[1]
        places = torch.arange(before, before + time)[None]
        half = self._size // 2
        cosine, sine = (part[0, :, :half].contiguous() for part in self._rotary(x, places))
        torch.index_select(self._embedding, 0, tokens[:, :-1].reshape(-1), out=x)
        for layer, (keys, values) in zip(self._layers, past, strict=True):
            self._norms(room)
            torch.mm(x, layer.attend, out=room.attend)
            given = (room.attend, norm, cosine, sine, keys, values, room.mixed)
            sizes = (futures, time, before, self._heads, self._group, self._size)
            if self._passes.myna_attend(*map(at, given), *sizes):
                raise MemoryError
            x.addmm_(room.mixed, layer.output)
            self._norms(room)
            torch.mm(x, layer.both, out=room.both)
            parts = (room.both, norm, room.gate)
            self._passes.myna_gate(*map(at, parts), rows, room.gate.shape[1])
            x.addmm_(room.gate, layer.down)
        self._norms(room)
        torch.mm(x, self._readout, out=room.logits)
        wanted = tokens[:, 1:].reshape(-1).contiguous()
        parts = (room.logits, norm, wanted, room.read)
        self._passes.myna_read(*map(at, parts), rows, room.logits.shape[1])
        return room.read.view(futures, time), room.logits, norm

    def _norms(self, room: _Room) -> None:
        self._passes.myna_norms(at(room.x), at(room.norm), *room.x.shape, self._epsilon)


def fits(model: Any) -> bool:
    """Whether this is a Llama as above, in float32 on a CPU, heads in eights."""
    config = model.config
    rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
    return (
        type(model).__name__ == "LlamaForCausalLM"
        and model.device.type == "cpu"
        and all(weight.dtype == torch.float32 for weight in model.parameters())
        and not config.attention_bias
        and not config.mlp_bias
        and config.hidden_act == "silu"
        and config.head_dim % 8 == 0
        and getattr(rotary, "rope_type", "unknown") in _STATIC_ROTARY
    )


def _layer(layer: Any) -> _Layer:
    heads, network = layer.self_attn, layer.mlp
    attend = [part.weight for part in (heads.q_proj, heads.k_proj, heads.v_proj)]
    both = [network.gate_proj.weight, network.up_proj.weight]
    matrices = (
        torch.cat(attend) * layer.input_layernorm.weight,
        heads.o_proj.weight,
        torch.cat(both) * layer.post_attention_layernorm.weight,
        network.down_proj.weight,
    )
    return _Layer(*(matrix.detach().T.contiguous() for matrix in matrices))
