"""The spectral learner with words for histories and futures, for languages that stop.

With g(w) the expected number of places of a string where w stands, f(w) the chance that a string
begins with w, and words p (histories) and s (futures, which may end with the stop),

    H[p, s] = g(p s),    H_x[p, s] = g(p x s),    h[p] = g(p),    e[p] = g(p stop),
    U S V^T = the m largest singular triples of H,    A_x = S^-1 U^T H_x V,
    a_0 = V^T f(s),      a = S^-1 U^T h,              a_stop = S^-1 U^T e,
    f(x_1 ... x_T) = a_0^T A_{x_1} ... A_{x_T} a,     and with a_stop for a: the whole string.

Source: Balle, Carreras, Luque and Quattoni, "Spectral learning of weighted automata" (Machine
Learning 96, 2014), recalled: f and g have the same operators, so that every place of a string
counts, and only the start is read from first words. It needs H to have the rank of the language.
`learn.spectral` is close to the case of single tokens, for languages without a stop.

Where we differ. (1) H is weighed by g(p)^-1/2 and g(s)^-1/2, about the inverse deviations of its
entries; the formulas hold for any weights. (2) The words are the most frequent ones up to a length.
(3) The result is a low-rank model, whose basis is a spanner of the histories; entries may be
negative, and it clips and normalises as `lowrank.model` says.
"""

import dataclasses
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.evidence import Evidence
from myna.lowrank.model import LowRankModel
from myna.lowrank.spanner import barycentric_spanner
from myna.lowrank.step import divided
from myna.lowrank.student import check_strings
from myna.spec import Spec

_MAX_CODE = 2**62
_NUMERICAL = 1e-12  # a singular value this much below the largest is rounding


@dataclasses.dataclass(frozen=True)
class HankelSettings:
    """Which words stand for histories and futures.

    longest: tokens of a word, at most
    words: histories, and as many futures; the most frequent ones and the empty word. Counting
        takes 8 bytes x tokens of the alphabet x words^2
    max_rank: the largest m that can be asked for
    """

    longest: int = 4
    words: int = 500
    max_rank: int = 100

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be learned."""
        for name in ("longest", "words", "max_rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


class HankelCounts(NamedTuple):
    """What the strings say of some words, per string.

    joint: (history, future), H
    moved: (token, history, future), H_x; zero for the stop
    stops: (history,), e
    first: (future,), f
    histories, futures: the words themselves, as tuples of tokens
    """

    joint: Float[Tensor, "history future"]
    moved: Float[Tensor, "token history future"]
    stops: Float[Tensor, " history"]
    first: Float[Tensor, " future"]
    histories: tuple[tuple[int, ...], ...]
    futures: tuple[tuple[int, ...], ...]


class HankelFactors(NamedTuple):
    """The largest singular triples; those of a smaller rank are their heads.

    singular_values: (rank,), S, of the weighed H; largest first
    basis: (history, rank), U
    moved: (token, rank, rank), U^T H_x V
    seen: (rank,), U^T h
    stops: (rank,), U^T e
    first: (rank,), V^T f
    """

    singular_values: Float[Tensor, " rank"]
    basis: Float[Tensor, "history rank"]
    moved: Float[Tensor, "token rank rank"]
    seen: Float[Tensor, " rank"]
    stops: Float[Tensor, " rank"]
    first: Float[Tensor, " rank"]

    def model(self, language: Spec, rank: int) -> LowRankModel:
        """The student of one rank.

        Raises:
            InputError: where the words do not show that rank.
        """
        most = len(self.singular_values)
        if not 1 <= rank <= most:
            raise InputError(
                f"these words show ranks 1 to {most}, got {rank}; "
                "more or longer words may show more"
            )
        values = self.singular_values[:rank]
        operators = self.moved[:, :rank, :rank] / values[:, None]  # A_x
        total = self.seen[:rank] / values  # a
        rows = self.basis[:, :rank] * values  # states of the histories, by sqrt(g(p))
        chosen = barycentric_spanner(rows, tolerance=0.0, max_rank=rank).indices
        gauge = rows[chosen] / (rows[chosen] @ total)[:, None]
        moved = gauge @ operators @ torch.linalg.inv(gauge)  # token, basis, basis
        laws = (gauge @ operators @ total).T
        assert language.stop is not None
        laws[:, language.stop] = gauge @ (self.stops[:rank] / values)
        first = torch.linalg.solve(gauge.T, self.first[:rank])
        return LowRankModel.of(language, first, (divided(laws, moved.transpose(0, 1)),))


def learn_hankel(language: Spec, evidence: Evidence, settings: HankelSettings) -> HankelFactors:
    """Moments of whole strings, and students of every rank up to `max_rank`.

    Raises:
        InputError: a language without a stop, prompts, or strings that did not stop.
    """
    return factors(count_words(language, evidence, settings), settings.max_rank)


def factors(counts: HankelCounts, max_rank: int) -> HankelFactors:
    """The singular triples of the weighed H, and everything else in their coordinates."""
    h = counts.joint[:, counts.futures.index(())]
    seen = counts.joint[counts.histories.index(())]  # g of the futures
    left, right = h.rsqrt(), seen.rsqrt()
    u, s, vh = torch.linalg.svd(left[:, None] * counts.joint * right, full_matrices=False)
    rank = min(max_rank, int((s > _NUMERICAL * s[0]).sum()))
    basis, reading = u[:, :rank], right[:, None] * vh[:rank].T
    told = left[:, None] * basis
    return HankelFactors(
        singular_values=s[:rank],
        basis=basis,
        moved=told.T @ counts.moved @ reading,
        seen=told.T @ h,
        stops=told.T @ counts.stops,
        first=counts.first @ reading,
    )


def count_words(language: Spec, evidence: Evidence, settings: HankelSettings) -> HankelCounts:
    """H, H_x, e and f of the most frequent words.

    Raises:
        InputError: as `learn_hankel`.
    """
    stop = _check(language, evidence, settings)
    at, o = _Places.of(evidence, settings.longest, language.num_tokens), language.num_tokens
    histories = _Words.of(at.before, at.weight, settings.words)
    futures = _Words.of(at.ahead, at.weight, settings.words)
    shape = (histories.size, futures.size)
    joint, moved = (at.weight.new_zeros(n * shape[0] * shape[1]) for n in (1, o))
    stops, first = (at.weight.new_zeros(size) for size in shape)
    ends = at.here == stop
    for n, before in enumerate(at.before):
        p = histories.number(n, before)
        _add(stops, p, at.weight, (p >= 0) & ends)
        for k, (ahead, after) in enumerate(zip(at.ahead, at.after, strict=True)):
            s, later = futures.number(k, ahead), futures.number(k, after)
            _add(joint, p * shape[1] + s, at.weight, (p >= 0) & (s >= 0))
            cells = (at.here * shape[0] + p) * shape[1] + later
            _add(moved, cells, at.weight, (p >= 0) & (later >= 0) & ~ends)
    for k, ahead in enumerate(at.ahead):
        s = futures.number(k, ahead)
        _add(first, s, at.weight, (s >= 0) & at.begins)
    words = (histories.words(o), futures.words(o))
    return HankelCounts(joint.view(shape), moved.view(o, *shape), stops, first, *words)


class _Places(NamedTuple):
    """The place before each token of each string.

    weight: (place,), the string's share of all strings
    here: (place,), the token
    begins: (place,), whether the string begins here
    before: words that end here, as codes: one tensor a length from 0; -1 where there is none
    ahead: the same for words that begin here
    after: the same for words that begin one token later
    """

    weight: Float[Tensor, " place"]
    here: Int[Tensor, " place"]
    begins: Bool[Tensor, " place"]
    before: list[Int[Tensor, " place"]]
    ahead: list[Int[Tensor, " place"]]
    after: list[Int[Tensor, " place"]]

    @staticmethod
    def of(evidence: Evidence, longest: int, num_tokens: int) -> "_Places":
        tokens, counts = evidence.tokens, evidence.counts.double()
        shares = counts / counts.sum()
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        rows, places = (columns < evidence.lengths[:, None]).nonzero().unbind(1)
        padded = torch.nn.functional.pad(tokens, (longest, longest + 1), value=-1)

        def codes(start: int, length: int) -> Int[Tensor, " place"]:
            """Words from `start` tokens after each place, as numbers in base O."""
            code, inside = torch.zeros_like(places), torch.ones_like(places, dtype=torch.bool)
            for i in range(start, start + length):
                token = padded[rows, places + longest + i]
                code, inside = code * num_tokens + token, inside & (token >= 0)
            return torch.where(inside, code, -1)

        lengths = range(longest + 1)
        before, ahead, after = (
            [codes(start, n) for n, start in zip(lengths, starts, strict=True)]
            for starts in ([-n for n in lengths], [0] * len(lengths), [1] * len(lengths))
        )
        here, begins = tokens[rows, places], places == 0
        return _Places(shares[rows], here, begins, before, ahead, after)


class _Words(NamedTuple):
    """Some words: for each length their codes, ascending; numbered in that order, from the shortest.

    codes: one tensor a length, from 0
    """

    codes: tuple[Int[Tensor, " _"], ...]

    @staticmethod
    def of(
        found: list[Int[Tensor, " place"]], weight: Float[Tensor, " place"], most: int
    ) -> "_Words":
        """The most frequent of the words found, and the empty one."""
        seen, often = [], []
        for codes in found:
            inside = codes >= 0
            distinct, which = codes[inside].unique(return_inverse=True)
            seen.append(distinct)
            often.append(torch.bincount(which, weight[inside], minlength=len(distinct)))
        ranking = torch.cat(often).argsort(descending=True, stable=True)  # empty word first
        kept = torch.zeros_like(ranking, dtype=torch.bool)
        kept[ranking[: most + 1]] = True
        parts = kept.split([len(codes) for codes in seen])
        return _Words(tuple(codes[part] for codes, part in zip(seen, parts, strict=True)))

    @property
    def size(self) -> int:
        """How many."""
        return sum(len(codes) for codes in self.codes)

    def number(self, length: int, codes: Int[Tensor, " place"]) -> Int[Tensor, " place"]:
        """Each word's number; -1 where it is none of these."""
        known = self.codes[length]
        if not len(known):
            return torch.full_like(codes, -1)
        where = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
        before = sum(len(shorter) for shorter in self.codes[:length])
        return torch.where(known[where] == codes, where + before, -1)

    def words(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """All of them, as tokens."""
        return tuple(
            tuple(code // num_tokens**i % num_tokens for i in reversed(range(length)))
            for length, codes in enumerate(self.codes)
            for code in codes.tolist()
        )


def _add(
    table: Float[Tensor, " cell"],
    cells: Int[Tensor, " place"],
    weight: Float[Tensor, " place"],
    which: Bool[Tensor, " place"],
) -> None:
    """Add the weights of some places to their cells."""
    table.index_add_(0, cells[which], weight[which])


def _check(language: Spec, evidence: Evidence, settings: HankelSettings) -> int:
    """The stop token."""
    check_strings(language, evidence.strings)
    if language.stop is None:
        raise InputError(
            "words of whole strings need a language that stops, and this one has no stop token; "
            "`myna.learn.spectral` learns from tokens without one"
        )
    if bool((evidence.given > 0).any()):
        raise InputError("plain strings are needed, and some rows have prompts")
    if not len(evidence.lengths) or int(evidence.lengths.min()) < 1:
        raise InputError("strings of at least one token each are needed")
    if not bool((evidence.counts.isfinite() & (evidence.counts > 0)).all()):
        raise InputError("counts must be positive and finite; leave out strings that never came")
    ends = evidence.tokens.gather(1, evidence.lengths[:, None] - 1)
    if bool((ends != language.stop).any()):
        raise InputError(
            f"{int((ends != language.stop).sum())} of {len(ends)} strings did not stop; "
            "draw them longer, or leave them out knowing that long strings are then missing"
        )
    if language.num_tokens**settings.longest > _MAX_CODE:
        raise InputError(
            f"words of {settings.longest} of {language.num_tokens} tokens are too many to number; "
            "take shorter ones"
        )
    return language.stop
