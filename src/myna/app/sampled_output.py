"""What `myna learn --access samples` prints: the JSON record, and the same for people."""

from typing import Any

from myna.app.output import out, plain, runs, show_saved
from myna.learn.report import Structure
from myna.learn.sampled_report import SampledCut, SampledReport

_SHOWN = 12  # cuts shown one by one; --json has them all


def sampled_record(report: SampledReport, teacher: str, student: str | None) -> dict[str, Any]:
    """The JSON of learning from samples."""
    record = plain(report)
    del record["accounts"]
    return {
        "teacher": teacher,
        "student": student,
        "access": "samples",
        **record,
        "ranks": list(report.ranks),
        "stages": [{"stage": name, "nats_a_token": value} for name, value in report.stages],
        "tokens": {
            name: {"sampled": account.sampled_tokens, "prompts": account.tokens_sent}
            for name, account in report.accounts.items()
        },
    }


def rank_evidence(cut: SampledCut) -> str:
    """The smallest kept singular value, and the largest left, against their edges."""
    kept = cut.rank - 1
    parts = []
    if 0 <= kept < min(len(cut.singular_values), len(cut.noise_edges)):
        parts.append(
            f"smallest kept {cut.singular_values[kept]:.3g}, noise edge {cut.noise_edges[kept]:.3g}"
        )
    if cut.rank < min(len(cut.singular_values), len(cut.noise_edges)):
        parts.append(
            f"next {cut.singular_values[cut.rank]:.3g}, edge {cut.noise_edges[cut.rank]:.3g}"
        )
    return "; ".join(parts) or "no test was needed"


def show_sampled(report: SampledReport, student: str | None) -> None:
    """What was learned, what it rests on, the estimated error, the cost."""
    out.print(f"[bold]learned[/bold]: {report.reason}")
    if report.structure is Structure.STATIONARY:
        out.print("structure   stationary, one basis for all cuts")
    else:
        out.print("structure   time-varying, one basis per cut")
        out.print(f"rank        by cut {runs(report.ranks)}")
    for cut in report.cuts[:_SHOWN]:
        place = "all cuts" if cut.cut is None else f"cut {cut.cut}"
        out.print(f"{'':<11} {place}: rank {cut.rank} ({rank_evidence(cut)})")
    if len(report.cuts) > _SHOWN:
        out.print(f"{'':<11} and {len(report.cuts) - _SHOWN} more cuts (--json has them all)")
    if report.outside is not None:
        out.print(f"outside K   {report.outside:.1%} of fresh histories")
    for name, value in report.stages:
        out.print(f"likelihood  {value:.5g} nats a token after {name}")
    if report.check:
        out.print(
            f"error       KL about {report.check.kl_nats:.3g} nats a string (standard error "
            f"{report.check.standard_error:.2g}), {report.check.contradicted} of "
            f"{report.check.prefixes:,} fresh prefixes contradicted"
        )
    out.print(
        f"spent       {report.sampled_tokens:,} sampled tokens, {report.prompt_tokens:,} in prompts"
    )
    for name, account in report.accounts.items():
        out.print(
            f"{name:<11} {account.sampled_tokens:,} sampled tokens, {account.tokens_sent:,} in prompts"
        )
    out.print(f"time        {report.seconds:.1f} s")
    show_saved(student)
