"""The end of an edit: its latents become pictures, and it is handed over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adapedit.model import EditModel
from adapedit.result import EditResult, make_result
from adapedit.serving.edits import EditedPart
from adapedit.serving.outcomes import as_error, hand_over
from adapedit_engine.caches import ByteCache, digest
from adapedit_engine.host_copies import HostCopies


@dataclass(frozen=True, kw_only=True, eq=False)
class Painter:
    """Decodes pictures. sources: those of sources, which later edits may have again, by their latents."""

    model: EditModel
    sources: ByteCache[Image.Image]
    copies: HostCopies

    def paint(self, parts: Sequence[EditedPart]) -> None:
        """Decode the pictures of a job and hand over its results."""
        for part in parts:
            future = part.edit.future
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with self.copies.beside():
                    result = self._painted(part)
            except BaseException as error:
                hand_over(future.set_exception, as_error(error))
            else:
                hand_over(future.set_result, result)

    def _painted(self, part: EditedPart) -> EditResult:
        if part.error is not None or part.edited is None:
            raise part.error or RuntimeError("the edit was never run")
        edit, start = part.edit, time.perf_counter()
        edited = edit.method.finish(edit.context, part.seen, part.edited.get())
        source, target = edited.latents[:2]
        # A copy: whoever is given a picture may draw on it.
        source_image = self.sources.get(digest(source), lambda: self._decode(source)).copy()
        target_image = self._decode(target)
        now = time.perf_counter()
        return make_result(
            request=edit.request,
            model=self.model,
            context=edit.context,
            edited=edited,
            found=edit.method.findings(edit.context, part.seen, edited),
            source_image=source_image,
            target_image=target_image,
            seconds={"edit": part.seconds, "decode": now - start, "total": now - edit.arrived},
        )

    def _decode(self, latents: Tensor) -> Image.Image:
        pixels = self.model.decode(latents[None])[0].permute(1, 2, 0).mul(255).round()
        return Image.fromarray(pixels.to(torch.uint8).numpy())


def painting_executor(on_cpu: bool) -> Executor:
    """Where pictures are painted: beside the next steps, or on the CPU between them, which has no other cores."""
    return _Inline() if on_cpu else ThreadPoolExecutor(1, "adapedit-decode", initializer=mark_server_thread)


class _Mark(threading.local):
    of_a_server = False


_mark = _Mark()


def mark_server_thread() -> None:
    """The calling thread hands results over from now on: callbacks of users' futures run in it."""
    _mark.of_a_server = True


def in_server_thread() -> bool:
    """Whether this is such a callback, during which the server can't go on: it must not wait for one."""
    return _mark.of_a_server


class _Inline(Executor):
    """Runs what is submitted at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
