"""Fresh prefixes against a copy: its error estimated, and where it is contradicted.

At a prefix x of fresh plain strings n next tokens are drawn (n = 16 for each time that x was
drawn). With counts k_o and the copy's law q, E[k_o (k_o - 1)] = n (n - 1) p_o^2, so

    chi^2(x) = sum_o k_o (k_o - 1) / (n (n - 1) q_o) - 1

has mean sum_o (p_o - q_o)^2 / q_o exactly, however few the draws. Half of its mean over
prefixes, as often as they were drawn, added up over cuts, is KL(P || Q) of a string to second
order. A prefix contradicts the copy where its Pearson statistic stands far outside its null
distribution, or stands out at a cut where all prefixes together do: then the copy lacks a
dimension there, and the prefix's suffixes are futures that will show it.
"""

import collections
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.learn.asker import Asker
from myna.learn.misfit import LEAST, pearson_excess
from myna.learn.sampled_report import CheckReport
from myna.learn.table import History
from myna.lowrank.student import Strings, Student

DRAWS = 16  # next tokens a prefix
LEAST_PREFIXES = 2  # at each cut
_FEWEST = 4  # cuts that stand for all of them
_FAR = 7.0  # standard deviations of Pearson's statistic that contradict
_FAR_TOGETHER = 5.0  # the same of all prefixes at a cut together; then each beyond 2 does
_FAR_THERE = 2.0
_KEPT = 4  # contradicted prefixes reported, the clearest first


class Check(NamedTuple):
    """A report, and the prefixes whose draws contradict the copy, the clearest first."""

    report: CheckReport
    contradicted: tuple[History, ...]


def check_copy(
    asker: Asker, student: Student, strings: Strings, purse: int, first: int = 0
) -> Check:
    """Draw next tokens after prefixes of fresh strings, up to a purse, at every cut.

    Where the asker cannot pay for every cut, each s-th stands for s of them.

    first: the string to begin with, so that a later check reads others

    Raises:
        BudgetExhausted: where not even a few cuts can be paid.
    """
    longest = int(strings.lengths.max())
    each = max(LEAST_PREFIXES, purse // price_of_one(asker, longest))
    cuts = _affordable(asker, longest)
    share = longest / len(cuts)
    sums, variance, prefixes = 0.0, 0.0, 0
    found: list[tuple[float, History]] = []
    for t in cuts:
        alive = strings.tokens[strings.lengths > t]
        rows = alive.roll(-first, 0)[:each, :t]
        reach = len(rows) / max(1, min(each, len(strings.lengths)))
        times = collections.Counter(tuple(row) for row in rows.tolist())
        if not times:
            break
        counts, histories = _drawn(asker, times)
        law = _laws(student, histories).clamp(min=LEAST)
        law = law / law.sum(1, keepdim=True)
        draws, weight = counts.sum(1), counts.sum(1) / counts.sum()
        chi = (counts * (counts - 1) / law).sum(1) / (draws * (draws - 1)) - 1
        mean = float(weight @ chi)
        sums += share * reach * mean / 2
        # of prefixes, and never below that of draws alone where the copy is right
        spread = (chi - mean).square() * len(chi) / max(1, len(chi) - 1)
        null = 2 * (law.shape[1] - 1) / (draws * (draws - 1))
        variance += (share * reach / 2) ** 2 * float(weight.square() @ torch.maximum(spread, null))
        prefixes += len(histories)
        excess, deviation = pearson_excess(counts, law)
        far = excess / deviation.sqrt()
        together = float(far.sum()) / math.sqrt(len(far)) > _FAR_TOGETHER
        limit = _FAR_THERE if together else _FAR
        found += [
            (float(far[i]), histories[i]) for i in (far > limit).nonzero()[:, 0].tolist() if t
        ]
    found.sort(key=lambda pair: -pair[0])
    report = CheckReport(prefixes, DRAWS, sums, math.sqrt(variance), len(found))
    return Check(report, tuple(history for _, history in found[:_KEPT]))


def price_of_one(asker: Asker, longest: int) -> int:
    """Tokens of the budget's kind that one prefix at every cut costs."""
    return DRAWS * sum(asker.price(t, 1) for t in range(longest))


def _affordable(asker: Asker, longest: int) -> range:
    """Evenly spread cuts, as many as the least number of prefixes can be paid at, or _FEWEST."""
    cuts = range(longest)
    for stride in range(1, longest + 1):
        fewer = range(0, longest, stride)
        if len(fewer) < min(longest, _FEWEST):
            break
        cuts = fewer
        if LEAST_PREFIXES * DRAWS * sum(asker.price(t, 1) for t in cuts) <= asker.left:
            break
    return cuts


def _drawn(
    asker: Asker, times: dict[History, int]
) -> tuple[Float[Tensor, "history token"], list[History]]:
    """Next-token counts, `DRAWS` draws for each time that a prefix came up; in that order."""
    size, counts, histories = asker.spec.num_tokens, [], []
    for number in sorted(set(times.values())):
        some = [history for history, often in times.items() if often == number]
        tokens = asker.ask(some, number * DRAWS, 1)[:, :, 0]
        counts.append(torch.stack([(tokens == o).sum(1) for o in range(size)], 1).double())
        histories += some
    return torch.cat(counts), histories


def _laws(student: Student, histories: list[History]) -> Float[Tensor, "history token"]:
    """The copy's next-token laws after histories of one length."""
    state = student.initial(len(histories))
    tokens: Int[Tensor, "history width"] = torch.tensor(histories, dtype=torch.int64)
    tokens = tokens.reshape(len(histories), -1)
    for t in range(tokens.shape[1]):
        state, _ = student.step(state, tokens[:, t].to(state.vector.device))
    return student.law(state).cpu().exp().nan_to_num(nan=0.0)
