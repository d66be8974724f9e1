"""`myna learn --access samples`: options, budget, exit status, what is saved and shown."""

import dataclasses
import json
import sys

import pytest
import torch

from myna.app import learn_command
from myna.app.cli import main
from myna.app.sampled_output import rank_evidence
from myna.learn.sampled_report import SampledCut
from myna.lowrank.projected import ProjectedModel
from myna.teachers.copies import load_copy

PARITY = "zoo:parity?bits=4"


@pytest.fixture
def myna(monkeypatch, capsys):
    """The command in this process: its status, standard output and standard error."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["myna", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def test_json_says_what_was_learned_and_spent(myna, tmp_path):
    status, printed, _ = myna(
        "learn", PARITY, "-o", tmp_path / "s", "--access", "samples", "--budget", 20000, "--json"
    )
    record = json.loads(printed)
    assert record["access"] == "samples" and record["structure"] == "time-varying"
    assert status == (1 if record["check"]["contradicted"] else 0)
    assert record["ranks"] == [cut["rank"] for cut in record["cuts"]] and len(record["ranks"]) == 5
    assert all(cut["singular_values"] and cut["noise_edges"] for cut in record["cuts"])
    assert 15_000 < record["sampled_tokens"] <= 20_000
    for name, total in (("sampled", "sampled_tokens"), ("prompts", "prompt_tokens")):
        assert sum(part[name] for part in record["tokens"].values()) == record[total]
    assert set(record["tokens"]) == {"learn", "check"}
    assert record["check"]["standard_error"] > 0 and record["seconds"] > 0
    assert record["stages"][0]["stage"] == "spanner"
    assert record["student"] == str(tmp_path / "s")
    assert load_copy(tmp_path / "s").about["report"]["sampled_tokens"] == record["sampled_tokens"]


def test_counted_prompts_fit_in_the_budget(myna, tmp_path):
    command = ("learn", PARITY, "-o", tmp_path / "s", "--access", "samples", "--budget", 20000)
    record = json.loads(myna(*command, "--count-prompts", "--json")[1])
    assert 10_000 < record["sampled_tokens"] + record["prompt_tokens"] <= 20_000


@pytest.mark.parametrize("projection", ["hull", "box", "truncate"])
def test_projected_copies_are_saved_and_used(myna, tmp_path, projection):
    folder = tmp_path / "s"
    command = ("learn", PARITY, "-o", folder, "--access", "samples", "--budget", 8000)
    _, printed, _ = myna(*command, "--projection", projection)
    assert "outside K" in printed
    assert isinstance(load_copy(folder).model, ProjectedModel)
    status, printed, _ = myna("info", folder, "--json")
    assert status == 0 and json.loads(printed)["projection"] == projection
    drawn = myna("sample", folder, "-n", 4)[1]
    (tmp_path / "strings").write_text(drawn)
    scored = json.loads(myna("score", folder, tmp_path / "strings", "--json")[1])
    assert scored["whole"] == [True] * 4 and max(scored["log_probs_nats"]) < 0
    bounded = json.loads(myna("certify", folder, PARITY, "--json")[1])
    assert bounded["total_variation"]["samples"] == 32
    assert 0 < bounded["total_variation"]["high"] < 0.5


def test_stationary_is_a_shorthand_and_people_see_the_evidence(myna, tmp_path):
    teacher = "zoo:hmm?states=2&symbols=3&horizon=4"
    command = ("learn", teacher, "-o", tmp_path / "s", "--access", "samples", "--budget", 8000)
    status, printed, _ = myna(*command, "--stationary")
    assert status in (0, 1)
    for part in ("stationary, one basis", "noise edge", "sampled tokens", "standard error"):
        assert part in printed
    assert "nats a token after spanner" in printed
    assert len(load_copy(tmp_path / "s").low_rank.steps) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--projection", "hull"], "--projection belongs to learning from samples"),
        (["--count-prompts"], "--count-prompts belongs to learning from samples"),
        (["--access", "samples", "--verify", "5"], "--verify belongs to learning from laws"),
        (["--access", "samples", "--states", "3"], "--states belongs to --student hmm"),
        (["--access", "samples", "--structure", "test"], "needs --access laws"),
        (["--access", "samples", "--budget", "50"], "too small"),
        (["--stationary", "--structure", "time-varying"], "contradict each other"),
    ],
)
def test_what_does_not_fit_is_refused(myna, tmp_path, options, message):
    status, printed, errors = myna("learn", PARITY, "-o", tmp_path / "s", *options)
    assert status == 2 and printed == ""
    assert message in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_contradicted_prefixes_are_status_one_and_saved(myna, tmp_path, monkeypatch):
    honest = learn_command.learn_sampled

    def contradicted(*args):
        found = honest(*args)
        check = dataclasses.replace(found.report.check, contradicted=3)
        return dataclasses.replace(found, report=dataclasses.replace(found.report, check=check))

    monkeypatch.setattr(learn_command, "learn_sampled", contradicted)
    command = ("learn", PARITY, "-o", tmp_path / "s", "--access", "samples", "--budget", 8000)
    status, printed, _ = myna(*command)
    assert status == 1 and "3 of" in printed
    assert (tmp_path / "s" / "model.json").is_file()


def test_a_broken_answer_leaves_nothing_behind(myna, tmp_path, monkeypatch):
    """The teacher answers with a token that its alphabet does not have."""
    opened = learn_command.as_samples

    def broken(teacher):
        source = opened(teacher)
        answer = source.complete

        class Broken:
            spec = source.spec

            def complete(self, *args, **kwargs):
                given = answer(*args, **kwargs)
                return given._replace(tokens=torch.full_like(given.tokens, 9))

        return Broken()

    monkeypatch.setattr(learn_command, "as_samples", broken)
    command = ("learn", PARITY, "-o", tmp_path / "s", "--access", "samples", "--budget", 4000)
    status, printed, errors = myna(*command)
    assert status == 2 and printed == ""
    assert "9" in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rank_evidence_names_the_edge():
    cut = SampledCut(2, 1, (5.0, 1.0), (3.0, 2.0), ((0, 1),), 4, 16.0, 0)
    assert rank_evidence(cut) == "smallest kept 5, noise edge 3; next 1, edge 2"
    full = dataclasses.replace(cut, singular_values=(5.0,), noise_edges=(3.0,))
    assert rank_evidence(full) == "smallest kept 5, noise edge 3"
