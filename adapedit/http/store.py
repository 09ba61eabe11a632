"""Accepted edits, their pictures, results and idempotency keys: SQLite, and a folder an edit beside it.

The database is the queue. Each edit ends once: `end` is a single update of a row that has not ended, and a result's
folder is whole before it.

A killed process loses nothing. A machine without power loses nothing of what was removed, or was added before a `sync`
that has ended. What it had begun or ended in its last moments it does again.
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapedit.http.errors import ApiError
from adapedit_kernels.errors import AdapEditError

VERSION = 2
TABLES = f"""
CREATE TABLE IF NOT EXISTS edits (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, key TEXT,
    digest TEXT NOT NULL, trace TEXT, model TEXT NOT NULL, method TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'queued',
    priority INTEGER NOT NULL, deadline REAL, on_disconnect TEXT NOT NULL, fields TEXT NOT NULL, created REAL NOT NULL,
    ended REAL, attempts INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL,
    error TEXT, outcome TEXT
);
CREATE INDEX IF NOT EXISTS edits_of_owner ON edits (owner, number);
CREATE INDEX IF NOT EXISTS edits_by_status ON edits (status, model, ended);
CREATE UNIQUE INDEX IF NOT EXISTS edits_by_key ON edits (owner, key);
PRAGMA user_version = {VERSION};
"""
PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON")
CLAIM = """
UPDATE edits SET status = 'in_progress', attempts = attempts + 1 WHERE number = (
    SELECT number FROM edits WHERE status = 'queued' AND model = ? ORDER BY priority DESC, number LIMIT 1
) RETURNING *
"""
END = """
UPDATE edits SET status = ?, ended = ?, bytes = bytes + ?, steps = max(steps, ?), error = ?, outcome = ?
WHERE id = ? AND status IN ('queued', 'in_progress')
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An edit as it is kept. times: seconds since 1970; fields: of the request, without its pictures' bytes.

    key, digest: the Idempotency-Key it came with, and of what is the same for the same request. trace: where its spans
    belong. error: its status and object. outcome: words, warnings and timings of one that is completed.
    """

    number: int
    id: str
    owner: str
    key: str | None
    digest: str
    trace: str | None
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
        for pragma in PRAGMAS:
            self._do(f"PRAGMA {pragma}")
        if (found := self._do("PRAGMA user_version")[0][0]) not in (0, VERSION):
            raise AdapEditError(f"the database is of version {found}, wanted {VERSION}; give another --data")
        self._database.executescript(TABLES)
        self._log, self._written, self._safe, self._syncing = open_log(folder), 0, 0, threading.Lock()
        self.bytes = int(self._do("SELECT coalesce(sum(bytes), 0) FROM edits")[0][0])

    def close(self) -> None:
        with self._lock:
            self._database.close()
            os.close(self._log)
            self._claim.close()

    def _do(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def sync(self) -> None:
        """Wait until what this thread wrote is on the disk: once for all that wrote meanwhile; others go on."""
        with self._lock:
            self._written += 1
            mine = self._written
        with self._syncing:
            if self._safe < mine:
                written = self._written
                os.fsync(self._log)
                self._safe = written

    def _rows(self, query: str, *values: Any) -> list[Row]:
        return [Row.of(row) for row in self._do(f"SELECT * FROM edits WHERE {query}", *values)]

    # -- accepting

    def known(self, owner: str, key: str | None, digest: str) -> Row | None:
        """The edit that the same key and body made earlier. Raises 409 for a key that came with another body."""
        found = next(iter(self._rows("owner = ? AND key = ?", owner, key)), None)
        if found is not None and found.digest != digest:
            message = "the Idempotency-Key was used for another request; give each request its own"
            raise ApiError(409, message, code="idempotency_key_reused", param="Idempotency-Key")
        return found

    def add(self, values: Mapping[str, Any], files: Mapping[str, bytes]) -> Row:
        """Keep an edit, its pictures first. values: of its row, as far as they have no defaults."""
        id, fields = f"edit_{secrets.token_hex(16)}", json.dumps(values["fields"], allow_nan=False)
        size = len(fields) + sum(map(len, files.values()))
        row = {**values, "id": id, "fields": fields, "bytes": size}
        try:
            if files:
                (self.inputs / id).mkdir(mode=0o700)
            for name, content in files.items():
                with (self.inputs / id / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            marks = ", ".join("?" * len(row))
            query = f"INSERT INTO edits ({', '.join(row)}) VALUES ({marks}) RETURNING *"
            with self._lock:
                (made,) = self._do(query, *row.values())
                self.bytes += size
        except BaseException:
            self._remove_files(id)
            raise
        return Row.of(made)

    # -- reading

    def find(self, id: str, owner: str | None = None) -> Row | None:
        """The edit, where there is one, of that owner."""
        found = next(iter(self._rows("id = ?", id)), None)
        return found if found is not None and owner in (None, found.owner) else None

    def page(self, owner: str, after: int | None, newest: bool, limit: int, **like: str | None) -> list[Row]:
        """At most `limit` edits behind a number. like: values that they have; None: any."""
        chosen = {"owner": owner} | {name: value for name, value in like.items() if value is not None}
        where, values = [f"{name} = ?" for name in chosen], list[Any](chosen.values())
        if after is not None:
            where.append("number < ?" if newest else "number > ?")
            values.append(after)
        order = "DESC" if newest else "ASC"
        return self._rows(f"{' AND '.join(where)} ORDER BY number {order} LIMIT ?", *values, limit)

    def files(self, id: str) -> dict[str, bytes]:
        """The pictures that came with an edit, by name."""
        folder = self.inputs / id
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}

    def queued(self) -> list[Row]:
        """What waits, for any model."""
        return self._rows("status = 'queued' ORDER BY number")

    def deadlines(self, model: str) -> dict[str, float]:
        """Of what waits for a model, by id."""
        query = (
            "SELECT id, deadline FROM edits WHERE status = 'queued' AND model = ? AND deadline IS NOT NULL"
        )
        return dict(map(tuple, self._do(query, model)))

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        query = "SELECT count(*) FROM edits WHERE status = 'queued' AND model = ?"
        return int(self._do(query, model)[0][0])

    def before(self, row: Row) -> int:
        """How many go before one that waits."""
        query = "SELECT count(*) FROM edits WHERE status = 'queued' AND model = ? AND (-priority, number) < (?, ?)"
        return int(self._do(query, row.model, -row.priority, row.number)[0][0])

    # -- changing

    def claim(self, model: str) -> Row | None:
        """The edit whose turn it is, which is begun; None where none waits."""
        return next((Row.of(row) for row in self._do(CLAIM, model)), None)

    def end(
        self, id: str, status: str, *, size: int = 0, steps: int = 0, error: Any = None, outcome: Any = None
    ) -> bool:
        """An edit ends; whether it had not before. size: bytes of its result."""
        texts = [None if value is None else json.dumps(value, allow_nan=False) for value in (error, outcome)]
        with self._lock:
            done = self._database.execute(END, (status, time.time(), size, steps, *texts, id)).rowcount == 1
            self.bytes += size if done else 0
        return done

    def remove(self, id: str) -> bool:
        """Forget an edit with its files and key; whether it was there."""
        with self._lock:
            gone = self._do("DELETE FROM edits WHERE id = ? RETURNING bytes", id)
            self.bytes -= sum(row["bytes"] for row in gone)
        self.sync()
        self._remove_files(id)
        return bool(gone)

    def remove_expired(self, keep: float) -> int:
        """Forget what ended more than `keep` seconds ago; how many."""
        gone = self._do("SELECT id FROM edits WHERE ended < ?", time.time() - keep)
        count = sum(self.remove(row["id"]) for row in gone)
        self._do(
            "PRAGMA wal_checkpoint(TRUNCATE)"
        )  # what was deleted is to leave the log of the database, too
        return count

    def recover(self) -> list[Row]:
        """What a server that was killed had accepted and not ended; it waits again.

        Files of no edit are removed, and results that are not whole or whose end was not written down.
        """
        self._do("UPDATE edits SET status = 'queued' WHERE status = 'in_progress'")
        states = dict(map(tuple, self._do("SELECT id, status FROM edits")))
        for path in (*self.inputs.iterdir(), *self.results.iterdir()):
            state = states.get(path.name)
            if state is None or (path.parent == self.results and state != "completed"):
                shutil.rmtree(path, ignore_errors=True)
        return self.queued()

    def remove_results(self, id: str) -> None:
        """Of an edit that was cancelled while they were written."""
        shutil.rmtree(self.results / id, ignore_errors=True)

    def _remove_files(self, id: str) -> None:
        for folder in (self.inputs, self.results):
            shutil.rmtree(folder / id, ignore_errors=True)


def open_log(folder: Path) -> int:
    """The database's log of what was written, which is there as long as the database is open."""
    log, above = os.open(folder / "edits.sqlite-wal", os.O_RDONLY), os.open(folder, os.O_RDONLY)
    os.fsync(log)
    os.fsync(above)  # its name, too
    os.close(above)
    return log
