"""The passes of `forward_backward` over its trees, on the CPU, by C that is compiled at run time.

    a_n = (a_u T) * E_o / m_n,    b_u = e_u + T sum_n E_o * b_n / m_n,    counts as a_n * b_n

The formulas and their answers are those of the passes in torch, to rounding. Where we differ: torch
sends a level of a tree through memory once an operation, while C takes a few nodes through all
operations in the nearest cache, which with few states is most of the time.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.c_source import built
from myna.errors import InputError

# as in C: the numbers of a machine vector, and the nodes that go together
_LANES, _TOGETHER = 8, 16
# times threads: with more states products are most of the time, and torch's use all cores
_MOST_STATES = 256
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p

# a tree's levels from the root: tokens, parents, reads and ends of each
Levels = Sequence[tuple[Tensor, Tensor | None, Tensor, Tensor]]
Tables = tuple[
    Float[Tensor, " state"], Float[Tensor, "step state state"], Float[Tensor, "estep state token"]
]


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, _LONG) for name in ("states", "alphabet", "levels", "moves", "emissions")),
        *((name, _POINTER) for name in ("starts", "tokens", "first", "ends")),
        *((name, _POINTER) for name in ("initial", "move", "back", "emission")),
        *((name, _POINTER) for name in ("filtered", "mass", "even", "odd", "room")),
        *((name, _POINTER) for name in ("initial_counts", "move_counts", "emission_counts")),
    ]


class _Tree(NamedTuple):
    """A tree as C reads it: nodes level by level, the children of one beside each other.

    starts: (level + 1,), each level's first node
    tokens: (node,)
    first: (node + 1,), the children of n are first[n], ..., first[n + 1] - 1
    read: (node,), where reads are not 0
    reads, ends: (node,)
    """

    starts: Tensor
    tokens: Tensor
    first: Tensor
    read: Tensor
    reads: Tensor
    ends: Tensor


def _tree(levels: Levels) -> _Tree:
    tokens, parents, reads, ends = zip(*levels, strict=True)
    sizes = [len(level) for level in tokens]
    children = [
        torch.ones(above, dtype=torch.int64)
        if parent is None
        else torch.bincount(parent, minlength=above)
        for parent, above in zip(parents[1:], sizes[:-1], strict=True)
    ]
    children.append(torch.zeros(sizes[-1], dtype=torch.int64))
    starts = torch.tensor([0, *sizes]).cumsum(0)
    first = torch.cat([starts[1:2], *children]).cumsum(0)
    read = torch.cat(reads)
    return _Tree(starts, torch.cat(tokens).int(), first.int(), read > 0, read, torch.cat(ends))


class TreePass:
    """Passes over fixed trees, with buffers that are made once."""

    def __init__(self, passes: ctypes.CDLL, trees: Sequence[Levels], num_states: int):
        """Make room for the largest tree."""
        self._passes, self._states = passes, num_states
        self._width = -(-num_states // _LANES) * _LANES
        self._trees = [_tree(levels) for levels in trees]
        self._tokens = 1 + max(int(tree.tokens.max()) for tree in self._trees)
        nodes = max(len(tree.tokens) for tree in self._trees)
        widest = max(int(tree.starts.diff().max()) for tree in self._trees)
        self._mass = _zeros(nodes)
        # products are of whole tiles, which may go beyond the last node
        self._filtered = _zeros(nodes + _LANES, self._width)
        self._later = [_zeros(widest + _LANES, self._width) for _ in range(2)]
        self._room = _zeros(_TOGETHER, self._width)
        self._rooms: dict[str, Tensor] = {}

    def log_likelihood(self, tables: Tables) -> float:
        """Nats, all trees together: the forward pass alone."""
        padded = self._padded(tables)
        return sum(self._forward(tree, self._task(tree, padded, ())) for tree in self._trees)

    def counts(self, tables: Tables) -> tuple[float, Tables]:
        """The log-likelihood and the expected counts, in the shapes of the tables."""
        padded, total = self._padded(tables), 0.0
        steps, wide = len(tables[1]), self._width
        shapes = {"initial": (wide,), "moves": (steps, wide, wide), "emitted": padded[3].shape}
        found = tuple(self._kept(name, *shape).zero_() for name, shape in shapes.items())
        for tree in self._trees:
            task = self._task(tree, padded, found)
            total += self._forward(tree, task)
            self._passes.myna_backward(ctypes.byref(task))
        initial, moves, emitted = (part[..., : self._states] for part in found)
        moves = moves[:, : self._states] * tables[1]
        emitted = emitted.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return total, (initial.clone(), moves, emitted)

    def _padded(self, tables: Tables) -> tuple[Tensor, ...]:
        """The initial law, T, its transpose and E as (token, state), of whole vectors."""
        initial, move, emission = tables
        self._check(initial, move, emission)
        given = {
            "law": initial,
            "move": move,
            "back": move.transpose(1, 2),
            "emission": emission.transpose(1, 2),
        }
        padded = []
        for name, table in given.items():
            padded.append(self._kept(name, *table.shape[:-1], self._width))
            padded[-1][..., : self._states] = table
        return tuple(padded)

    def _kept(self, name: str, *shape: int) -> Tensor:
        """A buffer as the last pass left it, zeros at first: new memory costs more than a pass."""
        room = self._rooms.get(name)
        if room is None or room.shape != shape:
            room = self._rooms[name] = _zeros(*shape)
        return room

    def _check(self, initial: Tensor, move: Tensor, emission: Tensor) -> None:
        """C reads where it is told to, so tables must be of these trees."""
        states, tokens = self._states, self._tokens
        if (
            (len(initial), *move.shape[1:], emission.shape[1]) != (states,) * 4
            or emission.shape[2] < tokens
            or min(len(move), len(emission)) < 1
        ):
            raise InputError(
                f"these trees need tables of {states} states and at least {tokens} tokens; got "
                f"initial {tuple(initial.shape)}, transition {tuple(move.shape)}, "
                f"emission {tuple(emission.shape)}"
            )

    def _task(self, tree: _Tree, padded: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> _Task:
        sizes = (padded[3].shape[1], len(tree.starts) - 1, len(padded[1]), len(padded[3]))
        parts = (tree.starts, tree.tokens, tree.first, tree.ends, *padded)
        rooms = (self._filtered, self._mass, *self._later, self._room)
        return _Task(self._states, *sizes, *(part.data_ptr() for part in (*parts, *rooms, *found)))

    def _forward(self, tree: _Tree, task: _Task) -> float:
        self._passes.myna_forward(ctypes.byref(task))
        logs = torch.where(tree.read, self._mass[: len(tree.reads)], 1.0).log_()
        return float(torch.dot(tree.reads, logs))


def compiled_pass(trees: Sequence[Levels], num_states: int) -> TreePass | None:
    """The compiled pass; None where there is no compiler, off the CPU, and for many states."""
    many = num_states * torch.get_num_threads() > _MOST_STATES
    if trees[0][0][0].device.type != "cpu" or many:
        return None
    passes = built("learn/forward_backward.c")
    return None if passes is None else TreePass(passes, trees, num_states)


def _zeros(*shape: int) -> Tensor:
    """Zeros that begin where a machine vector may."""
    size = torch.Size(shape).numel()
    wide = torch.zeros(size + _LANES, dtype=torch.float64)
    return wide[-(wide.data_ptr() // wide.itemsize) % _LANES :][:size].view(shape)
