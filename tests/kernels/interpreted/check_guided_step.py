"""The kernel of the guided step against its reference in float64, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from adapedit_kernels import guided_step
from tests.kernels.inputs import assert_close, step_inputs

SIZES = {  # tracks, guidance rows, latents
    "SD's channels, more values than a block": (3, 2, (4, 13, 11)),
    "one value, one row": (1, 1, (1, 1, 1)),
    "exactly a block, three rows as InstructPix2Pix has": (2, 3, (4, 16, 8)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("noise", "blend"), [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_guided_step(
    sizes: tuple[int, int, tuple[int, int, int]], noise: bool, blend: bool, dtype: torch.dtype
) -> None:
    inputs = step_inputs(*sizes, dtype, noise=noise, blend=blend)
    wanted = guided_step(**{n: t.double() if t.is_floating_point() else t for n, t in inputs.items()})
    inputs["noise_pred"] = inputs["noise_pred"].to(memory_format=torch.channels_last)
    before = inputs["latents"].clone()
    found = guided_step(**inputs, implementation="triton")
    assert found.dtype == dtype and torch.equal(inputs["latents"], before)
    assert_close(found, wanted, dtype)


def test_half_precision_noise_on_single_precision_latents() -> None:
    inputs = step_inputs(2, 2, (4, 5, 5), torch.float32, noise=False, blend=True)
    inputs["noise_pred"] = inputs["noise_pred"].half()
    found = guided_step(**inputs, implementation="triton")
    assert found.dtype == torch.float32
    assert_close(found, guided_step(**inputs), torch.float32)


def test_rows_out_of_range_are_refused() -> None:
    inputs = step_inputs(2, 2, (4, 5, 5), torch.float32, noise=False, blend=True)
    inputs["guidance_rows"][1, 1] = 5
    with pytest.raises(ValueError, match="guidance_rows holds rows .* to 5, wanted 0 to 4"):
        guided_step(**inputs, implementation="triton")


@pytest.mark.parametrize("tracks", [3, 4])
def test_rows_that_are_not_checked_read_the_nearest_there_is(tracks: int) -> None:
    inputs = step_inputs(tracks, 2, (4, 5, 5), torch.float32, noise=True, blend=True)
    last = len(inputs["noise_pred"]) - 1
    wrong, right = dict(inputs), dict(inputs)
    rows, sources = inputs["guidance_rows"].clone(), inputs["blend_source"].clone()
    rows[0, 0], rows[2, 1], sources[0], sources[1] = -3, 99, 7, -2
    wrong |= {"guidance_rows": rows, "blend_source": sources}
    right |= {"guidance_rows": rows.clamp(0, last), "blend_source": sources.clamp(0, tracks - 1)}
    found = guided_step(**wrong, implementation="triton", check_values=False)
    assert_close(found, guided_step(**right), torch.float32)


def test_no_latents_are_no_launch() -> None:
    inputs = step_inputs(2, 2, (4, 0, 5), torch.float32, noise=False, blend=True)
    assert guided_step(**inputs, implementation="triton").shape == (2, 4, 0, 5)


def test_strides_that_the_kernel_can_not_take_are_refused() -> None:
    inputs = step_inputs(2, 2, (4, 5, 5), torch.float32, noise=False, blend=False)
    inputs["latents"] = inputs["latents"].to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="latents has strides .* call .contiguous"):
        guided_step(**inputs, implementation="triton")
