"""A myna teacher behind OpenAI's answers, and the faults that it can be told to commit.

The vocabulary is the teacher's alphabet, then one token <s> that opens every prompt. A
choice is drawn by numbers that are a function of (prompt, seed, index), so an honest
server answers the same question in the same way; without a seed, every request is new.
Log-probabilities are those before temperature, top-p and logit_bias; -9999 stands for
minus infinity, as vLLM writes it.
"""

import enum
import itertools
import math
import threading

import torch

from myna.errors import InputError
from myna.teachers.draws import Dice
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes


class Fault(enum.Enum):
    SHIFTED_PROMPT = "prompt log-probabilities are off by one token"
    ECHO_IGNORED = "echo is ignored in silence"
    LOGPROBS_IGNORED = "logprobs is ignored in silence"
    N_IGNORED = "n is ignored in silence"
    COPIED_N = "the n choices are one choice, copied"
    COLLIDING = "token strings collide, and token ids cannot be had"
    UNNORMALISED = "laws do not sum to one"
    TEMPERED_DRAWS = "draws follow a sharper law than the one reported"
    AFTER_TEMPERATURE = "log-probabilities are those after temperature"
    AFTER_TOP_P = "log-probabilities are those after top-p"
    AFTER_BIAS = "log-probabilities are those after logit_bias"
    BATCH_DEPENDENT = "the answer depends on the batch"
    BATCH_SHUFFLED = "answers of a batch are returned for the wrong prompts"
    BATCH_REFUSED = "batches are refused"
    RANDOM_AT_ZERO = "temperature 0 draws at random"
    UNSTEADY_LAWS = "the same question has different log-probabilities"
    GREEDY = "draws are the likeliest tokens, whatever the temperature"
    STRICT_FIELDS = "requests with a field that OpenAI does not have are refused"
    SEED_IGNORED = "seed is ignored"
    IDS_REFUSED = "prompts of token ids are refused"
    IDS_MISREAD = "prompts of token ids are read as other tokens"
    K_CAPPED = "fewer log-probabilities come than were asked, in silence"
    STOP_HIDDEN = "the stop token is not reported"
    MAX_TOKENS_IGNORED = "max_tokens is ignored"
    OTHER_MODEL = "another model answers under this name"


CAP = 2  # log-probabilities shown under K_CAPPED


class Refusal(Exception):
    """An HTTP error with its status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status, self.message = status, message


class FakeModel:
    """What a server says about one teacher."""

    def __init__(self, teacher, faults=(), name="fake", bare=False, salt=""):
        """Serve a teacher.

        bare: say nothing of the alphabet in /v1/models, as real servers do
        salt: another one draws other numbers for the same seeds
        """
        self.salt = salt
        self.teacher, self.faults, self.name = teacher, frozenset(faults), name
        self.spec = teacher.spec
        self.begin = self.spec.num_tokens
        self.bare = bare
        self.texts = [*self.spec.alphabet, "<s>"]
        if Fault.COLLIDING in self.faults:
            self.texts[0] = self.texts[1] = "\ufffd"
        self._fresh = itertools.count(1)
        self._noise = torch.Generator().manual_seed(1)
        self._lock = threading.Lock()

    def has(self, fault):
        return fault in self.faults

    def models(self):
        spec = self.spec
        entry = {"id": self.name, "object": "model", "owned_by": "tests"}
        if not self.bare:
            stop = spec.stop
            entry["myna"] = {
                "alphabet": list(spec.alphabet),
                "begin": [self.begin],
                "stop": stop,
                "horizon": spec.horizon,
            }
        return {"object": "list", "data": [entry]}

    def completions(self, body):
        self._check_name(body)
        prompts = self._prompts(body.get("prompt"))
        count = 1 if self.has(Fault.N_IGNORED) else body.get("n") or 1
        limit = body.get("max_tokens", 16)
        if self.has(Fault.MAX_TOKENS_IGNORED):
            limit = 4
        wanted = body.get("logprobs")
        if self.has(Fault.LOGPROBS_IGNORED):
            wanted = None
        if wanted is not None and wanted > len(self.texts):
            raise Refusal(400, f"logprobs must be at most {len(self.texts)}")
        if self.has(Fault.K_CAPPED) and wanted is not None:
            wanted = min(wanted, CAP)
        as_ids = body.get("return_tokens_as_token_ids") and not self.has(Fault.COLLIDING)
        echo = body.get("echo") and not self.has(Fault.ECHO_IGNORED)
        drawn = self._draw(prompts, count, limit, body)
        choices = []
        for i, prompt in enumerate(prompts):
            for j in range(count):
                tokens, finish, shown = drawn[i][0 if self.has(Fault.COPIED_N) else j]
                record = None
                if wanted is not None:
                    record = self._record(prompt if echo else [], tokens, shown, wanted, as_ids)
                text = "".join(self.texts[t] for t in tokens if t != self.spec.stop)
                if echo:
                    text = "".join(self.texts[t] for t in prompt if t != self.begin) + text
                choices.append(
                    {
                        "index": i * count + j,
                        "text": text,
                        "finish_reason": finish,
                        "logprobs": record,
                    }
                )
        if self.has(Fault.BATCH_SHUFFLED):
            order = [c["index"] for c in choices]
            for choice, index in zip(choices, order[1:] + order[:1], strict=True):
                choice["index"] = index
        sent = sum(len(prompt) for prompt in prompts)
        received = sum(len(tokens) for row in drawn for tokens, _, _ in row)
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": "cheaper" if self.has(Fault.OTHER_MODEL) else self.name,
            "choices": choices,
            "usage": {
                "prompt_tokens": sent,
                "completion_tokens": received,
                "total_tokens": sent + received,
            },
        }

    def chat(self, body):
        """The reply after a user's words; a last message of the assistant is continued."""
        self._check_name(body)
        last = body["messages"][-1]
        begun = last["content"] if last["role"] == "assistant" else ""
        wanted = None
        if body.get("logprobs") and not self.has(Fault.LOGPROBS_IGNORED):
            wanted = body.get("top_logprobs") or 0
            wanted = min(wanted, CAP) if self.has(Fault.K_CAPPED) else wanted
        if wanted is not None and wanted > len(self.texts):
            raise Refusal(400, f"top_logprobs must be at most {len(self.texts)}")
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        count = 1 if self.has(Fault.N_IGNORED) else body.get("n") or 1
        prompt = [self.begin, *self._split(begun)]
        choices = []
        for j, (tokens, finish, shown) in enumerate(self._draw([prompt], count, limit, body)[0]):
            content = None
            if wanted is not None:
                content = [
                    {
                        "token": self.texts[token],
                        "logprob": _finite(law[token]),
                        "top_logprobs": [
                            {"token": self.texts[t], "logprob": _finite(law[t])}
                            for t in _largest(law, wanted)
                        ],
                    }
                    for token, law in zip(tokens, shown, strict=True)
                ]
            text = "".join(self.texts[t] for t in tokens if t != self.spec.stop)
            choices.append(
                {
                    "index": j,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish,
                    "logprobs": None if content is None else {"content": content},
                }
            )
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": self.name,
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 0, "total_tokens": 0},
        }

    def _check_name(self, body):
        if self.has(Fault.STRICT_FIELDS) and "return_tokens_as_token_ids" in body:
            raise Refusal(422, "return_tokens_as_token_ids is no field")
        if body.get("model") != self.name and not self.has(Fault.OTHER_MODEL):
            raise Refusal(404, f"the model {body.get('model')!r} does not exist")

    def _prompts(self, given):
        if not isinstance(given, list) or (given and isinstance(given[0], int)):
            given = [given]
        if len(given) > 1 and self.has(Fault.BATCH_REFUSED):
            raise Refusal(400, "prompt must be one string or one list of token ids")
        return [self._prompt(prompt) for prompt in given]

    def _prompt(self, given):
        if isinstance(given, str):
            return [self.begin, *self._split(given)]
        if self.has(Fault.IDS_REFUSED):
            raise Refusal(400, "prompt must be a string")
        if not given or any(not 0 <= t < len(self.texts) for t in given):
            raise Refusal(400, "prompt must hold token ids of the vocabulary")
        rest = given[1:] if given[0] == self.begin else given
        if self.begin in rest:
            raise Refusal(400, "<s> may only come first")
        if self.has(Fault.IDS_MISREAD):
            usual = [t for t in range(self.spec.num_tokens) if t != self.spec.stop]
            rest = [usual[(usual.index(t) + 1) % len(usual)] for t in rest]
        return [self.begin, *rest]

    def _split(self, text):
        found = []
        while text:
            fitting = [t for t, name in enumerate(self.texts) if text.startswith(name)]
            if not fitting:
                raise Refusal(400, "prompt has a character of no token")
            best = max(fitting, key=lambda t: len(self.texts[t]))
            found.append(best)
            text = text[len(self.texts[best]) :]
        return found[1:] if found[:1] == [self.begin] else found

    def _laws(self, rows):
        """Log-probabilities over the vocabulary, one row a list of tokens."""
        with self._lock:  # teachers keep recent states
            try:
                laws = self.teacher.laws(Prefixes.of(rows))
            except InputError as error:
                raise Refusal(400, str(error)) from error
        return torch.nn.functional.pad(laws, (0, 1), value=-torch.inf)

    def _reported(self, laws, batch, options):
        """What the server calls the laws that it drew from."""
        temperature, top_p, bias = options
        if self.has(Fault.AFTER_BIAS):
            laws = biased(laws, bias)
        if self.has(Fault.AFTER_TEMPERATURE):
            laws = tempered(laws, temperature)
        if self.has(Fault.AFTER_TOP_P):
            laws = nucleus(laws, top_p)
        if self.has(Fault.UNNORMALISED):
            laws = laws - 0.05
        if self.has(Fault.BATCH_DEPENDENT) and batch > 1:
            laws = tempered(laws, 1.2)
        if self.has(Fault.UNSTEADY_LAWS):
            with self._lock:
                noise = torch.rand(laws.shape, generator=self._noise, dtype=laws.dtype)
            laws = (laws + 0.2 * noise).log_softmax(1)
        return laws

    def _draw(self, prompts, count, limit, body):
        """For each prompt and choice: tokens, finish reason, and the law shown at each."""
        spec = self.spec
        options = (
            body.get("temperature", 1.0),
            body.get("top_p", 1.0),
            {int(t): float(v) for t, v in (body.get("logit_bias") or {}).items()},
        )
        seed = body.get("seed")
        if seed is None or self.has(Fault.SEED_IGNORED):
            seed = next(self._fresh) + 2**40
        dice = Dice.of(Prefixes.of(prompts), Stream(f"server{self.salt}", seed), 0, count)
        rows = [list(prompt[1:]) for prompt in prompts for _ in range(count)]
        drawn = [[] for _ in rows]
        shown = [[] for _ in rows]
        finish = ["length"] * len(rows)
        ended = [i for i, row in enumerate(rows) if spec.stop in row]
        for i in ended:
            finish[i] = "stop"
        open_rows = [i for i in range(len(rows)) if limit > 0 and i not in ended]
        if spec.horizon is not None and any(len(row) > spec.horizon for row in rows):
            raise Refusal(400, f"at most {spec.horizon} tokens fit in the context")
        position = 0
        while open_rows:
            if spec.horizon is not None:
                open_rows = [i for i in open_rows if len(rows[i]) < spec.horizon]
            open_rows = [i for i in open_rows if len(drawn[i]) < limit and finish[i] != "stop"]
            if not open_rows:
                break
            laws = self._laws([rows[i] for i in open_rows])
            report = self._reported(laws, len(prompts), options)
            uniform = dice.roll(position)[torch.tensor(open_rows)]
            tokens = self._tokens(laws, uniform, options)
            for place, (i, token) in enumerate(zip(open_rows, tokens, strict=True)):
                rows[i].append(token)
                hidden = self.has(Fault.STOP_HIDDEN) and token == spec.stop
                if not hidden:
                    drawn[i].append(token)
                    shown[i].append(report[place])
                if token == spec.stop:
                    finish[i] = "stop"
            position += 1
        if self.has(Fault.STOP_HIDDEN):
            finish = ["length"] * len(rows)
        found = list(zip(drawn, finish, shown, strict=True))
        return [found[i * count : (i + 1) * count] for i in range(len(prompts))]

    def _tokens(self, laws, uniform, options):
        temperature, top_p, bias = options
        laws = biased(laws, bias)
        if self.has(Fault.GREEDY):
            return laws.argmax(1).tolist()
        if temperature == 0:
            if not self.has(Fault.RANDOM_AT_ZERO):
                return laws.argmax(1).tolist()
            uniform = torch.rand(len(laws), dtype=torch.float64)
        else:
            laws = tempered(laws, temperature)
        if self.has(Fault.TEMPERED_DRAWS):
            laws = tempered(laws, 0.5)
        laws = nucleus(laws, top_p)
        cumulative = laws.exp().cumsum(1)
        target = uniform[:, None] * cumulative[:, -1:]
        return (cumulative <= target).sum(1).clamp(max=laws.shape[1] - 1).tolist()

    def _record(self, prompt, tokens, shown, wanted, as_ids):
        """OpenAI's logprobs object: the prompt's part first, where it is echoed."""
        name = (lambda t: f"token_id:{t}") if as_ids else self.texts.__getitem__
        values, laws = [], []
        if prompt:
            values, laws = [None], [None]
            rows = [prompt[1:i] for i in range(1, len(prompt))]
            exact = self._laws(rows) if rows else []
            late = exact
            if rows and self.has(Fault.SHIFTED_PROMPT):
                ends = self.spec.horizon is not None and len(prompt) > self.spec.horizon
                after = [prompt[1 : i + 1] for i in range(1, len(prompt))]
                late = self._laws([*after[:-1], after[-2] if ends else after[-1]])
            if rows and self.has(Fault.UNNORMALISED):
                late = late - 0.05
            for token, law in zip(prompt[1:], late, strict=True):
                values.append(_finite(law[token]))
                laws.append(law)
        values += [_finite(law[t]) for t, law in zip(tokens, shown, strict=True)]
        laws += shown
        tops = []
        for law in laws:
            if law is None:
                tops.append(None)
                continue
            # a dictionary, as servers fill it: of colliding names the last one stays
            tops.append({name(t): _finite(law[t]) for t in _largest(law, wanted)})
        return {
            "tokens": [name(t) for t in [*prompt, *tokens]],
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": [0] * len(values),
        }


def _finite(value):
    return max(float(value), -9999.0)


def _largest(law, count):
    return law.topk(min(count, len(law))).indices.tolist() if count else []


def tempered(laws, temperature):
    return (laws / temperature).log_softmax(1) if temperature > 0 else laws


def nucleus(laws, top_p):
    """The least set of most likely tokens whose mass reaches top_p, renormalised."""
    if top_p >= 1:
        return laws
    ordered, order = laws.sort(1, descending=True)
    before = ordered.exp().cumsum(1) - ordered.exp()
    kept = torch.where(before < top_p, ordered, -math.inf)
    return torch.full_like(laws, -math.inf).scatter(1, order, kept).log_softmax(1)


def biased(laws, bias):
    if not bias:
        return laws
    moved = laws.clone()
    for token, value in bias.items():
        moved[:, token] += value
    return moved.log_softmax(1)
