"""The command line: parse, call, show.

Exit status: 0 done; 1 done, and the answer is no (not low rank, a mismatch left, the
budget ran out); 2 the request could not be worked with. Progress and messages go to
standard error, results to standard output.
"""

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from myna.app import ledger_command, output
from myna.app.automaton_command import automaton_command
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.compile_command import compile_command
from myna.app.compress_command import compress_command
from myna.app.copytest_command import copytest_command
from myna.app.explain_command import explain_command
from myna.app.hmm_command import hmm_command
from myna.app.learn_command import learn, learned, save_result
from myna.app.lingen_command import lingen_command
from myna.app.models import describe, generator_of, open_model, open_saved, read_strings
from myna.app.options import (
    SAMPLED_TOKENS,
    Access,
    Json,
    LedgerPath,
    MaxTokens,
    ModelName,
    Seed,
    TeacherName,
    Yes,
)
from myna.app.picture import check_folder, rank_and_queries, write_picture
from myna.app.probe_command import probe_command
from myna.app.spectrum_command import spectrum_command
from myna.app.spending import confirm_spending
from myna.errors import BudgetExhausted, InputError, MynaError
from myna.evaluate.certify import Certificate, Method, certify
from myna.evaluate.from_samples import certify_from_samples
from myna.learn.report import ExactSettings
from myna.lowrank.student import Student, complete_strings
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import as_samples
from myna.teachers.uri import open_teacher, zoo_table

_INTERRUPTED = 130  # exit status of a command that Ctrl-C ended

app = typer.Typer(
    help="Learn a compact copy of a language model by asking it questions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=output.err, transient=True, disable=not output.err.is_terminal
    ) as bars:
        bars.add_task(what, total=None)
        yield


app.command()(learn)
app.command("probe")(probe_command)
app.command("spectrum")(spectrum_command)
app.command("copytest")(copytest_command)
app.command("lingen")(lingen_command)
app.command("automaton")(automaton_command)
app.command("compile")(compile_command)
app.command("compress")(compress_command)
app.command("explain")(explain_command)
app.command("hmm")(hmm_command)
app.add_typer(ledger_command.app, name="ledger")


@app.command("certify")
def certify_command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A saved copy.")],
    teacher: TeacherName,
    access: Annotated[
        Access, typer.Option(help="Ask for next-token laws, or (far weaker) only for samples.")
    ] = Access.LAWS,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Laws: strings to draw (10,000 unless said).")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.99,
    floor: Annotated[
        float | None, typer.Option(help="Laws: floor on Q per token, for KL (1e-6 unless said).")
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Laws: enumerate, sample, or choose (auto).")
    ] = None,
    max_tokens: MaxTokens = None,
    yes: Yes = False,
    budget: Budgets = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Bound how far a copy is from its teacher, on fresh strings of the teacher."""
    limits = read_budget(budget, queries=access is Access.LAWS)
    model, source = open_saved(student).model, open_within(teacher, limits)
    of_laws = {"samples": samples, "floor": floor, "method": method}
    given = {name: value for name, value in of_laws.items() if value is not None}
    shared = {"confidence": confidence, "max_tokens": max_tokens}
    if method is Method.ENUMERATE and samples is not None:
        raise InputError(
            "--samples draws strings, and --method enumerate goes through all of them; "
            "leave one of them out"
        )
    if access is Access.LAWS:
        confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
        limit = budget_of(source, limits, queries=limits.plain)
        with Ledger(source, limit, seed, file=ledger_file, job="certify") as ledger:
            found = certified(ledger, model, **shared, **given)
    elif given:
        raise InputError(
            f"--{next(iter(given))} belongs to certificates from laws, and --access samples was "
            "asked; leave one of them out"
        )
    else:
        tokens = limits.tokens_or(SAMPLED_TOKENS)
        confirm_spending(source, queries=0, generated=tokens, yes=yes)
        limit = budget_of(source, limits, tokens=tokens)
        with (
            Ledger(as_samples(source), limit, seed, file=ledger_file, job="certify") as ledger,
            working("comparing on fresh completions"),
        ):
            found = certify_from_samples(
                ledger.samples("certify"),
                model,
                budget_tokens=tokens,
                generator=generator_of(seed),
                **shared,
            )
    if as_json:
        named = {"student": student, "teacher": teacher, "access": access}
        output.print_json({**named, **found.as_json()})
    elif isinstance(found, Certificate):
        output.show_certificate(found)
    else:
        output.show_sampled_certificate(found)


def certified(ledger: Ledger, model: Student, **settings: Any) -> Certificate:
    """Certify under a progress line."""
    with working("comparing on fresh strings"):
        return certify(ledger.laws("certify"), model, **settings)


@app.command()
def sample(
    model: ModelName,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many strings.")] = 10,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw strings from a copy (or from a teacher that runs here)."""
    source = open_model(model)
    drawn = source.sample(count, generator_of(seed), max_tokens)
    rows = output.token_rows(drawn)
    texts = [output.text_of(source.spec, row) for row in rows]
    if as_json:
        output.print_json({"model": model, "tokens": rows, "texts": texts})
    else:
        for text in texts:
            output.out.print(text, markup=False)


@app.command()
def score(
    model: ModelName,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="One string a line; - reads standard input.")
    ],
    prefix: Annotated[bool, typer.Option(help="Score as prefixes: append no stop token.")] = False,
    as_json: Json = False,
) -> None:
    """Log-probabilities (nats) of strings under a copy or a teacher."""
    source = open_model(model)
    batch = read_strings(file, source.spec, whole=not prefix)
    scores = source.score(batch).tolist()
    whole = complete_strings(source.spec, batch).tolist()
    if as_json:
        output.print_json(
            {
                "model": model,
                "log_probs_nats": scores,
                "whole": whole,
                "tokens": batch.lengths.tolist(),
            }
        )
    else:
        for value, complete in zip(scores, whole, strict=True):
            output.out.print(f"{value:.10g}" + ("" if complete else "  (prefix)"))


@app.command()
def info(model: ModelName, as_json: Json = False) -> None:
    """What a copy is, where it comes from and what it cost; or a teacher's language."""
    record: dict[str, Any] = {"model": model}
    if ":" in model and not Path(model).is_dir():
        record["spec"] = describe(open_teacher(model).spec)
    else:
        saved = open_saved(model)
        record["spec"] = describe(saved.model.spec)
        record["ranks"] = list(saved.low_rank.ranks)
        record["numbers_stored"] = saved.low_rank.num_parameters
        record["projection"] = saved.projection
        record["about"] = saved.about
    if as_json:
        output.print_json(record)
        return
    for key, value in record["spec"].items():
        shown = (
            f"{' '.join(value[:20])}{' ...' if len(value) > 20 else ''}"
            if key == "alphabet"
            else value
        )
        output.out.print(f"{key:<12} {shown}", markup=False)
    if "ranks" in record:
        about = record["about"]
        output.out.print(f"{'ranks':<12} {output.runs(record['ranks'])}")
        output.out.print(f"{'numbers':<12} {record['numbers_stored']:,}")
        kind = record["projection"] or "none"
        output.out.print(f"{'projection':<12} {kind}")
        made = "learned from" if "report" in about else "made from"
        output.out.print(
            f"{made:<12} {about.get('teacher')}, commit {about.get('commit')}", markup=False
        )
        if "report" in about:  # what was compressed or read off a copy has none of its own
            output.out.print(f"{'outcome':<12} {about['report'].get('reason')}", markup=False)


@app.command()
def zoo(as_json: Json = False) -> None:
    """The families of teachers whose rank is known."""
    entries = zoo_table()
    if as_json:
        output.print_json({"families": [dataclasses.asdict(entry) for entry in entries]})
        return
    rows = [[f"zoo:{e.name}", " ".join(e.parameters), e.summary, e.rank] for e in entries]
    output.show_table(
        "zoo:NAME?parameter=value&...", ["name", "parameters", "what", "exact rank"], rows
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the copy and the picture.")
    ] = Path("demo-out"),
    bits: Annotated[int, typer.Option(min=1, help="Bits of the noisy parity.")] = 64,
    samples: Annotated[int, typer.Option(min=2, help="Strings that certify.")] = 5000,
    seed: Seed = 7,
) -> None:
    """Learn noisy parity by asking, certify the copy, sample from it, draw a picture."""
    name = f"zoo:parity?bits={bits}&noise=0.1&seed={seed}"
    check_folder(out)
    say = output.out.print
    say(
        f"[bold]Teacher[/bold]  {name}: {bits} uniform bits, then the parity of a secret subset, flipped 1 time in 10."
    )
    say(
        "From random samples this is learning parity with noise, for which no efficient way is known."
    )
    say("Here the teacher may be asked for its next-token law after any prefix.\n")
    ledger = Ledger(open_teacher(name), seed=seed)
    settings = ExactSettings()
    result = learned(ledger, settings, seed)
    student = result.student
    if student is None:
        raise MynaError(result.report.reason)
    folder = out / "parity"
    saved = save_result(result, folder, name, settings, seed, overwrite=True)
    output.show_learned(result.report, saved)
    spent = ledger.total().next_token_queries
    say(
        f"queries     {spent:,} of the 2^{bits} = {2.0**bits:.3g} bit strings (about 2^{math.log2(spent):.1f})\n"
    )
    say("[bold]Certificate[/bold], on strings that learning never saw:")
    output.show_certificate(certified(ledger, student, samples=samples))
    say(f"\n[bold]Samples from the copy[/bold] ({bits} bits, then the label):")
    for row in output.token_rows(student.sample(4, generator_of(seed))):
        say(
            "  "
            + output.text_of(student.spec, row[:-1])
            + " "
            + output.text_of(student.spec, row[-1:])
        )
    chart = rank_and_queries(result.report, f"Noisy parity, {bits} bits: rank and queries by cut")
    page, image = write_picture(chart, out, "parity")
    say(f"\n[bold]Picture[/bold]  {page} and {image}")
    say(
        f"[bold]Try next[/bold]\n  myna info {folder}\n  myna certify {folder} '{name}' --json\n  myna zoo"
    )


def main() -> None:
    """Run the command line; every failure becomes one sentence and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a token that the terminal cannot show ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        app()  # ends in SystemExit: 0 or 1 as the command said, 2 for wrong usage, 130 for Ctrl-C
    except MynaError as error:
        _json_error(str(error))
        output.err.print(f"myna: {error}", markup=False)
        sys.exit(1 if isinstance(error, BudgetExhausted) else 2)
    except SystemExit as ended:
        # Wrong usage, and Ctrl-C, typer has told people already.
        if said := getattr(ended.__context__, "format_message", None):
            _json_error(said())
        elif ended.code == _INTERRUPTED:
            _json_error("interrupted")
        raise
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise  # torch has no type of its own for want of memory
        sentence = "this takes more memory than there is; ask for less at once"
        _json_error(sentence)
        output.err.print(f"myna: {sentence}", markup=False)
        sys.exit(2)
    except OSError as error:  # of files each command speaks itself; left is standard output
        what = error.filename or "standard output"
        sentence = f"the system refused {what}: {error.strerror or error}"
        output.err.print(f"myna: {sentence}", markup=False)
        sys.exit(2)


def _json_error(sentence: str) -> None:
    """What went wrong as the one JSON object, where JSON was asked for."""
    if "--json" in sys.argv:
        output.print_json({"error": sentence})
