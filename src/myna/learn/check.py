"""Fresh prefixes against a copy: its error estimated, and where it is contradicted.

At prefixes x of fresh plain strings, n next tokens are drawn. With counts k_o and the
copy's law q, E[k_o (k_o - 1)] = n (n - 1) p_o^2, so

    chi^2(x) = sum_o k_o (k_o - 1) / (n (n - 1) q_o) - 1

has mean sum_o (p_o - q_o)^2 / q_o exactly, however few the draws. Half of its mean, added
up over cuts, is KL(P || Q) of a string to second order where prefixes are drawn from P; here
each distinct prefix counts once, so at early cuts rare prefixes weigh more than they should. A prefix contradicts the copy
where its Pearson statistic stands far outside its null distribution: then the copy lacks
a dimension there, and the prefix's suffixes are futures that will show it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.learn.asker import Asker
from myna.learn.sampled_report import CheckReport
from myna.learn.table import History
from myna.lowrank.student import Strings, Student

DRAWS = 16  # next tokens a prefix
_FAR = 7.0  # standard deviations of Pearson's statistic that contradict
_LEAST = 1e-4  # probabilities of the copy are taken as at least this
_KEPT = 4  # contradicted prefixes reported, the clearest first


class Check(NamedTuple):
    """A report, and the prefixes whose draws contradict the copy, the clearest first."""

    report: CheckReport
    contradicted: tuple[History, ...]


def check_copy(asker: Asker, student: Student, strings: Strings, purse: int) -> Check:
    """Draw next tokens after prefixes of fresh strings, up to a purse, at every cut."""
    longest = int(strings.lengths.max())
    each = max(2, purse // sum(DRAWS * asker.price(t, 1) for t in range(longest)))
    sums, variance, prefixes = 0.0, 0.0, 0
    found: list[tuple[float, History]] = []
    for t in range(longest):
        rows = strings.tokens[(strings.lengths > t)][:each, :t]
        reach = len(rows) / max(1, min(each, len(strings.lengths)))
        histories = list(dict.fromkeys(tuple(row) for row in rows.tolist()))
        if not histories:
            break
        tokens = asker.ask(histories, DRAWS, 1)[:, :, 0]
        law = _laws(student, histories).clamp(min=_LEAST)
        law = law / law.sum(1, keepdim=True)
        counts = torch.stack([(tokens == o).sum(1) for o in range(law.shape[1])], 1).double()
        chi = (counts * (counts - 1) / law).sum(1) / (DRAWS * (DRAWS - 1)) - 1
        sums += reach * float(chi.mean()) / 2
        variance += (reach / 2) ** 2 * float(chi.var(correction=0)) / len(chi)
        prefixes += len(histories)
        far = _pearson(counts, law)
        found += [(float(far[i]), histories[i]) for i in (far > _FAR).nonzero()[:, 0].tolist() if t]
    found.sort(key=lambda pair: -pair[0])
    report = CheckReport(prefixes, DRAWS, sums, math.sqrt(variance), len(found))
    return Check(report, tuple(history for _, history in found[:_KEPT]))


def _pearson(
    counts: Float[Tensor, "history token"], law: Float[Tensor, "history token"]
) -> Float[Tensor, " history"]:
    """Pearson's statistic less its mean, over its standard deviation (Haldane 1937)."""
    draws, size = DRAWS, law.shape[1]
    expected = draws * law
    statistic = ((counts - expected).square() / expected).sum(1)
    spread = 2 * (size - 1) + ((1 / law).sum(1) - size**2 - 2 * size + 2) / draws
    return (statistic - (size - 1)) / spread.clamp(min=1.0).sqrt()


def _laws(student: Student, histories: list[History]) -> Float[Tensor, "history token"]:
    """The copy's next-token laws after histories of one length."""
    state = student.initial(len(histories))
    tokens: Int[Tensor, "history width"] = torch.tensor(histories, dtype=torch.int64)
    tokens = tokens.reshape(len(histories), -1)
    for t in range(tokens.shape[1]):
        state, _ = student.step(state, tokens[:, t].to(state.vector.device))
    return student.law(state).cpu().exp().nan_to_num(nan=0.0)
