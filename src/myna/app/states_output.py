"""What `myna learn --learner states` prints for people."""

from myna.app import output
from myna.learn.states import StatesReport


def show_states(report: StatesReport, student: str | None) -> None:
    """The outcome, the states, the cost in laws and in words."""
    out = output.out
    output.show_outcome(report.outcome, report.reason)
    out.print(
        f"states      {report.states:,}, told apart by {report.futures:,} futures of at most "
        f"{report.longest_future:,} tokens"
    )
    output.show_accounts(report.accounts)
    said = ", ".join(f"{count:,} to {purpose}" for purpose, count in report.words.items())
    out.print(f"words       {said}, each with the laws of its prefixes")
    out.print(f"time        {report.seconds:.1f} s")
    output.show_saved(student)
