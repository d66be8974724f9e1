"""What `myna learn --space logits` prints."""

from typing import Any

from myna.app import output
from myna.logits.fitted import FitReport
from myna.logits.provable import ProvableReport
from myna.logits.report import LogitReport


def logit_record(
    report: LogitReport | ProvableReport | FitReport, teacher: str, student: str | None
) -> dict[str, Any]:
    """The JSON of the command: the report, with the logit rank of each cut where there is one."""
    record = output.plain(report)
    queries = record.pop("accounts")
    learner = "fitted" if isinstance(report, FitReport) else "provable"
    if isinstance(report, LogitReport):
        learner = "exact-rank"
        record["next_token_ranks"] = [cut.next_token_rank for cut in report.cuts]
    if not isinstance(report, FitReport):
        record["logit_ranks"] = list(report.ranks)
    return {
        "teacher": teacher,
        "student": student,
        "space": "logits",
        "learner": learner,
        **record,
        "queries": queries,
        "tokens": {name: account.tokens for name, account in report.accounts.items()},
    }


def show_logits(report: LogitReport, student: str | None) -> None:
    """The outcome, the logit ranks, the cost."""
    out = output.out
    output.show_outcome(report.outcome, report.reason)
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
    _show_end(report, student)


def show_provable(report: ProvableReport, student: str | None) -> None:
    """The outcome, the histories kept, what the programs left, the cost."""
    out = output.out
    output.show_outcome(report.outcome, report.reason)
    if report.ranks:
        longest = max(1 + len(word) for words in report.futures for word in words)
        out.print(
            "structure   time-varying, a linear program at each prefix, in log-probability space\n"
            f"logit rank  histories kept by cut {output.runs(report.ranks)}\n"
            f"futures     {sum(map(len, report.futures)):,} words over all cuts, the longest of "
            f"{longest} with its last token\n"
            f"programs    error at most {report.worst_error:.2g} nats over {report.programs:,} "
            f"prefixes; {report.solves:,} runs of the solver, {report.widened:,} bounds widened"
        )
    _show_end(report, student)


def show_fitted(report: FitReport, student: str | None) -> None:
    """How near the copy is on strings it was not fitted to, and the cost."""
    output.out.print(
        f"[bold]fitted[/bold]: {report.reason}\n"
        "structure   one network for all cuts, in log-probability space\n"
        f"fit         {len(report.fitted_kl)} passes over {report.laws:,} laws: "
        f"{report.start_kl:.3f} nats a token at the start, {report.held_out_kl:.4f} at the end, "
        f"both on {report.held_out_laws:,} held-out laws\n"
        f"operators   largest singular value {report.largest_norm:.3f}"
    )
    _show_cost(report, student)


def _show_cost(report: LogitReport | ProvableReport | FitReport, student: str | None) -> None:
    """What was spent, where the copy is."""
    output.show_accounts(report.accounts)
    output.out.print(f"time        {report.seconds:.1f} s")
    output.show_saved(student)


def _show_end(report: LogitReport | ProvableReport, student: str | None) -> None:
    """Evidence of a refusal, what was spent, where the copy is."""
    out = output.out
    if report.refusal:
        values = ", ".join(f"{v:.3g}" for v in report.refusal.singular_values[:8])
        out.print(f"evidence    singular values of the rows, nats: {values}, ...")
    _show_cost(report, student)
