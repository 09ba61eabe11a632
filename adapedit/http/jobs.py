"""Jobs: the one object between the store and the servers: accepts edits, feeds them to models, keeps what comes."""

from __future__ import annotations

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
from adapedit.http.lane import Job, Lane, Load, load_source
from adapedit.http.limits import check, check_picture, confine
from adapedit.http.schema import DELIVERY, EDIT_ID, ENDED, Edit, EditBody
from adapedit.http.settings import ModelSource, Settings
from adapedit.http.store import Row, Store
from adapedit.http.telemetry import Metrics
from adapedit.http.traces import Traces
from adapedit.request import EditRequest
from adapedit.result import EditResult

SWEEP = 30.0
"""Seconds between two looks for results that are too old."""
log = logging.getLogger(__name__)


class Jobs:
    """All edits of a service. Its functions may be called from any thread; those of routes raise `ApiError`."""

    def __init__(self, settings: Settings, load: Load = load_source) -> None:
        self.settings, self._load = settings, load
        self.store = Store(settings.data)
        self.metrics = Metrics(lambda: {name: lane.counts for name, lane in self.lanes.items()})
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
            self._take_up(row)
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
                old = self.lanes.get(source.name)
                self.lanes[source.name] = fresh
                if old is not None:
                    self._leaving.append(old)
                    for job in old.leave():
                        fresh.put(job)
            log.info("a model was loaded", extra={"model": source.name})
        with self._accepting, self._lock:
            for name in set(self.lanes) - {source.name for source in models}:
                self._leaving.append(self.lanes.pop(name))
                self._leaving[-1].close()

    def drain(self, seconds: float) -> None:
        """Accept nothing more, and wait so long for what runs. What waits is left in the store."""
        self.draining = True
        lanes = self._all_lanes()
        for lane in lanes:
            for job in lane.leave():
                if job.row.on_disconnect == "cancel":  # whoever waits for it will be gone by then
                    self._fail(job, self._ending())
        until = time.monotonic() + seconds
        for lane in lanes:
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

    def _all_lanes(self) -> list[Lane]:
        with self._lock:
            return [*self.lanes.values(), *self._leaving]

    def _lane(self, source: ModelSource) -> Lane:
        return Lane(source, self.settings, load=self._load, begin=self._begin, ended=self._ended)

    def _take_up(self, row: Row) -> None:
        """An edit that a killed server had accepted: done, given up, or made again."""
        folder = self.store.results / row.id
        if (folder / archive.EDIT).is_file():
            described = json.loads((folder / archive.EDIT).read_text(encoding="utf-8"))
            self.store.end(row.id, "completed", size=archive.size(folder), outcome=_outcome(described))
        elif row.attempts >= self.settings.max_attempts:
            message = (
                f"the server was killed {row.attempts} times during this edit; send another, or a smaller one"
            )
            self._fail(Job(row), ApiError(500, message, code="abandoned"))
        elif row.model not in self.lanes:
            self._fail(Job(row), _no_model(row.model, self.lanes))
        else:
            job = self._live[row.id] = Job(row)
            self.lanes[row.model].put(job)

    def _sweep(self) -> None:
        while not self._closing.wait(SWEEP):
            with self._lock:  # with what has ended its model goes
                self._leaving = [lane for lane in self._leaving if lane.alive]
            try:
                if gone := self.store.remove_expired(self.settings.keep):
                    log.info("edits expired", extra={"count": gone})
            except Exception as error:
                log.error("expired edits can't be removed", extra={"reason": where(error)})

    # -- for routes

    def lane(self, model: str | None) -> Lane:
        """The model of that name, or the first. Raises 404, and 503 where it is not ready."""
        name = next(iter(self.lanes)) if model is None else model
        if name not in self.lanes:
            raise _no_model(name, self.lanes)
        lane = self.lanes[name]
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
        values = {
            "owner": owner,
            "model": lane.name,
            "method": request.method.name,
            "priority": made.priority,
            "deadline": None if made.deadline is None else time.time() + made.deadline,
            "on_disconnect": made.on_disconnect,
            "fields": {name: value for name, value in wired.items() if name not in DELIVERY},
            "created": time.time(),
        }
        digest = _digest(wired, files)
        with self._accepting:
            if self.draining:
                raise self._ending()
            known = self.store.known(owner, key, digest)
            if known is not None:
                return known, False
            lane = self.lane(lane.name)  # it may have been reloaded
            self._refuse_full(lane)
            row = self.store.add(values, files, key, digest)
            job = self._live[row.id] = Job(row, trace=self.traces.here())
            lane.put(job)
        log.info("accepted", extra={"edit": row.id, "model": row.model, "method": row.method})
        return row, True

    def _ending(self) -> ApiError:
        return ApiError.later(503, "the server is about to end; try another, or again later", 10, "draining")

    def _refuse_full(self, lane: Lane) -> None:
        if lane.waiting >= self.settings.max_pending:
            message = f"{lane.waiting} edits wait already; try again later"
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
        with self._lock:
            job, lane = self._live.get(row.id), self.lanes.get(row.model)
        outcome, ended = row.outcome or {}, row.status in ENDED
        step, steps = (row.steps, row.steps) if job is None or ended else (job.step, job.steps)
        queued = row.status == "queued"
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
            position=lane.position(job) if queued and job is not None and lane is not None else None,
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
        if self.store.end(id, "cancelled"):
            self._stop(id, "cancelled")

    def remove(self, row: Row) -> None:
        """Forget an edit; one that runs is stopped."""
        self.cancel(row.id)
        self.store.remove(row.id)

    def watch(self, row: Row, box: Mailbox) -> None:
        """Tell a mailbox what happens to an edit, beginning with how it stands."""
        with self._lock:
            job = self._live.get(row.id)
        if job is not None:
            job.listen(box)
        found = self.store.find(row.id)
        if found is None:
            box.put("cancelled", {"id": row.id})
        elif found.status in ENDED:
            box.put(found.status, self.view(found).model_dump(mode="json"))
        else:
            step, steps = (0, 0) if job is None else (job.step, job.steps)
            box.put("step", {"id": row.id, "step": step, "steps": steps})

    def unwatch(self, id: str, box: Mailbox) -> bool:
        """Tell it no more; whether nobody else listens."""
        with self._lock:
            job = self._live.get(id)
            if job is None:
                return True
            job.boxes.discard(box)
            return not job.boxes

    def request_of(self, row: Row) -> EditRequest:
        """The request of an edit, with the pictures that came with it."""
        return confine(EditRequest.from_wire(row.fields, self.store.files(row.id)))

    # -- the lanes' side

    def _begin(self, job: Job) -> EditRequest | None:
        """Whether an edit that was waited for is begun: its request; None where it was cancelled meanwhile."""
        return self.request_of(job.row) if self.store.begin(job.row.id) else None

    def _ended(self, job: Job, future: Future[EditResult]) -> Future[None]:
        return self._saver.submit(self._keep, job, future)

    def _keep(self, job: Job, future: Future[EditResult]) -> None:
        try:
            self._finish(job, future.result())
        except CancelledError:
            if not self._closing.is_set():
                self.cancel(job.row.id)
        except Exception as error:
            if self._closing.is_set():
                return  # it is made by the next server
            found = ApiError.of(error)
            if found.status == 500:
                log.error("an edit failed", extra={"edit": job.row.id, "reason": where(error)})
            self._fail(job, found)

    def _finish(self, job: Job, result: EditResult) -> None:
        id = job.row.id
        folder = self.store.results / id
        described = archive.save(result, folder)
        seconds = job.seconds(result.timings["decode"])
        outcome = _outcome({**described, "timings": seconds})
        if not self.store.end(id, "completed", size=archive.size(folder), steps=job.steps, outcome=outcome):
            # It was cancelled or deleted while it was written.
            self.store.remove_results(id)
            return
        self._tell(job, "completed", seconds)

    def _fail(self, job: Job, error: ApiError) -> None:
        kept = {"status": error.status, "error": error.body()}
        if self.store.end(job.row.id, "failed", steps=job.step, error=kept):
            self._tell(job, "failed", {}, error.code)

    def _tell(self, job: Job, status: str, seconds: Mapping[str, float], reason: str | None = None) -> None:
        row = self.store.find(job.row.id)
        with self._lock:
            self._live.pop(job.row.id, None)
            boxes = tuple(job.boxes)
        data = {"id": job.row.id} if row is None else self.view(row).model_dump(mode="json")
        for box in boxes:
            box.put(status, data)
        self.metrics.observe(job.row.method, reason or status, job.stages(seconds))
        more = {
            "edit": job.row.id,
            "model": job.row.model,
            "method": job.row.method,
            "reason": reason or status,
        }
        stages = {name: seconds[name] for name in ("queue", "prepare", "run", "decode") if name in seconds}
        self.traces.edit(job.trace, {name: str(value) for name, value in more.items()}, stages)
        log.info("ended", extra={**more, "seconds": round(time.time() - job.row.created, 3)})

    def _stop(self, id: str, reason: str) -> None:
        with self._lock:
            job = self._live.get(id)
        if job is None:
            return
        for lane in self._all_lanes():
            lane.drop(job)
        self._tell(job, reason, {})


def _gone() -> ApiError:
    return ApiError(404, "there is no edit of this id; it may have expired", code="not_found", param="id")


def _no_model(name: str, known: Mapping[str, Any]) -> ApiError:
    message = f"there is no model {name!r} here; use one of: {', '.join(known)}"
    return ApiError(404, message, code="model_not_found", param="model")


def _digest(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """What two requests have in common that mean the same."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps([fields, sums], sort_keys=True, allow_nan=False).encode()).hexdigest()


def _outcome(described: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept in the database of a result. described: see `archive.save`."""
    spatial = ["spatial-map"] if described["spatial_map"] else []
    variants = ["source", "target", "maps", *spatial, "arrays", "edit"]
    timings = {name: round(value, 4) for name, value in described["timings"].items()}
    return {
        "words": described["words"],
        "warnings": described["warnings"],
        "timings": timings,
        "variants": variants,
    }
