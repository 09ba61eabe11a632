"""Bundles between threads: every one gets the tensors that it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from adapedit import AdapEditPipeline
from adapedit_engine.runners.base import open_bundle_runner
from tests.helpers.edits import request


class SlowSession:
    """A session that gives way to other threads between writing into its one buffer and giving it out."""

    def __init__(self, spec):
        self.spec, self._buffer = spec, torch.empty(1)

    def run(self, inputs, outputs=None):
        self._buffer.fill_(float(next(iter(inputs.values())).flatten()[0]))
        time.sleep(0.002)
        return {output.name: self._buffer for output in self.spec.outputs}

    def close(self):
        pass


def in_threads(work: Callable[[int], object]) -> list[object]:
    """What three threads get that begin together, in the order of their numbers."""
    together = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda number: (together.wait(), work(number))[1], range(3)))


@pytest.fixture
def slow(bundle):
    """A runner of slow sessions, and the names of those that it has loaded."""
    loaded: list[str] = []

    def load(graph):
        time.sleep(0.005)
        loaded.append(graph)
        return SlowSession(bundle.graph(graph))

    runner = open_bundle_runner(bundle)
    runner.load = load
    return runner, loaded


def test_threads_that_share_a_runner_get_their_own_outputs(slow):
    runner, loaded = slow

    def work(number):
        ids = torch.full((4, 20), number)
        with runner:
            predicted = [float(runner.infer({"sample": torch.full((1,), number)})["noise_pred"])]
        return [
            *runner.encode_ids(ids[None])["hidden_states"].tolist(),
            *runner.decode(ids.float()).tolist(),
            *predicted,
        ]

    assert in_threads(work) == [[float(number)] * 9 for number in range(3)]
    assert sorted(loaded) == ["text_encoder", "unet", "vae_decoder"]


def test_predictions_outlive_the_next_call(bundle, in_onnxruntime, monkeypatch):
    runner, calls = open_bundle_runner(bundle), []
    infer = runner.infer

    def kept(inputs, outputs=None, **options):
        found = infer(inputs, outputs, **options)
        calls.append((found, {name: tensor.clone() for name, tensor in found.items()}))
        return found

    monkeypatch.setattr(runner, "infer", kept)
    AdapEditPipeline(replace(in_onnxruntime.model, runner=runner)).edit_batch([request(steps=2)])
    assert len(calls) > 1
    assert all(torch.equal(now[name], then[name]) for now, then in calls for name in then)
    runner.close()


def test_each_thread_gets_its_threads_back(slow):
    """Blocks of two threads that overlap: the one that began first ends first."""
    runner, _ = slow
    inside, over = threading.Event(), threading.Event()

    def other():
        with runner:
            inside.set()
            assert over.wait(10)
            runner.infer({"sample": torch.zeros(1)})

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as pool:
            with runner:
                entered = pool.submit(other)
                assert inside.wait(10)
            after = torch.get_num_threads()
            over.set()
            entered.result()
        assert after == 2
    finally:
        torch.set_num_threads(before)
