"""Edits on their way into a server: who waits for whom, and who goes first."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.serving.edits import PreparedEdit
from adapedit.serving.inbox import AHEAD_SECONDS, most_urgent

STEPS = 3


def request(seed: int = 0, **fields) -> EditRequest:
    known = {"source_prompt": "a red dog", "target_prompt": "a blue dog", "num_inference_steps": STEPS}
    return EditRequest(**{**known, "seed": seed, **fields})


def test_a_running_edit_does_not_wait_for_the_end_of_a_long_preparation(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
):
    ended = threading.Event()
    with pipe.serve() as server:
        prepare = server._prepare

        def prepared(edit: EditRequest, deadline: float | None):
            assert edit.seed == 0 or ended.wait(10), "the first edit waits for the second's preparation"
            return prepare(edit, deadline)

        monkeypatch.setattr(server, "_prepare", prepared)
        first = server.submit(request(0, num_inference_steps=6))
        first.add_done_callback(lambda _: ended.set())
        assert server.submit(request(1)).result(30) and first.result(30)


def test_an_edit_that_waits_for_room_keeps_nobody_waiting(pipe: AdapEditPipeline):
    with pipe.serve(max_rows=16, max_pending=1) as server:
        futures = [server.submit(request(place)) for place in range(3)]
    assert all(future.result() for future in futures)


def test_an_edit_that_found_no_room_before_the_end_is_told(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
):
    """As another thread's that was woken too late."""
    waits, ended = threading.Event(), threading.Event()

    def acquire(blocking: bool = True) -> bool:
        if blocking:
            waits.set()
            assert ended.wait(30)
        return blocking

    errors: list[AdapEditError] = []

    def submit() -> None:
        try:
            server.submit(request())
        except AdapEditError as error:
            errors.append(error)

    with pipe.serve(max_pending=1) as server:
        monkeypatch.setattr(server._room, "acquire", acquire)
        late = threading.Thread(target=submit)
        late.start()
        assert waits.wait(30)
    ended.set()
    late.join(30)
    assert "has ended" in str(*errors)


def test_of_edits_that_came_together_the_longest_begin_first(pipe: AdapEditPipeline):
    """And an edit that came long before is not passed by, nor one whose deadline is set."""
    came = time.perf_counter()

    def waiting(steps: int, seconds: float = 0.0, deadline: float | None = None) -> PreparedEdit:
        edit = PreparedEdit.of(request(num_inference_steps=steps), pipe.model, 8, deadline)
        return replace(edit, arrived=came + seconds)

    def order(*edits: PreparedEdit) -> list[int]:
        left, places = list(edits), []
        while left:
            (first,) = most_urgent(left, share_sources=False, max_rows=8)
            left.remove(first)
            places.append(edits.index(first))
        return places

    two, nine, five = waiting(2), waiting(9, 0.001), waiting(5)
    assert order(two, nine, five) == [1, 2, 0]
    assert order(nine, waiting(2, -20 * AHEAD_SECONDS), waiting(2, deadline=time.monotonic())) == [2, 1, 0]
