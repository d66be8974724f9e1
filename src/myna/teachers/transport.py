"""Requests to a server: many at once, each asked until it is answered or given up.

Try j of a question (j = 0, 1, ...) that is answered by 408, 409, 425, 429 or 5xx, by nothing
in time, by a broken connection or by text that is no answer is followed, j < retries, by
another after a wait of

    Retry-After seconds, where the server says so (then for every request in flight), else
    u x min(60, 2 x backoff x 2^j) seconds,   u uniform in (0, 1): full jitter

Any other status is final. All tries of a question carry one Idempotency-Key, so a server
that keeps such keys bills it once. Nothing is streamed: an answer is read whole or not at
all. Answers that came while another question of the same call failed are kept and
handed out when they are asked again. What is waited for is logged, a line in five seconds.
"""

import dataclasses
import json
import logging
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from myna.errors import InputError, TeacherError
from myna.teachers.api_answers import MalformedAnswer
from myna.teachers.endpoint_purse import Purse, Size
from myna.teachers.endpoint_settings import Endpoint, api_key

_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_LONGEST = 60.0  # seconds between two tries, where the server names no other time
_MOST_BYTES = 2**28  # of one answer
_SHOWN = 200  # characters of a server's message that ours repeats
_QUIET = 5.0  # seconds between two lines that say what is waited for

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Refused(TeacherError):
    """The server answered, and will not do what was asked.

    status: the HTTP status
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class _Again(Exception):
    """One try failed in a way that another may mend."""

    def __init__(self, why: str, wait: float | None = None, *, unpaid: bool = False):
        super().__init__(why)
        self.wait, self.unpaid = wait, unpaid


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What went over the line.

    asked: questions; answered: those with an answer
    tries: requests sent, so tries - asked were sent again
    """

    asked: int = 0
    answered: int = 0
    tries: int = 0


class Pace:
    """Starts of requests, spaced so that their tokens keep to a rate; no clock is read here.

    The n-th request may start at  max(now, end of the n-1st);  it lasts tokens x 60 / rate.
    """

    def __init__(self, tokens_per_minute: int | None):
        """No request yet."""
        self._rate = tokens_per_minute
        self._free = 0.0
        self._lock = threading.Lock()

    def start(self, tokens: int, now: float) -> float:
        """When a request of so many tokens may start; the time is taken."""
        with self._lock:
            start = max(now, self._free)
            if self._rate is not None:
                self._free = start + tokens * 60.0 / self._rate
            return start

    def hold(self, until: float) -> None:
        """Let nothing start before a time."""
        with self._lock:
            self._free = max(self._free, until)


class Transport:
    """The line to one endpoint; threads share it.

    clock, sleep: seconds, and how to wait for them
    """

    def __init__(
        self,
        endpoint: Endpoint,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Open no connection yet."""
        self._endpoint = endpoint
        self._client = _client(endpoint)
        weakref.finalize(self, self._client.close)
        self._pace = Pace(endpoint.tokens_per_minute)
        self.purse = Purse(endpoint)
        self._jitter = random.Random(seed)  # noqa: S311 - waits, no secrets
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self._kept: dict[str, Any] = {}
        self._said = -_QUIET  # when a line was last logged

    @property
    def traffic(self) -> Traffic:
        """What was sent so far."""
        return self._traffic

    def ask_all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        sizes: Sequence[Size],
        read: Callable[[str], T],
    ) -> list[T]:
        """The answer to each body, read; at most `concurrency` at once.

        sizes: the most that each may cost, for pace and purse

        Raises:
            BudgetExhausted: where max_requests or max_money does not allow the next one.
            TeacherError: for the first question that could not be answered; what the
                others brought is kept for when they are asked again.
        """
        keys = [path + json.dumps(body, sort_keys=True) for body in bodies]
        again = [self._kept.pop(key, None) for key in keys]
        failed: list[BaseException] = []

        def one(i: int) -> T | None:
            if again[i] is not None or failed:
                return again[i]
            try:
                return self.ask(path, bodies[i], sizes[i], read)
            except BaseException as error:  # an interrupt too leaves the others' answers kept
                failed.append(error)
                return None

        with ThreadPoolExecutor(min(self._endpoint.concurrency, max(1, len(bodies)))) as pool:
            found = list(pool.map(one, range(len(bodies))))
        if failed:
            pairs = zip(keys, found, strict=True)
            self._kept.update((key, answer) for key, answer in pairs if answer is not None)
            raise failed[0]
        return found  # pyright: ignore[reportReturnType] - no answer is None where none failed

    def ask(
        self, path: str, body: dict[str, Any] | None, size: Size, read: Callable[[str], T]
    ) -> T:
        """The answer to one question, asked again where that may help.

        Raises:
            BudgetExhausted: before a try that a limit does not allow.
            Refused: where the server will not; TeacherError: where all tries failed.
        """
        key, why = uuid.uuid4().hex, None
        self._count(asked=1)
        for attempt in range(self._endpoint.retries + 1):
            self.purse.take(size)
            start = self._pace.start(size.tokens, self._clock())
            self._sleep(max(0.0, start - self._clock()))
            self._count(tries=1)
            try:
                answer = read(self._send(path, body, key))
            except (_Again, MalformedAnswer) as error:
                why = error
                if getattr(error, "unpaid", False):
                    self.purse.settle(size, Size())
            except Refused:
                self.purse.settle(size, Size())
                raise
            else:
                self._count(answered=1)
                return answer
            if attempt < self._endpoint.retries:
                self._say(attempt, why)
                self._wait(attempt, getattr(why, "wait", None))
        raise TeacherError(
            f"{self._endpoint.model} at {self._endpoint.base_url} gave no answer in "
            f"{self._endpoint.retries + 1} tries, the last time because {why}; nothing of this "
            "question is kept, so try again later or raise retries="
        ) from None

    def _count(self, **more: int) -> None:
        with self._lock:
            record = dataclasses.asdict(self._traffic)
            self._traffic = Traffic(**{k: v + more.get(k, 0) for k, v in record.items()})

    def _say(self, attempt: int, why: Exception) -> None:
        with self._lock:
            now = self._clock()
            if now - self._said < _QUIET:
                return
            self._said = now
        _log.warning(
            "%s at %s: %s; waiting to try again (%d of %d)",
            self._endpoint.model,
            self._endpoint.base_url,
            why,
            attempt + 2,
            self._endpoint.retries + 1,
        )

    def _wait(self, attempt: int, told: float | None) -> None:
        if told is not None:
            self._pace.hold(self._clock() + told)
            return
        with self._lock:
            share = self._jitter.random()
        self._sleep(share * min(_LONGEST, 2 * self._endpoint.backoff * 2.0 ** min(attempt, 30)))

    def _send(self, path: str, body: dict[str, Any] | None, key: str) -> str:
        """The text of one answer with status 200."""
        import httpx2  # noqa: PLC0415 - comes with openai
        import openai  # noqa: PLC0415 - an extra

        options: Any = {"extra_headers": {"Idempotency-Key": key}}
        try:
            if body is None:
                reply = self._client.models.with_streaming_response.list(**options)
            elif path == "/completions":
                reply = self._client.completions.with_streaming_response.create(
                    **_known(body, ("model", "prompt")), **options
                )
            else:
                reply = self._client.chat.completions.with_streaming_response.create(
                    **_known(body, ("model", "messages")), **options
                )
            with reply as response:
                return _whole_text(response)
        except openai.APIStatusError as error:
            # The error itself may quote the key, and a traceback can show its frames' locals.
            failed = self._told(error)
        except openai.APITimeoutError:
            raise _Again(f"no answer came in {self._endpoint.timeout:g} s") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise _Again(f"the connection failed ({type(error).__name__})") from None
        except UnicodeDecodeError:
            raise MalformedAnswer("an answer must be text in UTF-8") from None
        self._refuse(*failed)

    def _told(self, error: Any) -> tuple[int, float | None, str]:
        """Status, Retry-After and message of an answer other than 200, the key taken out."""
        words = " ".join(str(error.message).split()).replace(self._client.api_key, "[key]")
        wait = _seconds(error.response.headers.get("Retry-After"))
        return int(error.status_code), wait, words[:_SHOWN]

    def _refuse(self, status: int, wait: float | None, words: str) -> NoReturn:
        """Raise what a status other than 200 means."""
        if status in _AGAIN:
            raise _Again(f"the server answered {status}", wait, unpaid=True)
        if status in (401, 403):
            name = self._endpoint.key_name
            raise InputError(
                f"{self._endpoint.base_url} refuses the API key ({status}); put a valid one into "
                f"the environment variable {name}, or name another variable with key="
            )
        raise Refused(
            f"{self._endpoint.model} at {self._endpoint.base_url} refuses the request "
            f"({status}): {words}",
            status,
        )


def _client(endpoint: Endpoint) -> Any:
    try:
        from openai import OpenAI  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            "openai: teachers need the extra of that name: pip install 'myna[http]'"
        ) from None
    # A server at home wants no key, but the client wants some text.
    key = api_key(endpoint) or "none"
    if key != "none" and endpoint.in_the_clear:
        raise InputError(
            f"the API key in {endpoint.key_name} would be sent to {endpoint.base_url} unencrypted; "
            "use https://, or name an empty variable with key= where the server wants no key"
        )
    return OpenAI(api_key=key, base_url=endpoint.base_url, max_retries=0, timeout=endpoint.timeout)


def _known(body: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A body for the client: what it insists on by name, all else passed on as it is."""
    rest = {name: value for name, value in body.items() if name not in names}
    return {**{name: body[name] for name in names}, "extra_body": rest}


def _whole_text(response: Any) -> str:
    """The body of an answer, bounded in size."""
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > _MOST_BYTES:
            raise MalformedAnswer(f"an answer may have at most {_MOST_BYTES} bytes")
        parts.append(part)
    return b"".join(parts).decode()


def _seconds(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Retry-After in seconds, at most ten minutes; None where it is neither number nor date."""
    try:
        value = float(header or "")
    except ValueError:
        try:
            value = max(0.0, parsedate_to_datetime(header or "").timestamp() - now())
        except (ValueError, OverflowError):
            return None
    return min(value, 600.0) if value >= 0 else None
