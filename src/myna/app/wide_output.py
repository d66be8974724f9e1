"""What `myna learn --learner wide` prints: the JSON record, and the same for people."""

from typing import Any

from myna.app import output
from myna.learn.wide import WideReport


def wide_record(report: WideReport, teacher: str, student: str | None) -> dict[str, Any]:
    """The JSON of the command."""
    record = output.plain(report)
    queries = record.pop("accounts")
    about = {"teacher": teacher, "student": student, "learner": "wide"}
    return {**about, **record, "queries": queries}


def show_wide(report: WideReport, student: str | None) -> None:
    """The outcome, what the copy is made of, the cost in laws."""
    out = output.out
    out.print(f"[bold]{report.outcome.value}[/bold]: ", end="")
    out.print(report.reason, markup=False)
    if report.parts:
        out.print(
            f"rank        {report.rank:,} of next-token laws; {report.children:,} children read, "
            f"residual {report.worst:.2g} at most\n"
            f"numbers     {report.parameters:,}, in {report.parts:,} shared matrices that leave out "
            f"{report.left_out:.2g} of the operators"
        )
    output.show_accounts(report.accounts)
    out.print(f"time        {report.seconds:.1f} s")
    if student:
        out.print(f"saved       {student}", markup=False)
