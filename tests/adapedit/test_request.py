"""Requests, from Python and from strangers; arguments of a wrong kind: refused in one line, before any work."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest
from adapedit.images import ImageError, ImageInput
from adapedit.request import same_request
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, TARGET, request

PROMPTS = {"source_prompt": SOURCE, "target_prompt": TARGET}

WRONG = {
    "generator": (lambda pipe: pipe(SOURCE, TARGET, generator=3), "wanted a torch.Generator"),
    "callback": (lambda pipe: pipe(SOURCE, TARGET, callback=3), r"callback\(done, total\)"),
    "max_rows": (lambda pipe: pipe.edit_batch([request()], max_rows="4"), "max_rows is '4'"),
    "no rows": (lambda pipe: pipe.edit_batch([request()], max_rows=0), "wanted a whole number from 1"),
    "fit": (lambda pipe: pipe(SOURCE, TARGET, image="there.png", fit="fill"), "crop, pad, stretch"),
    "server's rows": (lambda pipe: pipe.serve(max_rows=0), "max_rows is 0"),
    "server's queue": (lambda pipe: pipe.serve(max_pending=0), "max_pending is 0"),
    "server's cache": (lambda pipe: pipe.serve(cache_bytes=-1), "from 0 on"),
    "dtype": (lambda _: AdapEditPipeline.from_pretrained(torch_dtype="float16"), "torch.float16"),
    "model": (lambda _: AdapEditPipeline.from_pretrained("a" * 5000), "there is no model at"),
    "bundle": (lambda _: AdapEditPipeline.from_bundle(None), "folder is None, wanted a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kind_of_argument_is_refused_in_one_line(name, pipe):
    call, message = WRONG[name]
    with pytest.raises(AdapEditError, match=message) as raised:
        call(pipe)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_folder_that_is_no_path_is_refused(pipe):
    result = pipe.edit_batch([request(steps=3)])[0]
    with pytest.raises(AdapEditError, match="folder is None, wanted a path"):
        result.save(None)


# Fields


@pytest.mark.parametrize("field", ["cross_attention_until", "feature_interval"])
@pytest.mark.parametrize("value", [1, 1.0, 0.5, 3])
def test_a_field_that_is_gone_says_what_to_use(field: str, value: float, tmp_path: Path) -> None:
    said = f"^{field} is not supported, use num_inference_steps=20 with solver='dpm\\+\\+'$"
    with pytest.raises(AdapEditError, match=said):
        EditRequest.make(**PROMPTS, **{field: value})
    (tmp_path / "edit.json").write_text(json.dumps({"request": {**PROMPTS, field: value}}))
    with pytest.raises(AdapEditError, match=said):
        EditRequest.read(tmp_path)
    with pytest.raises(AdapEditError, match=said):
        EditRequest.from_wire({**PROMPTS, field: value}, {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_inference_steps": True}, "num_inference_steps is True: a number was wanted"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0: "),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan: "),
        ({"guidance_scale": 1e30}, r"guidance_scale is 1e\+30: .* less than or equal to 1000"),
        ({"seed": -1}, "seed is -1: "),
        ({"seed": 2**64}, "seed is 18446744073709551616: "),
        ({"seed": True}, "seed is True: a number was wanted"),
        ({"height": True}, "height is True: a number was wanted"),
        ({"target_prompt": ""}, "target_prompt is '': it is empty"),
        ({"source_prompt": ["a dog", "a cat"]}, r"source_prompt is \['a dog', 'a cat'\]: "),
        ({"cls": 1}, "cls is 1: "),
        ({"self": 1}, "self is 1: "),
    ],
)
def test_fields_that_are_wrong(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapEditError, match=said) as error:
        EditRequest.make(**{**PROMPTS, **fields})
    assert "\n" not in str(error.value)


def test_forms_that_are_meant_well() -> None:
    asked = EditRequest.make(
        source_prompt=[SOURCE], target_prompt=(TARGET,), num_inference_steps=50.0, seed="3"
    )
    assert asked == EditRequest.make(**PROMPTS, seed=3)


# From a stranger


def picture(value: int = 90, kind: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("image", ["dog.jpg", {"file": "dog.jpg"}, {"file": "dog.jpg", "fit": "pad"}])
def test_a_request_brings_its_picture(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapedit.images.read_file", None)
    files = {"dog.jpg": picture(), "other": b""}
    found = EditRequest.from_wire({**PROMPTS, "image": image, "inversion": "direct"}, files)
    assert found.image is not None and found.image.kept == files["dog.jpg"]
    assert found.image.open((16, 16)).size == (20, 12)
    assert found.image.fit == ("pad" if "fit" in image else "crop")


def test_a_path_is_refused_alike_whether_it_is_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(picture())
    said = set()
    for name in (tmp_path / "there.png", tmp_path / "gone.png", tmp_path, "/etc/passwd", "there.png"):
        for image in (str(name), {"file": str(name)}, {"file": str(name), "sha256": "0" * 64}):
            with pytest.raises(ImageError) as error:
                EditRequest.from_wire({**PROMPTS, "image": image}, {"dog.png": picture()})
            said.add(str(error.value).partition(", wanted ")[2])
    assert said == {"the name of a picture sent with the request"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], r"got \[\], wanted an object with source_prompt"),
        (None, "got None, wanted an object"),
        ({"image": 3}, "image is 3, wanted the name"),
        ({"image": {}}, "image is None, wanted the name"),
        ({"image": ["dog.png"]}, "wanted the name"),
        ({"image": {"file": "dog.png", "fit": "fill"}}, "image.fit is 'fill'"),
        ({"image": {"file": "dog.png", "content": 3}}, "image.content is 3"),
        ({"image": {"file": "dog.png", "cls": 3}}, "image.cls is 3"),
        ({"image": {"file": "dog.png", "sha256": "0" * 64}}, "image dog.png is not the one"),
        ({"image": "text"}, "image text is no picture"),
        (
            {"image": "dog.png", "inversion": {"name": "null-text", "cache": "/root"}},
            "cache is '/root', which a request may not choose",
        ),
        ({"image": None, "inversion": "ddim"}, "inversion 'ddim' wants a picture"),
    ],
)
def test_what_a_stranger_may_not_send(fields: Any, said: str) -> None:
    sent = {**PROMPTS, **fields} if isinstance(fields, dict) else fields
    with pytest.raises(AdapEditError, match=said) as error:
        EditRequest.from_wire(sent, {"dog.png": picture(), "text": b"hello"})
    assert "\n" not in str(error.value)


# Whether two are the same


def test_the_same_request_is_so_by_what_it_means(tmp_path: Path) -> None:
    for name, content in (("a.png", picture()), ("b.bmp", picture(kind="BMP")), ("c.png", picture(91))):
        (tmp_path / name).write_bytes(content)

    def asked(name: str, **more: Any) -> EditRequest:
        made = EditRequest.make(**PROMPTS, image=tmp_path / name, **more)
        return made.model_copy(update={"image": made.image.read()[0]})

    stored = {"request": asked("a.png", seed=1).model_dump(mode="json")}
    assert same_request(stored, asked("a.png", seed=1)) and same_request(stored, asked("b.bmp", seed=1.0))
    assert same_request(stored, EditRequest.make(**PROMPTS, image=tmp_path / "b.bmp", seed=1))
    assert not same_request(stored, asked("c.png", seed=1)) and not same_request(stored, asked("a.png"))
    assert not same_request(stored, asked("a.png", seed=1).model_copy(update={"image": None}))
    image = ImageInput.of(tmp_path / "a.png", "pad")
    assert not same_request(stored, EditRequest.make(**PROMPTS, image=image, seed=1))
    # Defaults need not be written, and the file may be elsewhere by now.
    (tmp_path / "a.png").unlink()
    assert same_request({"request": {**PROMPTS, "seed": 0.0}}, EditRequest.make(**PROMPTS))
    assert same_request(stored, asked("b.bmp", seed=1))


@pytest.mark.parametrize("stored", [{}, {"request": 3}, {"request": None}, {"request": {"seed": 1}}, [], 3])
def test_what_is_no_stored_request_is_another(stored: Any) -> None:
    assert not same_request(stored, EditRequest.make(**PROMPTS))


# Whatever is sent

NAMES = [
    *EditRequest.model_fields,
    "name",
    "file",
    "fit",
    "cache",
    "lambda_tau",
    "local_blend",
    "word",
    "cls",
    "",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["dog.png", "adapedit", "direct", "null-text", "prompt-to-prompt", "crop", SOURCE, 10**400]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def is_a_request_or_refused(fields: Any, content: bytes) -> None:
    with np.errstate(all="raise"):
        try:
            found = EditRequest.from_wire(fields, {"dog.png": content})
            assert found == EditRequest.make(
                **{name: getattr(found, name) for name in EditRequest.model_fields}
            )
        except AdapEditError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


SENT = (
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6).map(lambda made: {**PROMPTS, **made}) | VALUES
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SENT, st.just(picture()) | st.binary(max_size=20))
def test_anything_sent_is_a_request_or_refused(fields: Any, content: bytes) -> None:
    is_a_request_or_refused(fields, content)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True)
@given(SENT, st.just(picture()) | st.binary(max_size=20))
def test_much_more_sent_is_a_request_or_refused(fields: Any, content: bytes) -> None:
    is_a_request_or_refused(fields, content)


def test_deep_nesting_is_refused() -> None:
    deep: Any = "a"
    for _ in range(3000):
        deep = {"method": [deep]}
    with pytest.raises(AdapEditError):
        EditRequest.from_wire({**PROMPTS, **deep}, {})
