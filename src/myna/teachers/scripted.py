"""Models of the zoo that are a rule rather than a table of probabilities.

Each has a small state that a token advances, and next-token chances that depend on the
state and the position; see `zoo` for what they are and their exact ranks.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.lowrank.student import State, StepInfo
from myna.spec import Spec, fingerprint, numbered
from myna.teachers.stepped import SteppedTeacher


class Scripted(SteppedTeacher):
    """A model with a small state: subclasses give `initial`, `advance` and `chances`."""

    def __init__(self, spec: Spec):
        """Keep the description."""
        self._spec = spec

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    def chances(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token probabilities."""
        raise NotImplementedError

    def advance(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """The state vector after one more token."""
        raise NotImplementedError

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats)."""
        return self.chances(state).log()

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """The next state and the token's log-probability."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        return State(self.advance(state, tokens), state.position + 1), StepInfo(log_prob)


class ParityModel(Scripted):
    """State: the parity of the secret bits read so far."""

    def __init__(self, secret: Int[Tensor, " bit"], noise: float):
        self._secret, self._noise = secret, noise
        mark = fingerprint("parity", secret, noise)
        super().__init__(Spec(("0", "1"), None, len(secret) + 1, mark))

    def initial(self, batch: int) -> State:
        return State(torch.zeros((batch, 1), dtype=torch.float64), 0)

    def chances(self, state: State) -> Float[Tensor, "batch token"]:
        if state.position < len(self._secret):
            return torch.full((len(state.vector), 2), 0.5, dtype=torch.float64)
        odd = self._noise + (1 - 2 * self._noise) * state.vector
        return torch.cat([1 - odd, odd], 1)

    def advance(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        if state.position >= len(self._secret) or not self._secret[state.position]:
            return state.vector
        return (state.vector + tokens[:, None]) % 2


class CopyModel(Scripted):
    """State: the symbols to repeat."""

    def __init__(self, n: int, letters: int):
        self._n = n
        super().__init__(Spec(numbered(letters), None, 2 * n, fingerprint("copy", n, letters)))

    def initial(self, batch: int) -> State:
        return State(torch.zeros((batch, self._n), dtype=torch.float64), 0)

    def chances(self, state: State) -> Float[Tensor, "batch token"]:
        letters, t = self.spec.num_tokens, state.position
        if t < self._n:
            return torch.full((len(state.vector), letters), 1 / letters, dtype=torch.float64)
        said = state.vector[:, t - self._n].long()
        return torch.nn.functional.one_hot(said, letters).double()

    def advance(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        if state.position >= self._n:
            return state.vector
        vector = state.vector.clone()
        vector[:, state.position] = tokens.double()
        return vector


class LabelModel(Scripted):
    """State: the automaton's state number. Even positions are letters, odd ones labels."""

    def __init__(self, moves: Tensor, accepts: Tensor, length: int, noise: float):
        self._moves, self._accepts, self._noise = moves, accepts, noise
        self._letters = moves.shape[1]
        names = (*(chr(ord("a") + i) for i in range(self._letters)), "0", "1")
        mark = fingerprint("labels", moves, accepts, length, noise)
        super().__init__(Spec(names, None, 2 * length, mark))

    def initial(self, batch: int) -> State:
        return State(torch.zeros((batch, 1), dtype=torch.float64), 0)

    def chances(self, state: State) -> Float[Tensor, "batch token"]:
        law = torch.zeros((len(state.vector), self.spec.num_tokens), dtype=torch.float64)
        if state.position % 2 == 0:
            law[:, : self._letters] = 1 / self._letters
            return law
        accepted = self._accepts[state.vector[:, 0].long()].double()
        law[:, -1] = self._noise + (1 - 2 * self._noise) * accepted
        law[:, -2] = 1 - law[:, -1]
        return law

    def advance(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        if state.position % 2:
            return state.vector
        letters = tokens.clamp(max=self._letters - 1)
        return self._moves[state.vector[:, 0].long(), letters][:, None].double()


class LogitTwoModel(Scripted):
    """State: s(x) - s(f) over the bits read so far."""

    def __init__(self, half: int, scale: float):
        self._half = half
        self._weights = scale * 2.0 ** -torch.arange(1, half + 1, dtype=torch.float64)
        mark = fingerprint("logit2", half, scale)
        super().__init__(Spec(("0", "1"), None, 2 * half + 1, mark))

    def initial(self, batch: int) -> State:
        return State(torch.zeros((batch, 1), dtype=torch.float64), 0)

    def chances(self, state: State) -> Float[Tensor, "batch token"]:
        if state.position < 2 * self._half:
            return torch.full((len(state.vector), 2), 0.5, dtype=torch.float64)
        one = state.vector.sigmoid()
        return torch.cat([1 - one, one], 1)

    def advance(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        t = state.position
        if t >= 2 * self._half:
            return state.vector
        sign = 1.0 if t < self._half else -1.0
        return state.vector + sign * self._weights[t % self._half] * tokens[:, None]
