"""The client: the same request in, the same result out, as from the pipeline itself."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.cli.main import run
from adapedit.client import AsyncClient, Client, ServerError
from adapedit.http.limits import Keys
from tests.helpers.service import FIELDS, Running, serving, settings_for


def request(**fields) -> EditRequest:
    return EditRequest.make(**{**FIELDS, "method": {"name": "adapedit", "lambda_tau": 0.5}, **fields})


def same(one, other) -> bool:
    pictures = all(
        np.abs(np.asarray(getattr(one, name), np.int16) - np.asarray(getattr(other, name), np.int16)).max()
        <= 1
        for name in ("source_image", "target_image")
    )
    maps = all(
        np.allclose(getattr(one, name), getattr(other, name), atol=1e-4)
        for name in ("target_maps", "spatial_map")
    )
    return pictures and maps


def test_an_edit_is_the_one_of_the_pipeline(service: Running, pipe: AdapEditPipeline, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    asked = request(seed=3, num_inference_steps=5)
    with Client(service.url) as client:
        found = client.edit(asked, progress=lambda *steps: seen.append(steps))
        assert [model["id"] for model in client.models()] == ["tiny"]
    (wanted,) = pipe.edit_batch([asked])
    assert same(found, wanted) and found.request == wanted.request
    assert [word.text for word in found.words] == ["a", "blue", "dog"]
    assert found.alignment.target_words == wanted.alignment.target_words
    assert bool((found.alignment.token_map == wanted.alignment.token_map).all())
    assert seen == sorted(seen) and (not seen or seen[-1][1] == 5)
    found.save(tmp_path)
    assert EditRequest.read(tmp_path) == found.request
    assert service.client.get("/v1/edits", params={"model": "tiny", "limit": 1}).status_code == 200


def test_a_picture_goes_along_and_its_reconstruction_comes_back(service: Running, pipe: AdapEditPipeline):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (200, 80, 60)).save(buffer, "PNG")
    asked = request(image=Image.open(buffer), inversion="ddim", negative_prompt="a cat")
    with Client(service.url) as client:
        found = client.edit(asked)
    (wanted,) = pipe.edit_batch([asked])
    assert same(found, wanted) and found.image is not None
    assert found.reconstruction_psnr == pytest.approx(wanted.reconstruction_psnr, abs=0.1)
    assert found.to_dict()["input"] == wanted.to_dict()["input"]


def test_several_at_once_by_asyncio(service: Running):
    async def made():
        async with AsyncClient(service.url) as client:
            results = await asyncio.gather(*(client.edit(request(seed=seed)) for seed in range(4)))
            id = await client.submit(request(seed=9), key="mine", priority=3)
            assert id == await client.submit(request(seed=9), key="mine", priority=3)
            await client.result(id, request(seed=9))
            status = await client.status(id)
            await client.delete(id)
            models = await client.models()
            return results, status, models

    results, status, models = asyncio.run(made())
    assert len({result.target_image.tobytes() for result in results}) == 4
    assert status["status"] == "completed" and status["priority"] == 3 and models[0]["id"] == "tiny"


def test_what_the_server_says_is_raised_with_its_code(service: Running):
    with Client(service.url, patience=0.1) as client:
        with pytest.raises(ServerError, match="at most 100 are run here") as raised:
            client.edit(request(num_inference_steps=150))
        assert (raised.value.status, raised.value.param) == (422, "num_inference_steps")
        with pytest.raises(ServerError, match="no edit of this id"):
            client.status("edit_1")
        with pytest.raises(AdapEditError, match="make a request with EditRequest.make"):
            client.edit({"source_prompt": "a"})
    with pytest.raises(ServerError, match="http://HOST:PORT"):
        Client("localhost")
    with (
        Client("http://127.0.0.1:9", patience=0.0) as client,
        pytest.raises(ServerError, match="does not answer"),
    ):
        client.models()


def test_a_key_comes_from_the_environment_or_by_hand(tiny_folder: Path, tmp_path: Path, monkeypatch):
    key, line = Keys.make("alice")
    (tmp_path / "keys").write_text(line)
    with serving(
        settings_for(tiny_folder, tmp_path / "data", keys=tmp_path / "keys"), ready=False
    ) as running:
        with Client(running.url) as client, pytest.raises(ServerError, match="no key was given"):
            client.models()
        monkeypatch.setenv("ADAPEDIT_KEY", key)
        with Client(running.url) as client:
            assert client.edit(request())  # waits until the model is there


def test_a_server_that_is_killed_and_comes_again_loses_nothing(tiny_folder: Path, tmp_path: Path):
    asked = request(num_inference_steps=30)
    found = []
    with serving(settings_for(tiny_folder, tmp_path)) as first:
        port = int(first.url.rpartition(":")[2])
        client = Client(first.url)
        thread = threading.Thread(target=lambda: found.append(client.edit(asked)), daemon=True)
        thread.start()
        until = time.monotonic() + 10
        while not first.client.get("/v1/edits").json()["data"]:
            assert time.monotonic() < until
    with serving(settings_for(tiny_folder, tmp_path, port=port)):
        thread.join(30)
    client.close()
    assert found and found[0].request.num_inference_steps == 30


def test_a_stream_that_is_cut_is_asked_for_again_however_long_it_was():
    asked: list[httpx.Request] = []

    class Cut(httpx.AsyncByteStream):
        async def __aiter__(self):
            for _ in range(3):
                await asyncio.sleep(0.1)
                yield b": still here\n\n"
            raise httpx.ReadError("cut")

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        again = {"Retry-After": "Mon, 30 Nov 2026 19:00:00 GMT"}  # a proxy's, as a date
        return [
            httpx.Response(503, headers=again),
            httpx.Response(200, stream=Cut()),
            httpx.Response(200, text="data: 1\n\n"),
        ][len(asked) - 1]

    async def told() -> list[str]:
        lines: list[str] = []
        async with AsyncClient("http://127.0.0.1:9", patience=0.2) as client:
            client._http = httpx.AsyncClient(base_url=client._url, transport=httpx.MockTransport(answer))
            await client._call("GET", "/v1/edits/edit_1/events", lines.append)
        return lines

    assert "data: 1" in asyncio.run(told()) and len(asked) == 3


def test_the_command_edits_on_a_server(service: Running, tmp_path: Path, capsys):
    out = tmp_path / "out"
    command = ["edit", "a red dog", "a blue dog", "--steps", "2", "--out", str(out)]
    assert run([*command, "--server", service.url]) == 0
    assert {path.name for path in out.iterdir()} == {"source.png", "target.png", "maps.png", "edit.json"}
    assert "blue" in capsys.readouterr().out
    assert run([*command, "--server", service.url, "--runner", "pytorch"]) == 2
    assert "the server has its own; leave --runner out" in capsys.readouterr().err
    assert run([*command, "--server", service.url, "--model", "other"]) == 2
    assert "there is no model 'other' here; use one of: tiny" in capsys.readouterr().err
    assert httpx.get(f"{service.url}/health").status_code == 200
