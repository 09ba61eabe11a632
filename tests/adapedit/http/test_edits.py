"""Native routes over loopback: an edit's whole life as whoever asks for it sees it."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest
from tests.helpers.service import FIELDS, Running


def png(side: int = 24, colour: tuple[int, int, int] = (200, 80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def events(text: str) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_an_edit_is_the_one_that_python_makes(service: Running, pipe: AdapEditPipeline):
    found = service.done(method={"name": "adapedit", "lambda_tau": 0.5}, seed=3)
    request = EditRequest.make(**FIELDS, method={"name": "adapedit", "lambda_tau": 0.5}, seed=3)
    (wanted,) = pipe.edit_batch([request])
    for name in ("source", "target"):
        content = service.client.get(f"/v1/edits/{found['id']}/content", params={"variant": name})
        assert content.headers["content-type"] == "image/png"
        made = np.asarray(Image.open(io.BytesIO(content.content)), np.int16)
        assert np.abs(made - np.asarray(getattr(wanted, f"{name}_image"), np.int16)).max() <= 1
    assert [word["text"] for word in found["words"]] == ["a", "blue", "dog"]
    assert [word["word_steps"] for word in found["words"]] == pytest.approx(
        [w.word_steps for w in wanted.words]
    )
    assert found["progress"] == {"step": 2, "steps": 2}
    assert set(found["timings"]) == {"queue", "prepare", "run", "step", "decode", "total"}
    assert found["request"]["method"] == {"name": "adapedit", "lambda_tau": 0.5}


def test_every_variant_is_there(service: Running):
    found = service.done(method="adapedit")
    assert found["variants"] == ["source", "target", "maps", "spatial-map", "arrays", "edit"]
    for name in found["variants"]:
        content = service.client.get(f"/v1/edits/{found['id']}/content", params={"variant": name})
        assert content.status_code == 200 and content.content, name
    plain = service.done(method="plain")
    missing = service.client.get(f"/v1/edits/{plain['id']}/content?variant=spatial-map")
    assert missing.status_code == 404 and "it has: source, target, maps" in missing.json()["error"]["message"]


@pytest.mark.parametrize("way", ["form", "json"])
def test_a_picture_comes_as_a_file_or_in_json(service: Running, way: str):
    fields = {**FIELDS, "method": "sdedit"}
    if way == "form":
        form = {"data": {"request": json.dumps({**fields, "image": {"file": "x", "fit": "pad"}})}}
        response = service.client.post("/v1/edits", **form, files={"image": ("../../etc/passwd", png())})
    else:
        url = "data:image/png;base64," + base64.b64encode(png()).decode()
        response = service.edit(method="sdedit", image={"file": url, "fit": "pad"})
    assert response.status_code == 202, response.text
    found = service.ended(response.json()["id"])
    assert found["status"] == "completed" and found["request"]["image"] == {"file": "image", "fit": "pad"}


def test_a_mask_comes_beside_its_picture_and_what_it_keeps_is_kept(service: Running):
    mask = np.zeros((24, 24), np.uint8)
    mask[8:] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    form = {"data": {"request": json.dumps({**FIELDS, "image": "image", "mask": "mask"})}}
    sent = {"image": ("a.png", png()), "mask": ("b.png", buffer.getvalue())}
    response = service.client.post("/v1/edits", **form, files=sent)
    assert response.status_code == 202, response.text
    found = service.ended(response.json()["id"])
    assert found["status"] == "completed", found
    for variant in ("target", "maps", "spatial-map"):
        content = service.client.get(f"/v1/edits/{found['id']}/content?variant={variant}")
        assert content.status_code == 200, content.text
        if variant == "target":
            pixels = np.asarray(Image.open(io.BytesIO(content.content)))
            assert pixels.shape == (24, 24, 3) and (pixels[:8] == (200, 80, 60)).all()


def test_deleting_removes_every_trace(service: Running):
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    found = service.done(method="sdedit", image=url)
    folders = [service.jobs.store.inputs / found["id"], service.jobs.store.results / found["id"]]
    held = service.jobs.store.bytes
    assert all(folder.is_dir() for folder in folders)
    assert service.client.delete(f"/v1/edits/{found['id']}").json()["deleted"] is True
    assert not any(folder.exists() for folder in folders)
    assert service.jobs.store.bytes < held
    assert service.client.get(f"/v1/edits/{found['id']}").status_code == 404


def test_deleting_stops_one_that_runs(service: Running):
    id = service.edit(num_inference_steps=100, seed=1).json()["id"]
    other = service.edit(seed=2).json()["id"]
    assert service.client.delete(f"/v1/edits/{id}").status_code == 200
    assert service.ended(other)["status"] == "completed"
    assert not (service.jobs.store.results / id).exists()


def test_events_tell_steps_and_the_end(service: Running):
    id = service.edit(num_inference_steps=5, seed=11).json()["id"]
    told = events(service.client.get(f"/v1/edits/{id}/events").text)
    assert told[-1][0] == "completed" and told[-1][1]["status"] == "completed"
    steps = [data["step"] for name, data in told if name == "step"]
    assert steps == sorted(steps)
    again = events(service.client.get(f"/v1/edits/{id}/events").text)
    assert [name for name, _ in again] == ["completed"]


def test_previews_are_small_pictures(service: Running):
    id = service.edit(num_inference_steps=40, preview_every=10, seed=13).json()["id"]
    told = events(service.client.get(f"/v1/edits/{id}/events").text)
    shown = {data["step"]: data["image"] for name, data in told if name == "preview"}
    assert set(shown) <= {10, 20, 30, 40} and len(shown) >= 2
    assert Image.open(io.BytesIO(base64.b64decode(shown[max(shown)]))).format == "PNG"


@pytest.mark.parametrize(("what", "ends"), [("cancel", "cancelled"), ("keep", "completed")])
def test_a_listener_that_goes_away_ends_what_asked_for_that(service: Running, what: str, ends: str):
    id = service.edit(num_inference_steps=50, on_disconnect=what, seed=12).json()["id"]
    with service.client.stream("GET", f"/v1/edits/{id}/events") as response:
        next(response.iter_lines())
    assert service.ended(id)["status"] == ends


def test_the_same_key_and_body_make_one_edit(service: Running):
    key = {"Idempotency-Key": "one"}
    first = service.edit(headers=key, seed=5)
    again = service.edit(headers=key, seed=5)
    assert first.status_code == 202 and again.status_code == 200
    assert first.json()["id"] == again.json()["id"]
    other = service.edit(headers=key, seed=6)
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_key_reused"
    service.ended(first.json()["id"])
    service.client.delete(f"/v1/edits/{first.json()['id']}")
    assert service.edit(headers=key, seed=6).status_code == 202


def test_edits_are_listed_by_page_and_filter(service: Running):
    for earlier in service.client.get("/v1/edits", params={"method": "masactrl"}).json()["data"]:
        service.client.delete(f"/v1/edits/{earlier['id']}")
    made = [service.done(method="masactrl", seed=seed)["id"] for seed in range(3)]
    like: dict[str, Any] = {"method": "masactrl", "order": "asc", "limit": 2}
    page = service.client.get("/v1/edits", params=like).json()
    assert [edit["id"] for edit in page["data"]] == made[:2] and page["has_more"]
    rest = service.client.get("/v1/edits", params={**like, "after": page["last_id"]}).json()
    assert [edit["id"] for edit in rest["data"]] == made[2:] and not rest["has_more"]
    assert service.client.get("/v1/edits", params={**like, "status": "failed"}).json()["data"] == []
    newest = service.client.get("/v1/edits", params={"method": "masactrl"}).json()["data"]
    assert [edit["id"] for edit in newest] == made[::-1]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"seed": "3"}, 400, "seed"),
        ({"colour": "red"}, 400, None),
        ({"source_prompt": ["a dog"]}, 400, "source_prompt"),
        ({"source_prompt": " "}, 400, "source_prompt"),
        ({"method": "magic"}, 400, "method"),
        ({"method": "instruct-pix2pix"}, 400, "method"),
        ({"height": 17}, 400, "height"),
        ({"image": "/etc/passwd"}, 400, "image"),
        ({"image": {"file": "data:image/png;base64,????"}}, 400, "image"),
        ({"target_prompt": "dog " * 40}, 400, "target_prompt"),
        ({"num_inference_steps": 101}, 422, "num_inference_steps"),
        ({"target_prompt": "dog " * 100}, 422, "target_prompt"),
        ({"height": 4096, "width": 4096}, 422, "height"),
        ({"model": "other"}, 404, "model"),
        ({"priority": 101}, 400, "priority"),
        ({"deadline": 0}, 400, "deadline"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_field(service: Running, fields, status, param):
    response = service.edit(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert "\n" not in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_a_passed_deadline_is_told(service: Running):
    with service.held():
        blockers = [service.edit(seed=seed).json()["id"] for seed in range(20, 40)]
        id = service.edit(deadline=0.01, priority=-1).json()["id"]
        found = service.ended(id)
    assert found["status"] == "failed" and found["error"]["code"] == "deadline_exceeded"
    content = service.client.get(f"/v1/edits/{id}/content")
    assert content.status_code == 504 and content.json()["error"]["type"] == "deadline_error"
    for blocker in blockers:
        service.client.delete(f"/v1/edits/{blocker}")


def test_more_urgent_edits_go_first(service: Running):
    with service.held():
        blockers = [service.edit(seed=seed).json()["id"] for seed in range(40, 60)]
        service.full()
        late, early = (service.edit(priority=priority).json()["id"] for priority in (0, 50))
        positions = [service.client.get(f"/v1/edits/{id}").json()["position"] for id in (early, late)]
        pending = service.client.get(f"/v1/edits/{late}/content")
    assert positions[0] == 0 and positions[1] >= 1
    assert pending.status_code == 409 and pending.headers["retry-after"] == "1"
    for id in (*blockers, late, early):
        service.client.delete(f"/v1/edits/{id}")


@pytest.mark.parametrize(
    "id", ["edit_1", "..%2f..%2fetc%2fpasswd", "edit_" + "g" * 32, "%00", "edit_" + "0" * 32]
)
def test_ids_that_are_none_are_not_found(service: Running, id: str):
    for verb, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events")):
        response = service.client.request(verb, f"/v1/edits/{id}{path}")
        assert response.status_code == 404 and response.json()["error"]["code"] == "not_found"


def test_other_methods_and_paths(service: Running):
    response = service.client.put("/v1/edits")
    assert response.status_code == 405 and response.headers["allow"] == "GET, POST"
    assert service.client.get("/v1/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"seed": NaN}', "application/json", 400),
        (b'{"source_prompt": "\\ud800"}', "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b'{"method": ' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 400),
        (b'{"source_prompt": "\xed\xa0\x80"}', "application/json", 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"no form", "multipart/form-data; boundary=x", 400),
        (b"no form", "multipart/form-data", 400),
    ],
)
def test_bodies_that_are_none(service: Running, content: bytes, kind: str, status: int):
    response = service.client.post("/v1/edits", content=content, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
