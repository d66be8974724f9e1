"""Where a surrogate starts: clusters of what the teacher says around each token of its text.

Each place t of a string has an embedding, in Hellinger distance but for the token's part,

    phi_t = (sqrt P(. | x_<t),  w e(x_t),  sqrt P(. | x_<t x_t)),      w^2 = 1/2,

what could stand here, what does, and what may follow; z_t is its cluster by k-means. The counts
of z_1 and of (z_t, z_t+1) become pi and T; the emissions are, with s = z_t,

    laws      E(s, .) = the mean of P(. | x_<t) over the places of s,
    tokens    E(s, o) = how often x_t = o at the places of s.

Source: latent variable distillation (Liu, Zhang and Van den Broeck, arXiv 2210.04398), by which
GeLaTo and Ctrl-G start expectation maximisation: clusters of a network's embeddings, and counted
tokens. The embedding by laws, which any teacher with laws has, and the mean laws are ours.
"""

import enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.learn.baum_welch import HmmParameters
from myna.learn.hidden_start import k_means
from myna.logits.text_laws import TextLaws

_TOKEN = 0.5**0.5  # w: another token adds 1 to a squared distance, and a disjoint law 2
_WIDTH = 64  # leading principal components that are clustered
_BLOCK = 64  # strings embedded at once
_SMOOTHING = 0.1  # of the mean row, added to every row of counts


class Emissions(enum.Enum):
    """What a cluster emits."""

    LAWS = "mean laws"
    TOKENS = "counted tokens"


def surrogate_start(
    data: TextLaws, states: int, emissions: Emissions, generator: torch.Generator
) -> HmmParameters:
    """A stationary hidden Markov model by counts of clusters.

    states: S; where fewer places are distinct, some states have none, and the mean rows

    Raises:
        InputError: fewer places than states.
    """
    inside = data.tokens >= 0
    if int(inside.sum()) < states:
        raise InputError(
            f"{states} states are clusters of places in the text, and it has {int(inside.sum())} "
            "tokens; ask more laws or take fewer states"
        )
    labels = torch.full_like(data.tokens, -1)
    labels[inside] = k_means(_embedded(data, inside), states, generator)
    follow = inside[:, 1:]
    pairs = labels[:, :-1][follow] * states + labels[:, 1:][follow]
    num_tokens = data.laws.shape[2]
    if emissions is Emissions.LAWS:
        emitted = torch.zeros((states, num_tokens), dtype=torch.float64)
        for rows in torch.arange(len(labels)).split(_BLOCK):
            here = inside[rows]
            emitted.index_add_(0, labels[rows][here], data.laws[rows][here].double())
    else:
        both = labels[inside] * num_tokens + data.tokens[inside]
        emitted = torch.bincount(both, minlength=states * num_tokens).view(states, -1)
    return HmmParameters(
        _smoothed(torch.bincount(labels[:, 0], minlength=states)[None])[0],
        _smoothed(torch.bincount(pairs, minlength=states**2).view(states, states))[None],
        _smoothed(emitted)[None],
    )


def _smoothed(counts: Tensor) -> Float[Tensor, "row column"]:
    """Rows of counts plus a little of the mean row, normalised; no zeros are left."""
    mean = counts.double().sum(0) + 1
    rows = counts + _SMOOTHING * mean / mean.sum()
    return rows / rows.sum(1, keepdim=True)


def _embedded(
    data: TextLaws, inside: Bool[Tensor, "string time"]
) -> Float[Tensor, "place component"]:
    """The leading principal components of phi at the places inside strings."""
    width = 3 * data.laws.shape[2]
    count, total = 0, torch.zeros(width, dtype=torch.float64)
    square = torch.zeros((width, width), dtype=torch.float64)
    blocks = torch.arange(len(data.tokens)).split(_BLOCK)
    for rows in blocks:
        phi = _phi(data, rows)[inside[rows]]
        count, total = count + len(phi), total + phi.sum(0)
        square += (phi.T @ phi).double()
    mean = total / count
    _, vectors = torch.linalg.eigh(square / count - mean[:, None] * mean)
    leading = vectors[:, -_WIDTH:].float()
    return torch.cat([_phi(data, rows)[inside[rows]] @ leading for rows in blocks])


def _phi(data: TextLaws, rows: Int[Tensor, " row"]) -> Float[Tensor, "row time feature"]:
    """The embedding of some strings' places.

    What follows a string's last token was not asked; the law at that token stands in for it.
    """
    roots = data.laws[rows].sqrt()
    last = (data.tokens[rows] >= 0).sum(1) - 1
    after = torch.cat([roots[:, 1:], roots[:, -1:]], 1)
    each = torch.arange(len(rows))
    after[each, last] = roots[each, last]
    tokens = torch.nn.functional.one_hot(data.tokens[rows].clamp(min=0), roots.shape[2])
    return torch.cat([roots, _TOKEN * tokens, after], 2)
