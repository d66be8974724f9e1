"""States told apart by separating futures, in a tree.

An inner node holds a future f. A history x goes to the child named

    kind(x), kind(x f_1), ..., kind(x f)

cut at the first token that is impossible: all these laws are asked on the way to the last one, so
all of them may tell histories apart. A leaf is a state, with the history that opened it. The future
of the root is empty. Histories are closed under prefixes: each is its parent state's history and a
token. Kearns and Vazirani (1994) with whole walks for answers.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from myna.learn.asked_tree import AskedTree

History = tuple[int, ...]


class TooManyStates(Exception):
    """More leaves than were allowed."""


@dataclasses.dataclass
class _Node:
    """An inner node where it has a future, else the leaf of a state."""

    state: int
    future: History | None = None
    children: dict[tuple[int, ...], "_Node"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Edge:
    """A state's token, on its way down the tree: it has come to `at`."""

    source: int
    token: int
    at: _Node


class StateTree:
    """States, where each of their tokens leads, and the futures that tell states apart.

    histories: of each state, state 0 the empty one
    futures: all in the tree, in the order they came
    """

    def __init__(self, asked: AskedTree, max_states: int):
        """State 0 is known to exist; nothing is asked yet."""
        self._asked, self._max_states = asked, max_states
        self._root = _Node(state=0)
        self._leaves = [self._root]
        self._kinds: list[int] = []
        self._moves: list[dict[int, int]] = []
        self._waiting: list[_Edge] = []
        self.histories: list[History] = [()]
        self.futures: list[History] = []

    def close(self) -> None:
        """Place every token of every state, level by level of the tree, all together.

        Raises:
            TooManyStates: more than the limit.
        """
        if not self.futures:
            self._open(self._root, ())
        while self._waiting:
            # the shortest history of those that open a state together becomes the state's
            batch = sorted(self._waiting, key=lambda edge: len(self.histories[edge.source]))
            self._waiting = []
            named = self._names([(self._reached(edge), edge.at.future or ()) for edge in batch])
            for edge, name in zip(batch, named, strict=True):
                self._descend(edge, name)

    def split(self, state: int, future: History) -> None:
        """Open a state's leaf by a future; whatever leads to the state waits to be placed."""
        leaf = self._leaves[state]
        self._open(leaf, future)
        for source, moves in enumerate(self._moves):
            back = [token for token, target in moves.items() if target == state]
            self._waiting += [_Edge(source, token, leaf) for token in back]

    def table(self) -> tuple[Int[np.ndarray, " state"], Int[np.ndarray, "state token"]]:
        """The kind of each state's law, and where its tokens lead (-1: nowhere)."""
        moves = np.full((len(self._moves), self._asked.leads.shape[1]), -1, dtype=np.int64)
        for source, row in enumerate(self._moves):
            moves[source, list(row)] = list(row.values())
        return np.array(self._kinds), moves

    def _reached(self, edge: _Edge) -> History:
        return (*self.histories[edge.source], edge.token)

    def _names(self, asked: list[tuple[History, History]]) -> list[tuple[int, ...]]:
        """The kinds along each future after its history."""
        found = self._asked.follow([x + f for x, f in asked], "learn")
        return [kinds[len(x) :] for kinds, (x, _) in zip(found, asked, strict=True)]

    def _open(self, leaf: _Node, future: History) -> None:
        """Make a leaf an inner node above a new leaf of its state."""
        leaf.future = future
        self.futures.append(future)
        name = self._names([(self.histories[leaf.state], future)])[0]
        child = leaf.children[name] = _Node(leaf.state)
        self._leaves[leaf.state] = child
        if leaf is self._root:
            self._enter(0, name[0])

    def _descend(self, edge: _Edge, name: tuple[int, ...]) -> None:
        child = edge.at.children.get(name)
        if child is None:
            if len(self.histories) == self._max_states:
                raise TooManyStates
            child = edge.at.children[name] = _Node(len(self.histories))
            self._leaves.append(child)
            self.histories.append(self._reached(edge))
            self._enter(child.state, name[0])
        if child.future is None:
            self._moves[edge.source][edge.token] = child.state
        else:
            self._waiting.append(dataclasses.replace(edge, at=child))

    def _enter(self, state: int, kind: int) -> None:
        """A new state: its tokens wait at the root."""
        self._kinds.append(kind)
        self._moves.append({})
        tokens = np.flatnonzero(self._asked.leads[kind]).tolist()
        self._waiting += [_Edge(state, token, self._root) for token in tokens]
