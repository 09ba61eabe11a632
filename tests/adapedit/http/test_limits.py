"""What a stranger may send is bounded before it is read, and nobody comes in without a key where there are some."""

from __future__ import annotations

import base64
import socket
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from adapedit import AdapEditError
from adapedit.http.errors import ApiError
from adapedit.http.limits import Keys, Rates
from tests.adapedit.http.test_edits import png
from tests.helpers.service import FIELDS, Running, serving, settings_for


def talk(service: Running, *sent: bytes, wait: float = 0.0, cut: bool = False) -> bytes:
    """What comes back for bytes as they are."""
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        # It may be answered, and given up, before the last.
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in sent:
                sock.sendall(part)
                time.sleep(wait)
        if cut:
            sock.shutdown(socket.SHUT_WR)
        found = b""
        while not found.endswith(b"}}") and (part := sock.recv(65536)):
            found += part
        return found


def head(length: object) -> bytes:
    lines = [
        "POST /v1/edits HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_that_says_it_is_too_long_is_not_read(service: Running):
    assert b" 413 " in talk(service, head(10**12)).split(b"\r\n")[0]
    response = service.edit(target_prompt="dog " * 2_500_000)
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_say_so_is_cut_off(service: Running):
    def parts():
        for _ in range(64):
            yield b" " * 65536

    response = service.client.post("/v1/edits", content=parts(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "5, 6", "0x10", "9" * 40])
def test_lengths_that_are_none(service: Running, length: str):
    assert b" 400 " in talk(service, head(length)) or b" 413 " in talk(service, head(length))


def test_uploads_that_stop_leave_nothing(service: Running):
    before = sorted(path.name for path in service.jobs.store.inputs.iterdir())
    assert talk(service, head(100), b'{"source', cut=True)[:12] in (b"", b"HTTP/1.1 400")
    assert talk(service, head(3), b'{"seed": 3}').startswith(b"HTTP/1.1 400")
    assert sorted(path.name for path in service.jobs.store.inputs.iterdir()) == before
    assert service.client.get("/health/ready").status_code == 200


def test_slow_bodies_and_headers_are_given_up(tiny_folder: Path, tmp_path: Path):
    with serving(settings_for(tiny_folder, tmp_path, body_timeout=1.2), ready=False) as running:
        start = time.monotonic()
        assert talk(running, head(100), *[b" "] * 4, wait=0.1).startswith(b"HTTP/1.1 408")
        assert talk(running, b"POST /v1/edits HTTP/1.1\r\n", wait=0.3) == b""
        assert time.monotonic() - start < 5


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it is a large picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    start = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status"),
    [(bomb(1000, 1000), 413), (bomb(60_000, 60_000), 400), (b"GIF89a", 400), (png()[:60], 400), (b"", 400)],
)
def test_bombs_and_broken_pictures_are_refused(service: Running, content: bytes, status: int):
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    response = service.edit(image=url)
    assert response.status_code == status and response.json()["error"]["param"] == "image", response.text


def test_keys_are_kept_as_hashes_and_told_apart(tmp_path: Path, tiny_folder: Path):
    key, line = Keys.make("alice")
    other, second = Keys.make("bob")
    file = tmp_path / "keys"
    file.write_text(f"# who may come\n{line}\n{second}  # the other\n")
    assert key not in line and Keys(file).owner(f"Bearer {key}") == "alice"
    with serving(settings_for(tiny_folder, tmp_path / "data", keys=file)) as running:
        assert (
            running.client.get("/health").status_code
            == running.client.get("/health/ready").status_code
            == 200
        )
        for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {key}"}):
            for path in ("/v1/edits", "/v1/models", "/metrics"):
                refused = running.client.get(path, headers=header)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        mine, others = ({"Authorization": f"Bearer {one}"} for one in (key, other))
        id = running.edit(headers=mine).json()["id"]
        for verb, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events")):
            assert running.client.request(verb, f"/v1/edits/{id}{path}", headers=others).status_code == 404
        assert running.client.get("/v1/edits", headers=others).json()["data"] == []
        assert running.client.get(f"/v1/edits/{id}", headers=mine).status_code == 200


@pytest.mark.parametrize("text", ["", "alice\n", "alice 12\n", "a b c\n", "a" * 80])
def test_files_of_keys_that_are_none(tmp_path: Path, text: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(AdapEditError, match="make-key|twice"):
        Keys(tmp_path / "keys")
    with pytest.raises(AdapEditError, match="check the path"):
        Keys(tmp_path / "nothing")
    with pytest.raises(AdapEditError, match="no name of a key"):
        Keys.make("a b")


def test_rates_fill_again():
    rates = Rates(60, 2)
    for caller in ("one", "one", "two"):
        rates.take(caller, now=0.0)
    with pytest.raises(ApiError) as raised:
        rates.take("one", now=0.5)
    assert raised.value.status == 429 and raised.value.headers["Retry-After"] == "1"
    rates.take("one", now=1.0)
    with pytest.raises(ApiError):
        rates.take("two", count=2, now=0.1)


def test_a_full_queue_and_a_full_disk_are_said(tiny_folder: Path, tmp_path: Path):
    more = {"max_pending": 2, "max_rows": 4, "quota": 2000}
    with serving(settings_for(tiny_folder, tmp_path, **more)) as running:
        with running.held():
            answers = [running.edit(seed=seed) for seed in range(8)]
        assert {answer.status_code for answer in answers} == {202, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full" and int(refused.headers["retry-after"]) >= 1
        for answer in answers:
            if answer.status_code == 202:
                running.client.delete(f"/v1/edits/{answer.json()['id']}")
        running.done()
        full = running.edit()
        assert full.status_code == 507 and full.json()["error"]["type"] == "quota_error"


def test_too_many_requests_of_one_are_told_to_wait(tiny_folder: Path, tmp_path: Path):
    with serving(settings_for(tiny_folder, tmp_path, rate=1, burst=2)) as running:
        answers = [running.edit(seed="wrong") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 400, 429]
        assert int(answers[-1].headers["retry-after"]) > 30


def test_before_the_model_is_there_requests_are_told_to_wait(tiny_folder: Path, tmp_path: Path):
    def slow(source):
        from adapedit.http.lane import load_source

        time.sleep(0.5)
        return load_source(source)

    with serving(settings_for(tiny_folder, tmp_path), slow, ready=False) as running:
        assert running.client.get("/health").json() == {"status": "loading", "models": {"tiny": "loading"}}
        assert running.client.get("/health/ready").status_code == 503
        answer = running.edit()
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert running.jobs.lanes["tiny"].loaded()
        assert httpx.get(f"{running.url}/health/ready").status_code == 200
        assert running.client.post("/v1/edits", json=FIELDS).status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "example.org:8000"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://localhost:3000", "Host": "127.0.0.1"}, 202),
    ],
)
def test_pages_of_others_in_a_browser_of_this_machine_are_refused(
    service: Running, headers: dict, status: int
):
    response = service.edit(headers=headers)
    assert response.status_code == status, response.text


def test_inversions_are_bounded_and_leave_nothing_outside(tiny_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    with serving(settings_for(tiny_folder, tmp_path / "data", max_steps=20)) as running:
        long = running.edit(image=url, inversion={"name": "null-text", "inner_steps": 1000})
        assert long.status_code == 422 and long.json()["error"]["param"] == "inversion"
        where = running.edit(image=url, inversion={"name": "null-text", "cache": str(tmp_path / "other")})
        assert where.status_code == 400 and not (tmp_path / "other").exists()
        found = running.done(image=url, inversion={"name": "null-text", "inner_steps": 2})
        assert found["request"]["inversion"] == {"name": "null-text", "inner_steps": 2}
    assert not (tmp_path / "cache").exists()
