"""Results on disk: enough to repeat the edit, whole or not there."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adapedit import AdapEditError, EditRequest
from adapedit.images import ImageInput
from adapedit.request import same_request
from adapedit.result import OutputError, OutputFolder, check_output, give_usual_modes, strict_json
from tests.helpers.edits import LONGER, SOURCE, grey_levels, request

FILES = ["edit.json", "maps.png", "source.png", "target.png"]


def names(folder: Path) -> list[str]:
    """All that is in a folder, hidden files among it."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def result(pipe):
    return pipe.edit_batch([request(steps=3)])[0]


@pytest.mark.parametrize(
    "asked",
    [
        request(SOURCE, LONGER, seed=3, lambda_tau=0.3, self_replace_steps=0.2),
        request(
            seed=5,
            method="prompt-to-prompt",
            equalizer=({"word": "sitting", "value": 3},),
            local_blend=("dog",),
        ),
        request(method="plain", steps=3),
    ],
)
def test_a_saved_edit_can_be_repeated(pipe, tmp_path, asked):
    first = pipe.edit_batch([asked])[0]
    first.save(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == FILES
    for place in (tmp_path / "deep" / "out", tmp_path / "deep" / "out" / "edit.json"):
        again = EditRequest.read(place)
        assert again == first.request
    repeated = pipe.edit_batch([again])[0]
    for name in ("source", "target"):
        on_disk = Image.open(tmp_path / "deep" / "out" / f"{name}.png")
        assert grey_levels(on_disk, getattr(repeated, f"{name}_image")) == 0


def test_the_description_has_what_was_found(result, tmp_path):
    description = json.loads((result.save(tmp_path / "out") / "edit.json").read_text())
    assert description["request"]["method"]["lambda_tau"] == 1.0 and description["request"]["height"] == 16
    assert [word["text"] for word in description["words"]] == SOURCE.replace("standing", "sitting").split()
    made_with = description["made_with"]
    assert (made_with["dtype"], made_with["device"], made_with["scheduler"]) == (
        "float32",
        "cpu",
        "DDIMScheduler",
    )
    assert made_with["torch"] == version("torch")
    assert set(description["timings"]) == {"edit", "decode", "total"}


def test_saving_again_replaces_what_an_edit_wrote_and_nothing_else(result, tmp_path):
    result.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "target.png").write_bytes(b"old")
    result.save(tmp_path)
    assert names(tmp_path) == sorted([*FILES, "notes.txt"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert grey_levels(Image.open(tmp_path / "target.png"), result.target_image) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("there", [False, True])
def test_what_goes_wrong_while_writing_leaves_things_as_they_were(
    result, tmp_path, monkeypatch, error, there
):
    folder = tmp_path / "deep" / "out"
    if there:
        result.save(folder)
        before = {name: (folder / name).read_bytes() for name in FILES}

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(type(result), "maps_sheet", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected) as raised:
        result.save(folder)
    if there:
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    else:
        assert names(tmp_path) == []
    if expected is OutputError:
        assert "(No space left on device); free some space or choose another" in str(raised.value)


def test_an_interruption_between_the_files_leaves_no_description(result, tmp_path, monkeypatch):
    result.save(tmp_path)
    replace, calls = os.replace, []

    def interrupt(*paths: object) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path)
    # Where edit.json stands the pictures beside it are its own; here they are of two edits.
    assert names(tmp_path) == FILES[1:]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"request": 3}', '{"request": {"source_prompt": "a dog"}}']
)
def test_what_is_no_description_is_refused(tmp_path, content):
    (tmp_path / "edit.json").write_text(content)
    with pytest.raises(AdapEditError) as error:
        EditRequest.read(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(AdapEditError, match="give a folder that an edit was saved in"):
        EditRequest.read(tmp_path / "nowhere")


def test_folders_that_can_not_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for bad in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out"), Path("/dev/null/out")):
        with pytest.raises(OutputError, match="can't write to .*; choose another output folder") as error:
            check_output(bad)
        assert "\n" not in str(error.value)
        with pytest.raises(OutputError), OutputFolder(bad):
            pytest.fail("the block was entered")
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_seen_before_any_work(tmp_path, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    with pytest.raises(OutputError, match="No space left on device.*free some space"):
        check_output(tmp_path / "out")


def test_checking_makes_nothing(tmp_path):
    check_output(tmp_path / "not" / "there" / "yet")
    check_output(tmp_path)
    assert names(tmp_path) == []


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True)
@pytest.mark.parametrize("there", [False, True])
def test_files_have_the_mode_that_the_umask_gives(result, tmp_path, umask, there):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    result.save(folder)
    with OutputFolder(folder) as part:
        (part / "deep").mkdir()
        save_file({"a": torch.zeros(1)}, part / "deep" / "private.safetensors")
    assert modes(folder) == {0o666 & ~umask} and len(names(folder)) == 5
    save_file({"a": torch.zeros(1)}, folder / "again.safetensors")
    give_usual_modes(folder)
    assert modes(folder) == {0o666 & ~umask} and len(names(folder)) == 6


def test_a_result_is_short_in_a_terminal_and_a_picture_in_a_notebook(result):
    assert repr(result) == (
        "EditResult('a red dog standing on the grass' to 'a red dog sitting on the grass', adapedit, seed 0, "
        "16 x 16 pixels)"
    )
    longer = replace(result, request=result.request.model_copy(update={"source_prompt": "dog " * 70}))
    assert len(repr(longer)) < 200 and "\n" not in repr(longer)
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert shown.format == "PNG" and shown.width > 2 * 256


def test_what_is_no_number_is_never_written(result, tmp_path):
    words = (replace(result.words[0], relation=float("nan")), *result.words[1:])
    with pytest.raises(AdapEditError, match="not finite.*use torch_dtype=torch.bfloat16 or float32") as error:
        replace(result, words=words).save(tmp_path / "out")
    assert names(tmp_path) == [] and "\n" not in str(error.value)
    for value in (float("inf"), {"a": [float("-inf")]}):
        with pytest.raises(AdapEditError):
            strict_json(value)
    assert json.loads(strict_json({"a": 1.5, "ü": None})) == {"a": 1.5, "ü": None}


def test_an_edit_of_a_sent_picture_can_be_repeated_from_its_folder(pipe, tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((40, 24), 60).convert("RGB").save(buffer, "JPEG")
    sent = {**request(steps=3).model_dump(mode="json"), "image": {"file": "../dog.jpg", "fit": "pad"}}
    asked = EditRequest.from_wire(sent, {"../dog.jpg": buffer.getvalue()})
    (result,) = pipe.edit_batch([asked])
    result.save(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "input.png").read_bytes() == buffer.getvalue()
    stored = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert stored["request"]["image"]["file"] == "input.png"
    assert stored["request"]["image"]["digest"] == ImageInput.of(Image.open(buffer)).digest
    assert same_request(stored, result.request)
    again = EditRequest.read(tmp_path / "out")
    assert grey_levels(pipe.edit_batch([again])[0].target_image, result.target_image) == 0


@pytest.mark.parametrize(
    ("target", "method", "said"),
    [
        (SOURCE, {"name": "adapedit"}, ["the two prompts say the same: there is nothing to change"]),
        (SOURCE, {"name": "prompt-to-prompt", "equalizer": [{"word": "red", "value": 2}]}, []),
        (
            "a (blue:1.3) dog standing on the grass",
            {"name": "plain"},
            ["'(blue:1.3)' in the target prompt is read"],
        ),
        (LONGER, {"name": "plain"}, []),
    ],
)
def test_slips_in_the_prompts_are_among_the_warnings(pipe, target, method, said, recwarn):
    asked = EditRequest.make(source_prompt=SOURCE, target_prompt=target, num_inference_steps=3, method=method)
    (result,) = pipe.edit_batch([asked])
    slips = [message for message in result.warnings if "prompt" in message]
    assert len(slips) == len(said) and all(part in found for part, found in zip(said, slips, strict=True))
    assert len([one for one in recwarn if any(slip in str(one.message) for slip in slips)]) == len(said)
