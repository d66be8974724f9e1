"""Maximum likelihood for hidden Markov models from recorded answers.

    maximise  l(theta) = sum_i counts_i log Q(completion_i | prompt_i)

over the initial law, transitions and emissions of S hidden states, stationary or with one
table a position. Expected counts come from `forward_backward`, the steps from `climbs`. What
climbs is chosen by the data:

- no prompts: expectation maximisation, plain or accelerated.
- prompts: l holds -log Q(prompt), so the counts are signed and normalising them is no
  ascent. L-BFGS climbs instead.

With pseudo-counts k the objective is l + k * (sum of log parameters): Dirichlet priors, the
mode of the posterior. Default 0. Where we differ from the source: rows with no expected
count keep their old values; held-out answers may stop the climb early.
"""

import dataclasses
import enum
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.learn.climbs import Point, expectation_maximisation, gradient, squared
from myna.learn.evidence import Evidence
from myna.learn.forward_backward import ForwardBackward, HmmTables, prefix_trees
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step, forgetful
from myna.spec import Spec


@dataclasses.dataclass(frozen=True)
class HmmParameters:
    """A hidden Markov model's numbers; one step means stationary.

    initial: (state,), the law of the first hidden state
    transition: (step, state, state), table t moves from position t to t + 1
    emission: (estep, state, token), table t emits at position t

    Raises:
        InputError: shapes that disagree, or rows that are no probability laws.
    """

    initial: Float[Tensor, " state"]
    transition: Float[Tensor, "step state state"]
    emission: Float[Tensor, "estep state token"]

    def __post_init__(self) -> None:
        """Refuse tables that are no hidden Markov model."""
        self.tables.check()

    @property
    def tables(self) -> HmmTables:
        """The bare tensors."""
        return HmmTables(self.initial, self.transition, self.emission)

    def model(self, language: Spec) -> LowRankModel:
        """The student in hidden Markov form: laws E, change[s, o, :] = T[s, :].

        Nothing is read after a stop token, so its change of basis is left as T, too.

        Raises:
            InputError: where the language has another number of tokens.
        """
        num_tokens = self.emission.shape[2]
        steps = []
        for t in range(max(len(self.transition), len(self.emission))):
            moves = self.transition[min(t, len(self.transition) - 1)]
            laws = self.emission[min(t, len(self.emission) - 1)]
            change = forgetful(moves, num_tokens)
            steps.append(Step(laws.contiguous(), change))
        return LowRankModel.of(language, self.initial, tuple(steps))


@dataclasses.dataclass(frozen=True)
class EmSettings:
    """What fitting may choose.

    structure: stationary, or one table a position (random starts only)
    accelerated: extrapolate expectation maximisation (without prompts): one iteration is then
        two or three passes over the evidence
    restarts: random starts; all are reported, the best is returned
    tolerance_nats: stop when an iteration gains less than this, nats per completion token
    max_iterations: of each start
    max_seconds: wall time of all starts together, shared evenly; None means no limit
    transition_pseudo, emission_pseudo: pseudo-counts k added to every cell
    validate_every: iterations between looks at the held-out answers
    patience: looks without a new best before the climb ends
    """

    structure: Structure = Structure.STATIONARY
    accelerated: bool = False
    restarts: int = 1
    tolerance_nats: float = 1e-8
    max_iterations: int = 2000
    max_seconds: float | None = None
    transition_pseudo: float = 0.0
    emission_pseudo: float = 0.0
    validate_every: int = 5
    patience: int = 10

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be fitted."""
        for name in ("restarts", "max_iterations", "validate_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tolerance_nats", "transition_pseudo", "emission_pseudo"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")


class Method(enum.Enum):
    """How the likelihood was climbed."""

    EM = "expectation maximisation"
    SQUARED = "expectation maximisation by squared extrapolation"
    GRADIENT = "L-BFGS on the conditional likelihood"


class Stop(enum.Enum):
    """Why a climb ended."""

    CONVERGED = "an iteration gained less than the tolerance"
    ITERATIONS = "the largest number of iterations was done"
    SECONDS = "the time was spent"
    VALIDATION = "the held-out likelihood had stopped rising"


class TracePoint(NamedTuple):
    """Where a climb stood.

    iteration: parameters updated so many times
    seconds: wall time since the climb began
    log_likelihood: of the evidence, nats per completion token
    validation: of the held-out answers, likewise; None where they were not looked at
    """

    iteration: int
    seconds: float
    log_likelihood: float
    validation: float | None


@dataclasses.dataclass(frozen=True)
class EmReport:
    """How a climb went.

    method: EM, plain or accelerated, or L-BFGS where there are prompts
    stop: why it ended
    trace: one point an iteration, the start first
    kept: the iteration whose parameters are returned
    """

    method: Method
    stop: Stop
    trace: tuple[TracePoint, ...]
    kept: int

    @property
    def iterations(self) -> int:
        """Updates done."""
        return self.trace[-1].iteration

    @property
    def converged(self) -> bool:
        """Whether it ended by the tolerance."""
        return self.stop is Stop.CONVERGED

    @property
    def seconds(self) -> float:
        """Wall time of the climb, validation included."""
        return self.trace[-1].seconds

    @property
    def score(self) -> float:
        """What starts are compared by: of the kept parameters, held-out if there is such."""
        point = self.trace[self.kept]
        return point.log_likelihood if point.validation is None else point.validation


@dataclasses.dataclass(frozen=True)
class EmFit:
    """The best of several starts.

    parameters: the start's with the largest `score`
    student: the same as a low-rank model
    report: how that start went
    restarts: how every start went, in order
    """

    parameters: HmmParameters
    student: LowRankModel
    report: EmReport
    restarts: tuple[EmReport, ...]


def fit_hmm(
    evidence: Evidence,
    start: HmmParameters,
    settings: EmSettings,
    validation: Evidence | None = None,
) -> tuple[HmmParameters, EmReport]:
    """Climb the likelihood from a start; runs where the start's tensors are.

    validation: held-out answers; the parameters that are best on them are returned

    Raises:
        InputError: for evidence that does not fit the start's alphabet, or that the start
            gives probability zero.
    """
    num_tokens, device = start.emission.shape[2], start.initial.device
    engine = ForwardBackward(prefix_trees(evidence, num_tokens, device), len(start.initial))
    held_out = None
    if validation is not None:
        trees = prefix_trees(validation, num_tokens, device)
        held_out = ForwardBackward(trees, len(start.initial))
    method = Method.SQUARED if settings.accelerated else Method.EM
    if bool((evidence.given > 0).any()):
        method = Method.GRADIENT
    climb = {
        Method.EM: expectation_maximisation,
        Method.SQUARED: squared,
        Method.GRADIENT: gradient,
    }[method]
    pseudo = (0.0, settings.transition_pseudo, settings.emission_pseudo)
    iterates = climb(engine, start.tables, pseudo)
    return _follow(engine, held_out, iterates, method, settings)


def baum_welch(
    language: Spec,
    evidence: Evidence,
    num_states: int,
    settings: EmSettings,
    generator: torch.Generator,
    validation: Evidence | None = None,
) -> EmFit:
    """Fit from random starts, all reported; the best by held-out or training likelihood.

    Raises:
        InputError: as `fit_hmm`, or one table a position without a horizon.
    """
    fits: list[tuple[HmmParameters, EmReport]] = []
    began = time.perf_counter()
    for left in range(settings.restarts, 0, -1):
        start = random_start(language, num_states, settings.structure, generator)
        start = HmmParameters(*(table.to(evidence.counts.device) for table in start.tables))
        share = settings
        if settings.max_seconds is not None:
            rest = max(0.0, settings.max_seconds - (time.perf_counter() - began))
            share = dataclasses.replace(settings, max_seconds=rest / left)
        fits.append(fit_hmm(evidence, start, share, validation))
    parameters, report = max(fits, key=lambda fit: fit[1].score)
    return EmFit(parameters, parameters.model(language), report, tuple(r for _, r in fits))


def random_start(
    language: Spec, num_states: int, structure: Structure, generator: torch.Generator
) -> HmmParameters:
    """Rows drawn uniformly from the simplex, Dirichlet(1, ..., 1).

    Raises:
        InputError: one table a position without a horizon.
    """
    if structure is Structure.TIME_VARYING and language.horizon is None:
        raise InputError(
            "one table a position needs a language with a horizon, and this one has none; "
            "fit it as stationary"
        )
    steps = 1 if structure is Structure.STATIONARY else language.horizon

    def rows(*shape: int) -> Tensor:
        weights = torch.empty(shape, dtype=torch.float64, device=generator.device)
        weights.exponential_(generator=generator)
        return weights / weights.sum(-1, keepdim=True)

    return HmmParameters(
        rows(num_states),
        rows(steps or 1, num_states, num_states),
        rows(steps or 1, num_states, language.num_tokens),
    )


def _follow(
    engine: ForwardBackward,
    held_out: ForwardBackward | None,
    iterates: Iterator[Point],
    method: Method,
    settings: EmSettings,
) -> tuple[HmmParameters, EmReport]:
    """Follow the iterates until a rule stops them."""
    began, before, stop = time.perf_counter(), -math.inf, None
    trace: list[TracePoint] = []
    best, best_value, kept, looks = None, -math.inf, 0, 0
    for iteration, point in enumerate(iterates):
        if point.log_likelihood == -math.inf:
            raise InputError(
                "the start gives some answer probability zero; start from parameters without zeros"
            )
        seconds = time.perf_counter() - began
        if (point.objective - before) / engine.tokens < settings.tolerance_nats:
            stop = Stop.CONVERGED
        elif iteration == settings.max_iterations:
            stop = Stop.ITERATIONS
        elif settings.max_seconds is not None and seconds >= settings.max_seconds:
            stop = Stop.SECONDS
        value = None
        if held_out is not None and (stop or iteration % settings.validate_every == 0):
            value = held_out.log_likelihood(point.tables) / held_out.tokens
            looks = 0 if value > best_value else looks + 1
            stop = stop or (Stop.VALIDATION if looks == settings.patience else None)
        if held_out is None or (value is not None and (best is None or value > best_value)):
            best, best_value, kept = point.tables, -math.inf if value is None else value, iteration
        seconds = time.perf_counter() - began
        trace.append(TracePoint(iteration, seconds, point.log_likelihood / engine.tokens, value))
        before = point.objective
        if stop:
            break
    assert best is not None and stop is not None  # iterates never end by themselves
    return HmmParameters(*best), EmReport(method, stop, tuple(trace), kept)
