"""Networks fitted to laws along text: the products, the data, the start, the fit, the command."""

import dataclasses
import json
import math

import naive
import pytest
import torch
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import BudgetExhausted, InputError, TeacherError
from myna.logits.affine import Affine, AffineNetwork
from myna.logits.fitted import FitSettings, Start, divergence, fit_network
from myna.logits.network_start import random_start, spectral_start
from myna.logits.text_laws import text_laws
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.student import Strings
from myna.lowrank.switched import switched_states
from myna.spec import Spec
from myna.teachers.copies import CopyTeacher
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import Completions
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def affine_teacher(width: int = 3, symbols: int = 6, horizon: int = 20) -> CopyTeacher:
    """A random stationary network with a constant coordinate, far from uniform."""
    generator = torch.Generator().manual_seed(5)
    start = random_start(symbols, width, generator)
    moves = torch.randn(symbols, width, width, generator=generator).double() / 2
    loud = Affine(
        start.first, start.move / 2, start.offset, moves, start.offsets, 2 * start.read, start.bias
    )
    spec = Spec(tuple("abcdef"[:symbols]), None, horizon, "")
    return CopyTeacher(AffineNetwork(loud).exported(spec))


def test_products_and_their_gradient(generator):
    """Against a plain loop, and against finite differences."""
    operators = torch.randn(4, 3, 3, generator=generator).double().requires_grad_()
    first = torch.randn(5, 3, generator=generator).double().requires_grad_()
    columns = torch.randint(4, (6, 5), generator=generator)
    states, x = switched_states(first, operators, columns), first
    for t, column in enumerate(columns):
        x = torch.stack([x[i] @ operators[column[i]] for i in range(5)])
        torch.testing.assert_close(states[t + 1], x)
    assert torch.autograd.gradcheck(switched_states, (first, operators, columns))


def test_laws_are_those_before_each_token():
    """Also where strings stop early; each prefix is counted."""
    teacher = open_teacher("zoo:copy?n=2&k=2")
    stopping = open_teacher("zoo:hmm?states=3&symbols=3&horizon=6&seed=2")
    for asked in (teacher, stopping):
        ledger = Ledger(naive.Opaque(asked, "laws"))
        found = text_laws(ledger.laws("learn"), 60, 6)
        assert 0 < ledger.total().next_token_queries <= found.total <= 60
        for row, laws, entropy in zip(*found, strict=True):
            for t in range(int((row >= 0).sum())):
                law = asked.laws(Prefixes.of([row[:t].tolist()]))[0].exp()
                torch.testing.assert_close(laws[t].double(), law, atol=1e-7, rtol=1e-6)
                surprise = -torch.special.xlogy(law, law).sum()
                assert abs(float(entropy[t] - surprise)) < 1e-6


def test_laws_stand_though_strings_stop():
    """Rounds until the mean string no longer fits; without a stop token one round, as ever."""
    stopping = open_teacher("zoo:registers?k=2&stop=0.3")
    for laws in (100, 400):
        ledger = Ledger(stopping)
        found = text_laws(ledger.laws("learn"), laws, 128)
        lengths = (found.tokens >= 0).sum(1)
        assert laws - float(lengths.double().mean()) < found.total <= laws
        assert ledger.total().tokens_received == found.total
        assert bool((found.laws.sum(2) - 1).abs()[found.tokens >= 0].max() < 1e-5)
        ended = found.tokens.gather(1, lengths[:, None] - 1)[:, 0] == stopping.spec.stop
        assert bool(ended[:-1].all())  # the last one alone is cut at what was left
    whole = text_laws(Ledger(affine_teacher()).laws("learn"), 219, 20)
    drawn = Ledger(affine_teacher()).laws("learn").complete(Prefixes.of([[]]), 10, max_tokens=20)
    assert torch.equal(whole.tokens, drawn.tokens[0])  # 19 laws are left, less than a string
    assert text_laws(Ledger(affine_teacher()).laws("learn"), 5, 20).total == 20


def test_an_empty_string_is_refused():
    class Silent(naive.Opaque):
        def __init__(self):
            super().__init__(affine_teacher(), "laws")
            self.complete = lambda prefixes, count, **_: Completions(
                torch.full((1, count, 1), -1), torch.zeros((1, count), dtype=torch.int64)
            )

    with pytest.raises(TeacherError, match="at least one token"):
        text_laws(Ledger(Silent()).laws("learn"), 100, 20)


def test_the_network_is_the_student_it_exports(generator):
    """Laws in single precision equal the exported network's; no operator stretches."""
    start = random_start(6, 4, generator)
    loud = Affine(*(3 * getattr(start, f) for f in vars(start)))
    network = AffineNetwork(loud)
    student = network.exported(Spec(tuple("abcdef"), None, 9, ""))
    tokens = torch.randint(6, (30, 9), generator=generator)
    laws, after = network.laws(network.initial(30), tokens[:, :5])
    rest, _ = network.laws(after, tokens[:, 5:])
    laws = torch.cat([laws, rest])
    score = laws.gather(2, tokens.T[:, :, None]).sum((0, 2)).double()
    wanted = student.score(Strings(tokens, torch.full((30,), 9)))
    torch.testing.assert_close(score, wanted, atol=1e-3, rtol=1e-4)
    inner = student.steps[0].operators[:, 1:, 1:]
    norms = torch.linalg.matrix_norm(inner, ord=2)
    assert float(norms.max()) < 1 + 1e-4 and float(norms.min()) > 1 - 1e-4
    assert abs(network.largest_norm() - float(norms.max())) < 1e-5
    assert student.steps[0].change[:, :, 0].T.tolist() == [[1, 0, 0, 0, 0]] * 6


def test_no_direction_hides_a_norm(generator):
    """Operators that send the all-ones vector to zero are bounded as well."""
    start = random_start(6, 4, generator)
    moves = torch.randn(6, 4, 4, generator=generator, dtype=torch.float64)
    moves = 3 * (moves - moves.mean(1, keepdim=True))
    loud = dataclasses.replace(start, move=torch.zeros_like(start.move), moves=moves)
    assert AffineNetwork(loud).largest_norm() < 1 + 1e-4


def test_a_spectral_start_is_near_a_network_of_its_width():
    """Exact features, regressions shrunk a little: far nearer than the best constant law."""
    ledger = Ledger(affine_teacher())
    fresh = text_laws(ledger.laws("held out"), 4000, 20)
    generator = torch.Generator().manual_seed(0)
    spectral = AffineNetwork(spectral_start(ledger.laws("start"), 60_000, 3, 20, generator))
    random = AffineNetwork(random_start(6, 3, generator))
    mean = fresh.laws.flatten(0, 1).mean(0).double()
    constant = -(fresh.laws.double() * mean.log()).sum(2) - fresh.entropy
    reached = divergence(spectral, fresh).mean
    assert reached < 0.1 * float(constant.mean()) < divergence(random, fresh).mean


@pytest.mark.parametrize("start", list(Start))
def test_fitting_finds_a_network(start):
    settings = FitSettings(
        dimension=5, laws=16_000, max_tokens=20, epochs=20, batch=64, segment=10, start=start,
        learning_rate=0.02,
    )  # fmt: skip
    teacher = affine_teacher()
    one = fit_network(Ledger(teacher), settings, torch.Generator().manual_seed(3))
    report = one.report
    assert report.held_out_kl < 0.01 < report.start_kl
    assert report.held_out_kl > 0.5 * report.fitted_kl[-1]
    assert sum(a.next_token_queries for a in report.accounts.values()) <= settings.laws
    fresh = text_laws(Ledger(teacher).laws("other"), 4000, 20)
    student, total = one.student, 0.0
    state = student.initial(len(fresh.tokens))
    for t in range(20):
        total += float((fresh.laws[:, t] * -student.law(state)).sum() - fresh.entropy[:, t].sum())
        state, _ = student.step(state, fresh.tokens[:, t])
    assert abs(total / fresh.total - report.held_out_kl) < 4 * report.half_width


def test_every_law_weighs_the_same_where_strings_stop():
    """Against the sum over all places of all strings, over their number."""
    ledger = Ledger(open_teacher("zoo:registers?k=1&stop=0.3"))
    fresh = text_laws(ledger.laws("held out"), 3000, 12)
    lengths = (fresh.tokens >= 0).sum(1)
    network = AffineNetwork(
        random_start(ledger.spec.num_tokens, 3, torch.Generator().manual_seed(1))
    )
    student, total, each = network.exported(ledger.spec), 0.0, []
    for row, length in enumerate(lengths.tolist()):
        state, here = student.initial(1), 0.0
        for t in range(length):
            law = student.law(state)[0]
            here -= float((fresh.laws[row, t] * law).sum() + fresh.entropy[row, t])
            if t + 1 < length:  # nothing is read after the stop token
                state, _ = student.step(state, fresh.tokens[row, t : t + 1])
        each.append(here / length)
        total += here
    found = divergence(network, fresh)
    assert lengths.min() < lengths.max() and found.tokens == int(lengths.sum())
    assert abs(found.mean - total / found.tokens) < 1e-5
    assert abs(found.mean - sum(each) / len(each)) > 0.02  # the mean of strings' means


def test_the_seed_decides_all():
    settings = FitSettings(dimension=4, laws=1500, max_tokens=20, epochs=1, batch=8)
    marks = [
        fit_network(Ledger(affine_teacher()), settings, torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    first, again, other = (found.student.spec.fingerprint for found in marks)
    assert first == again != other


def test_what_does_not_fit_is_refused():
    teacher = affine_teacher(horizon=3)
    with pytest.raises(InputError, match="4 tokens or more"):
        fit_network(Ledger(teacher), FitSettings(), torch.Generator())
    with pytest.raises(InputError, match="1,000 laws"):
        FitSettings(laws=10)
    with pytest.raises(InputError, match="dimension 2"):
        FitSettings(dimension=1)
    ledger = Ledger(affine_teacher(), Budget(queries=500))
    with pytest.raises(BudgetExhausted):
        fit_network(ledger, FitSettings(laws=2000, dimension=3), torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="more than 300 histories"):
        settings = FitSettings(laws=2000, dimension=301)
        fit_network(Ledger(affine_teacher()), settings, torch.Generator().manual_seed(0))


def test_a_stop_token_ends_the_copy(generator):
    spec = Spec(("a", "b", "."), 2, None, "")
    student = AffineNetwork(random_start(3, 2, generator)).exported(spec)
    assert isinstance(student, Isan) and isinstance(student.steps[0], IsanStep)
    assert not bool(student.steps[0].operators[2].any())
    drawn = student.sample(50, generator, max_tokens=30)
    last = drawn.tokens.gather(1, drawn.lengths[:, None] - 1)[:, 0]
    assert bool((last[drawn.lengths < 30] == 2).all())


def test_the_command(tmp_path):
    def myna(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    uri, out = "zoo:isan?dim=3&symbols=4&horizon=12", tmp_path / "net"
    command = ["learn", uri, "-o", out, "--space", "logits", "--learner", "fitted"]
    done = myna(*command, "--max-rank", 6, "--budget", 4000, "--epochs", 4, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["learner"] == "fitted" and len(record["fitted_kl"]) == 4
    assert math.isfinite(record["held_out_kl"]) and record["student"] == str(out)
    info = json.loads(myna("info", out, "--json").stdout)
    assert info["ranks"] == [6]
    shown = myna(*command, "--overwrite", "--budget", 4000, "--epochs", 1, "--start", "random")
    assert shown.exit_code == 0 and "nats a token" in shown.stdout
    for more, words in (
        (["--tolerance", "1e-3"], "belongs to exact laws"),
        (["--structure", "time-varying"], "one network for all cuts"),
        (["--access", "samples"], "needs --access laws"),
    ):
        refused = myna(*command, "--overwrite", *more)
        assert isinstance(refused.exception, InputError) and words in str(refused.exception)
    plain = myna("learn", uri, "-o", tmp_path / "t", "--epochs", 3)
    assert "belongs to --learner fitted" in str(plain.exception)
