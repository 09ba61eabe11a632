"""The command as a process: it says what it lacks, and drains at SIGTERM; SIGKILL is for `test_soak`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapedit.cli.main import run
from adapedit.http.store import Store
from tests.helpers.service import FIELDS


class Process:
    """`adapedit serve` with the tiny model. lines: of its log so far."""

    def __init__(self, folder: Path, data: Path, *flags: str) -> None:
        command = [sys.executable, "-c", "from adapedit.cli import main; main()", "serve"]
        command += ["--model", f"tiny={folder}", "--device", "cpu", "--data", str(data)]
        command += flags or ("--port", "0")
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(900):
            self.popen.kill()
            raise AssertionError(f"it is not ready: {self.lines}")
        port = next(line["port"] for line in self.lines if "port" in line)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def _read(self) -> None:
        for text in self.popen.stderr:
            if text.endswith("}\n"):  # the last one may be cut
                self.lines.append(json.loads(text))
                if self.lines[-1]["message"] == "ready":
                    self._ready.set()

    def end(self, number: int | None = None) -> int:
        """Its code, after a signal."""
        if number is not None:
            self.popen.send_signal(number)
        code = self.popen.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def process(*args) -> Iterator[Process]:
    made = Process(*args)
    try:
        yield made
    finally:
        made.client.close()
        made.popen.kill()
        made.popen.wait()


def test_a_terminated_server_drains(tiny_folder: Path, tmp_path: Path):
    with process(tiny_folder, tmp_path, "--port", "0", "--drain", "30", "--max-rows", "4") as server:
        fields = [{**FIELDS, "num_inference_steps": 100, "seed": seed} for seed in range(4)]
        ids = [server.client.post("/v1/edits", json=one).json()["id"] for one in fields]
        server.popen.send_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while (answer := server.client.post("/v1/edits", json=FIELDS)).status_code != 503:
            assert time.monotonic() < until
        assert answer.json()["error"]["code"] == "draining"
        assert server.client.get("/health/ready").json()["status"] == "draining"
        server.end()
    ended = [line for line in server.lines if line["message"] == "ended"]
    assert ended and all(line["reason"] == "completed" and line["seconds"] >= 0 for line in ended)
    assert "a red dog" not in json.dumps(server.lines)
    # What had not begun is left for the next.
    store = Store(tmp_path)
    assert {store.find(id).status for id in ids} <= {"completed", "queued"}
    store.close()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "no keys; give a file by --keys, or --insecure"),
        (["--colour", "3"], "colour"),
        (["--keys", "nowhere"], "check the path"),
        (["--settings", "nowhere"], "no settings file"),
        (["--port", "70000"], "port is '70000'"),
    ],
)
def test_what_is_wrong_is_one_line_and_two(flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adapedit.http.process.log_lines", lambda: None)
    assert run(["serve", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("adapedit: ") and error.count("\n") == 1


def test_a_model_that_is_none_ends_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adapedit.http.process.log_lines", lambda: None)
    assert run(["serve", "--port", "0", "--model", str(tmp_path / "no"), "--data", str(tmp_path)]) == 2
    assert "adapedit: model no: " in capsys.readouterr().err


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("adapedit.http.find_spec", lambda name: None if name == "uvicorn" else object())
    assert run(["serve"]) == 2
    assert (
        capsys.readouterr().err == 'adapedit: uvicorn is not installed; run: pip install "adapedit[serve]"\n'
    )


def test_a_key_is_made(capsys):
    assert run(["serve", "--make-key", "alice"]) == 0
    key, line = capsys.readouterr().out.splitlines()
    assert key.startswith("adapedit-") and line.startswith("alice ")
