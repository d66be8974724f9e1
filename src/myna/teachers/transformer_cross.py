"""Histories x futures of a transformer: one forward pass a batch of futures.

Each history is read once. Its keys and values are then shared by batches of futures, all of
whose tokens are read in one pass:

    log P(f | h) = sum over t of log softmax(logits(h f_<t))_{f_t}

so a pair costs |f| - 1 tokens and no law is kept that is not asked for. Futures that share
more than half of their prefixes are walked along their tree instead.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int
from torch import Tensor

from myna.teachers.crossing import Crossing
from myna.teachers.key_values import KeyValueNet, Net
from myna.teachers.llama_cross import LlamaCross
from myna.teachers.prefixes import Prefixes


class Crosser:
    """Reads futures after histories.

    net: the model
    futures: the columns
    kept: (future, place) of the laws that are returned
    batch: most futures of a pass
    """

    def __init__(
        self, net: Net, llama: LlamaCross | None, futures: Prefixes, kept: Tensor, batch: int
    ):
        """Sort futures by length, so that a pass has little padding."""
        self._net, self._llama = net, llama
        self._futures, self._kept = futures, kept
        order = torch.argsort(futures.lengths, stable=True)
        longest = int(futures.lengths.max())
        size = batch if llama is None else min(batch, max(1, llama.rows // longest))
        self._parts = list(order.split(size))
        self._rows = size * longest

    def cross(self, histories: Prefixes) -> Crossing:
        """All futures after each history; histories are shared out among threads."""
        count, tokens = len(histories.lengths), self._net.num_tokens
        log_probs = torch.empty((count, len(self._futures.lengths)), dtype=torch.float64)
        laws = torch.empty((count, len(self._kept), tokens), dtype=torch.float64)
        threads = torch.get_num_threads()
        workers = min(threads, count) if self._llama is not None else 1

        def read(worker: int) -> None:
            if workers > 1:
                torch.set_num_threads(1)
            with torch.inference_mode():
                for row in range(worker, count, workers):
                    history = histories.tokens[row : row + 1, : int(histories.lengths[row])]
                    self._read(history, log_probs[row], laws[row])

        try:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(read, range(workers)))
        finally:
            torch.set_num_threads(threads)
        return Crossing(log_probs, laws)

    def _read(self, history: Tensor, log_probs: Tensor, laws: Tensor) -> None:
        """One history's row, in place."""
        net = self._net
        row = net.extend(net.root, history) if history.shape[1] else net.root
        first = net.logits(row)[0].double().log_softmax(0).cpu()
        at_start = self._kept[:, 1] == 0
        laws[at_start] = first
        if self._llama is not None and isinstance(net, KeyValueNet):
            past = [(k[0].contiguous(), v[0].contiguous()) for k, v in net.blocks(row)]
            room = self._llama.room(self._rows)
        for part in self._parts:
            lengths = self._futures.lengths[part]
            tokens = self._futures.tokens[part, : int(lengths.max())].clamp(min=0)
            log_probs[part] = first[tokens[:, 0]]
            if tokens.shape[1] == 1:
                continue
            inside = torch.arange(1, tokens.shape[1]) < lengths[:, None]
            wanted, rows = self._places(part, tokens.shape[1] - 1)
            if self._llama is not None and isinstance(net, KeyValueNet):
                steps, logits, norm = self._llama.follow(past, tokens, room)
                steps = steps.double()
                some = logits[rows] * norm[rows, None]
            else:
                logits = net.follow(row, tokens[:, :-1])
                chosen = logits.gather(2, tokens[:, 1:, None].to(logits.device))[:, :, 0]
                steps = (chosen.double() - logits.double().logsumexp(2)).cpu()
                some = logits.flatten(0, 1)[rows.to(logits.device)].cpu()
            log_probs[part] += torch.where(inside, steps, 0.0).sum(1)
            laws[wanted] = some.double().log_softmax(1)

    def _places(self, part: Tensor, time: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"]]:
        """Which kept laws this part has (beyond the history's), and at which of its rows."""
        place_of = torch.full((len(self._futures.lengths),), -1, dtype=torch.int64)
        place_of[part] = torch.arange(len(part))
        here = place_of[self._kept[:, 0]]
        wanted = ((here >= 0) & (self._kept[:, 1] > 0)).nonzero()[:, 0]
        return wanted, here[wanted] * time + self._kept[wanted, 1] - 1
