"""A loopback HTTP server for a FakeModel, bounded in requests and time, with bad lines.

Requests with one Idempotency-Key are billed once. A line fault strikes a request with a
probability given, by a generator with a seed:

    drop       the connection is closed before the answer
    delay      the answer comes after the client's time-out
    truncate   half of the announced body, then the connection is closed
    shorten    half of the body, announced as whole
    duplicate  the body twice, announced as one
    busy       429 with Retry-After
    broken     500
    garbage    200 with bytes that are no JSON
    hollow     200 with JSON that is no answer
"""

import contextlib
import json
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fake_model import Refusal

LINE_FAULTS = (
    "drop",
    "delay",
    "truncate",
    "shorten",
    "duplicate",
    "busy",
    "broken",
    "garbage",
    "hollow",
)


class Line:
    """Which requests are struck, by what; what was asked, and how often it was billed."""

    def __init__(self, rate=0.0, faults=LINE_FAULTS, seed=0, delay=1.0, most=200_000):
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.rate, self.faults, self.delay, self.most = rate, faults, delay, most
        self.requests = 0
        self.billed = {}
        self.struck = dict.fromkeys(faults, 0)
        self.headers, self.bodies = [], []
        self.keep = False
        self.last = None

    def strike(self):
        with self._lock:
            self.requests += 1
            if self.requests > self.most:
                return "over"
            if self._random.random() >= self.rate:
                return None
            fault = self._random.choice(self.faults)
            self.struck[fault] += 1
            return fault

    def bill(self, key):
        with self._lock:
            self.billed[key] = self.billed.get(key, 0) + 1


def _handler(model, line, api_key):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        disable_nagle_algorithm = True

        def log_message(self, *args):
            pass

        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            self._answer(self.rfile.read(size))

        def _answer(self, raw):
            fault = line.strike() if raw is not None else None
            if line.keep:
                line.headers.append(dict(self.headers))
                line.bodies.append(raw)
            if fault == "over":
                self._send(503, b'{"error": {"message": "this test server is used up"}}')
            elif fault == "drop":
                self._hang_up()
            elif fault == "busy":
                self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"})
            elif fault == "broken":
                self._send(500, b"<html>Internal Server Error</html>")
            elif fault == "garbage":
                self._send(200, b"\xff\xfe{]not json")
            elif fault == "hollow":
                self._send(200, b'{"object": "text_completion", "choices": []}')
            else:
                if fault == "delay":
                    time.sleep(line.delay)
                status, record = self._work(raw)
                self._finish(status, json.dumps(record).encode(), fault)

        def _finish(self, status, body, fault):
            if fault == "shorten":
                self._send(status, body[: len(body) // 2])
            elif fault == "duplicate":
                self._send(status, body + body)
            elif fault == "truncate":
                self._send(status, body[: len(body) // 2], size=len(body))
                self._hang_up()
            else:
                self._send(status, body)

        def _work(self, raw):
            if api_key and self.headers.get("Authorization") != f"Bearer {api_key}":
                given = self.headers.get("Authorization")
                return 401, {"error": {"message": f"Incorrect API key provided: {given}"}}
            try:
                if raw is None:
                    return 200, model.models()
                body = json.loads(raw)
                asked = {"/v1/completions": model.completions, "/v1/chat/completions": model.chat}
                if self.path not in asked:
                    return 404, {"error": {"message": f"no such path {self.path}"}}
                record = asked[self.path](body)
            except Refusal as refusal:
                return refusal.status, {"error": {"message": refusal.message}}
            line.bill(self.headers.get("Idempotency-Key"))
            return 200, record

        def _send(self, status, body, headers=(), size=None):
            head = [f"HTTP/1.1 {status} x", "Content-Type: application/json"]
            head += [f"Content-Length: {len(body) if size is None else size}"]
            head += [f"{name}: {value}" for name, value in dict(headers).items()]
            with contextlib.suppress(OSError):  # a client that gave up is no failure here
                self.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

        def _hang_up(self):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


@contextlib.contextmanager
def serving(model, line=None, api_key=None):
    """The base URL of a server that lives as long as the block."""
    server = Server(("127.0.0.1", 0), _handler(model, line or Line(), api_key))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
