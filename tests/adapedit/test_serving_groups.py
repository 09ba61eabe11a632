"""Edits of one source are one job: what one of them runs into, or all of them together, is no neighbour's error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from adapedit import AdapEditPipeline, EditRequest
from adapedit import edit as edit_module
from adapedit import server as server_module
from adapedit.methods import AdapEdit, PromptToPrompt
from adapedit.server import EditServer, _parts
from adapedit_engine.plan import merge
from adapedit_engine.scheduler import DeadlineError
from tests.helpers.edits import grey_levels

TARGETS = ["a blue dog", "a small dog", "a red cat", "a red bird"]


def request(target: str = TARGETS[0], method: Any = None) -> EditRequest:
    return EditRequest(
        source_prompt="a red dog",
        target_prompt=target,
        num_inference_steps=2,
        method=method or PromptToPrompt(),
    )


def group(server: EditServer, deadlines: Sequence[float | None] = (None,) * len(TARGETS)) -> list[Future]:
    """The futures of edits that the worker finds together."""
    return found_together(server, [request(target) for target in TARGETS], deadlines)


def found_together(
    server: EditServer, requests: Sequence[EditRequest], deadlines: Sequence[float | None]
) -> list[Future]:
    edits = [server._prepare(one, at) for one, at in zip(requests, deadlines, strict=True)]
    with server._wake:
        return [server._queue(edit, placed=False) for edit in edits]


@pytest.mark.parametrize("where", ["in the inbox", "in the scheduler"])
def test_a_deadline_that_passes_is_no_neighbours(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch, where: str
):
    """Wherever the edits are when it does."""
    if where == "in the scheduler":
        found, passed = server_module._late, list[Any]([{}])  # the first look finds nobody late
        monkeypatch.setattr(server_module, "_late", lambda edits: passed.pop() if passed else found(edits))
    now = time.monotonic()
    with pipe.serve(max_rows=20) as server:
        gone, *others = group(server, [now - 1, None, now + 600, None])
        assert isinstance(gone.exception(30), DeadlineError)
        assert all(future.result(30) for future in others)
        # The others still share their source: 2 (1 + 3) rows a step.
        assert server.stats.scheduler.rows == 2 * 8


def test_a_first_pass_that_edits_have_in_common_is_run_once(pipe: AdapEditPipeline):
    """Three knobs of one edit: both prompts are looked at once."""
    knobs = [AdapEdit(two_pass=True, lambda_tau=value, observed_prompts="both") for value in (0.2, 0.5, 1.0)]
    with pipe.serve() as server:
        futures = found_together(server, [request(method=method) for method in knobs], [None] * 3)
        results = [future.result(30) for future in futures]
        assert server.stats.scheduler.rows == 2 * (4 + 8)
    for method, result in zip(knobs, results, strict=True):
        (alone,) = pipe.edit_batch([request(method=method)])
        assert grey_levels(result.target_image, alone.target_image) <= 1


def test_what_has_no_room_in_the_budget_together_runs_apart(pipe: AdapEditPipeline):
    with pipe.serve(budget_bytes=2**40) as server:
        server.submit(request()).result(30)
        budget = int(1.5 * server.stats.scheduler.max_bytes)
    with pipe.serve(budget_bytes=budget) as server:
        assert all(future.result(30) for future in group(server))
        assert server.stats.scheduler.max_bytes <= budget


def test_a_job_that_fails_is_tried_in_halves(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch):
    def failing(plans):
        if len(plans) > 2:
            raise RuntimeError("too much at once")
        return merge(plans)

    monkeypatch.setattr(edit_module, "merge", failing)
    with pipe.serve(max_rows=20) as server:
        assert all(future.result(30) for future in group(server))
        assert server.stats.scheduler.rows == 2 * 2 * 6


def test_an_error_of_each_is_tried_no_further(pipe: AdapEditPipeline):
    with pipe.serve() as server:
        edits = [server._prepare(request(target), time.monotonic() - 1) for target in TARGETS]
    assert _parts(edits[:1], RuntimeError()) == [] == _parts(edits, DeadlineError.by(1.0))
    assert _parts(edits[:3], RuntimeError()) == [edits[:1], edits[1:3]]
