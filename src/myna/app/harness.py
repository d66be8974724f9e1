"""Copies in lm-evaluation-harness: its command line with one more model, `myna`.

    python -m myna.app.harness --model myna --model_args student=FOLDER --tasks TASK ...

The harness asks in text. Text is read as in `myna score`: token names separated by blanks,
and a word that is no token's name letter by letter. Where a token's name is or holds a
blank, all names must be single characters, and every character is read.

A text is scored as a prefix, as the harness does with other models: nothing is added at its
end. To ask about the end, write the stop token's name.

Version 0.4.13 of the harness finds models in its own package only, so ours is registered
before its command line is called (its guide for models outside its package says the same).
"""

import sys
from typing import Any

import torch

from myna.app.models import open_model
from myna.app.output import text_of
from myna.errors import InputError, MynaError
from myna.evaluate.continuations import complete_each, complete_greedily, score_continuations
from myna.lowrank.student import strings
from myna.spec import Spec
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.stepped import SteppedTeacher

_ROWS = 1024  # strings read at once unless the harness says
_MAX_TOKENS = 256  # the harness's own default for generation
_HONOURED = ("until", "max_gen_toks", "do_sample", "temperature")


def tokens_of(text: str, spec: Spec) -> list[int]:
    """The tokens that a text names.

    Raises:
        InputError: naming the word or character that is no token.
    """
    place = {name: token for token, name in enumerate(spec.alphabet)}
    names = [name for name in spec.alphabet if place[name] != spec.stop]
    if any(name.split() != [name] for name in names):
        if any(len(name) != 1 for name in names):
            raise InputError(
                "text is read by token names, and here some hold blanks and others several "
                "letters, so words cannot be told apart; score token files with `myna score`"
            )
        found = list(text)
    else:
        found = [
            name for word in text.split() for name in ([word] if word in place else list(word))
        ]
    for name in found:
        if name not in place:
            raise InputError(
                f"the text {text[:60]!r} holds {name!r}, which is no token of this model; its "
                f"tokens are {', '.join(map(repr, spec.alphabet[:12]))}"
                f"{', ...' if spec.num_tokens > 12 else ''}"
            )
    return [place[name] for name in found]


class TextModel:
    """A model over tokens that is asked in text."""

    def __init__(self, model: SteppedTeacher, rows: int = _ROWS, seed: int = 0):
        """rows: how many strings are read at once; seed: of generation by sampling."""
        self._model, self._rows, self._seed = model, rows, seed

    def likelihoods(self, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log Q(continuation | context) in nats, and whether it is what comes greedily."""
        spec = self._model.spec
        found = []
        for start in range(0, len(pairs), self._rows):
            read = [
                (tokens_of(context, spec), tokens_of(continuation, spec))
                for context, continuation in pairs[start : start + self._rows]
            ]
            whole = strings([context + continuation for context, continuation in read])
            starts = torch.tensor([len(context) for context, _ in read])
            scored = score_continuations(self._model, whole, starts)
            found += zip(scored.log_probs.tolist(), scored.greedy.tolist(), strict=True)
        return found

    def generate(self, contexts: list[str], how: dict[str, Any]) -> list[str]:
        """What comes after each context, up to and without any of the texts in `until`.

        how: until, max_gen_toks; greedy unless do_sample, which draws from the model itself

        Raises:
            InputError: for settings that are not honoured.
        """
        spec = self._model.spec
        limit = int(how.get("max_gen_toks", _MAX_TOKENS))
        prefixes = Prefixes.of([tokens_of(context, spec) for context in contexts])
        if _sampling(how):
            made = complete_each(self._model, prefixes, limit, Stream("harness", self._seed))
        else:
            made = complete_greedily(self._model, prefixes, limit)
        until = how.get("until") or []
        ends = [until] if isinstance(until, str) else list(until)
        shown = [
            text_of(spec, [t for t in row if t != spec.stop]) for row in Prefixes(*made).rows()
        ]
        return [_cut(text, ends) for text in shown]


def _sampling(how: dict[str, Any]) -> bool:
    """Whether to draw; refuses what would otherwise be ignored in silence."""
    for name in how:
        if name not in _HONOURED:
            raise InputError(
                f"generation takes {', '.join(_HONOURED)}; the task asks for {name!r}, leave it out"
            )
    temperature = float(how.get("temperature") or 0.0)
    if not how.get("do_sample", temperature > 0):
        return False
    if temperature not in (0.0, 1.0):
        raise InputError(f"samples are drawn at temperature 1, the task asks for {temperature:g}")
    return True


def _cut(text: str, ends: list[str]) -> str:
    """The text before the first of the ends."""
    places = [text.find(end) for end in ends if end and end in text]
    return text[: min(places)] if places else text


def harness_model(base: type) -> type:
    """The harness's model class, a subclass of its abstract `LM`."""

    class MynaLM(base):
        """A saved copy as the harness asks it: student=FOLDER."""

        def __init__(
            self,
            student: str,
            batch_size: int | str | None = None,
            max_batch_size: int | None = None,
            device: str | None = None,
            seed: int = 0,
        ):
            super().__init__()
            del device  # the harness says cuda:0 where nobody asked; copies answer on the CPU
            # the harness says 1 where nobody asked; answers do not depend on it
            given = str(batch_size) if str(batch_size).isdigit() else str(max_batch_size or 1)
            rows = int(given) if int(given) > 1 else _ROWS
            self._text = TextModel(open_model(student), rows, seed)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return self._text.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            pairs = [("", request.args[0]) for request in requests]
            return [log_prob for log_prob, _ in self._text.likelihoods(pairs)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            # One call per setting: requests of a task share theirs.
            found: dict[int, str] = {}
            for how in {repr(r.args[1]): r.args[1] for r in requests}.values():
                same = [i for i, r in enumerate(requests) if r.args[1] == how]
                texts = self._text.generate([requests[i].args[0] for i in same], how)
                found.update(zip(same, texts, strict=True))
            return [found[i] for i in range(len(requests))]

    return MynaLM


def main() -> None:
    """The harness's own command line, with the model `myna` added."""
    try:
        try:
            # the harness lists its own models only where none is registered yet
            import lm_eval.models  # noqa: F401, PLC0415  # pyright: ignore[reportMissingImports]
            from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
            from lm_eval.api.model import LM  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
            from lm_eval.api.registry import register_model  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "lm-evaluation-harness is not installed here; pip install lm_eval"
            ) from error
        register_model("myna")(harness_model(LM))
        cli_evaluate()
    except MynaError as error:
        print(f"myna: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
