"""Pictures from outside: opened with every check before any work, upright, in RGB, and of the model's size."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["crop", "pad", "stretch"]

MOST_PIXELS = 8192 * 8192
"""Of a picture; more is refused by its header alone, before anything is decoded."""
MOST_BYTES = 256 * 2**20
LEAST_SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded: nothing that runs another program or a language of its own."""
INPUT_FILE = "input.png"
"""Where a picture that was given from Python is kept beside an edit."""
WHITE = (255, 255, 255)


class ImageError(AdapEditError):
    """A picture that can't be edited: missing, damaged, enormous or of an unknown kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedImage:
    """A picture as the model takes it.

    picture: RGB, of the wanted size. size: width and height of the file, upright. notes: what was done to it.
    """

    picture: Image.Image
    size: tuple[int, int]
    notes: tuple[str, ...]


class ImageInput(BaseModel):
    """A picture in a request: JSON names the file and what it held.

    file:   its path; "input.png" for a picture from Python, which is kept beside the edit.
    sha256: of the file; None: whatever it holds, filled in before the edit.
    fit:    to the model's size: "crop" (its middle), "pad" (white bars) or "stretch".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    fit: Fit = "crop"
    _content: bytes | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, value: Any, fit: Fit | None = None) -> Any:
        """From a path or a `PIL.Image`; anything else is left to the validation."""
        if fit is not None and fit not in get_args(Fit):
            raise ImageError(f"fit is {fit!r}, wanted one of: {', '.join(get_args(Fit))}")
        more: dict[str, Any] = {} if fit is None else {"fit": fit}
        if isinstance(value, (str, Path)):
            return cls(file=str(value), **more)
        if not hasattr(value, "getexif"):
            return value
        buffer = io.BytesIO()
        try:
            _upright(value)[0].save(buffer, "PNG")
        except ImageError as error:
            raise ImageError(f"the image {error}") from error
        content = buffer.getvalue()
        made = cls(file=INPUT_FILE, sha256=hashlib.sha256(content).hexdigest(), **more)
        made._content = content
        return made

    @property
    def kept(self) -> bytes | None:
        """The file's bytes, of a picture that was given from Python."""
        return self._content

    def read(self) -> tuple[ImageInput, bytes]:
        """The same with its sum, and the file's bytes. Raises `ImageError` where it is another file by now."""
        content = read_file(self.file) if self._content is None else self._content
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise ImageError(f"image {self.file} is not the one that was edited: its SHA-256 has changed")
        return self.model_copy(update={"sha256": found}), content

    def beside(self, folder: Path) -> ImageInput:
        """The same, found beside an edit that was saved in `folder` where it is there."""
        there = folder / self.file
        try:
            found = there.is_file()
        except OSError:
            found = False  # a name that is too long, which reading it will say
        return self.model_copy(update={"file": str(there)}) if found else self


ImageField = Annotated[ImageInput, BeforeValidator(ImageInput.of)]


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file. Raises `ImageError` in one line for what is no file, or too large a one."""
    path = Path(path)
    try:
        # Asking what is there fails, too: of a name that is too long, or behind a folder that is closed to us.
        if path.is_dir():
            raise ImageError(f"image {path} is a folder; give a picture in it")
        if not path.exists():
            raise ImageError(f"image {path} is not there; check the path")
        if not path.is_file():
            raise ImageError(f"image {path} is no regular file; copy the picture into one")
        if path.stat().st_size > MOST_BYTES:
            raise ImageError(
                f"image {path} has {path.stat().st_size / 2**20:.0f} MiB, at most {MOST_BYTES >> 20} are read"
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} can't be read ({error.strerror or error})") from error


def open_image(
    content: bytes, *, size: tuple[int, int], fit: Fit = "crop", name: str = "image"
) -> OpenedImage:
    """Decode a picture and bring it to `size` (width, height). Raises `ImageError`; `name` is for its message."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.init()
            opened = Image.open(io.BytesIO(content), formats=[kind for kind in FORMATS if kind in Image.OPEN])
        except Image.DecompressionBombError as error:
            raise ImageError(f"image {name} is too large: at most {_limit()} are decoded") from error
        except Exception as error:
            raise ImageError(
                f"image {name} is no picture that can be read; give a PNG, JPEG or WebP"
            ) from error
        with opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ImageError(
                    f"image {name} has {width} x {height} pixels: at most {_limit()} are decoded"
                )
            try:
                opened.load()
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ImageError(f"image {name} is damaged or cut short ({reason}); copy it again") from error
            frames = int(getattr(opened, "n_frames", 1))
            try:
                picture, notes = _upright(opened)
            except ImageError as error:
                raise ImageError(f"image {name} {error}") from error
    if min(picture.size) < LEAST_SIDE:
        raise ImageError(
            f"image {name} has {width} x {height} pixels; at least {LEAST_SIDE} a side are wanted"
        )
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    fitted = fit_picture(picture, size, fit)
    if picture.size != size:
        how = {"crop": "the middle of", "pad": "white bars around", "stretch": "stretched from"}[fit]
        same = picture.width * size[1] == picture.height * size[0]
        shown = f"{picture.width} x {picture.height} pixels"
        notes.append(f"resized from {shown}" if same else f"{how} {shown}")
    return OpenedImage(picture=fitted, size=picture.size, notes=tuple(notes))


def fit_picture(picture: Image.Image, size: tuple[int, int], fit: Fit = "crop") -> Image.Image:
    """An RGB picture at `size` (width, height)."""
    from PIL import Image, ImageOps

    if picture.size == size:
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=WHITE)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _upright(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """In RGB, turned as its EXIF says, and what was done to it."""
    from PIL import ImageOps

    notes: list[str] = []
    mode, size = picture.mode, picture.size
    try:
        turned = ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) != 1 else picture
        if turned is not picture:
            notes.append("turned as its EXIF says")
    except Exception:
        # Damaged descriptions around an undamaged picture: it is shown as it lies.
        turned = picture
        notes.append("its EXIF can't be read: not turned")
    try:
        rgb = _rgb(turned, notes)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"of mode {mode} and {size[0]} x {size[1]} pixels can't be converted to RGB"
        ) from error
    return rgb, notes


def _rgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    from PIL import Image

    mode = picture.mode
    if mode.startswith("I"):
        notes.append("16 bits reduced to 8")
        grey, transparent = _eight_bits(picture), picture.info.get("transparency")
        if not isinstance(transparent, int):
            return grey.convert("RGB")
        # Before anything is reduced: neighbours of the transparent value become the same 8 bits.
        return _on_white(Image.merge("LA", (grey, _where_not(picture, transparent))), notes)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        # Premultiplied modes have a way to their own plain one alone.
        plain = picture.convert({"RGBa": "RGBA", "La": "LA"}[mode]) if mode in ("RGBa", "La") else picture
        return _on_white(plain, notes)
    if mode == "F":
        raise ImageError("has floating-point values, whose range is not known; save it with 8 or 16 bits")
    if mode == "CMYK":
        notes.append("converted from CMYK without a colour profile")
    return picture.convert("RGB")


def _on_white(picture: Image.Image, notes: list[str]) -> Image.Image:
    """A picture that may be transparent in RGB, and whether it was."""
    from PIL import Image

    layer = picture.convert("RGBA")
    least, _ = layer.getchannel("A").getextrema()
    if float(str(least)) < 255:
        notes.append("transparent parts laid on white")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")


def _where_not(picture: Image.Image, value: int) -> Image.Image:
    """Alpha of a grey picture in which one value is transparent."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.where(np.asarray(picture) == value, 0, 255).astype(np.uint8))


def _eight_bits(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("has 32-bit values; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _limit() -> str:
    side = int(MOST_PIXELS**0.5)
    return f"{MOST_PIXELS / 1e6:.0f} million pixels ({side} x {side})"
