"""What `myna learn --learner states` prints: the JSON record, and the same for people."""

from typing import Any

from myna.app import output
from myna.learn.states import StatesReport


def states_record(report: StatesReport, teacher: str, student: str | None) -> dict[str, Any]:
    """The JSON of the command."""
    record = output.plain(report)
    queries = record.pop("accounts")
    about = {"teacher": teacher, "student": student, "learner": "states"}
    return {**about, **record, "queries": queries}


def show_states(report: StatesReport, student: str | None) -> None:
    """The outcome, the states, the cost in laws and in words."""
    out = output.out
    out.print(
        f"[bold]{report.outcome.value}[/bold]: {report.reason}\n"
        f"states      {report.states:,}, told apart by {report.futures:,} futures of at most "
        f"{report.longest_future:,} tokens"
    )
    output.show_accounts(report.accounts)
    said = ", ".join(f"{count:,} to {purpose}" for purpose, count in report.words.items())
    out.print(f"words       {said}, each with the laws of its prefixes")
    out.print(f"time        {report.seconds:.1f} s")
    if student:
        out.print(f"saved       {student}")
