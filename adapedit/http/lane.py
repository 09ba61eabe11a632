"""A served model: its server, and the thread that feeds it with what waits in the database."""

from __future__ import annotations

import base64
import gc
import io
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from adapedit.checkpoints import Source
from adapedit.edit import align_request, complete
from adapedit.http.calibration import calibrate
from adapedit.http.errors import where
from adapedit.http.events import MAX_PREVIEWS, Mailbox
from adapedit.http.settings import ModelSource, Settings
from adapedit.http.store import Row
from adapedit.loading import Vocabulary, load_any, load_vocabulary
from adapedit.methods import METHODS
from adapedit.model import EditModel
from adapedit.prompts.alignment import Alignment
from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit.server import EditServer, ServerStats
from adapedit_engine.scheduler import DeadlineError
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit.http.jobs import Jobs

STEPS_EVERY = 0.1
"""Seconds between two steps of an edit that are told, at least: who listens takes time of the thread that steps."""
RECENT = 32
"""Edits whose times say how long the next will take."""


@dataclass(eq=False)
class Job:
    """What a process knows of an edit that has not ended. Times are those of `time.time`; 0: not yet."""

    row: Row
    step: int = 0
    steps: int = 0
    taken: float = 0.0
    prepared: float = 0.0
    first: float = 0.0
    last: float = 0.0
    told: float = 0.0
    cancelled: bool = False
    future: Future[EditResult] | None = None
    boxes: set[Mailbox] = field(default_factory=set)
    previews: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_PREVIEWS))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, step: int, steps: int) -> None:
        """A step is done. Where an edit is tried again after an error, its steps are told once."""
        self.last = time.time()
        self.first = self.first or self.last
        self.steps = steps
        if step > self.step:
            self.step = step
            if self.last < self.told + STEPS_EVERY and step < steps:
                return
            self.told = self.last
            for box in tuple(self.boxes):
                box.put("step", {"id": self.row.id, "step": step, "steps": steps})

    def show(self, step: int, picture: Image.Image) -> None:
        """A preview is there."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = {"id": self.row.id, "step": step, "image": base64.b64encode(buffer.getvalue()).decode()}
        with self.lock:
            self.previews.append(data)
            boxes = tuple(self.boxes)
        for box in boxes:
            box.put("preview", data)

    def listen(self, box: Mailbox) -> None:
        """Tell a mailbox from now on; the newest previews at once."""
        with self.lock:
            self.boxes.add(box)
            previews = tuple(self.previews)
        for data in previews:
            box.put("preview", data)

    def run(self, future: Future[EditResult]) -> None:
        """It runs, and ends with this future."""
        self.future = future
        if self.cancelled:
            future.cancel()

    def cancel(self) -> None:
        """Stop it, now or as soon as it would run."""
        self.cancelled = True
        if self.future is not None:
            self.future.cancel()

    def seconds(self, decode: float | None = None) -> dict[str, float]:
        """By what they were spent on, as far as it has come; step: of one."""
        created = self.row.created
        marks = {
            "queue": (created, self.taken),
            "prepare": (self.taken, self.prepared),
            "run": (self.prepared, self.last),
        }
        found = {name: end - start for name, (start, end) in marks.items() if end}
        if self.step > 1:
            found["step"] = (self.last - self.first) / (self.step - 1)
        if decode is not None:
            found["decode"] = decode
        return {name: max(0.0, taken) for name, taken in {**found, "total": time.time() - created}.items()}


Load = Callable[[ModelSource], EditModel]


def checkpoint_of(source: ModelSource) -> Source:
    """Where the model is that the settings name, and which of its weights."""
    return Source(
        place=source.source, variant=source.variant, config=source.config, tokenizer=source.tokenizer
    )


def load_source(source: ModelSource) -> EditModel:
    """The model that the settings name."""
    import torch

    dtype = None if source.dtype is None else getattr(torch, source.dtype)
    return load_any(checkpoint_of(source), runner=source.runner, device=source.device, dtype=dtype)


class Lane:
    """One model. Several of one name share what waits.

    state: "loading", "ready", "ended", or in a line what is wrong. side: of the model's pictures.
    """

    def __init__(self, source: ModelSource, settings: Settings, jobs: Jobs, load: Load) -> None:
        self.source, self.name, self.state, self.since = source, source.name, "loading", int(time.time())
        self.model: EditModel | None = None
        self._settings, self._jobs, self._load = settings, jobs, load
        self._flying: set[Job] = set()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._wake, self._words, self._settled = threading.Event(), threading.Lock(), threading.Event()
        self._takes, self._stays, self._aborts = True, True, False
        self._vocabulary: Vocabulary | None = None
        self._server: EditServer | None = None
        self._thread = threading.Thread(target=self._run, name=f"adapedit-{self.name}", daemon=True)

    # -- for jobs

    def start(self) -> None:
        self._thread.start()

    def loaded(self) -> bool:
        """Wait until the model is ready, or can't be."""
        self._settled.wait()
        return self.state == "ready"

    def look(self) -> None:
        """Something waits, or has gone."""
        self._wake.set()

    def leave(self, *, empty: bool = False) -> None:
        """End after what runs; empty: after what waits, too."""
        self._takes, self._stays = empty, False
        self.look()

    def abort(self) -> None:
        """End at once."""
        self._aborts = True
        self.leave()
        for job in tuple(self._flying):
            job.cancel()

    def join(self, seconds: float | None) -> None:
        """Wait until it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds if seconds is None else max(0.0, seconds))

    def land(self, job: Job) -> None:
        """What came of an edit is kept."""
        self._flying.discard(job)
        self._recent.append(time.time())
        self.look()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def shown_state(self) -> str:
        """Its state for strangers: "failed" in place of what is wrong, which may name folders."""
        return self.state if self.state in ("loading", "ready", "ended") else "failed"

    @property
    def counts(self) -> tuple[int, ServerStats | None]:
        """Edits running, and the server's own counts."""
        return len(self._flying), None if self._server is None else self._server.stats

    @property
    def seconds_to_wait(self) -> float:
        """A guess after how long there will be room for another edit."""
        recent = tuple(self._recent)
        return (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) > 1 else 1.0

    @property
    def side(self) -> int:
        assert self.model is not None
        return self.model.side

    @property
    def methods(self) -> list[str]:
        """What the model can run."""
        assert self.model is not None
        specs = self.model.runner.specs
        own = specs.in_channels == 2 * specs.out_channels
        return [name for name in sorted(METHODS) if (name == "instruct-pix2pix") == own]

    def align(self, request: EditRequest) -> Alignment:
        """How the prompts are aligned. Raises `AdapEditError`, of negative prompts, too."""
        vocabulary = self._vocabulary
        assert vocabulary is not None
        with self._words:  # a tokenizer serves one thread at a time; the server has one of its own
            return align_request(request, vocabulary)

    def check(self, request: EditRequest) -> None:
        """Raise `AdapEditError` for what the model can't run, as far as that is known without running it."""
        assert self.model is not None
        if request.method.name not in self.methods:
            known = ", ".join(self.methods)
            raise AdapEditError(
                f"method is {request.method.name}, which model {self.name} can't run; it runs: {known}"
            )
        if request.method.name == "instruct-pix2pix" and request.image is None:
            raise AdapEditError("instruct-pix2pix edits a picture that exists: give it as image")
        self.align(complete(request, self.model))

    # -- its thread

    def _run(self) -> None:
        try:
            self.model = self._load(self.source)
            self._vocabulary = load_vocabulary(checkpoint_of(self.source))
            settings = self._settings
            server = EditServer(self.model, max_rows=settings.max_rows, budget_bytes=settings.budget)
            if settings.budget is not None:
                server.call_bytes = calibrate(self.model, settings.data, self.name, anew=settings.calibrate)
            with server:
                self._server = server
                server.submit(golden(self.model)).result()
                settle()
                self.state = "ready"
                self._settled.set()
                while (job := self._next()) is not None:
                    self._submit(server, job)
            self.state = "ended"
        except AdapEditError as error:
            self.state = str(error)
        except BaseException as error:
            self.state = f"failed: {where(error)}"
        finally:
            self._settled.set()

    def _next(self) -> Job | None:
        """The edit whose turn it is, once there is one and room for it; None at the end.

        So many are under way that the server can fill its rows, and prepare the next beside them.
        """
        ahead = max(2, self._settings.max_rows // 2)
        while True:
            self._wake.clear()
            seconds = self._jobs.expire(self.name)
            if self._takes and len(self._flying) < ahead and (job := self._jobs.claim(self.name)) is not None:
                self._flying.add(job)
                if self._aborts:
                    job.cancel()
                return job
            if not (self._stays or self._flying):
                return None
            self._wake.wait(seconds)

    def _submit(self, server: EditServer, job: Job) -> None:
        future: Future[EditResult]
        job.taken = time.time()
        try:
            request = self._jobs.request_of(job.row)
            deadline = None if job.row.deadline is None else job.row.deadline - time.time()
            if deadline is not None and deadline < 0:
                raise DeadlineError.by(-deadline)
            preview = None if request.preview_every is None else job.show
            future = server.submit(request, deadline=deadline, progress=job.tell, preview=preview)
        except Exception as error:
            if not server.running:
                raise  # the edit is the next process's
            future = Future()
            future.set_exception(error)
        job.prepared = time.time()
        job.run(future)
        future.add_done_callback(lambda done: self._jobs.ended(self, job, done))


def settle() -> None:
    """Collect what is no longer used, and let the collector skip what has stayed.

    Looking through a model's objects holds up all edits for a quarter of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def golden(model: EditModel) -> EditRequest:
    """A small edit that shows that a model runs: it loads, captures and warms all that edits need."""
    words = model.facts.known_words or ("cat", "dog")
    fields: dict[str, Any] = {"source_prompt": words[0], "target_prompt": words[-1], "num_inference_steps": 2}
    specs = model.runner.specs
    if specs.in_channels == 2 * specs.out_channels:
        grey = Image.new("RGB", (model.side, model.side), (128, 128, 128))
        fields |= {"method": "instruct-pix2pix", "image": grey}
    return EditRequest.make(**fields)
