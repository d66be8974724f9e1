"""Text as tokens of a teacher: by its tokenizer, or letter by letter where tokens are letters."""

from pathlib import Path

from myna.errors import FormatError, InputError
from myna.spec import Spec
from myna.teachers.files import read_text
from myna.teachers.token_names import visible_names
from myna.teachers.uri import split_uri


def encoded(uri: str, spec: Spec, texts: list[str]) -> list[list[int]]:
    """Each text's tokens.

    Raises:
        InputError: for a teacher whose tokens are neither a tokenizer's nor letters.
    """
    scheme, name, _ = split_uri(uri)
    if scheme == "hf":
        from myna.teachers import hf_folder  # noqa: PLC0415

        found = hf_folder.tokenize(hf_folder.folder_of(name), texts)
        if found is not None:
            return found
    place = {token: i for i, token in enumerate(spec.alphabet)}
    rows = []
    for text in texts:
        names = [visible_names([letter], 1)[0] for letter in text]
        unknown = next((name for name in names if name not in place), None)
        if unknown is not None:
            raise InputError(
                f"the text has {unknown!r}, which is no token of this teacher, and it has no "
                "tokenizer; give text over its tokens, or leave --text out"
            )
        rows.append([place[name] for name in names])
    return rows


def read_texts(paths: list[str]) -> list[str]:
    """The texts of files, parted at <|endoftext|>.

    Raises:
        FormatError: for a file that is none.
    """
    parts = [
        part.strip() for path in paths for part in read_text(Path(path)).split("<|endoftext|>")
    ]
    found = [part for part in parts if part]
    if not found:
        raise FormatError(f"{', '.join(paths)} holds no text")
    return found
