"""A bad line: 30% of requests struck, nothing wrong, nothing lost, each question billed once."""

import threading

import pytest
import torch
from fake_model import FakeModel, Fault
from hypothesis import given
from hypothesis import strategies as st
from server import LINE_FAULTS, Line, serving

from myna.errors import BudgetExhausted, InputError, TeacherError
from myna.teachers.api_answers import read_completions
from myna.teachers.asker import Asker, Question, Style
from myna.teachers.endpoint_purse import Size
from myna.teachers.endpoint_settings import Endpoint, Vocabulary
from myna.teachers.transport import Pace, Refused, Traffic, Transport, _seconds
from myna.teachers.uri import open_teacher

HMM = open_teacher("zoo:hmm?states=3&symbols=4&horizon=6")
VOCABULARY = Vocabulary(HMM.spec.alphabet, HMM.spec.alphabet, (4,), None, 6)
STYLE = Style(ids=True, batch=1, many=True)


def asker(url, sleep=lambda _: None, clock=lambda: 0.0, **settings):
    """No waiting between tries: their lengths are tested by themselves."""
    endpoint = Endpoint("fake", url, **{"timeout": 10.0, "retries": 20, **settings})
    return Asker(endpoint, VOCABULARY, Transport(endpoint, clock=clock, sleep=sleep))


def questions(count):
    """Distinct questions with one right answer each."""
    return [Question(((i % 4, i // 4 % 4),), max_tokens=3, shown=5, seed=i) for i in range(count)]


def test_a_bad_line_changes_nothing():
    asked = questions(100)
    with serving(FakeModel(HMM)) as url:
        right = asker(url).ask_all(asked, STYLE)
    line = Line(rate=0.3, delay=1.3, seed=3)
    with serving(FakeModel(HMM), line) as url:
        bad = asker(url, timeout=1.0)
        found = bad.ask_all(asked, STYLE)
        traffic = bad.transport.traffic
    assert found == right
    assert traffic.asked == traffic.answered == 100
    # a slow machine may time out once more
    assert traffic.tries >= line.requests >= 100 + sum(line.struck.values())
    assert sum(n > 0 for n in line.struck.values()) >= 7
    # a server that keeps Idempotency-Keys bills each question once
    assert len(line.billed) == 100 and None not in line.billed


@pytest.mark.parametrize("fault", LINE_FAULTS)
def test_each_line_fault_is_given_up_after_a_bound(fault):
    line = Line(rate=1.0, faults=(fault,), delay=0.4)
    with serving(FakeModel(HMM), line) as url:
        bad = asker(url, timeout=0.2, retries=2)
        with pytest.raises(TeacherError, match="gave no answer in 3 tries"):
            bad.ask_all(questions(1), STYLE)
        assert bad.transport.traffic == Traffic(asked=1, answered=0, tries=3)


def test_a_dead_server_is_a_teacher_error():
    with serving(FakeModel(HMM)) as url:
        pass
    with pytest.raises(TeacherError, match="the connection failed"):
        asker(url, retries=1).ask_all(questions(1), STYLE)


def test_what_is_waited_for_is_said_once_in_five_seconds(caplog):
    with serving(FakeModel(HMM)) as url:
        pass
    passed = [0.0]

    def sleep(seconds):
        passed[0] += 3.0 * (seconds > 0)

    with pytest.raises(TeacherError):
        asker(url, sleep, lambda: passed[0], retries=4).ask_all(questions(1), STYLE)
    said = [record.getMessage() for record in caplog.records if "myna" in record.name]
    tries = [line.split("waiting to try again ")[1] for line in said]
    assert tries == ["(2 of 5)", "(4 of 5)"]
    assert all(url in line and "the connection failed" in line for line in said)


def test_a_refusal_is_not_asked_again():
    line = Line()
    with serving(FakeModel(HMM, [Fault.IDS_REFUSED]), line) as url, pytest.raises(Refused):
        asker(url).ask_all(questions(1), STYLE)
    assert line.requests == 1


def test_answers_beside_a_failure_are_kept():
    """One bad question of a call fails it; the others are not asked (or billed) again."""
    asked = questions(12)
    wrong = Question(((0,),), max_tokens=1, shown=99)
    line = Line()
    with serving(FakeModel(HMM), line) as url:
        good = asker(url, concurrency=1)
        with pytest.raises(Refused):
            good.ask_all([*asked, wrong], STYLE)
        assert len(line.billed) == 12
        before = good.transport.traffic.asked
        again = good.ask_all(asked, STYLE)
        assert len(line.billed) == 12 and good.transport.traffic.asked == before
        assert again == asker(url).ask_all(asked, STYLE)


def test_at_most_so_many_at_once():
    class Watched(FakeModel):
        now, most, lock = 0, 0, threading.Lock()

        def completions(self, body):
            with self.lock:
                Watched.now += 1
                Watched.most = max(Watched.most, Watched.now)
            try:
                return super().completions(body)
            finally:
                with self.lock:
                    Watched.now -= 1

    with serving(Watched(HMM)) as url:
        asker(url, concurrency=3).ask_all(questions(40), STYLE)
    assert 1 <= Watched.most <= 3


def test_waits_double_with_jitter_and_heed_the_server():
    slept = []
    with serving(FakeModel(HMM), Line(rate=1.0, faults=("broken",))) as url:
        bad = asker(url, sleep=slept.append, retries=5, backoff=1.0)
        with pytest.raises(TeacherError):
            bad.ask_all(questions(1), STYLE)
    waits = [s for s in slept if s > 0]
    assert len(waits) == 5
    assert all(wait < 2.0 * 2**j for j, wait in enumerate(waits))
    assert len(set(waits)) == 5
    slept.clear()
    with serving(FakeModel(HMM), Line(rate=1.0, faults=("busy",))) as url:
        bad = asker(url, sleep=slept.append, retries=3)
        with pytest.raises(TeacherError):
            bad.ask_all(questions(1), STYLE)
    assert [s for s in slept if s > 0] == pytest.approx([0.01] * 3)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(60, 6000))
def test_tokens_per_minute_are_never_exceeded(sizes, rate):
    """Up to any start, the tokens of the requests before it took their full time."""
    pace = Pace(rate)
    starts = [pace.start(size, 0.0) for size in sizes]
    for i in range(1, len(sizes)):
        assert sum(sizes[:i]) <= starts[i] * rate / 60 + 1e-6
    assert starts == sorted(starts)


def test_a_hold_is_for_all():
    pace = Pace(None)
    assert pace.start(10, 5.0) == 5.0
    pace.hold(9.0)
    assert pace.start(10, 6.0) == 9.0 and pace.start(10, 11.0) == 11.0


def test_retry_after_is_read_with_care():
    assert _seconds("2.5") == 2.5 and _seconds("1e9") == 600.0
    for nonsense in (None, "", "-1", "nan", "tomorrow"):
        assert _seconds(nonsense) is None


def test_huge_answers_are_not_read(monkeypatch):
    monkeypatch.setattr("myna.teachers.transport._MOST_BYTES", 1000)
    question = Question(((0,),), count=50, max_tokens=4, shown=5)
    with (
        serving(FakeModel(HMM)) as url,
        pytest.raises(TeacherError, match="at most 1000 bytes"),
    ):
        asker(url, retries=1).ask(question, STYLE)


def test_one_question_many_forms():
    """Batches and n are only forms: the same draws come one by one."""
    question = Question(((0,), (1,), (2, 3)), max_tokens=2, shown=5, seed=7)
    with serving(FakeModel(HMM)) as url:
        one = asker(url)
        found = [
            one.ask(question, Style(ids, batch, True))
            for ids in (True, False)
            for batch in (1, 2, 8)
        ]
    assert all(answer == found[0] for answer in found)
    rows = torch.tensor([reply.tokens for row in found[0] for reply in row])
    assert rows.shape == (3, 2)


def test_the_answer_is_what_was_read():
    with serving(FakeModel(HMM)) as url:
        good = asker(url)
        body = good.body(questions(1)[0], STYLE)
        answer = good.transport.ask(
            "/completions", body, Size(1, 1), lambda t: read_completions(t, 1)
        )
    assert answer.model == "fake" and answer.sent == 3 and answer.received == 3


PRICES = {"price_sent": 1e6, "price_received": 1e6}  # one unit of money a token


def test_requests_are_never_more_than_the_limit():
    line = Line(rate=0.3, faults=("busy", "broken"), seed=5)
    with serving(FakeModel(HMM), line) as url:
        limited = asker(url, max_requests=30, concurrency=8)
        with pytest.raises(BudgetExhausted, match="max_requests=30"):
            limited.ask_all(questions(40), STYLE)
        assert limited.transport.traffic.tries == line.requests == 30
        # what came before the limit is kept: nothing is sent for it again
        assert limited.ask_all(questions(1), STYLE) == asker(url).ask_all(questions(1), STYLE)
        assert limited.transport.traffic.tries == 30


@pytest.mark.parametrize("most", [25.0, 60.0, 1000.0])
def test_money_is_reserved_before_it_is_spent(most):
    """A question of two prefix tokens, one to begin and three received costs 6 at most."""
    with serving(FakeModel(HMM)) as url:
        limited = asker(url, max_money=most, concurrency=8, **PRICES)
        asked = questions(20)
        if most >= 6 * len(asked):
            limited.ask_all(asked, STYLE)
            assert limited.transport.purse.money == pytest.approx(limited.spent) == 6 * len(asked)
            return
        with pytest.raises(BudgetExhausted, match="max_money"):
            limited.ask_all(asked, STYLE)
        assert most - 6 < limited.transport.purse.money <= most
        assert limited.transport.traffic.tries == most // 6


def test_what_a_server_refuses_costs_nothing_and_what_is_lost_stays_reserved():
    for faults, each in ((("busy",), 0), (("drop",), 6)):
        with serving(FakeModel(HMM), Line(rate=1.0, faults=faults)) as url:
            bad = asker(url, retries=2, max_money=1000.0, **PRICES)
            with pytest.raises(TeacherError, match="gave no answer"):
                bad.ask_all(questions(1), STYLE)
            assert bad.transport.purse.money == pytest.approx(3 * each)


def test_limits_need_sense():
    with pytest.raises(InputError, match="max_money needs prices"):
        Endpoint("m", "http://127.0.0.1:1/v1", max_money=1.0)
    with pytest.raises(InputError, match="max_requests must be at least 0"):
        Endpoint("m", "http://127.0.0.1:1/v1", max_requests=-1)


def test_retry_after_may_be_a_date():
    def now():
        return 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT

    assert _seconds("Tue, 14 Nov 2023 22:13:50 GMT", now) == 30.0
    assert _seconds("Tue, 14 Nov 2023 22:13:00 GMT", now) == 0.0
    assert _seconds("Fri, 14 Nov 2053 22:13:00 GMT", now) == 600.0
    assert _seconds("Tue, 99 Nov 2023", now) is None


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://example.org/v1", True),
        ("http://192.168.1.5:8000/v1", True),
        ("https://example.org/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_a_key_is_never_sent_in_the_clear(url, clear, monkeypatch):
    monkeypatch.setenv("MYNA_TEST_KEY", "sk-secret")
    endpoint = Endpoint("m", url, key_name="MYNA_TEST_KEY")
    assert endpoint.in_the_clear is clear
    if clear:
        with pytest.raises(InputError, match="unencrypted; use https") as caught:
            Transport(endpoint)
        assert "sk-secret" not in str(caught.value)
        monkeypatch.delenv("MYNA_TEST_KEY")
    Transport(endpoint)
