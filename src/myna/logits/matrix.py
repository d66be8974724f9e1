"""Extended logit matrices: histories x futures, whole and token by token.

    whole     M[h, f] = log P(f | h)
    logits    L[h, (g, o)] = log P(o | h g) - mean over all tokens o' of log P(o' | h g)

over histories h, futures f, the prefixes g of futures, tokens o. Rows with L on all
prefixes hold all that is needed to sample a future; M is a sum of differences of L. The
mean is over the whole alphabet even where only each prefix's k most likely tokens are kept.

Source: Golowich, Liu, Shetty (arXiv 2510.24966), whose prefixes are whole futures. Ours are
proper prefixes, the ones whose laws make up M, each distinct one once.
"""

import dataclasses
import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.logits.centred import centred
from myna.spec import fingerprint
from myna.teachers.crossing import FutureTree, check_crossing, crossed
from myna.teachers.oracle import Laws
from myna.teachers.prefixes import Prefixes

_REFERENCES = 16  # histories whose mean law says which tokens are likely


class Block(NamedTuple):
    """Some histories x some futures.

    histories, futures: which, as ranges of the matrix's
    whole: (history, future) log P(f | h), nats
    logits: (history, column) centred logits of the nodes that belong to these futures
    """

    histories: range
    futures: range
    whole: Float[Tensor, "history future"]
    logits: Float[Tensor, "history column"]


@dataclasses.dataclass(frozen=True)
class LogitMatrix:
    """What an extended logit matrix is made of.

    teacher: at the level of laws
    histories: the rows
    futures: the columns of `whole`
    nodes: (node, 2) as (future, place), by future: f_1 ... f_place is the prefix g of a node
    tokens: (node, k) the tokens kept of each node, most likely first; None: all
    """

    teacher: Laws
    histories: Prefixes
    futures: Prefixes
    nodes: Int[Tensor, "node 2"]
    tokens: Int[Tensor, "node k"] | None

    @property
    def shape(self) -> tuple[int, int]:
        """Histories, futures."""
        return len(self.histories.lengths), len(self.futures.lengths)

    @property
    def kept(self) -> int:
        """Columns of a node."""
        return self.teacher.spec.num_tokens if self.tokens is None else self.tokens.shape[1]

    @functools.cached_property
    def mark(self) -> str:
        """A digest of all that the entries depend on."""
        return fingerprint(
            "logit matrix",
            self.teacher.spec.fingerprint,
            *self.histories,
            *self.futures,
            self.nodes,
            self.tokens,
        )

    def nodes_of(self, futures: range) -> Int[Tensor, " node"]:
        """Which nodes belong to a range of futures."""
        owner = self.nodes[:, 0].contiguous()
        bounds = torch.searchsorted(owner, torch.tensor([futures.start, futures.stop]))
        return torch.arange(int(bounds[0]), int(bounds[1]))

    def block(self, histories: range, futures: range) -> Block:
        """The entries of some histories x some futures.

        Raises:
            InputError: a law with a zero, which has no logits.
        """
        nodes = self.nodes_of(futures)
        pairs = self.nodes[nodes] - torch.tensor([futures.start, 0])
        found = crossed(
            self.teacher,
            self.histories.take(torch.tensor(histories)),
            self.futures.take(torch.tensor(futures)),
            pairs,
        )
        logits = centred(found.laws)
        if self.tokens is not None:
            logits = logits.gather(2, self.tokens[nodes].expand(len(histories), -1, -1))
        return Block(histories, futures, found.log_probs, logits.flatten(1))


def logit_matrix(
    teacher: Laws,
    histories: Prefixes,
    futures: Prefixes,
    *,
    places: str = "all",
    k: int | None = None,
) -> LogitMatrix:
    """Choose the nodes, and each node's k most likely tokens.

    places: "all" distinct proper prefixes of futures, the "last" one of each, or "none"
    k: tokens kept, the most likely under the mean law of (at most 16) histories; None: all

    Raises:
        InputError: histories and futures that do not fit, or a k or places out of range.
    """
    check_crossing(teacher.spec, histories, futures)
    if places not in ("all", "last", "none"):
        raise InputError(f"places must be all, last or none, got {places!r}")
    if k is not None and not 1 <= k <= teacher.spec.num_tokens:
        raise InputError(f"k must lie in 1..{teacher.spec.num_tokens}, got {k}")
    tree = FutureTree.of(futures)
    pairs = {"all": tree.pairs, "last": tree.pairs[tree.last], "none": tree.pairs[:0]}[places]
    nodes = pairs[torch.argsort(pairs[:, 0], stable=True)]
    tokens = None
    if k is not None and k < teacher.spec.num_tokens:
        tokens = _likely(teacher, histories, futures, nodes, k)
    return LogitMatrix(teacher, histories, futures, nodes, tokens)


def _likely(
    teacher: Laws, histories: Prefixes, futures: Prefixes, nodes: Int[Tensor, "node 2"], k: int
) -> Int[Tensor, "node k"]:
    """Each node's k most likely tokens under the mean law of histories spread evenly."""
    count = min(_REFERENCES, len(histories.lengths))
    rows = torch.linspace(0, len(histories.lengths) - 1, count).long()
    chosen, found = histories.take(rows), []
    whole = LogitMatrix(teacher, chosen, futures, nodes, None)
    for first in range(0, len(futures.lengths), 64):
        part = range(first, min(first + 64, len(futures.lengths)))
        here = whole.nodes_of(part)
        pairs = nodes[here] - torch.tensor([first, 0])
        laws = crossed(teacher, chosen, futures.take(torch.tensor(part)), pairs).laws
        found.append(laws.logsumexp(0).topk(k, dim=1).indices)
    return torch.cat(found)
