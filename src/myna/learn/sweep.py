"""From tables to operators, cut by cut: the robust spanner and the change of basis.

At each cut the rows are the children of the basis before it and histories of plain
draws; classes of plain draws help to find the row space. With sketch ~ C U of the rank
that stands out of the noise (`lowrank.noisy`), a barycentric spanner of the rows of C
picks basis histories, and the coefficients of every row h are C_h C_basis^-1: the change
of basis for the children. In operator form A_o[i, :] = P(o | h_i) c(h_i o).

Source: Liu and Moitra (arXiv 2411.07536): sketches, truncated SVD, robust spanner whose
members are actual histories, "Tracking the evolution of the coefficients".
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from myna.learn.asker import Asker
from myna.learn.cut_table import CutTable, Sketch, short_codes, short_columns, sketch
from myna.learn.table import History
from myna.lowrank.noisy import NoisyRank, convex_coefficients, noisy_rank, weighted_factors
from myna.lowrank.spanner import barycentric_spanner, basis_coefficients
from myna.lowrank.student import Strings

_SHORT_FUTURES = 1100  # most short futures in a table
_CLASSES = 100  # most classes of plain draws in a table
_EXTRA = 8  # histories of plain draws in each table
_LEAST_CLASS = 30  # plain draws that make a class
_LEAST_MASS = 0.2  # coefficients that sum to less are no law's


class Rows:
    """The answers about the histories at one cut.

    short: by history, counts of short futures
    deep: by history and word, next-token counts after both
    words: futures that checking asked for, closed under prefixes
    """

    def __init__(self) -> None:
        self.short: dict[History, Tensor] = {}
        self.deep: dict[tuple[History, History], Tensor] = {}
        self.words: list[History] = []


@dataclasses.dataclass(frozen=True)
class CutBasis:
    """What one cut came to.

    histories: the spanner
    laws: (rank, token), next-token laws of the spanner, positive
    coefficients: by history, over the spanner; they sum to one
    convex: the same, each a convex combination
    rank: the evidence for the rank
    draws: completions a history, the median
    rows: histories with draws of their own
    """

    histories: tuple[History, ...]
    laws: Float[Tensor, "rank token"]
    coefficients: dict[History, Float[Tensor, " rank"]]
    convex: dict[History, Float[Tensor, " rank"]]
    rank: NoisyRank
    draws: float
    rows: int


class Surveyor:
    """Fills tables and reads bases off them."""

    def __init__(
        self,
        asker: Asker,
        plain: Strings,
        *,
        level: float,
        max_rank: int,
        spanner_bound: float,
    ):
        """Decide how far tables look: as far as the number of short futures allows."""
        self._asker = asker
        self.use_plain(plain)
        self._level, self._max_rank, self._bound = level, max_rank, spanner_bound
        o = asker.spec.num_tokens
        longest = asker.spec.horizon or 3
        looks = [k for k in (1, 2, 3) if k <= max(1, longest // 2)]
        self.look = max(k for k in looks if k == 1 or (o + 1) ** k <= _SHORT_FUTURES)
        self.suffix = max(k for k in (1, 2, 3, 4, 5, 6) if k == 1 or o**k <= _CLASSES)

    def use_plain(self, plain: Strings) -> None:
        """Plain draws that make the classes; classes of earlier ones are forgotten."""
        self.plain = plain
        self._classes: dict[tuple[tuple[int, ...], int], Tensor] = {}

    def measure(
        self, rows: Rows, histories: Sequence[History], purse: float, deep_purse: float
    ) -> None:
        """Draws for the histories that have none, within a purse; then the words'."""
        spec = self._asker.spec
        new = [h for h in histories if h not in rows.short]
        if new:
            look = self.look
            price = sum(self._asker.price(len(h), look) for h in new)
            count = max(2, int(purse / price))
            answer = self._asker.ask(new, count, look)
            o = spec.num_tokens
            for h, tokens in zip(new, answer, strict=True):
                code = short_codes(tokens, look, o)
                rows.short[h] = torch.bincount(code, minlength=(o + 1) ** look).double()
        lacking = [(h, w) for w in rows.words for h in histories if (h, w) not in rows.deep]
        if not lacking:
            return
        price = sum(self._asker.price(len(h) + len(w), 1) for h, w in lacking)
        count = max(4, int(deep_purse / price))
        for length in sorted({len(w) for w in rows.words}):
            level = [(h, w) for h, w in lacking if len(w) == length]
            ask = [(h, w) for h, w in level if self._possible(rows, h, w)]
            answer = self._asker.ask([(*h, *w) for h, w in ask], count, 1) if ask else ()
            for key in level:
                rows.deep[key] = torch.zeros(spec.num_tokens).double()
            for key, tokens in zip(ask, answer, strict=True):
                rows.deep[key] = torch.bincount(tokens[:, 0], minlength=spec.num_tokens).double()

    def _possible(self, rows: Rows, history: History, word: History) -> bool:
        """Whether the answers so far saw the word's last token after h and its others.

        Nothing follows where both fill the horizon; such an entry stays unmeasured.
        """
        o, horizon = self._asker.spec.num_tokens, self._asker.spec.horizon
        if horizon is not None and len(history) + len(word) >= horizon:
            return False
        if len(word) == 1:
            return bool(rows.short[history].reshape(o + 1, -1).sum(1)[word[0]] > 0)
        return bool(rows.deep[history, word[:-1]][word[-1]] > 0)

    def classes(self, cuts: Sequence[int], suffix: int) -> Float[Tensor, "class future"]:
        """Short-future counts of classes of plain draws that end alike, over some cuts.

        Over several cuts only those count at which a history has `suffix` tokens.
        """
        o, look = self._asker.spec.num_tokens, self.look
        horizon = self._asker.spec.horizon or self.plain.tokens.shape[1]
        keys, codes = [], []
        for t in cuts:
            k = min(suffix, t)
            if len(cuts) > 1 and k < suffix:
                continue
            tokens = self.plain.tokens[self.plain.lengths >= min(t + 1, horizon)]
            keys.append(short_codes(tokens[:, t - k : t], k, o))
            codes.append(short_codes(tokens[:, t : t + look], look, o))
        size = (o + 1) ** look
        if not keys:
            return torch.zeros(0, size).double()
        key, code = torch.cat(keys), torch.cat(codes)
        kinds, inverse, counts = key.unique(return_inverse=True, return_counts=True)
        top = counts.argsort(descending=True, stable=True)[:_CLASSES]
        top = top[counts[top] >= _LEAST_CLASS]
        place = torch.full((len(kinds),), -1)
        place[top] = torch.arange(len(top))
        which = place[inverse]
        flat = which[which >= 0] * size + code[which >= 0]
        return torch.bincount(flat, minlength=len(top) * size).reshape(len(top), size).double()

    def _kept_classes(self, cuts: Sequence[int], suffix: int) -> Float[Tensor, "class future"]:
        """`classes`, counted once: a table is read several times over the same draws."""
        place = (tuple(cuts), suffix)
        if place not in self._classes:
            self._classes[place] = self.classes(cuts, suffix)
        return self._classes[place]

    def sampled_histories(self, cut: int, count: int = _EXTRA) -> list[History]:
        """Prefixes of plain draws at a cut: the first ones, always the same."""
        reach = self.plain.lengths > cut
        rows = self.plain.tokens[reach][: 4 * count, :cut].tolist()
        return list(dict.fromkeys(tuple(row) for row in rows))[:count]

    def basis(
        self,
        rows: Rows,
        histories: list[History],
        cuts: Sequence[int],
        preferred: Sequence[History],
        extra: int = 0,
    ) -> CutBasis:
        """Rank, factors, spanner and coefficients of one table.

        extra: dimensions kept beyond the rank that the test finds, where that exceeds one
        """
        o = self._asker.spec.num_tokens
        finest, *coarser = [self._kept_classes(cuts, k) for k in range(self.suffix, 0, -1)]
        short = torch.cat([torch.stack([rows.short[h] for h in histories]), finest])
        deep = torch.zeros(len(rows.words), len(histories), o).double()
        for j, word in enumerate(rows.words):
            deep[j] = torch.stack([rows.deep[h, word] for h in histories])
        found = sketch(CutTable(histories, short, rows.words, deep))
        n = len(histories)
        rank = self._rank(short, found, n, coarser)
        wanted = rank.rank + (extra if rank.rank > 1 else 0)
        mass = torch.ones(len(short), 1).double()
        values = torch.cat([found.values, mass], 1)
        spread = torch.cat([found.spread, 0.1 * found.spread[:, :1]], 1)
        left, _ = weighted_factors(values, spread, max(1, min(wanted, n)))
        chosen = self._spanner(left[:n], histories, preferred)
        c = basis_coefficients(left[:n], chosen)
        total = c.sum(1, keepdim=True)
        c = torch.where(total.abs() > _LEAST_MASS, c / total, 1 / c.shape[1])
        inside = convex_coefficients(left[:n], left[chosen])
        return CutBasis(
            histories=tuple(histories[i] for i in chosen.tolist()),
            laws=self._laws(short[:n], c, chosen),
            coefficients=dict(zip(histories, c.unbind(0), strict=True)),
            convex=dict(zip(histories, inside.unbind(0), strict=True)),
            rank=rank,
            draws=float(short[:n].sum(1).median()),
            rows=n,
        )

    def _spanner(
        self, left: Tensor, histories: list[History], preferred: Sequence[History]
    ) -> Tensor:
        place = {h: i for i, h in enumerate(histories)}
        start = torch.tensor([place[h] for h in preferred if h in place], dtype=torch.int64)
        found = barycentric_spanner(
            left, bound=self._bound, tolerance=1e-6, max_rank=left.shape[1], preferred=start
        )
        return found.indices

    def _rank(
        self, short: Tensor, found: Sketch, histories: int, coarse: Sequence[Tensor]
    ) -> NoisyRank:
        """The largest rank that stands out at any resolution of rows and of futures."""
        o = self._asker.spec.num_tokens
        views = []
        several = [short, short[:histories], short[histories:], *coarse]
        for rows in (rows for rows in several if len(rows)):
            for look in range(1, self.look + 1):
                counts = rows.reshape(len(rows), (o + 1) ** look, -1).sum(2)
                values, spread = short_columns(counts, counts.sum(1).median())
                views.append(values / spread)
        if not bool(torch.isfinite(found.spread).all()):
            views.append(found.whitened[:histories])
        tests = [noisy_rank(view, self._level, self._max_rank) for view in views]
        return max(tests, key=lambda test: test.rank)

    def _laws(self, short: Tensor, coefficients: Tensor, chosen: Tensor) -> Tensor:
        """Next-token laws of the spanner: least squares over all rows, then made positive."""
        o = self._asker.spec.num_tokens
        counts = short.reshape(len(short), o + 1, -1).sum(2)[:, :o]
        draws = counts.sum(1)
        weighted = coefficients * draws[:, None]
        normal = (
            coefficients.T @ weighted
            + 1e-3 * draws.mean() * torch.eye(coefficients.shape[1]).double()
        )
        own = counts[chosen] / draws[chosen][:, None]
        fitted = torch.linalg.solve(normal, coefficients.T @ counts + 1e-3 * draws.mean() * own)
        mean = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * o)
        laws = torch.maximum(fitted, 0.05 * own) + (1.0 / (1.0 + draws[chosen]))[:, None] * mean
        return laws / laws.sum(1, keepdim=True)


def operators(
    here: CutBasis, after: CutBasis | None, share: float
) -> Float[Tensor, "token rank next"]:
    """A_o[i, :] = P(o | h_i) c(h_i o); unmeasured children get the mean coefficients.

    share: how much of the convex coefficients is mixed into the signed ones; at one no
        entry is negative
    """
    rank, tokens = here.laws.shape
    if after is None:
        return here.laws.T[:, :, None].contiguous()
    table = torch.stack(list(after.convex.values()))
    found = table.mean(0).expand(tokens, rank, -1).clone()
    for i, history in enumerate(here.histories):
        for o in range(tokens):
            if (*history, o) in after.coefficients:
                signed, convex = after.coefficients[*history, o], after.convex[*history, o]
                found[o, i] = (1 - share) * signed + share * convex
    return found * here.laws.T[:, :, None]
