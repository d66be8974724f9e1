"""Hidden Markov models in numpy archives: keys pi, T and E.

    pi (state,)    T (state, state) or (step, state, state)    E (state, token) or (step, state, token)

The archive does not say how long sequences are, so the horizon is given beside it.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from myna.errors import FormatError, InputError
from myna.teachers.hmm import Hmm


def read_hmm(path: Path, horizon: int) -> Hmm:
    """The HMM of an archive, over sequences of exactly `horizon` tokens.

    Raises:
        FormatError: naming the key that is missing or has the wrong shape.
    """
    tables = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in ("pi", "T", "E"):
                if key not in archive.files:
                    raise FormatError(
                        f"{path} lacks key {key!r}; wanted pi, T and E, got {archive.files}"
                    )
                tables[key] = torch.from_numpy(archive[key].astype(np.float64))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} does not read as a numpy archive: {error}") from error
    pi, moves, emits = tables["pi"], tables["T"], tables["E"]
    states = pi.shape[0] if pi.ndim == 1 else 0
    if not states or moves.ndim not in (2, 3) or tuple(moves.shape[-2:]) != (states, states):
        raise FormatError(
            f"{path}: wanted pi (S,) and T (S, S) or (steps, S, S), got pi {tuple(pi.shape)}, T {tuple(moves.shape)}"
        )
    if emits.ndim not in (2, 3) or emits.shape[-2] != states:
        raise FormatError(
            f"{path}: wanted E ({states}, O) or (steps, {states}, O), got E {tuple(emits.shape)}"
        )
    try:
        return Hmm(
            pi,
            moves if moves.ndim == 3 else moves[None],
            emits if emits.ndim == 3 else emits[None],
            horizon=horizon,
        )
    except InputError as error:
        raise FormatError(f"{path}: {error}") from error
