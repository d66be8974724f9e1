"""The compiled form is the plain model: scores, laws, steps and draws, with and without a compiler."""

import dataclasses
import itertools
import json
import math

import catalogue
import naive
import pytest
import torch

from myna.app.cli import main
from myna.c_source import built
from myna.errors import FormatError, InputError
from myna.evaluate.speed import SAFE, compiled_safely, measure
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision
from myna.lowrank.step import Step
from myna.lowrank.student import State, strings
from myna.spec import Spec, numbered
from myna.teachers import compiled as module
from myna.teachers.compiled import CompiledModel
from myna.teachers.copies import load_copy, save_copy
from myna.teachers.uri import open_teacher

has_compiler = (
    built("teachers/fused_passes.c", "-DREAL=double", "-DBYTES=64", "-DRANK=0") is not None
)


def rows_of_one(generator, *shape):
    table = torch.rand(*shape, dtype=torch.float64, generator=generator) ** 2
    return table / table.sum(-1, keepdim=True)


def hidden(rank, tokens, horizon=9, stop=None, zeros=False):
    """A stationary hidden Markov model as it stands; with `zeros`, half the emissions are none."""
    generator = torch.Generator().manual_seed(rank)
    laws, change = rows_of_one(generator, rank, tokens), rows_of_one(generator, rank, rank)
    if zeros:
        laws[:, ::2] = 0.0
        laws /= laws.sum(1, keepdim=True)
    whole = change[:, None].expand(-1, tokens, -1).masked_fill((laws <= 0)[:, :, None], 0.0)
    spec = Spec(numbered(tokens), stop, horizon, "unset")
    return LowRankModel.of(spec, rows_of_one(generator, rank), (Step(laws, whole.contiguous()),))


def turned(model, apart=3.0):
    """The same language over a basis of histories this far apart: signed coefficients."""
    step, generator = model.steps[0], torch.Generator().manual_seed(9)
    alike = rows_of_one(generator, 1, step.rank)
    skew = apart * (
        torch.eye(step.rank).double() + 0.3 * rows_of_one(generator, step.rank, step.rank)
    )
    skew = skew + alike
    skew = skew / skew.sum(1, keepdim=True)
    back = torch.linalg.inv(skew)
    laws = skew @ step.laws
    moved = torch.einsum("ji,oik,kl->jol", skew, step.operators, back)
    change = torch.where(laws[:, :, None] > 0, moved / laws[:, :, None], 0.0)
    return LowRankModel.of(model.spec, model.first @ back, (Step(laws, change),))


def by_cut(signed=True):
    """Ranks 1, 3, 5 and 2 at four cuts, with signed changes of basis or without."""
    generator, ranks = torch.Generator().manual_seed(3), (1, 3, 5, 2, 1)
    steps = []
    for here, beyond in itertools.pairwise(ranks):
        change = rows_of_one(generator, here, 3, beyond)
        if signed and beyond > 1:
            change = 1.5 * change - 0.5 * change.flip(-1)
        steps.append(Step(rows_of_one(generator, here, 3), change))
    spec = Spec(numbered(3), None, 4, "unset")
    return LowRankModel.of(spec, torch.ones(1).double(), tuple(steps))


def nowhere():
    """After token 0 the coefficients are negative everywhere: the law is uniform by definition."""
    laws = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double()
    change = torch.full((2, 2, 2), -0.5, dtype=torch.float64)
    change[:, 1] = 0.5
    return LowRankModel.of(
        Spec(numbered(2), None, 5, "unset"),
        torch.tensor([0.5, 0.5]).double(),
        (Step(laws, change),),
    )


MODELS = {
    "signed": catalogue.signed_model,
    "rank 1": lambda: hidden(1, 3),
    "rank 2": lambda: hidden(2, 2),
    "rank 6": lambda: hidden(6, 5),
    "rank 6, turned": lambda: turned(hidden(6, 5)),
    "rank 17": lambda: hidden(17, 9),
    "rank 17, turned": lambda: turned(hidden(17, 9)),
    "rank 40, turned, blocks": lambda: turned(hidden(40, 20)),
    "stop token": lambda: hidden(5, 4, stop=3),
    "stop token, turned": lambda: turned(hidden(5, 4, stop=3)),
    "zeros": lambda: hidden(4, 6, zeros=True),
    "by cut": by_cut,
    "positive by cut": lambda: by_cut(signed=False),
    "parity": lambda: catalogue.learned(open_teacher(catalogue.ZOO[0])).student,
    "function with a stop": lambda: catalogue.learned(catalogue.function_teacher()).student,
    "copy": lambda: catalogue.learned(open_teacher("zoo:copy?n=3&k=2")).student,
    "nothing positive": nowhere,
    "long": lambda: hidden(4, 5, horizon=2000),
    "long, turned": lambda: turned(hidden(4, 5, horizon=2000)),
}


@pytest.fixture(params=MODELS, scope="module")
def plain(request):
    return MODELS[request.param]()


def any_strings(spec, seed=0):
    """Ragged, some empty, many improbable or impossible: every token equally often."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[]]
    for _ in range(150):
        length = int(torch.randint(0, spec.horizon + 1, (1,), generator=generator))
        row = torch.randint(0, spec.num_tokens, (length,), generator=generator).tolist()
        rows.append(row[: row.index(spec.stop) + 1] if spec.stop in row else row)
    return strings(rows)


def same(found, expected, within=1e-10):
    """Equal infinities, finite ones within a bound."""
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(found), finite)
    assert torch.equal(found[~finite], expected[~finite].to(found.dtype))
    assert bool(((found - expected)[finite].abs() < within).all())


def test_scores_are_the_plain_ones(plain):
    fast = CompiledModel(plain)
    assert not has_compiler or fast.passes is not None
    batch = any_strings(plain.spec)
    same(fast.score(batch), plain.score(batch))
    drawn = plain.sample(100, torch.Generator().manual_seed(1))
    same(fast.score(drawn), plain.score(drawn))
    assert fast.score(strings([])).shape == (0,)
    assert fast.score(strings([[], []])).tolist() == [0.0, 0.0]


def test_steps_and_laws_are_the_plain_ones(plain):
    fast = CompiledModel(plain)
    one, two = fast.initial(6), plain.initial(6)
    tokens = torch.arange(6) % plain.spec.num_tokens
    for t in range(min(plain.spec.horizon, 8)):
        same(fast.law(one), plain.law(two))
        read = (tokens + t) % plain.spec.num_tokens
        (one, seen), (two, wanted) = fast.step(one, read), plain.step(two, read)
        same(seen.log_prob, wanted.log_prob)
        assert one.position == two.position
        same(one.vector, two.vector, within=1e-10 * max(1.0, float(two.vector.norm())))


def test_draws_are_the_plain_ones(plain):
    one, two = (torch.Generator().manual_seed(4) for _ in range(2))
    fast, slow = CompiledModel(plain).sample(300, one), plain.sample(300, two)
    assert torch.equal(fast.tokens, slow.tokens) and torch.equal(fast.lengths, slow.lengths)
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=two))
    short = CompiledModel(plain).sample(5, one, max_tokens=2)
    assert int(short.lengths.max()) <= 2


def test_the_models_take_every_way():
    """Or the tests above would hold for ways that nothing takes."""
    ways = {name: CompiledModel(make()).fused for name, make in MODELS.items()}
    assert ways["rank 17"].positive and ways["rank 17"].shared
    assert ways["positive by cut"].positive and not ways["positive by cut"].shared
    assert not ways["signed"].positive and not ways["rank 6, turned"].positive
    assert ways["rank 40, turned, blocks"].blocks and not ways["rank 17, turned"].blocks
    assert {way.lanes for way in ways.values()} == {2, 4, 8}
    assert any(bool((CompiledModel(make()).score(any_strings(make().spec)) == -math.inf).any())
               for make in (MODELS["signed"], MODELS["copy"]))  # fmt: skip


def test_scores_are_the_talks_formulas():
    model = catalogue.signed_model()
    rows = naive.all_strings(model.spec)
    expected = torch.tensor([naive.talk_model(model, row) for row in rows]).double()
    same(CompiledModel(model).score(strings(rows)), expected)


def test_malformed_strings_are_refused_and_bad_states(plain):
    fast = CompiledModel(plain)
    with pytest.raises(InputError, match="tokens must lie"):
        fast.score(strings([[0], [plain.spec.num_tokens]]))
    with pytest.raises(InputError, match="tokens must lie"):
        fast.score(strings([[-1]]))
    with pytest.raises(InputError, match="at most"):
        fast.score(strings([[0] * (plain.spec.horizon + 1)]))
    if plain.spec.stop is not None:
        with pytest.raises(InputError, match="may only come last"):
            fast.score(strings([[plain.spec.stop, 0]]))


@pytest.mark.skipif(not has_compiler, reason="no C compiler here")
def test_what_c_would_read_beyond_is_refused():
    fast = CompiledModel(hidden(4, 6))
    with pytest.raises(InputError, match="lengths must lie"):
        fast.score(strings([[0, 1]])._replace(lengths=torch.tensor([3])))
    with pytest.raises(InputError, match="tokens must lie"):
        fast.step(fast.initial(1), torch.tensor([6]))
    with pytest.raises(InputError, match="coefficients"):
        fast.law(State(torch.ones(1, 3).double(), 0))
    with pytest.raises(InputError, match="coefficients"):
        fast.law(State(torch.ones(1, 4).float(), 0))


@pytest.mark.parametrize("precision", [Precision.DOUBLE, Precision.SINGLE])
def test_without_a_compiler_the_plain_model_answers(monkeypatch, precision):
    model = turned(hidden(6, 5))
    batch = any_strings(model.spec)
    expected = CompiledModel(model).score(batch)
    monkeypatch.setattr(module, "built", lambda *_: None)
    alone = CompiledModel(model, precision)
    assert alone.passes is None
    same(alone.score(batch), expected)
    state, _ = alone.step(alone.initial(2), torch.tensor([0, 1]))
    assert torch.equal(alone.law(state), model.law(state))
    drawn = alone.sample(20, torch.Generator().manual_seed(2))
    assert torch.equal(drawn.tokens, model.sample(20, torch.Generator().manual_seed(2)).tokens)
    assert "no C compiler" in measure(model, alone, drawn).binds


@pytest.mark.parametrize("name", ["rank 6", "rank 6, turned", "rank 40, turned, blocks", "by cut"])
def test_single_precision_is_near(name):
    model = MODELS[name]()
    drawn = model.sample(200, torch.Generator().manual_seed(0))
    fast, difference = compiled_safely(model, Precision.SINGLE, drawn)
    assert difference <= SAFE and fast.spec.fingerprint != model.spec.fingerprint
    same(fast.law(fast.initial(1)), model.law(model.initial(1)), within=1e-5)
    assert not has_compiler or difference > 0
    if has_compiler:
        assert fast.initial(1).vector.dtype == torch.float32


@pytest.mark.skipif(not has_compiler, reason="no C compiler here")
def test_single_precision_is_refused_where_it_differs():
    """Basis histories that nearly coincide: coefficients of 1e5 that cancel."""
    model = turned(hidden(6, 5), apart=1e-5)
    drawn = hidden(6, 5).sample(200, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="float32 is not safe") as refused:
        compiled_safely(model, Precision.SINGLE, drawn)
    assert "nats a token" in str(refused.value)


def test_half_precision_is_no_form():
    with pytest.raises(InputError, match="float64 or float32"):
        CompiledModel(catalogue.signed_model(), Precision.HALF)


@pytest.mark.parametrize("precision", [Precision.DOUBLE, Precision.SINGLE])
def test_saved_and_read_again(tmp_path, precision):
    fast = CompiledModel(hidden(6, 5), precision)
    save_copy(tmp_path / "s", fast, {})
    saved = load_copy(tmp_path / "s")
    assert isinstance(saved.model, CompiledModel) and isinstance(saved.low_rank, LowRankModel)
    assert saved.model.precision is precision and saved.model.spec == fast.spec
    batch = any_strings(fast.spec)
    assert torch.equal(saved.model.score(batch), fast.score(batch))
    text = json.loads((tmp_path / "s" / "model.json").read_text())
    assert text["version"] == 5 and text["compiled"] == {"precision": precision.value}
    for wrong in ("float16", 7):
        text["compiled"]["precision"] = wrong
        (tmp_path / "s" / "model.json").write_text(json.dumps(text))
        with pytest.raises(FormatError, match="Precision"):
            load_copy(tmp_path / "s")


def run(capsys, *arguments):
    """Exit status and the JSON printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["myna", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_the_command_saves_what_scores_alike(tmp_path, capsys):
    plain = turned(hidden(6, 5))
    save_copy(tmp_path / "plain", plain, {"teacher": "a table"})
    where = str(tmp_path / "fast")
    status, record = run(
        capsys, "compile", str(tmp_path / "plain"), "-o", where, "--strings", "50", "--json"
    )
    assert status == 0 and record["precision"] == "float64" and record["difference"] < 1e-10
    for pace in (record["plain"], record["compiled"]):
        assert pace["tokens_per_second"] > 0 and pace["step_microseconds"] > 0
    assert record["bytes_per_token"] == pytest.approx(8 + 8 * (8 * 78 + 36) / 9)
    expected = record["bytes_per_token"] * record["compiled"]["tokens_per_second"]
    assert record["bandwidth_fraction"] * record["copy_bandwidth"] == pytest.approx(expected)
    assert 0 < record["memory_fraction"] < record["bandwidth_fraction"] and record["binds"]
    saved = load_copy(tmp_path / "fast")
    assert saved.about["teacher"] == "a table"
    batch = any_strings(plain.spec)
    same(saved.model.score(batch), plain.score(batch))
    again = str(tmp_path / "again")  # a compiled copy is a plain one to every command
    status, record = run(
        capsys, "compile", where, "-o", again, "--strings", "50", "--float32", "--json"
    )
    assert status == 0 and record["precision"] == "float32"
    status, record = run(capsys, "info", again, "--json")
    assert status == 0 and record["ranks"] == [6]


def test_only_plain_copies_are_compiled(tmp_path, capsys):
    save_copy(tmp_path / "net", open_teacher("zoo:isan?dim=2&symbols=3&horizon=4").student, {})
    status, record = run(
        capsys, "compile", str(tmp_path / "net"), "-o", str(tmp_path / "fast"), "--json"
    )
    assert status == 2 and "no plain copy" in record["error"]
    assert not (tmp_path / "fast").exists()


def test_a_process_without_end_is_scored():
    model = dataclasses.replace(hidden(3, 4), spec=Spec(numbered(4), None, None, "unset"))
    drawn = model.sample(10, torch.Generator().manual_seed(0), max_tokens=3000)
    same(CompiledModel(model).score(drawn), model.score(drawn), within=1e-8)
