"""Texts that are nearly answers, and what reading them may do: an answer or a MalformedAnswer."""

import json
import math
import random

from myna.errors import InputError
from myna.spec import Spec
from myna.teachers.api_answers import (
    Answer,
    MalformedAnswer,
    read_chat,
    read_completions,
    read_models,
)
from myna.teachers.asker import Asker, Question
from myna.teachers.endpoint_settings import Endpoint, Vocabulary, vocabulary_of
from myna.teachers.probe_record import profile_of
from myna.teachers.transport import Transport

_VALUES = (
    None,
    True,
    False,
    0,
    -1,
    2**70,
    -1e308,
    1e400,
    0.5,
    "",
    "a",
    "token_id:0",
    "token_id:999999999999",
    "token_id:\u0661",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    "a" * 500,
)


_ENDPOINT = Endpoint("m", "http://127.0.0.1:1/v1")
READER = Asker(
    _ENDPOINT,
    Vocabulary(("a", "b", "ab", "<s>"), ("a", "b", "ab", ""), (3,), 3, 9),
    Transport(_ENDPOINT),  # opens nothing until it is asked
)


def good_completions():
    record = {
        "tokens": ["a", "token_id:1"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"token_id:1": -0.5, "a": -0.9, "?": -9999.0}],
    }
    choice = {"index": 0, "text": "ab", "finish_reason": "length", "logprobs": record}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    return {"model": "m", "choices": [choice, {**choice, "index": 1}], "usage": usage}


def good_chat():
    entry = {"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "a"},
        "finish_reason": "stop",
        "logprobs": {"content": [entry]},
    }
    return {"model": "m", "choices": [choice], "usage": None}


def good_models():
    told = {"alphabet": ["a"], "begin": [1], "stop": None, "horizon": 3}
    return {"data": [{"id": "m", "myna": told}]}


def good_profile():
    finding = {"question": "n", "asks": "?", "verdict": "ok", "answer": "", "evidence": ""}
    names = ("ids", "many", "named", "addressed")
    numbers = {"k": 1, "batch": 1, "requests": 3, "tokens": 4}
    texts = {"model": "m", "base_url": "u", "fingerprint": "f", "withheld": ""}
    rest = {"access": "laws", "findings": [finding]}
    return {**texts, **numbers, **dict.fromkeys(names, True), **rest}


GOOD = {
    "completions": (good_completions, read_completions),
    "chat": (good_chat, read_chat),
    "models": (good_models, read_models),
    "profile": (good_profile, lambda text: profile_of(json.loads(text))),
}


def mutated(value, chance, random_):
    """One JSON value with parts swapped, dropped, repeated or replaced."""
    if random_.random() < chance:
        return random_.choice(_VALUES)
    if isinstance(value, dict):
        kept = {
            k: mutated(v, chance, random_) for k, v in value.items() if random_.random() > chance
        }
        return kept
    if isinstance(value, list):
        found = [mutated(v, chance, random_) for v in value if random_.random() > chance]
        return found * random_.choice((1, 1, 1, 2)) if random_.random() < chance else found
    return value


def nearly(kind, seed):
    """Text near an answer of a kind: its structure changed, or its bytes."""
    random_ = random.Random(seed)
    good = GOOD[kind][0]()
    text = json.dumps(mutated(good, random_.choice((0.0, 0.02, 0.1, 0.3)), random_))
    if random_.random() < 0.5:
        return text
    for _ in range(random_.randint(1, 6)):
        at, size = random_.randint(0, len(text)), random_.choice((0, 1, 1, 3, 40))
        new = random_.choice(
            ("", "{", "}", "[", "]", '"', ",", "NaN", "Infinity", "1e999", "\\u0000", "0" * 60, "-")
        )
        text = text[:at] + new + text[at + size :]
    if random_.random() < 0.02:
        text = random_.choice("[{") * random_.choice((50, 5000)) + text
    return text


def survive(kind, text):
    """Read as far as a teacher would; returns whether it was an answer.

    Anything but an answer or its refusal is raised: that is what a fuzzer looks for.
    """
    try:
        answer = GOOD[kind][1](text)
        if kind == "models":
            for entry in answer:
                told = vocabulary_of({}, entry)
                Spec(told.names, told.stop, told.horizon, "")
    except (MalformedAnswer, InputError):
        return False
    except (ValueError, RecursionError):
        if kind == "profile":  # its JSON is read by `read_profile`, which catches these
            return False
        raise
    if isinstance(answer, Answer):
        for choice in answer.choices:
            assert choice.names is None or len(choice.names) == len(choice.log_probs)
            assert all(v is None or v < math.inf for v in choice.log_probs)
            reply = READER.read(choice, Question(((),)))
            assert reply.tokens is None or all(token >= 0 for token in reply.tokens)
            assert all(law is None or law.unreadable >= 0 for law in reply.laws)
    return True
