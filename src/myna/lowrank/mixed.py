"""A stationary low-rank model whose operators share a few matrices: for large alphabets.

Reading token o multiplies coefficients by A_o = L[:, o] G[:, o, :]. With thousands of tokens those
matrices are almost all of a copy, yet they often span few directions: a hidden Markov model with S
states has A_o = B diag(E[:, o]) T B^-1, so all of them lie in a space of S dimensions, however many
tokens there are. Here

    A_o = sum_k w[o, k] M_k,        q_o = sum_k w[o, k] (c M_k 1),        c' = c A_o / q_o,

O K + K S^2 numbers instead of O S (S + 1). Coefficients are divided by their own sum, which is
q_o up to rounding. Among thousands of tokens some are so rare that their weight is rounding, below
zero as often as above, so Q is not only clipped as in `lowrank.model` but keeps a floor,

    Q(o | x) = (1 - f) max(q_o, 0) / sum_a max(q_a, 0) + f / O.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.batch import bayes, split_weights
from myna.lowrank.student import State, StepInfo, Stepped
from myna.spec import Spec, fingerprint


@dataclasses.dataclass(frozen=True)
class MixedModel(Stepped):
    """A Student with shared operators, stationary and without a stop token.

    spec: alphabet, horizon, fingerprint
    first: (rank,), the coefficients of the empty history
    weights: (token, part), w
    parts: (part, rank, rank), M
    floor: f, in [0, 1)
    histories: the basis histories, for people to read

    Raises:
        InputError: where shapes disagree, or the language has a stop token.
    """

    spec: Spec
    first: Float[Tensor, " rank"]
    weights: Float[Tensor, "token part"]
    parts: Float[Tensor, "part rank rank"]
    floor: float = 0.0
    histories: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check that the tables fit together."""
        if not 0 <= self.floor < 1:
            raise InputError(f"a floor lies in [0, 1), got {self.floor}")
        if self.spec.stop is not None:
            raise InputError("shared operators are for languages without a stop token")
        shapes = (self.spec.num_tokens, len(self.parts)), (len(self.first),) * 2
        if tuple(self.weights.shape) != shapes[0] or tuple(self.parts.shape[1:]) != shapes[1]:
            raise InputError(
                f"{self.spec.num_tokens} tokens and rank {len(self.first)} need weights {shapes[0]} "
                f"and parts of {shapes[1]}, got {tuple(self.weights.shape)} and "
                f"{tuple(self.parts.shape)}"
            )

    @classmethod
    def of(
        cls,
        language: Spec,
        first: Float[Tensor, " rank"],
        weights: Float[Tensor, "token part"],
        parts: Float[Tensor, "part rank rank"],
        floor: float = 0.0,
        histories: tuple[tuple[int, ...], ...] = (),
    ) -> "MixedModel":
        """A model of a language, with a fingerprint of its own numbers."""
        mark = fingerprint(
            "mixed",
            language.alphabet,
            language.stop,
            language.horizon,
            first,
            weights,
            parts,
            floor,
        )
        spec = dataclasses.replace(language, fingerprint=mark)
        return cls(spec, first, weights, parts, floor, histories)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank, once."""
        return (len(self.first),)

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored."""
        return len(self.first) + self.weights.numel() + self.parts.numel()

    @functools.cached_property
    def summed(self) -> Float[Tensor, "rank columns"]:
        """[L | L 1] with L = (M 1) w^T, as `Step.summed`."""
        laws = self.parts.sum(2).T @ self.weights.T
        return torch.cat([laws, laws.sum(1, keepdim=True)], 1)

    def initial(self, batch: int) -> State:
        """The coefficients of the empty history, repeated."""
        return State(self.first.expand(batch, -1), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log Q(o | x), clipped, normalised and above the floor (nats)."""
        return self._probabilities(state).log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Bayes' rule; a token without weight leaves no coefficients (all zero)."""
        log_prob = self._probabilities(state).gather(1, tokens[:, None])[:, 0].log()
        reached = torch.einsum("bi,kij->bkj", state.vector, self.parts)
        moved = torch.einsum("bkj,bk->bj", reached, self.weights[tokens])
        return State(bayes(moved, moved.sum(1)), state.position + 1), StepInfo(log_prob)

    def _probabilities(self, state: State) -> Float[Tensor, "batch token"]:
        weights = split_weights(state.vector @ self.summed)[1]
        clipped = weights.values / weights.total[:, None]
        return (1 - self.floor) * clipped + self.floor / self.spec.num_tokens


def describe_mixed(model: MixedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model as named tensors and JSON types; `read_mixed` undoes it."""
    tensors = {"first": model.first, "weights": model.weights, "parts": model.parts}
    return {name: t.cpu().contiguous() for name, t in tensors.items()}, {
        "spec": dataclasses.asdict(model.spec),
        "ranks": list(model.ranks),
        "histories": [[list(h) for h in model.histories]],
        "mixed": {"floor": model.floor},
    }


def read_mixed(spec: Spec, tensors: dict[str, Tensor], text: dict[str, Any]) -> MixedModel:
    """The model that `describe_mixed` wrote down, with the fingerprint of its own numbers."""
    histories = tuple(tuple(h) for h in text["histories"][0])
    first, weights, parts = (tensors[name] for name in ("first", "weights", "parts"))
    return MixedModel.of(spec, first, weights, parts, text["mixed"]["floor"], histories)


def few_parts(
    operators: Sequence[Float[Tensor, "token next_rank"]],
    scale: Float[Tensor, " token"],
    tolerance: float,
    generator: torch.Generator,
    most: int,
) -> tuple[Float[Tensor, "token part"], Float[Tensor, "part rank next_rank"], float]:
    """Weights and parts of A[i, o, j], by a randomised SVD over tokens; what it leaves out.

    operators: A[i], one table a basis history; together they may be gigabytes, so they are read
        one by one and never put together

    scale: each token's operators are divided by it before directions are judged
    tolerance: singular values below this share of the first are left out
    most: parts looked for

    Third returned: the Frobenius norm left out over that of all, both scaled.
    """
    tokens, beyond = operators[0].shape

    def across(other: Float[Tensor, "rank next_rank column"]) -> Float[Tensor, "token column"]:
        total = scale.new_zeros((tokens, other.shape[2]))
        for table, part in zip(operators, other, strict=True):
            total += table @ part
        return total / scale[:, None]

    def along(tall: Float[Tensor, "token column"]) -> Float[Tensor, "rank next_rank column"]:
        scaled = tall / scale[:, None]
        return torch.stack([table.T @ scaled for table in operators])

    shape = (len(operators), beyond, min(most + 8, tokens))
    start = torch.randn(shape, generator=generator, dtype=scale.dtype)
    tall = torch.linalg.qr(across(start))[0]
    tall = torch.linalg.qr(across(along(tall)))[0]
    wide = along(tall)
    left, values, _ = torch.linalg.svd(wide.flatten(0, 1).T, full_matrices=False)
    count = min(most, max(1, int((values > tolerance * values[0]).sum())))
    parts = torch.einsum("ijk,kl->lij", wide, left[:, :count])
    weights = (tall @ left[:, :count]) * scale[:, None]
    square = sum(float((table / scale[:, None]).square().sum()) for table in operators)
    missed = max(0.0, square - float(parts.square().sum()))
    return weights, parts.contiguous(), (missed / square) ** 0.5 if square else 0.0
