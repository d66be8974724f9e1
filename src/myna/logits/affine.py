"""A stationary affine network whose numbers can be fitted, and whose products stay bounded.

    z = c + y C,        y' = b_o + y W_o,        W_o = V_o / max(1, s(V_o)),    V_o = V + D_o,

s the largest singular value, found by power iterations that go on from call to call. Hence
|y'| <= |y| + |b_o|: no product of W explodes; nothing makes singular values small, so none need
vanish. V and b are shared by all tokens and D_o is what each adds. With x = (1, y) this is an
input-switched network (`lowrank.isan`) whose first coordinate is constant.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.switched import switched_states
from myna.spec import Spec

_WHOLE = 100  # power iterations where no earlier ones help


@dataclasses.dataclass(frozen=True)
class Affine:
    """An affine network's numbers.

    first: (width,) y after the empty history
    move, offset: (width, width) and (width,) what all tokens share of W_o and b_o
    moves, offsets: (token, width, width), (token, width) what is added for each token
    read, bias: (width, token), (token,) C and c
    """

    first: Float[Tensor, " width"]
    move: Float[Tensor, "width width"]
    offset: Float[Tensor, " width"]
    moves: Float[Tensor, "token width width"]
    offsets: Float[Tensor, "token width"]
    read: Float[Tensor, "width token"]
    bias: Float[Tensor, " token"]


class AffineNetwork(torch.nn.Module):
    """The numbers as parameters, in single precision."""

    def __init__(self, start: Affine):
        """Begin at `start`."""
        super().__init__()

        def parameter(value: Tensor) -> torch.nn.Parameter:
            return torch.nn.Parameter(value.float().contiguous())

        self.first, self.move = parameter(start.first), parameter(start.move)
        self.offset, self.offsets = parameter(start.offset), parameter(start.offsets)
        self.own = parameter(start.moves)
        self.read, self.bias = parameter(start.read), parameter(start.bias)
        # no special direction: a matrix that has it in its kernel would keep the norm unseen
        left = torch.randn(self.offsets.shape, generator=torch.Generator().manual_seed(0))
        self._left = torch.nn.functional.normalize(left.to(self.offsets.device), dim=1)
        self._bounded(_WHOLE)

    def initial(self, batch: int) -> Float[Tensor, "string rank"]:
        """The state before any token, x = (1, y)."""
        x = torch.nn.functional.pad(self.first, (1, 0), value=1.0)
        return x.expand(batch, -1).contiguous()

    def laws(
        self, x: Float[Tensor, "string rank"], tokens: Int[Tensor, "string time"]
    ) -> tuple[Float[Tensor, "time string token"], Float[Tensor, "string rank"]]:
        """Log-laws (nats) before each token read from x, and x after the last.

        What stands after a string's end means nothing.
        """
        columns = tokens.T.clamp(min=0).contiguous()
        states = switched_states(x, self._operators(1), columns)
        return (states[:-1, :, 1:] @ self.read + self.bias).log_softmax(2), states[-1]

    def largest_norm(self) -> float:
        """The largest singular value of all W_o."""
        return float(torch.linalg.matrix_norm(self._bounded(_WHOLE).detach(), ord=2).max())

    def exported(self, language: Spec) -> Isan:
        """The student, in double precision; nothing follows a stop token."""
        with torch.no_grad():
            change = self._operators(_WHOLE).double().transpose(0, 1).contiguous()
            if language.stop is not None:
                change[:, language.stop] = 0
            logits = torch.cat([self.bias[None], self.read]).double()
            x = self.initial(1)[0].double()
        return Isan.of(language, x, (IsanStep(logits, change),))

    def _bounded(self, rounds: int) -> Float[Tensor, "token width width"]:
        """W: the vectors of the power iteration carry no gradient, the singular value does."""
        whole = self.move + self.own
        with torch.no_grad():
            left = self._left[:, :, None]
            right = left
            for _ in range(rounds):
                right = torch.nn.functional.normalize(whole.mT @ left, dim=1)
                left = torch.nn.functional.normalize(whole @ right, dim=1)
            self._left = left[:, :, 0]
        largest = left.mT @ whole @ right
        return whole / largest.clamp(min=1)

    def _operators(self, rounds: int) -> Float[Tensor, "token rank rank"]:
        """[[1, b_o], [0, W_o]], which read a token from x = (1, y)."""
        moved = torch.cat([(self.offset + self.offsets)[:, None], self._bounded(rounds)], 1)
        constant = torch.zeros_like(moved[:, :, :1])
        constant[:, 0] = 1
        return torch.cat([constant, moved], 2)
