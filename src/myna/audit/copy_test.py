"""Repeat after me: the block of a model that shows how far it is from low rank.

    B[i, j] = P(w_j | a w_i b),    a an opening, w_1 .. w_n distinct words of one length,
                                   b what stands between

A model that repeats has B near the identity, which has rank n. A copy Q of rank r at the cut
after a w b has a block of rank r, and no matrix of rank r is nearer than

    sum_ij |B - Q|_ij  >=  |B - Q|_nuclear  >=  s_r+1 + ... + s_n,

s the singular values of B (the nuclear norm of a matrix with one entry is that entry; Eckart,
Young and Mirsky for the second), so over the n histories the mean total variation

    mean_i TV(P(. | h_i), Q(. | h_i))  >=  (s_r+1 + ... + s_n) / (2 n).

Source: the talk's disclaimer, and Jelassi et al. (arXiv 2402.01032) for state-space models;
the bound is ours.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

_EXHAUSTED = 50  # draws for each word that is wanted, before giving up
_ROUNDING = 1e-9  # of the largest singular value


@dataclasses.dataclass(frozen=True)
class CopyTest:
    """How near a model comes to repeating.

    words: w_1 .. w_n
    log_probs: log B, nats
    singular_values: of B
    rank: of B, to 1e-9 of its largest singular value
    energy_90: how many singular values hold 90% of the sum of squares
    log_singular_values: of log B less its row and column means (where B has no zero)
    repeated: mean over i of B_ii, the chance of repeating the word
    chosen: mean over i of B_ii / sum_j B_ij, the same among the n words
    first: share of words that are likeliest after themselves
    identity_distance: |R - I|_F / |I|_F, R the rows of B divided by their sums
    queries: next-token queries and scored prompts that this took
    """

    words: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    singular_values: tuple[float, ...]
    rank: int
    energy_90: int
    log_singular_values: tuple[float, ...] | None
    repeated: float
    chosen: float
    first: float
    identity_distance: float
    queries: int

    def least_variation(self, rank: int) -> float:
        """What the mean total variation of a copy of this rank is at least."""
        left = [s for s in self.singular_values[rank:] if s > _ROUNDING * self.singular_values[0]]
        return sum(left) / (2 * len(self.words))

    def least_rank(self, variation: float) -> int:
        """The least rank at which a copy could have this mean total variation."""
        ranks = range(len(self.words) + 1)
        return next(r for r in ranks if self.least_variation(r) <= variation)


def copy_test(
    view: LawsView,
    count: int,
    length: int,
    *,
    opening: tuple[int, ...] = (),
    between: tuple[int, ...] = (),
) -> CopyTest:
    """Ask the block for words that the model itself says after the opening.

    count, length: n words of so many tokens

    Raises:
        InputError: fewer than two words, or more than the model has; what does not fit the
            horizon.
    """
    if count < 2 or length < 1:
        raise InputError(f"at least 2 words of 1 token are needed, got {count} of {length}")
    longest = len(opening) + 2 * length + len(between)
    if view.spec.horizon is not None and longest > view.spec.horizon:
        raise InputError(
            f"opening, word, text between and word have {longest} tokens together, and the horizon "
            f"is {view.spec.horizon}; use shorter words"
        )
    before = view.spent().queries
    words = drawn_words(view, count, length, opening)
    histories = [(*opening, *word, *between) for word in words]
    block = log_block(view, histories, words)
    return judged(words, block, view.spent().queries - before)


def judged(
    words: list[tuple[int, ...]], block: Float[Tensor, "word word"], queries: int
) -> CopyTest:
    """What a block of log-probabilities (nats) says."""
    probs = block.exp()
    values = torch.linalg.svdvals(probs)
    energy = (values**2).cumsum(0) / (values**2).sum()
    rows = probs / probs.sum(1, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)
    identity = torch.eye(len(words), dtype=probs.dtype)
    others = block.masked_fill(identity.bool(), -torch.inf)
    logs = None
    if not bool(block.isneginf().any()):
        double = block - block.mean(0) - block.mean(1, keepdim=True) + block.mean()
        logs = tuple(torch.linalg.svdvals(double).tolist())
    return CopyTest(
        words=tuple(words),
        log_probs=tuple(map(tuple, block.tolist())),
        singular_values=tuple(values.tolist()),
        rank=int((values > _ROUNDING * values[0]).sum()),
        energy_90=int((energy < 0.9).sum()) + 1,
        log_singular_values=logs,
        repeated=float(probs.diagonal().mean()),
        chosen=float(rows.diagonal().mean()),
        first=float((block.diagonal() > others.amax(1)).double().mean()),
        identity_distance=float((rows - identity).norm() / identity.norm()),
        queries=queries,
    )


def drawn_words(
    view: LawsView, count: int, length: int, opening: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Distinct completions of the opening, of full length and without the stop token.

    Raises:
        InputError: where the model says too few.
    """
    found: dict[tuple[int, ...], None] = {}
    first = 0
    while len(found) < count and first < _EXHAUSTED * count:
        prefix = Prefixes.of([list(opening)])
        drawn = view.complete(prefix, count, max_tokens=length, first_draw=first)
        first += count
        for row, size in zip(drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True):
            if size == length and view.spec.stop not in row:
                found[tuple(row)] = None
    if len(found) < count:
        raise InputError(
            f"{count} different words of {length} tokens were wanted, and {first:,} draws have "
            f"{len(found)}; ask for fewer or longer ones"
        )
    return list(found)[:count]


def log_block(
    view: LawsView, histories: list[tuple[int, ...]], futures: list[tuple[int, ...]]
) -> Float[Tensor, "history future"]:
    """Log P(f | h) in nats; nothing is asked after a prefix of probability zero."""
    pairs = [(h, f) for h in histories for f in futures]
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for t in range(len(futures[0])):
        alive = (~total.isneginf()).nonzero()[:, 0].tolist()
        if not alive:
            break
        laws = view.laws(Prefixes.of([[*pairs[i][0], *pairs[i][1][:t]] for i in alive]))
        total[alive] += laws[torch.arange(len(alive)), [pairs[i][1][t] for i in alive]]
    return total.reshape(len(histories), len(futures))
