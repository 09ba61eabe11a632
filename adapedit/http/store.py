"""Accepted edits, their pictures, results and idempotency keys: SQLite, and a folder an edit beside it.

Each edit ends once: `end` is a single update of a row that has not ended, and a result's folder is whole before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapedit.http.archive import EDIT
from adapedit.http.errors import ApiError
from adapedit_kernels.errors import AdapEditError

VERSION = 1
TABLES = f"""
CREATE TABLE IF NOT EXISTS edits (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, model TEXT NOT NULL,
    method TEXT NOT NULL, status TEXT NOT NULL, priority INTEGER NOT NULL, deadline REAL, on_disconnect TEXT NOT NULL,
    fields TEXT NOT NULL, created REAL NOT NULL, ended REAL, attempts INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL
    DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, error TEXT, outcome TEXT
);
CREATE INDEX IF NOT EXISTS edits_of_owner ON edits (owner, number);
CREATE INDEX IF NOT EXISTS edits_by_status ON edits (status, ended);
CREATE TABLE IF NOT EXISTS keys (
    owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
    edit TEXT NOT NULL REFERENCES edits (id) ON DELETE CASCADE, PRIMARY KEY (owner, key)
);
CREATE INDEX IF NOT EXISTS keys_of_edit ON keys (edit);
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An edit as it is kept. times: seconds since 1970; fields: of the request, without its pictures' bytes.

    error: its status and object. outcome: words, warnings and timings of one that is completed.
    """

    number: int
    id: str
    owner: str
    model: str
    method: str
    status: str
    priority: int
    deadline: float | None
    on_disconnect: str
    fields: dict[str, Any]
    created: float
    ended: float | None
    attempts: int
    steps: int
    bytes: int
    error: dict[str, Any] | None
    outcome: dict[str, Any] | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Row:
        values = dict(row)
        for name in ("fields", "error", "outcome"):
            values[name] = None if values[name] is None else json.loads(values[name])
        return cls(**values)


class Store:
    """The database in a folder that no other process uses. All of it may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.results = folder / "inputs", folder / "results"
        try:
            for path in (folder, self.inputs, self.results):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._claim: IO[str] = (folder / "lock").open("w")
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(
                folder / "edits.sqlite", check_same_thread=False, isolation_level=None
            )
        except BlockingIOError as error:
            raise AdapEditError(f"{folder} is in use by another server; give each its own --data") from error
        except (OSError, sqlite3.Error) as error:
            raise AdapEditError(
                f"can't keep edits in {folder} ({error}); choose another folder by --data"
            ) from error
        self._lock = threading.RLock()
        self._database.row_factory = sqlite3.Row
        self._open()

    def _open(self) -> None:
        with self._lock:
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "secure_delete = ON",
            ):
                self._database.execute(f"PRAGMA {pragma}")
            found = self._database.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, VERSION):
                raise AdapEditError(
                    f"the database is of version {found}, wanted {VERSION}; give another --data"
                )
            self._database.executescript(TABLES)
            self.bytes = int(self._value("SELECT coalesce(sum(bytes), 0) FROM edits"))

    def close(self) -> None:
        with self._lock:
            self._database.close()
            self._claim.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _value(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._database.execute(query, values).fetchone()[0]

    # -- accepting

    def known(self, owner: str, key: str | None, digest: str) -> Row | None:
        """The edit that the same key and body made earlier. Raises 409 for a key that came with another body."""
        if key is None:
            return None
        with self._lock:
            query = "SELECT digest, edit FROM keys WHERE owner = ? AND key = ?"
            found = self._database.execute(query, (owner, key)).fetchone()
        if found is None:
            return None
        if found["digest"] != digest:
            message = "the Idempotency-Key was used for another request; give each request its own"
            raise ApiError(409, message, code="idempotency_key_reused", param="Idempotency-Key")
        return self.find(found["edit"])

    def add(self, values: Mapping[str, Any], files: Mapping[str, bytes], key: str | None, digest: str) -> Row:
        """Keep an edit, its pictures first. values: of a row but for its number and id."""
        id = f"edit_{secrets.token_hex(16)}"
        fields = json.dumps(values["fields"], allow_nan=False)
        size = len(fields) + sum(map(len, files.values()))
        try:
            if files:
                (self.inputs / id).mkdir(mode=0o700)
            for name, content in files.items():
                with (self.inputs / id / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            row = {
                **values,
                "id": id,
                "fields": fields,
                "status": "queued",
                "bytes": size,
            }
            with self._transaction() as database:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                database.execute(f"INSERT INTO edits ({names}) VALUES ({marks})", tuple(row.values()))
                if key is not None:
                    database.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (row["owner"], key, digest, id))
                self.bytes += size
        except BaseException:
            self._remove_files(id)
            raise
        made = self.find(id)
        assert made is not None
        return made

    # -- reading

    def find(self, id: str, owner: str | None = None) -> Row | None:
        """The edit, where there is one, of that owner."""
        with self._lock:
            row = self._database.execute("SELECT * FROM edits WHERE id = ?", (id,)).fetchone()
        return Row.of(row) if row is not None and owner in (None, row["owner"]) else None

    def page(self, owner: str, after: int | None, newest: bool, limit: int, **like: str | None) -> list[Row]:
        """At most `limit` edits behind a number. like: values that they have; None: any."""
        chosen = {name: value for name, value in like.items() if value is not None}
        where = ["owner = ?", *(f"{name} = ?" for name in chosen)]
        values: list[Any] = [owner, *chosen.values()]
        if after is not None:
            where.append("number < ?" if newest else "number > ?")
            values.append(after)
        order = "DESC" if newest else "ASC"
        query = f"SELECT * FROM edits WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?"
        with self._lock:
            return [Row.of(row) for row in self._database.execute(query, (*values, limit)).fetchall()]

    def files(self, id: str) -> dict[str, bytes]:
        """The pictures that came with an edit, by name."""
        folder = self.inputs / id
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}

    # -- changing

    def begin(self, id: str) -> bool:
        """A waiting edit is begun; whether it still waited."""
        query = "UPDATE edits SET status = 'in_progress', attempts = attempts + 1 WHERE id = ? AND status = 'queued'"
        with self._lock:
            return self._database.execute(query, (id,)).rowcount == 1

    def end(
        self, id: str, status: str, *, size: int = 0, steps: int = 0, error: Any = None, outcome: Any = None
    ) -> bool:
        """An edit ends; whether it had not before. size: bytes of its result."""
        query = (
            "UPDATE edits SET status = ?, ended = ?, bytes = bytes + ?, steps = max(steps, ?), error = ?, outcome = ? "
            "WHERE id = ? AND status IN ('queued', 'in_progress')"
        )
        texts = [None if value is None else json.dumps(value, allow_nan=False) for value in (error, outcome)]
        with self._lock:
            done = self._database.execute(query, (status, time.time(), size, steps, *texts, id)).rowcount == 1
            self.bytes += size if done else 0
        return done

    def remove(self, id: str) -> bool:
        """Forget an edit with its files and keys; whether it was there."""
        with self._transaction() as database:
            row = database.execute("SELECT bytes FROM edits WHERE id = ?", (id,)).fetchone()
            if row is not None:
                database.execute("DELETE FROM edits WHERE id = ?", (id,))
                self.bytes -= row["bytes"]
        self._remove_files(id)
        return row is not None

    def remove_expired(self, keep: float) -> int:
        """Forget what ended more than `keep` seconds ago; how many."""
        with self._lock:
            query = "SELECT id FROM edits WHERE ended IS NOT NULL AND ended < ?"
            gone = [row["id"] for row in self._database.execute(query, (time.time() - keep,)).fetchall()]
        count = sum(self.remove(id) for id in gone)
        with self._lock:  # what was deleted is to leave the log of the database, too
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def recover(self) -> list[Row]:
        """What a server that was killed had accepted and not ended, in order of arrival; it waits again.

        Files of no edit are removed, and results that are not whole.
        """
        with self._lock:
            self._database.execute("UPDATE edits SET status = 'queued' WHERE status = 'in_progress'")
            ended = dict(self._database.execute("SELECT id, status FROM edits").fetchall())
        for folder in (self.inputs, self.results):
            for path in folder.iterdir():
                kept = path.name in ended
                if folder is self.results:
                    kept = (
                        kept and (path / EDIT).is_file() and ended[path.name] not in ("failed", "cancelled")
                    )
                if not kept:
                    shutil.rmtree(path, ignore_errors=True)
        with self._lock:
            query = "SELECT * FROM edits WHERE status = 'queued' ORDER BY number"
            return [Row.of(row) for row in self._database.execute(query).fetchall()]

    def remove_results(self, id: str) -> None:
        """Of an edit that was cancelled while they were written."""
        shutil.rmtree(self.results / id, ignore_errors=True)

    def _remove_files(self, id: str) -> None:
        for folder in (self.inputs, self.results):
            shutil.rmtree(folder / id, ignore_errors=True)
