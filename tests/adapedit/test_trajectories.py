"""A later edit of the same source through the server: two rows a step, the same picture, within a bound of bytes."""

from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from adapedit import AdapEditPipeline, EditRequest
from adapedit_engine.runners.pytorch import PyTorchRunner
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request

PLENTY = 2**28
CAT = "a red cat standing on the grass"
PAIRS = {
    "two passes": (request(), request(SOURCE, LONGER, lambda_s=0.5)),
    "one pass": (request(single_pass=True), request(SOURCE, LONGER, single_pass=True, lambda_tau=0.3)),
    "local blend": (
        request(method="prompt-to-prompt", local_blend=("dog",)),
        request(SOURCE, LONGER, method="prompt-to-prompt", local_blend=("grass",), cross_replace_steps=0.4),
    ),
    "masactrl": (request(method="masactrl"), request(SOURCE, CAT, method="masactrl", start_step=0.5)),
    "plain": (request(method="plain"), request(SOURCE, CAT, method="plain")),
}


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Rows of every call of the UNet."""
    seen: list[int] = []
    infer = PyTorchRunner._infer

    def counting(self, inputs, outputs, exchange, *rest):
        seen.append(inputs["sample"].shape[0])
        return infer(self, inputs, outputs, exchange, *rest)

    monkeypatch.setattr(PyTorchRunner, "_infer", counting)
    return seen


def assert_same(result, pipe: AdapEditPipeline, wanted: EditRequest) -> None:
    (alone,) = pipe.edit_batch([wanted])
    assert grey_levels(result.source_image, alone.source_image) <= 1
    assert grey_levels(result.target_image, alone.target_image) <= 1
    assert result.source_maps == pytest.approx(alone.source_maps, abs=1e-4)
    assert result.target_maps == pytest.approx(alone.target_maps, abs=1e-4)
    for one, other in zip(result.words, alone.words, strict=True):
        assert (one.word_steps is None) == (other.word_steps is None)
        if one.word_steps is not None:
            assert one.word_steps == pytest.approx(other.word_steps, abs=1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_second_edit_runs_its_own_rows_and_is_the_same(kind, pipe, rows):
    first, second = PAIRS[kind]
    observed = [2] * STEPS if kind == "two passes" else []
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        one = server.submit(first).result()
        assert rows == observed + [4] * STEPS
        rows.clear()
        other = server.submit(second).result()
        assert rows == observed + [2] * STEPS
        again = server.submit(first).result()
        assert rows == observed + [2] * STEPS * 2
        stats = server.stats
    assert (stats.trajectories.hits, stats.trajectories.misses, stats.trajectories.entries) == (2, 1, 1)
    assert 0 < stats.trajectories.bytes <= PLENTY
    assert stats.scheduler.rows == sum([2, 4, 2, 2, 2][: 5 if observed else 0] or [4, 2, 2]) * STEPS
    # The source's picture is decoded once, and each result has its own copy of it.
    assert (stats.pictures.hits, stats.pictures.entries) == (2, 1)
    assert one.source_image is not again.source_image
    assert_same(one, pipe, first)
    assert_same(other, pipe, second)
    assert grey_levels(again.target_image, one.target_image) <= 1


def test_nothing_is_kept_unless_asked_for(pipe, rows):
    with pipe.serve() as server:
        for _ in range(2):
            server.submit(request(single_pass=True)).result()
        kept = server.stats.trajectories
    assert kept is not None
    assert (kept.hits, kept.entries, kept.bytes) == (0, 0, 0)
    assert rows == [4] * STEPS * 2


def test_replayed_edits_share_calls_with_unrelated_ones(pipe, rows):
    others = [request("a red bird", "a red dog", seed=3, single_pass=True), request(method="plain", seed=4)]
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        server.submit(request(single_pass=True)).result()
        rows.clear()
        wanted = [request(SOURCE, CAT, single_pass=True), *others]
        with server._wake:  # so that all are there when the worker looks
            futures = [server.submit(each) for each in wanted]
        results = [future.result() for future in futures]
    assert (max(rows), sum(rows)) == (2 + 4 + 4, (2 + 4 + 4) * STEPS)
    for each, result in zip(wanted, results, strict=True):
        assert_same(result, pipe, each)


def test_edits_that_wait_together_share_rows_recorded_or_replayed(pipe, rows):
    wanted = [request(SOURCE, target, single_pass=True) for target in (TARGET, LONGER, CAT)]
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        for taken in (8, 6):
            rows.clear()
            with server._wake:
                futures = [server.submit(each) for each in wanted]
            for each, future in zip(wanted, futures, strict=True):
                assert_same(future.result(), pipe, each)
            assert rows[:STEPS] == [taken] * STEPS
        assert server.stats.trajectories.hits == 1


def test_the_least_recently_used_source_makes_way(pipe, rows):
    edits = [request(seed=seed, single_pass=True) for seed in range(3)]
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        server.submit(edits[0]).result()
        size = server.stats.trajectories.bytes
    with pipe.serve(trajectory_bytes=2 * size) as server:
        for place in (0, 1, 0, 2, 0, 1):
            server.submit(edits[place]).result()
            assert server.stats.trajectories.bytes <= 2 * size
        stats = server.stats.trajectories
    assert (stats.hits, stats.misses, stats.evictions, stats.entries) == (2, 4, 2, 2)
    with pipe.serve(trajectory_bytes=size - 1) as server:
        for _ in range(2):
            server.submit(edits[0]).result()
        assert (server.stats.trajectories.bytes, server.stats.trajectories.hits) == (0, 0)


def test_a_cancelled_edit_leaves_no_half_recording(pipe, rows):
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        future = server.submit(request(steps=300, single_pass=True))
        while len(rows) < 3:
            pass
        assert server.stats.trajectories.bytes > 0  # what it will take is set aside
        future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        server.submit(request(seed=1, single_pass=True)).result()
        server.submit(request(seed=1, single_pass=True)).result()
        stats = server.stats.trajectories
        assert (stats.hits, stats.entries) == (1, 1)
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        server.submit(request(seed=1, single_pass=True)).result()
        assert server.stats.trajectories.bytes == stats.bytes


def test_a_failed_edit_leaves_no_recording(pipe, monkeypatch):
    infer, calls = PyTorchRunner._infer, []

    def failing(self, inputs, outputs, exchange, *rest):
        calls.append(1)
        if len(calls) in (3, 4):
            raise RuntimeError("the device went away")
        return infer(self, inputs, outputs, exchange, *rest)

    monkeypatch.setattr(PyTorchRunner, "_infer", failing)
    wanted = request(single_pass=True)
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        with pytest.raises(RuntimeError, match="went away"):
            server.submit(wanted).result()
        assert (server.stats.trajectories.bytes, server.stats.trajectories.entries) == (0, 0)
        server.submit(wanted).result()
        assert_same(server.submit(wanted).result(), pipe, wanted)
        assert server.stats.trajectories.hits == 1


def test_a_step_that_is_tried_again_is_recorded_once(pipe, monkeypatch):
    infer, calls = PyTorchRunner._infer, []

    def failing(self, inputs, outputs, exchange, *rest):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return infer(self, inputs, outputs, exchange, *rest)

    monkeypatch.setattr(PyTorchRunner, "_infer", failing)
    wanted = request(single_pass=True)
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        server.submit(wanted).result()
        assert_same(server.submit(wanted).result(), pipe, wanted)
        assert server.stats.trajectories.hits == 1


BOTH = {"observed_prompts": "both", "self_replace_steps": 0.4, "local_blend": True}


def test_the_second_pass_replays_the_source_that_the_first_has_run(pipe, rows, monkeypatch):
    wanted, progress = [request(**BOTH), request(SOURCE, LONGER, **BOTH)], []
    results = [
        pipe.edit_batch([each], callback=lambda *counts: progress.append(counts))[0] for each in wanted
    ]
    assert rows == ([4] * STEPS + [2] * STEPS) * 2
    assert progress == [(done, 2 * STEPS) for done in range(1, 2 * STEPS + 1)] * 2
    rows.clear()
    with pipe.serve() as server:
        served = [server.submit(each).result() for each in wanted]
        kept = server.stats.trajectories
    assert rows == ([4] * STEPS + [2] * STEPS) * 2
    # Nothing asked for it to be kept longer.
    assert kept is not None and (kept.hits, kept.entries, kept.bytes) == (2, 0, 0)
    rows.clear()
    monkeypatch.setattr("adapedit.pipeline.REPLAY_BYTES", 0)
    for each, alone, other in zip(wanted, results, served, strict=True):
        assert_same(alone, pipe, each)
        assert_same(other, pipe, each)
    assert rows == [4] * STEPS * 2 * 2 * 2


def test_edits_of_a_batch_replay_within_the_limit_of_rows(pipe, rows):
    wanted = [request(seed=seed, **BOTH) for seed in range(3)]
    progress = []
    results = pipe.edit_batch(wanted, max_rows=8, callback=lambda *counts: progress.append(counts))
    assert rows == [8] * STEPS + [4] * STEPS + [6] * STEPS
    assert progress[-1] == (3 * STEPS, 3 * STEPS)
    for each, result in zip(wanted, results, strict=True):
        assert_same(result, pipe, each)


def test_a_runner_that_can_not_replay_keeps_nothing(pipe, monkeypatch):
    monkeypatch.setattr(PyTorchRunner, "supports_replay", False)
    with pipe.serve(trajectory_bytes=PLENTY) as server:
        for _ in range(2):
            server.submit(request(single_pass=True)).result()
        assert server.stats.trajectories is None
