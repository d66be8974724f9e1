"""Answers of OpenAI-compatible servers, read strictly: a field is as the format says, or is refused.

A completions answer lists choices; choice i x n + j is draw j of prompt i:

    {"model": name, "choices": [{"index", "text", "finish_reason", "logprobs": null or
        {"tokens": [name], "token_logprobs": [number or null], "top_logprobs": [{name: number}]}}],
     "usage": {"prompt_tokens", "completion_tokens"}}

A chat answer has choices of one prompt, with message.content and logprobs.content. Both
become the same records. Names that one dictionary repeats, which a plain JSON reader
would merge in silence, are kept apart and counted. -9999 stands for minus infinity.
"""

import json
import math
from typing import Any, NamedTuple

from myna.errors import TeacherError

_FLOOR = -9999.0  # servers write minus infinity so, JSON has none
_SHOWN = 80  # characters of a faulty answer that a message shows


class MalformedAnswer(TeacherError):
    """Text that is no answer of the format asked for; asking again may help."""


class Choice(NamedTuple):
    """One continuation, as the server shows it.

    text: what was written
    finish: why it ended ("stop", "length", ...), or None
    names: the name of each token, or None where log-probabilities were not given
    log_probs: of each token, nats; None where the server gives none (the first of a prompt)
    tops: name and log-probability of the most likely tokens at each place, or None
    """

    text: str
    finish: str | None
    names: tuple[str, ...] | None
    log_probs: tuple[float | None, ...]
    tops: tuple[tuple[tuple[str, float], ...] | None, ...]


class Answer(NamedTuple):
    """A whole answer.

    model: the name that the server says answered, or None
    choices: in the order of their index
    sent, received: tokens billed, or None
    """

    model: str | None
    choices: tuple[Choice, ...]
    sent: int | None
    received: int | None


def read_completions(text: str, expected: int | None = None) -> Answer:
    """A completions answer of `expected` choices (any number where None).

    Raises:
        MalformedAnswer: saying which field is not as the format says.
    """
    return _answer(text, expected, _completion_choice)


def read_chat(text: str, expected: int | None = None) -> Answer:
    """A chat answer of `expected` choices (any number where None).

    Raises:
        MalformedAnswer: saying which field is not as the format says.
    """
    return _answer(text, expected, _chat_choice)


def read_models(text: str) -> list[dict[str, Any]]:
    """The entries of /v1/models, each with its id; "myna" is an object, or None.

    Raises:
        MalformedAnswer: where it is no such list.
    """
    entries = _list(_plain(_object(_parsed(text), "the answer")).get("data"), "data")
    found = [_plain(_object(entry, "a model")) for entry in entries]
    for entry in found:
        _text(entry.get("id"), "id")
        told = entry.get("myna")
        entry["myna"] = dict(told) if isinstance(told, _Pairs) else None
    return found


class _Pairs(list):
    """A JSON object as its pairs, so that a repeated name is seen."""


def _parsed(text: str) -> Any:
    """JSON without NaN and infinities, which the format does not have."""

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=_Pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        shown = " ".join(text[:_SHOWN].split())
        raise MalformedAnswer(
            f"an answer must be JSON, and {shown!r} is not ({type(error).__name__})"
        ) from None


def _answer(text: str, expected: int | None, read: Any) -> Answer:
    record = _plain(_object(_parsed(text), "the answer"))
    listed = _list(record.get("choices"), "choices")
    if not listed or (expected is not None and len(listed) != expected):
        wanted = "at least one choice" if expected is None else f"{expected} choices"
        raise MalformedAnswer(f"{wanted} were asked for, and {len(listed)} came")
    choices: dict[int, Choice] = {}
    for entry in listed:
        fields = _plain(_object(entry, "a choice"))
        index = _whole(fields.get("index"), "index")
        if index in choices or index >= len(listed):
            raise MalformedAnswer(
                f"choices must be numbered 0..{len(listed) - 1}, each once, and {index} came"
            )
        choices[index] = read(fields)
    usage = record.get("usage")
    used = {} if usage is None else _plain(_object(usage, "usage"))
    counts = [
        None if used.get(name) is None else _whole(used[name], name)
        for name in ("prompt_tokens", "completion_tokens")
    ]
    model = record.get("model")
    return Answer(
        None if model is None else _text(model, "model"),
        tuple(choices[i] for i in range(len(listed))),
        *counts,
    )


def _completion_choice(fields: dict[str, Any]) -> Choice:
    text, finish = _text(fields.get("text"), "text"), _finish(fields)
    if fields.get("logprobs") is None:
        return Choice(text, finish, None, (), ())
    record = _plain(_object(fields["logprobs"], "logprobs"))
    names = tuple(_text(name, "tokens") for name in _list(record.get("tokens"), "tokens"))
    values = tuple(
        None if value is None else _log_prob(value)
        for value in _list(record.get("token_logprobs"), "token_logprobs")
    )
    tops = record.get("top_logprobs")
    laws = [None] * len(names) if tops is None else _list(tops, "top_logprobs")
    if not len(names) == len(values) == len(laws):
        raise MalformedAnswer(
            f"each token needs one entry, and there are {len(names)} tokens, "
            f"{len(values)} token_logprobs and {len(laws)} top_logprobs"
        )
    return Choice(text, finish, names, values, tuple(_top(law) for law in laws))


def _top(law: Any) -> tuple[tuple[str, float], ...] | None:
    if law is None:
        return None
    return tuple((name, _log_prob(value)) for name, value in _object(law, "top_logprobs"))


def _chat_choice(fields: dict[str, Any]) -> Choice:
    message = _plain(_object(fields.get("message"), "message"))
    content = message.get("content")
    text, finish = "" if content is None else _text(content, "content"), _finish(fields)
    record = fields.get("logprobs")
    if record is None:
        return Choice(text, finish, None, (), ())
    listed = _plain(_object(record, "logprobs")).get("content")
    entries = [
        _plain(_object(entry, "content"))
        for entry in ([] if listed is None else _list(listed, "content"))
    ]
    names = tuple(_text(entry.get("token"), "token") for entry in entries)
    values = tuple(_log_prob(entry.get("logprob")) for entry in entries)
    return Choice(text, finish, names, values, tuple(_chat_top(entry) for entry in entries))


def _chat_top(entry: dict[str, Any]) -> tuple[tuple[str, float], ...] | None:
    if entry.get("top_logprobs") is None:
        return None
    listed = [_plain(_object(pair, "top")) for pair in _list(entry["top_logprobs"], "top_logprobs")]
    return tuple((_text(p.get("token"), "token"), _log_prob(p.get("logprob"))) for p in listed)


def _object(value: Any, what: str) -> _Pairs:
    if not isinstance(value, _Pairs):
        raise MalformedAnswer(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _plain(pairs: _Pairs) -> dict[str, Any]:
    """An object whose names are fields: none may be repeated."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MalformedAnswer("an object repeats one of its fields")
    return fields


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or isinstance(value, _Pairs):
        raise MalformedAnswer(f"{what} must be a list, got {type(value).__name__}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise MalformedAnswer(f"{what} must be text, got {type(value).__name__}")
    return value


def _finish(fields: dict[str, Any]) -> str | None:
    reason = fields.get("finish_reason")
    return None if reason is None else _text(reason, "finish_reason")


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise MalformedAnswer(f"{what} must be a whole number, got {type(value).__name__}")
    return value


def _log_prob(value: Any) -> float:
    """Nats; -9999 and below is minus infinity. Not above 0 but for rounding: see the probe."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        raise MalformedAnswer(f"a log-probability must be a number, got {type(value).__name__}")
    return -math.inf if value <= _FLOOR else float(value)
