"""The server: the same pictures as one by one, shared work done once, errors and cancellation kept apart."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.methods import AdapEdit, Plain, PromptToPrompt
from adapedit.server import EditServer
from adapedit_engine.runners.base import Capabilities
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.scheduler import DeadlineError

STEPS = 3
PAIRS = [("a red dog", "a blue dog"), ("a cat", "a small cat"), ("a red bird", "a red dog")]


def request(place: int = 0, **fields) -> EditRequest:
    source, target = PAIRS[place % len(PAIRS)]
    known = {"source_prompt": source, "target_prompt": target, "num_inference_steps": STEPS, "seed": place}
    return EditRequest(**{**known, **fields})


def requests() -> list[EditRequest]:
    return [
        request(0),
        request(1, method=PromptToPrompt()),
        request(2, method=Plain(), num_inference_steps=5),
        request(3, method=AdapEdit()),
        request(4, num_inference_steps=2),
    ]


def grey_levels(one, other) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_streamed_edits_are_those_made_one_by_one(pipe: AdapEditPipeline):
    seen = []
    finished = list(
        pipe.stream(requests(), max_rows=8, callback=lambda done, taken: seen.append((done, taken)))
    )
    assert sorted(item.place for item in finished) == list(range(5))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    for item in finished:
        (alone,) = pipe.edit_batch([item.request])
        assert item.result is not None and item.result.request == alone.request
        assert grey_levels(item.result.source_image, alone.source_image) <= 1
        assert grey_levels(item.result.target_image, alone.target_image) <= 1
        assert np.allclose(item.result.target_maps, alone.target_maps, atol=1e-4)
        assert [w.word_steps for w in item.result.words] == pytest.approx(
            [w.word_steps for w in alone.words], abs=1e-4
        )


def test_pictures_are_decoded_beside_the_next_steps(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch):
    decoding: set[str] = set()
    decode = type(pipe.model).decode

    def decoded(self, latents):
        decoding.add(threading.current_thread().name)
        return decode(self, latents)

    monkeypatch.setattr("adapedit.model.EditModel.decode", decoded)
    with pipe.serve() as server:
        server.submit(request()).result()
    assert decoding == {"adapedit-decode_0"}


def test_leaving_the_block_waits_for_all(pipe: AdapEditPipeline):
    with pipe.serve() as server:
        futures = [server.submit(each) for each in requests()]
    assert all(future.done() and future.result() for future in futures)
    with pytest.raises(AdapEditError, match="not running"):
        server.submit(request())


def test_an_error_in_the_block_cancels_the_rest(pipe: AdapEditPipeline):
    with pytest.raises(KeyboardInterrupt), pipe.serve() as server:
        futures = [server.submit(request(i, num_inference_steps=200)) for i in range(3)]
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in futures)


def test_bad_requests_are_refused_at_once(pipe: AdapEditPipeline):
    with pipe.serve(max_rows=4) as server, pytest.raises(AdapEditError, match="multiple of"):
        server.submit(request(height=17))
    with pipe.serve(max_rows=2) as server, pytest.raises(AdapEditError, match="takes 4 rows, max_rows is 2"):
        server.submit(request())


def test_a_stream_tells_failures_and_goes_on(pipe: AdapEditPipeline):
    items = {item.place: item for item in pipe.stream([request(0), request(1, height=17), request(2)])}
    assert isinstance(items[1].error, AdapEditError) and items[1].result is None
    assert items[0].result and items[2].result


def test_a_request_that_breaks_its_preparation_is_a_failure_among_the_others(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
):
    """Whatever it raises: what could not be foreseen aborts no stream."""
    prepare = EditServer._prepare

    def breaking(self, edit, *more):
        if edit.seed == 1:
            raise OSError("File name too long")
        return prepare(self, edit, *more)

    monkeypatch.setattr(EditServer, "_prepare", breaking)
    items = {item.place: item for item in pipe.stream([request(0), request(1), request(2)])}
    assert isinstance(items[1].error, OSError)
    assert items[0].result and items[2].result


def test_a_stream_takes_no_more_than_it_was_allowed(pipe: AdapEditPipeline):
    taken = []

    def source():
        for i in range(8):
            taken.append(i)
            yield request(i)

    for given, _ in enumerate(pipe.stream(source(), ahead=3), start=1):
        assert len(taken) <= given + 3


def test_leaving_a_stream_early_cancels_what_is_left(pipe: AdapEditPipeline):
    with pipe.serve() as server:
        for _ in server.stream(request(i, num_inference_steps=1 if i == 0 else 60) for i in range(5)):
            break
        start = time.monotonic()
    assert time.monotonic() - start < 60 and server.stats.scheduler.finished == 1


@pytest.fixture
def held(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch):
    """A server whose first UNet call waits until it is told to go on: what is submitted meanwhile waits together."""
    gate, infer = threading.Event(), type(pipe.model.runner).infer

    def waiting(self, *args, **kw):
        assert gate.wait(30)
        return infer(self, *args, **kw)

    monkeypatch.setattr(type(pipe.model.runner), "infer", waiting)
    with pipe.serve(max_rows=20) as server:
        server.submit(request(1, method=Plain(), seed=99))
        while not server.stats.scheduler.max_rows:
            time.sleep(0.01)
        yield server, gate
        gate.set()


def test_edits_that_wait_with_one_source_share_its_rows(pipe: AdapEditPipeline, held):
    server, gate = held
    blocker = server.submit(request(0, method=Plain(), seed=98, num_inference_steps=1))
    targets = ["a blue dog", "a small dog", "a red bird", "a red cat"]
    sweep = [request(0, target_prompt=target, method=PromptToPrompt()) for target in targets]
    futures = [server.submit(each) for each in sweep]
    before = server.stats.scheduler.rows
    gate.set()
    results = [future.result(30) for future in futures]
    blocker.result(30)
    # 2 (1 + 4) rows at each step instead of 16; the two plain edits took four each.
    assert server.stats.scheduler.rows - before == STEPS * 10 + STEPS * 4 + 4
    for each, result in zip(sweep, results, strict=True):
        (alone,) = pipe.edit_batch([each])
        assert grey_levels(result.target_image, alone.target_image) <= 1


def test_cancelling_one_of_a_shared_source_leaves_the_others(held):
    server, gate = held
    one, other = server.submit(request(0)), server.submit(request(0, target_prompt="a small dog"))
    alone = server.submit(request(1))
    assert one.cancel() and alone.cancel()
    gate.set()
    assert other.result(30)
    with pytest.raises(CancelledError):
        one.result()


def test_progress_is_told_step_by_step(pipe: AdapEditPipeline):
    """Of edits that share a source, too, to each; raising in it ends the edit."""
    seen: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    with pipe.serve() as server:
        futures = [
            server.submit(
                request(0, target_prompt=target),
                progress=lambda *steps, place=place: seen[place].append(steps),
            )
            for place, target in enumerate(("a blue dog", "a small dog"))
        ]
        assert all(future.result(30) for future in futures)
        assert seen[0][-1] == seen[1][-1] == (STEPS, STEPS)
        assert [done for done, _ in seen[0]] == sorted(done for done, _ in seen[0])

        def stop(done: int, total: int) -> None:
            raise AdapEditError("enough")

        with pytest.raises(AdapEditError, match="enough"):
            server.submit(request(1), progress=stop).result(30)
    with pipe.serve() as server, pytest.raises(AdapEditError, match="callback is 3"):
        server.submit(request(0), progress=3)


def test_a_deadline_that_passes_is_the_edits_own_error(held):
    server, gate = held
    late, fine = server.submit(request(0, seed=5), deadline=0.05), server.submit(request(1))
    time.sleep(0.1)
    gate.set()
    with pytest.raises(DeadlineError, match="deadline passed"):
        late.result(30)
    assert fine.result(30)


def test_another_knob_of_the_same_edit_skips_the_first_pass(pipe: AdapEditPipeline):
    with pipe.serve() as server:
        server.submit(request(0, method=AdapEdit(two_pass=True))).result(30)
        first = server.stats.scheduler.rows
        again = server.submit(request(0, method=AdapEdit(two_pass=True, lambda_tau=0.5))).result(30)
        assert server.stats.scheduler.rows - first == 4 * STEPS
        caches = server.stats.caches
        assert caches["observations"].hits == 1
        assert caches["prompts"].hits == 5 and caches["projections"].hit_rate > 0.5
    (alone,) = pipe.edit_batch([again.request])
    assert grey_levels(again.target_image, alone.target_image) <= 1


def test_nobody_waits_forever_when_the_server_breaks(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch):
    def broken(self, scheduler):
        raise OSError("the disk is gone")

    monkeypatch.setattr(EditServer, "_feed", broken)
    with pytest.raises(OSError, match="disk"), pipe.serve() as server:
        try:
            future = server.submit(request())
        except AdapEditError:
            raise OSError("disk") from None
        with pytest.raises(OSError, match="disk"):
            future.result(30)


def test_memory_is_admitted_within_the_budget(pipe: AdapEditPipeline):
    with pipe.serve(budget_bytes=3 * 2**20) as server:
        futures = [server.submit(request(i)) for i in range(4)]
        assert all(future.result(60) for future in futures)
    assert 0 < server.stats.scheduler.max_bytes <= 3 * 2**20


def test_a_runner_that_prepares_every_shape_is_given_slots(pipe: AdapEditPipeline):
    """Calls come in few sizes, and the pictures are those of calls of any size."""
    seen = set()

    class FewShapes(PyTorchRunner):
        capabilities = Capabilities(rows=(1, 2, 4, 8, 16))

        def infer(self, inputs, outputs=None, *, self_layers=None):
            seen.add(len(inputs["timestep"]))
            return super().infer(inputs, outputs)

    model = pipe.model
    assert isinstance(model.runner, PyTorchRunner)
    runner = FewShapes(model.runner.controlled.unet, map_divisor=model.facts.map_divisor)
    with EditServer(replace(model, runner=runner), max_rows=12) as server:
        items = {item.place: item for item in server.stream(requests())}
    assert seen <= {1, 2, 4, 8, 16}
    stats = server.stats.scheduler
    assert stats.filled_rows >= stats.rows
    for place, each in enumerate(requests()):
        (alone,) = pipe.edit_batch([each])
        assert grey_levels(items[place].result.target_image, alone.target_image) <= 1
