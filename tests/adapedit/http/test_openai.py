"""The `openai` package against the service: it edits, streams, and gets every error as its own class."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest
from adapedit.http.errors import ApiError
from adapedit.http.limits import Keys
from adapedit.http.openai import _unfold
from tests.adapedit.http.test_edits import png
from tests.helpers.service import Running, serving, settings_for

FAST = {"num_inference_steps": 2}


@pytest.fixture
def client(service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def picture(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def test_a_picture_is_edited_by_two_prompts(client: openai.OpenAI, pipe: AdapEditPipeline):
    more = {
        "source_prompt": "a red dog",
        "seed": 3,
        **FAST,
        "method": {"name": "adapedit", "lambda_tau": 0.5},
    }
    found = client.images.edit(image=png(), prompt="a blue dog", extra_body=more)
    request = EditRequest.make(**more, target_prompt="a blue dog", image=Image.open(io.BytesIO(png())))
    (wanted,) = pipe.edit_batch([request])
    made = np.asarray(picture(found.data[0].b64_json), np.int16)
    assert np.abs(made - np.asarray(wanted.target_image, np.int16)).max() <= 1


def test_without_a_source_prompt_a_method_that_needs_none_is_taken(service: Running, client: openai.OpenAI):
    raw = client.images.with_raw_response.edit(image=png(), prompt="a blue dog", extra_body=FAST)
    edit = service.client.get(f"/v1/edits/{raw.headers['x-edit-ids']}").json()
    assert edit["request"]["method"] == {"name": "sdedit"} and edit["status"] == "completed"
    with pytest.raises(
        openai.BadRequestError, match="give source_prompt in extra_body, or take one of"
    ) as raised:
        client.images.edit(image=png(), prompt="a blue dog", extra_body={**FAST, "method": "adapedit"})
    assert raised.value.param == "source_prompt"


def test_several_pictures_sizes_and_formats(client: openai.OpenAI):
    found = client.images.generate(
        prompt="a red dog", n=2, size="32x16", output_format="jpeg", extra_body={**FAST, "seed": 7}
    )
    assert [picture(one.b64_json).format for one in found.data] == ["JPEG", "JPEG"]
    assert picture(found.data[0].b64_json).size == (32, 16)
    assert found.data[0].b64_json != found.data[1].b64_json
    other = client.images.generate(
        prompt="a red dog", size="32x16", output_format="jpeg", extra_body={**FAST, "seed": 8}
    )
    assert other.data[0].b64_json == found.data[1].b64_json


def test_a_url_leads_to_the_picture(service: Running, client: openai.OpenAI):
    found = client.images.generate(prompt="a red dog", response_format="url", extra_body=FAST)
    assert Image.open(io.BytesIO(service.client.get(found.data[0].url).content)).format == "PNG"


def test_a_stream_ends_with_the_picture(client: openai.OpenAI):
    events = list(client.images.generate(prompt="a red dog", stream=True, extra_body=FAST))
    assert [event.type for event in events] == ["image_generation.completed"]
    assert picture(events[0].b64_json).size == (16, 16)
    events = list(client.images.edit(image=[png()], prompt="a dog", stream=True, extra_body=FAST))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_a_stream_shows_partial_images(client: openai.OpenAI):
    more = {"num_inference_steps": 40, "source_prompt": "a red dog", "method": {"name": "masactrl"}}
    events = list(
        client.images.edit(image=png(), prompt="a blue dog", stream=True, partial_images=3, extra_body=more)
    )
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    shown = [np.asarray(picture(event.b64_json).convert("RGB"), np.int16) for event in events]
    apart = [int(np.abs(one - shown[-1]).mean()) for one in shown[:3]]
    assert shown[0].shape == shown[-1].shape and apart[2] <= apart[0]


def test_a_mask_keeps_what_is_black(client: openai.OpenAI):
    mask = Image.new("L", (24, 24), 0)
    mask.paste(255, (0, 0, 12, 24))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    more = {"source_prompt": "a red dog", **FAST}
    found = client.images.edit(image=png(), mask=buffer.getvalue(), prompt="a blue dog", extra_body=more)
    made = np.asarray(picture(found.data[0].b64_json))
    assert made.shape == (24, 24, 3) and (made[:, 12:] == (200, 80, 60)).all()
    assert not (made[:, :12] == (200, 80, 60)).all()


def test_models_are_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "adapedit"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (openai.BadRequestError, {"extra_body": {"colour": 3}}),
        (openai.BadRequestError, {"size": "big"}),
        (openai.BadRequestError, {"n": 11}),
        (openai.BadRequestError, {"stream": True, "n": 2}),
        (openai.NotFoundError, {"model": "gpt-image-1"}),
        (openai.UnprocessableEntityError, {"extra_body": {"num_inference_steps": 150}}),
        (openai.APIStatusError, {"prompt": "dog " * 400_000}),
    ],
)
def test_every_error_has_its_class(
    client: openai.OpenAI, kind: type[openai.APIStatusError], fields: dict[str, Any]
):
    with pytest.raises(kind) as raised:
        client.images.generate(**{"prompt": "a red dog", **fields})
    assert raised.value.code and raised.value.type and "\n" not in raised.value.body["message"]


def test_an_idempotency_key_makes_no_second_edit(service: Running, client: openai.OpenAI):
    key = {"Idempotency-Key": "openai"}
    ids = [
        client.images.with_raw_response.generate(
            prompt="a red dog", extra_headers=key, extra_body=FAST
        ).headers["x-edit-ids"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    with pytest.raises(openai.ConflictError, match="used for another request"):
        client.images.generate(prompt="a blue dog", extra_headers=key, extra_body=FAST)


def test_keys_rates_drains_and_deadlines_have_their_classes(tiny_folder: Path, tmp_path: Path):
    key, line = Keys.make("alice")
    (tmp_path / "keys").write_text(line)
    more = {"keys": tmp_path / "keys", "rate": 60, "burst": 4, "max_rows": 4}
    with serving(settings_for(tiny_folder, tmp_path / "data", **more)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").images.generate(prompt="a red dog")
        headers = {"Authorization": f"Bearer {key}"}
        with running.held():
            blockers = [running.edit(seed=seed, headers=headers) for seed in range(3)]
            with pytest.raises(openai.InternalServerError) as late:
                client.images.generate(prompt="a red dog", extra_body={**FAST, "deadline": 0.01})
        assert late.value.status_code == 504 and late.value.code == "deadline_exceeded"
        with pytest.raises(openai.RateLimitError) as often:
            client.images.generate(prompt="a red dog", n=4)
        assert int(often.value.response.headers["retry-after"]) >= 1
        running.jobs.draining = True
        running.server.config.app.state.service.rates = type(running.server.config.app.state.service.rates)(
            60, 9
        )
        with pytest.raises(openai.InternalServerError) as ends:
            client.images.generate(prompt="a red dog")
        assert ends.value.status_code == 503 and ends.value.code == "draining"
        assert all(blocker.status_code == 202 for blocker in blockers)


def test_fields_of_forms_are_unfolded():
    given = [("method[name]", "adapedit"), ("method[local_blend][]", "dog"), ("method[local_blend][]", "cat")]
    given += [("seed", "3"), ("prompt", "3"), ("stream", "true"), ("inversion", '{"name": "ddim"}')]
    assert _unfold(given) == {
        "method": {"name": "adapedit", "local_blend": ["dog", "cat"]},
        "seed": 3,
        "prompt": "3",
        "stream": True,
        "inversion": {"name": "ddim"},
    }
    for wrong in (
        [("a[b][c][d][e]", "1")],
        [("a", "1"), ("a", "2")],
        [("[]", "1")],
        [("a", "1"), ("a[b]", "1")],
    ):
        with pytest.raises(ApiError) as raised:
            _unfold(wrong)
        assert raised.value.status == 400
