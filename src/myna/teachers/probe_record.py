"""What a probe found of an endpoint, and the safest access that follows from it.

    laws      whole next-token laws, each from one answer
    scores    whole laws from prompt log-probabilities, one prompt a token
    top       the k most likely tokens
    samples   completions alone
    nothing   not even these can be trusted

A level is offered only where every question that it rests on came out well; a fault in
one of them withholds it, with the evidence.
"""

import dataclasses
import enum
from typing import Any

from myna.errors import FormatError

_MOST_SCORED = 1024  # tokens; beyond, a law by scores costs more than it tells


class Verdict(enum.Enum):
    """How a question came out."""

    OK = "ok"
    FAULT = "fault"
    NOT_OFFERED = "not offered"
    UNKNOWN = "could not tell"


class Access(enum.Enum):
    """What a teacher over this endpoint offers."""

    LAWS = "laws"
    SCORES = "scores"
    TOP = "top"
    SAMPLES = "samples"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question and its outcome.

    question: its short name; asks: the question in words
    verdict: how it came out
    answer: what was found, in a word or two ("before", "5", "off by one")
    evidence: what was seen, in a sentence
    """

    question: str
    asks: str
    verdict: Verdict
    answer: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """All findings about one endpoint, and how it is therefore asked.

    fingerprint: of the language that was probed, see `endpoint.spec_of`
    access: the highest level that the findings confirm; withheld: why no higher
    k: how many log-probabilities come
    ids, batch, many, named: as in `Style`; addressed: whether seeds are honoured
    requests, tokens: what the probe cost (tokens as the server bills, else as counted here)
    """

    model: str
    base_url: str
    fingerprint: str
    access: Access
    withheld: str
    k: int
    ids: bool
    batch: int
    many: bool
    named: bool
    addressed: bool
    requests: int
    tokens: int
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are faults."""
        return tuple(f for f in self.findings if f.verdict is Verdict.FAULT)

    def finding(self, question: str) -> Finding:
        """The outcome of one question."""
        return next(f for f in self.findings if f.question == question)


# What each level rests on, and must not be at fault; those after the bar must have come out well.
_ANY = ("model", "max_tokens", "stop", "random")
_TRUTH = (*_ANY, "alignment", "sum", "frequencies", "steady")
_RESTS: dict[Access, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Access.LAWS: ((*_TRUTH, "collisions", "logprobs", "k"), ("frequencies", "logprobs")),
    Access.SCORES: ((*_TRUTH, "collisions", "logprobs", "echo"), ("frequencies", "alignment")),
    Access.TOP: ((*_TRUTH, "collisions", "logprobs"), ("frequencies", "logprobs")),
    Access.SAMPLES: (_ANY, ("random",)),
}


def safe_access(findings: tuple[Finding, ...], tokens: int, k: int) -> tuple[Access, str]:
    """The highest level that the findings confirm, and why none higher.

    tokens: O; k: how many log-probabilities come
    """
    by_name = {finding.question: finding for finding in findings}
    reasons: list[str] = []
    for access, (unharmed, confirmed) in _RESTS.items():
        against = [by_name[q] for q in unharmed if by_name[q].verdict is Verdict.FAULT]
        against += [
            by_name[q]
            for q in confirmed
            if by_name[q].verdict in (Verdict.UNKNOWN, Verdict.NOT_OFFERED)
        ]
        told = [f"{f.question}: {f.evidence}" for f in against]
        if access is Access.LAWS and k < tokens and not against:
            told = [f"k: {k} of {tokens} log-probabilities come"]
        if access is Access.SCORES and tokens > _MOST_SCORED and not against:
            told = [f"k: {tokens} tokens are too many to be scored one by one"]
        if access is Access.TOP and k < 1 and not told:
            told = ["k: no log-probabilities come"]
        if not told:
            return access, "; ".join(reasons)
        reasons += [reason for reason in told if reason not in reasons]
    return Access.NOTHING, "; ".join(reasons)


def profile_of(record: Any) -> Profile:
    """A profile from the JSON of `myna probe --json`.

    Raises:
        FormatError: where it is no such record.
    """
    try:
        fields = {f.name: record[f.name] for f in dataclasses.fields(Profile)}
        findings = tuple(
            Finding(**{**entry, "verdict": Verdict(entry["verdict"])})
            for entry in fields["findings"]
        )
        found = Profile(**{**fields, "access": Access(fields["access"]), "findings": findings})
        kinds = {str: str, int: int, bool: bool}
        plain = all(
            type(getattr(found, f.name)) is f.type
            for f in dataclasses.fields(Profile)
            if f.type in kinds
        )
    except (KeyError, TypeError, ValueError):
        plain, found = False, None
    if found is None or not plain or found.k < 0 or found.batch < 1:
        raise FormatError("probe=FILE must be what `myna probe --json` printed; probe again")
    return found
