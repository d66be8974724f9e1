"""A plain Python function as a teacher: prefix in, next-token probabilities out."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import TeacherError
from myna.spec import Spec, fingerprint
from myna.teachers.draws import complete_by_laws
from myna.teachers.oracle import Completions, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes, check_prefixes


class FunctionTeacher:
    """A function of the prefix, at all three levels.

    function: takes the prefix as a tuple of tokens, returns O probabilities
    alphabet, stop, horizon: as in `Spec`
    name: identifies the function; the fingerprint knows no more of it, so a changed
        function needs a new name
    """

    def __init__(
        self,
        function: Callable[[tuple[int, ...]], Sequence[float]],
        alphabet: Sequence[str],
        *,
        stop: int | None = None,
        horizon: int | None = None,
        name: str = "function",
    ):
        """Describe the language; the function is first called when asked."""
        self._function = function
        mark = fingerprint("function", name, tuple(alphabet), stop, horizon)
        self._spec = Spec(tuple(alphabet), stop, horizon, mark)

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    @property
    def k(self) -> int:
        """Everything can be shown: k = O."""
        return self._spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """One call of the function a prefix.

        Raises:
            TeacherError: where an answer has the wrong length.
        """
        check_prefixes(self._spec, prefixes)
        answers = []
        for prefix in prefixes.rows():
            law = list(self._function(prefix))
            if len(law) != self._spec.num_tokens:
                raise TeacherError(
                    f"the function must return {self._spec.num_tokens} probabilities, one a "
                    f"token, and returned {len(law)} after prefix {list(prefix)}"
                )
            answers.append(law)
        shape = (len(answers), self._spec.num_tokens)
        return torch.tensor(answers, dtype=torch.float64).reshape(shape).log()

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The whole law, most likely tokens first."""
        return top_of(self.laws(prefixes), self.k)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion."""
        return complete_by_laws(
            self, prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )
