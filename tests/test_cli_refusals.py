"""What the command line refuses: one sentence, the right status, nothing lost or left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from myna.app import cli, picture
from myna.errors import InputError
from myna.evaluate.certify import Method, certify
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings, Structure
from myna.teachers.copies import save_copy
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

PARITY = "zoo:parity?bits=4"
SHELL = [sys.executable, "-m", "myna"]


@pytest.fixture
def myna(monkeypatch, capsys):
    """Run a command here: its status, and what it wrote to each stream."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["myna", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        written = capsys.readouterr()
        return status, written.out, " ".join(written.err.split())

    return run


def learned(uri, folder, **settings):
    """A copy in a folder, without the command line."""
    ledger = Ledger(open_teacher(uri), seed=0)
    result = learn_exact(ledger, ExactSettings(**settings), torch.Generator().manual_seed(0))
    assert result.student is not None
    save_copy(folder, result.student, {"teacher": uri, "report": {"reason": "as it is"}})
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return learned(PARITY, tmp_path_factory.mktemp("refused") / "copy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", PARITY, "-n", "x"], "valid integer"),
        (["sample", PARITY, "--seed", str(10**30)], "less than or equal to"),
        (["sample", PARITY, "--frob"], "No such option"),
        (["sample"], "Missing argument"),
    ],
)
def test_wrong_usage_is_json_too(myna, words, message):
    status, shown, told = myna(*words, "--json")
    assert status == 2 and message in json.loads(shown)["error"]
    assert message in told  # typer wraps what it shows people; the sentences here are short
    assert myna(*words)[1] == ""


def test_an_interrupt_is_json_too(myna, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_model", interrupted)
    status, shown, _ = myna("sample", PARITY, "--json")
    assert status == 130 and json.loads(shown) == {"error": "interrupted"}


@pytest.mark.parametrize("budget", ["1e400", "1e400tokens", "1e400money"])
def test_an_infinite_budget_is_none(myna, copy, budget):
    status, _, told = myna("certify", copy, PARITY, "--budget", budget)
    assert status == 2 and f"takes a number such as 20000; got '{budget}'" in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_under_standard_output_is_said(more):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*SHELL, "zoo", *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "myna: the system refused standard output: No space left" in done.stderr


def test_a_terminal_without_the_letters_gets_escapes():
    done = subprocess.run(
        [*SHELL, "zoo"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "30"},
    )
    assert done.returncode == 0 and "\\u2026" in done.stdout


def test_closed_standard_input_is_said(myna, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    status, _, told = myna("score", PARITY, "-")
    assert status == 2 and "standard input is closed" in told


@pytest.mark.parametrize(
    ("teacher", "text", "message"),
    [
        (PARITY, "01010\n0101010\n", "line 2: strings of this model have at most 5 tokens"),
        ("zoo:registers?k=1", "flip0\nflip0 <stop> read0 0\n", "line 2: the stop token '<stop>'"),
    ],
)
def test_a_string_that_cannot_be_is_named_by_its_line(myna, tmp_path, teacher, text, message):
    file = tmp_path / "strings.txt"
    file.write_text(text)
    status, shown, told = myna("score", teacher, file)
    assert status == 2 and shown == "" and message in told


def test_strings_that_cannot_be_read_are_said_plainly(myna, tmp_path):
    status, _, told = myna("score", PARITY, tmp_path)
    assert status == 2 and told.endswith(f"cannot be read from {tmp_path}: Is a directory")


@pytest.mark.parametrize("command", ["copytest", "spectrum", "spectrum --next-token"])
def test_a_picture_that_cannot_be_is_refused_before_asking(myna, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    words = [*command.split(), "zoo:hmm", "--ledger", tmp_path / "asked.ledger"]
    status, shown, told = myna(*words, "-o", tmp_path / "file")
    assert status == 2 and shown == "" and "a picture cannot be written to" in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_kept_where_a_companion_cannot_be(myna, tmp_path):
    """A copy is not left behind by a command that failed at its graph or its curve."""
    assert myna("learn", "zoo:parity?bits=4", "-o", tmp_path / "copy")[0] == 0
    (tmp_path / "file").write_text("mine")
    inside, out = tmp_path / "file" / "inside", tmp_path / "new"
    status, _, told = myna("automaton", tmp_path / "copy", "-o", out, "--dot", inside)
    assert status == 2 and "cannot be written to" in told and not out.exists()
    limits = ("--max-kl", "0.1", "--strings", "100")
    status, _, told = myna("compress", tmp_path / "copy", "-o", out, *limits, "--curve", inside)
    assert status == 2 and "a picture cannot be written to" in told and not out.exists()
    status, _, told = myna("automaton", tmp_path / "copy", "-o", tmp_path / "copy")
    assert status == 2 and "--overwrite" in told


def test_a_demo_that_cannot_be_kept_is_refused_before_asking(myna, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, shown, told = myna("demo", "--bits", "3", "-o", tmp_path / "file" / "here")
    assert status == 2 and shown == "" and "a picture cannot be written to" in told


def test_pictures_say_what_the_system_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    chart = picture.alt.vconcat(picture.alt.Chart(picture.alt.Data(values=[])).mark_point())
    with pytest.raises(InputError, match="the picture cannot be written to"):
        picture.write_picture(chart, tmp_path / "file", "name")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--futures", "20"], "--futures belongs to spectra of histories x futures"),
        (["--text", "absent"], "--text belongs to spectra"),
        (["--places", "all"], "--places belongs to spectra"),
        (["--keep", "folder"], "--keep belongs to spectra"),
        (["--double-centre"], "--double-centre belongs to spectra"),
        (["--no-controls"], "--no-controls belongs to spectra"),
        (["--top-k", "3"], "--top-k belongs to --api top-k"),
    ],
)
def test_a_width_refuses_what_would_be_without_effect(myna, words, message):
    status, shown, told = myna("spectrum", "zoo:hmm", "--next-token", *words)
    assert status == 2 and shown == "" and message in told


def test_spectra_refuse_an_api(myna):
    status, _, told = myna("spectrum", "zoo:hmm", "--api", "argmax")
    assert status == 2 and "--api belongs to --next-token" in told


def test_enumerating_draws_no_strings(myna, copy):
    status, _, told = myna("certify", copy, PARITY, "--method", "enumerate", "--samples", "10")
    assert status == 2 and "--samples draws strings" in told


def test_a_certificate_of_cut_strings_says_so(copy):
    teacher, student = open_teacher(PARITY), open_teacher(f"student:{copy}").student
    view = Ledger(teacher, seed=0).laws("certify")
    found = certify(view, student, samples=100, max_tokens=3)
    assert "strings cut at 3 tokens, and of no more" in found.total_variation.method
    with pytest.raises(InputError, match="cut at 3 tokens; leave max_tokens out"):
        certify(view, student, method=Method.ENUMERATE, max_tokens=3)
    endless = Ledger(open_teacher("zoo:registers?k=1"), seed=0).laws("certify")
    with pytest.raises(InputError, match="has no longest string"):
        certify(endless, endless_copy(), method=Method.ENUMERATE)


def endless_copy():
    ledger = Ledger(open_teacher("zoo:registers?k=1"), seed=0)
    settings = ExactSettings(verify_histories=10, verify_strings=2)
    return learn_exact(ledger, settings, torch.Generator().manual_seed(0)).student


def test_a_copy_with_a_stop_is_not_told_to_be_stationary(myna, tmp_path):
    folder = learned("zoo:registers?k=1", tmp_path / "s", verify_histories=10, verify_strings=2)
    status, _, told = myna("hmm", folder)
    assert status == 2 and "without a stop token, and this one has '<stop>'" in told


def test_no_residual_is_shown_where_there_is_none(myna, tmp_path):
    uri = "zoo:hmm?states=3&symbols=4&horizon=8"
    folder = learned(uri, tmp_path / "s", structure=Structure.STATIONARY)
    status, shown, _ = myna("hmm", folder, "--states", "5")
    assert status == 1 and "5 were asked for" in shown and "inf" not in shown


def test_what_was_made_from_a_copy_was_not_learned(myna, copy, tmp_path):
    assert "learned from" in myna("info", copy)[1]
    assert myna("automaton", copy, "-o", tmp_path / "machine")[0] == 0
    shown = myna("info", tmp_path / "machine")[1]
    assert "made from" in shown and "None" not in shown.split("made from")[1]


def test_what_is_no_archive_is_not_called_a_pickle(myna, tmp_path):
    file = tmp_path / "tables.npz"
    file.write_bytes(np.random.default_rng(0).bytes(300))
    status, _, told = myna("info", f"hmm:{file}?horizon=5")
    assert status == 2 and "does not begin as a zip file" in told and "pickle" not in told


def test_a_file_where_a_folder_should_be_is_said(myna, tmp_path):
    file = tmp_path / "model"
    file.write_text("text")
    status, _, told = myna("info", f"hf:{file}")
    assert status == 2 and "needs a folder with config.json" in told and "Errno" not in told


@pytest.mark.parametrize("target", ["1,,2", "1,", ","])
def test_numbers_of_a_prompt_are_none_left_out(myna, target):
    status, _, told = myna("lingen", "zoo:hmm", "--target", target)
    assert status == 2 and "numbers of tokens stand between commas" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", PARITY, "-n", 2**32 + 1], "at most 4,294,967,296 sequences are drawn at once"),
        (["sample", PARITY, "-n", 2**32], "more memory than there is"),
        (["certify", "COPY", PARITY, "--method", "sample", "--samples", 10**20], "numbered below"),
        (["compile", "COPY", "-o", "new", "--strings", 10**20], "drawn at once"),
        (["compress", "COPY", "-o", "new", "--max-kl", "1", "--strings", 10**20], "drawn at once"),
        (
            ["learn", "zoo:hmm?states=2&horizon=3", "-o", "new", "--verify", 10**20],
            "numbered below",
        ),
    ],
)
def test_numbers_beyond_any_machine_are_refused(myna, monkeypatch, copy, tmp_path, words, message):
    def refused(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("myna.teachers.scripted.ParityModel.initial", refused)
    named = [copy if word == "COPY" else word for word in words]
    status, shown, told = myna(*named, "--json")
    assert status == 2 and message in told and message in json.loads(shown)["error"]
    assert list(tmp_path.iterdir()) == []


def test_a_longest_string_beyond_any_number_is_no_limit(myna, tmp_path):
    folder = learned("zoo:registers?k=1", tmp_path / "s", verify_histories=10, verify_strings=2)
    words = ("certify", folder, "zoo:registers?k=1", "--samples", "10", "--max-tokens", 10**20)
    assert myna(*words)[0] == 0


def test_a_copy_of_nothing_learned_is_not_called_the_best(myna, tmp_path):
    status, shown, _ = myna("learn", PARITY, "-o", tmp_path / "s", "--budget", "0")
    assert status == 1 and "takes all tokens for equally likely" in shown
    assert "best copy" not in shown
    shown = myna("learn", PARITY, "-o", tmp_path / "t", "--budget", "5")[1]
    assert "this is the best copy so far" in shown
