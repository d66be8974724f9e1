"""A ledger's recorded completions as evidence, with no teacher behind it.

Each draw that the file holds on a stream is one row (prompt, completion), as if it had just been
asked: `learn` is what a learner saw, `check` what judged its copies.
"""

from pathlib import Path

from myna.errors import FormatError, InputError
from myna.learn.asker import answered, pooled
from myna.learn.evidence import Evidence
from myna.spec import Spec
from myna.teachers.ledger_audit import read_block
from myna.teachers.ledger_blocks import COLUMNS
from myna.teachers.ledger_schema import explained, open_to_read
from myna.teachers.oracle import Completions


def recorded_evidence(path: Path, language: Spec, purpose: str) -> Evidence:
    """All draws of one purpose, equal rows merged.

    language: what the answers must be about: alphabet, stop token, horizon
    purpose: of the streams, as "learn"

    Raises:
        InputError: no such file, another language, or no draw of that purpose.
        FormatError: no ledger, or a damaged one.
    """
    connection, spec = open_to_read(path)
    parts = []
    try:
        if not spec.same_language(language):
            raise InputError(
                f"the ledger {path} is of another language than the student; name the one that it "
                "was learned with"
            )
        query = f"SELECT {COLUMNS}, keys, keys_hash, body, body_hash FROM block"  # noqa: S608
        with explained(path):
            for *columns, keys, keys_hash, body, body_hash in connection.execute(query):
                blobs = (keys, keys_hash, body, body_hash)
                question, answer = read_block(spec, tuple(columns), blobs)
                mine = question.stream is not None and question.stream.purpose == purpose
                if mine and isinstance(answer, Completions):
                    parts.append(answered(question.prefixes, answer.tokens, answer.lengths))
    except FormatError as error:
        raise FormatError(f"a block of {path} is damaged: {error}") from error
    finally:
        connection.close()
    if not parts:
        raise InputError(
            f"the ledger {path} holds no completions on the stream {purpose!r}; record them with "
            "myna learn --access samples --ledger"
        )
    return pooled(parts)
