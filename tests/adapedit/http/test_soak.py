"""Edits that are aborted, that fail, and a server that is killed: each ends once, and the others are what they are."""

from __future__ import annotations

import io
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest
from tests.adapedit.http.test_process import Process
from tests.helpers.service import FIELDS

ABORTED, FAILING = 0.10, 0.05
PATIENCE = 600.0
"""Seconds for any one thing: a busy machine takes a minute for the server's start."""
METHODS = ("adapedit", "prompt-to-prompt", "masactrl", "plain")


def wanted(place: int, random_: random.Random) -> tuple[dict[str, Any], str]:
    """Fields of an edit, and how it shall end: of those that are aborted some end before."""
    fields = {
        **FIELDS,
        "seed": place,
        "num_inference_steps": random_.randint(2, 8),
        "method": METHODS[place % 4],
    }
    chance = random_.random()
    if chance < FAILING:  # it is accepted, and fails when it is prepared
        return {**fields, "method": {"name": "adapedit", "local_blend": ["zebra"]}}, "failed"
    return fields, "cancelled" if chance < FAILING + ABORTED else "completed"


class Soak:
    """A server that is killed now and then, and those who ask it."""

    def __init__(self, folder: Path, data: Path, edits: int, kills: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.folder, self.data, self.kills = folder, data, kills
        random_ = random.Random(3)
        self.asked = [wanted(place, random_) for place in range(edits)]
        self.ids: dict[int, str] = {}
        self.lines: list[dict] = []
        self.told: list[BaseException] = []

    def start(self) -> Process:
        more = (
            "--port",
            str(self.port),
            "--max-attempts",
            "50",
            "--burst",
            "100000",
            "--rate",
            "1000000",
        )
        return Process(self.folder, self.data, *more)

    def call(self, verb: str, path: str, **more: Any) -> httpx.Response:
        """A request that is made again until it is answered by a server that takes it."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.client.request(verb, path, **more)
                if answer.status_code not in (429, 503):
                    return answer
            except httpx.TransportError:
                pass
            assert time.monotonic() < until
            time.sleep(0.05)

    def ask(self, places: range) -> None:
        """Submit, and abort what shall be aborted; each twice, as somebody does who lost the answer."""
        try:
            for place in places:
                fields, end = self.asked[place]
                key = {"Idempotency-Key": f"edit-{place}"}
                twice = [
                    self.call("POST", "/v1/edits", json=fields, headers=key).json()["id"] for _ in range(2)
                ]
                assert twice[0] == twice[1]
                self.ids[place] = twice[0]
                if end == "cancelled":
                    time.sleep(random.random() * 0.2)
                    self.call("DELETE", f"/v1/edits/{twice[0]}")
        except BaseException as error:
            self.told.append(error)

    def run(self) -> dict[int, dict[str, Any]]:
        """All edits as they ended, by place; None of those that were aborted."""
        server = self.server = self.start()
        step = 4
        threads = [
            threading.Thread(target=self.ask, args=(range(k, len(self.asked), step),)) for k in range(step)
        ]
        for thread in threads:
            thread.start()
        for kill in range(1, self.kills + 1):
            until = time.monotonic() + PATIENCE
            while len(self.ids) < kill * len(self.asked) // (self.kills + 1) and not self.told:
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(0.3 * random.random())
            server.end(signal.SIGKILL)
            self.lines += server.lines
            server.client.close()
            server = self.server = self.start()
        for thread in threads:
            thread.join()
        assert not self.told, self.told
        found = {}
        for place, (_, end) in enumerate(self.asked):
            if end == "cancelled":
                assert server.client.get(f"/v1/edits/{self.ids[place]}").status_code == 404
                continue
            until = time.monotonic() + PATIENCE
            while (edit := server.client.get(f"/v1/edits/{self.ids[place]}").json())["ended_at"] is None:
                assert time.monotonic() < until
                time.sleep(0.02)
            found[place] = edit
        self.pictures = {
            place: server.client.get(f"/v1/edits/{edit['id']}/content").content
            for place, edit in found.items()
            if edit["status"] == "completed"
        }
        assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        self.lines += server.lines
        server.client.close()
        return found


@pytest.mark.parametrize(
    ("edits", "kills"), [(24, 1), pytest.param(500, 10, marks=pytest.mark.service)], ids=["small", "whole"]
)
def test_each_edit_ends_once_and_as_if_nothing_had_happened(
    tiny_folder: Path, tmp_path: Path, pipe: AdapEditPipeline, edits: int, kills: int
):
    soak = Soak(tiny_folder, tmp_path / "data", edits, kills)
    try:
        found = soak.run()
    finally:
        soak.server.popen.kill()
    assert {place: edit["status"] for place, edit in found.items()} == {
        place: end for place, (_, end) in enumerate(soak.asked) if end != "cancelled"
    }
    ended = Counter(line["edit"] for line in soak.lines if line["message"] == "ended")
    assert set(ended.values()) <= {1}
    left = {path.name for folder in ("inputs", "results") for path in (tmp_path / "data" / folder).iterdir()}
    assert left == {edit["id"] for edit in found.values() if edit["status"] == "completed"}
    for place, content in soak.pictures.items():
        (alone,) = pipe.edit_batch([EditRequest.make(**soak.asked[place][0])])
        made = np.asarray(Image.open(io.BytesIO(content)), np.int16)
        assert np.abs(made - np.asarray(alone.target_image, np.int16)).max() <= 1, soak.asked[place]
