"""A user's mask: what it keeps is kept to the bit, what it frees is edited, and what is no mask is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.cli.main import run
from adapedit.images import Fit, MaskInput, fit_boxes, fit_picture
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request
from tests.helpers.methods import plan_of

METHODS = ("adapedit", "prompt-to-prompt", "masactrl", "sdedit", "plain")
SIDE = 16
LEFT = np.zeros((SIDE, SIDE), np.uint8)
LEFT[:, : SIDE // 2] = 255
WHITE = np.full((SIDE, SIDE), 255, np.uint8)


def edited(pipe: AdapEditPipeline, **options: Any) -> Any:
    return pipe(SOURCE, TARGET, **{"num_inference_steps": 4, "seed": 2, **options})


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with a gradient over it: no pixel is its neighbour's."""
    drawn = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    slope = np.linspace(0, 180, width)[None, :, None]
    return Image.fromarray((drawn + slope).astype(np.uint8))


def ellipse(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / (width / 5)) ** 2 + ((y - height / 2) / (height / 5)) ** 2 < 1
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


# What a mask does


@pytest.mark.parametrize("method", METHODS)
def test_what_is_black_is_the_source_to_the_bit(pipe, method):
    result, free = edited(pipe, method=method, mask=LEFT), edited(pipe, method=method)
    source, target = pixels(result.source_image), pixels(result.target_image)
    assert np.array_equal(source[:, SIDE // 2 :], target[:, SIDE // 2 :])
    assert np.abs(source - target)[:, : SIDE // 2].max() > 1
    assert grey_levels(result.source_image, free.source_image) == 0
    assert np.abs(pixels(free.target_image) - pixels(free.source_image))[:, SIDE // 2 :].max() > 1


@pytest.mark.parametrize("method", METHODS)
def test_all_white_is_as_good_as_none(pipe, method):
    free, masked = edited(pipe, method=method), edited(pipe, method=method, mask=WHITE)
    assert grey_levels(free.target_image, masked.target_image) <= 1
    assert masked.edited_image.size == masked.target_image.size == free.target_image.size


@pytest.mark.parametrize(
    "knobs", [{}, {"two_pass": True}, {"dps": False}, {"two_pass": True, "observed_prompts": "both"}]
)
def test_s_is_nothing_where_the_mask_is_black(pipe, knobs):
    spatial = edited(pipe, mask=LEFT, **knobs).spatial_map
    assert spatial[:, spatial.shape[1] // 2 :].max() == 0 < spatial.max()


def test_a_mask_and_a_local_blend_act_together(pipe):
    """The blend's places, cut by the mask: neither alone."""
    blended = {"local_blend": "dog", "blend_threshold": 0.9, "blend_grow": 0, "blend_start": 0.0}
    plan = plan_of(pipe, request(**blended).model_copy(update={"mask": MaskInput.of(LEFT)}))
    assert plan.local_blend is not None and plan.local_blend.mask is not None
    assert plan.local_blend.token_weights[1].any() and plan.local_blend.threshold[1] == pytest.approx(0.9)
    pictures = [
        edited(pipe, **more).target_image for more in ({"mask": LEFT}, {**blended, "mask": LEFT}, blended)
    ]
    assert all(grey_levels(pictures[1], other) > 0 for other in (pictures[0], pictures[2]))


def test_grey_is_a_mixture_at_last_and_free_to_change(pipe):
    grey = np.where(LEFT == 255, 128, 0).astype(np.uint8)
    whole, half = edited(pipe, mask=LEFT), edited(pipe, mask=grey)
    assert grey_levels(whole.edited_image, half.edited_image) == 0
    source, white, mixed = (pixels(one) for one in (half.source_image, whole.target_image, half.target_image))
    assert np.abs(mixed - (source + (white - source) * 128 / 255)).max() <= 1


def test_edits_with_and_without_a_mask_share_a_batch_and_a_source(pipe):
    plain = request(steps=4, seed=2)
    masked = plain.model_copy(update={"mask": MaskInput.of(LEFT)})
    requests = [plain, masked, request(method="masactrl", seed=5, steps=3)]
    for asked, got in zip(requests, pipe.edit_batch(requests), strict=True):
        (alone,) = pipe.edit_batch([asked])
        assert grey_levels(got.target_image, alone.target_image) <= 1
    rows: list[int] = []
    with pipe.serve() as server:
        for finished in server.stream([plain, masked]):
            assert finished.result is not None
            rows.append(
                grey_levels(finished.result.target_image, pipe.edit_batch([finished.request])[0].target_image)
            )
    assert max(rows) <= 1


# A real picture with a mask


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(50, 30), (23, 41), (16, 16), (8, 9)])
def test_a_real_picture_comes_back_at_its_own_size_with_all_that_is_black_untouched(pipe, fit, size):
    picture, mask = photo(*size), ellipse(*size)
    result = edited(pipe, image=picture, mask=mask, fit=fit, num_inference_steps=2)
    assert result.target_image.size == size and result.edited_image.size == (SIDE, SIDE)
    black = np.asarray(mask) == 0
    before, after = pixels(picture), pixels(result.target_image)
    assert np.array_equal(before[black], after[black])
    assert np.abs(before - after)[~black].max() > 1


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(
    ("size", "fitted"), [((300, 170), (64, 64)), ((90, 200), (64, 48)), ((40, 40), (64, 32))]
)
def test_what_is_pasted_back_lies_where_it_was_taken_from(fit: Fit, size, fitted):
    """A smooth picture that nothing was done to, through the model's size and back: it is itself."""
    y, x = np.mgrid[: size[1], : size[0]]
    smooth = np.stack([x / size[0] * 255, y / size[1] * 255, (x + y) / sum(size) * 255], 2)
    picture = Image.fromarray(smooth.astype(np.uint8))
    mask = MaskInput.of(Image.new("L", size, 255)).open(size, fitted, 8, fit)
    back = mask.paste(fit_picture(picture, fitted, fit), Image.new("RGB", size))
    part, _ = fit_boxes(size, fitted, fit)
    inner = np.zeros(size[::-1], bool)
    inner[int(part[1]) + 8 : int(part[3]) - 8, int(part[0]) + 8 : int(part[2]) - 8] = True
    assert inner.any()
    assert np.abs(pixels(back) - pixels(picture))[inner].max() <= 6


def test_a_cell_may_change_where_any_of_its_pixels_may():
    mask = np.zeros((64, 64), np.uint8)
    mask[9, 17] = 255
    cells = MaskInput.of(mask).open((64, 64), (64, 64), 8).cells
    assert np.argwhere(cells).tolist() == [[1, 2]]
    tall = np.zeros((128, 64), np.uint8)
    tall[64:] = 255
    padded = MaskInput.of(tall).open((64, 128), (64, 64), 8, "pad").cells
    assert padded[4:, 2:6].all() and padded.sum() == 16


# The ways in which it is given


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "given",
    [
        LEFT,
        LEFT == 255,
        LEFT / 255.0,
        Image.fromarray(LEFT),
        Image.fromarray(LEFT).convert("1"),
        png(LEFT),
        "path",
    ],
    ids=["uint8", "bool", "floats", "PIL", "PIL of one bit", "bytes", "path"],
)
def test_a_mask_is_given_as_a_picture_is(pipe, tmp_path, given):
    if isinstance(given, str):
        (tmp_path / "mask.png").write_bytes(png(LEFT))
        given = tmp_path / "mask.png"
    wanted = edited(pipe, mask=LEFT, num_inference_steps=2)
    got = edited(pipe, mask=given, num_inference_steps=2)
    assert grey_levels(got.target_image, wanted.target_image) == 0


def test_a_mask_is_kept_beside_the_edit_and_the_edit_can_be_repeated(pipe, tmp_path):
    result = edited(pipe, image=photo(40, 30), mask=ellipse(40, 30), num_inference_steps=2)
    result.save(tmp_path / "out")
    assert {"input.png", "mask.png", "target.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert Image.open(tmp_path / "out" / "target.png").size == (40, 30)
    asked = EditRequest.read(tmp_path / "out")
    (again,) = pipe.edit_batch([asked])
    assert grey_levels(again.target_image, result.target_image) == 0
    assert result.mask is not None and result.mask.size == (40, 30)


def test_a_stranger_sends_a_mask_and_names_no_path(tmp_path):
    prompts = {"source_prompt": SOURCE, "target_prompt": TARGET}
    made = EditRequest.from_wire({**prompts, "mask": "m.png"}, {"m.png": png(LEFT)})
    assert made.mask is not None and made.mask.kept == png(LEFT)
    (tmp_path / "mask.png").write_bytes(png(LEFT))
    for mask in (str(tmp_path / "mask.png"), {"file": "gone"}, 3):
        with pytest.raises(
            AdapEditError, match="^mask is .*, wanted the name of a picture sent with the request$"
        ):
            EditRequest.from_wire({**prompts, "mask": mask}, {"m.png": png(LEFT)})


def test_requests_of_a_file_name_theirs_beside_it(tiny_folder, tmp_path, capsys):
    (tmp_path / "mask.png").write_bytes(png(LEFT))
    line = {
        "id": "one",
        "source_prompt": SOURCE,
        "target_prompt": TARGET,
        "num_inference_steps": 2,
        "mask": "mask.png",
    }
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    command = [
        "batch",
        str(tmp_path / "requests.jsonl"),
        "--model",
        str(tiny_folder),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(command) == 0 and run(command) == 0
    assert "1 were there already" in capsys.readouterr().err
    (tmp_path / "mask.png").write_bytes(png(LEFT.T))
    assert run(command) == 0
    assert "1 edits done, 0 were there already" in capsys.readouterr().err


def test_the_command_line_takes_one(tiny_folder, tmp_path):
    (tmp_path / "mask.png").write_bytes(png(LEFT))
    more = ["--model", str(tiny_folder), "--steps", "2", "--out", str(tmp_path / "out")]
    assert run(["edit", SOURCE, TARGET, "--mask", str(tmp_path / "mask.png"), *more]) == 0
    source, target = (pixels(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("source", "target"))
    assert np.array_equal(source[:, SIDE // 2 :], target[:, SIDE // 2 :])


# What is no mask


def colours(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": LEFT[:, :10]}, "mask mask.png has 10 x 16 pixels, the picture 16 x 16: give one of"),
        ({"mask": LEFT, "image": photo(30, 20)}, "has 16 x 16 pixels, the picture 30 x 20"),
        ({"mask": LEFT * 0}, "is black all over, so nothing may change; paint white"),
        ({"mask": colours((16, 16))}, "mask mask.png has colours; give white where"),
        ({"mask": 3}, "mask is 3: "),
        ({"mask": b"text"}, "mask mask.png is no picture"),
        ({"mask": Path("gone.png")}, "mask gone.png is not there"),
        ({"mask": np.zeros((16, 16, 2), np.uint8)}, r"the mask has shape \[16, 16, 2\]"),
        ({"mask": {"file": "a.png", "fit": "pad"}}, "mask.fit is 'pad'"),
        (
            {"mask": np.pad(LEFT[:, :2], ((0, 0), (0, 46))), "image": photo(48, 16)},
            "is white only outside of the picture's middle.*use fit 'pad'",
        ),
        ({"mask_image": LEFT}, "mask_image is not supported, use mask"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line_before_any_work(pipe, monkeypatch, options, said):
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a text was encoded")

    monkeypatch.setattr(type(pipe.model), "encode_ids", refuse)
    with pytest.raises(AdapEditError, match=said) as error:
        edited(pipe, **options)
    assert "\n" not in str(error.value)
