"""A ledger's answers as a table: one row an answer, JSON lines or parquet.

    kind            "law", "top" or "draw"
    prefix          tokens
    k, stream, seed, max_tokens, draw     the setting; null where it has none
    tokens          of a draw; of a top law, its k tokens
    log_probs       nats: of a law, all O tokens in order; of a top law, those of its tokens
    log_rest        nats, of a top law
    job, purpose, request, started, ended    who asked, which request, when (seconds since 1970)

Costs are the request's: a law costs one query and the prefix's length in tokens sent, a
draw the prefix's length sent and its own length received. Impossible tokens have null in
JSON, which has no infinity, and -inf in parquet. Seeds may be of any size: text in parquet.
"""

import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from myna.errors import FormatError, InputError, LedgerError
from myna.spec import Spec
from myna.teachers.ledger_audit import read_block, read_sources, typed_rows
from myna.teachers.ledger_blocks import COLUMNS, Answer, Question
from myna.teachers.ledger_schema import explained, open_to_read
from myna.teachers.oracle import Completions, TopLaw

FORMATS = ("jsonl", "parquet")
_ROWS = 4096  # a batch of parquet


def export(path: Path, out: Path, kind: str) -> int:
    """Write all answers to a file, whole or not at all; how many.

    kind: "jsonl" or "parquet"

    Raises:
        InputError: where the file exists, its folder does not, or pyarrow is absent.
        FormatError: where the ledger is damaged.
    """
    if out.exists():
        raise InputError(f"{out} exists, and an export replaces nothing; name a new file")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} of the export does not exist; make it first")
    connection, spec = open_to_read(path)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            made = Path(folder) / "rows"
            rows = _rows(path, connection, spec)
            count = _parquet(made, rows) if kind == "parquet" else _jsonl(made, rows)
            made.rename(out)
    except OSError as error:
        raise LedgerError(
            f"{out} could not be written ({error.strerror}); the ledger is as it was"
        ) from error
    finally:
        connection.close()
    return count


def _rows(path: Path, connection: sqlite3.Connection, spec: Spec) -> Iterator[dict[str, Any]]:
    query = f"SELECT id, sources, {COLUMNS}, keys, keys_hash, body, body_hash FROM block"  # noqa: S608
    with explained(path):
        for number, sources, *rest in connection.execute(query):
            try:
                question, answer = read_block(spec, tuple(rest[:-4]), tuple(rest[-4:]))
                parts = read_sources(sources, len(question.prefixes.lengths))
                owners = [request for request, rows in parts for _ in range(rows)]
                said = {request: _asked(connection, request) for request in set(owners)}
            except FormatError as error:
                raise FormatError(
                    f"block {number} of {path} is damaged ({error}); nothing was written"
                ) from error
            for row, values in _answers(question, answer):
                yield {**values, "request": owners[row], **said[owners[row]]}


def _asked(connection: sqlite3.Connection, request: int) -> dict[str, Any]:
    """Who asked, and when; nothing where the request is not there."""
    query = "SELECT job, purpose, started, COALESCE(ended, started) FROM request WHERE id = ?"
    for row in typed_rows(connection, query, (request,), (str, str, float, float)):
        return dict(zip(("job", "purpose", "started", "ended"), row, strict=True))
    return {}


def _answers(question: Question, answer: Answer) -> Iterator[tuple[int, dict[str, Any]]]:
    """Prefix number and the row of each answer."""
    stream = question.stream
    shared = {
        "kind": question.kind,
        "k": question.k or None,
        "stream": None if stream is None else stream.purpose,
        "seed": None if stream is None else stream.seed,
        "max_tokens": question.max_tokens,
    }
    for row, prefix in enumerate(question.prefixes.rows()):
        named = {**shared, "prefix": list(prefix)}
        if isinstance(answer, Completions):
            pairs = zip(answer.tokens[row].tolist(), answer.lengths[row].tolist(), strict=True)
            for draw, (tokens, length) in enumerate(pairs, question.first_draw):
                yield row, {**named, "draw": draw, "tokens": tokens[:length]}
        elif isinstance(answer, TopLaw):
            tokens, log_probs, log_rest = (part[row].tolist() for part in answer)
            yield row, {**named, "tokens": tokens, "log_probs": log_probs, "log_rest": log_rest}
        elif isinstance(answer, Tensor):
            yield row, {**named, "log_probs": answer[row].tolist()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for count, row in enumerate(rows, 1):  # noqa: B007
            lines.write(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n")
    return count


def _parquet(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    try:  # optional
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "parquet needs pyarrow; install it with pip install 'myna[parquet]', or export jsonl"
        ) from error
    tokens, numbers = pa.list_(pa.int32()), pa.list_(pa.float64())
    types = {"kind": pa.string(), "prefix": tokens, "k": pa.int32(), "stream": pa.string()}
    types |= {"seed": pa.string(), "max_tokens": pa.int64(), "draw": pa.int64(), "tokens": tokens}
    types |= {"log_probs": numbers, "log_rest": pa.float64(), "job": pa.string()}
    types |= {"purpose": pa.string(), "request": pa.int64()}
    types |= {"started": pa.float64(), "ended": pa.float64()}
    schema, count, batch = pa.schema(list(types.items())), 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for count, row in enumerate(rows, 1):  # noqa: B007
            batch.append(row | {"seed": None if row["seed"] is None else str(row["seed"])})
            if len(batch) == _ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return count
