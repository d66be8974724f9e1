"""Histories x futures of a transformer: one forward pass a batch of futures.

Each history is read once. Its keys and values are then shared by batches of futures, all of
whose tokens are read in one pass:

    log P(f | h) = sum over t of log softmax(logits(h f_<t))_{f_t}

so a pair costs |f| - 1 tokens and no law is kept that is not asked for. Futures that share
more than half of their prefixes are walked along their tree instead.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from myna.teachers.crossing import Crossing
from myna.teachers.key_values import KeyValueNet, Net
from myna.teachers.llama_cross import LlamaCross
from myna.teachers.prefixes import Prefixes


class Crosser:
    """Reads futures after histories.

    net: the model
    llama: the same model's fused passes, where it has them
    futures: the columns
    kept: (future, place) of the laws that are returned
    batch: most futures of a pass
    """

    def __init__(
        self, net: Net, llama: LlamaCross | None, futures: Prefixes, kept: Tensor, batch: int
    ):
        """Sort futures by length, so that a pass has little padding."""
        self._net = net
        self._llama = llama if isinstance(net, KeyValueNet) else None
        self._futures, self._kept = futures, kept
        order = torch.argsort(futures.lengths, stable=True)
        longest = int(futures.lengths.max())
        size = batch if llama is None else min(batch, max(1, llama.rows // longest))
        self._parts = [self._part(rows) for rows in order.split(size)]
        self._rows = size * longest

    def _part(self, rows: Int[Tensor, " future"]) -> "_Part":
        lengths = self._futures.lengths[rows]
        tokens = self._futures.tokens[rows, : int(lengths.max())].clamp(min=0)
        inside = torch.arange(1, tokens.shape[1]) < lengths[:, None]
        place_of = torch.full((len(self._futures.lengths),), -1, dtype=torch.int64)
        place_of[rows] = torch.arange(len(rows))
        here = place_of[self._kept[:, 0]]
        kept = ((here >= 0) & (self._kept[:, 1] > 0)).nonzero()[:, 0]
        places = here[kept] * (tokens.shape[1] - 1) + self._kept[kept, 1] - 1
        return _Part(rows, tokens, inside, kept, places)

    def cross(self, states: list[Tensor]) -> Crossing:
        """All futures after each history; histories are shared out among threads.

        states: the row of each history, (1, width)
        """
        count, tokens = len(states), self._net.num_tokens
        log_probs = torch.empty((count, len(self._futures.lengths)), dtype=torch.float64)
        laws = torch.empty((count, len(self._kept), tokens), dtype=torch.float64)
        threads = torch.get_num_threads()
        workers = 1 if self._llama is None else min(threads, count)

        def read(worker: int) -> None:
            if workers > 1:
                torch.set_num_threads(1)
            with torch.inference_mode():
                follow = self._follower()
                for row in range(worker, count, workers):
                    self._read(states[row], follow, log_probs[row], laws[row])

        try:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(read, range(workers)))
        finally:
            torch.set_num_threads(threads)
        return Crossing(log_probs, laws)

    def _follower(self) -> "_Follow":
        """What reads a part after a state, in room of its own."""
        net, llama = self._net, self._llama
        if llama is not None and isinstance(net, KeyValueNet):
            room = llama.room(self._rows)

            def fused(state: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
                past = [(k[0].contiguous(), v[0].contiguous()) for k, v in net.blocks(state)]
                steps, logits, norm = llama.follow(past, part.tokens, room)
                return steps.double(), logits[part.places] * norm[part.places, None]

            return fused

        def plain(state: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
            logits = net.follow(state, part.tokens[:, :-1])
            wanted = part.tokens[:, 1:, None].to(logits.device)
            chosen = logits.gather(2, wanted)[:, :, 0].double()
            steps = chosen - logits.double().logsumexp(2)
            return steps.cpu(), logits.flatten(0, 1)[part.places.to(logits.device)].cpu()

        return plain

    def _read(self, state: Tensor, follow: "_Follow", log_probs: Tensor, laws: Tensor) -> None:
        """One history's row, in place."""
        first = self._net.logits(state)[0].double().log_softmax(0).cpu()
        laws[self._kept[:, 1] == 0] = first
        for part in self._parts:
            log_probs[part.rows] = first[part.tokens[:, 0]]
            if part.tokens.shape[1] > 1:
                steps, logits = follow(state, part)
                log_probs[part.rows] += torch.where(part.inside, steps, 0.0).sum(1)
                laws[part.kept] = logits.double().log_softmax(1)


class _Part(NamedTuple):
    """Futures read in one pass.

    rows: which
    tokens: (future, time)
    inside: (future, time - 1) where a future has a token, from its second on
    kept: which kept laws are theirs, beyond those right after the history
    places: at which (future, time) of the pass they are read
    """

    rows: Int[Tensor, " future"]
    tokens: Int[Tensor, "future time"]
    inside: Bool[Tensor, "future later"]
    kept: Int[Tensor, " kept"]
    places: Int[Tensor, " kept"]


_Follow = Callable[[Tensor, _Part], tuple[Tensor, Tensor]]  # log P of tokens, kept logits
