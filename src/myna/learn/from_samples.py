"""The learner from conditional samples alone: only completions are asked.

    plain     whole strings of the teacher; every token is an answer at its own prefix
    survey    tables of histories against futures; rank from the noise, spanner, change of
              basis (`survey`, `sweep`, `cut_table`)
    refine    maximum likelihood over all answers, from the spanner's copy (`refine`)
    check     fresh prefixes on another stream, and all plain answers so far against the copy;
              a contradicted prefix names longer futures, and the tables are read again
              (`check`, `misfit`)
    finish    what is left of the budget buys plain strings; survey and refine once more. An
              earlier round's copy goes on instead where held-out strings clearly prefer it:
              tables read again may miss a dimension that was found before
    hidden    where that is asked: hidden Markov parameters started at the copy, with spare
              states that are merged again (`hidden_start`)

Rounds before the last refine on part of the draws: their copies are only checked.

Source: Liu and Moitra (arXiv 2411.07536): poly(O, H, S, 1 / eps) conditional samples
learn any low-rank model, with no fidelity or full-rank assumption. Every idea is kept and
every constant replaced by a measured choice. We differ in refining by likelihood, in
futures that grow where checking demands it, and in that a copy with one basis per cut may
start at the stationary copy, where held-out strings are better explained by that one.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from myna.errors import BudgetExhausted, InputError
from myna.learn.asker import Asker
from myna.learn.baum_welch import EmSettings
from myna.learn.check import LEAST_PREFIXES, Check, check_copy, price_of_one
from myna.learn.evidence import Evidence
from myna.learn.hidden_start import refine_hmm
from myna.learn.misfit import misfits
from myna.learn.projecting import projected
from myna.learn.refine import (
    Refined,
    clearly_better,
    continued,
    held_out_nats,
    low_rank,
    refine,
    some_draws,
    unrolled,
)
from myna.learn.report import Structure
from myna.learn.sampled_report import (
    Kind,
    SampledReport,
    SampledResult,
    SampledSettings,
)
from myna.learn.survey import Survey
from myna.learn.sweep import CutBasis
from myna.lowrank.model import LowRankModel
from myna.lowrank.student import Strings, stacked
from myna.teachers.ledger import Ledger

_LEAST_STRINGS = 50  # plain strings without which nothing useful can be said
_HELD_OUT = 0.3  # of the check's tokens: whole strings; the rest are next tokens
_EXPLORING = 1_000_000  # tokens of evidence that refine a copy which is only to be checked
_GROWING = 2_000_000  # the same where the rank is chosen; the chosen one goes on over all
_START = 200_000  # the same where the copy is only the start of a hidden Markov student,
_LESS, _START_ROUNDS = 0.5, 2  # whose evidence is strings: less of tables and words, few rounds
_KEPT_BACK = 0.07  # of the budget, for the tables that are read last
_CONVERGED = 1e-7  # nats a token: an iteration that gains less ends a hidden Markov climb
_NEW_WORDS = 2  # contradicted prefixes whose suffixes become futures in a round
_MORE = 2  # dimensions tried at a time beyond the test's rank
_LEAST_HORIZON = 8  # tokens from which one basis for all cuts is tried beside
_POOLED = 0.05  # share of the budget for that table


@dataclasses.dataclass(frozen=True)
class SampledProgress:
    """Where learning stands, for whoever shows it.

    stage: "plain", "survey", "refine" or "check"
    round: times that tables were read
    rank: the largest rank over the cuts
    tokens: of the budget, spent
    """

    stage: str
    round: int
    rank: int
    tokens: int


def learn_sampled(
    ledger: Ledger,
    settings: SampledSettings,
    generator: torch.Generator,
    progress: Callable[[SampledProgress], None] = lambda _: None,
) -> SampledResult:
    """Learn a copy of the ledger's teacher from completions.

    ledger: asked for samples only, on the streams "learn" and "check"
    generator: orders the evidence, and draws the sets K

    Raises:
        InputError: where the budget is too small for anything useful, or the structure
            cannot fit the teacher.
        BudgetExhausted: where the least that tables and checks need does not fit.
        TeacherError: where an answer is no completion.
    """
    started = time.perf_counter()
    try:
        run = _Run(ledger, settings, generator, progress)
        refined, check = run.learn()
    except BudgetExhausted as stop:
        raise BudgetExhausted(
            f"{stop}; so few tokens buy no useful copy of this teacher, try {2 * settings.budget:,}"
        ) from stop
    model, stages = run.copy(refined), refined.stages
    if settings.kind is Kind.HMM:
        model = run.hidden(model)
        stages = (*stages, ("hidden Markov", held_out_nats(model, run.held_out)))
        check = run.check(model)
    student, outside = projected(model, settings.projection, generator)
    total = ledger.total()
    report = SampledReport(
        reason=_reason(check),
        structure=run.structure,
        rounds=run.survey.rounds,
        cuts=run.survey.reports(),
        check=check.report,
        mean_log_likelihood=held_out_nats(model, run.held_out),
        stages=stages,
        outside=outside,
        accounts=ledger.accounts(),
        sampled_tokens=total.sampled_tokens,
        prompt_tokens=total.tokens_sent,
        seconds=time.perf_counter() - started,
    )
    return SampledResult(student, report)


class _Earlier(NamedTuple):
    """A round's copy, and the bases that it was read from."""

    refined: Refined
    bases: list[CutBasis]
    extra: int


class _Run:
    """One run: the purses, the answers, the tables."""

    def __init__(
        self,
        ledger: Ledger,
        settings: SampledSettings,
        generator: torch.Generator,
        progress: Callable[[SampledProgress], None],
    ):
        spec = ledger.spec
        if settings.kind is Kind.HMM:
            settings = _for_a_start(settings)
        self.settings, self.generator, self.progress = settings, generator, progress
        self.structure = settings.structure or (
            Structure.STATIONARY if spec.horizon is None else Structure.TIME_VARYING
        )
        self.limit = None if spec.horizon is not None else settings.max_tokens
        self.length = spec.horizon or settings.max_tokens
        check = int(settings.check * settings.budget)
        prompts = settings.count_prompts
        self.asker = Asker(ledger.samples("learn"), settings.budget - check, count_prompts=prompts)
        self.checker = Asker(ledger.samples("check"), check, count_prompts=prompts)
        self._refuse_small()
        self._tell("plain", None)
        self.plain = self._strings(self.asker, int(settings.plain * settings.budget))
        self.held_out = self._strings(self.checker, int(_HELD_OUT * check))
        self.survey = Survey(self.asker, self.plain, settings, self.structure)
        self._checks = 0

    def _refuse_small(self) -> None:
        least = _LEAST_STRINGS * self.length / self.settings.plain
        if self.settings.budget < least:
            raise InputError(
                f"a budget of {self.settings.budget:,} tokens is too small: {_LEAST_STRINGS} whole "
                f"strings of up to {self.length} tokens and their tables take about "
                f"{int(least) + 1:,}; raise the budget"
            )

    def _strings(self, asker: Asker, purse: int) -> Strings:
        """Plain strings worth a purse; where lengths vary, batch by batch until it is spent."""
        end, found = asker.spent + purse, None
        while found is None or asker.spent + self.length <= end:
            count = max(1, (end - asker.spent) // self.length)
            more = asker.strings(count, self.limit)
            found = more if found is None else stacked(found, more)
        return found

    def _tell(self, stage: str, survey: Survey | None) -> None:
        rank, rounds = (survey.rank, survey.rounds) if survey else (1, 0)
        self.progress(SampledProgress(stage, rounds, rank, self.asker.spent + self.checker.spent))

    def learn(self) -> tuple[Refined, Check]:
        """Rounds of survey, refine and check, then the last one with all that is left."""
        settings = self.settings
        exploring = _START if settings.kind is Kind.HMM else _EXPLORING
        self._purse = int((1 - _HELD_OUT) * self.checker.left / (settings.max_rounds + 2))
        refined = best = None
        for _ in range(settings.max_rounds):
            try:
                refined = self._round(most_tokens=exploring, kept=_KEPT_BACK)
                best = _better(best, _Earlier(refined, self.survey.bases, self.survey.extra))
            except BudgetExhausted:
                if refined is None:
                    raise
                break  # these futures are not to be had: what is left buys plain strings
            if not self._learned_words(refined):
                break
        self._spend_rest(_KEPT_BACK)
        try:
            refined = self._last_round(exploring, best)
        except BudgetExhausted:
            refined = self._refined(self.survey, None)  # from the tables as they were read last
        return refined, self.check(self.copy(refined))

    def _last_round(self, exploring: int, best: _Earlier | None) -> Refined:
        settings = self.settings
        if settings.kind is Kind.HMM and settings.states is not None:
            return self._round(most_tokens=exploring)  # its rank decides nothing
        refined = self._with_stationary(self._grown(self.survey))
        if best is None or not self._clearly(best.refined, refined):
            return refined
        self.survey.smaller(best.bases, best.extra)
        if not settings.refine:
            return best.refined
        return continued(best.refined, self.asker.evidence(), self.held_out, self.asker.spec)

    def _clearly(self, one: Refined, other: Refined) -> bool:
        return clearly_better(self.copy(one), self.copy(other), self.held_out)

    def _learned_words(self, refined: Refined) -> bool:
        """New futures from the prefixes that contradict a copy; whether there were any.

        The recorded answers speak first: they are many and cost nothing more. Fresh ones are
        drawn while the last check stays affordable.
        """
        plain = self._fitted.given == 0
        answers = Evidence(*(column[plain] for column in self._fitted))
        recorded = misfits(refined.operators, answers)
        strings = [misfit.history for misfit in recorded if misfit.cut]
        least = LEAST_PREFIXES * price_of_one(self.checker, self.length)
        if self.checker.left >= 2 * max(least, self._purse):
            strings += self.check(self.copy(refined)).contradicted
        new = 0
        for string in strings:
            new += self.survey.add_word(string)
            if new == _NEW_WORDS:
                break
        return new > 0

    def check(self, model: LowRankModel) -> Check:
        """Fresh next tokens, as many as the check's purse still buys."""
        self._tell("check", self.survey)
        first = self._checks * len(self.held_out.lengths) // (self.settings.max_rounds + 2)
        self._checks += 1
        return check_copy(self.checker, model, self.held_out, self._purse, first)

    def hidden(self, model: LowRankModel) -> LowRankModel:
        """Hidden Markov parameters started at the low-rank copy, by maximum likelihood."""
        states = self.settings.states or max(model.ranks)
        self._spend_rest(0.0)
        settings = EmSettings(structure=self.structure, tolerance_nats=_CONVERGED)
        evidence = self.asker.evidence()
        found, _ = refine_hmm(model, evidence, states, settings, self.generator)
        return found

    def _round(
        self, survey: Survey | None = None, most_tokens: int | None = None, kept: float = 0.0
    ) -> Refined:
        survey = survey or self.survey
        self._tell("survey", survey)
        survey.read(int(kept * self.settings.budget))
        self._tell("refine", survey)
        return self._refined(survey, most_tokens)

    def _grown(self, survey: Survey) -> Refined:
        """For one basis for all cuts: more dimensions while held-out strings prefer them.

        A table's test finds the dimensions that stand out of one table's noise; the
        likelihood of all answers can see further ones.
        """
        best = self._round(survey, _GROWING)
        grows = survey.stationary and self.settings.refine
        while grows and survey.rank > 1 and survey.rank + _MORE <= self.settings.max_rank:
            bases, extra = survey.bases, survey.extra
            survey.extra += _MORE
            try:
                grown = self._round(survey, _GROWING)
            except BudgetExhausted:
                survey.smaller(bases, extra)
                break
            if _value(grown) <= _value(best):
                best, grown = self._on_all(best), self._on_all(grown)
                if _value(grown) > _value(best):
                    return grown  # it did not pay on a part of the answers, and does on all
                survey.smaller(bases, extra)
                return best
            best = grown
        return self._on_all(best)

    def _on_all(self, refined: Refined) -> Refined:
        """Goes on over all answers, where a part of them refined it."""
        evidence = self.asker.evidence()
        if not self.settings.refine or evidence.sampled_tokens <= _GROWING:
            return refined
        return continued(refined, evidence, self.held_out, self.asker.spec)

    def _refined(self, survey: Survey, most_tokens: int | None) -> Refined:
        spec, evidence = self.asker.spec, self.asker.evidence()
        if most_tokens is not None:
            evidence = some_draws(evidence, most_tokens, self.generator)
        self._fitted = evidence
        if not self.settings.refine:
            raw = survey.operators(0.0)
            value = held_out_nats(low_rank(raw, spec), self.held_out)
            return Refined(raw, (("spanner", value),), survey.operators(1.0))
        return refine(survey.operators(1.0), evidence, self.held_out, spec, self.generator)

    def _with_stationary(self, refined: Refined) -> Refined:
        """For one basis per cut: the stationary copy instead, where held-out strings prefer it."""
        spec, settings = self.asker.spec, self.settings
        short = spec.horizon is None or spec.horizon < _LEAST_HORIZON
        if self.structure is Structure.STATIONARY or short or not settings.refine:
            return refined
        part = dataclasses.replace(settings, table=_POOLED)
        pooled = Survey(self.asker, self.plain, part, Structure.STATIONARY)
        try:
            other = self._grown(pooled)
        except BudgetExhausted:
            return refined
        stages = (*refined.stages, ("stationary", _value(other)))
        if _value(other) <= _value(refined):
            return refined._replace(stages=stages)
        signed, positive = (unrolled(o, self.length) for o in (other.operators, other.positive))
        return Refined(signed, stages, positive)

    def _spend_rest(self, kept: float) -> None:
        """A share of the budget is kept for later tables; the rest buys plain strings."""
        purse = int(self.asker.left - kept * self.settings.budget)
        if purse >= self.length:
            self.plain = stacked(self.plain, self._strings(self.asker, purse))
            self.survey.add_plain(self.plain)

    def copy(self, refined: Refined) -> LowRankModel:
        """The low-rank model of some operators."""
        return low_rank(refined.operators, self.asker.spec)


def _for_a_start(settings: SampledSettings) -> SampledSettings:
    """The plan of a budget that buys a hidden Markov student."""
    return dataclasses.replace(
        settings,
        table=_LESS * settings.table,
        words=_LESS * settings.words,
        max_rounds=min(_START_ROUNDS, settings.max_rounds),
    )


def _better(best: _Earlier | None, new: _Earlier) -> _Earlier:
    return best if best and _value(best.refined) >= _value(new.refined) else new


def _value(refined: Refined) -> float:
    """Held-out nats a token of the stage that was kept."""
    return max(value for _, value in refined.stages)


def _reason(check: Check) -> str:
    report = check.report
    if report.contradicted:
        return (
            f"{report.contradicted} of {report.prefixes:,} fresh prefixes contradict the copy; "
            "a larger budget buys longer futures"
        )
    return (
        f"no contradiction at {report.prefixes:,} fresh prefixes with {report.draws} next tokens "
        f"each; KL about {report.kl_nats:.3g} nats a string (standard error {report.standard_error:.2g})"
    )
