"""A server's end, a break, and a fork: whoever waits for it is told."""

from __future__ import annotations

import os
import threading
import time

import pytest

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.methods import Plain
from adapedit.server import EditServer


def request(seed: int = 0, **fields) -> EditRequest:
    known = {"source_prompt": "a red dog", "target_prompt": "a blue dog", "num_inference_steps": 1}
    return EditRequest(**{**known, "method": Plain(), "seed": seed, **fields})


def submitters(server: EditServer, count: int) -> tuple[list[threading.Thread], list[object]]:
    """Threads that submit an edit each and wait for it, all at once, and what they got."""
    found: list[object] = []

    def submit(seed: int) -> None:
        try:
            found.append(server.submit(request(seed)).result(30))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=submit, args=(seed,), daemon=True) for seed in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def all_end(threads: list[threading.Thread]) -> bool:
    until = time.monotonic() + 10
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("breaks", [False, True], ids=["end", "break"])
def test_all_who_wait_for_room_are_told_when_the_server_has_stopped(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch, breaks: bool
):
    """Each of them in turn: one's refusal makes room for the next."""
    server = pipe.serve(max_pending=1)
    waiting: list[None] = []
    acquire = server._room.acquire

    def counted(blocking: bool = True) -> bool:
        waiting.extend([None] * blocking)
        return acquire(blocking)

    with server:
        acquire()
        monkeypatch.setattr(server._room, "acquire", counted)
        threads, found = submitters(server, 4)
        while len(waiting) < len(threads):
            time.sleep(0.001)
    if breaks:
        server._failure = OSError("the disk is gone")
    server._room.release()
    assert all_end(threads), "a submitter waits for a server that has stopped"
    said = "has stopped after an error" if breaks else "has ended"
    assert all(isinstance(error, AdapEditError) and said in str(error) for error in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_that_the_server_stayed_with_its_parent(pipe: AdapEditPipeline):
    """No thread of it is there to run an edit, or to be waited for."""
    with pipe.serve() as server:
        child = os.fork()
        if child == 0:
            try:
                server.submit(request())
            except AdapEditError as error:
                server.__exit__(None, None, None)
                os._exit(0 if "fork" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.submit(request()).result(30)
