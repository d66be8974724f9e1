"""What a low-rank model stores at one cut: laws, changes of basis, basis histories."""

import dataclasses
import functools

import torch
from jaxtyping import Float
from torch import Tensor

# how far from one the sum of a law may be and still be called one
ROUNDING = 1e-14


def forgetful(
    transition: Float[Tensor, "rank next_rank"], num_tokens: int
) -> Float[Tensor, "rank token next_rank"]:
    """A hidden Markov model's change of basis: G[i, o, :] = T[i, :] for every token."""
    return transition[:, None, :].expand(-1, num_tokens, -1).contiguous()


@dataclasses.dataclass(frozen=True)
class Step:
    """What is stored at one cut.

    laws: (rank, token), L[i, o] = P(o | h_i)
    change: (rank, token, next_rank), P(. | h_i o) = sum_j change[i, o, j] P(. | h'_j);
        zero where P(o | h_i) = 0 or o ends the sequence
    histories: the basis histories h_i, for people to read
    """

    laws: Float[Tensor, "rank token"]
    change: Float[Tensor, "rank token next_rank"]
    histories: tuple[tuple[int, ...], ...] = ()

    @property
    def rank(self) -> int:
        """S, the number of basis histories."""
        return len(self.laws)

    @functools.cached_property
    def operators(self) -> Float[Tensor, "token rank next_rank"]:
        """A_o[i, j] = L[i, o] G[i, o, j], token first, contiguous."""
        return (self.laws[:, :, None] * self.change).transpose(0, 1).contiguous()

    @functools.cached_property
    def summed(self) -> Float[Tensor, "rank columns"]:
        """[L | L 1]: the laws with their row sums as a last column."""
        return torch.cat([self.laws, self.laws.sum(1, keepdim=True)], 1)

    @functools.cached_property
    def transition(self) -> Float[Tensor, "rank next_rank"] | None:
        """T where change[i, o, :] = T[i, :] wherever P(o | h_i) > 0, all nonnegative, else None.

        Then the step is a hidden Markov model's: no weight can be negative, and as the
        rows of L and T sum to one (within ROUNDING) the weights need no normaliser.
        """
        rows = torch.arange(self.rank, device=self.laws.device)
        table = self.change[rows, self.laws.argmax(1)]
        differs = ((self.change - table[:, None]) != 0).any(2) & (self.laws > 0)
        sums = torch.cat([self.laws.sum(1), table.sum(1)])
        negative = bool((self.laws < 0).any()) or bool((table < 0).any())
        if negative or bool(differs.any()) or bool(((sums - 1).abs() > ROUNDING).any()):
            return None
        return table


def divided(
    laws: Float[Tensor, "rank token"],
    moved: Float[Tensor, "rank token next_rank"],
    histories: tuple[tuple[int, ...], ...] = (),
) -> Step:
    """The step of L and L G; where L is zero nothing can follow."""
    possible = (laws != 0)[:, :, None]
    change = torch.where(possible, moved / torch.where(possible, laws[:, :, None], 1.0), 0.0)
    return Step(laws.contiguous(), change.contiguous(), histories)
