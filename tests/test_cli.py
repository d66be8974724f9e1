"""The command line as a user meets it: a process, its streams and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from myna.app.cli import app


def myna(*args, stdin="", cwd=None):
    return subprocess.run(
        [sys.executable, "-c", "from myna.app.cli import main; main()", *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of a small parity teacher, made by the command itself."""
    out = tmp_path_factory.mktemp("cli") / "s"
    done = myna("learn", "zoo:parity?bits=6&seed=7", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["outcome"] == "verified" and record["ranks"] == [1, 2, 2, 2, 2, 2, 2]
    assert set(record["queries"]) == {"learn", "verify"}
    assert record["queries"]["learn"]["next_token_queries"] > 0
    assert record["tokens"]["learn"] > 0
    return out


def test_certify_by_enumeration(folder):
    done = myna("certify", folder, "zoo:parity?bits=6&seed=7", "--json")
    record = json.loads(done.stdout)
    assert done.returncode == 0
    for name in ("total_variation", "kl_nats"):
        assert set(record[name]) == {"estimate", "low", "high", "confidence", "samples", "method"}
    assert record["total_variation"]["high"] < 1e-12
    assert record["total_variation"]["samples"] == 128
    assert record["queries"]["next_token_queries"] == 127


def test_certify_by_sampling(folder):
    done = myna(
        "certify", folder, "zoo:parity?bits=6&seed=7", "--method", "sample", "--samples", "300"
    )
    assert done.returncode == 0
    assert "99% confidence" in done.stdout and "measured, not certified" in done.stdout


def test_sample_and_score_fit_together(folder):
    drawn = myna("sample", folder, "-n", "5", "--seed", "3")
    again = myna("sample", folder, "-n", "5", "--seed", "3")
    assert drawn.stdout == again.stdout and len(drawn.stdout.split()) == 5
    scored = myna("score", folder, "-", "--json", stdin=drawn.stdout)
    record = json.loads(scored.stdout)
    assert record["whole"] == [True] * 5 and all(value < 0 for value in record["log_probs_nats"])
    teacher = json.loads(
        myna("score", "zoo:parity?bits=6&seed=7", "-", "--json", stdin=drawn.stdout).stdout
    )
    assert record["log_probs_nats"] == pytest.approx(teacher["log_probs_nats"], abs=1e-12)


def test_info_and_zoo(folder):
    record = json.loads(myna("info", folder, "--json").stdout)
    assert record["about"]["teacher"] == "zoo:parity?bits=6&seed=7"
    assert record["about"]["report"]["outcome"] == "verified"
    assert record["spec"]["horizon"] == 7
    assert "zoo:parity?bits=6" in myna("info", folder).stdout
    families = json.loads(myna("zoo", "--json").stdout)["families"]
    assert {"name", "parameters", "summary", "rank"} == set(families[0])
    assert "zoo:copy" in myna("zoo").stdout


def test_a_stop_is_appended_to_whole_strings():
    whole = json.loads(myna("score", "zoo:registers?k=1", "-", "--json", stdin="flip0\n").stdout)
    prefix = json.loads(
        myna("score", "zoo:registers?k=1", "-", "--prefix", "--json", stdin="flip0\n").stdout
    )
    assert whole["tokens"] == [2] and prefix["tokens"] == [1]
    assert prefix["whole"] == [False]


def test_not_low_rank_is_status_one_and_saves_nothing(tmp_path):
    done = myna("learn", "zoo:copy?n=6&k=2", "-o", tmp_path / "s", "--max-rank", "8", "--json")
    record = json.loads(done.stdout)
    assert done.returncode == 1
    assert record["outcome"] == "not low rank" and record["student"] is None
    assert record["refusal"]["at_least"] == 9 and len(record["refusal"]["singular_values"]) == 9
    assert list(tmp_path.iterdir()) == []
    plain = myna("learn", "zoo:copy?n=6&k=2", "-o", tmp_path / "s", "--max-rank", "8")
    assert "singular values" in plain.stdout and plain.returncode == 1


def test_an_exhausted_budget_is_status_one_and_saves_the_best(tmp_path):
    done = myna("learn", "zoo:parity?bits=16", "-o", tmp_path / "s", "--budget", "100", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "budget exhausted"
    assert (tmp_path / "s" / "model.json").is_file()


def test_certifying_within_a_budget(folder):
    done = myna("certify", folder, "zoo:parity?bits=6&seed=7", "--budget", "20")
    assert done.returncode == 1
    assert "the budget is 20 next-token queries" in done.stderr


def test_structures(tmp_path):
    teacher = "zoo:hmm?states=3&symbols=4&horizon=8"
    for structure, steps in (("stationary", 1), ("time-varying", 8), ("test", 1)):
        done = myna(
            "learn", teacher, "-o", tmp_path / structure, "--structure", structure, "--json"
        )
        assert len(json.loads(done.stdout)["ranks"]) == steps
    assert json.loads(done.stdout)["stationarity"].startswith("tested")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["learn", "zoo:dodo", "-o", "s"], "the zoo has"),
        (["learn", "zoo:parity?bits=x", "-o", "s"], "bits must be"),
        (["learn", "pautomac:absent.txt", "-o", "s"], "cannot be read"),
        (
            ["learn", "zoo:registers", "-o", "s", "--structure", "time-varying"],
            "needs a teacher with a horizon",
        ),
        (["learn", "zoo:parity", "-o", "/proc/s"], "cannot be written"),
        (["learn", "zoo:parity?bits=4", "-o", "s", "--tolerance", "2"], "tolerance"),
        (["certify", "absent", "zoo:parity"], "no saved copy"),
        (["sample", "zoo:hmm", "-n", "0"], "--count"),
        (["score", "zoo:parity?bits=4", "-"], "is no token"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(tmp_path, args, message):
    done = myna(*args, stdin="0 1 7\n", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_too(tmp_path):
    done = myna("learn", "zoo:dodo", "-o", tmp_path / "s", "--json")
    assert "the zoo has" in json.loads(done.stdout)["error"]


def test_a_student_of_another_language(folder):
    done = myna("certify", folder, "zoo:hmm")
    assert done.returncode == 2 and "models of one language" in done.stderr


def test_interrupting_leaves_nothing(tmp_path):
    """Ctrl-C while learning: no traceback, status 130, no file."""
    out, begun = tmp_path / "out", tmp_path / "begun"
    out.mkdir()
    code = (
        "import os, pathlib\n"
        "from myna.app import cli, learn_command\n"
        "real = learn_command.learn_exact\n"
        "def learn(*given):\n"
        "    pathlib.Path(os.environ['BEGUN']).touch()\n"
        "    return real(*given)\n"
        "learn_command.learn_exact = learn\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "learn", "zoo:parity?bits=1000", "-o", str(out / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"BEGUN": str(begun)},
        # what a shell starts in the background is born deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        for _ in range(1200):
            if begun.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert begun.exists() and list(out.iterdir()) == []


def test_demo_draws_its_picture(tmp_path):
    done = myna("demo", "--out", tmp_path, "--bits", "10", "--samples", "200")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "parity.html").read_text()
    assert "next-token queries" in page and "https://cdn" not in page.lower().split("<script")[0]
    assert "Certificate" in done.stdout and "queries" in done.stdout


def test_every_command_is_in_the_readme(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {"learn", "certify", "sample", "score", "info", "zoo"} <= set(names)
    for name in names:
        assert f"myna {name}" in readme, name


def test_certify_from_samples(folder):
    """Tokens are the budget; the interval is wide, and both outputs say what it rests on."""
    teacher = "zoo:parity?bits=6&seed=7"
    command = ("certify", folder, teacher, "--access", "samples", "--budget", "60000")
    done = myna(*command, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["access"] == "samples" and 30_000 < record["tokens"] <= 60_000
    assert record["queries"]["next_token_queries"] == 0
    variation = record["total_variation"]
    assert variation["low"] == 0 and 0.01 < variation["high"] < 0.6
    assert len(record["upper"]["parts"]) == 7
    shown = myna(*command)
    assert "much weaker than from laws" in shown.stdout and "tokens (" in shown.stdout
    assert shown.stdout.count("lower end") == 3 and shown.stdout.count("upper end") == 2


def test_certify_from_samples_refuses_in_one_sentence(folder):
    teacher = "zoo:parity?bits=6&seed=7"
    small = myna("certify", folder, teacher, "--access", "samples", "--budget", "50")
    assert small.returncode == 2 and small.stdout == ""
    assert "at least" in small.stderr and "tokens would do" in small.stderr
    mixed = myna("certify", folder, teacher, "--access", "samples", "--floor", "0.01")
    assert mixed.returncode == 2 and "--floor belongs to certificates from laws" in mixed.stderr
