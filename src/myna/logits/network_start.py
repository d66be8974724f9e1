"""Where fitting a stationary network begins: a spectral factorisation, or random numbers.

With a first coordinate that is always one the network is affine (x = (1, y)):

    z = c + y C,        y' = b_o + y W_o.

Spectral start. Rows are histories h_i and their one-token extensions along strings, columns the
centred logits after short futures, each weighted by the root of its token's mean probability
(what is never likely should not shape the coordinates). Its rows less their mean factor as
Y V' with Y whitened; then (C, c) and, token by token, (W_o, b_o) are regressions of what is
known of h_i and h_i o on y_i. Tokens seen seldom keep to the move that all share.

Source: Golowich, Liu, Shetty (arXiv 2510.24966, section 4) factor the same matrix; the affine
form, the weights and the shrinkage are ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.logits.affine import Affine
from myna.logits.centred import centred
from myna.teachers.crossing import FutureTree, crossed
from myna.teachers.ledger import LawsView
from myna.teachers.prefixes import Prefixes

_RUN = 6  # consecutive prefixes of one string that become rows
_SHARED_RIDGE = 1.0  # in rows, since Y is whitened; of what a token adds: the width
_ROOM = 2**27  # bytes of laws held together


def random_start(num_tokens: int, width: int, generator: torch.Generator) -> Affine:
    """A random rotation shrunk to .9, the same for all tokens up to noise; a small read-out."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    turned = torch.linalg.qr(noise(width, width)).Q
    return Affine(
        first=torch.zeros(width, dtype=torch.float64),
        move=0.9 * turned,
        offset=torch.zeros(width, dtype=torch.float64),
        moves=0.1 * noise(num_tokens, width, width) / width**0.5,
        offsets=noise(num_tokens, width),
        read=noise(width, num_tokens) / width**0.5,
        bias=torch.zeros(num_tokens, dtype=torch.float64),
    )


def spectral_start(
    view: LawsView, laws: int, width: int, length: int, generator: torch.Generator
) -> Affine:
    """Factor the centred logits of histories x short futures, at most `laws` queries.

    length: histories are prefixes of strings of so many tokens

    Raises:
        InputError: too few laws for the width.
    """
    strings, futures = _texts(view, laws, length, generator)
    rows, pairs, read_tokens = _rows(strings, generator)
    if len(rows.lengths) <= width:
        raise InputError(
            f"a spectral start of width {width} needs more than {width} histories, and {laws:,} "
            f"laws allow {len(rows.lengths)}; allow more laws or take a smaller width"
        )
    logits, after = _weighted(view, rows, futures)
    mean = logits.mean(0)
    left, values, _ = torch.linalg.svd(logits - mean, full_matrices=False)
    kept = min(width, int((values > 1e-10 * values[0]).sum()))
    y = torch.nn.functional.pad(left[:, :kept], (0, width - kept)) * len(logits) ** 0.5
    bias = after.mean(0)
    read = y.T @ (after - bias) / len(y)
    move, offset, moves, offsets = _moves(y, pairs, read_tokens, view.spec.num_tokens)
    return Affine(y[0], move, offset, moves, offsets, read, bias)


def _texts(
    view: LawsView, laws: int, length: int, generator: torch.Generator
) -> tuple[list[list[int]], Prefixes]:
    """Strings for histories, and short futures cut from others."""
    spread = max(2, round((laws / 100) ** 0.5 / 2))
    draws = max(2, laws // (_RUN * 3 * spread) - 1)
    drawn = view.complete(Prefixes.of([[]]), draws + spread, max_tokens=length)
    stop = view.spec.stop
    rows = [
        [t for t in row[:n] if t != stop]
        for row, n in zip(drawn.tokens[0].tolist(), drawn.lengths[0].tolist(), strict=True)
    ]
    words = []
    for row in rows[draws:]:
        if len(row) >= 3:
            start = int(torch.randint(len(row) - 2, (1,), generator=generator))
            words.append(row[start : start + 3])
    if not words:
        raise InputError("the teacher's strings are shorter than 3 tokens; nothing to factor")
    return rows[:draws], Prefixes.of(words)


def _rows(
    strings: list[list[int]], generator: torch.Generator
) -> tuple[Prefixes, Int[Tensor, "pair 2"], Int[Tensor, " pair"]]:
    """Histories, which follow which, and by what token. Row 0 is the empty history."""
    rows: list[list[int]] = [[]]
    pairs: list[list[int]] = []
    tokens: list[int] = []
    for string in strings:
        run = min(_RUN, len(string) - 3)  # three tokens of horizon are the futures'
        if run < 1:
            continue
        start = int(torch.randint(len(string) - 3 - run + 1, (1,), generator=generator))
        for t in range(start, start + run):
            if t > start:
                pairs.append([len(rows) - 1, len(rows)])
                tokens.append(string[t - 1])
            rows.append(string[:t])
    return Prefixes.of(rows), torch.tensor(pairs).reshape(-1, 2), torch.tensor(tokens).long()


def _weighted(
    view: LawsView, rows: Prefixes, futures: Prefixes
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row token"]]:
    """Weighted centred logits after every prefix of futures; those after the row itself."""
    tree = FutureTree.of(futures)
    size = view.spec.num_tokens
    part = max(1, _ROOM // (8 * size * len(tree.pairs)))
    blocks, after, mean = [], [], torch.zeros((len(tree.pairs), size), dtype=torch.float64)
    for index in torch.arange(len(rows.lengths)).split(part):
        laws = crossed(view, rows.take(index), futures, tree.pairs).laws
        mean += laws.exp().sum(0)
        logits = centred(laws)
        after.append(logits[:, 0])  # pairs go by depth: the first node is the empty prefix
        blocks.append(logits.float())
    weights = (mean / len(rows.lengths)).sqrt().float()
    whole = torch.cat([(block * weights).flatten(1) for block in blocks])
    return whole.double(), torch.cat(after)


def _moves(
    y: Float[Tensor, "row width"],
    pairs: Int[Tensor, "pair 2"],
    tokens: Int[Tensor, " pair"],
    num_tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ridge regressions: one move that all tokens share, then what each adds."""
    width = y.shape[1]
    x = torch.cat([torch.ones_like(y[:, :1]), y], 1)
    before, after = x[pairs[:, 0]], y[pairs[:, 1]]
    eye = torch.eye(width + 1, dtype=torch.float64)
    shared = torch.linalg.solve(before.T @ before + _SHARED_RIDGE * eye, before.T @ after)
    left = after - before @ shared
    order = tokens.argsort(stable=True)
    counts = torch.bincount(tokens, minlength=num_tokens).tolist()
    own = torch.zeros((num_tokens, width + 1, width), dtype=torch.float64)
    for token, rows in enumerate(order.split(counts)):
        if len(rows):
            a, e = before[rows], left[rows]
            own[token] = torch.linalg.solve(a.T @ a + width * eye, a.T @ e)
    return shared[1:], shared[0], own[:, 1:], own[:, 0]
