"""Hidden Markov parameters started at a low-rank student.

Expectation maximisation finds a maximum near its start, so the start is what a student can
give. Two starts are made, both from the student alone and the recorded strings:

- clusters. The student reads the strings; before each token it predicts

      phi_t = (P(x_t = . | x_<t), P(x_t+1 = . | x_<t)),     z_t = cluster of sqrt(phi_t),

  by k-means in Hellinger distance (k-means++: Arthur and Vassilvitskii 2007). The counts of
  z_1, (z_t, z_t+1) and (z_t, x_t), smoothed, are the parameters: latent variable
  distillation (Liu, Zhang and Van den Broeck, arXiv 2210.04398, recalled).
- states. A stationary student of rank S that is near a hidden Markov model has matrices
  A_o A^-1 with nearly common eigenvectors, the beliefs of `lowrank.hidden`. Several random
  combinations are diagonalised and what falls outside the simplex is cut off.

Each start gets a few sweeps of expectation maximisation on the same strings; the likeliest
goes on. Merging states follows Ueda, Nakano, Ghahramani and Hinton (2000, recalled), without
their splits. We differ from the sources in clustering a student's predictions instead of a
network's embeddings, and in letting the likelihood choose between the two starts.
"""

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.baum_welch import EmReport, EmSettings, HmmParameters, fit_hmm
from myna.learn.evidence import Evidence
from myna.learn.report import Structure
from myna.lowrank.model import LowRankModel

_STRINGS = 2000  # strings that the student reads
_LLOYD = 15  # sweeps of k-means
_TRIALS = 4  # random combinations that are diagonalised
_SWEEPS = 15  # of expectation maximisation before starts are compared
_SPARE, _WIDE_STEPS = 0.5, 150  # more states than asked for, and iterations with them
_POSITIONS = 64  # over which states are weighed where strings have no horizon
_LEAST = 1e-8  # probability of what a climb on some strings made impossible
_SHARE = 0.05  # mixed in of the mean row, so that no start has zeros


def hidden_start(
    student: LowRankModel,
    evidence: Evidence,
    states: int,
    structure: Structure,
    generator: torch.Generator,
) -> HmmParameters:
    """Parameters from which `fit_hmm` climbs.

    states: S, hidden states; any number, also other than the student's rank

    Raises:
        InputError: no states asked for, or no recorded string to read.
    """
    if states < 1:
        raise InputError(f"a hidden Markov student needs at least 1 state, got {states}")
    read = some_strings(evidence, generator)
    starts = [_clustered(student, read, states, structure, generator)]
    single = structure is Structure.STATIONARY and len(student.steps) == 1
    if single and student.spec.stop is None and student.steps[0].rank == states:
        starts += diagonalised_starts(student, generator)
    sweeps = EmSettings(max_iterations=_SWEEPS)
    tried = [fit_hmm(read, start, sweeps) for start in starts]
    return max(tried, key=lambda fit: fit[1].trace[-1].log_likelihood)[0]


def refine_hmm(
    student: LowRankModel,
    evidence: Evidence,
    states: int,
    settings: EmSettings,
    generator: torch.Generator,
) -> tuple[LowRankModel, EmReport]:
    """The student in hidden Markov form, its likelihood climbed.

    A stationary one climbs first with half as many states again, which are then merged:
    of the maxima that a climb with S states ends in, those reached from there were higher.

    Nothing is held out: S (S + O) parameters lose half of their number, over the number of
    strings, in nats a string, and strings that were held out would cost more than that.

    Raises:
        InputError: as `hidden_start` and `fit_hmm`.
    """
    spare = math.ceil(_SPARE * states) if settings.structure is Structure.STATIONARY else 0
    start = hidden_start(student, evidence, states + spare, settings.structure, generator)
    if spare:
        wide = dataclasses.replace(settings, max_iterations=_WIDE_STEPS)
        start, _ = fit_hmm(evidence, _possible(start), wide)
        start = merged_states(start, states, student.spec.horizon or _POSITIONS)
    parameters, report = fit_hmm(evidence, _possible(start), settings)
    return parameters.model(student.spec), report


def _possible(parameters: HmmParameters) -> HmmParameters:
    """Nothing impossible: what some strings lack, others may have."""
    tables = (table.clamp(min=_LEAST) for table in parameters.tables)
    return HmmParameters(*(table / table.sum(-1, keepdim=True) for table in tables))


def merged_states(parameters: HmmParameters, states: int, positions: int) -> HmmParameters:
    """A stationary model with its most alike states merged, pair by pair.

    With w the states' shares of the first positions and phi_s the laws of the next three
    tokens from state s, merging s and r loses about
    w_s KL(phi_s || m) + w_r KL(phi_r || m) nats, m their weighted mean; the least is merged.

    states: S to be left
    positions: over which the shares are taken
    """
    first, moves, emits = parameters.initial, parameters.transition[0], parameters.emission[0]
    share, at = torch.zeros_like(first), first
    for _ in range(positions):
        share, at = share + at / positions, at @ moves
    while len(share) > states:
        i, j = _most_alike(share, moves, emits)
        part = share[[i, j]] + torch.finfo(share.dtype).tiny  # even where both shares are 0
        part = part / part.sum()
        # row i becomes the mean of both, column i their sum; then j is dropped
        share, first, moves, emits = (table.clone() for table in (share, first, moves, emits))
        moves[i], emits[i] = part @ moves[[i, j]], part @ emits[[i, j]]
        moves[:, i] += moves[:, j]
        share[i] += share[j]
        first[i] += first[j]
        kept = torch.arange(len(share), device=share.device) != j
        share, first, moves, emits = share[kept], first[kept], moves[kept][:, kept], emits[kept]
    return HmmParameters(
        *(table / table.sum(-1, keepdim=True) for table in (first, moves[None], emits[None]))
    )


def _most_alike(
    share: Float[Tensor, " state"],
    moves: Float[Tensor, "state state"],
    emits: Float[Tensor, "state token"],
) -> tuple[int, int]:
    """The pair of states whose merging loses least."""
    laws = torch.cat([emits, moves @ emits, moves @ moves @ emits], 1)
    weights = torch.stack([share[:, None].expand(-1, len(share)), share.expand(len(share), -1)])
    mean = weights[0, :, :, None] * laws[:, None] + weights[1, :, :, None] * laws
    mean = mean / weights.sum(0).clamp(min=torch.finfo(share.dtype).tiny)[:, :, None]
    loss = share[:, None] * torch.xlogy(laws[:, None], laws[:, None] / mean).nan_to_num().sum(2)
    loss = loss + loss.T
    loss.fill_diagonal_(torch.inf)
    i, j = divmod(int(loss.argmin()), len(share))
    return min(i, j), max(i, j)


def _order(rows: int, generator: torch.Generator, device: torch.device) -> Int[Tensor, " row"]:
    """A random order of the rows, on their device."""
    return torch.randperm(rows, generator=generator, device=generator.device).to(device)


def some_strings(evidence: Evidence, generator: torch.Generator, most: int = _STRINGS) -> Evidence:
    """Up to `most` plain strings; without any, prompts are read as if drawn."""
    plain = (evidence.given == 0) & (evidence.lengths > 0) & (evidence.counts > 0)
    if not bool(plain.any()):
        plain = (evidence.lengths > 0) & (evidence.counts > 0)
    rows = plain.nonzero()[:, 0]
    if not len(rows):
        raise InputError("a start needs recorded strings to read, and the evidence has none")
    rows = rows[_order(len(rows), generator, rows.device)[:most]]
    part = Evidence(*(field[rows] for field in evidence))
    return part._replace(given=torch.zeros_like(part.given))


def _clustered(
    student: LowRankModel,
    read: Evidence,
    states: int,
    structure: Structure,
    generator: torch.Generator,
) -> HmmParameters:
    """Counts of the clusters of what the student predicts."""
    features = predicted_laws(student, read).sqrt()
    width, tokens = features.shape[1], student.spec.num_tokens
    alive = torch.arange(width, device=read.lengths.device) < read.lengths[:, None]
    labels = torch.zeros_like(read.tokens)
    if structure is Structure.STATIONARY:
        labels[alive] = k_means(features[alive], states, generator)
        steps = 1
    else:
        steps = student.spec.horizon or width
        for t in alive.any(0).nonzero()[:, 0].tolist():  # stops may end all strings before
            labels[alive[:, t], t] = k_means(features[alive[:, t], t], states, generator)
    position = torch.arange(width, device=labels.device).clamp(max=steps - 1).expand_as(labels)
    weight = read.counts[:, None].expand_as(labels)
    both = alive[:, 1:]
    moves = (position[:, :-1] * states + labels[:, :-1]) * states + labels[:, 1:]
    emits = (position * states + labels) * tokens + read.tokens
    first = torch.bincount(labels[:, 0], weight[:, 0], states)
    pairs = torch.bincount(moves[both], weight[:, 1:][both], steps * states**2)
    seen = torch.bincount(emits[alive], weight[alive], steps * states * tokens)
    return HmmParameters(
        _smoothed(first[None])[0],
        _smoothed(pairs.view(steps, states, states)),
        _smoothed(seen.view(steps, states, tokens)),
    )


def predicted_laws(student: LowRankModel, read: Evidence) -> Float[Tensor, "row width feature"]:
    """The laws of the next token and of the one after it, side by side."""
    state, found = student.initial(len(read.lengths)), []
    width = read.tokens.shape[1]
    for t in range(width):
        here, after = student.step_at(t), student.step_at(t + 1)
        law = student.law(state).exp()
        later = law
        if t + 1 < (student.spec.horizon or width + 1):
            later = (state.vector @ here.operators.sum(0) @ after.laws).clamp(min=0)
            later = later / later.sum(1, keepdim=True).clamp(min=torch.finfo(law.dtype).tiny)
        found.append(torch.cat([law, later], 1))
        if t + 1 < width:  # past its end a row reads token 0, and what follows is not used
            state, _ = student.step(state, read.tokens[:, t].clamp(min=0))
    return torch.stack(found, 1)


def k_means(
    points: Float[Tensor, "point feature"], clusters: int, generator: torch.Generator
) -> Int[Tensor, " point"]:
    """Labels by k-means++ and a fixed number of Lloyd's sweeps."""
    near = points.new_full((len(points),), float("inf"))
    centres: list[Tensor] = []
    for _ in range(clusters):
        weights = torch.ones_like(near) if not centres else near.clamp(min=1e-12)
        level = torch.rand((), generator=generator, dtype=points.dtype, device=generator.device)
        sums = weights.cumsum(0)
        pick = torch.searchsorted(sums, level.to(points.device) * sums[-1])
        centres.append(points[pick.clamp(max=len(points) - 1)])
        near = torch.minimum(near, (points - centres[-1]).square().sum(1))
    centre = torch.stack(centres)
    for _ in range(_LLOYD):
        labels = (centre.square().sum(1) - 2 * points @ centre.T).argmin(1)
        sizes = torch.bincount(labels, minlength=clusters)[:, None]
        sums = torch.zeros_like(centre).index_add_(0, labels, points)
        centre = torch.where(sizes > 0, sums / sizes.clamp(min=1), centre)
    return (centre.square().sum(1) - 2 * points @ centre.T).argmin(1)


def _smoothed(counts: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
    """Rows normalised, with a share of the mean row and a pseudo-count of it."""
    mean = counts.sum(-2, keepdim=True) + 1
    mean = mean / mean.sum(-1, keepdim=True)
    rows = counts + (_SHARE * counts.sum(-1, keepdim=True) + 1) * mean
    return rows / rows.sum(-1, keepdim=True)


def diagonalised_starts(student: LowRankModel, generator: torch.Generator) -> list[HmmParameters]:
    """One start from each random combination that has a usable set of eigenvectors."""
    step, found = student.steps[0], []
    everything = step.operators.sum(0)
    if not float(torch.linalg.cond(everything)) < 1e12:
        return found
    for _ in range(_TRIALS):
        weights = torch.rand(
            len(step.operators),
            generator=generator,
            dtype=everything.dtype,
            device=generator.device,
        ).to(everything.device)
        mixed = torch.einsum("o,oij->ij", weights, step.operators)
        values, vectors = torch.linalg.eig(torch.linalg.solve(everything, mixed, left=False))
        # noise can pair two eigenvectors; their real and imaginary parts span the same plane
        real = torch.where(values.imag < 0, vectors.imag, vectors.real)
        if not float(torch.linalg.cond(real)) < 1e12:
            continue
        beliefs = real * torch.linalg.solve(real, real.new_ones(len(real)))
        if not float(torch.linalg.cond(beliefs)) < 1e12:
            continue
        inverse = torch.linalg.inv(beliefs)
        tables = (student.first @ beliefs, inverse @ step.laws, inverse @ everything @ beliefs)
        first, emission, transition = (_inside(table) for table in tables)
        found.append(HmmParameters(first, transition[None], emission[None]))
    return found


def _inside(table: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
    """Negative parts cut off, mixed with the uniform law, rows divided by their sums."""
    positive = table.clamp(min=0)
    positive = positive / positive.sum(-1, keepdim=True).clamp(min=torch.finfo(table.dtype).tiny)
    mixed = (1 - _SHARE) * positive + _SHARE / table.shape[-1]
    return mixed / mixed.sum(-1, keepdim=True)
