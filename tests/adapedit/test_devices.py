"""Methods where what was seen lies on another device than what they make themselves, as it does beside a GPU.

Stood in for by the device "meta", whose tensors have a device and no numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from adapedit.methods import adapedit as adapedit_method
from adapedit.methods import make_settings

from adapedit.prepare import complete, make_context
from adapedit_engine.adaptive import Adaptive, Found
from adapedit_engine.plan import EditOutcome
from tests.helpers.edits import SOURCE, STEPS, TARGET, request
from tests.helpers.tiny_model import TOKENS

CHANNELS = 4


def outcome(device: str, tracks: int, pixels: int) -> EditOutcome:
    """A pass over so many tracks, on that device."""
    return EditOutcome(
        latents=torch.zeros(tracks, 4, 8, 8, device=device),
        maps=torch.zeros(tracks, pixels, TOKENS, device=device),
        features=torch.zeros(tracks, pixels, CHANNELS, device=device),
        word_steps=None,
        spatial_map=None,
        steps=STEPS,
        seconds=0.0,
    )


def test_fwt_and_dps_look_where_the_maps_are(pipe, monkeypatch):
    asked = complete(request(SOURCE, TARGET), pipe.model)
    context, method = make_context(asked, pipe.model), make_method(asked.method, pipe.model.facts)
    height, width = context.map_size
    seen: list[torch.device] = []

    def observe(maps, features, adaptive: Adaptive, source_track) -> Found:
        tensors = (maps, features, adaptive.key_tokens, adaptive.word_of_token, source_track)
        seen.extend(tensor.device for tensor in tensors)
        tracks = len(maps)
        return Found(torch.zeros(tracks, TOKENS), torch.zeros(tracks, height * width), torch.zeros(tracks))

    monkeypatch.setattr(adapedit_method, "observe", observe)
    method.plan(context, outcome("meta", 1, height * width))
    assert set(seen) == {torch.device("meta")} and len(seen) == 5


def test_what_a_server_copied_to_the_host_is_put_beside_what_was_seen(pipe):
    asked = complete(request(SOURCE, TARGET), pipe.model)
    context = make_context(asked, pipe.model)
    method = make_method(make_settings("sdedit"), pipe.model.facts)
    pixels = context.map_size[0] * context.map_size[1]
    edited = outcome("meta", 1, pixels)
    finished = method.finish(context, outcome("cpu", 1, pixels), replace(edited, features=None))
    assert finished.latents.shape[0] == 2 and finished.latents.device.type == "meta"
    assert finished.maps is not None and finished.maps.device.type == "meta"
