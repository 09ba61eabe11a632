"""What was accepted outlives the process: taken up again, and ended once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapedit import AdapEditError
from adapedit.http.errors import ApiError
from adapedit.http.store import Store
from adapedit.result import OutputError
from tests.helpers.service import Running, serving, settings_for


def add(store: Store, key: str | None = None, files: dict[str, bytes] | None = None, **values) -> str:
    known = {
        "owner": "",
        "key": key,
        "digest": "digest",
        "model": "m",
        "method": "plain",
        "priority": 0,
        "deadline": None,
        "on_disconnect": "keep",
    }
    row = {**known, "fields": {"seed": 1}, "created": time.time(), **values}
    return store.add(row, files or {}).id


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "data")
    yield made
    made.close()


def test_an_edit_ends_once(store: Store):
    id = add(store)
    assert store.claim("other") is None
    assert store.claim("m").id == id and store.claim("m") is None
    assert store.end(id, "completed", size=3, steps=2, outcome={"words": []})
    assert not store.end(id, "failed", size=5) and not store.end(id, "cancelled")
    row = store.find(id)
    assert row is not None and (row.status, row.bytes, row.steps, row.attempts) == ("completed", 3 + 11, 2, 1)
    assert store.bytes == 14


def test_what_was_begun_waits_again_and_leavings_are_removed(tmp_path: Path):
    store = Store(tmp_path)
    begun, waiting, ended = add(store, files={"image": b"abc"}), add(store), add(store)
    assert store.claim("m").id == begun and store.end(ended, "completed")
    for id in (begun, "edit_of_nobody"):  # one was killed before its end was written down
        (store.results / id).mkdir()
        (store.results / id / "source.png").write_bytes(b"half")
    (store.inputs / "edit_of_nobody").mkdir()
    store._claim.close()  # as a process that was killed leaves it
    again = Store(tmp_path)
    rows = again.recover()
    assert [row.id for row in rows] == [begun, waiting]
    assert [row.attempts for row in rows] == [1, 0] and again.bytes == 3 + 3 * 11
    assert again.files(begun) == {"image": b"abc"}
    assert list(again.results.iterdir()) == [] and [path.name for path in again.inputs.iterdir()] == [begun]
    again.close()


def test_what_is_urgent_goes_first(store: Store):
    first, second, urgent = add(store), add(store, deadline=5.0), add(store, priority=1)
    assert [store.before(store.find(id)) for id in (first, second, urgent)] == [1, 2, 0]
    assert store.waiting("m") == 3 and store.waiting("other") == 0 and store.deadlines("m") == {second: 5.0}
    assert [store.claim("m").id for _ in range(3)] == [urgent, first, second]


def test_keys_are_an_owners_own_and_go_with_the_edit(store: Store):
    id = add(store, key="k")
    assert store.known("", "k", "digest").id == id
    assert store.known("other", "k", "digest") is None and store.known("", None, "digest") is None
    with pytest.raises(ApiError, match="used for another request"):
        store.known("", "k", "another")
    assert store.remove(id) and not store.remove(id)
    assert store.known("", "k", "another") is None


def test_edits_of_others_are_not_found(store: Store):
    id = add(store, owner="one")
    assert store.find(id, "one") and store.find(id) and store.find(id, "two") is None
    assert store.page("two", None, True, 10) == []


def test_what_is_accepted_is_on_the_disk_and_many_at_once_wait_together(
    service: Running, monkeypatch: pytest.MonkeyPatch
):
    store, synced = service.jobs.store, []

    def fsync(file: int) -> None:
        there = store._do("SELECT max(number) FROM edits")[0][0]
        time.sleep(0.2)
        synced.append(there)

    def one(seed: int) -> None:
        row = store.find(service.edit(seed=seed).json()["id"])
        assert row is not None and row.number <= synced[-1]  # it was there when a wait began that has ended

    monkeypatch.setattr("adapedit.http.store.os.fsync", fsync)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(70, 78)))
    assert len(synced) < 8
    before = len(synced)
    store.remove(service.edit(seed=78).json()["id"])
    assert len(synced) == before + 2


def test_results_expire(store: Store):
    old, running = add(store, files={"image": b"abc"}), add(store, priority=1)
    assert store.claim("m").id == running
    store.end(old, "completed")
    assert store.remove_expired(60) == 0
    assert store.remove_expired(-1) == 1
    assert store.find(old) is None and store.find(running) and store.bytes == 11
    assert not (store.inputs / old).exists()


def test_a_folder_serves_one_process(store: Store, tmp_path: Path):
    with pytest.raises(AdapEditError, match="in use by another server"):
        Store(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(AdapEditError, match="choose another folder"):
        Store(tmp_path / "file")


def test_a_server_goes_on_with_what_an_earlier_one_had_accepted(tiny_folder: Path, tmp_path: Path):
    settings = settings_for(tiny_folder, tmp_path, max_attempts=2, max_rows=8)
    with serving(settings) as running, running.held():
        ids = [running.edit(num_inference_steps=20, seed=seed).json()["id"] for seed in range(9)]
    store = Store(tmp_path)  # while none runs
    states = {id: store.find(id).status for id in ids}
    assert {"queued", "in_progress"} <= set(states.values())
    hopeless, gone = ids[-1], ids[-2]
    with store._lock:
        store._database.execute("UPDATE edits SET attempts = 2 WHERE id = ?", (hopeless,))
        store._database.execute("UPDATE edits SET model = 'gone' WHERE id = ?", (gone,))
    store.close()
    with serving(settings) as running:
        ended = {id: running.ended(id) for id in ids}
        assert {ended[id]["status"] for id in ids[:-2]} == {"completed"}
        assert (
            ended[hopeless]["error"]["code"] == "abandoned"
            and ended[gone]["error"]["code"] == "model_not_found"
        )


def test_a_disk_that_is_full_is_the_servers_fault(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(result, folder):
        raise OutputError(f"can't write to {folder} (No space left on device)")

    monkeypatch.setattr("adapedit.http.archive.save", full)
    with serving(settings_for(tiny_folder, tmp_path)) as running:
        found = running.ended(running.edit().json()["id"])
        assert found["error"]["code"] == "disk_full" and str(tmp_path) not in found["error"]["message"]
        assert running.client.get(f"/v1/edits/{found['id']}/content").status_code == 507


def test_whoever_would_not_wait_is_told_when_the_server_drains(tiny_folder: Path, tmp_path: Path):
    with serving(settings_for(tiny_folder, tmp_path, max_rows=4)) as running:
        asked = {"num_inference_steps": 20}
        with running.held():
            ids = {
                what: [running.edit(**asked, seed=seed, on_disconnect=what).json()["id"] for seed in range(4)]
                for what in ("keep", "cancel")
            }
        running.jobs.drain(20)
        states = {what: [running.client.get(f"/v1/edits/{id}").json() for id in ids[what]] for what in ids}
        assert {edit["status"] for edit in states["keep"]} == {"completed", "queued"}
        assert {edit["error"]["code"] for edit in states["cancel"]} == {"draining"}
