"""Hidden Markov models recovered from students that are one only nearly, and `myna hmm` itself."""

import json

import numpy as np
import pytest
import torch
from catalogue import learned

from myna.app.cli import main
from myna.app.hmm_picture import hmm_chart
from myna.errors import FormatError, InputError
from myna.learn.asker import Asker
from myna.learn.baum_welch import EmSettings, HmmParameters, fit_hmm
from myna.learn.hidden_start import predicted_laws
from myna.learn.hmm_recovery import (
    drawn_evidence,
    factorised_start,
    lifted_climb,
    recover_hmm,
    whole_strings,
)
from myna.learn.recorded import recorded_evidence
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.spec import Spec, numbered
from myna.teachers.copies import save_copy
from myna.teachers.ledger import Ledger
from myna.teachers.npz import read_hmm
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

LANGUAGE = Spec(numbered(4), None, 12, "unset")
SHORT = EmSettings(tolerance_nats=1e-6)


def truth():
    moves = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]]).double()
    emits = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])
    start = torch.tensor([0.5, 0.3, 0.2])
    tables = (table.double() for table in (start, moves[None], emits[None]))
    return HmmParameters(*(table / table.sum(-1, keepdim=True) for table in tables))


def noisy(scale, generator):
    """The truth in a basis of histories, with noise in every operator: no model of any size."""
    model = truth().model(LANGUAGE)
    beliefs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]]).double()
    back = torch.linalg.inv(beliefs)
    operators = beliefs @ model.steps[0].operators @ back
    operators += scale * torch.randn(operators.shape, generator=generator, dtype=torch.float64)
    laws = operators.sum(2).T
    laws = laws / laws.sum(1, keepdim=True)
    step = Step(laws, operators.transpose(0, 1) / laws[:, :, None])
    return LowRankModel.of(LANGUAGE, model.first @ back, (step,))


def far(model, parameters):
    """Largest error of E and T, states matched by their emissions."""
    order = torch.cdist(parameters.emission[0], model.steps[0].laws, p=1).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    moves = model.transitions[0][order][:, order]
    gaps = model.steps[0].laws[order] - parameters.emission[0], moves - parameters.transition[0]
    return max(float(gap.abs().max()) for gap in gaps)


def test_a_noisy_student_is_polished_to_the_truth_from_the_teachers_answers(generator):
    student = noisy(1e-3, generator)
    evidence = drawn_evidence(truth().model(LANGUAGE), 1500, generator)
    held_out = whole_strings(drawn_evidence(truth().model(LANGUAGE), 1000, generator))
    model, told = recover_hmm(student, 3, evidence, held_out, generator, SHORT)
    assert told.tokens == 18_000
    assert far(model, truth()) < 0.1
    assert model.transitions is not None
    assert told.gain == pytest.approx(told.model_nats - told.student_nats) and told.gain > -2e-3


def test_its_own_strings_give_a_student_back(generator):
    student = noisy(1e-4, generator)
    evidence = drawn_evidence(student, 1500, generator)
    held_out = whole_strings(drawn_evidence(student, 1000, generator))
    model, told = recover_hmm(student, 3, evidence, held_out, generator, SHORT)
    assert far(model, truth()) < 0.1 and abs(told.gain) < 2e-3


def test_a_climb_from_factors_of_exact_predictions_ends_at_the_truth(generator):
    model = truth().model(LANGUAGE)
    read = drawn_evidence(model, 500, generator)
    start = factorised_start(predicted_laws(model, read), read, 3, generator)
    assert all(bool((table > 0).all()) for table in start.tables)
    evidence = drawn_evidence(model, 3000, generator)
    found, _ = fit_hmm(evidence, start, EmSettings(max_iterations=150))
    gaps = torch.cdist(truth().emission[0], found.emission[0], p=1)
    assert sorted(gaps.argmin(1).tolist()) == [0, 1, 2]
    assert float(gaps.min(1).values.max()) < 0.3


def test_entries_sent_to_zero_come_back(generator):
    """Prompts let L-BFGS climb over softmaxes, where an entry near zero has no slope."""
    drawn = drawn_evidence(truth().model(LANGUAGE), 2000, generator)
    evidence = drawn._replace(given=torch.arange(2000) % 4)
    start = truth()
    start.emission[0, 0, 2] = 1e-12
    start.emission[0, 0, 0] += 0.1
    settings = EmSettings(tolerance_nats=1e-9)
    stuck, _ = fit_hmm(evidence, start, settings)
    found, _ = lifted_climb(evidence, start, settings)
    assert float(stuck.emission[0, 0, 2]) < 1e-3
    assert float((found.emission - truth().emission).abs().max()) < 0.05


def test_another_number_of_states_starts_from_factors(generator):
    model = truth().model(LANGUAGE)
    evidence = drawn_evidence(model, 400, generator)
    for states in (1, 2, 5):
        found, told = recover_hmm(
            model, states, evidence, whole_strings(evidence), generator, SHORT
        )
        assert told.start.startswith("factorisation") and found.ranks == (states,)
        assert told.climb.trace[-1].log_likelihood >= told.climb.trace[0].log_likelihood
    assert told.model_nats > -np.log(4)  # better than the uniform law


def test_students_of_another_kind_are_refused(generator):
    varying = truth().model(LANGUAGE)
    varying = LowRankModel.of(LANGUAGE, varying.first, varying.steps * 2)
    evidence = drawn_evidence(truth().model(LANGUAGE), 20, generator)
    with pytest.raises(InputError, match="this one has 2 steps; learn with --stationary"):
        recover_hmm(varying, 3, evidence, whole_strings(evidence), generator, SHORT)


def test_recorded_answers_are_what_the_learner_held(tmp_path):
    path, teacher = tmp_path / "asked.ledger", open_teacher("zoo:hmm?states=2&symbols=2&horizon=3")
    with Ledger(teacher, seed=3, file=path, job="learn") as ledger:
        asker = Asker(ledger.samples("learn"), 10_000, count_prompts=False)
        asker.strings(30, None)
        asker.ask([(0,), (1, 1), ()], 7, None)
        expected = asker.evidence()
        ledger.samples("check").complete(Prefixes.of([[]]), 5)
    found = recorded_evidence(path, teacher.spec, "learn")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    whole = whole_strings(recorded_evidence(path, teacher.spec, "check"))
    assert whole.tokens.shape == (5, 3) and whole.lengths.tolist() == [3] * 5
    with pytest.raises(InputError, match="no completions on the stream 'audit'"):
        recorded_evidence(path, teacher.spec, "audit")
    other = open_teacher("zoo:hmm?states=2&symbols=3&horizon=3").spec
    with pytest.raises(InputError, match="of another language"):
        recorded_evidence(path, other, "learn")
    path.write_bytes(b"no ledger")
    with pytest.raises(FormatError):
        recorded_evidence(path, teacher.spec, "learn")


@pytest.fixture
def run(monkeypatch, capsys):
    def ran(*words):
        monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        return done.value.code, capsys.readouterr()

    return ran


def test_the_command_tells_uniqueness_names_and_pictures(run, tmp_path):
    copy, tables, shown = tmp_path / "c", tmp_path / "t.npz", tmp_path / "states.png"
    save_copy(copy, truth().model(LANGUAGE), {})
    words = ("hmm", copy, "-o", tables, "--names", "hmmlearn", "--picture", shown)
    code, said = run(*words, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["unique"]["proved"] and record["unique"]["another"] is None
    assert np.load(tables).files == ["startprob_", "transmat_", "emissionprob_"]
    torch.testing.assert_close(read_hmm(tables, 12).emission, truth().emission)
    assert shown.read_bytes()[:4] == b"\x89PNG" and shown.with_suffix(".html").exists()
    code, said = run("hmm", copy, "--states", 2)
    assert code == 1 and "no hidden Markov model with 2 states" in said.out
    code, said = run("hmm", copy, "--states", 4)
    assert code == 1 and "4 were asked for" in said.out


def test_what_cannot_be_recovered_says_what_is_in_the_way(generator):
    evidence = drawn_evidence(truth().model(LANGUAGE), 20, generator)
    held_out = whole_strings(evidence)
    for uri, structure, states, message in [
        ("zoo:registers?k=2", Structure.STATIONARY, 2, "without a stop token"),
        ("zoo:parity?bits=3", None, 2, "learn with --stationary"),
        ("zoo:hmm?states=2&symbols=3&horizon=4", Structure.STATIONARY, 0, "at least 1 state"),
    ]:
        student = learned(open_teacher(uri), structure=structure).student
        with pytest.raises(InputError, match=message):
            recover_hmm(student, states, evidence, held_out, generator, SHORT)


def test_tokens_in_square_brackets_are_no_markup(run, tmp_path):
    spec = Spec(("[INST]", "[/INST]", "[red]"), None, 5, "")
    laws, moves = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.ones(1, 1).double()
    model = HmmParameters(moves[0], moves[None], laws[None]).model(spec)
    save_copy(tmp_path / "c", model, {})
    code, said = run("hmm", tmp_path / "c")
    assert code == 0 and "[INST] 0.5, [/INST] 0.3, [red] 0.2" in said.out


def test_the_command_polishes(run, tmp_path, generator):
    copy = tmp_path / "c"
    save_copy(copy, noisy(1e-3, generator), {})
    code, said = run("hmm", copy)
    assert code == 1 and "or fewer fits" in said.out
    code, said = run("hmm", copy, "--polish", "--strings", 300, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["states"] == 3 and record["residual"] is None
    assert record["polish"]["tokens"] == 3600
    assert record["polish"]["gain"] > -0.02
    code, said = run("hmm", copy, "--polish", "--states", 2, "--strings", 300)
    assert code == 0 and "from factorisation" in said.out
    for words, message in [
        (("--strings", 50), "give --polish with it"),
        (("--polish", "--strings", 50, "--answers", "x"), "give one"),
        (("--picture", "states.pdf"), "ends in .png or .html"),
    ]:
        code, said = run("hmm", copy, *words)
        assert code == 2 and message in " ".join(said.err.split())


def test_the_command_polishes_on_recorded_answers(run, tmp_path):
    copy, asked = tmp_path / "c", tmp_path / "asked.ledger"
    learn = ("learn", "zoo:hmm?states=2&symbols=3&horizon=5&concentration=0.3&seed=1", "-o", copy)
    learn += ("--access", "samples", "--stationary", "--budget", 20_000, "--ledger", asked)
    assert run(*learn)[0] in (0, 1)
    code, said = run("hmm", copy, "--states", 2, "--polish", "--answers", asked, "--json")
    record = json.loads(said.out)
    assert code == 0 and record["states"] == 2 and 10_000 < record["polish"]["tokens"] <= 20_000


def test_a_picture_shows_every_state_and_transition():
    chart = hmm_chart(truth().model(LANGUAGE), "states").to_dict()
    bars, heat = chart["vconcat"][0]["hconcat"]
    assert [part["title"]["text"] for part in bars["vconcat"]] == [
        "state 0, starts 0.5",
        "state 1, starts 0.3",
        "state 2, starts 0.2",
    ]
    first = bars["vconcat"][0]["data"]["values"]
    assert first[0] == {"symbol": "0", "probability": pytest.approx(0.7, abs=1e-6)}
    cells = (
        heat["layer"][0]["data"]["values"] if "data" in heat["layer"][0] else heat["data"]["values"]
    )
    assert len(cells) == 9
    found = {(cell["from"], cell["to"]): cell["probability"] for cell in cells}
    assert found[1, 2] == pytest.approx(0.2, abs=1e-6)
