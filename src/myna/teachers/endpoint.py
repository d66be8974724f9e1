"""A model behind an OpenAI-compatible server, at the level of access that its probe confirmed.

    EndpointSamples    completions alone
    EndpointTopLaws    + the k most likely next tokens
    EndpointLaws       + whole laws, from one answer each
    EndpointScores     + whole laws, each from the prompt scores of its O continuations

    law of prefix x:   log P(o | x) for all o, asked as one new token after x, at temperature 1
    draws:             addressed, where the server honours seeds: each is asked with a seed
                       that is a hash of (prefix, stream, index); fresh otherwise

Fresh draws are new whenever they are asked: only the ledger, which keeps every answer,
makes them repeatable. A law is given in single precision by most servers, so its mass may
differ from one by _ROUNDING; it is then divided by its mass, and refused beyond that.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError, TeacherError
from myna.lowrank.student import Strings, check_strings
from myna.spec import Spec, fingerprint
from myna.teachers.asker import Asker, Question, Reply, Style
from myna.teachers.crossing import Crossing, crossed_by_scores
from myna.teachers.draws import NO_LIMIT, check_draws, draw_limits
from myna.teachers.endpoint_settings import Endpoint, Vocabulary
from myna.teachers.oracle import Completions, Stream, TopLaw, top_of
from myna.teachers.prefixes import Prefixes, check_prefixes
from myna.teachers.probe_record import Profile

_ROUNDING = 1e-4  # mass that single precision may gain or lose over a vocabulary
_MOST_CHOICES = 128  # of one request


def spec_of(endpoint: Endpoint, vocabulary: Vocabulary) -> Spec:
    """The language that is asked; the fingerprint names the server and all that shapes it."""
    mark = fingerprint(
        "openai",
        endpoint.base_url,
        endpoint.model,
        (endpoint.chat, endpoint.words if endpoint.chat else ""),
        vocabulary.names,
        vocabulary.begin,
        vocabulary.stop,
        vocabulary.horizon,
        *([vocabulary.opening] if vocabulary.opening else []),
    )
    return Spec(vocabulary.names, vocabulary.stop, vocabulary.horizon, mark)


def draw_seed(prefix: tuple[int, ...], stream: Stream, index: int) -> int:
    """31 bits that name a draw; no server reads fewer."""
    text = f"{stream.key} {index} {' '.join(map(str, prefix))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class EndpointSamples:
    """An endpoint that gives completions alone.

    asker: how questions are sent
    profile: what the probe found, kept with the results; it says how the server is asked
    """

    def __init__(self, asker: Asker, profile: Profile):
        """Ask nothing yet.

        Raises:
            TeacherError: where addressed draws are demanded, and seeds are not honoured.
        """
        self._asker, self.profile = asker, profile
        self._style = Style(profile.ids, profile.batch, profile.many, profile.named)
        if asker.endpoint.addressed and not profile.addressed:
            raise TeacherError(
                "draws=addressed was asked, and this server does not honour seeds "
                f"({profile.finding('seed').evidence}); leave it out to have fresh draws"
            )
        self._addressed = profile.addressed and asker.endpoint.addressed is not False
        self._spec = spec_of(asker.endpoint, asker.vocabulary)

    @property
    def withheld(self) -> str:
        """Why no higher level is offered: the evidence, empty where there is none."""
        return self.profile.withheld

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    def in_flight(self, kind: str) -> int:
        """How many answers of a kind ("law", "top", "draw") are on their way together."""
        endpoint = self._asker.endpoint
        if kind == "draw":
            each = _MOST_CHOICES if self._style.many and not self._addressed else 1
        else:
            each = 1 if endpoint.chat else self._style.batch
        return endpoint.concurrency * each

    @property
    def asker(self) -> Asker:
        """How the server is asked, and what that took (`asker.transport.traffic`)."""
        return self._asker

    def __repr__(self) -> str:
        """The model and its address; no key."""
        endpoint = self._asker.endpoint
        return f"{type(self).__name__}({endpoint.model!r} at {endpoint.base_url!r})"

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
            TeacherError: where a completion is cut short, too long or cannot be read.
        """
        check_draws(count, first_draw)
        check_prefixes(self._spec, prefixes)
        limits = draw_limits(self._spec, prefixes.lengths, max_tokens).tolist()
        if NO_LIMIT in limits:
            raise InputError(
                "an endpoint's completions need a limit: say max_tokens, or horizon= in the URI"
            )
        rows, indices = prefixes.rows(), range(first_draw, first_draw + count)
        asked = [i for i, limit in enumerate(limits) if limit > 0]
        if self._addressed:
            questions = [
                Question(
                    (rows[i],), max_tokens=limits[i], seed=draw_seed(rows[i], stream, j), shown=0
                )
                for i in asked
                for j in indices
            ]
        else:
            questions = [
                Question(
                    (rows[i],), count=min(_MOST_CHOICES, count - j), max_tokens=limits[i], shown=0
                )
                for i in asked
                for j in range(0, count, _MOST_CHOICES)
            ]
        replies = (
            reply for found in self._asker.ask_all(questions, self._style) for reply in found[0]
        )
        drawn = {
            i: [self._completion(rows[i], next(replies), limits[i]) for _ in indices] for i in asked
        }
        listed = [drawn.get(i, [()] * count) for i in range(len(rows))]
        lengths = torch.tensor([[len(row) for row in some] for some in listed], dtype=torch.int64)
        lengths = lengths.reshape(len(rows), count)
        width = int(lengths.max()) if lengths.numel() else 0
        padded = [[[*row, *[-1] * (width - len(row))] for row in some] for some in listed]
        tokens = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), count, width)
        return Completions(tokens, lengths)

    def _completion(self, prefix: tuple[int, ...], reply: Reply, limit: int) -> tuple[int, ...]:
        """The tokens of a completion that goes on to its end, the stop token included."""
        stop, tokens = self._spec.stop, reply.tokens
        where = f"the completion of {list(prefix)} by {self._asker.endpoint.model}"
        if tokens is None:
            raise TeacherError(
                f"{where} cannot be read as tokens of the alphabet without a guess; "
                "run `myna probe` to see which texts collide"
            )
        if stop is not None and reply.finish == "stop" and tokens[-1:] != (stop,):
            tokens = (*tokens, stop)  # servers say that it stopped, and leave the token out
        if stop is not None and stop in tokens[:-1]:
            raise TeacherError(f"{where} goes on after the stop token; check the teacher")
        if len(tokens) > limit:
            raise TeacherError(
                f"{where} has {len(tokens)} tokens where at most {limit} were asked; check that "
                "the server honours max_tokens"
            )
        if len(tokens) < limit and tokens[-1:] != (stop,):
            raise TeacherError(
                f"{where} ends after {len(tokens)} of {limit} tokens with reason "
                f"{reply.finish!r} and no stop token; check horizon= and stop= in the URI"
            )
        if not all(token < self._spec.num_tokens for token in tokens):
            raise TeacherError(f"{where} has a token outside the alphabet; give all its tokens")
        return tokens

    def _shown_laws(self, prefixes: Prefixes, shown: int) -> list[dict[int, float]]:
        """What the server shows of each law, every entry read.

        Raises:
            TeacherError: where a law is missing or part of it cannot be read.
        """
        check_prefixes(self._spec, prefixes)
        rows = prefixes.rows()
        if not rows:
            return []
        batch = self._style.batch
        questions = [
            Question(tuple(rows[i : i + batch]), shown=shown) for i in range(0, len(rows), batch)
        ]
        replies = [row[0] for found in self._asker.ask_all(questions, self._style) for row in found]
        return [self._readable(row, reply) for row, reply in zip(rows, replies, strict=True)]

    def _readable(self, row: tuple[int, ...], reply: Reply) -> dict[int, float]:
        where = f"the law after {list(row)} from {self._asker.endpoint.model}"
        law = reply.laws[0] if reply.laws else None
        if law is None:
            raise TeacherError(f"{where} is not in the answer; run `myna probe` on this endpoint")
        for what, mass in (
            ("of names no one token has", law.unreadable),
            ("outside the alphabet", law.outside),
        ):
            if mass > _ROUNDING:
                raise TeacherError(
                    f"{where} has mass {mass:.3g} {what}; give all tokens (tokenizer=, "
                    "vocabulary=), or learn from samples"
                )
        total = sum(math.exp(min(value, 1.0)) for value in law.log_probs.values())
        if not total <= 1 + _ROUNDING:
            raise TeacherError(f"{where} sums to {total:.6g}, above 1; check the teacher")
        return law.log_probs


class EndpointTopLaws(EndpointSamples):
    """An endpoint that also shows the k most likely next tokens."""

    @property
    def k(self) -> int:
        """How many tokens `top_laws` shows."""
        return min(self.profile.k, self._spec.num_tokens)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The k most likely next tokens; the rest is what they leave of one."""
        tops = []
        for row, law in zip(prefixes.rows(), self._shown_laws(prefixes, self.k), strict=True):
            ordered = sorted(law.items(), key=lambda pair: (-pair[1], pair[0]))[: self.k]
            if len(ordered) < self.k:
                raise TeacherError(
                    f"{self.k} tokens were asked after {list(row)}, and the server named "
                    f"{len(ordered)} of the alphabet; ask for fewer or give all tokens"
                )
            tops.append(ordered)
        shape = (len(tops), self.k)
        tokens = torch.tensor([[t for t, _ in top] for top in tops], dtype=torch.int64)
        log_probs = torch.tensor([[p for _, p in top] for top in tops], dtype=torch.float64)
        log_probs = log_probs.reshape(shape)
        # Rounded laws can leave a little less than nothing.
        total = log_probs.exp().sum(1)
        log_probs = log_probs - total.clamp(min=1.0).log()[:, None]
        rest = (1 - log_probs.exp().sum(1)).clamp(min=0.0)
        if self.k == self._spec.num_tokens:
            rest = torch.zeros_like(rest)
            log_probs = log_probs - log_probs.logsumexp(1, keepdim=True)
        return TopLaw(tokens.reshape(shape), log_probs, rest.log())


class EndpointLaws(EndpointTopLaws):
    """An endpoint that shows whole laws."""

    @property
    def k(self) -> int:
        """Every token is shown: k = O."""
        return self._spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats), one row a prefix."""
        shown = self._shown_laws(prefixes, self._asker.vocabulary.shown)
        size = self._spec.num_tokens
        listed = [[law.get(token, math.nan) for token in range(size)] for law in shown]
        laws = torch.tensor(listed, dtype=torch.float64).reshape(len(shown), size)
        return normalised(prefixes, laws)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The whole law, most likely tokens first."""
        return top_of(self.laws(prefixes), self.k)


class EndpointScores(EndpointLaws):
    """An endpoint that scores prompts: a law costs one prompt a token of the alphabet.

    A history and a future cost one prompt (`cross`).
    """

    def in_flight(self, kind: str) -> int:
        """How many answers of a kind are on their way together."""
        prompts = 1 if kind == "draw" else self._spec.num_tokens
        return max(1, super().in_flight(kind) // prompts)

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """Log P(x) in nats, one a sequence, from the prompt's log-probabilities."""
        return self.prompt_scores(Prefixes(*strings)).nansum(1)

    def prompt_scores(self, prompts: Prefixes) -> Float[Tensor, "batch token"]:
        """Log P(x_i | x_1 .. x_i-1) in nats; NaN beyond each prompt."""
        check_strings(self._spec, Strings(*prompts))
        scores = torch.full(prompts.tokens.shape, torch.nan, dtype=torch.float64)
        for row, values in enumerate(self._prompt_scores(prompts.rows())):
            scores[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        return scores

    def cross(
        self, histories: Prefixes, futures: Prefixes, kept: Int[Tensor, "kept 2"]
    ) -> Crossing:
        """As `crossing.crossed`."""
        return crossed_by_scores(self, histories, futures, kept)

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """Next-token log-probabilities (nats), one row a prefix."""
        check_prefixes(self._spec, prefixes)
        size = self._spec.num_tokens
        rows = [(*row, token) for row in prefixes.rows() for token in range(size)]
        last = [values[-1] for values in self._prompt_scores(rows)]
        laws = torch.tensor(last, dtype=torch.float64).reshape(len(prefixes.lengths), size)
        return normalised(prefixes, laws)

    def _prompt_scores(self, rows: Sequence[tuple[int, ...]]) -> list[tuple[float, ...]]:
        """Log P(x_i | x_1 .. x_i-1) for each token of each row."""
        batch, begin = self._style.batch, self._asker.vocabulary.begin
        questions = [
            Question(tuple(rows[i : i + batch]), shown=1, echo=True)
            for i in range(0, len(rows), batch)
        ]
        replies = [row[0] for found in self._asker.ask_all(questions, self._style) for row in found]
        return [prompt_scores(row, reply, begin) for row, reply in zip(rows, replies, strict=True)]


def prompt_scores(row: tuple[int, ...], reply: Reply, begin: tuple[int, ...]) -> tuple[float, ...]:
    """The part of an echo that belongs to a row, which stands after the beginning tokens.

    Raises:
        TeacherError: where the echo does not hold the row, or gives no number for it.
    """
    place = slice(len(begin), len(begin) + len(row))
    numbers = tuple(value for value in reply.log_probs[place] if value is not None)
    if reply.named[place] != row or len(numbers) != len(row):
        raise TeacherError(
            f"the prompt {list(row)} was to be scored, and the answer holds no log-probabilities "
            "of its tokens; run `myna probe` on this endpoint"
        )
    return numbers


def normalised(
    prefixes: Prefixes, laws: Float[Tensor, "batch token"]
) -> Float[Tensor, "batch token"]:
    """Laws divided by their mass, where that is one but for single precision.

    Raises:
        TeacherError: naming the prefix and the mass, or the token without a number.
    """
    mass = laws.exp().sum(1)
    bad = ~((mass - 1).abs() <= _ROUNDING)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        missing = laws[row].isnan().nonzero()[:, 0].tolist()
        came = f"none for token {missing[0]}" if missing else f"a total of {float(mass[row]):.6g}"
        raise TeacherError(
            f"a whole law was asked after {list(prefixes.rows()[row])}, and its probabilities "
            f"have {came}; run `myna probe` on this endpoint, or learn from samples"
        )
    return laws - mass.log()[:, None]
