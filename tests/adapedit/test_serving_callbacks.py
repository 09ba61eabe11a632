"""What users' callbacks do in a server's own threads: submit, wait for other threads, raise."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapedit import AdapEditPipeline, EditRequest
from adapedit.methods import Plain
from adapedit.server import EditServer


def request(seed: int = 0, **fields) -> EditRequest:
    known = {"source_prompt": "a red dog", "target_prompt": "a blue dog", "num_inference_steps": 1}
    return EditRequest(**{**known, "method": Plain(), "seed": seed, **fields})


def test_an_edit_that_a_callback_submits_waits_for_no_room(pipe: AdapEditPipeline):
    """The thread that it would wait in is the one that makes room."""
    taken, full, followers = threading.Event(), threading.Event(), []

    def follow(_) -> None:
        assert full.wait(10)
        followers.append(server.submit(request(2)))
        taken.set()

    with pipe.serve(max_pending=1) as server:
        server.submit(request(0)).add_done_callback(follow)
        server.submit(request(1))
        full.set()
        assert taken.wait(10), "the callback waits for room"
        assert followers[0].result(30)
        # What was taken beyond the limit gives back no place.
        assert server.submit(request(3)).result(30)


def test_callbacks_of_what_the_end_of_the_block_cancels_may_wait_for_other_threads(pipe: AdapEditPipeline):
    """As for one that asks the server for something: no lock is held meanwhile."""
    answered = []

    def ask(_) -> None:
        other = threading.Thread(target=lambda: lock_and_leave(server), daemon=True)
        other.start()
        other.join(5)
        answered.append(not other.is_alive())

    def lock_and_leave(server: EditServer) -> None:
        with server._wake:
            pass

    with pytest.raises(KeyboardInterrupt), pipe.serve() as server:
        server.submit(request(num_inference_steps=200)).add_done_callback(ask)
        raise KeyboardInterrupt
    assert answered == [True]


def test_a_callback_that_exits_leaves_no_edit_uncancelled(pipe: AdapEditPipeline):
    def leave(_) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit), pipe.serve() as server:
        futures = [server.submit(request(seed, num_inference_steps=200)) for seed in range(3)]
        for future in futures:
            future.add_done_callback(leave)
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in futures)
    assert server._worker is not None and not server._worker.is_alive()


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()], ids=["exit", "cancelled"])
def test_a_callback_that_raises_takes_no_other_edit_with_it(pipe: AdapEditPipeline, error: BaseException):
    """Neither of its own job, nor of others."""

    def leave(_) -> None:
        raise error

    with pipe.serve() as server:
        targets = ["a blue dog", "a small dog", "a red cat"]
        edits = [server._prepare(request(target_prompt=target), None) for target in targets]
        edits[0].future.add_done_callback(leave)
        with server._wake:  # so that they are one job
            futures = [server._queue(edit, placed=False) for edit in edits]
        assert all(future.result(10) for future in futures)
        assert server.submit(request(1)).result(30)
