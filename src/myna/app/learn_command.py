"""`myna learn`: from next-token laws, or from samples alone.

Each access has options of its own; one that does not fit the access is refused, so that
no option is ever silently without effect.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from myna import __version__
from myna.app import output
from myna.app.budget import Budgets, budget_of, open_within, read_budget
from myna.app.laws_settings import (
    STRUCTURES,
    Form,
    Learner,
    Space,
    given,
    refuse,
    settings_of_laws,
)
from myna.app.logits_output import logit_record, show_fitted, show_logits, show_provable
from myna.app.models import generator_of
from myna.app.options import SAMPLED_TOKENS, Access, Json, LedgerPath, Seed, TeacherName, Yes
from myna.app.sampled_output import sampled_record, show_sampled
from myna.app.spending import confirm_spending, provenance, rejected
from myna.app.states_output import show_states
from myna.app.wide_output import show_wide
from myna.errors import InputError
from myna.learn.exact import learn_exact, learn_testing_stationarity
from myna.learn.from_samples import learn_sampled
from myna.learn.report import ExactSettings, LearnResult, Outcome
from myna.learn.sampled_report import Kind, Projection, SampledResult, SampledSettings
from myna.learn.states import StatesOutcome, StatesResult, StatesSettings, learn_states
from myna.learn.wide import WideOutcome, WideResult, WideSettings, learn_wide
from myna.logits.exact import LogitProgress, learn_logits
from myna.logits.fitted import FitProgress, FitResult, FitSettings, Start, fit_network
from myna.logits.provable import ProvableResult, ProvableSettings, learn_provably
from myna.logits.report import LogitOutcome, LogitResult, LogitSettings
from myna.teachers.copies import check_destination, save_copy
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.oracle import Samples, as_samples

_Result = (
    LearnResult
    | SampledResult
    | LogitResult
    | ProvableResult
    | FitResult
    | StatesResult
    | WideResult
)
_Settings = (
    ExactSettings
    | SampledSettings
    | LogitSettings
    | ProvableSettings
    | FitSettings
    | StatesSettings
    | WideSettings
)


@contextlib.contextmanager
def learning_progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that follows learning."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=output.err, transient=True, disable=not output.err.is_terminal
    ) as bars:
        task = bars.add_task("starting", total=None)
        yield lambda text: bars.update(task, description=text)


def learn(
    teacher: TeacherName,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to save the copy in.")],
    access: Annotated[
        Access, typer.Option(help="Ask for next-token laws, or only for samples.")
    ] = Access.LAWS,
    space: Annotated[
        Space,
        typer.Option(
            help="A copy whose coefficients combine probabilities, or (laws) centred logits."
        ),
    ] = Space.PROBABILITIES,
    learner: Annotated[
        Learner | None,
        typer.Option(
            help="Logits: changes of basis (exact-rank, unless said), linear programs that bound "
            "coefficients (provable; needs a horizon and HiGHS), or a network of dimension "
            "--max-rank fitted to laws along text, where no rank is exact (fitted). Probabilities: "
            "a machine of at most --max-rank states, each asked for (states), or a stationary copy "
            "over thousands of tokens (wide)."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Fitted: passes over the laws (20).")
    ] = None,
    start: Annotated[
        Start | None, typer.Option(help="Fitted: where fitting begins (spectral).")
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--structure",
            help="One basis per cut, one for all cuts (your claim, checked), or (laws) test which; "
            "auto: one per cut where there is a horizon, else one for all.",
        ),
    ] = Form.AUTO,
    stationary: Annotated[
        bool, typer.Option("--stationary", help="Short for --structure stationary.")
    ] = False,
    budget: Budgets = None,
    count_prompts: Annotated[
        bool, typer.Option("--count-prompts", help="Samples: the budget counts prompts too.")
    ] = False,
    kind: Annotated[
        Kind | None, typer.Option("--student", help="Samples: what the copy is (low-rank).")
    ] = None,
    states: Annotated[
        int | None, typer.Option(min=1, help="Samples: hidden states of --student hmm.")
    ] = None,
    projection: Annotated[
        Projection | None,
        typer.Option(help="Samples: keep coefficients in this set at every token (none)."),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Cap on the rank (laws: 256, samples: 64).")
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(
            min=1, help="Laws: fresh histories to check, from each side (1000; wide: 100 strings)."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Laws: residual below which a row is in the span (1e-9; wide: 1e-6)."),
    ] = None,
    mismatch: Annotated[
        float | None, typer.Option(help="Laws: difference of laws that counts as wrong (1e-8).")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Without a horizon, cut strings at this length (laws: 1000, samples: 100; wide: 24, "
            "and the first histories with one too).",
        ),
    ] = None,
    ledger_file: LedgerPath = None,
    seed: Seed = 0,
    yes: Yes = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a saved copy.")] = False,
    as_json: Json = False,
) -> None:
    """Learn a copy of a teacher from its next-token laws, or from samples alone."""
    check_destination(out, overwrite=overwrite)
    form = _form(form, stationary=stationary)
    limits = read_budget(budget, queries=access is Access.LAWS)
    of_laws = {"verify": verify, "tolerance": tolerance, "mismatch": mismatch}
    of_samples = {"student": kind, "states": states, "projection": projection}
    of_samples["count-prompts"] = count_prompts or None
    shared = given({"max_rank": max_rank, "max_tokens": max_tokens})
    if access is Access.LAWS:
        refuse(of_samples, "learning from samples", "--access laws")
        exact = settings_of_laws(
            space,
            learner,
            form,
            shared | given({"verify_histories": verify, "tolerance": tolerance}),
            mismatch,
            given({"epochs": epochs, "start": start}),
            limits.plain,
        )
        source = open_within(teacher, limits)
        confirm_spending(source, queries=limits.plain, generated=0, yes=yes)
        wall = budget_of(source, limits, queries=limits.plain)
        with Ledger(source, wall, seed, file=ledger_file, job="learn") as ledger:
            if isinstance(exact, ExactSettings):
                found = learned(ledger, exact, seed, testing=form is Form.TEST)
            elif isinstance(exact, StatesSettings):
                found = learned_states(ledger, exact, seed)
            elif isinstance(exact, WideSettings):
                found = learned_wide(ledger, exact, seed)
            else:
                found = learned_logits(ledger, exact, seed)
        also = provenance(source)
        saved = save_result(found, out, teacher, exact, seed, overwrite=overwrite, also=also)
        done = isinstance(found, FitResult) or found.report.outcome in (
            Outcome.VERIFIED, LogitOutcome.VERIFIED, StatesOutcome.VERIFIED, WideOutcome.VERIFIED
        )  # fmt: skip
    else:
        of_laws |= {"epochs": epochs, "start": start}
        refuse(of_laws, "learning from laws", "--access samples")
        if form is Form.TEST:
            raise InputError("--structure test needs --access laws; choose another structure")
        if space is Space.LOGITS:
            raise InputError("--space logits needs --access laws; leave one of them out")
        if states is not None and kind is not Kind.HMM:
            raise InputError("--states belongs to --student hmm; add that or leave --states out")
        count_prompts = count_prompts or limits.in_tokens
        settings = SampledSettings(
            budget=limits.tokens_or(SAMPLED_TOKENS),
            structure=STRUCTURES.get(form),
            count_prompts=count_prompts,
            **(shared | given({"kind": kind, "states": states, "projection": projection})),
        )
        source = open_within(teacher, limits)
        confirm_spending(source, queries=0, generated=settings.budget, yes=yes)
        counted = "tokens" if count_prompts else "sampled_tokens"
        wall = budget_of(source, limits, **{counted: settings.budget})
        found = learned_from_samples(source, settings, wall, seed, ledger_file)
        also = provenance(source)
        saved = save_result(found, out, teacher, settings, seed, overwrite=overwrite, also=also)
        done = found.report.check is None or found.report.check.contradicted == 0
    _show(found, teacher, saved, rejected(source), as_json=as_json)
    raise typer.Exit(0 if done else 1)


def _form(form: Form, *, stationary: bool) -> Form:
    """The structure asked for, by its long or its short name."""
    if stationary and form not in (Form.AUTO, Form.STATIONARY):
        raise InputError(
            f"--stationary and --structure {form.value} contradict each other; leave one of them out"
        )
    return Form.STATIONARY if stationary else form


def learned(
    ledger: Ledger, settings: ExactSettings, seed: int, *, testing: bool = False
) -> LearnResult:
    """Run the learner from laws under a progress line."""
    learner = learn_testing_stationarity if testing else learn_exact
    with learning_progress() as tell:
        return learner(
            ledger,
            settings,
            generator_of(seed),
            lambda at: tell(
                f"round {at.round}: {at.stage}, rank {at.rank}, {at.queries:,} queries"
            ),
        )


def learned_states(ledger: Ledger, settings: StatesSettings, seed: int) -> StatesResult:
    """Run the learner of machines under a progress line."""
    with learning_progress() as tell:
        return learn_states(
            ledger,
            settings,
            generator_of(seed),
            lambda at: tell(f"{at.stage}: {at.states:,} states, {at.queries:,} queries"),
        )


def learned_wide(ledger: Ledger, settings: WideSettings, seed: int) -> WideResult:
    """Run the learner for many tokens under a progress line."""
    with learning_progress() as tell:
        return learn_wide(ledger, settings, generator_of(seed), tell)


def learned_logits(
    ledger: Ledger, settings: LogitSettings | ProvableSettings | FitSettings, seed: int
) -> LogitResult | ProvableResult | FitResult:
    """Run a learner in logit space under a progress line."""
    generator = generator_of(seed)
    with learning_progress() as tell:

        def show(at: LogitProgress) -> None:
            tell(f"round {at.round}: {at.stage}, logit rank {at.rank}, {at.queries:,} queries")

        if isinstance(settings, FitSettings):
            return fit_network(ledger, settings, generator, lambda at: tell(_told(at)))
        if isinstance(settings, ProvableSettings):
            return learn_provably(ledger, settings, generator, show)
        return learn_logits(ledger, settings, generator, show)


def _told(at: FitProgress) -> str:
    """Where fitting stands, in words."""
    reached = "" if math.isnan(at.kl) else f", {at.kl:.4f} nats a token in the last epoch"
    return f"{at.stage}: {at.done:.0%} of the steps{reached}, {at.queries:,} queries"


def learned_from_samples(
    teacher: Samples, settings: SampledSettings, wall: Budget, seed: int, file: Path | None = None
) -> SampledResult:
    """Run the learner from samples under a progress line, the budget a hard wall."""
    with (
        Ledger(as_samples(teacher), wall, seed, file=file, job="learn") as ledger,
        learning_progress() as tell,
    ):
        return learn_sampled(
            ledger,
            settings,
            generator_of(seed),
            lambda at: tell(f"round {at.round}: {at.stage}, rank {at.rank}, {at.tokens:,} tokens"),
        )


def save_result(
    result: _Result,
    out: Path,
    teacher: str,
    settings: _Settings,
    seed: int,
    *,
    overwrite: bool,
    also: Mapping[str, Any] | None = None,
) -> str | None:
    """Save the student, if there is one, with where it comes from; `also` joins that."""
    if result.student is None:
        return None
    about = {
        "teacher": teacher,
        "seed": seed,
        "myna": __version__,
        "settings": output.plain(settings),
        "report": output.plain(result.report),
        **(also or {}),
    }
    save_copy(out, result.student, about, overwrite=overwrite)
    return str(out)


def _show(
    result: _Result,
    teacher: str,
    saved: str | None,
    also: Mapping[str, int],
    *,
    as_json: bool,
) -> None:
    """The report, as one JSON object or for people; `also` are counts that stand beside it."""
    if as_json:
        output.print_json({**_record(result, teacher, saved), **also})
        return
    if isinstance(result, SampledResult):
        show_sampled(result.report, saved)
    elif isinstance(result, StatesResult):
        show_states(result.report, saved)
    elif isinstance(result, WideResult):
        show_wide(result.report, saved)
    elif isinstance(result, FitResult):
        show_fitted(result.report, saved)
    elif isinstance(result, LogitResult):
        show_logits(result.report, saved)
    elif isinstance(result, ProvableResult):
        show_provable(result.report, saved)
    else:
        output.show_learned(result.report, saved)
    if also:
        output.out.print(*(f"{name.replace('_', ' ')}  {n:,}" for name, n in also.items()))


def _record(result: _Result, teacher: str, saved: str | None) -> dict[str, Any]:
    """The JSON of each learner's report."""
    if isinstance(result, SampledResult):
        return sampled_record(result.report, teacher, saved)
    if isinstance(result, StatesResult):
        return output.report_record(result.report, "states", teacher, saved)
    if isinstance(result, WideResult):
        return output.report_record(result.report, "wide", teacher, saved)
    if isinstance(result, LearnResult):
        return output.learn_record(result.report, teacher, saved)
    return logit_record(result.report, teacher, saved)
