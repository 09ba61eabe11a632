"""Pictures from outside: every kind that can be edited comes out right, and every other is refused in one line."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapedit.images import MOST_PIXELS, ImageError, ImageInput, OpenedImage, open_image, read_file


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


def opened(content: bytes, size: tuple[int, int] = (32, 32), **options: Any) -> OpenedImage:
    return open_image(content, size=size, **options)


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
