"""What `myna learn --space logits` prints."""

from typing import Any

from myna.app import output
from myna.logits.report import LogitReport


def logit_record(report: LogitReport, teacher: str, student: str | None) -> dict[str, Any]:
    """The JSON of the command: the report, with the logit rank of each cut."""
    record = output.plain(report)
    queries = record.pop("accounts")
    return {
        "teacher": teacher,
        "student": student,
        "space": "logits",
        **record,
        "logit_ranks": list(report.ranks),
        "next_token_ranks": [cut.next_token_rank for cut in report.cuts],
        "queries": queries,
        "tokens": {
            name: account.tokens_sent + account.tokens_received
            for name, account in report.accounts.items()
        },
    }


def show_logits(report: LogitReport, student: str | None) -> None:
    """The outcome, the logit ranks, the cost."""
    out = output.out
    out.print(f"[bold]{report.outcome.value}[/bold]: {report.reason}")
    if report.stationary and report.cuts:
        out.print(
            "structure   one network for all cuts, in log-probability space\n"
            f"logit rank  {report.ranks[0]} over all cuts, "
            f"{report.cuts[0].next_token_rank} of next-token logits alone"
        )
    elif report.cuts:
        alone = output.runs(cut.next_token_rank for cut in report.cuts)
        out.print("structure   time-varying, one basis per cut, in log-probability space")
        out.print(f"logit rank  by cut {output.runs(report.ranks)}")
        out.print(f"            by cut {alone} of next-token logits alone")
    if report.refusal:
        values = ", ".join(f"{v:.3g}" for v in report.refusal.singular_values[:8])
        out.print(f"evidence    singular values of the rows, nats: {values}, ...")
    output.show_accounts(report.accounts)
    out.print(f"time        {report.seconds:.1f} s")
    if student:
        out.print(f"saved       {student}")
