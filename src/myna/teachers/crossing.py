"""Histories crossed with futures: what a model says of every future after every history.

    cross       log P(f | h)              for h in H, f in F, whole futures
    cross_laws  P(. | h w), nats          for h in H, w in W = the proper prefixes of futures,
                                          the empty one first

A block of these is far larger than the model, so nothing of it is kept by the ledger, and
nothing is asked twice within it: each history is read once, and the futures are read along
their prefix tree after it. |H| |W| next-token queries are what a block costs.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import State, Stepper
from myna.spec import Spec
from myna.teachers.prefixes import Prefixes, check_prefixes, tree_levels
from myna.teachers.stepped import states_of

_ROWS = 2**14  # states stepped together


@runtime_checkable
class Crosses(Protocol):
    """A teacher that answers whole blocks by a road of its own."""

    def cross(self, histories: Prefixes, futures: "Futures") -> Float[Tensor, "history future"]:
        """Log P(f | h)."""
        ...

    def cross_laws(
        self, histories: Prefixes, futures: "Futures"
    ) -> Float[Tensor, "history word token"]:
        """The law after each history and word."""
        ...


@runtime_checkable
class _Asked(Protocol):
    """A teacher or a view of one."""

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        ...

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token laws."""
        ...


class Futures(NamedTuple):
    """Futures and their proper prefixes.

    whole: the futures, each of a token or more
    words: their distinct proper prefixes, the empty word first
    place: (future, longest) which word stands before each token, -1 beyond the end
    """

    whole: Prefixes
    words: Prefixes
    place: Int[Tensor, "future time"]

    @staticmethod
    def of(futures: Prefixes) -> "Futures":
        """Find the words.

        Raises:
            InputError: where there is no future, or an empty one.
        """
        if not len(futures.lengths) or bool((futures.lengths < 1).any()):
            raise InputError("futures need a token or more each, and there must be one at least")
        found: dict[tuple[int, ...], int] = {(): 0}
        place = torch.full((len(futures.lengths), int(futures.lengths.max())), -1)
        for i, row in enumerate(futures.rows()):
            for j in range(len(row)):
                place[i, j] = found.setdefault(row[:j], len(found))
        return Futures(futures, Prefixes.of([list(word) for word in found]), place)


def check_crossing(spec: Spec, histories: Prefixes, futures: Prefixes) -> None:
    """Refuse what no sequence of the language holds: too long, or going on after the stop.

    Raises:
        InputError: as said.
    """
    check_prefixes(spec, histories)
    longest = int(histories.lengths.max()) if len(histories.lengths) else 0
    reach = longest + (int(futures.lengths.max()) if len(futures.lengths) else 0)
    if spec.horizon is not None and reach > spec.horizon:
        raise InputError(
            f"the longest history and future have {reach} tokens together, and the horizon is "
            f"{spec.horizon}; take shorter ones"
        )


def history_groups(histories: Prefixes) -> Iterator[Tensor]:
    """Rows of one length together."""
    for length in histories.lengths.unique().tolist():
        yield (histories.lengths == length).nonzero()[:, 0]


def cross_by_steps(
    model: Stepper, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history future"]:
    """`cross` for a model that is a state."""
    check_crossing(model.spec, histories, futures.whole)
    out = torch.zeros((len(histories.lengths), len(futures.place)), dtype=torch.float64)
    chunk = max(1, _ROWS // len(futures.words.lengths))
    for group in history_groups(histories):
        states = states_of(model, histories.take(group))
        for rows in torch.arange(len(group)).split(chunk):
            part = states.take(rows.to(states.vector.device))
            out[group[rows]] = _scored(model, part, futures).cpu()
    return out


def _scored(model: Stepper, start: State, futures: Futures) -> Float[Tensor, "history future"]:
    """Each token's log-probability from the law after the word before it, added up."""
    steps = start.vector.new_zeros((len(start.vector), *futures.place.shape), dtype=torch.float64)
    for words, laws in _down(model, start, futures.words):
        where = torch.isin(futures.place, words).nonzero()
        i, j = where[:, 0], where[:, 1]
        at = torch.empty(len(futures.words.lengths), dtype=torch.int64)
        at[words] = torch.arange(len(words))
        steps[:, i, j] = laws[:, at[futures.place[i, j]], futures.whole.tokens[i, j]]
    # After an impossible token the state means nothing, and may be NaN.
    return torch.where(steps.isneginf().any(2), -torch.inf, steps.sum(2))


def cross_laws_by_steps(
    model: Stepper, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history word token"]:
    """`cross_laws` for a model that is a state."""
    check_crossing(model.spec, histories, futures.whole)
    shape = (len(histories.lengths), len(futures.words.lengths), model.spec.num_tokens)
    out = torch.empty(shape, dtype=torch.float64)
    chunk = max(1, _ROWS // shape[1])
    for group in history_groups(histories):
        states = states_of(model, histories.take(group))
        for rows in torch.arange(len(group)).split(chunk):
            part = states.take(rows.to(states.vector.device))
            out[group[rows]] = _laws(model, part, futures.words).cpu()
    return out


def _laws(model: Stepper, start: State, words: Prefixes) -> Float[Tensor, "history word token"]:
    shape = (len(start.vector), len(words.lengths), model.spec.num_tokens)
    out = start.vector.new_empty(shape, dtype=torch.float64)
    for rows, laws in _down(model, start, words):
        out[:, rows] = laws
    return out


def _down(model: Stepper, start: State, words: Prefixes) -> Iterator[tuple[Tensor, Tensor]]:
    """Down the tree of words, all histories together: which words, and the laws after them.

    A level's states are history-major: row h * nodes + v is node v after history h.
    """
    n, state = len(start.vector), start
    device = start.vector.device
    for level in tree_levels(words):
        if level.depth:
            nodes = len(state.vector) // n
            at = (torch.arange(n)[:, None] * nodes + level.parents).reshape(-1)
            state, _ = model.step(state.take(at.to(device)), level.tokens.repeat(n).to(device))
        laws = model.law(state).double().reshape(n, -1, model.spec.num_tokens)
        yield level.rows, laws[:, level.nodes]


def cross(
    teacher: _Asked, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history future"]:
    """Log P(f | h) in nats, by the teacher's own road where it has one.

    Raises:
        InputError: for a future that no sequence goes on with.
    """
    check_crossing(teacher.spec, histories, futures.whole)
    if isinstance(teacher, Crosses):
        return teacher.cross(histories, futures)
    if isinstance(teacher, Stepper):
        return cross_by_steps(teacher, histories, futures)
    return cross_by_laws(teacher, histories, futures)


def cross_by_laws(
    teacher: _Asked, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history future"]:
    """Law by law; a pair that has become impossible has no further laws to ask."""
    pairs = histories.extended(futures.whole)
    ahead = futures.whole.lengths.repeat(len(histories.lengths))
    start = pairs.lengths - ahead
    total = torch.zeros(len(ahead), dtype=torch.float64)
    for t in range(int(ahead.max())):
        rows = ((ahead > t) & (total > -torch.inf)).nonzero()[:, 0]
        if not len(rows):
            break
        laws = teacher.laws(pairs.take(rows).cut(start[rows] + t))
        token = pairs.tokens[rows, start[rows] + t]
        total[rows] += laws[torch.arange(len(rows)), token]
    return total.reshape(len(histories.lengths), -1)


def cross_laws(
    teacher: _Asked, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history word token"]:
    """The law (nats) after each history and word, by the teacher's own road where it has one."""
    check_crossing(teacher.spec, histories, futures.whole)
    if isinstance(teacher, Crosses):
        return teacher.cross_laws(histories, futures)
    if isinstance(teacher, Stepper):
        return cross_laws_by_steps(teacher, histories, futures)
    return cross_laws_by_laws(teacher, histories, futures)


def cross_laws_by_laws(
    teacher: _Asked, histories: Prefixes, futures: Futures
) -> Float[Tensor, "history word token"]:
    """Law by law."""
    shape = (len(histories.lengths), len(futures.words.lengths), teacher.spec.num_tokens)
    return teacher.laws(histories.extended(futures.words)).reshape(shape)
