"""A teacher behind /v1/completions on the loopback, for clients that score prompts.

Prompts are token ids; id O is the beginning, which only comes first and is dropped. Answers
have echo and log-probabilities: entry i is log P(token i | tokens before it), the first token
of a prompt without a beginning counted from the start. After a whole string nothing follows;
its place among the generated tokens is filled with the beginning at log-probability 0.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from myna.teachers.prefixes import Prefixes
from myna.teachers.stepped import SteppedTeacher


def choice_of(teacher: SteppedTeacher, index: int, prompt: list[int]) -> dict[str, Any]:
    """The prompt and one greedy token, each with its log-probability and the likeliest one's."""
    spec = teacher.spec
    begins = prompt[:1] == [spec.num_tokens]
    row = prompt[1:] if begins else prompt
    whole = row[-1:] == [spec.stop] or len(row) == spec.horizon
    asked = [row[:t] for t in range(len(row) + (not whole))]
    laws = teacher.laws(Prefixes.of(asked))
    likeliest = laws.argmax(1).tolist()
    read = row if whole else [*row, likeliest[-1]]
    values = [float(laws[t, token]) for t, token in enumerate(read)]
    tops = [
        {spec.alphabet[best]: float(laws[t, best]), spec.alphabet[token]: values[t]}
        for t, (best, token) in enumerate(zip(likeliest, read, strict=True))
    ]
    names = [spec.alphabet[token] for token in read]
    before, after = ([["<begin>", None, None]] if begins else []), []
    if whole:
        after = [["<begin>", 0.0, {"<begin>": 0.0}]]
    columns = [*before, *zip(names, values, tops, strict=True), *after]
    tokens, token_logprobs, top_logprobs = map(list, zip(*columns, strict=True))
    told = {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs}
    return {"index": index, "text": " ".join(names), "finish_reason": "length", "logprobs": told}


@contextlib.contextmanager
def served(teacher: SteppedTeacher) -> Iterator[str]:
    """The address of the server, up while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompts = body["prompt"]
            batch = prompts if isinstance(prompts[0], list) else [prompts]
            choices = [choice_of(teacher, i, prompt) for i, prompt in enumerate(batch)]
            answer = json.dumps({"object": "text_completion", "choices": choices}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
