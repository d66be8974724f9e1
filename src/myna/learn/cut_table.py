"""What samples say at one cut: histories against futures, with the noise of every entry.

A row is a history h, or a class of histories (all plain draws that end alike), whose law
is the mean of theirs and so lies in the same row space. Columns are

    short futures   f of at most `look` tokens: frequencies among completions of h
    words           (w, o): P^(w | h) P^(o | h w), the empirical tree along h w

The tree's law at a touched prefix h w is estimated once from its draws and then fixed. The
factor P^(w_j | h w_<j) is set to its mean over all rows where the draws show no difference
between rows (a chi-square test): smoothing towards the common mean, which leaves noise out
where there is only noise. Every column is divided by its mean over rows, to the power that
makes multinomial noise have standard deviation 1 / sqrt(draws).

Source: Liu and Moitra (arXiv 2411.07536), lemma 4.6 (one fixed empirical law a prefix) and
algorithm 2 (weights 1/D). We differ in mixing frequencies of short futures with explicit
words, and in pooling by a test.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.learn.table import History

_POOL_LEVEL = 3.0  # standard deviations by which chi-square must exceed its mean
_PRIOR = 4.0  # draws of the mean law that smooth a row's own variance
_FEW = 4.0  # short futures expected fewer times than this a row are put together


@dataclasses.dataclass
class CutTable:
    """Counts at one cut.

    histories: rows that are histories; class rows follow them
    short: (row, future), counts of the short futures
    words: the nonempty words, closed under prefixes
    deep: (word, history, token), next-token counts after h w
    """

    histories: list[History]
    short: Float[Tensor, "row future"]
    words: list[History]
    deep: Float[Tensor, "word history token"]


@dataclasses.dataclass(frozen=True)
class Sketch:
    """Scaled entries and their noise.

    values, spread: (row, column); spread is inf where nothing was measured
    """

    values: Float[Tensor, "row column"]
    spread: Float[Tensor, "row column"]

    @property
    def whitened(self) -> Float[Tensor, "row column"]:
        """Values / spread, where every row was measured."""
        return self.values / self.spread


def short_codes(
    tokens: Int[Tensor, "row width"], look: int, num_tokens: int
) -> Int[Tensor, " row"]:
    """The first `look` tokens as one number; a missing token counts as token O."""
    code = torch.zeros(len(tokens), dtype=torch.int64)
    for k in range(look):
        digit = tokens[:, k] if k < tokens.shape[1] else torch.full_like(code, -1)
        code = code * (num_tokens + 1) + torch.where(digit < 0, num_tokens, digit)
    return code


def sketch(table: CutTable) -> Sketch:
    """All columns of the table, scaled, with their noise."""
    parts = []
    size = table.deep.shape[2] + 1
    futures = size
    while futures <= table.short.shape[1]:
        counts = table.short.reshape(len(table.short), futures, -1).sum(2)
        # few rows with many draws say which futures are worth a column of their own
        parts.append(short_columns(counts, table.short.sum(1).mean()))
        futures *= size
    ratio, relative = _word_ratios(table)
    for j in range(len(table.words)):
        parts.append(_word_columns(table, j, ratio[j], relative[j]))
    values = torch.cat([part[0] for part in parts], 1)
    spread = torch.cat([part[1] for part in parts], 1)
    return Sketch(values, spread)


def short_columns(
    counts: Float[Tensor, "row future"], typical: Float[Tensor, ""]
) -> tuple[Tensor, Tensor]:
    """Frequencies over sqrt(D), rare futures together in the last column.

    typical: draws a row; a future expected fewer than `_FEW` times among so many is rare
    """
    draws = counts.sum(1, keepdim=True)
    mean = counts.sum(0) / counts.sum().clamp(min=1)
    common = mean * typical >= _FEW
    merged = torch.cat([counts[:, common], counts[:, ~common].sum(1, keepdim=True)], 1)
    mean = merged.sum(0) / merged.sum().clamp(min=1)
    merged, mean = merged[:, mean > 0], mean[mean > 0]
    values = merged / draws.clamp(min=1) / mean.sqrt()
    return values, _multinomial_spread(merged, draws, mean)


def _multinomial_spread(counts: Tensor, draws: Tensor, mean: Tensor) -> Tensor:
    """Sd of (counts / draws) / sqrt(mean), the row's law smoothed by a few draws of the mean."""
    own = (counts + _PRIOR * mean) / (draws + _PRIOR)
    variance = own * (1 - own) / mean
    return torch.where(draws > 0, (variance.clamp(min=1e-3) / draws.clamp(min=1)).sqrt(), torch.inf)


def _word_ratios(table: CutTable) -> tuple[list[Tensor], list[Tensor]]:
    """P^(w | h) / D(w) for every word, and its relative variance, from pooled factors."""
    place = {word: j for j, word in enumerate(table.words)}
    rows = len(table.histories)
    ratios, relatives = [], []
    one, zero = torch.ones(rows).double(), torch.zeros(rows).double()
    for word in table.words:
        if len(word) == 1:
            before, spread, counts = one, zero, _first_tokens(table)
        else:
            j = place[word[:-1]]
            before, spread, counts = ratios[j], relatives[j], table.deep[j]
        factor, variance = pooled_factor(counts, word[-1])
        ratios.append(before * factor)
        relatives.append(spread + variance)
    return ratios, relatives


def _first_tokens(table: CutTable) -> Float[Tensor, "history token"]:
    """Next-token counts of the histories themselves, out of their short futures."""
    num_tokens = table.deep.shape[2]
    rows = table.short[: len(table.histories)]
    return rows.reshape(len(rows), num_tokens + 1, -1).sum(2)[:, :num_tokens]


def pooled_factor(
    counts: Float[Tensor, "history token"], token: int
) -> tuple[Float[Tensor, " history"], Float[Tensor, " history"]]:
    """P^(o | h) / D(o) by history and its relative variance; 1 and 0 where all agree."""
    draws = counts.sum(1)
    hits = counts[:, token]
    mean = float(hits.sum() / draws.sum().clamp(min=1))
    ones, zeros = torch.ones_like(hits), torch.zeros_like(hits)
    if mean in (0.0, 1.0):
        return ones, zeros
    measured = draws > 0
    excess = ((hits - draws * mean).square() / (draws * mean * (1 - mean)))[measured]
    degrees = max(1, len(excess) - 1)
    if float(excess.sum()) <= degrees + _POOL_LEVEL * (2 * degrees) ** 0.5:
        return ones, zeros
    chance = (hits + mean) / (draws + 1)  # one draw's worth of the common law
    return chance / mean, (1 - chance) / (chance * (draws + 1))


def _word_columns(
    table: CutTable, j: int, ratio: Float[Tensor, " history"], relative: Float[Tensor, " history"]
) -> tuple[Tensor, Tensor]:
    """Ratio x P^(o | h w) / sqrt(D(o | w)); class rows were not measured."""
    counts = table.deep[j]
    draws = counts.sum(1, keepdim=True)
    mean = counts.sum(0) / counts.sum().clamp(min=1)
    seen = mean > 0
    law = counts[:, seen] / draws.clamp(min=1)
    values = ratio[:, None] * law / mean[seen].sqrt()
    spread = _multinomial_spread(counts[:, seen], draws, mean[seen])
    spread = ((ratio[:, None] * spread).square() + relative[:, None] * values.square()).sqrt()
    classes = len(table.short) - len(counts)
    pad = (0, 0, 0, classes)
    return (
        torch.nn.functional.pad(values, pad),
        torch.nn.functional.pad(spread, pad, value=torch.inf),
    )
