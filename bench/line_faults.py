"""1,000 questions over a line that strikes 30% of requests: wrong, lost, billed twice?

    python line_faults.py [QUESTIONS]

The right answers are those of an undisturbed server, which is deterministic in (prompt, seed).
A server bills every request that it works on, once an Idempotency-Key.
"""

import sys
import time
from pathlib import Path

from results import save

from myna.teachers.asker import Asker, Question, Style
from myna.teachers.endpoint_settings import Endpoint, Vocabulary
from myna.teachers.transport import Transport
from myna.teachers.uri import open_teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_model import FakeModel
from server import Line, serving


def main(count: int = 1000) -> None:
    teacher = open_teacher("zoo:hmm?states=3&symbols=4&horizon=6")
    vocabulary = Vocabulary(teacher.spec.alphabet, teacher.spec.alphabet, (4,), None, 6)
    questions = [
        Question(((i % 4, i // 4 % 4, i // 16 % 4),), max_tokens=3, shown=5, seed=i)
        for i in range(count)
    ]
    style = Style(ids=True, batch=1, many=True)

    def asked(line):
        with serving(FakeModel(teacher), line) as url:
            endpoint = Endpoint("fake", url, timeout=1.0, retries=20, backoff=0.02)
            asker = Asker(endpoint, vocabulary, Transport(endpoint))
            start = time.perf_counter()
            found = asker.ask_all(questions, style)
            return found, asker.transport.traffic, time.perf_counter() - start

    right, _, undisturbed = asked(Line())
    line = Line(rate=0.3, delay=1.5, seed=1)
    found, traffic, seconds = asked(line)
    wrong = sum(a != b for a, b in zip(found, right, strict=True))
    record = {
        "questions": count,
        "wrong": wrong,
        "lost": traffic.asked - traffic.answered,
        "requests": traffic.tries,
        "struck": line.struck,
        "billed": len(line.billed),
        "worked_on": sum(line.billed.values()),
        "seconds": seconds,
        "seconds_undisturbed": undisturbed,
    }
    print(record)
    save("line_faults", record)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
