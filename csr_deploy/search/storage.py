"""Optuna's storage as the engine of a search, and its errors in the user's words.

SQLite is used so that any number of processes of one machine can share a file:

- every transaction takes the write lock at its start (BEGIN IMMEDIATE). SQLite has no SELECT … FOR UPDATE,
  which Optuna counts on when it takes a waiting trial or gives a trial its number;
- each session opens the file anew, and never creates it: a file that is gone is an error, not an empty study;
- the rollback journal stays, as write-ahead logging needs shared memory that network file systems lack. A
  worker writes a few times a second at most, so readers that wait for writers cost nothing.
"""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from csr_deploy.errors import CsrError, MissingDependencyError

_LOCK_SECONDS = 60.0
_OPEN_ATTEMPTS = 5
# psycopg alone would need PostgreSQL's client library from elsewhere.
_DRIVER_PACKAGES = {"psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}


class StorageError(CsrError):
    """A study's storage that cannot be reached, read or written."""


def default_url(out: Path) -> str:
    """The storage of a search that names none: a SQLite file in its folder."""
    return f"sqlite:///{out / 'study.db'}"


def shown(url: str) -> str:
    """A URL without its password."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Turns the errors of a storage into one that says what to do.

    Raises:
        StorageError: Then.
    """
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise _explained(url, error) from error


def _explained(url: str, error: BaseException) -> StorageError:
    cause = error
    while cause.__cause__ is not None and isinstance(
        cause, (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)
    ):
        cause = cause.__cause__
    text = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    where = shown(url)
    if "locked" in text:
        return StorageError(
            f"is locked by another process ({text}, waited for {_LOCK_SECONDS:.0f} s)",
            where=where,
            fix="End what holds it: another program that has the file open, or a network file system without "
            "locks. Workers on several machines need a database server: --storage postgresql://….",
        )
    if any(words in text for words in ("unable to open", "no such table", "readonly", "not a database")):
        return StorageError(
            f"is gone, or is not the study it was ({text})",
            where=where,
            fix="Put the file back, or search anew with another --out. Finished trainings are kept in "
            "--out/trials.",
        )
    return StorageError(
        f"cannot be used: {text}", where=where, fix="Check the URL, and that the database is up."
    )


def open_storage(url: str, *, heartbeat: float, grace: int, create: bool) -> RDBStorage:
    """Connects to a storage.

    Args:
        url: An RDB URL, as SQLAlchemy takes it.
        heartbeat: Seconds between signs of life.
        grace: Seconds of silence after which a trial counts as lost.
        create: Whether a SQLite file may be created.

    Raises:
        StorageError: If it cannot be reached, is locked, is no database, or of another version of Optuna.
        MissingDependencyError: If the driver of its database is not installed.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise StorageError(
            "is no URL of a database",
            where=url,
            fix="Give sqlite:///FILE, postgresql://USER@HOST/NAME or mysql://….",
        ) from error
    options: dict[str, Any] = {"pool_pre_ping": True}
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        options = _sqlite_options(parsed, url, create=create)
    with reported(url):
        storage = _connect(url, options, heartbeat, grace)
    if is_sqlite:
        sqlalchemy.event.listen(storage.engine, "begin", _begin_immediate)
    return storage


def _connect(url: str, options: dict[str, Any], heartbeat: float, grace: int) -> RDBStorage:
    for attempt in range(1, _OPEN_ATTEMPTS + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return RDBStorage(
                    url,
                    engine_kwargs=dict(options),
                    heartbeat_interval=max(1, round(heartbeat)),
                    grace_period=grace,
                )
        except ImportError as error:
            driver = getattr(error.__cause__, "name", None) or getattr(error, "name", None) or "its driver"
            package = _DRIVER_PACKAGES.get(driver, driver)
            raise MissingDependencyError(
                driver, "search", f"A study at {shown(url)}", fix=f"Install it: pip install {package}"
            ) from error
        except sqlalchemy.exc.NoSuchModuleError as error:
            raise StorageError(
                f"is of an unknown kind ({error})", where=shown(url), fix="Use sqlite, postgresql or mysql."
            ) from error
        except RuntimeError as error:
            # Optuna says so of a study by another version of it.
            raise StorageError(f"does not fit this Optuna: {error}", where=shown(url)) from error
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.IntegrityError) as error:
            # Two processes can make the tables at once.
            if "exists" not in str(error) and not isinstance(error, sqlalchemy.exc.IntegrityError):
                raise
            if attempt == _OPEN_ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError


def _sqlite_options(parsed: sqlalchemy.engine.URL, url: str, *, create: bool) -> dict[str, Any]:
    if not parsed.database or parsed.database == ":memory:":
        raise StorageError(
            "is in memory, where no other worker sees it", where=url, fix="Give sqlite:///FILE."
        )
    path = Path(parsed.database).absolute()
    if not path.exists():
        if not create:
            raise StorageError("does not exist", where=str(path), fix="Start the search without --resume.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StorageError(
                f"cannot be created: {error.strerror or error}",
                where=str(path),
                fix="Give another --storage.",
            ) from error
    uri = f"file:{quote(str(path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            uri, uri=True, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )

    return {"creator": connect, "poolclass": NullPool}


def _begin_immediate(connection: sqlalchemy.engine.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
