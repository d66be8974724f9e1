"""A recorded ledger as a teacher: it answers what is written down, and nothing else.

The language and its fingerprint are the recorded teacher's, and so is every answer, bit
for bit. Hence a learner with the settings and the seed of the run that was recorded asks
the same questions and learns the same student.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import TeacherError
from myna.spec import Spec
from myna.teachers.draws import check_draws, draw_limits
from myna.teachers.ledger_blocks import Answer, Question
from myna.teachers.ledger_held import Held
from myna.teachers.ledger_schema import explained, open_to_read
from myna.teachers.oracle import Completions, Samples, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes, check_prefixes


def open_replay(path: Path) -> Samples:
    """The teacher that a ledger recorded, at the level of what was asked of it.

    Raises:
        InputError: where there is no such file.
        FormatError: no ledger, one of another version, or a damaged one.
    """
    connection, spec = open_to_read(path)
    with explained(path):
        held = Held(path, connection, spec)
    kinds = {kind for kind, *_ in held.settings}
    if "law" in kinds:
        return ReplayLaws(path, held, spec)
    return ReplayTopLaws(path, held, spec) if "top" in kinds else ReplaySamples(path, held, spec)


class ReplaySamples:
    """Recorded completions."""

    def __init__(self, path: Path, held: Held, spec: Spec):
        """held: the answers of the file."""
        self._path, self._held, self._spec = path, held, spec

    @property
    def spec(self) -> Spec:
        """The recorded teacher's, fingerprint included."""
        return self._spec

    def _read(self, question: Question) -> Answer:
        lacking = self._held.lacking(question)
        if lacking:
            first, what = lacking[0], "law"
            if first.kind == "draw":
                assert first.stream is not None
                limit = "" if first.max_tokens is None else f" of at most {first.max_tokens} tokens"
                what = f"draw {first.first_draw}{limit} on stream {first.stream.purpose!r} seed {first.stream.seed}"
            elif first.kind == "top":
                what = f"top-{first.k} law"
            raise TeacherError(
                f"the ledger {self._path} holds no {what} after prefix "
                f"{list(first.prefixes.rows()[0])}; replay with the options and the seed of the "
                "run that was recorded, or ask the teacher itself with --ledger"
            )
        with explained(self._path):
            return self._held.read(question)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion.

        Raises:
            TeacherError: where one of them was not recorded.
        """
        check_draws(count, first_draw)
        check_prefixes(self._spec, prefixes)
        draw_limits(self._spec, prefixes.lengths, max_tokens)
        answer = self._read(Question("draw", prefixes, 0, stream, max_tokens, first_draw, count))
        assert isinstance(answer, Completions)
        return answer


class ReplayTopLaws(ReplaySamples):
    """Recorded top laws as well."""

    @property
    def k(self) -> int:
        """The largest k that was recorded."""
        return max(k for kind, k, *_ in self._held.settings if kind == "top")

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The k most likely next tokens of each prefix.

        Raises:
            TeacherError: where one of them was not recorded.
        """
        check_prefixes(self._spec, prefixes)
        answer = self._read(Question("top", prefixes, self.k))
        assert isinstance(answer, TopLaw)
        return answer


class ReplayLaws(ReplayTopLaws):
    """Recorded laws as well."""

    @property
    def k(self) -> int:
        """Everything was shown: k = O."""
        return self._spec.num_tokens

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """As recorded where it was, else read from the recorded laws."""
        question = Question("top", prefixes, self.k)
        if len(prefixes.lengths) and self._held.has(question):
            return super().top_laws(prefixes)
        return top_of(self.laws(prefixes), self.k)

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats).

        Raises:
            TeacherError: where one of them was not recorded.
        """
        check_prefixes(self._spec, prefixes)
        if not len(prefixes.lengths):
            return torch.empty((0, self._spec.num_tokens), dtype=torch.float64)
        answer = self._read(Question("law", prefixes))
        assert isinstance(answer, Tensor)
        return answer
