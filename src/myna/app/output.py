"""What the commands print: JSON records, and the same for people."""

import dataclasses
import enum
import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from myna.evaluate.certify import Certificate, Estimate
from myna.evaluate.from_samples import SampledCertificate
from myna.learn.report import LearnReport
from myna.learn.states import StatesReport
from myna.learn.wide import WideReport
from myna.lowrank.student import Strings
from myna.spec import Spec
from myna.teachers.ledger import Account

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def plain(value: Any) -> Any:
    """JSON types only: records become objects, infinities null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(plain(record)), flush=True)  # what cannot be written is known here


def learn_record(report: LearnReport, teacher: str, student: str | None) -> dict[str, Any]:
    """The JSON of `myna learn`."""
    record = plain(report)
    queries = record.pop("accounts")
    return {
        "teacher": teacher,
        "student": student,
        **record,
        "ranks": list(report.ranks),
        "next_token_ranks": [cut.next_token_rank for cut in report.cuts],
        "queries": queries,
        "tokens": {name: account.tokens for name, account in report.accounts.items()},
    }


def report_record(
    report: StatesReport | WideReport, learner: str, teacher: str, student: str | None
) -> dict[str, Any]:
    """The JSON of a learner whose report says all there is to say."""
    record = plain(report)
    queries = record.pop("accounts")
    about = {"teacher": teacher, "student": student, "learner": learner}
    return {**about, **record, "queries": queries}


def show_outcome(outcome: enum.Enum, reason: str) -> None:
    """How learning ended, the reason as it is written."""
    out.print(f"[bold]{outcome.value}[/bold]: ", end="")
    out.print(reason, markup=False)


def show_saved(student: str | None) -> None:
    """Where the copy is, if there is one; a folder's brackets are no markup."""
    if student:
        out.print(f"saved       {student}", markup=False)


def runs(values: Iterable[int], first: int = 0) -> str:
    """Equal neighbours together: "0: 1, 1-64: 2"."""
    parts = []
    for value, group in itertools.groupby(values):
        last = first + len(list(group)) - 1
        parts.append(f"{first}: {value}" if first == last else f"{first}-{last}: {value}")
        first = last + 1
    return ", ".join(parts)


def show_learned(report: LearnReport, student: str | None) -> None:
    """The outcome, the ranks, the cost."""
    show_outcome(report.outcome, report.reason)
    if report.cuts and report.cuts[0].cut is None:
        cut = report.cuts[0]
        out.print(
            f"structure   stationary ({report.stationarity.value})\n"
            f"rank        {cut.rank} over all cuts (block of futures given histories), "
            f"{cut.next_token_rank} of next-token laws alone"
        )
    elif report.cuts:
        out.print("structure   time-varying, one basis per cut")
        out.print(f"rank        by cut {runs(report.ranks)} (block of futures given histories)")
        alone = [cut.next_token_rank for cut in report.cuts]
        out.print(f"            by cut {runs(alone)} of next-token laws alone")
    if report.refusal:
        values = ", ".join(f"{v:.3g}" for v in report.refusal.singular_values[:8])
        out.print(f"evidence    singular values of the scaled block: {values}, ...")
    show_accounts(report.accounts)
    out.print(f"time        {report.seconds:.1f} s")
    show_saved(student)


def show_accounts(accounts: dict[str, Account]) -> None:
    """What each purpose spent."""
    for name, account in accounts.items():
        scored = f"{account.scored_prompts:,} scored prompts, " if account.scored_prompts else ""
        out.print(
            f"{name:<11} {account.next_token_queries:,} next-token queries, {scored}"
            f"{account.tokens:,} tokens, "
            f"{account.cache_hits:,} answered from memory"
        )


def show_certificate(certificate: Certificate) -> None:
    """Both distances with their intervals, then what was measured."""
    show_estimate("total variation", certificate.total_variation, "")
    show_estimate("KL", certificate.kl_nats, " nats")
    measured = certificate.measured
    if measured:
        out.print(
            f"measured, not certified: total variation {measured.total_variation:.3g}, "
            f"KL without floor {measured.kl_nats:.3g} nats "
            f"(standard error {measured.kl_standard_error:.2g}), "
            f"largest |log Q - log P| {measured.largest_log_ratio:.3g} nats"
        )
    show_accounts({"certify": certificate.queries})


def show_sampled_certificate(certificate: SampledCertificate) -> None:
    """The interval, what its ends rest on, the cost."""
    show_estimate("total variation", certificate.total_variation, "")
    upper = certificate.upper
    out.print(
        f"upper end   by KL of next tokens {upper.from_kl:.3g} (KL {upper.kl_nats:.3g} nats, at most "
        f"{upper.kl_high:.3g}), by the hybrid sum {upper.hybrid_high:.3g}"
    )
    for witness in (certificate.strings_witness, certificate.next_token_witness):
        out.print(
            f"lower end   {witness.low:.3g}: {witness.what} "
            f"({witness.teacher_share:.3g} teacher, {witness.student_share:.3g} student)"
        )
    out.print(
        f"{'certify':<11} {certificate.tokens:,} tokens ({certificate.queries.tokens_sent:,} in prompts), "
        f"{certificate.total_variation.samples:,} strings, {certificate.draws_per_prefix} draws a prefix"
    )


def show_estimate(name: str, estimate: Estimate, unit: str) -> None:
    """One line for the figure, one for how it was found."""
    if estimate.low == estimate.high:
        out.print(f"[bold]{name:<16}[/bold] {estimate.estimate:.3g}{unit}")
    else:
        high = "no bound" if math.isinf(estimate.high) else f"{estimate.high:.3g}"
        out.print(
            f"[bold]{name:<16}[/bold] {estimate.estimate:.3g}{unit}, within "
            f"[{estimate.low:.3g}, {high}] with {estimate.confidence:.0%} confidence"
        )
    out.print(f"{'':<16} {estimate.method}", style="dim")


def token_rows(strings: Strings) -> list[list[int]]:
    """Strings as lists of tokens."""
    pairs = zip(strings.tokens.tolist(), strings.lengths.tolist(), strict=True)
    return [row[:length] for row, length in pairs]


def text_of(spec: Spec, row: list[int]) -> str:
    """Token names, run together where every name is one character."""
    names = [spec.alphabet[token] for token in row]
    short = all(len(name) == 1 for i, name in enumerate(spec.alphabet) if i != spec.stop)
    if short:
        return "".join(
            "" if token == spec.stop else name for token, name in zip(row, names, strict=True)
        )
    return " ".join(names)


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table."""
    table = Table(*columns, title=title, box=None, title_justify="left", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))  # names in square brackets are no markup
    out.print(table)
