"""Linear programs along strings, and the learner that grows their futures."""

import itertools
import json
import sys

import counting
import pytest
import torch
from scipy.optimize import linprog
from test_cli import myna
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import InputError, TeacherError
from myna.logits.provable import ProvableSettings, learn_provably
from myna.logits.report import LogitOutcome
from myna.lowrank import program
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.program import CutRows, ProgramModel, Walk
from myna.lowrank.student import strings
from myna.spec import Spec, numbered
from myna.teachers.copies import CopyTeacher
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.uri import open_teacher
from myna.teachers.zoo import LogitTwo, Parity, RandomIsan

BOUND = 1.5


def random_cuts(seed, horizon=5, o=3, rank=2, constraints=3):
    """Rows that no network explains: programs whose optimum is above zero."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    ranks = [1, *[rank] * (horizon - 1)]
    columns = [0, *[constraints] * (horizon - 1), 0]
    return tuple(
        CutRows(
            tuple((i,) for i in range(ranks[t])),
            normal(ranks[t], columns[t]),
            normal(ranks[t], o, columns[t + 1]),
            normal(ranks[t], o),
            normal(ranks[t], o, o),
        )
        for t in range(horizon)
    )


def naive_program(cuts, prefix, bound):
    """The program of a prefix written out once, solved by another interface: its optimum e."""
    t = len(prefix) - 1
    sizes = [cut.rank for cut in cuts[1 : t + 1]]
    starts = [1 + sum(sizes[:i]) for i in range(t)]
    matrix, right = [], []
    for s in range(1, t + 1):
        for f in range(cuts[s].own.shape[1]):
            row, constant = [0.0] * (1 + sum(sizes)), 0.0
            for i in range(cuts[s].rank):
                row[starts[s - 1] + i] += float(cuts[s].own[i, f])
            for i in range(cuts[s - 1].rank):
                moved = float(cuts[s - 1].after[i, prefix[s - 1], f])
                if s == 1:
                    constant += moved
                else:
                    row[starts[s - 2] + i] -= moved
            for sign in (1.0, -1.0):
                matrix.append([-1.0, *(sign * v for v in row[1:])])
                right.append(sign * constant)
    cost = [1.0] + [0.0] * sum(sizes)
    limits = [(0, None)] + [(-bound, bound)] * sum(sizes)
    done = linprog(cost, A_ub=matrix, b_ub=right, bounds=limits)
    assert done.status == 0
    return done.fun


def residual(cuts, prefix, coefficients):
    """The largest of the constraints' residuals, from their definition."""
    worst = 0.0
    for s in range(1, len(prefix)):
        moved = coefficients[s - 1] @ cuts[s - 1].after[:, prefix[s - 1]]
        worst = max(worst, float((coefficients[s] @ cuts[s].own - moved).abs().max()))
    return worst


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_programs_are_solved(seed, shortcut):
    """Square, wide and tall cuts; each prefix of a string, against the program written out."""
    cuts = random_cuts(seed, constraints=1 + seed % 4)
    walk = Walk(cuts, BOUND, shortcut=shortcut)
    string = torch.randint(3, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
    errors = []
    for t, token in enumerate(string):
        logits = walk.push(token)
        prefix = string[: t + 1]
        assert residual(cuts, prefix, walk.coefficients) <= walk.error + 1e-8
        assert all(float(c.abs().max()) <= BOUND + 1e-9 for c in walk.coefficients[1:])
        expected = walk.coefficients[t] @ cuts[t].following[:, token]
        torch.testing.assert_close(logits, expected)
        if t:
            errors.append(walk.error)
            assert walk.error == pytest.approx(naive_program(cuts, prefix, BOUND), abs=1e-8)
    assert errors == sorted(errors)
    assert errors[-1] > 1e-3 or seed % 4 == 0  # one constraint a cut can always be met


@pytest.mark.parametrize("shortcut", [True, False])
def test_a_bound_without_a_solution_is_doubled(shortcut):
    teacher = RandomIsan(dim=3, symbols=3, horizon=5).teacher()
    cuts = learn(teacher).student.cuts
    narrow = ProgramModel(teacher.spec, cuts, 0.3, 1e-7, shortcut=shortcut)
    drawn = teacher.sample(50, torch.Generator().manual_seed(3))
    torch.testing.assert_close(narrow.score(drawn), teacher.score(drawn), rtol=0, atol=1e-6)
    assert narrow.widened > 0 == narrow.without_solution
    hopeless = ProgramModel(teacher.spec, cuts, 0.01, 1e-7, shortcut=shortcut)
    gap = (hopeless.score(drawn) - teacher.score(drawn)).abs().max()
    assert hopeless.without_solution > 0 and 1e-3 < float(gap) < float("inf")


def test_a_model_is_a_function_of_the_prefix(monkeypatch):
    """Whatever was asked before, and however few programs are kept open."""
    spec = Spec(numbered(3), None, 5, "unset")
    rows = list(itertools.product(range(3), repeat=4))
    cuts = random_cuts(1)
    one = ProgramModel(spec, cuts, BOUND, 1e-7)
    forward = one.score(strings([list(r) for r in rows]))
    monkeypatch.setattr(program, "_WALKS", 1)
    monkeypatch.setattr(program, "_SOLVERS", 1)
    monkeypatch.setattr(program, "_LAWS", 3)
    two = ProgramModel(spec, cuts, BOUND, 1e-7)
    backward = torch.cat([two.score(strings([list(r)])) for r in reversed(rows)])
    assert torch.equal(forward, backward.flip(0))
    assert one.spec.fingerprint == two.spec.fingerprint and one.without_solution > 0


def test_cuts_that_do_not_fit_are_refused():
    cuts = random_cuts(0)
    with pytest.raises(InputError, match="rows of every cut"):
        ProgramModel(Spec(numbered(3), None, 6, "unset"), cuts, BOUND, 1e-7)
    with pytest.raises(InputError, match="of shape"):
        ProgramModel(Spec(numbered(4), None, 5, "unset"), cuts, BOUND, 1e-7)
    with pytest.raises(InputError, match="of shape"):
        ProgramModel(Spec(numbered(3), None, 5, "unset"), (*cuts[:4], cuts[3]), BOUND, 1e-7)
    spec = Spec(numbered(3), None, 4, "unset")
    with pytest.raises(InputError, match="empty history alone"):
        ProgramModel(spec, cuts[1:], BOUND, 1e-7)


def learn(teacher, budget=None, **settings):
    ledger = Ledger(teacher, Budget(queries=budget))
    return learn_provably(ledger, ProvableSettings(**settings), torch.Generator().manual_seed(0))


def worst_score(teacher, student):
    """The largest difference of log-probabilities over all whole strings."""
    spec = teacher.spec
    rows = list(itertools.product(range(spec.num_tokens), repeat=spec.horizon))
    batch = strings([list(row) for row in rows])
    return float((teacher.score(batch) - student.score(batch)).abs().max())


@pytest.mark.parametrize(
    "family",
    [
        RandomIsan(dim=3, symbols=3, horizon=5),
        RandomIsan(dim=4, symbols=3, horizon=5, varying=False),
        RandomIsan(dim=6, symbols=3, horizon=5, seed=1),
        Parity(bits=6, noise=0.1, seed=2),
        LogitTwo(length=7),
    ],
    ids=str,
)
def test_networks_of_known_rank_are_recovered(family):
    """Enough strings that every history was a candidate: exact at all strings, not most."""
    teacher = family.teacher()
    found = learn(teacher, verify_histories=10_000, max_strings=4096)
    report = found.report
    assert report.outcome is LogitOutcome.VERIFIED
    assert report.verification.clean and report.verification.histories >= 20_000
    assert worst_score(teacher, found.student) < 1e-6
    for kept, rank in zip(report.ranks, family.logit_ranks(), strict=True):
        assert kept == max(1, rank)


def test_witnesses_grow_the_futures():
    """Of parity's bits no one-token future tells anything: the label's word must be found."""
    found = learn(Parity(bits=5, noise=0.1, seed=2).teacher())
    assert found.report.epochs > 1
    assert any(len(word) > 1 for words in found.report.futures for word in words)


def test_the_solver_and_the_shortcut_agree():
    teacher = RandomIsan(dim=3, symbols=3, horizon=5).teacher()
    one, two = (
        learn(teacher, shortcut=shortcut, verify_histories=3000, max_strings=4096)
        for shortcut in (True, False)
    )
    assert one.report.ranks == two.report.ranks
    assert one.report.solves == 0 < two.report.programs <= two.report.solves
    drawn = teacher.sample(50, torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        one.student.score(drawn), two.student.score(drawn), rtol=0, atol=1e-6
    )


def test_a_token_may_end_the_sequence():
    draw = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    steps = tuple(IsanStep(normal(2, 3), 0.7 * normal(2, 3, 2)) for _ in range(5))
    spec = Spec(numbered(3, True), 2, 5, "unset")
    teacher = CopyTeacher(Isan.of(spec, normal(2), steps))
    found = learn(teacher, verify_histories=2000)
    assert found.report.outcome is LogitOutcome.VERIFIED
    drawn = teacher.sample(100, draw)
    gap = (teacher.score(drawn) - found.student.score(drawn)).abs().max()
    assert float(gap) < 1e-5


def test_every_query_is_counted():
    asked = counting.Counting(RandomIsan(dim=3, symbols=4, horizon=6).teacher())
    found = learn(asked)
    questions = asked.asked
    assert {kind for kind, _ in questions} == {"law"} and len(set(questions)) == len(questions)
    accounts = found.report.accounts
    assert sum(a.next_token_queries for a in accounts.values()) == len(questions)


def test_what_cannot_be_learned_is_said(monkeypatch):
    network = RandomIsan(dim=6, symbols=8, horizon=5).teacher()
    refused = learn(network, max_rank=4)
    assert refused.student is None and refused.report.outcome is LogitOutcome.NOT_LOW_RANK
    assert refused.report.refusal.at_least == 5
    stopped = learn(network, budget=200)
    assert stopped.report.outcome is LogitOutcome.BUDGET_EXHAUSTED
    spent = sum(a.next_token_queries for a in stopped.report.accounts.values())
    assert spent <= 200
    endless = CopyTeacher(
        Isan.of(
            Spec(numbered(8), None, None, "unset"),
            torch.ones(6).double(),
            RandomIsan(dim=6, symbols=8, varying=False).teacher().student.steps,
        )
    )
    with pytest.raises(InputError, match="needs a teacher with a horizon"):
        learn(endless)
    with pytest.raises(InputError, match="probability zero"):
        learn(FunctionTeacher(lambda _: [1.0, 0.0], ("a", "b"), horizon=3))
    with pytest.raises(TeacherError, match="whole next-token laws"):
        learn(as_samples(network))
    for wrong in ({"bound": 1.0}, {"allowed": 0.0}, {"max_epochs": 0}, {"mismatch": 1.5}):
        with pytest.raises(InputError):
            ProvableSettings(**wrong)


def test_where_the_budget_ends_the_report_is_of_the_model_that_is_left():
    teacher = LogitTwo(length=9).teacher()
    for budget in (10, 180):
        found = learn(teacher, budget, verify_histories=50, verify_strings=4)
        report = found.report
        assert report.outcome is LogitOutcome.BUDGET_EXHAUSTED
        assert report.programs > 0 or report.verification is None
        left = "before the first copy" if found.student is None else "the best copy so far"
        assert report.reason.endswith(left)


def test_few_epochs_leave_a_mismatch():
    found = learn(Parity(bits=5, noise=0.1, seed=2).teacher(), max_epochs=1)
    assert found.report.outcome is LogitOutcome.MISMATCH_LEFT
    assert found.student is not None and not found.report.verification.clean


def test_without_the_solver_nothing_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    asked = counting.Counting(RandomIsan(dim=3, symbols=4, horizon=6).teacher())
    with pytest.raises(InputError, match=r"pip install 'myna\[lp\]'"):
        learn(asked)
    assert asked.asked == []


def test_the_command_learns_saves_and_certifies(tmp_path):
    uri, out = "zoo:isan?dim=3&symbols=3&horizon=6", tmp_path / "s"
    done = myna("learn", uri, "-o", out, "--space", "logits", "--learner", "provable", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["learner"] == "provable" and record["outcome"] == "verified"
    assert record["logit_ranks"] == [1, 3, 3, 3, 3, 2]
    copy = open_teacher(f"student:{out}")
    drawn = copy.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(copy.score(drawn), open_teacher(uri).score(drawn), rtol=0, atol=1e-4)
    certified = json.loads(myna("certify", out, uri, "--json").stdout)
    assert certified["total_variation"]["estimate"] < 1e-6
    shown = CliRunner().invoke(
        app,
        ["learn", uri, "-o", str(tmp_path / "t"), *["--space", "logits", "--learner", "provable"]],
    )
    assert shown.exit_code == 0 and "linear program" in shown.stdout, shown.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "provable"], "belongs to --space logits"),
        (["--space", "logits", "--learner", "provable", "--stationary"], "do not fit"),
        (["--space", "logits", "--learner", "provable", "--max-tokens", "9"], "do not fit"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    done = CliRunner().invoke(app, ["learn", "zoo:isan", "-o", str(tmp_path / "s"), *options])
    assert isinstance(done.exception, InputError) and message in str(done.exception)
