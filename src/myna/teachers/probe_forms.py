"""Questions about forms: are prompts, batches, n, limits, seeds and stops what they are called?"""

import dataclasses
import math

from myna.errors import TeacherError
from myna.teachers.asker import Question, Reply, Style
from myna.teachers.exact_tests import LEVEL
from myna.teachers.probe_questions import (
    ABSENT,
    FAULT,
    LENGTH,
    OK,
    REPEATS,
    TOLERANCE,
    UNKNOWN,
    Outcome,
    ProbeState,
    distance,
)


class FormQuestions(ProbeState):
    """From the model's name to the stop token."""

    def _model(self) -> Outcome:
        asked = self._asker.endpoint.model
        if self._style.ids and not self._takes_ids():
            self._style, self._ids_refusal = Style(ids=False), self._refusal
        if not self._takes(Question(((),), shown=0), self._style):
            # what is refused may be the field that only some servers know
            self._style = dataclasses.replace(self._style, named=False)
        answer = self._asker.answers([Question(((),))], self._style, strict=False)[0]
        named = answer.model or asked
        if asked not in named and named not in asked:
            return FAULT, named, f"{asked!r} was asked, and the answer is signed {named!r}"
        if answer.model is None:
            return UNKNOWN, "", "answers are not signed by a model"
        return OK, named, f"answers are signed {named!r}"

    def _takes_ids(self) -> bool:
        # an empty list may pass as an empty list of texts
        row = () if self._vocabulary.begin else (0,)
        return self._takes(Question((row,)), Style(ids=True))

    def _takes(self, question: Question, style: Style) -> bool:
        """Whether a form of question is answered at all; some servers refuse by a 500."""
        try:
            self._asker.answers([question], style, strict=False)
        except TeacherError as error:
            self._refusal = str(error)
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
            Question(((),), max_tokens=self._room, shown=1, seed=s) for s in range(REPEATS)
        ]
        try:
            found = self._asker.answers(questions, self._style, strict=False)
        except TeacherError:
            return
        self._draws = [answer.choices[0] for answer in found]
        for reply in (self._asker.read(choice, questions[0]) for choice in self._draws):
            tokens = reply.tokens
            if tokens is None or any(t >= len(self._vocabulary.names) for t in tokens):
                continue
            if stop is not None and tokens[-1:] == (stop,):
                tokens = tokens[:-1]
            if stop in tokens or len(tokens) <= len(self._x):
                continue
            self._x = tokens[: self._room]
            self._written = reply.log_probs[: len(self._x)]

    def _random(self) -> Outcome:
        """Equal draws under different seeds: as the laws say, against them, or nobody knows."""
        if not self._draws:
            return UNKNOWN, "", "nothing could be drawn"
        texts = {(draw.text, draw.names) for draw in self._draws}
        if len(texts) > 1:
            return OK, "random", f"{len(self._draws)} draws have {len(texts)} texts"
        log_probs = [value for value in self._draws[0].log_probs if value is not None]
        seen = f"{len(self._draws)} draws with different seeds are all equal"
        if not log_probs:
            return UNKNOWN, "", f"{seen}, and no log-probabilities say how likely that is"
        chance = (len(self._draws) - 1) * sum(log_probs)
        if chance < math.log(LEVEL):
            return (
                FAULT,
                "not random",
                f"{seen}, of log-probability {chance:.3g} by its own account",
            )
        return OK, "as likely", f"{seen}, of log-probability {chance:.3g}"

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
        self._style = dataclasses.replace(self._style, many=True)
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
        differ = max(distance(a, b) for a, b in zip(*laws, strict=True))
        spread = max(distance(laws[1][0], law) for law in laws[1])
        if differ > TOLERANCE:
            return FAULT, "dependent", f"a law in a batch is {differ:.3g} nats from the law alone"
        if spread < 2 * TOLERANCE:
            return UNKNOWN, "", "laws here differ too little to tell whose is whose"
        self._style = dataclasses.replace(self._style, batch=self._asker.endpoint.batch)
        seen = f"{len(alone)} laws differ by at most {differ:.2g} nats from those alone"
        return OK, "independent", seen

    def _deterministic(self) -> Outcome:
        questions = [
            Question(((),), max_tokens=self._room, temperature=0.0, seed=s, shown=0)
            for s in range(REPEATS)
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
        seeds = [s for s in range(REPEATS) for _ in range(2)]
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
        limit = horizon or 4 * LENGTH
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
