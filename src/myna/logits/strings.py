"""Histories and futures for a logit matrix: pieces of equal length, all different.

From texts: each text is cut into consecutive pieces, the pieces are shuffled, and the first
are histories, the next futures, so that no future follows its own history. From the
teacher: histories are the openings of its draws, futures the second halves of others.
"""

import torch

from myna.errors import InputError
from myna.teachers.ledger import LawsView
from myna.teachers.oracle import Laws, Stream
from myna.teachers.prefixes import Prefixes

_ROUNDS = 20  # of drawing, before too few different strings are said to be too few


def from_texts(
    texts: list[list[int]],
    histories: int,
    futures: int,
    tokens: int,
    generator: torch.Generator,
    stop: int | None = None,
) -> tuple[Prefixes, Prefixes]:
    """Pieces of texts; pieces with the stop token are left out.

    Raises:
        InputError: texts with fewer different pieces.
    """
    pieces: dict[tuple[int, ...], None] = {}
    for text in texts:
        for start in range(0, len(text) - tokens + 1, tokens):
            piece = tuple(text[start : start + tokens])
            if stop is None or stop not in piece:
                pieces.setdefault(piece)
    if len(pieces) < histories + futures:
        raise InputError(
            f"{histories} histories and {futures} futures of {tokens} tokens were wanted, and the "
            f"texts have {len(pieces)} different pieces; give more text, or ask for fewer"
        )
    order = torch.randperm(len(pieces), generator=generator).tolist()
    rows = list(pieces)
    chosen = [rows[i] for i in order[: histories + futures]]
    return Prefixes.of(chosen[:histories]), Prefixes.of(chosen[histories:])


def from_draws(
    teacher: Laws | LawsView, histories: int, futures: int, tokens: int, seed: int
) -> tuple[Prefixes, Prefixes]:
    """Draws of the teacher's own that last for 2 x tokens.

    Raises:
        InputError: a horizon too short, or too few different strings among many draws.
    """
    spec = teacher.spec
    if spec.horizon is not None and spec.horizon < 2 * tokens:
        raise InputError(
            f"histories and futures of {tokens} tokens need a horizon of {2 * tokens}, and it is "
            f"{spec.horizon}; ask for fewer tokens"
        )
    wanted, first = histories + futures, 0
    openings: dict[tuple[int, ...], None] = {}
    endings: dict[tuple[int, ...], None] = {}
    for _ in range(_ROUNDS):
        drawn = _draw(teacher, wanted, 2 * tokens, first, seed)
        first += wanted
        for row in drawn:
            if len(row) < 2 * tokens or (spec.stop is not None and row[-1] == spec.stop):
                continue
            if len(openings) < histories and row[:tokens] not in openings:
                openings.setdefault(row[:tokens])
            elif len(endings) < futures:
                endings.setdefault(row[tokens:])
        if len(openings) == histories and len(endings) == futures:
            return Prefixes.of(list(openings)), Prefixes.of(list(endings))
    raise InputError(
        f"{histories} histories and {futures} futures of {tokens} tokens were wanted, and {first} "
        f"draws have {len(openings)} and {len(endings)} different ones; ask for fewer, or for "
        "other lengths"
    )


def _draw(
    teacher: Laws | LawsView, count: int, longest: int, first: int, seed: int
) -> list[tuple[int, ...]]:
    root = Prefixes.of([[]])
    if isinstance(teacher, LawsView):
        found = teacher.complete(root, count, max_tokens=longest, first_draw=first)
    else:
        stream = Stream("spectrum", seed)  # as the ledger of this command draws
        found = teacher.complete(root, count, stream=stream, max_tokens=longest, first_draw=first)
    return Prefixes(found.tokens[0], found.lengths[0]).rows()
