"""What a spectrum is compared with.

nonsense    the same histories, the tokens of each future in random order
untrained   a model of the same shape with fresh random weights
unigram     tokens drawn independently, as often as in the strings: rank 1
low rank    an input-switched affine network of known dimension: logit rank exactly that
"""

import torch
from jaxtyping import Int
from torch import Tensor

from myna.lowrank.isan import Isan, IsanStep
from myna.spec import Spec
from myna.teachers.copies import CopyTeacher
from myna.teachers.prefixes import Prefixes
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.zoo import RandomIsan


def shuffled(futures: Prefixes, stop: int | None, generator: torch.Generator) -> Prefixes:
    """Each future's tokens in random order; a stop token stays last."""
    tokens = futures.tokens.clone()
    for row, length in enumerate(futures.lengths.tolist()):
        count = length - int(stop is not None and tokens[row, length - 1] == stop)
        tokens[row, :count] = tokens[row, torch.randperm(count, generator=generator)]
    return Prefixes(tokens, futures.lengths)


def unigram(spec: Spec, strings: Int[Tensor, "batch width"]) -> SteppedTeacher:
    """Tokens drawn independently, with the frequencies of strings (padded with -1) plus one each."""
    counts = torch.bincount(strings[strings >= 0], minlength=spec.num_tokens) + 1.0
    law = (counts.double() / counts.sum()).log()
    one = torch.ones((1, spec.num_tokens, 1), dtype=torch.float64)
    return CopyTeacher(Isan.of(spec, torch.ones(1).double(), (IsanStep(law[None], one),)))


def low_rank(spec: Spec, dim: int, horizon: int, seed: int) -> SteppedTeacher:
    """A stationary random network over as many tokens, whose centred logits have rank `dim`."""
    return RandomIsan(dim, spec.num_tokens, horizon, 2.0, False, seed).teacher()
