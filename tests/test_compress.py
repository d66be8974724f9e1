"""Smaller copies: limits are kept, what is said of them is true, and what cannot be is said."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from fake_model import FakeModel
from server import serving

from myna.app.cli import main
from myna.app.compress_command import _chart
from myna.errors import InputError
from myna.evaluate.between import divergence_rate
from myna.evaluate.teacher_cost import TeacherCost, teacher_cost
from myna.learn.compress import CompressSettings, compress
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.lowrank.student import strings
from myna.teachers.account import Account, Budget, Price
from myna.teachers.copies import load_copy, save_copy
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

ROOT = Path(__file__).parents[1]
HMM = "zoo:hmm?states=5&symbols=3&horizon=7&seed=5"


@pytest.fixture(scope="module")
def copy():
    result = learn_exact(
        Ledger(open_teacher(HMM)),
        ExactSettings(structure=Structure.TIME_VARYING),
        torch.Generator().manual_seed(0),
    )
    assert result.student is not None
    return result.student


def exact_rate(p_model, q_model) -> float:
    rows = itertools.product(range(3), repeat=7)
    whole = strings([list(row) for row in rows])
    p, q = p_model.score(whole), q_model.score(whole)
    return float((p.exp() * (p - q)).sum()) / 7


def smaller(copy, seed=1, **limits):
    settings = CompressSettings(strings=1000, **limits)
    return compress(copy, settings, torch.Generator().manual_seed(seed))


def test_the_limit_on_kl_holds_by_enumeration(copy):
    found = smaller(copy, max_kl=1e-3)
    report = found.report
    assert report.chosen.bytes < report.whole.bytes / 20
    assert report.chosen.kl.high <= 1e-3
    assert exact_rate(copy, found.student) == pytest.approx(
        report.chosen.kl.mean, abs=2 * report.chosen.kl.half_width
    )


def test_a_stationary_teachers_tables_are_tied(copy):
    report = smaller(copy, max_kl=1e-6).report
    assert "one table" in report.tying
    assert report.chosen.tied and len(report.chosen.ranks) == 1


def test_tables_that_differ_are_not_tied():
    result = learn_exact(
        Ledger(open_teacher("zoo:parity?bits=5")), ExactSettings(), torch.Generator().manual_seed(0)
    )
    report = smaller(result.student, max_kl=1e-6).report
    assert not report.chosen.tied
    assert max(report.chosen.ranks) == 2  # rank one would forget the parity


def test_limits_on_rank_and_bytes_hold(copy):
    found = smaller(copy, max_rank=2).report
    assert max(found.chosen.ranks) <= 2
    room = smaller(copy, max_bytes=500).report
    assert room.chosen.bytes <= 500
    assert all(c.kl.mean >= room.chosen.kl.mean for c in room.choices if c.bytes <= 500)


def test_the_whole_copy_always_meets_a_limit_on_kl(copy):
    assert smaller(copy, max_kl=0.0).report.chosen.bytes <= 8 * copy.num_parameters + 100


def test_a_limit_that_nothing_keeps_names_the_nearest(copy):
    with pytest.raises(InputError, match=r"nearest has \d+ bytes"):
        smaller(copy, max_bytes=10)
    with pytest.raises(InputError, match="nearest has"):
        smaller(copy, max_kl=1e-9, max_rank=1)


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(InputError, match="must keep"):
        CompressSettings()
    with pytest.raises(InputError, match="max_rank"):
        CompressSettings(max_rank=0)
    with pytest.raises(InputError, match="negative"):
        CompressSettings(max_kl=-1.0)


def test_rates_are_infinite_where_a_token_is_excluded(copy):
    step = copy.steps[0]
    laws = step.laws.clone()
    laws[:, 0] = 0
    barred = type(copy).of(copy.spec, copy.first, (type(step)(laws, step.change), *copy.steps[1:]))
    rate = divergence_rate(copy, barred, copy.sample(50, torch.Generator().manual_seed(0)))
    assert rate.mean == math.inf and rate.high == math.inf
    assert divergence_rate(copy, copy, copy.sample(50, torch.Generator().manual_seed(0))).mean == 0


@pytest.fixture(scope="module")
def registers():
    """A copy with signed weights, in which 1e-16 stands where nothing can come."""
    result = learn_exact(
        Ledger(open_teacher("zoo:registers?k=3")),
        ExactSettings(verify_histories=50),
        torch.Generator().manual_seed(0),
    )
    assert result.student is not None
    return result.student


@pytest.mark.parametrize("limits", [{"max_bytes": 1000}, {"max_rank": 6}, {"max_kl": 1e-4}])
def test_rounding_of_zeros_is_no_loss(registers, limits):
    """It counted as infinite, and a copy of rank 5 was taken, .37 away in total variation."""
    found = compress(
        registers,
        CompressSettings(strings=400, **limits),
        torch.Generator().manual_seed(0),
    )
    report = found.report
    assert report.whole.kl.mean < 1e-15
    assert max(report.chosen.ranks) == 6 and report.chosen.kl.high < 1e-6
    if "max_kl" in limits:
        assert report.chosen.bytes < report.whole.bytes / 2


def test_the_bound_of_a_refusal_is_one_that_is_kept(copy):
    with pytest.raises(InputError, match="at most") as refused:
        smaller(copy, max_rank=1, max_kl=1e-9)
    limit = float(str(refused.value).split("(at most ")[1].split(")")[0])
    assert smaller(copy, max_rank=1, max_kl=limit).report.chosen.kl.high <= limit


def command(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit status and output of `myna ...`."""
    monkeypatch.setattr("sys.argv", ["myna", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().out


def marks(chart) -> list[list[dict]]:
    """Rows drawn as squares, a panel each."""
    return [
        [
            row
            for layer in panel["layer"]
            if layer["mark"].get("shape") == "square"
            for row in layer["data"]["values"]
        ]
        for panel in chart["vconcat"]
    ]


def test_the_teacher_is_on_the_curve(copy):
    found = smaller(copy, max_kl=1e-3)
    bare = _chart(found, "c").to_dict()
    assert marks(bare) == [[], []] and len(bare["title"]["subtitle"]) == 1
    both = _chart(found, "c", TeacherCost(1_234, 56.0, 0)).to_dict()
    (size,), (pace,) = marks(both)
    assert (size["bytes"], pace["ns a token"]) == (1_234, 56.0)
    square = both["vconcat"][0]["layer"][-1]["encoding"]["x"]
    assert "value" in square and "KL" not in size  # a place, and no distance from the copy
    assert "1,234 bytes, 56 ns a token" in both["title"]["subtitle"][1]
    assert "left edge" in size["label"] and "KL 0" not in json.dumps(both)
    behind = _chart(found, "c", TeacherCost(None, 7e6, 350)).to_dict()
    assert [len(panel) for panel in marks(behind)] == [0, 1]
    assert "bytes not known" in behind["title"]["subtitle"][1]
    known = _chart(found, "c", TeacherCost(None, None, 0)).to_dict()
    assert marks(known) == [[], []] and "time not measured" in known["title"]["subtitle"][1]


def test_what_a_teacher_takes(copy):
    drawn = copy.sample(60, torch.Generator().manual_seed(0))
    teacher = open_teacher(HMM)
    ledger = Ledger(teacher)
    cost = teacher_cost(teacher, ledger, drawn)
    numbers = 5 + 5 * 5 + 5 * 3
    assert cost.bytes == 8 * numbers and cost.asked == 0 and ledger.accounts() == {}
    assert cost.nanoseconds > 0
    function = FunctionTeacher(lambda _: [0.2, 0.3, 0.5], ("0", "1", "2"), horizon=7)
    ledger = Ledger(function)
    cost = teacher_cost(function, ledger, drawn)
    prefixes = {tuple(row[:t]) for row in drawn.tokens[:50].tolist() for t in range(7)}
    assert cost.bytes is None and cost.asked == len(prefixes)
    assert ledger.account("time").next_token_queries == len(prefixes)
    again = teacher_cost(function, ledger, drawn)  # from memory: no time of the teacher's
    assert (again.nanoseconds, again.asked) == (None, 0)
    assert ledger.account("time").next_token_queries == len(prefixes)


CERTIFYING = sum(3**t for t in range(7))  # laws that enumerating HMM asks


def function_teacher(monkeypatch, calls, most=10**6):
    """The command's teacher: a function in HMM's alphabet, which fails after so many calls."""

    def law(prefix):
        calls.append(prefix)
        return [0.2, 0.3, 0.5] if len(calls) <= most else []

    teacher = FunctionTeacher(law, open_teacher(HMM).spec.alphabet, horizon=7)
    monkeypatch.setattr("myna.app.compress_command.open_within", lambda *_: teacher)


def timed(tmp_path, monkeypatch, capsys, copy, *more):
    """Status, JSON and messages of `myna compress` with a curve and a teacher."""
    save_copy(tmp_path / "copy", copy, {})
    words = ["compress", tmp_path / "copy", "-o", tmp_path / "small", "--max-kl", "0.001"]
    words += ["--strings", "100", "--teacher", HMM, "--curve", tmp_path / "curve", "--json", *more]
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), json.loads(printed.out), printed.err


def test_laws_that_certifying_asked_are_timed_anew(tmp_path, monkeypatch, capsys, copy):
    calls = []
    function_teacher(monkeypatch, calls)
    status, record, _ = timed(tmp_path, monkeypatch, capsys, copy)
    cost, seen = record["teacher_cost"], calls[CERTIFYING:]
    assert status == 0 and record["certificate"]["queries"]["next_token_queries"] == CERTIFYING
    assert len(seen) == len(set(seen)) == cost["asked"] > 0
    assert cost["nanoseconds"] is not None


@pytest.mark.parametrize(
    ("more", "most", "words"),
    [
        (["--budget", CERTIFYING + 7], 10**6, "left too little of the budget"),
        ([], CERTIFYING + 7, "must return 3 probabilities"),
    ],
)
def test_a_copy_outlives_a_timing_that_fails(
    tmp_path, monkeypatch, capsys, copy, more, most, words
):
    function_teacher(monkeypatch, calls := [], most)
    status, record, said = timed(tmp_path, monkeypatch, capsys, copy, *more)
    assert status == 0 and record["teacher_cost"] is None and len(calls) >= CERTIFYING
    assert "the teacher was not timed" in said and words in said
    assert load_copy(tmp_path / "small").low_rank is not None
    assert (tmp_path / "curve.html").is_file()


@pytest.mark.parametrize("budget", ["50", "5money", "500requests"])
def test_a_budget_without_a_teacher_is_refused(tmp_path, monkeypatch, capsys, copy, budget):
    save_copy(tmp_path / "copy", copy, {})
    words = ["compress", tmp_path / "copy", "-o", tmp_path / "small", "--max-kl", "0.001"]
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words), "--budget", budget])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "add --teacher" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_what_is_left_of_a_budget():
    spent = Account(next_token_queries=7, completions=1, tokens_sent=20, tokens_received=5)
    price = Price(sent=1e6, received=0.0)
    left = Budget(queries=10, tokens=20, money=30.5, price=price).less(spent)
    assert left == Budget(queries=3, tokens=0, money=10.5, price=price)


def test_bytes_of_teachers():
    automaton = open_teacher("zoo:registers?k=2")
    letters, states = automaton.spec.num_tokens - 1, automaton.num_states
    assert automaton.num_bytes == 8 * (states + letters * states**2 + states * (letters + 1))
    only = open_teacher(f"{HMM}&only=0,1")
    assert only.num_bytes == open_teacher(HMM).num_bytes
    transformer = open_teacher("hf:bundled?horizon=4")
    stored = (ROOT / "src/myna/data/bundled/model.safetensors").stat().st_size
    assert transformer.num_bytes == pytest.approx(2 * stored, rel=0.05)  # the file has halves


def test_the_command(tmp_path, monkeypatch, capsys, copy):
    def myna(*arguments):
        return command(monkeypatch, capsys, *arguments)

    folder, out = tmp_path / "copy", tmp_path / "small"
    save_copy(folder, copy, {})
    limits = ("compress", folder, "-o", out, "--max-kl", "0.001", "--strings", "500")
    status, printed = myna(*limits, "--curve", tmp_path / "curve", "--json")
    record = json.loads(printed)
    assert status == 0
    assert record["chosen"]["bytes"] < record["whole"]["bytes"]
    assert record["certificate"]["kl_nats"]["confidence"] == 1  # 3^7 strings: enumerated
    assert record["certificate"]["kl_nats"]["estimate"] < 7 * 0.001 * 1.2
    assert (tmp_path / "curve.html").is_file() and (tmp_path / "curve.png").is_file()
    assert list(load_copy(out).low_rank.ranks) == record["chosen"]["ranks"]
    assert myna(*limits)[0] == 2  # there is a copy already
    status, printed = myna(*limits, "--overwrite", "--teacher", HMM)
    assert status == 0
    assert "certificate against zoo:hmm" in printed and "ns a token" not in printed
    also = ("--overwrite", "--teacher", HMM, "--curve", tmp_path / "both")
    status, printed = myna(*limits, *also)
    assert status == 0 and "360 bytes, " in printed and "ns a token" in printed
    assert '"shape": "square"' in (tmp_path / "both.html").read_text()
    assert json.loads(myna(*limits, *also, "--json")[1])["teacher_cost"]["bytes"] == 360


def test_a_teacher_that_costs_money_is_not_asked_without_a_word(tmp_path, monkeypatch, copy):
    save_copy(tmp_path / "copy", copy, {})
    with serving(FakeModel(open_teacher(HMM))) as url:
        teacher = f"openai:fake?base_url={url}&price_sent=1000000"
        words = ["compress", tmp_path / "copy", "-o", tmp_path / "small", "--max-kl", "0.001"]
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words), "--teacher", teacher])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2 and not (tmp_path / "small").exists()


def test_the_teacher_is_asked_within_a_budget(tmp_path, monkeypatch, capsys, copy):
    save_copy(tmp_path / "copy", copy, {})
    words = ["compress", tmp_path / "copy", "-o", tmp_path / "small", "--max-kl", "0.001"]
    words += ["--strings", "500", "--teacher", HMM, "--budget", "50"]
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "50" in capsys.readouterr().err
