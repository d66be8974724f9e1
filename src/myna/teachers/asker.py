"""Questions about a language, in the words of an endpoint, and its answers as numbers.

A question names prefixes over the tokens 0 .. O-1 and what is wanted of them; which form
it is sent in (token ids or text, many prompts in a request or one, token ids in the answer
or texts) is a `Style`, which the probe finds out. Names of the answer are read as tokens;
a name that several tokens share is nobody's, and its mass is unreadable.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from myna.errors import InputError
from myna.teachers.api_answers import Answer, Choice, read_chat, read_completions
from myna.teachers.endpoint_purse import Size
from myna.teachers.endpoint_settings import Endpoint, Vocabulary
from myna.teachers.transport import Transport

_NAMED = "token_id:"
_ID_NAMES = "return_tokens_as_token_ids"  # vLLM's, for answers that name tokens by their ids

Rows = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Style:
    """How a server wants to be asked.

    ids: prompts as token ids, not as text
    batch: most prompts in a request
    many: whether n is honoured
    named: whether answers are asked to name tokens by their ids, which strict servers refuse
    """

    ids: bool = True
    batch: int = 1
    many: bool = False
    named: bool = True


@dataclasses.dataclass(frozen=True)
class Question:
    """What is wanted after each of some prefixes.

    count, max_tokens: draws of each, and their greatest length
    shown: log-probabilities a token, or None
    echo: the prompt's log-probabilities as well
    """

    rows: tuple[tuple[int, ...], ...]
    count: int = 1
    max_tokens: int = 1
    shown: int | None = None
    echo: bool = False
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()


class Law(NamedTuple):
    """One next-token law as far as it can be read.

    log_probs: token to nats
    unreadable: mass of names that are no token's, several tokens', or came twice
    outside: mass of tokens that are not in the alphabet
    names: how many entries the server gave
    """

    log_probs: dict[int, float]
    unreadable: float
    outside: float
    names: int


class Reply(NamedTuple):
    """One continuation, read.

    tokens: None where they cannot be told from what the server wrote; the server's ids
    named: the token of each name, None where it is nobody's or several tokens'
    finish: why it ended, as the server says
    log_probs: of each token, nats
    laws: the law shown at each token
    """

    tokens: tuple[int, ...] | None
    named: tuple[int | None, ...]
    finish: str | None
    log_probs: tuple[float | None, ...]
    laws: tuple[Law | None, ...]


class Asker:
    """Sends questions in one style and reads the answers."""

    def __init__(self, endpoint: Endpoint, vocabulary: Vocabulary, transport: Transport):
        """Ask nothing yet."""
        self.endpoint, self.vocabulary, self.transport = endpoint, vocabulary, transport
        self.spent = 0  # tokens, as the server bills them, or else the most they can be
        self._by_text: dict[str, list[int]] = {}
        for token, text in enumerate(vocabulary.texts or ()):
            self._by_text.setdefault(text, []).append(token)
        self._longest = max((len(text) for text in self._by_text), default=0)

    def collisions(self) -> int:
        """How many tokens share their text with another."""
        return sum(len(tokens) for tokens in self._by_text.values() if len(tokens) > 1)

    def ask(self, question: Question, style: Style) -> list[list[Reply]]:
        """The draws of each row of one question: (row, draw)."""
        return self.ask_all([question], style)[0]

    def ask_all(self, questions: Sequence[Question], style: Style) -> list[list[list[Reply]]]:
        """The draws of each row of each question: (question, row, draw).

        Raises:
            TeacherError: where the server does not answer in the form asked.
        """
        batch = 1 if self.endpoint.chat else style.batch
        parts = [_parts(question, batch, style.many) for question in questions]
        sent = [part for listed in parts for _, part in listed]
        answers = iter(self.answers(sent, style))
        found: list[list[list[Reply]]] = []
        for question, listed in zip(questions, parts, strict=True):
            rows: list[list[Reply]] = [[] for _ in question.rows]
            for first, part in listed:
                replies = [self.read(choice, part) for choice in next(answers).choices]
                for i in range(len(part.rows)):
                    rows[first + i] += replies[i * part.count : (i + 1) * part.count]
            found.append(rows)
        return found

    def answers(
        self, questions: Sequence[Question], style: Style, *, strict: bool = True
    ) -> list[Answer]:
        """One request a question, unread; unless `strict`, of any number of choices."""
        read = read_chat if self.endpoint.chat else read_completions
        path = "/chat/completions" if self.endpoint.chat else "/completions"
        by_choices: dict[int | None, list[int]] = {}
        for i, question in enumerate(questions):
            expected = len(question.rows) * question.count if strict else None
            by_choices.setdefault(expected, []).append(i)
        found: dict[int, Answer] = {}
        for expected, places in by_choices.items():
            bodies = [self.body(questions[i], style) for i in places]
            sizes = [size_of(questions[i], self.vocabulary) for i in places]
            got = self.transport.ask_all(
                path, bodies, sizes, lambda text, n=expected: read(text, n)
            )
            for i, most, answer in zip(places, sizes, got, strict=True):
                found[i] = answer
                used = most if answer.sent is None else Size(answer.sent, answer.received or 0)
                self.transport.purse.settle(most, used)
                self.spent += used.tokens
        return [found[i] for i in range(len(questions))]

    def body(self, question: Question, style: Style) -> dict[str, Any]:
        """The JSON of one request."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "max_tokens": question.max_tokens,
            "n": question.count,
        }
        if question.seed is not None:
            body["seed"] = question.seed
        if question.bias:
            body["logit_bias"] = {str(token): value for token, value in question.bias}
        if self.endpoint.chat:
            body["messages"] = [{"role": "user", "content": self.endpoint.words}]
            if question.rows[0]:
                begun = {"role": "assistant", "content": self.text(question.rows[0])}
                body["messages"].append(begun)
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            if question.shown is not None:
                body |= {"logprobs": True, "top_logprobs": question.shown}
            return body
        prompts = [self.prompt(row, style) for row in question.rows]
        body["prompt"] = prompts[0] if len(prompts) == 1 else prompts
        if question.shown is not None:
            body |= {"logprobs": question.shown}
            if style.named:
                body |= {_ID_NAMES: True}
        if question.echo:
            body["echo"] = True
        return body

    def prompt(self, row: tuple[int, ...], style: Style) -> list[int] | str:
        """A prefix as the server reads it."""
        return (
            [*self.vocabulary.begin, *row]
            if style.ids
            else self.vocabulary.opening + self.text(row)
        )

    def text(self, row: tuple[int, ...]) -> str:
        """A prefix as text.

        Raises:
            InputError: where the tokens' texts are not known.
        """
        if self.vocabulary.texts is None:
            raise InputError(
                "this server reads text only, and the texts of the tokens are not known; give "
                "tokenizer=FILE or tokens=... in place of vocabulary="
            )
        return "".join(self.vocabulary.texts[token] for token in row)

    def read(self, choice: Choice, question: Question) -> Reply:
        """A choice as tokens and laws."""
        if choice.names is None:
            written = choice.text
            tokens = None if question.echo else self.split(written)
            return Reply(tokens, tokens or (), choice.finish, (), ())
        found = tuple(self._token(name) for name in choice.names)
        tokens = None if None in found else tuple(token for token in found if token is not None)
        laws = tuple(None if top is None else self._law(top) for top in choice.tops)
        return Reply(tokens, found, choice.finish, choice.log_probs, laws)

    def _token(self, name: str) -> int | None:
        """The one token of a name, or None."""
        number = name.removeprefix(_NAMED)
        if number != name and number.isascii() and number.isdigit() and len(number) < 10:
            return int(number)
        tokens = self._by_text.get(name, ())
        return tokens[0] if len(tokens) == 1 else None

    def _law(self, top: tuple[tuple[str, float], ...]) -> Law:
        log_probs: dict[int, float] = {}
        unreadable = outside = 0.0
        for name, value in top:
            token, mass = self._token(name), math.exp(min(value, 700.0))
            if token is None or token in log_probs:
                unreadable += mass
            elif token >= len(self.vocabulary.names):
                outside += mass
            else:
                log_probs[token] = value
        return Law(log_probs, unreadable, outside, len(top))

    def split(self, text: str) -> tuple[int, ...] | None:
        """The only way to write a text as tokens; None where there is none or another.

        ways[i] counts the ways to write text[:i], capped at 2: one is enough, two too many.
        """
        ways, last = [1] + [0] * len(text), [-1] * (len(text) + 1)
        for i in range(1, len(text) + 1):
            for size in range(1, min(i, self._longest) + 1):
                tokens = self._by_text.get(text[i - size : i], ())
                if tokens and ways[i - size]:
                    ways[i] = min(2, ways[i] + len(tokens) * ways[i - size])
                    last[i] = tokens[0]
        if ways[-1] != 1:
            return None
        found, i = [], len(text)
        while i:
            found.append(last[i])
            i -= len((self.vocabulary.texts or ())[last[i]])
        return tuple(reversed(found))


def _parts(question: Question, batch: int, many: bool) -> list[tuple[int, Question]]:
    """The requests that a question becomes, each with the place of its first row."""
    rows = question.rows
    copies, count = (1, question.count) if many else (question.count, 1)
    return [
        (i, dataclasses.replace(question, rows=rows[i : i + batch], count=count))
        for _ in range(copies)
        for i in range(0, len(rows), batch)
    ]


def size_of(question: Question, vocabulary: Vocabulary) -> Size:
    """The most tokens that a question can cost."""
    begin = len(vocabulary.begin)
    sent = sum(begin + len(row) for row in question.rows)
    return Size(sent, len(question.rows) * question.count * question.max_tokens)
