"""Teachers behind a server: the contract, the same student, and what must never be written."""

import functools
import json
import logging
import os
import subprocess
import sys
import traceback

import catalogue
import pytest
import test_teacher_contract as contract
import torch
from fake_model import FakeModel, Fault
from server import Line, serving

from myna.app.probe_command import probe_command
from myna.app.spending import confirm_spending, provenance, rejected
from myna.errors import BudgetExhausted, InputError, TeacherError
from myna.evaluate.certify import certify
from myna.evaluate.from_samples import certify_from_samples
from myna.learn.exact import learn_exact
from myna.learn.from_samples import learn_sampled
from myna.learn.report import ExactSettings
from myna.learn.sampled_report import SampledSettings
from myna.logits.matrix import logit_matrix
from myna.lowrank.student import strings
from myna.teachers.crossing import crossed_by_scores
from myna.teachers.endpoint_cost import most_cost
from myna.teachers.endpoint_open import asker_of, open_endpoint, teacher_of
from myna.teachers.endpoint_settings import Endpoint
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import Stream, as_samples, as_top_k
from myna.teachers.prefixes import Prefixes
from myna.teachers.probe import probe
from myna.teachers.uri import open_teacher

HMM = open_teacher("zoo:hmm?states=3&symbols=4&horizon=6")
STOPPING = catalogue.function_teacher(horizon=6)
SECRET = "sk-test-0123456789-never-written"
STREAM = Stream("test", 5)

ROADS = {  # how the same language is reached
    "laws": ([], {}),
    "text, one by one": ([Fault.IDS_REFUSED, Fault.BATCH_REFUSED, Fault.N_IGNORED], {}),
    "prompt scores": ([Fault.K_CAPPED], {}),
    "chat": ([], {"endpoint": "chat"}),
}


@pytest.fixture(scope="module", params=ROADS)
def road(request):
    """A teacher behind a server, and the teacher itself."""
    faults, parameters = ROADS[request.param]
    with serving(FakeModel(STOPPING, faults)) as url:
        yield open_endpoint("fake", {"base_url": url, **parameters}), STOPPING


def test_laws_are_those_of_the_teacher(road):
    teacher, original = road
    prefixes = contract.possible_prefixes(original)
    torch.testing.assert_close(teacher.laws(prefixes), original.laws(prefixes), rtol=0, atol=1e-12)
    assert teacher.laws(Prefixes.of([])).shape == (0, 3)


@pytest.mark.parametrize(
    "promise",
    [
        contract.test_levels_are_nested,
        contract.test_laws_are_laws,
        functools.partial(contract.test_laws_do_not_depend_on_the_batch, tolerance=1e-12),
        contract.test_top_laws_sort_and_add_up,
        contract.test_samples_only_hides_the_rest,
        contract.test_draws_are_addressed,
        contract.test_completions_end_where_the_language_ends,
        contract.test_bad_prefixes_are_refused,
        contract.test_top_k_needs_a_k_that_exists,
    ],
)
def test_the_contract_of_teachers(promise):
    with serving(FakeModel(STOPPING)) as url:
        promise(open_endpoint("fake", {"base_url": url}))


def test_fresh_draws_follow_the_laws():
    with serving(FakeModel(STOPPING)) as url:
        teacher = open_endpoint("fake", {"base_url": url, "draws": "fresh"})
        contract.test_completions_follow_the_laws(teacher)
        first, again = (teacher.complete(Prefixes.of([[]]), 30, stream=STREAM) for _ in range(2))
        assert not torch.equal(first.lengths, again.lengths) or not torch.equal(
            *(c.tokens for c in (first, again))
        )


def test_the_ledger_keeps_fresh_draws():
    with serving(FakeModel(STOPPING, [Fault.SEED_IGNORED])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        view = Ledger(as_samples(teacher)).samples("learn")
        first = view.complete(Prefixes.of([[], [1]]), 12)
        asked = teacher.asker.transport.traffic.asked
        again = view.complete(Prefixes.of([[], [1]]), 12)
        assert torch.equal(first.tokens, again.tokens)
        assert teacher.asker.transport.traffic.asked == asked


def test_a_top_k_teacher_shows_what_the_server_shows():
    with serving(FakeModel(HMM, [Fault.K_CAPPED, Fault.ECHO_IGNORED])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        prefixes = contract.possible_prefixes(HMM)
        top, exact = teacher.top_laws(prefixes), as_top_k(HMM, 2).top_laws(prefixes)
    assert torch.equal(top.tokens, exact.tokens)
    torch.testing.assert_close(top.log_probs, exact.log_probs, rtol=0, atol=1e-12)
    torch.testing.assert_close(top.log_rest.exp(), exact.log_rest.exp(), rtol=0, atol=1e-12)


def test_prompt_scores_are_the_chain_rule():
    with serving(FakeModel(HMM, [Fault.K_CAPPED])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        rows = strings([[0, 1, 2, 3, 0, 1], [2, 2], [3]])
        torch.testing.assert_close(teacher.score(rows), HMM.score(rows), rtol=0, atol=1e-12)


HISTORIES, FUTURES = Prefixes.of([[], [0], [1, 2]]), Prefixes.of([[0, 1], [2], [0, 1, 3, 3]])


@pytest.mark.parametrize(("places", "laws"), [("none", 0), ("last", 3), ("all", 4)])
def test_histories_and_futures_cost_a_scored_prompt_each(places, laws):
    direct = logit_matrix(HMM, HISTORIES, FUTURES, places=places).block(range(3), range(3))
    with serving(FakeModel(HMM, [Fault.K_CAPPED, Fault.BATCH_REFUSED])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        ledger = Ledger(teacher)
        asked = teacher.asker.transport.traffic.asked
        matrix = logit_matrix(ledger.laws("spectrum"), HISTORIES, FUTURES, places=places)
        served = matrix.block(range(3), range(3))
        asked = teacher.asker.transport.traffic.asked - asked
    torch.testing.assert_close(served.whole, direct.whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(served.logits, direct.logits, rtol=0, atol=1e-12)
    spent = ledger.total()
    assert (spent.scored_prompts, spent.scored_tokens) == (9, 3 * (0 + 1 + 2) + 3 * (2 + 1 + 4))
    assert spent.next_token_queries == 3 * laws
    assert asked == 9 + 4 * 3 * laws, "a law is four prompts here"


def test_scored_prompts_are_within_the_budget_and_follow_what_is_possible():
    with serving(FakeModel(HMM, [Fault.K_CAPPED])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        asked = teacher.asker.transport.traffic.asked
        view = Ledger(teacher, Budget(queries=8)).laws("spectrum")
        with pytest.raises(BudgetExhausted, match="8 next-token queries"):
            logit_matrix(view, HISTORIES, FUTURES, places="none").block(range(3), range(3))
        assert teacher.asker.transport.traffic.asked == asked, "nothing of it was asked"


def test_no_law_is_wanted_after_an_impossible_prompt():
    class Scores:
        """A server of the copy model, a word of two letters and then the same word."""

        language = open_teacher("zoo:copy?n=2&k=2")

        def prompt_scores(self, prompts):
            chances = [[0.5, 0.5, float(row[2] == row[0]), 1.0] for row in prompts.rows()]
            return torch.tensor(chances, dtype=torch.float64).log()

        def laws(self, prefixes):
            return self.language.laws(prefixes)

    histories, futures = Prefixes.of([[0, 1]]), Prefixes.of([[1, 1], [0, 1]])
    none = torch.zeros((0, 2), dtype=torch.int64)
    found = crossed_by_scores(Scores(), histories, futures, none)
    assert found.log_probs.tolist() == [[-torch.inf, 0.0]]
    assert crossed_by_scores(Scores(), histories, futures, torch.tensor([[0, 0]])).laws.shape[1]
    with pytest.raises(InputError, match="probability zero"):
        crossed_by_scores(Scores(), histories, futures, torch.tensor([[0, 1]]))


def student_of(teacher):
    ledger = Ledger(teacher)
    result = learn_exact(ledger, ExactSettings(), torch.Generator().manual_seed(0))
    return result, ledger.total()


@pytest.mark.parametrize("name", ["laws", "prompt scores", "chat"])
def test_the_same_student_by_every_road(name):
    faults, parameters = ROADS[name]
    original = open_teacher("zoo:hmm?states=2&symbols=3&horizon=4")
    direct, spent = student_of(original)
    with serving(FakeModel(original, faults)) as url:
        served, paid = student_of(open_endpoint("fake", {"base_url": url, **parameters}))
    assert served.report.ranks == direct.report.ranks == (1, 2, 2, 2)
    assert paid == spent
    batch = original.sample(300, torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        served.student.score(batch), direct.student.score(batch), rtol=0, atol=1e-9
    )


def test_a_stop_that_the_server_only_tells_is_put_back():
    """Servers say finish_reason stop and may leave the token out of tokens and text."""
    with serving(FakeModel(STOPPING, [Fault.IDS_REFUSED, Fault.LOGPROBS_IGNORED])) as url:
        drawn = open_endpoint("fake", {"base_url": url}).complete(
            Prefixes.of([[]]), 40, stream=STREAM
        )
    ends = drawn.tokens[0, torch.arange(40), drawn.lengths[0] - 1]
    short = drawn.lengths[0] < 6
    assert bool(short.any()) and bool((ends[short] == 2).all())


def test_a_wrong_horizon_is_noticed():
    """A server that ends its strings earlier than was declared cuts completions short."""
    with serving(FakeModel(HMM)) as url:
        asker = asker_of("fake", {"base_url": url})
        profile = probe(asker)
        longer = asker_of("fake", {"base_url": url, "horizon": "9"})
        with pytest.raises(TeacherError, match="ends after 6 of 9 tokens"):
            teacher_of(longer, profile).complete(Prefixes.of([[]]), 2, stream=STREAM)


def test_tokens_that_no_one_described():
    with serving(FakeModel(HMM, bare=True)) as url:
        with pytest.raises(InputError, match="vocabulary=V"):
            open_endpoint("fake", {"base_url": url})
        told = {"base_url": url, "begin": "4", "horizon": "6"}
        for how in ({"vocabulary": "4"}, {"tokens": "0,1,2,3"}):
            teacher = open_endpoint("fake", {**told, **how})
            exact = HMM.laws(Prefixes.of([[1]]))
            torch.testing.assert_close(teacher.laws(Prefixes.of([[1]])), exact)
            assert teacher.spec.alphabet == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "needs ?base_url="),
        ({"base_url": "ftp://x"}, "must be the address of a server"),
        ({"base_url": f"http://me:{SECRET}@127.0.0.1/v1"}, "must hold no user"),
        ({"base_url": f"http://127.0.0.1/v1?api-key={SECRET}"}, "must hold no user"),
        ({"base_url": "http://127.0.0.1/v1", "api_key": SECRET}, "openai: takes"),
        ({"base_url": "http://127.0.0.1/v1", "horizon": "many"}, "horizon must be a whole number"),
        ({"base_url": "http://127.0.0.1/v1", "endpoint": "both"}, "must be one of"),
        ({"base_url": "http://127.0.0.1/v1", "concurrency": "0"}, "must be above 0"),
        ({"base_url": "http://127.0.0.1/v1", "timeout": "nan"}, "must be above 0"),
        ({"base_url": "http://127.0.0.1/v1", "price_sent": "-1"}, "must be at least 0"),
    ],
)
def test_bad_parameters_are_refused_without_repeating_secrets(parameters, told):
    with pytest.raises(InputError) as error:
        open_endpoint("fake", parameters)
    assert told in str(error.value) and SECRET not in str(error.value)


def test_costs_are_upper_bounds():
    with serving(FakeModel(HMM)) as url:
        prices = {"price_sent": "2", "price_received": "8"}
        teacher = open_endpoint("fake", {"base_url": url, **prices})
        before = teacher.asker.spent
        _, spent = student_of(teacher)
        cost = most_cost(teacher, spent.next_token_queries, 0)
        assert teacher.asker.spent - before <= cost.tokens
        assert cost.tokens == spent.next_token_queries * (1 + 5 + 1)
        assert cost.money == pytest.approx((2 * cost.sent + 8 * cost.received) / 1e6)
        assert most_cost(teacher, None, 0) is None
        drawn = most_cost(teacher, 0, 100)
        assert (drawn.sent, drawn.received) == (600, 100)


def test_the_key_is_sent_and_never_written(tmp_path, caplog):
    """One run of the command line with debug logs: every line and every file is searched."""
    environment = {**os.environ, "OPENAI_API_KEY": SECRET, "OPENAI_LOG": "debug"}
    line = Line()
    line.keep = True
    out = tmp_path / "copy"
    with serving(FakeModel(open_teacher("zoo:parity?bits=3")), line, api_key=SECRET) as url:
        uri = f"openai:fake?base_url={url}"
        commands = [
            ["probe", uri, "-o", tmp_path / "probe.json", "--json"],
            ["learn", f"{uri}&probe={tmp_path}/probe.json", "-o", out, "--json"],
            ["learn", f"{uri}&key=OTHER_KEY", "-o", tmp_path / "other"],
        ]
        done = [_myna(command, environment | {"OTHER_KEY": SECRET[:-1]}) for command in commands]
    assert [d.returncode for d in done] == [0, 0, 2]
    assert "refuses the API key (401)" in done[2].stderr
    assert any(f"Bearer {SECRET}" in headers.values() for headers in line.headers)
    printed = "".join(d.stdout + d.stderr for d in done)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET[:-1] not in printed and SECRET[:-1].encode() not in kept
    assert json.loads((tmp_path / "probe.json").read_text())["access"] == "laws"
    about = b'"probe"'
    assert about in kept and b"alignment" in kept


def _myna(arguments, environment):
    return subprocess.run(
        [sys.executable, "-c", "from myna.app.cli import main; main()", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_key_is_in_no_repr_and_no_traceback(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(FakeModel(HMM), api_key="another") as url:
        asker = None
        try:
            asker = asker_of("fake", {"base_url": url})
        except InputError as error:
            text = "".join(
                traceback.TracebackException.from_exception(error, capture_locals=True).format()
            )
            assert SECRET not in text
        assert asker is None
    with serving(FakeModel(HMM), api_key=SECRET) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        assert SECRET not in repr(teacher) + repr(teacher.spec) + repr(teacher.asker)
        assert SECRET not in repr(vars(teacher)) + repr(vars(teacher.asker))
        assert SECRET not in repr(vars(teacher.asker.transport)) + repr(teacher.profile)


def test_money_is_not_spent_without_a_word(capsys):
    with serving(FakeModel(open_teacher("zoo:parity?bits=3"))) as url:
        teacher = open_endpoint("fake", {"base_url": url, "price_sent": "1000000"})
        with pytest.raises(InputError, match=r"up to 200\.00 for 250 tokens; add --yes"):
            confirm_spending(teacher, queries=50, generated=0, yes=False)
        with pytest.raises(InputError, match="nothing bounds what this costs"):
            confirm_spending(teacher, queries=None, generated=0, yes=False)
        confirm_spending(teacher, queries=50, generated=0, yes=True)
        assert "this can cost up to 200.00" in capsys.readouterr().err
        free = open_endpoint("fake", {"base_url": url})
        confirm_spending(free, queries=None, generated=0, yes=False)


def test_the_spending_question_sees_through_a_sub_alphabet(capsys):
    for faults, message in ((set(), "up to"), ({Fault.LOGPROBS_IGNORED}, "nothing bounds")):
        with serving(FakeModel(HMM, faults)) as url:
            uri = f"openai:fake?base_url={url}&price_sent=10&only=%230,%231"
            with pytest.raises(InputError, match=message):
                confirm_spending(open_teacher(uri), queries=10**6, generated=10**6, yes=False)
            kept = open_teacher(f"{uri}&max_money=0.5")
            confirm_spending(kept, queries=10**6, generated=10**6, yes=False)
            assert "max_money=0.5 is kept" in capsys.readouterr().err
            assert "probe" in provenance(kept)


def test_tokens_thrown_away_are_told():
    with serving(FakeModel(HMM, {Fault.LOGPROBS_IGNORED})) as url:
        teacher = open_teacher(f"openai:fake?base_url={url}&only=%230,%231")
        assert rejected(teacher) == {}
        teacher.complete(Prefixes.of([[]]), 20, stream=STREAM)
        assert rejected(teacher)["rejected_tokens"] == provenance(teacher)["rejected_tokens"] > 0
    assert rejected(HMM) == {}


def test_probe_command_refuses_what_is_no_endpoint():
    with pytest.raises(InputError, match="myna probe asks a server"):
        probe_command("zoo:parity?bits=3")


def test_endpoints_describe_themselves():
    assert logging.getLogger("openai").handlers == []
    with pytest.raises(InputError, match="name of a model"):
        Endpoint("", "http://127.0.0.1:8000/v1")


def test_a_run_from_samples_over_a_server_gives_an_interval_that_overlaps():
    """Learned and certified from the server's own completions, and from the teacher's laws."""
    original = open_teacher("zoo:hmm?states=2&symbols=3&horizon=4")
    with serving(FakeModel(original)) as url:
        served = as_samples(open_endpoint("fake", {"base_url": url, "draws": "fresh"}))
        ledger = Ledger(served, Budget(sampled_tokens=8_000))
        found = learn_sampled(ledger, SampledSettings(8_000), torch.Generator().manual_seed(0))
        by_samples = certify_from_samples(
            Ledger(served, Budget(tokens=40_000)).samples("certify"),
            found.student,
            budget_tokens=40_000,
            generator=torch.Generator().manual_seed(1),
        ).total_variation
    by_laws = certify(Ledger(original).laws("certify"), found.student).total_variation
    assert by_samples.low <= by_laws.high and by_laws.low <= by_samples.high
    assert by_laws.high < 0.2
