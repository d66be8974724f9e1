"""The tree of all prefixes asked, with the kind of law found at each.

    kind(x) = kind(y)   where   max over o of |P(o | x) - P(o | y)| <= tolerance,

the first law met of a kind standing for it. A token that the law of x gives no more than the
tolerance leads nowhere, and neither does the stop token: nothing is asked below. So a word is
walked from the empty prefix, each law telling whether the next one exists, and the kinds along it
are what Angluin's table holds for one history and one future.

A *word* is a prefix that a purpose asked and none of whose children it asked: what a system that
answers a word token by token would be sent at least. Each word brings the laws of all its prefixes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from myna.spec import Spec
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes

IMPOSSIBLE = -1


class AskedTree:
    """Prefixes as numbered nodes, node 0 the empty one; a node's parent has a lower number.

    ledger: who is asked
    tolerance: how far laws of one kind may differ, in each entry
    """

    def __init__(self, ledger: Ledger, tolerance: float):
        """Nothing asked yet."""
        self._ledger, self._spec, self._tolerance = ledger, ledger.spec, tolerance
        size = self._spec.num_tokens
        self._child = np.full((16, size), -1, dtype=np.int64)
        # (node, [parent, token, depth, kind, purpose])
        self._facts = np.full((16, 5), -1, dtype=np.int64)
        self._count = 0
        self._purposes: list[str] = []
        self._known: dict[bytes, int] = {}
        self._laws = torch.zeros((0, size), dtype=torch.float64)
        self._leads = np.zeros((0, size), dtype=bool)

    @property
    def spec(self) -> Spec:
        """The teacher's."""
        return self._spec

    @property
    def laws(self) -> Tensor:
        """(kind, token) the probabilities that stand for each kind."""
        return self._laws

    @property
    def leads(self) -> Bool[np.ndarray, "kind token"]:
        """Which tokens can be followed after a law of each kind."""
        return self._leads

    def follow(self, words: Sequence[Sequence[int]], purpose: str) -> list[tuple[int, ...]]:
        """The kinds at all prefixes of each word, the empty one first; one after another.

        They end early, with IMPOSSIBLE, where the word's next token leads nowhere.
        """
        batch = Prefixes.of(words)
        found = self._walk(batch, None, purpose)
        lengths = (found != IMPOSSIBLE).sum(1).tolist()
        return [
            (*row[:n], IMPOSSIBLE) if n <= len(word) else tuple(row[:n])
            for row, n, word in zip(found.tolist(), lengths, words, strict=True)
        ]

    def compare(
        self, words: Prefixes, expected: Int[np.ndarray, "word place"], purpose: str
    ) -> Int[np.ndarray, " word"]:
        """The first place of each word where the kind is not the expected one; -1: nowhere.

        A word is not followed beyond that place.
        """
        found = self._walk(words, expected, purpose)
        wrong = (found != expected) & (found != IMPOSSIBLE)
        return np.where(wrong.any(1), wrong.argmax(1), -1)

    def first_difference(
        self, kinds: Int[np.ndarray, " state"], moves: Int[np.ndarray, "state token"]
    ) -> tuple[int, ...] | None:
        """A shortest prefix asked at which a machine with these kinds and moves is wrong."""
        parent, token, depth, kind, _ = self._facts[: self._count].T
        state = np.zeros(self._count, dtype=np.int64)
        order = np.argsort(depth, kind="stable")
        for nodes in np.split(order, np.flatnonzero(np.diff(depth[order])) + 1):
            if depth[nodes[0]]:
                state[nodes] = moves[state[parent[nodes]], token[nodes]]
            wrong = kinds[state[nodes]] != kind[nodes]
            if wrong.any():
                return self._word(int(nodes[wrong.argmax()]))
        return None

    def words(self) -> dict[str, int]:
        """Words by purpose."""
        parent, _, depth, _, payer = self._facts[: self._count].T
        inside = np.zeros(self._count, dtype=bool)
        below = (depth > 0) & (payer == payer[parent])
        inside[parent[below]] = True
        return {name: int(((payer == i) & ~inside).sum()) for i, name in enumerate(self._purposes)}

    def _walk(
        self, words: Prefixes, expected: Int[np.ndarray, "word place"] | None, purpose: str
    ) -> Int[np.ndarray, "word place"]:
        """Level by level; a level's unknown laws are asked together."""
        tokens, lengths = words.tokens.numpy(), words.lengths.numpy()
        found = np.full((len(lengths), tokens.shape[1] + 1), IMPOSSIBLE, dtype=np.int64)
        if not self._count:
            nothing = np.array([-1])
            self._ask(Prefixes.of([[]]), nothing, nothing, purpose)
        alive = np.arange(len(lengths))
        node = np.zeros(len(lengths), dtype=np.int64)
        for t in range(found.shape[1]):
            kind = self._facts[node, 3]
            found[alive, t] = kind
            going = lengths[alive] > t
            if expected is not None:
                going &= kind == expected[alive, t]
            alive, node, kind = alive[going], node[going], kind[going]
            if not len(alive):
                break
            able = self._leads[kind, tokens[alive, t]]
            alive, node = alive[able], node[able]
            node = self._children(words, alive, node, t, purpose)
        return found

    def _children(
        self,
        words: Prefixes,
        alive: Int[np.ndarray, " alive"],
        node: Int[np.ndarray, " alive"],
        t: int,
        purpose: str,
    ) -> Int[np.ndarray, " alive"]:
        """The nodes one token further, asked where they are new."""
        token = words.tokens.numpy()[alive, t]
        new = np.flatnonzero(self._child[node, token] < 0)
        edges = node[new] * self._spec.num_tokens + token[new]
        _, first = np.unique(edges, return_index=True)
        rows = torch.from_numpy(alive[new[np.sort(first)]])
        if len(rows):
            asked = Prefixes(words.tokens[rows, : t + 1], torch.full_like(rows, t + 1))
            chosen = new[np.sort(first)]
            self._ask(asked, node[chosen], token[chosen], purpose)
        return self._child[node, token]

    def _ask(
        self,
        prefixes: Prefixes,
        parent: Int[np.ndarray, " new"],
        token: Int[np.ndarray, " new"],
        purpose: str,
    ) -> None:
        """Ask laws of new prefixes, each a token after a known one, and number them."""
        kinds = self._kinds(self._ledger.laws(purpose).laws(prefixes).exp())
        if purpose not in self._purposes:
            self._purposes.append(purpose)
        end = self._count + len(parent)
        while end > len(self._child):
            self._child = np.concatenate([self._child, np.full_like(self._child, -1)])
            self._facts = np.concatenate([self._facts, np.full_like(self._facts, -1)])
        numbers = np.arange(self._count, end)
        payer = np.full_like(parent, self._purposes.index(purpose))
        depth = prefixes.lengths.numpy()
        self._facts[numbers] = np.stack([parent, token, depth, kinds, payer], 1)
        if self._count:
            self._child[parent, token] = numbers
        self._count = end

    def _kinds(self, laws: Tensor) -> Int[np.ndarray, " law"]:
        """The kind of each law, a new one where none is near."""
        kinds = np.empty(len(laws), dtype=np.int64)
        for row, law in enumerate(laws):
            key = law.numpy().tobytes()
            if key not in self._known:
                near = ((self._laws - law).abs().amax(1) <= self._tolerance).nonzero()[:, 0]
                if not len(near):
                    near = torch.tensor([len(self._laws)])
                    self._add(law)
                self._known[key] = int(near[0])
            kinds[row] = self._known[key]
        return kinds

    def _add(self, law: Tensor) -> None:
        self._laws = torch.cat([self._laws, law[None]])
        leads = (law > self._tolerance).numpy()
        if self._spec.stop is not None:
            leads[self._spec.stop] = False
        self._leads = np.concatenate([self._leads, leads[None]])

    def _word(self, node: int) -> tuple[int, ...]:
        tokens = []
        while node:
            parent, token = self._facts[node, :2].tolist()
            tokens.append(token)
            node = parent
        return tuple(reversed(tokens))
