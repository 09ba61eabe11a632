"""Jobs: the one object between the store and the servers: accepts edits, feeds them to models, keeps what comes."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from adapedit.http import archive
from adapedit.http.errors import ApiError, where
from adapedit.http.events import Mailbox
from adapedit.http.lane import Job, Lane, Load, load_source, settle
from adapedit.http.limits import check, check_picture, confine
from adapedit.http.schema import DELIVERY, EDIT_ID, ENDED, Edit, EditBody
from adapedit.http.settings import ModelSource, Settings
from adapedit.http.store import Row, Store
from adapedit.http.telemetry import Metrics
from adapedit.http.traces import Traces
from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit_engine.scheduler import DeadlineError

MAX_FIELDS = 64 * 1024
"""Characters of a request without its pictures."""
SWEEP = 30.0
"""Seconds between two looks for results that are too old."""
log = logging.getLogger(__name__)


class Jobs:
    """All edits of a service. Its functions may be called from any thread; those of routes raise `ApiError`."""

    def __init__(self, settings: Settings, load: Load = load_source) -> None:
        self.settings, self._load = settings, load
        self.store = Store(settings.data)
        self.metrics = Metrics(self._counts)
        self.traces = Traces(settings.traces)
        self.lanes: dict[str, Lane] = {}
        self.draining = False
        self._leaving: list[Lane] = []
        self._live: dict[str, Job] = {}
        self._accepting, self._lock = threading.Lock(), threading.RLock()
        self._saver = ThreadPoolExecutor(1, "adapedit-save")
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="adapedit-sweep", daemon=True)

    # -- its own life

    def start(self) -> None:
        """Take up what an earlier server had accepted, and load the models."""
        for source in self.settings.models:
            self.lanes[source.name] = self._lane(source)
        for row in self.store.recover():
            if row.attempts >= self.settings.max_attempts:
                message = f"the server was killed {row.attempts} times during this edit; send another, or a smaller one"
                self._fail(row.id, ApiError(500, message, code="abandoned"))
            elif row.model not in self.lanes:
                self._fail(row.id, self.no_model(row.model))
        for lane in self.lanes.values():
            lane.start()
        self._sweeper.start()

    def reload(self, models: Sequence[ModelSource]) -> None:
        """Load these models beside those that run, each of which takes its place once it is ready.

        What waits goes to the fresh one; what runs ends where it is. A model that can't be loaded changes nothing.
        """
        for source in models:
            fresh = self._lane(source)
            fresh.start()
            if not fresh.loaded():
                log.error("a model can't be reloaded", extra={"model": source.name})
                continue
            with self._accepting, self._lock:
                old, self.lanes[source.name] = self.lanes.get(source.name), fresh
                self._leaving += [] if old is None else [old]
            if old is not None:
                old.leave()
            fresh.look()
            log.info("a model was loaded", extra={"model": source.name})
        for name in set(self.lanes) - {source.name for source in models}:
            with self._accepting, self._lock:
                self._leaving.append(old := self.lanes.pop(name))
            old.leave(empty=True)

    def drain(self, seconds: float) -> None:
        """Accept nothing more, and wait so long for what runs. What waits is left in the store."""
        with self._accepting:
            self.draining = True
        for lane in self._all_lanes():
            lane.leave()
        for row in self.store.queued():
            if row.on_disconnect == "cancel":  # whoever waits for it will be gone by then
                self._fail(row.id, self._ending())
        until = time.monotonic() + seconds
        for lane in self._all_lanes():
            lane.join(until - time.monotonic())

    def close(self) -> None:
        """End at once. What has not ended is left in the store for the next server."""
        self.draining = True
        self._closing.set()
        for lane in self._all_lanes():
            lane.abort()
        for lane in self._all_lanes():
            lane.join(None)
        self._saver.shutdown()
        if self._sweeper.is_alive():
            self._sweeper.join()
        self.store.close()
        self.traces.close()
        gc.unfreeze()

    def _all_lanes(self) -> list[Lane]:
        return [*self.lanes.values(), *self._leaving]

    def _lane(self, source: ModelSource) -> Lane:
        return Lane(source, self.settings, self, self._load)

    def _counts(self) -> dict[str, Any]:
        return {name: (self.store.waiting(name), *lane.counts) for name, lane in self.lanes.items()}

    def _sweep(self) -> None:
        while not self._closing.wait(SWEEP):
            left = [lane for lane in self._leaving if lane.alive]
            if len(left) < len(self._leaving):
                self._leaving = left  # with what has ended its model goes
                settle()
            try:
                if gone := self.store.remove_expired(self.settings.keep):
                    log.info("edits expired", extra={"count": gone})
            except Exception as error:
                log.error("expired edits can't be removed", extra={"reason": where(error)})

    # -- for routes

    def lane(self, model: str | None) -> Lane:
        """The model of that name, or the first. Raises 404, and 503 where it is not ready."""
        if self.draining:
            raise self._ending()
        name = next(iter(self.lanes)) if model is None else model
        lane = self.lanes.get(name)
        if lane is None:
            raise self.no_model(name)
        if lane.shown_state != "ready":
            message = f"model {name} is {lane.shown_state}; wait a little"
            raise ApiError.later(503, message, 1, code="not_ready")
        return lane

    def accept(
        self, body: Mapping[str, Any], files: Mapping[str, bytes], owner: str, key: str | None = None
    ) -> tuple[Row, bool]:
        """Check an edit and keep it; whether it is a fresh one, and not that of the same key and body."""
        for name, content in files.items():
            check_picture(name, content, self.settings)
        made = EditBody.from_wire(body, files)
        assert isinstance(made, EditBody)
        lane = self.lane(made.model)
        request = made.request()
        check(request, self.settings, lane.side)
        lane.check(request)
        wired = made.to_wire()[0]
        if (size := len(json.dumps(wired, allow_nan=False))) > MAX_FIELDS:
            message = f"the request has {size} characters, at most {MAX_FIELDS} are taken"
            raise ApiError(422, message, code="too_long")
        digest = _digest(wired, files)
        values = {
            "owner": owner,
            "key": key,
            "digest": digest,
            "trace": self.traces.here(),
            "model": lane.name,
            "method": request.method.name,
            "priority": made.priority,
            "deadline": None if made.deadline is None else time.time() + made.deadline,
            "on_disconnect": made.on_disconnect,
            "fields": {name: value for name, value in wired.items() if name not in DELIVERY},
            "created": time.time(),
        }
        with self._accepting:
            if self.draining:
                raise self._ending()
            known = self.store.known(owner, key, digest)
            if known is None:
                lane = self.lane(lane.name)  # it may have been reloaded
                self._refuse_full(lane)
                row = self.store.add(values, files)
        self.store.sync()  # others are accepted meanwhile, and wait for the same
        if known is not None:
            return known, False
        log.info("accepted", extra={"edit": row.id, "model": row.model, "method": row.method})
        lane.look()
        return row, True

    def _ending(self) -> ApiError:
        return ApiError.later(503, "the server is about to end; try another, or again later", 10, "draining")

    def no_model(self, name: str) -> ApiError:
        """What to answer where nothing is called so."""
        message = f"there is no model {name!r} here; use one of: {', '.join(self.lanes)}"
        return ApiError(404, message, code="model_not_found", param="model")

    def _refuse_full(self, lane: Lane) -> None:
        if (waiting := self.store.waiting(lane.name)) >= self.settings.max_pending:
            message = f"{waiting} edits wait already; try again later"
            raise ApiError.later(429, message, lane.seconds_to_wait, code="queue_full")
        if self.store.bytes >= self.settings.quota:
            self.store.remove_expired(self.settings.keep)
        if self.store.bytes >= self.settings.quota:
            message = f"results take {self.store.bytes} bytes, the quota is {self.settings.quota}; delete some edits"
            raise ApiError(507, message, code="quota_full")

    def find(self, id: str, owner: str) -> Row:
        """The edit of that owner. Raises 404, for those of others, too."""
        row = self.store.find(id, owner) if re.fullmatch(EDIT_ID, id) else None
        if row is None:
            raise _gone()
        return row

    def view(self, row: Row) -> Edit:
        """An edit as routes show it."""
        job, outcome = self._live.get(row.id), row.outcome or {}
        step, steps = (row.steps, row.steps) if job is None or row.status in ENDED else (job.step, job.steps)
        return Edit(
            id=row.id,
            created_at=int(row.created),
            ended_at=None if row.ended is None else int(row.ended),
            expires_at=None if row.ended is None else int(row.ended + self.settings.keep),
            status=row.status,  # type: ignore[arg-type]
            model=row.model,
            priority=row.priority,
            on_disconnect=row.on_disconnect,  # type: ignore[arg-type]
            progress={"step": step, "steps": steps},  # type: ignore[arg-type]
            position=self.store.before(row) if row.status == "queued" else None,
            error=None if row.error is None else row.error["error"],
            timings=outcome.get("timings", {}),
            request=row.fields,
            words=outcome.get("words"),
            warnings=outcome.get("warnings", []),
            variants=outcome.get("variants", []),
        )

    def content(self, row: Row, variant: str) -> bytes:
        """A file of a completed edit. Raises its error for one that failed, 409 for one that has not ended."""
        if row.error is not None:
            told = {name: row.error["error"][name] for name in ("message", "code", "param")}
            raise ApiError(row.error["status"], **told)
        if row.outcome is None:
            message = f"the edit is {row.status.replace('_', ' ')}, and has no pictures"
            raise ApiError(409, message, code="not_completed", headers={"Retry-After": "1"})
        if variant not in row.outcome["variants"]:
            message = f"this edit has no {variant}; it has: {', '.join(row.outcome['variants'])}"
            raise ApiError(404, message, code="not_found", param="variant")
        folder = self.store.results / row.id
        try:
            if variant in ("maps", "spatial-map"):
                return archive.draw(variant, folder, self.request_of(row))
            name = {"arrays": archive.ARRAYS, "edit": archive.EDIT}.get(variant, f"{variant}.png")
            return (folder / name).read_bytes()
        except FileNotFoundError as error:  # deleted meanwhile
            raise _gone() from error

    def cancel(self, id: str) -> None:
        """End an edit as cancelled, where it has not ended."""
        self._end(id, "cancelled")

    def remove(self, row: Row) -> None:
        """Forget an edit; one that runs is stopped."""
        self.cancel(row.id)
        self.store.remove(row.id)

    def watch(self, row: Row, box: Mailbox) -> None:
        """Tell a mailbox what happens to an edit, beginning with how it stands."""
        job = self._job(row)
        job.listen(box)
        found = self.store.find(row.id)
        if found is None or found.status in ENDED:
            self.unwatch(row.id, box)
            self._live.pop(row.id, None)
            gone = ("cancelled", {"id": row.id})
            box.put(*(gone if found is None else (found.status, self.view(found).model_dump(mode="json"))))
        else:
            box.put("step", {"id": row.id, "step": job.step, "steps": job.steps})

    def unwatch(self, id: str, box: Mailbox) -> bool:
        """Tell it no more; whether nobody else listens."""
        job = self._live.get(id)
        if job is not None:
            job.boxes.discard(box)
        return job is None or not job.boxes

    def request_of(self, row: Row) -> EditRequest:
        """The request of an edit, with the pictures that came with it."""
        return confine(EditRequest.from_wire(row.fields, self.store.files(row.id)))

    def _job(self, row: Row) -> Job:
        with self._lock:
            return self._live.setdefault(row.id, Job(row))

    # -- for lanes

    def claim(self, model: str) -> Job | None:
        """The edit whose turn it is, which is begun; None where none waits."""
        with self._lock:
            row = self.store.claim(model)
            return None if row is None else self._job(row)

    def expire(self, model: str) -> float | None:
        """Fail what waits and is late; seconds until there is more to fail."""
        ahead = {id: deadline - time.time() for id, deadline in self.store.deadlines(model).items()}
        for id, seconds in ahead.items():
            if seconds < 0:
                self._fail(id, ApiError.of(DeadlineError.by(-seconds)))
        return min((seconds + 0.001 for seconds in ahead.values() if seconds >= 0), default=None)

    def ended(self, lane: Lane, job: Job, future: Future[EditResult]) -> None:
        """Keep what came of an edit, beside the next steps, and let its lane know."""
        self._saver.submit(self._keep, lane, job, future)

    def _keep(self, lane: Lane, job: Job, future: Future[EditResult]) -> None:
        id = job.row.id
        try:
            result = future.result()
            described = archive.save(result, self.store.results / id)
            outcome = _outcome(described, job.seconds(result.timings["decode"]))
            size = archive.size(self.store.results / id)
            if not self._end(id, "completed", size=size, steps=job.steps, outcome=outcome):
                self.store.remove_results(id)  # it was cancelled or deleted while they were written
        except Exception as error:
            if self._closing.is_set():
                return  # it is made by the next server
            if isinstance(error, CancelledError):
                self.cancel(id)
                return
            found = ApiError.of(error)
            if found.status == 500:
                log.error("an edit failed", extra={"edit": id, "reason": where(error)})
            self._fail(id, found)
        finally:
            lane.land(job)

    def _fail(self, id: str, error: ApiError) -> None:
        self._end(id, "failed", error={"status": error.status, "error": error.body()})

    def _end(self, id: str, status: str, *, steps: int = 0, **kept: Any) -> bool:
        """An edit ends, and whoever listens is told; whether it had not ended before."""
        with self._lock:
            job = self._live.get(id)
            steps = steps or (0 if job is None else job.step)
            if not self.store.end(id, status, steps=steps, **kept):
                return False
            row = self.store.find(id)
            self._live.pop(id, None)
        if row is None:
            return True
        job = job or Job(row)
        job.cancel()
        data = self.view(row).model_dump(mode="json")
        for box in tuple(job.boxes):
            box.put(status, data)
        seconds = job.seconds() | (row.outcome or {}).get("timings", {})
        reason = status if row.error is None else row.error["error"]["code"]
        facts = {"edit": id, "model": row.model, "method": row.method, "reason": reason}
        self.metrics.observe(row.method, reason, seconds)
        self.traces.edit(row.trace, facts, seconds)
        log.info("ended", extra={**facts, "seconds": round(seconds["total"], 3)})
        return True


def _gone() -> ApiError:
    return ApiError(404, "there is no edit of this id; it may have expired", code="not_found", param="id")


def _digest(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """What two requests have in common that mean the same."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps([fields, sums], sort_keys=True, allow_nan=False).encode()).hexdigest()


def _outcome(described: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What is kept in the database of a result. described: see `archive.save`."""
    spatial = ["spatial-map"] if described["spatial_map"] else []
    return {
        "words": described["words"],
        "warnings": described["warnings"],
        "timings": {name: round(value, 4) for name, value in seconds.items()},
        "variants": ["source", "target", "maps", *spatial, "arrays", "edit"],
    }
