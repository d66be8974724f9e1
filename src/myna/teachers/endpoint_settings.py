"""What names an endpoint: a model behind an OpenAI-compatible server, and its tokens.

    openai:MODEL?base_url=http://127.0.0.1:8000/v1&horizon=12&stop=2&vocabulary=259

The tokens come from the first of these that there is:

    tokens=a,b,c       token i is written so and has the server's id i
    tokenizer=FILE     a tokenizer.json; token i has id i and is written as it decodes
    vocabulary=V       ids 0 .. V-1 without texts: the server must take and show token ids
    /v1/models         the server's own word, where it gives it (our test server does)

An API key is read from the environment variable that `key=` names (OPENAI_API_KEY unless
said) or from the keyring's entry (service "myna", the same name). It is part of no
record, and a URI that carries one is refused.
"""

import dataclasses
import ipaddress
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from myna.errors import InputError

PARAMETERS = {
    "base_url": str,
    "endpoint": str,
    "words": str,
    "key": str,
    "horizon": int,
    "stop": int,
    "begin": str,
    "opening": str,
    "tokens": str,
    "tokenizer": str,
    "vocabulary": int,
    "concurrency": int,
    "batch": int,
    "timeout": float,
    "retries": int,
    "tokens_per_minute": int,
    "price_sent": float,
    "price_received": float,
    "max_requests": int,
    "max_money": float,
    "draws": str,
    "probe": str,
}
_CHOICES = {"endpoint": ("completions", "chat"), "draws": ("addressed", "fresh")}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model answers and how it may be asked.

    model, base_url: as the server knows them
    chat: whether /v1/chat/completions is asked; `words` is then the user's message
    key_name: the environment variable, or keyring entry, that holds the API key
    concurrency: requests in flight
    batch: most prompts in one request
    timeout: seconds until an answer counts as lost
    retries: how often one question is asked again before it is a TeacherError
    backoff: seconds, the mean wait before the second of these; it doubles up to a minute
    tokens_per_minute: most tokens sent plus received, or None
    price_sent, price_received: money for a million tokens, or None
    max_requests, max_money: limits on what one opening sends; see endpoint_purse
    addressed: whether draws must be functions of (prefix, stream, index); None: where possible
    """

    model: str
    base_url: str
    chat: bool = False
    words: str = "Go on."
    key_name: str = "OPENAI_API_KEY"
    concurrency: int = 8
    batch: int = 32
    timeout: float = 60.0
    retries: int = 8
    backoff: float = 0.25
    tokens_per_minute: int | None = None
    price_sent: float | None = None
    price_received: float | None = None
    max_requests: int | None = None
    max_money: float | None = None
    addressed: bool | None = None

    def __post_init__(self) -> None:
        """Refuse an address that may carry a secret, or is none."""
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                "base_url must be the address of a server such as http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                "base_url must hold no user, password or query, which may be secrets; put the "
                f"API key into the environment variable {self.key_name}"
            )
        if not self.model:
            raise InputError("openai:MODEL needs the name of a model, as /v1/models lists it")
        for name in ("concurrency", "batch", "timeout", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, got {value}")
        limits = ("max_requests", "max_money")
        for name in ("retries", "price_sent", "price_received", "backoff", *limits):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must be at least 0, got {value}")
        if self.max_money is not None and (self.price_sent, self.price_received) == (None, None):
            raise InputError(
                "max_money needs prices: add price_sent= and price_received=, money for a million "
                "tokens"
            )

    @property
    def at_home(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def in_the_clear(self) -> bool:
        """Whether what is sent can be read on the way."""
        return urlsplit(self.base_url).scheme == "http" and not self.at_home


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a language, as we and as the server name them.

    names: distinct, the spec's alphabet; token i has the server's id i
    texts: how the server writes each token, or None where that is not known
    begin: ids that open every prompt (a model's beginning token), often one or none
    opening: text that opens every text prompt; some servers have no law after an empty one
    stop, horizon: as in `Spec`
    """

    names: tuple[str, ...]
    texts: tuple[str, ...] | None
    begin: tuple[int, ...] = ()
    stop: int | None = None
    horizon: int | None = None
    opening: str = ""

    @property
    def shown(self) -> int:
        """How many log-probabilities make a whole law: all tokens, and those of `begin`."""
        return len(self.names) + len({t for t in self.begin if t >= len(self.names)})


def api_key(endpoint: Endpoint) -> str | None:
    """The key from the environment or the keyring; None where there is none."""
    found = os.environ.get(endpoint.key_name)
    if found:
        return found
    try:
        import keyring  # noqa: PLC0415 - optional, and slow to import

        return keyring.get_password("myna", endpoint.key_name)
    except Exception:  # no keyring here, or a locked one: servers at home need no key
        return None


def read_parameters(parameters: dict[str, str]) -> dict[str, Any]:
    """Parameters of an openai: URI, converted; values are not repeated in messages.

    Raises:
        InputError: naming the parameter and what was wanted.
    """
    found: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in PARAMETERS:
            raise InputError(f"openai: takes {', '.join(PARAMETERS)}; got {name!r}")
        try:
            found[name] = PARAMETERS[name](text)
        except ValueError:
            kind = "a whole number" if PARAMETERS[name] is int else "a number"
            raise InputError(f"{name} must be {kind}") from None
        if name in _CHOICES and text not in _CHOICES[name]:
            raise InputError(f"{name} must be one of {', '.join(_CHOICES[name])}")
    if "base_url" not in found:
        raise InputError(
            "openai:MODEL needs ?base_url=..., the server's address (for OpenAI itself "
            "https://api.openai.com/v1)"
        )
    return found


def endpoint_of(model: str, found: dict[str, Any]) -> Endpoint:
    """The endpoint that a URI's parameters describe."""
    plain = (
        "base_url",
        "words",
        "concurrency",
        "batch",
        "timeout",
        "retries",
        "tokens_per_minute",
        "price_sent",
        "price_received",
        "max_requests",
        "max_money",
    )
    draws = found.get("draws")
    return Endpoint(
        model,
        chat=found.get("endpoint") == "chat",
        key_name=found.get("key", "OPENAI_API_KEY"),
        addressed=None if draws is None else draws == "addressed",
        **{name: found[name] for name in plain if name in found},
    )


def vocabulary_of(found: dict[str, Any], entry: dict[str, Any]) -> Vocabulary:
    """The tokens, from the parameters or from the model's entry in /v1/models.

    Raises:
        InputError: where neither says what the tokens are.
    """
    told = _told(entry)
    if "tokens" in found:
        names = tuple(found["tokens"].split(","))
        texts: tuple[str, ...] | None = names
    elif "tokenizer" in found:
        names, texts = _tokenizer(Path(found["tokenizer"]))
    elif "vocabulary" in found:
        names, texts = tuple(str(i) for i in range(max(0, found["vocabulary"]))), None
    elif told is not None:
        names = texts = told.names
    else:
        raise InputError(
            "the server does not say what its tokens are; add tokens=a,b,..., "
            "tokenizer=FILE (a tokenizer.json) or vocabulary=V to the URI"
        )
    begin = told.begin if told is not None else ()
    if "begin" in found:
        begin = _ids(found["begin"])
    stop = found.get("stop", told.stop if told is not None else None)
    horizon = found.get("horizon", told.horizon if told is not None else None)
    if any(token < 0 for token in (*begin, stop or 0)):
        raise InputError("begin= and stop= are token ids of at least 0")
    return Vocabulary(names, texts, begin, stop, horizon, found.get("opening", ""))


def _ids(text: str) -> tuple[int, ...]:
    parts = [part for part in text.split(",") if part]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError("begin must be token ids, such as begin=1 or begin=1,5")
    return tuple(int(part) for part in parts)


def _told(entry: dict[str, Any]) -> Vocabulary | None:
    """What our own server says of its tokens; None where it says nothing, or nonsense."""
    told = entry.get("myna")
    if told is None:
        return None
    names, begin = told.get("alphabet"), told.get("begin")
    stop, horizon = told.get("stop"), told.get("horizon")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if not isinstance(begin, list) or not all(isinstance(token, int) for token in begin):
        return None
    if not all(isinstance(value, int | None) for value in (stop, horizon)):
        return None
    return Vocabulary(tuple(names), tuple(names), tuple(begin), stop, horizon)


def _tokenizer(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and texts of a tokenizer.json."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            "tokenizer=FILE needs the extra: pip install 'myna[transformers]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(f"no tokenizer can be read from {path}: {error}") from None
    ids = range(tokenizer.get_vocab_size(with_added_tokens=True))
    names = tuple(tokenizer.id_to_token(i) or f"<unused {i}>" for i in ids)
    return names, tuple(tokenizer.decode([i], skip_special_tokens=False) for i in ids)
