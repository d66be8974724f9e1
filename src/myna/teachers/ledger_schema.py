"""The file of a ledger: an SQLite database (WAL) whose tables are exactly these.

    meta      key, value: the language (alphabet, stop, horizon) and its fingerprint
    owner     one row an opening: the process, and which job it works for
    request   one row a question sent: reserved before it is sent, settled with its answer
    spent     what each job and purpose has spent, reservations included: the requests' sums
    block     answers of one request (or of several, merged), one blob of prefixes and one
              of answers, each with its hash; see ledger_blocks

The version is SQLite's user_version, and application_id tells a ledger from other
databases. A file with any other table, index, view or trigger is refused, so that a file
from elsewhere runs nothing here. Every failure of SQLite becomes one sentence.

    version 1   requests and spending of one job
    version 2   `job`: learning and certifying keep budgets of their own in one file;
                `hash` in meta: of the language
"""

import contextlib
import functools
import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from myna.errors import FormatError, InputError, LedgerError
from myna.spec import Spec
from myna.teachers.ledger_blocks import digest

VERSION = 2
_MARK = 0x6D796E61  # "myna"
_PATIENCE = 60.0  # seconds that a statement waits for another process's transaction
_SHOWN = 200  # characters of an error of SQLite
_MOST_META = 2**26  # bytes of the alphabet's JSON that are read

COSTS = "next_token_queries, completions, tokens_sent, tokens_received"
_COST_COLUMNS = ", ".join(f"{name} INTEGER NOT NULL" for name in COSTS.split(", "))
_QUESTION = """kind TEXT NOT NULL, k INTEGER NOT NULL, stream TEXT, seed TEXT, max_tokens INTEGER,
    first_draw INTEGER NOT NULL, count INTEGER NOT NULL, prefixes INTEGER NOT NULL"""

_VERSION_1 = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE owner (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL,
    mark TEXT NOT NULL, opened REAL NOT NULL, closed REAL);
CREATE TABLE request (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL,
    purpose TEXT NOT NULL, state TEXT NOT NULL, started REAL NOT NULL, ended REAL,
    {_QUESTION}, keys BLOB, {_COST_COLUMNS});
CREATE INDEX request_open ON request (state) WHERE state = 'open';
CREATE TABLE spent (purpose TEXT NOT NULL, {_COST_COLUMNS}, PRIMARY KEY (purpose));
CREATE TABLE block (id INTEGER PRIMARY KEY AUTOINCREMENT, {_QUESTION}, sources TEXT NOT NULL,
    keys BLOB NOT NULL, keys_hash BLOB NOT NULL, body BLOB NOT NULL, body_hash BLOB NOT NULL);
"""

_MIGRATIONS = {
    1: f"""
ALTER TABLE owner ADD COLUMN job TEXT NOT NULL DEFAULT '';
ALTER TABLE request ADD COLUMN job TEXT NOT NULL DEFAULT '';
CREATE TABLE by_job (job TEXT NOT NULL, purpose TEXT NOT NULL, {_COST_COLUMNS},
    PRIMARY KEY (job, purpose));
INSERT INTO by_job SELECT '', purpose, {COSTS} FROM spent;
DROP TABLE spent;
ALTER TABLE by_job RENAME TO spent;
"""  # noqa: S608 (constants of this file)
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what SQLite could not do.

    Raises:
        FormatError: a file that is no database, or a damaged one.
        LedgerError: a full disk, a read-only or locked file, any other failure.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _sentence(path, error) from error
    except (OverflowError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is damaged ({error}); restore it from a copy") from error


def _sentence(path: Path, error: sqlite3.Error) -> FormatError | LedgerError:
    said = " ".join(str(error).split())[:_SHOWN]  # it can quote what the file says
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    kept = "what it holds stays, and asking again starts from there"
    if code == sqlite3.SQLITE_NOTADB:
        return FormatError(f"{path} is no ledger (not an SQLite database); name another file")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return LedgerError(
            f"the ledger {path} could not be written ({said}): is the disk full? Make room; {kept}"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return LedgerError(
            f"the ledger {path} is read-only; make it and its folder writable, or use replay:{path}"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(
            f"the ledger {path} has been locked by another program for {_PATIENCE:.0f} s; "
            f"end that program and run this again: {kept}"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return LedgerError(f"the ledger {path} cannot be opened; check the path and its rights")
    return FormatError(
        f"the ledger {path} is damaged ({said}); restore it from a copy (where it opens at all, "
        "`myna ledger verify` says what is wrong)"
    )


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection that runs nothing that the file says.

    Raises:
        InputError: for what is not a plain file, or (reading) does not exist.
        FormatError, LedgerError: as `explained` says.
    """
    for part in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))):
        _plain(part)
    if not write:
        _present(path)
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of the ledger does not exist; make it first")
    with explained(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}",
            uri=True,
            timeout=_PATIENCE,
            isolation_level=None,  # transactions are begun where they begin
            check_same_thread=False,  # one lock of the ledger's own orders its threads
        )
        try:
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA user_version")
        except sqlite3.OperationalError:
            # In a folder that cannot be written, WAL can only be read as a finished file.
            if write or path.with_name(path.name + "-wal").exists():
                raise
            connection.close()
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro&immutable=1",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
    return connection


def _present(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no ledger {path}; name the file that --ledger was given")


def _plain(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"the ledger {path} cannot be looked at: {error.strerror}") from error
    if stat.S_ISLNK(mode):
        raise InputError(f"{path} is a symbolic link; name the ledger that it points to")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no plain file; name the file of a ledger")


def open_file(path: Path, spec: Spec | None) -> sqlite3.Connection:
    """A ledger for writing; made or migrated where that is needed.

    spec: of its teacher; None opens what is there, of whichever teacher

    Raises:
        InputError: a ledger of another teacher.
        FormatError: no ledger, a newer one, or a damaged one.
    """
    if spec is None:
        _present(path)
    connection = connect(path, write=True)
    try:
        with explained(path):
            used = _objects(connection) or _number(connection, "user_version")
            if used and _number(connection, "application_id") != _MARK:
                check_schema(path, connection)  # another program's database stays as it is
            connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                empty = not _objects(connection) and not _number(connection, "user_version")
                if spec is not None and empty:
                    _make(connection, spec)
                _migrate(path, connection)
                check_schema(path, connection)
                held = read_spec(path, connection)
    except BaseException:
        connection.close()
        raise
    if spec is not None and held != spec:
        connection.close()
        raise InputError(
            f"{path} is the ledger of another teacher (fingerprint {held.fingerprint[:12]}, "
            f"{held.num_tokens} tokens; this one is {spec.fingerprint[:12]}, {spec.num_tokens} "
            "tokens); give each teacher its own ledger"
        )
    return connection


def open_to_read(path: Path) -> tuple[sqlite3.Connection, Spec]:
    """A ledger of any teacher, as it stands.

    Raises:
        InputError: where there is none.
        FormatError: no ledger, another version, or a damaged one.
    """
    connection = connect(path, write=False)
    try:
        with explained(path):
            check_schema(path, connection)
            return connection, read_spec(path, connection)
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that may write; nothing of it stays where it fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return connection.execute(f"PRAGMA {pragma}").fetchone()[0]


def _objects(connection: sqlite3.Connection) -> set[tuple]:
    """What the database holds: types, names, and the columns of each table."""
    found = connection.execute("SELECT type, name FROM sqlite_master LIMIT 50").fetchall()
    columns = 'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?)'
    return {
        (kind, name, tuple(connection.execute(columns, (name,))) if kind == "table" else ())
        for kind, name in found
    }


def _run(connection: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):  # executescript would commit what is open
        if statement.strip():
            connection.execute(statement)


def _build(connection: sqlite3.Connection, version: int) -> None:
    _run(connection, _VERSION_1)
    for older in range(1, version):
        _run(connection, _MIGRATIONS[older])


def _make(connection: sqlite3.Connection, spec: Spec) -> None:
    _build(connection, VERSION)
    language = {"alphabet": spec.alphabet, "stop": spec.stop, "horizon": spec.horizon}
    rows = [("fingerprint", spec.fingerprint), ("language", json.dumps(language))]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    _seal(connection)
    connection.execute(f"PRAGMA application_id = {_MARK}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _seal(connection: sqlite3.Connection) -> None:
    """Keep a hash of the language beside it."""
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('hash', ?)", (_meta_hash(meta),))


def _meta_hash(meta: dict[str, str]) -> str:
    return digest(("language", meta["fingerprint"]), meta["language"].encode()).hex()


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    version = _number(connection, "user_version")
    if _number(connection, "application_id") == _MARK and 1 <= version < VERSION:
        check_schema(path, connection, version)
        for older in range(version, VERSION):
            _run(connection, _MIGRATIONS[older])
        _seal(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def check_schema(path: Path, connection: sqlite3.Connection, version: int = VERSION) -> None:
    """Refuse a database that is no ledger of this version.

    Raises:
        FormatError: saying what it is.
    """
    found = _number(connection, "user_version")
    if _number(connection, "application_id") != _MARK:
        if not found and not _objects(connection):
            raise FormatError(
                f"{path} is empty: a run ended before it wrote anything; run it again, or delete it"
            )
        raise FormatError(f"{path} is no ledger of myna (another database); name another file")
    if found > version:
        raise FormatError(
            f"{path} is a ledger of version {found}, newer than this myna reads ({version}); "
            "use the newer myna"
        )
    if found < version:
        raise FormatError(
            f"{path} is a ledger of version {found}; run `myna ledger compact {path}` to bring it "
            f"to version {version}"
        )
    if _objects(connection) != _fresh_objects(version):
        raise FormatError(
            f"{path} does not have the tables of a ledger, or has more; it was changed by "
            "another program, so nothing is read from it"
        )


@functools.cache
def _fresh_objects(version: int) -> set[tuple]:
    """What a new ledger of a version holds."""
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _build(fresh, version)
        return _objects(fresh)
    finally:
        fresh.close()


def read_spec(path: Path, connection: sqlite3.Connection) -> Spec:
    """The language of a ledger.

    Raises:
        FormatError: where it does not read as one.
    """
    try:
        query = "SELECT key, value FROM meta WHERE length(value) < ? LIMIT 10"
        meta = dict(connection.execute(query, (_MOST_META,)).fetchall())
        if not all(type(part) is str for row in meta.items() for part in row):
            raise ValueError("its parts are no text")
        if meta["hash"] != _meta_hash(meta):
            raise ValueError("its hash is another")
        language = json.loads(meta["language"])
        names, stop, horizon = language["alphabet"], language["stop"], language["horizon"]
        numbers = all(part is None or type(part) is int for part in (stop, horizon))
        if not numbers or not all(isinstance(name, str) for name in names):
            raise ValueError("the language has parts of other types")
        return Spec(tuple(names), stop, horizon, str(meta["fingerprint"]))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        InputError,
    ) as error:
        raise FormatError(
            f"{path} is damaged: it does not say which language it is of ({error}); restore it "
            "from a copy"
        ) from error
