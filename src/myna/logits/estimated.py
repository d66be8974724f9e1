"""Logits from completions: next tokens counted, with a floor, a stated error and a cost.

Where centred logits satisfy |z(o | h)| <= L, no next token is rarer than

    floor = e^{-2L} / O,        as  P(o | h) = e^{z_o} / sum_o' e^{z_o'} >= e^{-L} / (O e^L).

From the counts N_o of n completions of h by one token

    z^(o | h) = log max(N_o / n, floor)  less its mean over o,

and by Chernoff's bound |N_o / n - P| <= s P for all o at once, but for a chance of
2 O exp(-n floor s^2 / 3). A floor below the truth takes nothing away, and centring at most
doubles an error of -log(1 - s), so with s = 1 - e^{-error/2}

    n = 3 O e^{2L} log(2 O / failure) / s^2        gives  |z^ - z| <= error.

This is remark 5.8 of Golowich, Liu and Shetty (arXiv 2512.09892),
O(e^{2L} O log(O / failure) / error^2) conditional samples a history, with its constants.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.spec import Spec, fingerprint
from myna.teachers.oracle import Completions, Samples, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes

_STREAM = Stream("laws by counting")
_DRAWS_AT_ONCE = 1 << 22  # completions asked together: bounds the memory of one request


def floor_of(largest_logit: float, num_tokens: int) -> float:
    """The least probability that a token can have where no centred logit exceeds a bound (nats)."""
    if not largest_logit >= 0:
        raise InputError(f"the largest logit must be at least 0 nats, got {largest_logit}")
    return math.exp(-2 * largest_logit) / num_tokens


def completions_needed(largest_logit: float, num_tokens: int, error: float, failure: float) -> int:
    """How many completions of one history give its centred logits to an error.

    largest_logit, error: nats
    failure: the chance that some logit of this history is off by more; for many histories
        divide by their number
    """
    if not (error > 0 and 0 < failure < 1):
        raise InputError(
            f"the error must be positive and the failure between 0 and 1, got {error}, {failure}"
        )
    share = 1 - math.exp(-error / 2)
    least = floor_of(largest_logit, num_tokens)
    return math.ceil(3 * math.log(2 * num_tokens / failure) / (least * share**2))


def error_of(completions: int, largest_logit: float, num_tokens: int, failure: float) -> float:
    """The error (nats) that so many completions of a history guarantee; infinite for too few."""
    least = floor_of(largest_logit, num_tokens)
    share = math.sqrt(3 * math.log(2 * num_tokens / failure) / (completions * least))
    return -2 * math.log1p(-share) if share < 1 else math.inf


@dataclasses.dataclass(frozen=True)
class EstimatedLaws:
    """A teacher of samples, seen as one of laws that are counted.

    Each law costs `completions` completions of one token; where what is asked is a ledger's
    view they are counted, limited and kept there. The same prefix has the same law again.
    A learner's tolerance and mismatch must allow for the error.

    teacher: what is asked
    completions: draws for each law
    largest_logit: the bound on centred logits, nats, that the floor stands on
    stream: which draws
    """

    teacher: Samples
    completions: int
    largest_logit: float
    stream: Stream = _STREAM

    def __post_init__(self) -> None:
        """Refuse counts that say nothing."""
        if self.completions < 1:
            raise InputError(f"a law needs at least one completion, got {self.completions}")
        floor_of(self.largest_logit, self.teacher.spec.num_tokens)

    @property
    def spec(self) -> Spec:
        """The teacher's language, with a fingerprint of the estimate."""
        own = self.teacher.spec
        said = (own.fingerprint, self.completions, self.largest_logit, self.stream.key)
        return dataclasses.replace(own, fingerprint=fingerprint("estimated laws", *said))

    @property
    def k(self) -> int:
        """Everything is shown: k = O."""
        return self.teacher.spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Log of the floored shares of each next token, normalised (nats)."""
        o, n = self.teacher.spec.num_tokens, self.completions
        size = max(1, _DRAWS_AT_ONCE // n)
        found = [torch.zeros((0, o), dtype=torch.float64)]
        for start in range(0, len(prefixes.lengths), size):
            rows = torch.arange(start, min(start + size, len(prefixes.lengths)))
            part = prefixes.take(rows)
            answer = self.teacher.complete(part, n, stream=self.stream, max_tokens=1)
            counts = torch.zeros((len(rows), o), dtype=torch.float64)
            counts.scatter_add_(
                1, answer.tokens[:, :, 0], torch.ones_like(counts[:, :1]).expand(-1, n)
            )
            found.append(counts / n)
        floored = torch.cat(found).clamp(min=floor_of(self.largest_logit, o))
        return floored.log().log_softmax(1)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The whole estimated law, most likely tokens first."""
        return top_of(self.laws(prefixes), self.k)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """The teacher's own completions."""
        return self.teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )
