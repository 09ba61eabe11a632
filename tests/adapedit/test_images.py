"""Pictures from outside: every kind that can be edited comes out right, and every other is refused in one line."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from adapedit.images import MOST_PIXELS, ImageError, ImageInput, OpenedImage, read_file

PICTURES = Path(__file__).parents[1] / "data" / "pictures"


def gradient(width: int = 32, height: int = 32) -> np.ndarray:
    """[height, width, 3] uint8: red grows to the right, green downwards."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)[None]
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    return picture


def encoded(picture: Any, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        buffer, format, **options
    )
    return buffer.getvalue()


def opened(
    content: bytes, size: tuple[int, int] = (32, 32), name: str = "image", **options: Any
) -> OpenedImage:
    return ImageInput.of_bytes(content, name, **options).open(size)


def pixels(found: OpenedImage) -> np.ndarray:
    assert found.picture.mode == "RGB"
    return np.asarray(found.picture).astype(int)


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    found = opened(encoded(gradient()))
    assert np.array_equal(pixels(found), gradient())
    assert found.notes == () and found.size == (32, 32)


@pytest.mark.parametrize(("format", "far"), [("JPEG", 30), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("GIF", 40)])
def test_the_usual_formats_are_read(format: str, far: int) -> None:
    found = opened(encoded(Image.fromarray(gradient()), format))
    assert np.abs(pixels(found) - gradient()).mean() <= far


def test_transparent_parts_are_laid_on_white_and_it_is_said() -> None:
    layer = np.dstack([gradient(), np.full((32, 32), 255, np.uint8)])
    layer[:16, :, 3], layer[16:, :, 3] = 0, 255
    found = opened(encoded(layer))
    assert (pixels(found)[:16] == 255).all() and np.array_equal(pixels(found)[16:], gradient()[16:])
    assert found.notes == ("transparent parts laid on white",)
    assert opened(encoded(np.dstack([gradient(), np.full((32, 32), 255, np.uint8)]))).notes == ()


def test_half_transparent_grey_and_palette() -> None:
    grey = Image.merge("LA", [Image.new("L", (32, 32), 100), Image.new("L", (32, 32), 128)])
    assert abs(int(pixels(opened(encoded(grey)))[0, 0, 0]) - 177) <= 1
    palette = Image.fromarray(gradient()).quantize(16)
    assert np.abs(pixels(opened(encoded(palette))) - gradient()).mean() < 40
    colours = palette.getpalette() or []
    first = palette.getpixel((0, 0))
    seen = pixels(opened(encoded(palette, transparency=first)))
    assert (seen[0, 0] == 255).all() and colours


def test_cmyk_is_converted() -> None:
    found = opened(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF"))
    assert (pixels(found)[0, 0] == (255, 0, 0)).all() and "CMYK" in found.notes[0]


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    found = opened(encoded(Image.fromarray(values)))
    assert pixels(found)[0, 0, 0] == 0 and pixels(found)[-1, -1, 0] == 255
    assert np.abs(pixels(found)[..., 0] - values / 257).max() <= 0.51
    assert "16 bits" in found.notes[0]


def test_sixteen_bits_with_a_transparent_value() -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    plain = pixels(opened(encoded(Image.fromarray(values))))
    found = opened(encoded(Image.fromarray(values), transparency=int(values[3, 5])))
    seen = pixels(found)
    assert (seen[3, 5] == 255).all() and not (plain[3, 5] == 255).all()
    seen[3, 5] = plain[3, 5]
    assert np.array_equal(seen, plain)
    assert found.notes == ("16 bits reduced to 8", "transparent parts laid on white")
    nowhere = opened(encoded(Image.fromarray(values), transparency=int(values[3, 5]) + 1))
    assert np.array_equal(pixels(nowhere), plain) and nowhere.notes == ("16 bits reduced to 8",)


def test_floating_point_is_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        opened(encoded(Image.new("F", (32, 32)), "TIFF"))
    with pytest.raises(ImageError, match="^the image has floating-point values"):
        ImageInput.of(Image.new("F", (32, 32)))


@pytest.mark.parametrize(("orientation", "back"), [(3, 2), (6, 1), (8, 3)])
def test_exif_rotation_is_applied(orientation: int, back: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = opened(encoded(np.rot90(gradient(), back), exif=exif))
    assert np.array_equal(pixels(found), gradient()) and "EXIF" in found.notes[0]


def test_the_middle_of_a_picture_that_is_not_square() -> None:
    wide = gradient(96, 32)
    found = opened(encoded(wide))
    assert (
        np.array_equal(pixels(found), wide[:, 32:64])
        and "96 x 32" in found.notes[0]
        and found.size == (96, 32)
    )
    padded = pixels(opened(encoded(wide), fit="pad"))
    assert (padded[0] == 255).all() and not (padded[16] == 255).all()
    stretched = pixels(opened(encoded(wide), fit="stretch"))
    assert stretched[0, 0, 0] < 10 and stretched[0, -1, 0] > 245


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    found = opened(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels(found)[0, 0] == (255, 0, 0)).all() and found.notes == ("the first of 2 frames",)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"image x\.png is no picture that can be read") as error:
        opened(content, name="x.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_picture_that_was_cut_short_is_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(noise, format)
    with pytest.raises(ImageError, match="damaged or cut short|no picture"):
        opened(content[: len(content) // 2])


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 30000, 200000])
def test_an_enormous_picture_is_refused_by_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    assert side**2 > MOST_PIXELS
    with pytest.raises(ImageError, match="at most 67 million pixels"):
        opened(png_header(side, side))


def test_tiny_pictures_are_refused() -> None:
    with pytest.raises(ImageError, match="at least 8 a side"):
        opened(encoded(gradient(40, 4)))


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is not there"):
        read_file(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(ImageError, match=r"image .*xxx can't be read \(File name too long\)"):
        read_file(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no regular file"):
        read_file(tmp_path / "pipe")


def test_files_that_are_too_large_are_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ImageError, match="at most 256 are read"):
        read_file(tmp_path / "large.png")


def test_a_request_names_the_file_and_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(encoded(gradient()))
    found, content = ImageInput.of(path).read()
    assert found.model_dump() == {
        "file": str(path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "digest": hashlib.sha256(b"(32, 32)" + gradient().tobytes()).hexdigest(),
        "fit": "crop",
    }
    path.write_bytes(encoded(gradient()[::-1].copy()))
    with pytest.raises(ImageError, match="SHA-256 has changed"):
        found.read()


def test_a_picture_from_python_carries_its_own_file(tmp_path: Path) -> None:
    given = ImageInput.of(Image.fromarray(gradient()), "stretch")
    found, content = given.read()
    assert given.file == "input.png" and given.fit == "stretch" and found.kept == content
    assert np.array_equal(pixels(opened(content)), gradient())
    (tmp_path / "input.png").write_bytes(content)
    again = ImageInput(**given.model_dump()).beside(tmp_path)
    assert again.read()[1] == content
    assert ImageInput(file="x" * 300).beside(tmp_path).file == "x" * 300


def test_what_was_done_to_a_picture_from_python_is_told() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encoded(gradient(), exif=exif)))
    assert ImageInput.of(turned).open((16, 16)).notes == (
        "turned as its EXIF says",
        "resized from 32 x 32 pixels",
    )


# Colour profiles


@pytest.mark.parametrize(
    ("name", "colour", "note"),
    [
        ("display-p3.png", (218, 67, 47), "converted to sRGB from its colour profile"),
        ("linear.png", (229, 152, 133), "converted to sRGB from its colour profile"),
        ("cmyk.jpg", (254, 0, 0), "converted from CMYK without a colour profile"),
    ],
)
def test_colours_are_what_the_profile_says(name: str, colour: tuple[int, int, int], note: str) -> None:
    found = opened((PICTURES / name).read_bytes(), (16, 16))
    assert np.abs(pixels(found)[8, 8] - colour).max() <= 1
    assert found.notes[0].startswith(note)
    given = ImageInput.of(Image.open(PICTURES / name))
    assert (
        np.array_equal(pixels(given.open((16, 16))), pixels(found))
        and given.open((16, 16)).notes == found.notes
    )


def profile(name: str) -> bytes:
    return Image.open(PICTURES / name).info["icc_profile"]


def test_profiles_of_transparent_grey_and_palette_pictures() -> None:
    colour, p3 = (200, 80, 60), profile("display-p3.png")
    layer = Image.new("RGBA", (16, 16), (*colour, 255))
    layer.putpixel((0, 0), (*colour, 0))
    for picture in (layer, Image.new("RGB", (16, 16), colour).quantize(4)):
        seen = opened(encoded(picture, icc_profile=p3), (16, 16))
        assert tuple(pixels(seen)[8, 8]) == (218, 67, 47)
    assert (pixels(opened(encoded(layer, icc_profile=p3), (16, 16)))[0, 0] == 255).all()
    # Linear light in grey, of 8 and of 16 bits.
    for values in (np.full((16, 16), 60, np.uint8), np.full((16, 16), 60 * 257, np.uint16)):
        seen = opened(encoded(Image.fromarray(values), icc_profile=profile("linear.png")), (16, 16))
        assert pixels(seen)[0, 0, 0] == pytest.approx(133, abs=1)


def test_a_profile_that_is_srgb_or_damaged_leaves_the_pixels() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = opened(encoded(gradient(), icc_profile=srgb))
    assert np.array_equal(pixels(same), gradient()) and same.notes == ()
    damaged = opened(encoded(gradient(), icc_profile=srgb[:200]))
    assert np.array_equal(pixels(damaged), gradient()) and "profile can't be read" in damaged.notes[0]


# Arrays


@pytest.mark.parametrize(
    "array",
    [
        gradient(),
        gradient() / 255,
        (gradient() / 255).astype(np.float16).astype(np.float32),
        torch.from_numpy(gradient()).permute(2, 0, 1),
        torch.from_numpy(gradient()).permute(2, 0, 1)[None].double() / 255,
        (torch.from_numpy(gradient()).permute(2, 0, 1).float() / 255).requires_grad_(),
        np.dstack([gradient(), np.full((32, 32), 255, np.uint8)]),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}-{tuple(array.shape)}",
)
def test_arrays_are_pictures(array: Any) -> None:
    assert np.abs(pixels(ImageInput.of(array).open((32, 32))) - gradient()).max() <= 0


def test_grey_arrays_and_bfloat16() -> None:
    grey = gradient()[..., 0]
    for array in (grey, grey[..., None], torch.from_numpy(grey)[None], torch.from_numpy(grey)):
        assert np.array_equal(pixels(ImageInput.of(array).open((32, 32)))[..., 1], grey)
    half = torch.full((3, 16, 16), 0.5, dtype=torch.bfloat16)
    assert (pixels(ImageInput.of(half).open((16, 16))) == 128).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (gradient() / 127.5 - 1, "values from -1 to 1, wanted 0 to 1, or uint8"),
        (gradient().astype(np.float32), "values from 0 to 255, wanted 0 to 1"),
        (np.full((16, 16, 3), np.nan), "values from nan to nan"),
        (gradient().astype(np.int64), "is of int64, wanted uint8, or floats"),
        (np.zeros((16, 16, 5)), r"has shape \[16, 16, 5\], wanted \[H, W, C\]"),
        (np.zeros((2, 16, 16, 3)), r"has shape \[2, 16, 16, 3\]"),
        (np.zeros((0, 16, 3)), r"has shape \[0, 16, 3\]"),
        (torch.zeros(16, 16, 3), r"has shape \[16, 16, 3\], wanted \[C, H, W\]"),
        (np.array(["a picture"]), "has shape"),
        (np.zeros((4, 4, 3)), "at least 8 a side"),
        (np.array(None), "has shape"),
    ],
)
def test_arrays_that_are_no_pictures(array: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said) as error:
        ImageInput.of(array)
    assert "\n" not in str(error.value)


# What a picture is known by


def test_the_same_picture_in_another_file_has_the_same_digest(tmp_path: Path) -> None:
    digests = {
        ImageInput.of_bytes(encoded(picture, kind, **options)).digest
        for picture, kind, options in (
            (gradient(), "PNG", {}),
            (gradient(), "PNG", {"compress_level": 1}),
            (gradient(), "BMP", {}),
            (np.dstack([gradient(), np.full((32, 32), 255, np.uint8)]), "TIFF", {}),
        )
    }
    assert len(digests) == 1
    other = {
        ImageInput.of_bytes(encoded(picture)).digest
        for picture in (gradient()[::-1], gradient().reshape(16, 64, 3))
    }
    assert len(digests | other) == 3
    path = tmp_path / "dog.bmp"
    path.write_bytes(encoded(gradient(), "BMP"))
    known = ImageInput.of(path).read()[0]
    path.write_bytes(encoded(gradient(), "PNG"))
    assert known.read()[0].digest == known.digest and known.read()[0].sha256 != known.sha256


# Files that Pillow stumbles over


@pytest.mark.parametrize("name", ["no-dimensions.tif", "palette-index.gif"])
def test_damaged_files_are_refused_by_name(name: str) -> None:
    with pytest.raises(ImageError, match=f"^image {name} is (damaged or cut short|no picture)") as error:
        opened((PICTURES / name).read_bytes(), name=name)
    assert "\n" not in str(error.value)


def test_a_turned_file_stands_upright() -> None:
    assert opened((PICTURES / "exif-6.jpg").read_bytes(), (16, 24)).size == (16, 24)


@lru_cache
def seeds() -> list[bytes]:
    """A small file of every kind that is read, plain and with what makes its reader work."""
    picture, exif = Image.fromarray(gradient(12, 10)), Image.Exif()
    exif[0x0112] = 6
    p3 = profile("display-p3.png")
    frames: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(180)]}
    return [path.read_bytes() for path in sorted(PICTURES.iterdir())] + [
        encoded(picture, "PNG", exif=exif, icc_profile=p3),
        encoded(picture.quantize(7), "PNG", transparency=3),
        encoded(
            Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500), "PNG", transparency=7
        ),
        encoded(picture.convert("LA"), "PNG"),
        encoded(picture, "JPEG", exif=exif, icc_profile=p3),
        encoded(picture.convert("L"), "JPEG", progressive=True),
        encoded(picture, "WEBP", exif=exif, icc_profile=p3),
        encoded(picture, "WEBP", lossless=True, **frames),
        encoded(picture, "GIF", transparency=1, **frames),
        encoded(picture, "BMP"),
        encoded(picture.quantize(16), "BMP"),
        encoded(picture, "TIFF", compression="tiff_lzw", icc_profile=p3),
        encoded(picture.convert("CMYK"), "TIFF"),
        encoded(picture.convert("YCbCr"), "TIFF", **frames),
        encoded(picture, "PPM"),
        encoded(picture.convert("1"), "PPM"),
        encoded(picture, "JPEG2000"),
        encoded(picture, "AVIF", exif=exif),
    ]


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """Some bytes changed, a piece cut out, doubled or put elsewhere, or the end left away."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        stop = place + data.draw(st.sampled_from([1, 2, 4, 16, 200]))
        kind = data.draw(st.sampled_from(["set", "set", "number", "cut", "double", "end"]))
        if kind == "set":
            changed[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "number":
            number = data.draw(st.sampled_from([0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            changed[place : place + 4] = number.to_bytes(4, data.draw(st.sampled_from(["little", "big"])))
        elif kind == "cut":
            del changed[place:stop]
        elif kind == "double":
            changed[place:place] = changed[place:stop]
        else:
            del changed[place:]
    return bytes(changed)


def opens_or_refuses(data: st.DataObject) -> None:
    content = mutated(data, data.draw(st.sampled_from(seeds())))
    try:
        found = ImageInput.of_bytes(content, "x.png").open((16, 16))
    except ImageError as error:
        assert str(error).startswith("image x.png ") and "\n" not in str(error)
    else:
        assert pixels(found).shape == (16, 16, 3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_pictures_are_read_or_refused(data: st.DataObject) -> None:
    opens_or_refuses(data)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True)
@given(st.data())
def test_many_mutated_pictures_are_read_or_refused(data: st.DataObject) -> None:
    opens_or_refuses(data)
