"""Questions about numbers: are the laws that a server reports the laws that it draws from?"""

import dataclasses
import math
from collections.abc import Iterable

import torch

from myna.errors import TeacherError
from myna.teachers.asker import Law, Question, Reply, Style
from myna.teachers.exact_tests import LEVEL, worst_disagreement
from myna.teachers.probe_questions import (
    ABSENT,
    FAULT,
    MASS,
    OK,
    REPEATS,
    TOLERANCE,
    UNKNOWN,
    Outcome,
    ProbeState,
    apart,
    distance,
    echoed,
)
from myna.teachers.transport import Refused

_DRAWS = 256  # for frequencies, at each of two prefixes


class LawQuestions(ProbeState):
    """From logprobs to logit_bias."""

    def _log_probs(self) -> Outcome:
        reply = self._one((), shown=1)
        if not reply.log_probs and not reply.laws:
            return FAULT, "ignored", "logprobs=1 was asked, and none came, without a word"
        law = reply.laws[0] if reply.laws else None
        if law is None or not law.names:
            return FAULT, "ignored", "logprobs=1 was asked, and no likely tokens came"
        return OK, "given", "logprobs=1 brings the likeliest token"

    def _largest_k(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "0", "no log-probabilities come"
        wanted, size = self._vocabulary.shown, len(self._vocabulary.names)
        low, high = 1, wanted
        while low < high:  # the largest k that is not refused; whole laws are tried first
            middle = wanted if (low, high) == (1, wanted) else (low + high + 1) // 2
            try:
                self._law((), middle)
                low = middle
            except Refused:
                high = middle - 1
        self._shown = low
        law = self._law(())
        self._k = min(len(law.log_probs), size)
        if law.names < low and law.unreadable <= MASS:
            return FAULT, str(self._k), f"{low} were asked, and {law.names} came, without a word"
        words = "asked and given" if low == wanted else "given, more are refused"
        return OK, str(self._k), f"{law.names} log-probabilities {words}"

    def _steady(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(()) for _ in range(REPEATS)]
        differ = max(distance(laws[0], law) for law in laws)
        if differ > TOLERANCE:
            return FAULT, "", f"one question, asked again, has laws {differ:.3g} nats apart"
        return OK, "", f"{len(laws)} answers to one question differ by at most {differ:.2g} nats"

    def _token_ids(self) -> Outcome:
        """Laws asked anew after prefixes of x against what the server reported as it wrote."""
        if not self._style.ids:
            return ABSENT, "refused", self._ids_refusal
        if not self._x or not self._was("logprobs", OK) or self._was("steady", FAULT):
            return UNKNOWN, "taken", "token ids are taken, and nothing tells how they are read"
        differ, spread = self._rereading(self._style)
        if differ < TOLERANCE:
            if spread < 2 * TOLERANCE:
                return UNKNOWN, "taken", "laws here differ too little to tell how ids are read"
            return OK, "read", f"laws asked anew differ by at most {differ:.2g} nats"
        seen = (
            f"after prompts of token ids the log-probabilities of {list(self._x)} differ by "
            f"{differ:.3g} nats from those reported while it was written"
        )
        if self._vocabulary.texts is not None:
            by_text = dataclasses.replace(self._style, ids=False)
            text, _ = self._rereading(by_text)
            seen += f", after text by {text:.2g}"
            if text < TOLERANCE:
                self._style = by_text
        return FAULT, "misread", seen

    def _rereading(self, style: Style) -> tuple[float, float]:
        """Largest difference from what was written, and how far apart the laws are."""
        differences, first = [0.0], []
        for i, (token, value) in enumerate(zip(self._x, self._written, strict=True)):
            law = self._law(self._x[:i], style=style)
            first.append(law.log_probs.get(self._x[0], -math.inf))
            if value is not None and token in law.log_probs:
                differences.append(apart(law.log_probs[token], value))
        return max(differences), max((apart(a, first[0]) for a in first), default=0.0)

    def _collisions(self) -> Outcome:
        """Names that collide in a dictionary leave one entry: the others' mass is lost as well."""
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(row) for row in self._rows()]
        unreadable = max(law.unreadable for law in laws)
        if unreadable <= MASS:
            return OK, "0", f"every name of mass above {MASS:g} is one token's"
        lost = max(1 - _mass(law.log_probs.values()) - law.outside for law in laws)
        return (
            FAULT,
            f"{lost:.3g}",
            f"names that are no one token's hold mass {unreadable:.3g}, and all but {1 - lost:.3g} "
            "is unreadable",
        )

    def _sum(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(row) for row in self._rows()]
        masses = [_mass(law.log_probs.values()) + law.unreadable + law.outside for law in laws]
        worst = max(masses, key=lambda mass: abs(mass - 1))
        if max(masses) > 1 + MASS:
            return FAULT, f"{max(masses):.6g}", f"a law sums to {max(masses):.6g}"
        if self._k < len(self._vocabulary.names):
            return UNKNOWN, "", f"{self._k} tokens hold mass {min(masses):.4g} to {max(masses):.4g}"
        if abs(worst - 1) > MASS:
            return FAULT, f"{worst:.6g}", f"a law sums to {worst:.6g}"
        return OK, "1", f"{len(laws)} whole laws sum to 1 within {abs(worst - 1):.1g}"

    def _echo(self) -> Outcome:
        if not self._x:
            return UNKNOWN, "", "no string could be read that might be echoed"
        reply = self._one(self._x, shown=1, echo=True)
        came = reply.named
        if echoed(self._x, reply) is None:
            if len(came) >= len(self._x) and None not in came[-len(self._x) :]:
                seen = f"{list(self._x)} was sent, and {list(came)} came back with one token more"
                return FAULT, "other tokens", seen
            return FAULT, "ignored", "echo was asked, and the prompt is not in the answer"
        values = echoed(self._x, reply)
        if values is None or all(value is None for value in values):
            return FAULT, "ignored", "echo was asked, and the prompt has no log-probabilities"
        return OK, "given", f"{len(values)} prompt log-probabilities came"

    def _alignment(self) -> Outcome:
        if not self._was("echo", OK):
            return ABSENT, "", "no prompt log-probabilities come"
        values = echoed(self._x, self._one(self._x, shown=1, echo=True)) or ()
        aligned, late, told_apart = [], [], []
        for i, (token, value, written) in enumerate(
            zip(self._x, values, self._written, strict=True)
        ):
            if value is None or written is None:
                continue
            aligned.append(apart(value, written))
            if i + 1 < self._room:
                law = self._law(self._x[: i + 1])
                if token in law.log_probs:
                    late.append(apart(value, law.log_probs[token]))
                    told_apart.append(apart(written, law.log_probs[token]))
        if not aligned:
            return UNKNOWN, "", "no token has both a prompt's and a written log-probability"
        told = f"they differ from those reported while it was written by {max(aligned):.3g} nats"
        if max(aligned) < TOLERANCE:
            if told_apart and max(told_apart) < 2 * TOLERANCE:
                return UNKNOWN, "", "laws here differ too little to tell an off-by-one"
            return OK, "aligned", told
        if late and max(late) < TOLERANCE:
            return (
                FAULT,
                "off by one",
                f"entry i of the prompt is log p(token i given the prefix that has token i): {told}, "
                f"and from that by {max(late):.2g}",
            )
        return FAULT, "neither", f"{told}, and an off-by-one does not explain it"

    def _frequencies(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        rows = self._rows()[:2]
        tests = len(rows) * (len(self._vocabulary.names) + 1)
        tested = [self._counted(row, tests) for row in rows]
        if None in tested:
            return UNKNOWN, "", "drawn tokens cannot be read"
        _, fails, seen = min(found for found in tested if found is not None)
        return (FAULT, "disagree", seen) if fails else (OK, "agree", seen)

    def _counted(self, row: tuple[int, ...], tests: int) -> tuple[float, bool, str] | None:
        """First tokens after a row against its law: the least p-value, and what was seen."""
        law, many = self._law(row), self._style.many
        draws, chunk = (_DRAWS, 64) if many else (_DRAWS // 2, 1)
        questions = [
            Question((row,), count=chunk, shown=0, seed=7919 * len(row) + i)
            for i in range(0, draws, chunk)
        ]
        found = self._asker.ask_all(questions, self._style)
        first = [self._first(reply) for ((*replies,),) in found for reply in replies]
        if None in first:
            return None
        listed = sorted(law.log_probs)
        counts = [first.count(token) for token in listed]
        masses = [math.exp(min(0.0, law.log_probs[token])) for token in listed]
        names = [repr(self._vocabulary.names[token]) for token in listed]
        rest = min(1.0, max(0.0, 1 - sum(masses)) + MASS)
        if draws - sum(counts) > draws * rest:  # only an excess: the rest was rounded upwards
            counts, masses = [*counts, draws - sum(counts)], [*masses, rest]
            names.append("tokens not listed")
        worst = worst_disagreement(
            torch.tensor(counts), torch.tensor(masses).double(), draws, tests
        )
        seen = (
            f"of {draws} draws after {list(row)} {worst.came} are {names[worst.place]} where "
            f"{worst.expected:.4g} are expected (p = {worst.p_value:.2g}, {worst.tests} tests, "
            f"level {LEVEL:g} together)"
        )
        return worst.p_value, worst.fails, seen

    def _first(self, reply: Reply) -> int | None:
        """The first token of a draw; the stop token where it stopped at once."""
        if reply.tokens:
            return reply.tokens[0]
        if reply.tokens == () and reply.finish == "stop":
            return self._vocabulary.stop
        return None

    def _sharpest(self) -> tuple[tuple[int, ...], Law, list[int]]:
        """The prefix whose two likeliest tokens are furthest apart in reach, and those two."""
        best = None
        for row in self._rows():
            law = self._law(row)
            ordered = sorted(law.log_probs, key=lambda t: -law.log_probs[t])[:2]
            if len(ordered) == 2 and math.isfinite(law.log_probs[ordered[1]]):
                gap = law.log_probs[ordered[0]] - law.log_probs[ordered[1]]
                if best is None or gap > best[0]:
                    best = (gap, row, law, ordered)
        if best is None:
            raise TeacherError("no law shows two possible tokens, so nothing can be told here")
        return best[1:]

    def _compared(self, before: float, after: float, seen: float) -> Outcome:
        """Which of two hypotheses about one number holds."""
        numbers = f"{seen:.4g} nats came, {before:.4g} before and {after:.4g} after it"
        if apart(before, after) < 2 * TOLERANCE:
            return UNKNOWN, "", "both would report the same here"
        if apart(seen, before) < TOLERANCE:
            return OK, "before", numbers
        if apart(seen, after) < TOLERANCE:
            return FAULT, "after", numbers
        return FAULT, "neither", numbers

    def _temperature(self) -> Outcome:
        if self._k < 2:
            return UNKNOWN, "", "two log-probabilities are needed to tell"
        row, law, (a, b) = self._sharpest()
        gap = law.log_probs[a] - law.log_probs[b]
        moved = self._law(row, temperature=0.5)
        return self._compared(gap, 2 * gap, _gap(moved, a, b))

    def _top_p(self) -> Outcome:
        """Under the least top-p that cuts, the likeliest token has all the mass."""
        laws = [(row, self._law(row)) for row in self._rows()]
        tops = [(max(law.log_probs.values(), default=0.0), row) for row, law in laws]
        top, row = min(tops)
        moved = self._law(row, top_p=math.exp(top) / 2)
        return self._compared(top, 0.0, max(moved.log_probs.values(), default=-math.inf))

    def _bias(self) -> Outcome:
        if self._k < 2:
            return UNKNOWN, "", "two log-probabilities are needed to tell"
        row, law, (a, b) = self._sharpest()
        gap = law.log_probs[a] - law.log_probs[b]
        moved = self._law(row, bias=((a, 1.5),))
        return self._compared(gap, gap + 1.5, _gap(moved, a, b))


def _mass(log_probs: Iterable[float]) -> float:
    """Probabilities added up; a number that is no log-probability stays finite."""
    return sum(math.exp(min(value, 700.0)) for value in log_probs)


def _gap(law: Law, a: int, b: int) -> float:
    return law.log_probs.get(a, -math.inf) - law.log_probs.get(b, -math.inf)
