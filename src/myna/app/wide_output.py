"""What `myna learn --learner wide` prints for people."""

from myna.app import output
from myna.learn.wide import WideReport


def show_wide(report: WideReport, student: str | None) -> None:
    """The outcome, what the copy is made of, the cost in laws."""
    out = output.out
    output.show_outcome(report.outcome, report.reason)
    if report.parts:
        out.print(
            f"rank        {report.rank:,} of next-token laws; {report.children:,} children read, "
            f"residual {report.worst:.2g} at most\n"
            f"numbers     {report.parameters:,}, in {report.parts:,} shared matrices that leave out "
            f"{report.left_out:.2g} of the operators"
        )
    output.show_accounts(report.accounts)
    out.print(f"time        {report.seconds:.1f} s")
    output.show_saved(student)
