"""What a file that is not trusted may cost before it is believed.

    read      plain files only (no folder, device or pipe), at most MOST_BYTES of text
    table     at most MOST_NUMBERS numbers, whatever sizes the file declares

Both are far above any model that is learned here, and keep a file of a few bytes from
taking the machine's memory. Symbolic links are followed: the user named the path.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from myna.errors import FormatError

MOST_BYTES = 2**28
MOST_NUMBERS = 2**27  # one GiB in float64


def check_plain(path: Path) -> int:
    """The size of a plain file, bytes.

    Raises:
        FormatError: where it is none, or cannot be looked at.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{path} cannot be read: {reason}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{path} cannot be read: it is no plain file")
    return found.st_size


def in_the_way(folder: Path) -> Path | None:
    """What keeps a folder from being written: its nearest path that exists, or None."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return None if there.is_dir() and os.access(there, os.W_OK) else there


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        FormatError: where it cannot be read as that, or is larger than MOST_BYTES.
    """
    size = check_plain(path)
    if size > MOST_BYTES:
        raise FormatError(f"{path} has {size:,} bytes, and at most {MOST_BYTES:,} are read")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} cannot be read as text: {error}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FormatError: where there is none.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} does not read as JSON: {error}") from error


def check_table(path: Path, what: str, *shape: int) -> None:
    """Refuse a table that is too large to make.

    Raises:
        FormatError: saying its shape.
    """
    if math.prod(shape) > MOST_NUMBERS:
        sizes = " x ".join(f"{size:,}" for size in shape)
        raise FormatError(
            f"{path} asks for a table of {what} with {sizes} numbers, and at most "
            f"{MOST_NUMBERS:,} are held; is the file damaged?"
        )
