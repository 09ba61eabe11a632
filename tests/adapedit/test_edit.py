"""Numbers that are none end that edit alone, with a line that says where they began."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapedit import AdapEditPipeline
from adapedit.model import EditModel, NumericError
from adapedit_engine.models.text import TextEncoders
from tests.helpers.edits import LONGER, SOURCE, grey_levels, request
from tests.helpers.pictures import request as of_picture

MEND = "NaN or infinite.*torch.bfloat16 or torch.float32"


@pytest.fixture
def half(tiny_folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float16, device="cpu")


def part(model: EditModel, name: str) -> Any:
    return {
        "the VAE's decoder": model.vae and model.vae.decoder.conv_in,
        "the VAE's encoder": model.vae and model.vae.encoder.conv_in,
        "the text encoder": model.text and model.text.encoders[0].get_submodule("final_layer_norm"),
        "the model at step 1": model.runner.controlled.unet.conv_out,  # type: ignore[attr-defined]
    }[name]


@pytest.mark.parametrize(
    "where", ["the VAE's decoder", "the VAE's encoder", "the text encoder", "the model at step 1"]
)
def test_half_precision_that_overflows_says_where_and_saves_nothing(half, where, tmp_path):
    with torch.no_grad():
        part(half.model, where).weight.mul_(3e5)
    asked = of_picture(None, "sdedit") if where == "the VAE's encoder" else request(steps=2)
    with pytest.raises(NumericError, match=f"{where} gave numbers that are none .{MEND}") as error:
        half.edit_batch([asked])[0].save(tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_neighbours_of_an_edit_that_breaks_go_on(pipe):
    """In the server, where one prompt's states are such that the model overflows."""
    embeddings = copy.deepcopy(pipe.model.components["text_encoder"])
    spoilt = pipe.model.tokenizer("small")["input_ids"][1]
    clean = pipe.edit_batch([request(steps=3)])[0]
    plain_forward = embeddings.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        found = plain_forward(input_ids, **options)
        if (input_ids == spoilt).any():
            found.last_hidden_state = found.last_hidden_state * 1e38
        return found

    embeddings.forward = forward
    server_pipe = AdapEditPipeline(replace(pipe.model, text=TextEncoders([embeddings])))
    with server_pipe.serve() as server:
        broken, whole = server.submit(request(SOURCE, LONGER, steps=3)), server.submit(request(steps=3))
        with pytest.raises(NumericError, match=f"the model at step 1 gave numbers that are none .{MEND}"):
            broken.result()
        assert grey_levels(whole.result().target_image, clean.target_image) <= 1


def test_json_is_written_strictly_everywhere():
    root = Path(__file__).parents[2]
    lines = [
        f"{path}: {line}"
        for room in ("adapedit", "engine", "export")
        for path in (root / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if "json.dumps(" in line or "encoder.dumps(" in line
    ]
    assert lines and not [line for line in lines if "allow_nan=False" not in line]
