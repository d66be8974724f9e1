"""--budget: what it says, what it limits, over retries and over runs."""

import pytest
from fake_model import FakeModel
from server import Line, serving
from typer.testing import CliRunner

from myna.app.budget import Limits, budget_of, open_within, read_budget
from myna.app.cli import app
from myna.errors import BudgetExhausted, InputError
from myna.teachers.account import Account, Budget, Price
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

PARITY = open_teacher("zoo:parity?bits=4")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (None, Limits()),
        (["20000"], Limits(plain=20000)),
        (["2e4 queries"], Limits(plain=20000)),
        (["5tokens", "2.5money"], Limits(tokens=5, money=2.5)),
        (["7requests", "3"], Limits(plain=3, requests=7)),
    ],
)
def test_units(texts, found):
    assert read_budget(texts) == found


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["2h"], "a number and, if need be, a unit"),
        (["-3"], "a number and"),
        (["1.2.3"], "such as 20000"),
        (["2.5requests"], "a whole number"),
        (["3", "4queries"], "twice for one unit"),
    ],
)
def test_what_is_no_budget(texts, told):
    with pytest.raises(InputError, match=told):
        read_budget(texts)
    with pytest.raises(InputError, match="no next-token queries"):
        read_budget(["3queries"], queries=False)


def test_only_endpoints_take_requests_and_money():
    with pytest.raises(InputError, match=r"only endpoints \(openai:\) are paid in money"):
        open_within("zoo:parity?bits=3", Limits(money=1.0))
    with pytest.raises(InputError, match="max_money is in the teacher's address"):
        open_within("openai:m?base_url=http://127.0.0.1:1/v1&max_money=1", Limits(money=1.0))
    with pytest.raises(InputError, match="max_money needs prices"):
        open_within("openai:m?base_url=http://127.0.0.1:1/v1", Limits(money=1.0))
    with pytest.raises(InputError, match="needs a price"):
        Budget(money=1.0)


def test_prices():
    spent = Account(next_token_queries=10, completions=3, tokens_sent=40, tokens_received=20)
    plain = Price(sent=2.0, received=5.0, opening=1)
    assert plain.tokens(spent) == (40 + 13, 20 + 10)
    assert plain.of(spent) == pytest.approx((2 * 53 + 5 * 30) / 1e6)
    scored = Price(sent=1.0, opening=1, scored=4)  # four prompts a law, each a token longer
    assert scored.tokens(Account(next_token_queries=10, tokens_sent=40)) == (160 + 80, 40)
    crossed = Account(scored_prompts=3, scored_tokens=20)  # a prompt each, none for each token
    assert scored.tokens(crossed) == (20 + 3, 3)
    both = crossed + Account(tokens_sent=5, tokens_received=2)
    assert (both.queries, both.tokens) == (3, 27) and both - crossed == Account(0, 0, 5, 2)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """The URI of a server that was probed before, and the server's line."""
    path, line = tmp_path_factory.mktemp("probe") / "probe.json", Line(faults=("busy",), seed=3)
    with serving(FakeModel(PARITY), line) as url:
        run = CliRunner().invoke(app, ["probe", f"openai:fake?base_url={url}", "-o", str(path)])
        assert run.exit_code == 0, run.output
        yield f"openai:fake?base_url={url}&probe={path}", line


def test_requests_count_retries(probed):
    uri, line = probed
    before, line.rate = line.requests, 0.3
    teacher = open_within(uri, Limits(requests=12))
    with pytest.raises(BudgetExhausted, match="max_requests=12"):
        for number in range(16):
            teacher.laws(Prefixes.of([[number >> bit & 1 for bit in range(3)]]))
    line.rate = 0.0
    assert teacher.asker.transport.traffic.tries == 12
    assert line.requests - before == 11  # opening asks for the list of models, off the line
    assert line.struck["busy"] > 0


def test_the_probe_counts_too():
    with serving(FakeModel(PARITY), line := Line()) as url:
        with pytest.raises(BudgetExhausted, match="max_requests=10"):
            open_within(f"openai:fake?base_url={url}", Limits(requests=10))
        assert 0 < line.requests <= 10  # the list of models is not on the line


@pytest.mark.parametrize("kind", ["laws", "draws"])
def test_money_holds_over_all_runs_of_a_ledger(kind, probed, tmp_path):
    """Each run asks something new, at a unit of money a token; together they keep to 20."""
    uri = f"{probed[0]}&price_sent=1000000&price_received=1000000"
    paid, ended = [], 0
    for run in range(6):
        teacher = open_teacher(uri)
        limit = budget_of(teacher, Limits(money=20.0))
        with Ledger(teacher, limit, file=tmp_path / "x.ledger", job="learn") as ledger:
            before = teacher.asker.spent
            try:
                if kind == "laws":
                    row = [run % 2, run // 2 % 2, run // 4]
                    ledger.laws("learn").laws(Prefixes.of([row]))
                else:
                    view = ledger.samples("learn")
                    view.complete(Prefixes.of([[0, 1]]), 1, stream=Stream("learn", run))
            except BudgetExhausted as stop:
                assert "in money" in str(stop)
                ended += 1
            paid.append(teacher.asker.spent - before)
    assert 0 < ended < 6 and 14 <= sum(paid) <= 20


def test_on_the_command_line(probed, tmp_path):
    out = str(tmp_path / "copy")
    uri = f"{probed[0]}&price_sent=1&price_received=1"
    learn = ["learn", uri, "-o", out, "--verify", "20", "--overwrite"]
    run = CliRunner().invoke(app, [*learn, "--budget", "0.9money", "--budget", "5000requests"])
    assert run.exit_code == 0, run.output
    few = CliRunner().invoke(app, [*learn, "--budget", "3requests", "--yes"])
    assert few.exit_code == 1 and "budget exhausted" in few.output
    certify = ["certify", out, uri, "--access", "samples", "--budget", "1500tokens"]
    samples = CliRunner().invoke(app, certify)
    assert samples.exit_code == 0, samples.output
