"""The conformance probe: what does an endpoint really return?

A string x = x_1 .. x_m is drawn with its log-probabilities l_i, as the server reports them
while it writes. All else is asked so that a fault shows as a disagreement of two answers:

    token ids      log P(x_i | x_<i) asked anew after the prompt x_<i            against l_i
    alignment      entry i of the echoed prompt                                  against l_i,
                   and against log P(x_i | x_<=i), which an off-by-one server gives
    sum            the masses of a law                                           against 1
    frequencies    counts of first tokens              against the law, exact tests, level 1e-6
    temperature    the law reported at another temperature, top-p or logit_bias  against the law
    batch          each answer in a batch                        against the same prompt alone

Numbers of two answers agree where they differ by less than _TOLERANCE nats, which leaves
room for servers in half precision. Where both hypotheses predict the same, the verdict is
that it could not be told.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from myna.errors import TeacherError
from myna.teachers.asker import Asker, Law, Question, Reply, Style
from myna.teachers.endpoint import spec_of
from myna.teachers.exact_tests import LEVEL, worst_disagreement
from myna.teachers.probe_record import Finding, Profile, Verdict, safe_access
from myna.teachers.transport import Refused

_TOLERANCE = 0.05  # nats, between two answers about one number
_MASS = 1e-4  # of a law, lost to single precision
_LENGTH = 8  # m, at most
_DRAWS = 256  # for frequencies, at each of two prefixes
_REPEATS = 6  # of a question that should have one answer

_ASKS = {
    "model": "does the model that was named answer?",
    "token_ids": "are prompts of token ids read as these tokens?",
    "logprobs": "do log-probabilities come when they are asked?",
    "k": "what is the largest number of log-probabilities?",
    "collisions": "do names of tokens collide, and how much mass is unreadable?",
    "sum": "do laws sum to one?",
    "steady": "does the same question have the same law?",
    "echo": "do prompt log-probabilities come when they are asked?",
    "alignment": "do prompt log-probabilities belong to their tokens?",
    "max_tokens": "is max_tokens honoured?",
    "n": "is n honoured, by choices that differ?",
    "batch": "is an answer independent of its batch?",
    "frequencies": "do drawn tokens follow the reported laws?",
    "temperature": "are log-probabilities those before temperature, or after?",
    "top_p": "are log-probabilities those before top-p, or after?",
    "logit_bias": "are log-probabilities those before logit_bias, or after?",
    "deterministic": "does temperature 0 always write the same?",
    "seed": "is the seed honoured?",
    "stop": "is the stop token reported?",
}

Outcome = tuple[Verdict, str, str]
_COMPLETIONS_ONLY = ("token_ids", "echo", "alignment", "batch")
_NEEDS = {  # no word on the first while one of the others is at fault
    "steady": ("logprobs",),
    "echo": ("logprobs", "max_tokens"),
    "alignment": ("steady",),
    "batch": ("steady",),
    "temperature": ("steady", "collisions"),
    "top_p": ("steady", "collisions"),
    "logit_bias": ("steady", "collisions"),
    "stop": ("max_tokens",),
}
OK, FAULT, ABSENT, UNKNOWN = Verdict.OK, Verdict.FAULT, Verdict.NOT_OFFERED, Verdict.UNKNOWN


def probe(asker: Asker, tell: Callable[[str], None] = lambda _: None) -> Profile:
    """Ask a fixed set of questions (about 150 short requests where n is honoured).

    tell: is given each question before it is asked
    """
    return _Probe(asker, tell).run()


class _Probe:
    """The questions in order; later ones use what earlier ones found."""

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
        self._ids_refusal = ""
        self._before = asker.transport.traffic.tries, asker.spent

    def run(self) -> Profile:
        """Every question in order, then what follows from them."""
        steps: dict[str, Callable[[], Outcome]] = {
            "model": self._model,
            "max_tokens": self._max_tokens,
            "logprobs": self._log_probs,
            "k": self._largest_k,
            "steady": self._steady,
            "token_ids": self._token_ids,
            "collisions": self._collisions,
            "sum": self._sum,
            "echo": self._echo,
            "alignment": self._alignment,
            "n": self._n,
            "batch": self._batch,
            "frequencies": self._frequencies,
            "temperature": self._temperature,
            "top_p": self._top_p,
            "logit_bias": self._bias,
            "deterministic": self._deterministic,
            "seed": self._seed,
            "stop": self._stop,
        }
        for name, step in steps.items():
            self._tell(_ASKS[name])
            self._findings[name] = Finding(name, _ASKS[name], *self._outcome(name, step))
            if name == "max_tokens":
                self._draw_string()
        findings = tuple(self._findings[name] for name in _ASKS)
        access, withheld = safe_access(findings, len(self._vocabulary.names), self._k)
        endpoint = self._asker.endpoint
        return Profile(
            endpoint.model,
            endpoint.base_url,
            spec_of(endpoint, self._vocabulary).fingerprint,
            access,
            withheld,
            self._k,
            self._style.ids,
            self._style.batch,
            self._style.many,
            self._addressed,
            self._asker.transport.traffic.tries - self._before[0],
            self._asker.spent - self._before[1],
            findings,
        )

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

    # asking

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
        return _LENGTH if horizon is None else min(_LENGTH, horizon)

    def _was(self, question: str, *verdicts: Verdict) -> bool:
        return self._findings[question].verdict in verdicts

    # the questions

    def _model(self) -> Outcome:
        asked = self._asker.endpoint.model
        if self._style.ids and not self._takes_ids():
            self._style = Style(ids=False)
        answer = self._asker.answers([Question(((),))], self._style, strict=False)[0]
        named = answer.model or asked
        if asked not in named and named not in asked:
            return FAULT, named, f"{asked!r} was asked, and the answer is signed {named!r}"
        if answer.model is None:
            return UNKNOWN, "", "answers are not signed by a model"
        return OK, named, f"answers are signed {named!r}"

    def _takes_ids(self) -> bool:
        # an empty list may pass as an empty list of texts; some servers refuse by a 500
        row = () if self._vocabulary.begin else (0,)
        try:
            self._asker.answers([Question((row,))], Style(ids=True), strict=False)
        except TeacherError as error:
            self._ids_refusal = str(error)
            return False
        return True

    def _max_tokens(self) -> Outcome:
        most = min(2, self._room)
        for limit in sorted({1, most}):
            answers = self._asker.answers(
                [Question(((),), max_tokens=limit, shown=0, seed=s) for s in range(3)],
                self._style,
                strict=False,
            )
            for answer in answers:
                choice = answer.choices[0]
                reply = self._asker.read(choice, Question(((),)))
                count = len(choice.names) if choice.names is not None else answer.received
                count = len(reply.tokens or ()) if count is None else count
                if count > limit:
                    return FAULT, "ignored", f"{limit} were asked, and {count} tokens came"
        return OK, "honoured", f"no answer is longer than the 1 and {most} tokens asked"

    def _draw_string(self) -> None:
        """X: the longest readable string of some draws, without the stop token."""
        stop = self._vocabulary.stop
        questions = [
            Question(((),), max_tokens=self._room, shown=1, seed=s) for s in range(_REPEATS)
        ]
        try:
            found = self._asker.ask_all(questions, self._style)
        except TeacherError:
            return
        for ((reply,),) in found:
            tokens = reply.tokens
            if tokens is None or any(t >= len(self._vocabulary.names) for t in tokens):
                continue
            if stop is not None and tokens[-1:] == (stop,):
                tokens = tokens[:-1]
            if stop in tokens or len(tokens) <= len(self._x):
                continue
            self._x = tokens[: self._room]
            self._written = reply.log_probs[: len(self._x)]

    def _token_ids(self) -> Outcome:
        """Laws asked anew after prefixes of x against what the server reported as it wrote."""
        if not self._style.ids:
            return ABSENT, "refused", self._ids_refusal
        if not self._x or not self._was("logprobs", OK) or self._was("steady", FAULT):
            return UNKNOWN, "taken", "token ids are taken, and nothing tells how they are read"
        differ, spread = self._rereading(Style(ids=True))
        if differ < _TOLERANCE:
            if spread < 2 * _TOLERANCE:
                return UNKNOWN, "taken", "laws here differ too little to tell how ids are read"
            return OK, "read", f"laws asked anew differ by at most {differ:.2g} nats"
        seen = (
            f"after prompts of token ids the log-probabilities of {list(self._x)} differ by "
            f"{differ:.3g} nats from those reported while it was written"
        )
        if self._vocabulary.texts is not None:
            text, _ = self._rereading(Style(ids=False))
            seen += f", after text by {text:.2g}"
            if text < _TOLERANCE:
                self._style = Style(ids=False)
        return FAULT, "misread", seen

    def _rereading(self, style: Style) -> tuple[float, float]:
        """Largest difference from what was written, and how far apart the laws are."""
        differences, first = [0.0], []
        for i, (token, value) in enumerate(zip(self._x, self._written, strict=True)):
            law = self._law(self._x[:i], style=style)
            first.append(law.log_probs.get(self._x[0], -math.inf))
            if value is not None and token in law.log_probs:
                differences.append(_apart(law.log_probs[token], value))
        return max(differences), max((_apart(a, first[0]) for a in first), default=0.0)

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
        if law.names < low and law.unreadable <= _MASS:
            return FAULT, str(self._k), f"{low} were asked, and {law.names} came, without a word"
        words = "asked and given" if low == wanted else "given, more are refused"
        return OK, str(self._k), f"{law.names} log-probabilities {words}"

    def _collisions(self) -> Outcome:
        """Names that collide in a dictionary leave one entry: the others' mass is lost as well."""
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(row) for row in self._rows()]
        unreadable = max(law.unreadable for law in laws)
        if unreadable <= _MASS:
            return OK, "0", f"every name of mass above {_MASS:g} is one token's"
        lost = max(1 - _mass(law.log_probs.values()) - law.outside for law in laws)
        return (
            FAULT,
            f"{lost:.3g}",
            f"names that are no one token's hold mass {unreadable:.3g}, and all but {1 - lost:.3g} "
            "is unreadable",
        )

    def _rows(self, most: int = 4) -> list[tuple[int, ...]]:
        """Prefixes of x after which a token may follow."""
        last = min(len(self._x), self._room - 1, most - 1)
        return [self._x[:i] for i in range(last + 1)]

    def _sum(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(row) for row in self._rows()]
        masses = [_mass(law.log_probs.values()) + law.unreadable + law.outside for law in laws]
        worst = max(masses, key=lambda mass: abs(mass - 1))
        if max(masses) > 1 + _MASS:
            return FAULT, f"{max(masses):.6g}", f"a law sums to {max(masses):.6g}"
        if self._k < len(self._vocabulary.names):
            return UNKNOWN, "", f"{self._k} tokens hold mass {min(masses):.4g} to {max(masses):.4g}"
        if abs(worst - 1) > _MASS:
            return FAULT, f"{worst:.6g}", f"a law sums to {worst:.6g}"
        return OK, "1", f"{len(laws)} whole laws sum to 1 within {abs(worst - 1):.1g}"

    def _steady(self) -> Outcome:
        if not self._was("logprobs", OK):
            return ABSENT, "", "no log-probabilities come"
        laws = [self._law(()) for _ in range(_REPEATS)]
        differ = max(_distance(laws[0], law) for law in laws)
        if differ > _TOLERANCE:
            return FAULT, "", f"one question, asked again, has laws {differ:.3g} nats apart"
        return OK, "", f"{len(laws)} answers to one question differ by at most {differ:.2g} nats"

    def _echo(self) -> Outcome:
        if not self._x:
            return UNKNOWN, "", "no string could be read that might be echoed"
        reply = self._one(self._x, shown=1, echo=True)
        came = reply.tokens or ()
        if reply.tokens is not None and _echoed(self._x, reply) is None:
            if len(came) >= len(self._x):
                seen = f"{list(self._x)} was sent, and {list(came)} came back with one token more"
                return FAULT, "other tokens", seen
            return FAULT, "ignored", "echo was asked, and the prompt is not in the answer"
        values = _echoed(self._x, reply)
        if values is None or all(value is None for value in values):
            return FAULT, "ignored", "echo was asked, and the prompt has no log-probabilities"
        return OK, "given", f"{len(values)} prompt log-probabilities came"

    def _alignment(self) -> Outcome:
        if not self._was("echo", OK):
            return ABSENT, "", "no prompt log-probabilities come"
        values = _echoed(self._x, self._one(self._x, shown=1, echo=True)) or ()
        aligned, late, apart = [], [], []
        for i, (token, value, written) in enumerate(
            zip(self._x, values, self._written, strict=True)
        ):
            if value is None or written is None:
                continue
            aligned.append(_apart(value, written))
            if i + 1 < self._room:
                law = self._law(self._x[: i + 1])
                if token in law.log_probs:
                    late.append(_apart(value, law.log_probs[token]))
                    apart.append(_apart(written, law.log_probs[token]))
        if not aligned:
            return UNKNOWN, "", "no token has both a prompt's and a written log-probability"
        told = f"they differ from those reported while it was written by {max(aligned):.3g} nats"
        if max(aligned) < _TOLERANCE:
            if apart and max(apart) < 2 * _TOLERANCE:
                return UNKNOWN, "", "laws here differ too little to tell an off-by-one"
            return OK, "aligned", told
        if late and max(late) < _TOLERANCE:
            return (
                FAULT,
                "off by one",
                f"entry i of the prompt is log p(token i given the prefix that has token i): {told}, "
                f"and from that by {max(late):.2g}",
            )
        return FAULT, "neither", f"{told}, and an off-by-one does not explain it"

    def _n(self) -> Outcome:
        question = Question(((),), count=8, max_tokens=self._room, shown=0, seed=11)
        answer = self._asker.answers([question], self._style, strict=False)[0]
        if len(answer.choices) != question.count:
            return FAULT, "ignored", f"n = 8 was asked, and {len(answer.choices)} came"
        texts = {(choice.text, choice.names) for choice in answer.choices}
        values = [v for v in answer.choices[0].log_probs if v is not None]
        if len(texts) == 1:
            if values and sum(values) * (question.count - 1) < math.log(LEVEL):
                return (
                    FAULT,
                    "copied",
                    f"the 8 choices are one, of log-probability {sum(values):.3g}",
                )
            return UNKNOWN, "", "8 choices came and are equal, as they may well be here"
        self._style = Style(self._style.ids, self._style.batch, many=True)
        return OK, "honoured", f"8 choices came, {len(texts)} of them different"

    def _batch(self) -> Outcome:
        rows = [row for row in self._rows(5) if row] or [()]
        shown = self._shown if self._was("logprobs", OK) else None
        if len(rows) < 2:
            return UNKNOWN, "", "no two prompts are at hand"
        question = Question(tuple(rows), shown=shown, temperature=0.0)
        answer = self._asker.answers([question], self._style, strict=False)[0]
        if len(answer.choices) != len(rows):
            return (
                FAULT,
                "ignored",
                f"{len(rows)} prompts were sent, {len(answer.choices)} came back",
            )
        together = [self._asker.read(choice, question) for choice in answer.choices]
        alone = [self._one(row, shown=shown, temperature=0.0) for row in rows]
        if shown is not None:
            return self._batched_laws(together, alone)
        differ = sum(a.tokens != b.tokens for a, b in zip(together, alone, strict=True))
        if differ:
            return FAULT, "dependent", f"{differ} of {len(rows)} answers differ from those alone"
        return UNKNOWN, "", "answers are equal in a batch and alone; no laws tell more"

    def _batched_laws(self, together: list[Reply], alone: list[Reply]) -> Outcome:
        laws = [[r.laws[0] for r in some if r.laws and r.laws[0]] for some in (together, alone)]
        if not len(laws[0]) == len(laws[1]) == len(alone):
            return FAULT, "dependent", "a batch does not bring the laws that come alone"
        differ = max(_distance(a, b) for a, b in zip(*laws, strict=True))
        spread = max(_distance(laws[1][0], law) for law in laws[1])
        if differ > _TOLERANCE:
            return FAULT, "dependent", f"a law in a batch is {differ:.3g} nats from the law alone"
        if spread < 2 * _TOLERANCE:
            return UNKNOWN, "", "laws here differ too little to tell whose is whose"
        self._style = Style(self._style.ids, self._asker.endpoint.batch, self._style.many)
        seen = f"{len(alone)} laws differ by at most {differ:.2g} nats from those alone"
        return OK, "independent", seen

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
        rest = min(1.0, max(0.0, 1 - sum(masses)) + _MASS)
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
        if _apart(before, after) < 2 * _TOLERANCE:
            return UNKNOWN, "", "both would report the same here"
        if _apart(seen, before) < _TOLERANCE:
            return OK, "before", numbers
        if _apart(seen, after) < _TOLERANCE:
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

    def _deterministic(self) -> Outcome:
        questions = [
            Question(((),), max_tokens=self._room, temperature=0.0, seed=s, shown=0)
            for s in range(_REPEATS)
        ]
        written = self._written_by(questions)
        if len(set(written)) > 1:
            return (
                FAULT,
                "random",
                f"{len(written)} answers at temperature 0 have {len(set(written))} texts",
            )
        return OK, "the same", f"{len(written)} answers at temperature 0 are equal"

    def _seed(self) -> Outcome:
        seeds = [s for s in range(_REPEATS) for _ in range(2)]
        written = self._written_by(
            [Question(((),), max_tokens=self._room, seed=s + 100, shown=0) for s in seeds]
        )
        pairs = list(zip(written[::2], written[1::2], strict=True))
        equal = sum(a == b for a, b in pairs)
        if equal < len(pairs):
            return FAULT, "ignored", f"{len(pairs) - equal} of {len(pairs)} seeds gave two answers"
        if len(set(written)) == 1:
            return UNKNOWN, "", "all answers are equal, whatever the seed"
        self._addressed = True
        return (
            OK,
            "honoured",
            f"{len(pairs)} seeds gave one answer each, {len(set(written))} different",
        )

    def _written_by(self, questions: list[Question]) -> list[str]:
        answers = self._asker.answers(questions, self._style, strict=False)
        return [f"{answer.choices[0].text}|{answer.choices[0].names}" for answer in answers]

    def _stop(self) -> Outcome:
        stop, horizon = self._vocabulary.stop, self._vocabulary.horizon
        if stop is None:
            return ABSENT, "", "the language has no stop token"
        limit = horizon or 4 * _LENGTH
        many = self._style.many
        questions = [
            Question(((),), count=32 if many else 1, max_tokens=limit, shown=0, seed=s)
            for s in range(2 if many else 32)
        ]
        found = self._asker.ask_all(questions, self._style)
        replies = [reply for ((*replies,),) in found for reply in replies]
        readable = [reply for reply in replies if reply.tokens is not None]
        cut = [r for r in readable if len(r.tokens or ()) < limit and r.finish != "stop"]
        cut = [r for r in cut if (r.tokens or ())[-1:] != (stop,)]
        if cut:
            shown = list(cut[0].tokens or ())
            return (
                FAULT,
                "hidden",
                f"{shown} ends before {limit} tokens with reason {cut[0].finish!r}",
            )
        ended = [r for r in readable if r.finish == "stop"]
        named = sum((r.tokens or ())[-1:] == (stop,) for r in ended)
        if not ended:
            return UNKNOWN, "", f"none of {len(readable)} completions stopped"
        return (
            OK,
            "reported",
            f"{len(ended)} completions say that they stopped, {named} name the token",
        )


def _apart(a: float, b: float) -> float:
    """|a - b|, where minus infinity is like itself only."""
    return 0.0 if a == b else abs(a - b)


def _mass(log_probs: Iterable[float]) -> float:
    """Probabilities added up; a number that is no log-probability stays finite."""
    return sum(math.exp(min(value, 700.0)) for value in log_probs)


def _gap(law: Law, a: int, b: int) -> float:
    return law.log_probs.get(a, -math.inf) - law.log_probs.get(b, -math.inf)


def _distance(one: Law, other: Law) -> float:
    """The largest difference of log-probabilities, over tokens of some mass."""
    floor = -12.0  # a token that will not be drawn; half precision knows it badly
    tokens = one.log_probs.keys() | other.log_probs.keys()
    missing = min(
        [*one.log_probs.values(), *other.log_probs.values()], default=0.0
    )  # what is not listed is no likelier than what is
    values = [[max(floor, law.log_probs.get(t, missing)) for t in tokens] for law in (one, other)]
    return max((_apart(a, b) for a, b in zip(*values, strict=True)), default=0.0)


def _echoed(row: tuple[int, ...], reply: Reply) -> tuple[float | None, ...] | None:
    """The entries of a row's tokens in an echo, wherever it begins; None where it is not there."""
    tokens = reply.tokens or ()
    for start in range(len(tokens) - len(row), -1, -1):
        if tokens[start : start + len(row)] == row and start + len(row) >= len(tokens) - 1:
            return reply.log_probs[start : start + len(row)]
    return None
