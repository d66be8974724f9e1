"""What all questions of the probe share: state, asking, and when two answers agree.

Numbers of two answers agree where they differ by less than TOLERANCE nats, which leaves
room for servers in half precision.
"""

from collections.abc import Callable
from typing import Any

from myna.errors import TeacherError
from myna.teachers.api_answers import Choice
from myna.teachers.asker import Asker, Law, Question, Reply, Style
from myna.teachers.probe_record import Finding, Verdict
from myna.teachers.transport import Refused

TOLERANCE = 0.05  # nats, between two answers about one number
MASS = 1e-4  # of a law, lost to single precision
LENGTH = 8  # m, at most
REPEATS = 6  # of a question that should have one answer
FLOOR = -12.0  # nats of a token that will not be drawn; half precision knows it badly

Outcome = tuple[Verdict, str, str]

_COMPLETIONS_ONLY = ("token_ids", "echo", "alignment", "batch")
_NEEDS = {  # no word on the first while one of the others is at fault
    "steady": ("logprobs",),
    "echo": ("logprobs", "max_tokens"),
    "alignment": ("steady",),
    "n": ("random",),
    "frequencies": ("random",),
    "batch": ("steady",),
    "temperature": ("steady", "collisions"),
    "top_p": ("steady", "collisions"),
    "logit_bias": ("steady", "collisions"),
    "stop": ("max_tokens",),
}
OK, FAULT, ABSENT, UNKNOWN = Verdict.OK, Verdict.FAULT, Verdict.NOT_OFFERED, Verdict.UNKNOWN


class ProbeState:
    """The state of a probe: what was found, and how the server is asked since then."""

    def __init__(self, asker: Asker, tell: Callable[[str], None]):
        self._asker, self._tell = asker, tell
        self._vocabulary = asker.vocabulary
        chat = asker.endpoint.chat
        self._style = Style(ids=not chat, batch=1, many=False)
        self._findings: dict[str, Finding] = {}
        self._x: tuple[int, ...] = ()
        self._written: tuple[float | None, ...] = ()
        self._k, self._shown = 0, 1
        self._addressed = False
        self._draws: list[Choice] = []
        self._refusal = self._ids_refusal = ""
        self._before = asker.transport.traffic.tries, asker.spent

    def _outcome(self, name: str, step: Callable[[], Outcome]) -> Outcome:
        if self._asker.endpoint.chat and name in _COMPLETIONS_ONLY:
            return ABSENT, "", "chat endpoints have no such question"
        for other in _NEEDS.get(name, ()):
            if self._was(other, FAULT):
                return UNKNOWN, "", f"not to be told while {other} is at fault"
        try:
            return step()
        except Refused as error:
            return ABSENT, "refused", str(error)
        except TeacherError as error:
            return UNKNOWN, "", str(error)

    def _one(self, row: tuple[int, ...], style: Style | None = None, **more: Any) -> Reply:
        return self._asker.ask(Question((row,), **more), style or self._style)[0][0]

    def _law(
        self,
        row: tuple[int, ...],
        shown: int | None = None,
        style: Style | None = None,
        **more: Any,
    ) -> Law:
        """The law after a row: as many entries as the server takes a question for."""
        reply = self._one(row, style, shown=self._shown if shown is None else shown, **more)
        law = reply.laws[0] if reply.laws else None
        if law is None:
            raise TeacherError(f"the law after {list(row)} is not in the answer")
        return law

    @property
    def _room(self) -> int:
        """How many tokens a whole string of the probe may have."""
        horizon = self._vocabulary.horizon
        return LENGTH if horizon is None else min(LENGTH, horizon)

    def _was(self, question: str, *verdicts: Verdict) -> bool:
        return self._findings[question].verdict in verdicts

    def _rows(self, most: int = 4) -> list[tuple[int, ...]]:
        """Prefixes of x after which a token may follow."""
        last = min(len(self._x), self._room - 1, most - 1)
        return [self._x[:i] for i in range(last + 1)]


def apart(a: float, b: float) -> float:
    """|a - b|, where minus infinity is like itself only."""
    return 0.0 if a == b else abs(a - b)


def distance(one: Law, other: Law) -> float:
    """The largest difference of log-probabilities, over tokens of some mass."""
    tokens = one.log_probs.keys() | other.log_probs.keys()
    missing = min(
        [*one.log_probs.values(), *other.log_probs.values()], default=0.0
    )  # what is not listed is no likelier than what is
    values = [[max(FLOOR, law.log_probs.get(t, missing)) for t in tokens] for law in (one, other)]
    return max((apart(a, b) for a, b in zip(*values, strict=True)), default=0.0)


def echoed(row: tuple[int, ...], reply: Reply) -> tuple[float | None, ...] | None:
    """The entries of a row's tokens in an echo, wherever it begins; None where it is not there."""
    tokens = reply.named
    for start in range(len(tokens) - len(row), -1, -1):
        if tokens[start : start + len(row)] == row and start + len(row) >= len(tokens) - 1:
            return reply.log_probs[start : start + len(row)]
    return None
