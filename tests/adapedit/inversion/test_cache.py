"""Null-text inversions on disk: found again by content, and never trusted where the file is not what was written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapedit import AdapEditPipeline, EditRequest
from adapedit.inversion import make_inversion_settings
from adapedit.inversion.base import InversionError
from adapedit.inversion.cache import CacheWarning, InversionCache, default_folder, weights_digest
from adapedit_engine.runners.base import Capabilities
from tests.helpers.pictures import SOURCE, TARGET, before, far, picture
from tests.helpers.tiny_model import save_tiny_model

STEPS = 3


@pytest.fixture
def pipe(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    torch.set_num_threads(1)
    return AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def request(cache: Path | str | None, **changes: Any) -> EditRequest:
    settings = make_inversion_settings(
        "null-text", inner_steps=2, learning_rate=0.05, cache=None if cache is None else str(cache)
    )
    fields: dict[str, Any] = {
        "source_prompt": SOURCE,
        "target_prompt": TARGET,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "method": {"name": "plain"},
        "image": picture(),
        "inversion": settings,
    }
    return EditRequest.make(**{**fields, **changes})


def made(pipe: AdapEditPipeline, asked: EditRequest) -> tuple[bool, Any]:
    """Whether the inversion was made, and the result."""
    seen: list[int] = []
    result = pipe.edit_batch([asked], callback=lambda done, total: seen.append(done))[0]
    return len(seen) > STEPS, result


def file_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_finished_inversion_is_found_again(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first, expected = made(pipe, request(folder))
    again, found = made(pipe, request(folder))
    assert first and not again
    assert far(expected.target_image, found.target_image) == 0
    assert file_in(folder).suffix == ".safetensors"
    # Another target, method or seed needs no other inversion.
    assert not made(pipe, request(folder, target_prompt=SOURCE, seed=9, method={"name": "masactrl"}))[0]
    assert "cache" not in expected.request.model_dump()["inversion"]


@pytest.mark.parametrize(
    "changes",
    [
        {"image": picture(1)},
        {"source_prompt": TARGET},
        {"guidance_scale": 2.0},
        {"num_inference_steps": STEPS + 1},
        {"inversion": {"name": "null-text", "inner_steps": 3}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_inversion_is_not_found(
    changes: dict[str, Any], pipe: AdapEditPipeline, tmp_path: Path
) -> None:
    made(pipe, request(tmp_path))
    if "inversion" in changes:
        changes = {"inversion": {**changes["inversion"], "cache": str(tmp_path)}}
    made(pipe, request(tmp_path, **changes))
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_do_not_tell_of_their_change_have_another_digest() -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            layer = torch.nn.Conv2d(4, 30, 3)
            before = weights_digest(layer)
            assert weights_digest(layer) == before
            layer.weight.data += 0.1  # as adapters are merged
            assert weights_digest(layer) != before


def test_other_weights_have_other_inversions(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    runner: Any = pipe.model.runner
    unet = runner.controlled.unet
    before = weights_digest(unet)
    assert weights_digest(unet) == before
    made(pipe, request(tmp_path))
    with torch.no_grad():
        next(unet.parameters()).add_(1e-3)
    assert weights_digest(unet) != before
    assert made(pipe, request(tmp_path))[0] and len(list(tmp_path.iterdir())) == 2


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil_text(path: Path) -> None:
    path.write_text("nothing of the kind")


def spoil_numbers(path: Path) -> None:
    tensors = load_file(path)
    tensors["unconditional"][0] = torch.nan
    save_file(tensors, path, metadata={"key": f"1-{path.stem}"})


def spoil_shape(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "latents": torch.zeros(1)}, path, metadata={"key": f"1-{path.stem}"})


def spoil_key(path: Path) -> None:
    save_file(load_file(path), path, metadata={"key": "of another"})


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_text, spoil_numbers, spoil_shape, spoil_key])
def test_a_spoilt_file_is_made_again_with_a_warning(
    spoil: Any, pipe: AdapEditPipeline, tmp_path: Path
) -> None:
    _, expected = made(pipe, request(tmp_path))
    spoil(file_in(tmp_path))
    with pytest.warns(CacheWarning, match="made again"):
        again, found = made(pipe, request(tmp_path))
    assert again and far(expected.target_image, found.target_image) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        assert not made(pipe, request(tmp_path))[0]


def test_a_cache_that_cant_be_written_spoils_no_edit(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(CacheWarning, match="can't be kept"):
        made(pipe, request(tmp_path / "file" / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_cache_and_the_users_own(
    pipe: AdapEditPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made(pipe, request("off"))
    assert not list(tmp_path.iterdir())
    made(pipe, request(None))
    assert default_folder().is_relative_to(tmp_path) and file_in(default_folder()).is_file()


def test_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapedit.inversion.cache.os.fsync", full)
    with pytest.warns(CacheWarning, match="No space left"):
        InversionCache(tmp_path).keep("ab", {"x": torch.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_runners_without_gradients_are_refused(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, inversion = before(pipe, request("off")), request("off").inversion
    monkeypatch.setattr(type(pipe.model.runner), "capabilities", Capabilities(gradients=False))
    assert inversion is not None
    with pytest.raises(InversionError, match="needs gradients, which a bundle does not have; use 'direct'"):
        inversion.check(context, pipe.model)
