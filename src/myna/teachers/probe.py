"""The conformance probe: what does an endpoint really return?

A string x = x_1 .. x_m is drawn with its log-probabilities l_i, as the server reports them
while it writes. All else is asked so that a fault shows as a disagreement of two answers:

    token ids      log P(x_i | x_<i) asked anew after the prompt x_<i            against l_i
    alignment      entry i of the echoed prompt                                  against l_i,
                   and against log P(x_i | x_<=i), which an off-by-one server gives
    sum            the masses of a law                                           against 1
    frequencies    counts of first tokens              against the law, exact tests, level 1e-6
    temperature    the law reported at another temperature, top-p or logit_bias  against the law
    batch          each answer in a batch                        against the same prompt alone

Numbers of two answers agree where they differ by less than TOLERANCE nats, which leaves
room for servers in half precision. Where both hypotheses predict the same, the verdict is
that it could not be told.
"""

from collections.abc import Callable

from myna.teachers.asker import Asker
from myna.teachers.endpoint import spec_of
from myna.teachers.probe_forms import FormQuestions
from myna.teachers.probe_laws import LawQuestions
from myna.teachers.probe_questions import Outcome
from myna.teachers.probe_record import Finding, Profile, safe_access

_ASKS = {
    "model": "does the model that was named answer?",
    "token_ids": "are prompts of token ids read as these tokens?",
    "logprobs": "do log-probabilities come when they are asked?",
    "k": "what is the largest number of log-probabilities?",
    "collisions": "do names of tokens collide, and how much mass is unreadable?",
    "sum": "do laws sum to one?",
    "steady": "does the same question have the same law?",
    "echo": "do prompt log-probabilities come when they are asked?",
    "alignment": "do prompt log-probabilities belong to their tokens?",
    "max_tokens": "is max_tokens honoured?",
    "random": "are draws at temperature 1 random?",
    "n": "is n honoured, by choices that differ?",
    "batch": "is an answer independent of its batch?",
    "frequencies": "do drawn tokens follow the reported laws?",
    "temperature": "are log-probabilities those before temperature, or after?",
    "top_p": "are log-probabilities those before top-p, or after?",
    "logit_bias": "are log-probabilities those before logit_bias, or after?",
    "deterministic": "does temperature 0 always write the same?",
    "seed": "is the seed honoured?",
    "stop": "is the stop token reported?",
}


def probe(asker: Asker, tell: Callable[[str], None] = lambda _: None) -> Profile:
    """Ask a fixed set of questions (about 150 short requests where n is honoured).

    tell: is given each question before it is asked
    """
    return _Probe(asker, tell).run()


class _Probe(LawQuestions, FormQuestions):
    """The questions in order; later ones use what earlier ones found."""

    def run(self) -> Profile:
        """Every question in order, then what follows from them."""
        steps: dict[str, Callable[[], Outcome]] = {
            "model": self._model,
            "max_tokens": self._max_tokens,
            "logprobs": self._log_probs,
            "k": self._largest_k,
            "steady": self._steady,
            "token_ids": self._token_ids,
            "collisions": self._collisions,
            "sum": self._sum,
            "echo": self._echo,
            "alignment": self._alignment,
            "random": self._random,
            "n": self._n,
            "batch": self._batch,
            "frequencies": self._frequencies,
            "temperature": self._temperature,
            "top_p": self._top_p,
            "logit_bias": self._bias,
            "deterministic": self._deterministic,
            "seed": self._seed,
            "stop": self._stop,
        }
        for name, step in steps.items():
            self._tell(_ASKS[name])
            self._findings[name] = Finding(name, _ASKS[name], *self._outcome(name, step))
            if name == "max_tokens":
                self._draw_string()
        findings = tuple(self._findings[name] for name in _ASKS)
        access, withheld = safe_access(findings, len(self._vocabulary.names), self._k)
        endpoint = self._asker.endpoint
        return Profile(
            endpoint.model,
            endpoint.base_url,
            spec_of(endpoint, self._vocabulary).fingerprint,
            access,
            withheld,
            self._k,
            self._style.ids,
            self._style.batch,
            self._style.many,
            self._style.named,
            self._addressed,
            self._asker.transport.traffic.tries - self._before[0],
            self._asker.spent - self._before[1],
            findings,
        )
