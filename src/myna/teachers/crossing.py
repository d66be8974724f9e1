"""Every history with every future: log P(f | h), and the laws on the way.

    log P(f | h) = sum over t of log P(f_t | h f_1 ... f_t-1)

The laws that this sums are those after h and each proper prefix of f. Futures share
prefixes: `FutureTree` names each distinct one once, and each is asked once a history.
A teacher that can do better than asking law by law says so by a method `cross`; one that
scores the tokens of a prompt needs one prompt for each history and future.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import Stepper
from myna.spec import Spec
from myna.teachers.oracle import Laws
from myna.teachers.prefixes import Prefixes
from myna.teachers.stepped import SteppedTeacher, states_of

_ROOM = 2**26  # bytes of laws made together


class Crossing(NamedTuple):
    """What was read of histories x futures.

    log_probs: (history, future) log P(f | h), nats; -inf where it is impossible
    laws: (history, kept, token) next-token log-probabilities (nats) at the kept nodes
    """

    log_probs: Float[Tensor, "history future"]
    laws: Float[Tensor, "history kept token"]


@runtime_checkable
class Crosses(Protocol):
    """A teacher with a way of its own to read histories x futures."""

    def cross(
        self, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
    ) -> Crossing:
        """As `crossed`."""
        ...


@runtime_checkable
class ScoresPrompts(Protocol):
    """A teacher at the level of laws whose one answer scores all tokens of a prompt."""

    def prompt_scores(self, prompts: Prefixes) -> Float[Tensor, "batch token"]:
        """Log P(x_i | x_1 .. x_i-1) in nats; NaN beyond each prompt."""
        ...

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """As `Laws.laws`."""
        ...


@dataclasses.dataclass(frozen=True)
class FutureTree:
    """The distinct proper prefixes of futures, those after which a law is needed.

    node_of: (future, place) the node of f_1 ... f_place, place 0 .. |f| - 1; -1 beyond
    pairs: (node, 2) one (future, place) of each node, by depth
    """

    node_of: Int[Tensor, "future place"]
    pairs: Int[Tensor, "node 2"]

    @staticmethod
    def of(futures: Prefixes) -> "FutureTree":
        """Number the nodes, depth by depth."""
        count, width = futures.tokens.shape
        tokens, lengths = futures.tokens.numpy(), futures.lengths.numpy()
        node_of = np.full((count, width), -1, np.int64)
        pairs: list[np.ndarray] = []
        above = np.zeros(count, np.int64)
        total = 0
        for place in range(width):
            inside = (lengths > place).nonzero()[0]
            if not len(inside):
                break
            edge = tokens[inside, place - 1] if place else np.zeros(len(inside), np.int64)
            names = np.stack([above[inside], edge], 1)
            _, first, here = np.unique(names, axis=0, return_index=True, return_inverse=True)
            above[inside] = here.reshape(-1)
            node_of[inside, place] = total + above[inside]
            pairs.append(np.stack([inside[first], np.full(len(first), place)], 1))
            total += len(first)
        found = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
        return FutureTree(torch.from_numpy(node_of), torch.from_numpy(found))

    @functools.cached_property
    def last(self) -> Int[Tensor, " node"]:
        """The distinct nodes before a future's last token, the deepest laws of each."""
        deepest = (self.node_of >= 0).sum(1) - 1
        return self.node_of.gather(1, deepest.clamp(min=0)[:, None])[:, 0].unique()


def crossed(
    teacher: Laws, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"] | None = None
) -> Crossing:
    """Log P(f | h) for every history and future, and laws at chosen nodes.

    kept: (future, place) of each law to return: the one after h f_1 ... f_place; none unless said

    Raises:
        InputError: an empty future, or one that cannot follow a history; a kept law after
            a prefix of probability zero.
    """
    check_crossing(teacher.spec, histories, futures)
    kept = torch.zeros((0, 2), dtype=torch.int64) if kept is None else kept
    if isinstance(teacher, Crosses):
        return teacher.cross(histories, futures, kept)
    # all laws at one depth of the tree exist at once
    room = 8 * teacher.spec.num_tokens * len(futures.lengths)
    parts = []
    for rows in torch.arange(len(histories.lengths)).split(max(1, _ROOM // room)):
        some = histories.take(rows)
        if isinstance(teacher, SteppedTeacher):
            parts.append(crossed_by_steps(teacher, some, futures, kept))
        else:
            parts.append(crossed_by_laws(teacher, some, futures, kept))
    log_probs, laws = zip(*parts, strict=True)
    return Crossing(torch.cat(log_probs), torch.cat(laws))


def crossed_by_steps(
    model: Stepper, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
) -> Crossing:
    """State by state along the tree of futures, each history's state made once."""
    tree = FutureTree.of(futures)
    count, width = len(histories.lengths), len(futures.lengths)
    log_probs = torch.zeros((count, width), dtype=torch.float64)
    laws = torch.full((count, len(kept), model.spec.num_tokens), torch.nan, dtype=torch.float64)
    for length in histories.lengths.unique().tolist():
        rows = (histories.lengths == length).nonzero()[:, 0]
        state = states_of(model, histories.take(rows))
        above, wide = 0, 1
        for place in range(int(futures.lengths.max())):
            nodes = (tree.pairs[:, 1] == place).nonzero()[:, 0]
            if place:  # from the parents' states, node by node of each history
                future = tree.pairs[nodes, 0]
                parent = tree.node_of[future, place - 1] - above
                token = futures.tokens[future, place - 1].repeat(len(rows))
                start = torch.arange(len(rows))[:, None] * wide + parent
                state, _ = model.step(state.take(start.reshape(-1)), token)
            above, wide = int(nodes[0]), len(nodes)
            law = model.law(state).unflatten(0, (len(rows), wide))
            inside = (futures.lengths > place).nonzero()[:, 0]
            local = tree.node_of[inside, place] - above
            token = futures.tokens[inside, place].expand(len(rows), -1)
            steps = law[:, local].gather(2, token[:, :, None])[:, :, 0]
            reached = log_probs[rows]
            before = reached[:, inside]
            # nothing follows what is impossible, whatever its state says
            log_probs[rows[:, None], inside] = torch.where(
                before.isneginf(), before, before + steps
            )
            wanted = (kept[:, 1] == place).nonzero()[:, 0]
            if bool(reached[:, kept[wanted, 0]].isneginf().any()):
                raise InputError(_NONE)
            column = tree.node_of[kept[wanted, 0], place] - above
            laws[rows[:, None], wanted] = law[:, column]
    return Crossing(log_probs, laws)


def check_crossing(spec: Spec, histories: Prefixes, futures: Prefixes) -> None:
    """Refuse histories that have ended and futures that do not follow them.

    Raises:
        InputError: naming what does not fit.
    """
    for name, rows in (("history", histories), ("future", futures)):
        inside = torch.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        wrong = inside & ((rows.tokens < 0) | (rows.tokens >= spec.num_tokens))
        if bool(wrong.any()):
            raise InputError(f"a {name} has tokens outside 0..{spec.num_tokens - 1}")
    if not len(histories.lengths) or not len(futures.lengths):
        raise InputError("a block needs at least one history and one future")
    if bool((futures.lengths < 1).any()):
        raise InputError("a future needs at least one token, and one has none")
    longest = int(histories.lengths.max()) + int(futures.lengths.max())
    if spec.horizon is not None and longest > spec.horizon:
        raise InputError(
            f"the longest history and future have {longest} tokens together, and the horizon is "
            f"{spec.horizon}; use shorter ones"
        )
    if spec.stop is not None:
        before_last = torch.arange(futures.tokens.shape[1]) < futures.lengths[:, None] - 1
        early = (futures.tokens == spec.stop) & before_last
        if bool(early.any()) or bool((histories.tokens == spec.stop).any()):
            raise InputError(
                f"the stop token {spec.alphabet[spec.stop]!r} may only come last in a future and "
                "in no history; leave such strings out"
            )


_NONE = (
    "a law was wanted after a history and a future of probability zero, and there is none; "
    "choose futures that every history can take"
)


def crossed_by_laws(
    teacher: Laws, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
) -> Crossing:
    """Law by law, depth by depth; nothing is asked after a prefix of probability zero."""
    tree = FutureTree.of(futures)
    count, tokens = len(histories.lengths), teacher.spec.num_tokens
    log_probs = torch.zeros((count, len(futures.lengths)), dtype=torch.float64)
    laws = torch.full((count, len(kept), tokens), torch.nan, dtype=torch.float64)
    kept_nodes = tree.node_of[kept[:, 0], kept[:, 1]]
    for place in range(int(futures.lengths.max())):
        nodes = (tree.pairs[:, 1] == place).nonzero()[:, 0]
        words = _words(futures, tree.pairs[nodes])
        possible = ~log_probs[:, tree.pairs[nodes, 0]].isneginf()
        asked = histories.extended(words).take(possible.reshape(-1).nonzero()[:, 0])
        # After a prefix of probability zero any law does: what was added up stays -inf.
        here = torch.zeros((count, len(nodes), tokens), dtype=torch.float64)
        here[possible] = teacher.laws(asked)
        inside = (futures.lengths > place).nonzero()[:, 0]
        local = tree.node_of[inside, place] - nodes[0]
        steps = here[:, local].gather(
            2, futures.tokens[inside, place].expand(count, -1)[:, :, None]
        )
        log_probs[:, inside] += steps[:, :, 0]
        wanted = (kept[:, 1] == place).nonzero()[:, 0]
        column = kept_nodes[wanted] - nodes[0]
        if not bool(possible[:, column].all()):
            raise InputError(_NONE)
        laws[:, wanted] = here[:, column]
    return Crossing(log_probs, laws)


def crossed_by_scores(
    teacher: ScoresPrompts, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
) -> Crossing:
    """One scored prompt h f for each pair; laws are asked at the kept nodes alone."""
    n, m = len(histories.lengths), len(futures.lengths)
    scores = teacher.prompt_scores(histories.extended(futures)).unflatten(0, (n, m))
    place = torch.arange(scores.shape[2]) - histories.lengths[:, None, None]
    inside = (place >= 0) & (place < futures.lengths[:, None])
    steps = torch.where(inside, scores, 0.0)
    before = inside[:, kept[:, 0]] & (place < kept[:, 1, None])
    if bool((before & steps[:, kept[:, 0]].isneginf()).any()):
        raise InputError(_NONE)
    laws = teacher.laws(histories.extended(_words(futures, kept)))
    return Crossing(steps.sum(2), laws.unflatten(0, (n, len(kept))))


def _words(futures: Prefixes, pairs: Int[Tensor, "node 2"]) -> Prefixes:
    """The prefix f_1 ... f_place of each (future, place)."""
    inside = torch.arange(futures.tokens.shape[1]) < pairs[:, 1, None]
    return Prefixes(torch.where(inside, futures.tokens[pairs[:, 0]], -1), pairs[:, 1])
