"""Threads are given back, and come again when they are needed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from adapedit_engine.openmp import release_threads

TASKS = Path("/proc/self/task")
needs_linux = pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")


def threads() -> int:
    return len(os.listdir(TASKS))


def compute() -> torch.Tensor:
    return torch.linspace(0, 1, 1_000_000).exp()


@needs_linux
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this build of torch has no OpenMP")
def test_threads_are_given_back_and_come_again():
    """In a thread of its own: how many threads the other tests' pool has is their business."""
    counted: list[int] = []
    results: list[torch.Tensor] = []

    def work() -> None:
        torch.set_num_threads(max(2, torch.get_num_threads()))
        counted.append(threads())
        results.append(compute())
        counted.append(threads())
        assert release_threads()
        counted.append(threads())
        results.append(compute())
        counted.append(threads())

    before = torch.get_num_threads()
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    torch.set_num_threads(before)
    alone, pool, released, again = counted
    assert pool > alone
    assert released == alone
    assert again == pool
    assert torch.equal(*results)


def test_releasing_what_is_not_there_is_harmless():
    release_threads()
    release_threads()
    assert compute().shape == (1_000_000,)
