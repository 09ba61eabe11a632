"""What the benchmarks compare with, simulate and render."""

from __future__ import annotations

import json
import random
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adapedit.checked import row_steps
from adapedit.methods import AdapEdit, Plain
from benchmarks import __main__ as every
from benchmarks import common, goals, serving_ways, simulate
from benchmarks.baselines.edits import ROWS, OtherWays
from benchmarks.static_batching import StaticServer, burst_times, in_batches, mixed, of_a_kind, on_paper


class Batches:
    """A pipeline that remembers its batches, and fails where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list] = []

    def edit_batch(self, requests):
        self.batches.append(list(requests))
        if "bad" in requests:
            raise ValueError("no such edit")
        return [f"done {each}" for each in requests]


def test_a_static_server_runs_batch_after_batch():
    pipe = Batches()
    server = StaticServer(pipe, 2)
    futures: list[Future] = [server.submit(name) for name in ("a", "b", "bad", "c", "d")]
    with server:
        pass
    assert pipe.batches == [["a", "b"], ["bad", "c"], ["d"]]
    assert [futures[i].result() for i in (0, 1, 4)] == ["done a", "done b", "done d"]
    for i in (2, 3):
        assert isinstance(futures[i].exception(), ValueError)


def test_static_batching_on_paper():
    two_passes, one_pass = ((2, 1), (4, 2)), ((4, 1),)
    arrivals = [(0.0, two_passes), (0.0, one_pass), (0.0, one_pass), (100.0, one_pass)]
    ended, busy, latencies = on_paper(arrivals, 2, seconds=lambda rows: rows)
    # 2 rows, then 8, then the longer of them alone; the third waits for both, the last finds nobody.
    assert latencies == [14, 14, 18, 4]
    assert (ended, busy) == (104, 22)
    # Of a kind: the first alone, then both of the others.
    assert on_paper(arrivals, 2, seconds=lambda rows: rows, kind=tuple)[2] == [10, 18, 18, 4]
    # Rows that stay: the second takes part in both steps of the first.
    assert on_paper(arrivals, 2, seconds=lambda rows: rows, leave=False)[2] == [18, 18, 22, 4]


def test_batches_of_a_kind_take_edits_of_one_method_and_length():
    wanted = ((Plain(), 2), (AdapEdit(), 2), (Plain(), 4), (Plain(), 2), (Plain(), 2))
    edits = [common.request(place, steps, method=method) for place, (method, steps) in enumerate(wanted)]
    pipe = Batches()
    in_batches(pipe, edits, 2, of_a_kind)
    assert [[edits.index(each) for each in batch] for batch in pipe.batches] == [[0, 3], [1], [2], [4]]
    pipe = Batches()
    with StaticServer(pipe, 4, kind=len) as server:
        first = server.submit("x")
        first.result()
        futures = [server.submit(name) for name in ("aa", "b", "cc")]
        assert [future.result() for future in futures] == ["done aa", "done b", "done cc"]
    assert sorted(name for batch in pipe.batches for name in batch) == ["aa", "b", "cc", "x"]
    assert all(len({len(name) for name in batch}) == 1 for batch in pipe.batches)


@pytest.mark.parametrize("name", serving_ways.static_ways((2, 16)))
def test_static_ways_are_known_by_name(name):
    assert serving_ways.static(*serving_ways.batches(name)[:1], "") in name
    assert serving_ways.batches(name)[1] is (of_a_kind if name.endswith("of a kind") else mixed)


def test_the_goal_of_the_tail_is_held_against_both_kinds_of_static_batches():
    over = {name: {"p95": p95} for name, p95 in zip(serving_ways.static_ways((8,)), (0.6, 0.4), strict=True)}
    data = {"arrivals": {"singly": {"over": over}}, "p95_over_static": 0.4}
    best, mixing = (goal for goal in goals.GOALS if goal.text.startswith("p95"))
    assert [goals.found(goal, goal.cpu, data) for goal in (best, mixing)] == ["0.4", "0.6 ✗"]


def test_arrivals_keep_their_rate():
    for size in (1, 8):
        times = burst_times(4000, 2.0, size, random.Random(0))
        assert len(times) == 4000 and times == sorted(times)
        assert times[-1] == pytest.approx(2000, rel=0.1)
        assert len(set(times)) == 4000 // size


def test_costs_between_what_was_measured():
    cost = simulate.between({"2": {"ms_a_row": 10}, "4": {"ms_a_row": 8}, "8": {"ms_a_row": 7}})
    assert [cost(rows) for rows in (2, 3, 4, 8, 12)] == pytest.approx([0.020, 0.026, 0.032, 0.056, 0.080])


@pytest.mark.parametrize(("slots", "largest"), [(None, 16), ((1, 2, 4, 8, 16, 32), 8)])
def test_the_scheduler_is_simulated_beside_static_batching(slots, largest):
    options = SimpleNamespace(arrivals=60)
    found = simulate.simulated(options, lambda rows: 0.01 + 0.004 * rows, slots, 32, 16)
    capacity = found["capacity_edits_per_s"]
    assert list(capacity)[-1] == f"static, to the end, {largest}"
    assert capacity["scheduler"] > capacity["static, mixed, 2"] > capacity["static, to the end, 2"]
    for load in found["loads"]:
        assert len(load["ways"]) == 4
        for run in load["ways"].values():
            assert 0 < run["device_busy"] <= 1 and run["latency_s"]["p50"] > 0


def test_unrelated_edits_are_the_same_every_time():
    edits = common.unrelated(40, 16)
    assert edits == common.unrelated(40, 16) and edits[5:] != common.unrelated(35, 16)
    assert {each.num_inference_steps for each in edits} == {2, 4, 8, 16}
    assert len({each.method for each in edits}) == 3


def test_rows_are_those_of_the_plans(pipe):
    for method, rows in (
        (AdapEdit(), 6),
        (AdapEdit(observed_prompts="both"), 8),
        (AdapEdit(), 4),
        (Plain(), 4),
    ):
        asked = common.request(0, 5, source_prompt="a red dog", target_prompt="a blue dog", method=method)
        assert row_steps(asked, pipe.model) == 5 * rows


def test_other_ways_take_their_rows_and_leave_the_model_as_it_was(pipe):
    """The plain way makes the pictures that plain generation makes."""
    asked = common.request(0, 2, source_prompt="a red dog", target_prompt="a blue dog", method=Plain())
    others, rows = OtherWays(pipe), []
    hook = others._unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pixels = others.plain(asked)
    assert sum(rows) == ROWS["plain"] * 2
    rows.clear()
    others.eager(asked)
    assert sum(rows) == ROWS["eager"] * 2
    hook.remove()
    (ours,) = pipe.edit_batch([asked])
    for pixel, image in zip(pixels, (ours.source_image, ours.target_image), strict=True):
        one = pixel.permute(1, 2, 0).mul(255).round().short().numpy()
        assert np.abs(one - np.asarray(image, np.int16)).max() <= 1


def test_a_goal_is_empty_where_nothing_was_run_and_crossed_where_it_is_missed():
    overhead = {"edit_over_plain_diffusers": 1.2, "eager_over_edit": 2.0}
    (text,) = goals.goals(lambda name, device: overhead if (name, device) == ("overhead", "cpu") else None)
    rows = [line for line in text.splitlines() if "edit loop" in line]
    assert rows[0] == "| edit loop / plain loop | ≤ 1.05 | 1.2 ✗ | ≤ 1.03 |  |"
    assert rows[1] == "| eager controller / edit loop |  | 2 | ≥ 8 |  |"


def test_runs_on_a_gpu_do_not_replace_those_on_the_cpu(tmp_path: Path, capsys):
    for device, name in (("cpu", "x.json"), ("cuda:0", "x.cuda.json")):
        assert common.file_name("x", device, False) == name
    options = SimpleNamespace(results=tmp_path, device="cpu", quick=True)
    path = common.write("x", options, {"value": 3})
    assert path == tmp_path / "x.quick.json"
    data = json.loads(path.read_text())
    assert data["value"] == 3 and {"machine", "versions", "commit", "date"} <= set(data)


def test_all_benchmarks_have_a_command(tmp_path: Path):
    made = every.commands(["overhead"], tmp_path, ["--quick"])
    assert [command[2:] for command in made] == [
        ["benchmarks.overhead", "--results", str(tmp_path), "--quick"]
    ]
    for name in every.MODULES:
        assert (common.ROOT / "benchmarks" / f"{name}.py").exists()
    with pytest.raises(SystemExit):
        every.main(["--only", "nonsense"])
