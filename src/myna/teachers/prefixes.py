"""A ragged batch of prefixes, and the tree that they share.

Every question a teacher answers is about a batch of prefixes. Sorted
lexicographically, row i shares its first c_i tokens with row i-1 (c_i: the longest
common prefix), and the distinct nodes of the batch's prefix tree at depth d are
exactly the rows with length >= d and c_i < d. Stepping those nodes, level by level,
computes each shared prefix once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import Strings, check_strings, strings
from myna.spec import Spec

TOKEN_BYTES = 4  # a key is this many bytes a token, so key[:-TOKEN_BYTES] is the parent's


class Prefixes(NamedTuple):
    """A batch of histories; row i is tokens[i, : lengths[i]], padded with -1."""

    tokens: Int[Tensor, "batch width"]
    lengths: Int[Tensor, " batch"]

    @staticmethod
    def of(rows: Sequence[Sequence[int]]) -> "Prefixes":
        """Pack sequences of tokens, of any lengths."""
        return Prefixes(*strings([list(row) for row in rows]))

    def rows(self) -> list[tuple[int, ...]]:
        """The prefixes as tuples of tokens."""
        return [
            tuple(row[:length])
            for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        ]

    def take(self, index: Tensor) -> "Prefixes":
        """The chosen rows."""
        return Prefixes(self.tokens[index], self.lengths[index])

    def keys(self) -> list[bytes]:
        """One byte string a prefix, equal exactly where the prefixes are equal.

        Tokens are written big-endian, so keys also sort as the prefixes do.
        """
        rows = self.tokens.numpy().astype(">u4").tobytes()
        width = TOKEN_BYTES * self.tokens.shape[1]
        starts = range(0, width * len(self.lengths), width) if width else [0] * len(self.lengths)
        return [
            rows[start : start + TOKEN_BYTES * length]
            for start, length in zip(starts, self.lengths.tolist(), strict=True)
        ]

    def extended(self, words: "Prefixes") -> "Prefixes":
        """Every prefix followed by every word; row i * len(words) + j is prefix i, word j."""
        n, m = len(self.lengths), len(words.lengths)
        lengths = (self.lengths[:, None] + words.lengths[None, :]).reshape(-1)
        width = self.tokens.shape[1] + words.tokens.shape[1]
        tokens = torch.full((n * m, width), -1, dtype=torch.int64)
        tokens[:, : self.tokens.shape[1]] = self.tokens.repeat_interleave(m, 0)
        columns = self.lengths.repeat_interleave(m)[:, None] + torch.arange(words.tokens.shape[1])
        tokens.scatter_(1, columns, words.tokens.repeat(n, 1))
        return Prefixes(tokens[:, : int(lengths.max()) if len(lengths) else 0], lengths)


def check_prefixes(spec: Spec, prefixes: Prefixes) -> None:
    """Refuse prefixes after which nothing can follow, or that are no prefixes.

    Raises:
        InputError: a token outside the alphabet, a prefix as long as the horizon,
            or one that the stop token has already ended.
    """
    check_strings(spec, Strings(*prefixes))
    if spec.horizon is not None and bool((prefixes.lengths >= spec.horizon).any()):
        raise InputError(
            f"nothing follows a prefix of {spec.horizon} tokens, the horizon; "
            "ask about shorter prefixes"
        )
    if spec.stop is not None and bool((prefixes.tokens == spec.stop).any()):
        raise InputError(
            f"nothing follows the stop token {spec.alphabet[spec.stop]!r}; "
            "ask about prefixes that do not contain it"
        )


class Level(NamedTuple):
    """One depth of a prefix tree.

    depth: number of tokens read
    parents: (nodes,) each node's parent, as an index into the level above
    tokens: (nodes,) the token on the edge from the parent
    rows: (ends,) which rows of the batch end at this depth
    nodes: (ends,) the node each of them ends at
    below: (nodes,) for each node, one row of the batch that passes through it
    """

    depth: int
    parents: Int[Tensor, " nodes"]
    tokens: Int[Tensor, " nodes"]
    rows: Int[Tensor, " ends"]
    nodes: Int[Tensor, " ends"]
    below: Int[Tensor, " nodes"]


def tree_levels(prefixes: Prefixes) -> Iterator[Level]:
    """The distinct prefixes of a batch by depth, the root's level first."""
    n = len(prefixes.lengths)
    if not n:
        return
    keys = prefixes.keys()
    order = np.array(sorted(range(n), key=keys.__getitem__))
    tokens = prefixes.tokens.numpy()[order]
    lengths = prefixes.lengths.numpy()[order]
    differs = np.concatenate([tokens[1:] != tokens[:-1], np.ones((n - 1, 1), bool)], 1)
    common = np.concatenate([[-1], differs.argmax(1)])  # c_i; -1: row 0 opens the root
    above = np.zeros(n, np.int64)  # node of each row at the level above
    for depth in range(int(lengths.max()) + 1):
        reaches = lengths >= depth
        if depth == 0:
            opens, here = np.zeros(0, np.int64), np.zeros(n, np.int64)
        else:
            first = reaches & (common < depth)
            # A row that is too short still ends the run of rows that share a node.
            here = np.cumsum(first) - 1
            opens = first.nonzero()[0]
        ends = (lengths == depth).nonzero()[0]
        yield Level(
            depth,
            torch.from_numpy(above[opens]),
            torch.from_numpy(tokens[opens, depth - 1] if depth else opens),
            torch.from_numpy(order[ends]),
            torch.from_numpy(here[ends]),
            torch.from_numpy(order[opens] if depth else order[:1]),
        )
        above = here
