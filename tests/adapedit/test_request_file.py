"""`adapedit batch`: nothing done twice, failures listed, shards that never overlap, no halves after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.cli.main import run
from adapedit.request_file import read_lines, run_batch, shard_of

RECORDS = [
    {"source_prompt": "a red dog", "target_prompt": "a blue dog", "num_inference_steps": 2, "seed": seed}
    for seed in range(4)
]


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n\n")
    return path


def test_edits_get_folders_and_failures_are_listed(pipe: AdapEditPipeline, tmp_path: Path):
    file = write(
        tmp_path / "r.jsonl",
        RECORDS[0],
        "not json",
        {**RECORDS[1], "id": "mine", "method": "prompt-to-prompt"},
        {**RECORDS[2], "height": 17},
        {**RECORDS[3], "method": {"name": "adapedit", "lambda_tau": -1}},
        {**RECORDS[3], "id": "../up"},
    )
    out = tmp_path / "out"
    with pipe.serve() as server:
        report = run_batch(server, read_lines(file), out)
    assert (report.done, report.skipped) == (2, 0)
    assert {path.name for path in out.iterdir()} == {"00001", "mine", "failures.jsonl"}
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(failure["line"], failure["id"]) for failure in sorted(failures, key=lambda f: f["line"])] == [
        (2, "00002"),
        (4, "00004"),
        (5, "00005"),
        (6, "00006"),
    ]
    assert "multiple of" in report.failures["00004"] and "lambda_tau" in report.failures["00005"]
    assert (
        json.loads((out / "mine" / "edit.json").read_text())["request"]["method"]["name"]
        == "prompt-to-prompt"
    )


def test_what_is_finished_is_not_done_again(pipe: AdapEditPipeline, tmp_path: Path):
    file, out = write(tmp_path / "r.jsonl", *RECORDS), tmp_path / "out"
    with pipe.serve() as server:
        assert run_batch(server, read_lines(file)[:3], out).done == 3
        (out / "00001" / "edit.json").write_text("{ cut off")
        before = (out / "00002" / "edit.json").stat().st_mtime_ns
        changed = read_lines(write(file, *RECORDS[:2], {**RECORDS[2], "seed": 77}, RECORDS[3]))
        report = run_batch(server, changed, out)
    # The broken one, the one that asks for something else now, and the new one.
    assert (report.done, report.skipped, report.failures) == (3, 1, {})
    assert (out / "00002" / "edit.json").stat().st_mtime_ns == before
    assert json.loads((out / "00003" / "edit.json").read_text())["request"]["seed"] == 77
    assert not (out / "failures.jsonl").exists()


def test_what_a_killed_run_began_is_removed(pipe: AdapEditPipeline, tmp_path: Path):
    """Beside the folder of an edit and, where that was there already, inside it."""
    file, out = write(tmp_path / "r.jsonl", RECORDS[0]), tmp_path / "out"
    for folder in (out, out / "00001"):
        (folder / ".00001.abcd1234.part").mkdir(parents=True)
        (folder / ".other.abcd1234.part").mkdir()
    with pipe.serve() as server:
        assert run_batch(server, read_lines(file), out).done == 1
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".other.abcd1234.part"]
    inside = {path.name for path in (out / "00001").iterdir()}
    assert inside == {".other.abcd1234.part", "source.png", "target.png", "maps.png", "edit.json"}


def test_no_edit_takes_the_name_of_a_file_of_failures(tmp_path: Path):
    ids = ("failures.jsonl", "failures-1-of-4.jsonl", "failures")
    lines = read_lines(write(tmp_path / "r.jsonl", *({**RECORDS[0], "id": id} for id in ids)))
    assert [line.id for line in lines] == ["00001", "00002", "failures"]
    for line in lines[:2]:
        assert line.error is not None and "is the name of a file that failures are written to" in line.error
    assert lines[2].request is not None


def test_shards_share_the_work(tmp_path: Path):
    lines = read_lines(
        write(tmp_path / "r.jsonl", *RECORDS, *[{**RECORDS[0], "id": f"x{i}"} for i in range(3)])
    )
    shards = [shard_of(lines, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(line.number for shard in shards for line in shard) == list(range(1, 8))
    assert shard_of(lines, None) == lines
    for bad in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(AdapEditError, match="wanted i/n"):
            shard_of(lines, bad)


def test_bad_files_are_refused_before_any_work(tmp_path: Path):
    with pytest.raises(AdapEditError, match=r"lines 1 and 3 have the id 'a'"):
        read_lines(write(tmp_path / "r.jsonl", *({**RECORDS[0], "id": id} for id in "aba")))
    with pytest.raises(AdapEditError, match="can't be read"):
        read_lines(tmp_path / "none.jsonl")


def test_a_line_is_what_json_means_by_one(tmp_path: Path):
    """Other ends of lines may stand in a string; a byte-order mark and Windows' ends of lines are no part of it."""
    prompts = ["a\u2028dog", "a\x85dog", "a\u2029dog"]
    records = [json.dumps({**RECORDS[0], "target_prompt": p}, ensure_ascii=False) for p in prompts]
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(records).encode() + b"\r\n")
    lines = read_lines(file)
    assert [line.error for line in lines] == [None] * 3
    assert [line.request.target_prompt for line in lines if line.request] == prompts


def test_a_line_that_nothing_can_read_is_a_failure_of_its_own(tmp_path: Path):
    first, second = read_lines(write(tmp_path / "r.jsonl", "[" * 100_000, RECORDS[0]))
    assert first.error is not None and first.error.startswith("line 1: ") and "recursion" in first.error
    assert second.request is not None


def test_the_command_line(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, out = write(tmp_path / "r.jsonl", *RECORDS[:2], "nonsense"), tmp_path / "out"
    command = ["batch", str(file), "--out", str(out), "--model", str(tiny_folder), "--json"]
    assert run([*command, "--shard", "2/2"]) == 0
    capsys.readouterr()
    assert run(command) == 1
    assert json.loads(capsys.readouterr().out) | {"failures": 0} == {
        "done": 1,
        "skipped": 1,
        "failures": 0,
    }
    assert run(["batch", str(file), "--shard", "3/2"]) == 2
    assert run(["batch", str(file), "--model", str(tiny_folder), "--runner", "tensorrt"]) == 2
    assert "wants a bundle with plans" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_begun_again(pipe: AdapEditPipeline, tiny_folder: Path, tmp_path: Path):
    """The folders are those of an undisturbed run, and nothing half-written is left."""
    records = [{**RECORDS[0], "seed": seed, "num_inference_steps": 30} for seed in range(8)]
    file, out = write(tmp_path / "r.jsonl", *records), tmp_path / "out"
    start = [sys.executable, "-c", "from adapedit.cli import main; main()"]
    command = [*start, "batch", str(file), "--model", str(tiny_folder), "--max-rows", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while not list(out.glob("*/edit.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list(out.glob("*/edit.json")))
    assert 1 <= finished < 8
    (out / ".00008.abcd1234.part").mkdir()
    with pipe.serve() as server:
        report = run_batch(server, read_lines(file), out)
        undisturbed = run_batch(server, read_lines(file), tmp_path / "undisturbed")
    assert (report.skipped, report.done) == (finished, 8 - finished) and undisturbed.done == 8
    assert sorted(path.name for path in out.iterdir()) == [f"{i:05d}" for i in range(1, 9)]
    for folder in out.iterdir():
        for name in ("source.png", "target.png"):
            folders = (folder, tmp_path / "undisturbed" / folder.name)
            one, other = (np.asarray(Image.open(f / name), np.int16) for f in folders)
            assert np.abs(one - other).max() <= 1


@pytest.mark.slow
def test_when_half_of_the_time_is_over_forty_of_a_hundred_edits_are_on_disk(tmp_path: Path):
    """Those that began first end first: a kill costs the edits that share the call, not all that were begun.

    Of the processor's time, for others may use the machine, too.
    """
    records = [{**RECORDS[0], "seed": seed, "num_inference_steps": 2} for seed in range(100)]
    lines, done = read_lines(write(tmp_path / "r.jsonl", *records)), []
    with AdapEditPipeline.from_pretrained().serve() as server:
        began = time.process_time()
        run_batch(
            server, lines, tmp_path / "out", callback=lambda r: done.append((time.process_time(), r.done))
        )
    half = (began + time.process_time()) / 2
    there = max(count for when, count in done if when <= half)
    print(f"{there} of 100 edits are on disk at half of {2 * (half - began):.0f} s")
    assert done[-1][1] == 100 and 40 <= there < 100
