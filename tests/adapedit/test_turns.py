"""Processes in turn: one at a time, each by a clock that stands while it does."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.turns import in_turns
from tests.helpers.timed_ways import compute, die, sleep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are stopped by signals")


def test_only_one_runs_at_a_time_and_its_clock_stands_while_it_does():
    start = time.perf_counter()
    found = in_turns(
        {"one": (compute, (0.5,)), "other": (compute, (0.5,)), "asleep": (sleep, (0.5,))}, stretch=0.05
    )
    took = time.perf_counter() - start
    # Each turned some ten times. Had a clock gone on, its process would have found its time gone after a stretch.
    assert took >= 1.5
    for elapsed, used in (found["one"], found["other"]):
        assert 0.5 <= elapsed < 1
        assert used > 0.1, "it computed while its clock went on"
    assert 0.5 <= found["asleep"][0] < 1


@pytest.mark.parametrize(("ready", "said"), [(False, "before it was ready"), (True, "no result")])
def test_a_way_that_ends_without_a_result_is_told(ready, said):
    with pytest.raises(RuntimeError, match=f"^broken ended with code 7 .*{said}"):
        in_turns({"fine": (sleep, (5.0,)), "broken": (die, (ready,))}, stretch=0.05)
