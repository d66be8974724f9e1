"""Text given on the command line, as tokens of a teacher."""

import functools
from typing import Any

from myna.errors import InputError
from myna.spec import Spec
from myna.teachers.token_names import visible_names


def encode(uri: str, spec: Spec, text: str) -> tuple[int, ...]:
    """Tokens of a text: by the tokenizer of an hf: folder, else character by character.

    Raises:
        InputError: a character that is no token; a folder without a tokenizer.
    """
    if not text:
        return ()
    if uri.startswith("hf:"):
        return _by_tokenizer(uri.removeprefix("hf:").split("?")[0], text)
    place = {name: token for token, name in enumerate(spec.alphabet)}
    names = [visible_names([character], 1)[0] for character in text]
    for name in names:
        if name not in place:
            raise InputError(
                f"the character {name!r} is no token of {uri}; its tokens are "
                f"{' '.join(spec.alphabet[:40])}{' ...' if len(spec.alphabet) > 40 else ''}"
            )
    return tuple(place[name] for name in names)


def _by_tokenizer(name: str, text: str) -> tuple[int, ...]:
    return tuple(_tokenizer(name).encode(text, add_special_tokens=False, verbose=False))


@functools.cache
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - an extra, and slow to import

    from myna.teachers.hf_folder import folder_of  # noqa: PLC0415 - the same

    folder = folder_of(name)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no tokenizer that loads: {error}") from error
