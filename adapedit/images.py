"""Pictures and masks from outside: every check before any work; upright, in sRGB, of the model's size, and back."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from typing_extensions import Self

Fit = Literal["crop", "pad", "stretch"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

MOST_PIXELS = 8192 * 8192
"""Of a picture; more is refused by its header alone, before anything is decoded."""
LIMIT = "67 million pixels (8192 x 8192)"
MOST_BYTES = 256 * 2**20
LEAST_SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded: nothing that runs another program or a language of its own."""
INPUT_FILE = "input.png"
"""Where a picture that was given from Python is kept beside an edit."""
WHITE = (255, 255, 255)
ROUNDING = 2
"""Grey levels by which a profile may differ from sRGB and still be taken for it."""


MASK_FILE = "mask.png"
NEARLY = 12
"""Grey levels by which a mask may be off black or white, and its colours off grey, and still be taken for that."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedMask:
    """Where a picture may change.

    picture: one channel, of the picture's own size: 255 where it may change. cells: [h, w] float32, 1 for cells of the
    latents of which some pixel may change, else 0. fit: how the picture is brought to the model's size. original: the
    file of a real picture, which an edit goes back into.
    """

    picture: Image.Image
    cells: NDArray[np.float32]
    fit: Fit
    original: bytes | None = None

    def paste(self, edited: Image.Image, source: Image.Image) -> Image.Image:
        """The original, or else `source`, with what was edited where the mask says so; elsewhere it keeps its bits."""
        from PIL import Image

        onto = source if self.original is None else _decoded(self.original, "image")[0]
        part, place = fit_boxes(onto.size, edited.size, self.fit)
        # Without bars around it, which would be mixed into its edges.
        seen = edited.crop(place)
        left, top, right, bottom = (*map(math.ceil, part[:2]), *map(math.floor, part[2:]))
        across, down = seen.width / (part[2] - part[0]), seen.height / (part[3] - part[1])
        # Rounding may carry a side beyond the picture by less than any pixel's share.
        box = (
            max(0.0, (left - part[0]) * across),
            max(0.0, (top - part[1]) * down),
            min(seen.width, (right - part[0]) * across),
            min(seen.height, (bottom - part[1]) * down),
        )
        piece = seen.resize((right - left, bottom - top), Image.Resampling.LANCZOS, box=box)
        found = onto.copy()
        found.paste(piece, (left, top), self.picture.crop((left, top, right, bottom)))
        return found


class PictureFile(BaseModel):
    """A file of a request: JSON names it and what it held. what: messages call it so; kept_as: where it is kept.

    file:   its path; the name that it is kept by beside the edit, of a picture from Python.
    sha256: of the file; None: whatever it holds, filled in before the edit.
    digest: SHA-256 of its pixels, upright and in sRGB: the same picture in another file has the same. Filled in, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: ClassVar[str] = "image"
    kept_as: ClassVar[str] = INPUT_FILE

    file: str
    sha256: Digest | None = None
    digest: Digest | None = None
    _content: bytes | None = PrivateAttr(default=None)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def of(cls, value: Any, **more: Any) -> Any:
        """From a path, a file's bytes, a `PIL.Image` or an array; anything else is left to the validation.

        Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (transparency), tensors of PyTorch [C, H, W] or
        [1, C, H, W]: uint8, bool, or floats in 0 to 1.
        """
        if isinstance(value, (str, Path)):
            return cls(file=str(value), **more)
        if isinstance(value, (bytes, bytearray)):
            return cls.of_bytes(bytes(value), **more)
        if hasattr(value, "__array__"):
            value = _from_array(value, f"the {cls.what}")
        if not hasattr(value, "getexif"):
            return value
        buffer = io.BytesIO()
        with _refusing(f"the {cls.what}"):
            picture, notes = _upright(value)
            picture.save(buffer, "PNG", icc_profile=None)
        made = cls.of_bytes(buffer.getvalue(), **more)
        made._notes = tuple(notes)
        return made

    @classmethod
    def of_bytes(cls, content: bytes, file: str | None = None, /, **more: Any) -> Self:
        """From what is in a picture's file, which messages call `file`; no path is opened."""
        made = cls(file=cls.kept_as if file is None else file, **more)
        made._content = bytes(content)
        return made.read()[0]

    @property
    def kept(self) -> bytes | None:
        """The file's bytes, of a picture that was not given as a path."""
        return self._content

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.what} {self.file}"

    def read(self) -> tuple[Self, bytes]:
        """The same with its sums, and the file's bytes. Raises `ImageError` where it shows something else by now."""
        content = read_file(self.file, self.what) if self._content is None else self._content
        found, digest = hashlib.sha256(content).hexdigest(), self.digest
        if digest is None or found != self.sha256:
            digest = _digest(_decoded(content, self.label)[0])
        named, same = self.sha256 or self.digest, self.sha256 == found or self.digest == digest
        if named and not same:
            raise ImageError(f"{self.label} is not the one that was edited: its SHA-256 has changed")
        return self.model_copy(update={"sha256": found, "digest": digest}), content

    def beside(self, folder: Path) -> Self:
        """The same, found beside an edit that was saved in `folder` where it is there."""
        there = folder / self.file
        try:
            found = there.is_file()
        except (OSError, ValueError):
            found = False  # a name that is too long, which reading it will say
        return self.model_copy(update={"file": str(there)}) if found else self


class ImageInput(PictureFile):
    """A picture to edit. fit: to the model's size: "crop" (its middle), "pad" (white bars) or "stretch"."""

    fit: Fit = "crop"

    @classmethod
    def of(cls, value: Any, fit: Fit | None = None, **more: Any) -> Any:
        if fit is not None and fit not in get_args(Fit):
            raise ImageError(f"fit is {fit!r}, wanted one of: {', '.join(get_args(Fit))}")
        return super().of(value, **more, **({} if fit is None else {"fit": fit}))

    def open(self, size: tuple[int, int]) -> OpenedImage:
        """The picture at `size` (width, height). Raises `ImageError`."""
        picture, notes = _decoded(self.read()[1], self.label)
        if picture.size != size:
            how = {"crop": "the middle of", "pad": "white bars around", "stretch": "stretched from"}[self.fit]
            same = picture.width * size[1] == picture.height * size[0]
            shown = f"{picture.width} x {picture.height} pixels"
            notes.append(f"resized from {shown}" if same else f"{how} {shown}")
        fitted = fit_picture(picture, size, self.fit)
        return OpenedImage(picture=fitted, size=picture.size, notes=(*self._notes, *notes))


class MaskInput(PictureFile):
    """Where a picture may change: white may, black stays as it is, and grey is mixed of both. Of the picture's size."""

    what: ClassVar[str] = "mask"
    kept_as: ClassVar[str] = MASK_FILE

    def painted(self, image: tuple[int, int] | None) -> Image.Image:
        """The mask alone, of a picture of size `image` (width, height); None: not known yet.

        Raises `ImageError` for a mask of another size, in colours, or black all over.
        """
        from PIL import ImageChops

        picture = _decoded(self.read()[1], self.label)[0]
        if image is not None and picture.size != image:
            given, wanted = (f"{one[0]} x {one[1]}" for one in (picture.size, image))
            raise ImageError(
                f"{self.label} has {given} pixels, the picture {wanted}: give one of the picture's size"
            )
        red, green, blue = picture.split()
        colours = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
        if colours.point(lambda apart: apart > NEARLY).getbbox():
            raise ImageError(
                f"{self.label} has colours; give white where the picture may change, and black elsewhere"
            )
        # JPEG leaves traces of grey around edges.
        mask = green.point([0 if v <= NEARLY else 255 if v >= 255 - NEARLY else v for v in range(256)])
        if not mask.getbbox():
            raise ImageError(f"{self.label} is black all over, so nothing may change; paint white what may")
        return mask

    def open(self, image: tuple[int, int], size: tuple[int, int], cell: int, fit: Fit = "crop") -> OpenedMask:
        """The mask of a picture of size `image` that is brought to `size` (width, height each).

        cell: pixels to a cell of the latents, per side. Raises `ImageError` as `painted` does, and for a mask that is
        black wherever the model sees the picture.
        """
        mask = self.painted(image)
        cells = _cells_of(mask, size, cell, fit)
        if not cells.any():
            raise ImageError(
                f"{self.label} is white only outside of the picture's middle, which is all that the model sees; "
                "use fit 'pad' or 'stretch'"
            )
        return OpenedMask(picture=mask, cells=cells, fit=fit)


def check_pictures(image: ImageInput | None, mask: MaskInput | None) -> None:
    """Raise `ImageError` for a picture or a mask that no model could take, before one is loaded."""
    size = None if image is None else _decoded(image.read()[1], image.label)[0].size
    if mask is not None:
        mask.painted(size)


ImageField = Annotated[ImageInput, BeforeValidator(ImageInput.of)]
MaskField = Annotated[MaskInput, BeforeValidator(MaskInput.of)]


def read_file(path: str | Path, what: str = "image") -> bytes:
    """The bytes of an image file. Raises `ImageError` in one line for what is no file, or too large a one.

    what: messages call it so.
    """
    path = Path(path)
    try:
        # Asking what is there fails, too: of a name that is too long, or behind a folder that is closed to us.
        if path.is_dir():
            raise ImageError(f"{what} {path} is a folder; give a picture in it")
        if not path.exists():
            raise ImageError(f"{what} {path} is not there; check the path")
        if not path.is_file():
            raise ImageError(f"{what} {path} is no regular file; copy the picture into one")
        if path.stat().st_size > MOST_BYTES:
            raise ImageError(
                f"{what} {path} has {path.stat().st_size / 2**20:.0f} MiB, at most {MOST_BYTES >> 20} are read"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{what} {path} can't be read ({reason})") from error


def picture_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height that a picture's header says; nothing is decoded. Raises `ImageError`."""
    from PIL import Image

    with warnings.catch_warnings(), _refusing(f"image {name}"):
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=_known()) as opened:
            width, height = opened.size
            return width, height


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


def fit_boxes(size: tuple[int, int], fitted: tuple[int, int], fit: Fit) -> tuple[Box, Box]:
    """What of a picture of `size` `fit_picture` shows at `fitted` (width, height each), and where it does."""
    width, height = size
    part, place = (0.0, 0.0, float(width), float(height)), (0.0, 0.0, float(fitted[0]), float(fitted[1]))
    ratio = fitted[0] / fitted[1]
    if size == fitted or fit == "stretch" or width / height == ratio:
        return part, place
    wider = width / height > ratio
    if fit == "crop":
        seen = ratio * height if wider else width / ratio
        edge = (width - seen) / 2 if wider else (height - seen) / 2
        return ((edge, 0.0, edge + seen, part[3]) if wider else (0.0, edge, part[2], edge + seen)), place
    long = round(height / width * fitted[0]) if wider else round(width / height * fitted[1])
    edge = round(((fitted[1] if wider else fitted[0]) - long) * 0.5)
    return part, ((0.0, edge, place[2], edge + long) if wider else (edge, 0.0, edge + long, place[3]))


def _cells_of(mask: Image.Image, size: tuple[int, int], cell: int, fit: Fit) -> NDArray[np.float32]:
    """[h, w], 1 for cells that some of a mask's white or grey reaches, of the picture at `size`."""
    import numpy as np
    from PIL import Image

    part, place = fit_boxes(mask.size, size, fit)
    left, top, right, bottom = map(round, place)
    shown = mask.convert("F").resize((right - left, bottom - top), Image.Resampling.BOX, box=part)
    whole = np.zeros((size[1], size[0]), np.float32)
    whole[top:bottom, left:right] = np.asarray(shown)
    cells = whole.reshape(size[1] // cell, cell, size[0] // cell, cell).max((1, 3))
    return (cells > 0).astype(np.float32)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever Pillow raises inside becomes one `ImageError` that names the picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: at most {LIMIT} are decoded") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no picture that can be read; give a PNG, JPEG or WebP") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} is damaged or cut short ({reason}); copy it again") from error


def _known() -> list[str]:
    from PIL import Image

    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def _decoded(content: bytes, label: str) -> tuple[Image.Image, list[str]]:
    """The first frame in sRGB, upright, and what was done to it. Raises `ImageError`."""
    from PIL import Image

    with warnings.catch_warnings(), _refusing(label):
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=_known()) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ImageError(f"has {width} x {height} pixels: at most {LIMIT} are decoded")
            opened.load()
            picture, notes = _upright(opened)
            frames = int(getattr(opened, "n_frames", 1))
        if min(picture.size) < LEAST_SIDE:
            raise ImageError(f"has {width} x {height} pixels; at least {LEAST_SIDE} a side are wanted")
        if frames > 1:
            notes.append(f"the first of {frames} frames")
        return picture, notes


def _upright(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """In sRGB, turned as its EXIF says, and what was done to it."""
    from PIL import ImageOps

    notes: list[str] = []
    try:
        turned = ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) != 1 else picture
        if turned is not picture:
            notes.append("turned as its EXIF says")
    except Exception:
        # Damaged descriptions around an undamaged picture: it is shown as it lies.
        turned = picture
        notes.append("its EXIF can't be read: not turned")
    return _rgb(turned, notes), notes


def _rgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    """In sRGB on white. Pillow's own conversion cuts 16 bits off, lays on black and knows no profile."""
    from PIL import Image

    mode, alpha = picture.mode, None
    if mode == "F":
        raise ImageError("has floating-point values, whose range is not known; save it with 8 or 16 bits")
    if mode.startswith("I"):
        notes.append("16 bits reduced to 8")
        colours, alpha = _eight_bits(picture, picture.info.get("transparency"))
    elif picture.has_transparency_data:
        # Premultiplied modes have a way to their own plain one alone.
        layer = picture.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode)).convert("RGBA")
        alpha, colours = layer.getchannel("A"), layer.convert("RGB")
    else:
        colours = picture
    rgb = _in_srgb(colours, picture.info.get("icc_profile"), notes)
    if alpha is None or alpha.getextrema()[0] == 255:
        return rgb
    notes.append("transparent parts laid on white")
    return Image.composite(rgb, Image.new("RGB", rgb.size, WHITE), alpha)


def _in_srgb(picture: Image.Image, embedded: bytes | None, notes: list[str]) -> Image.Image:
    """In RGB, by the profile that came with it, where that is another than sRGB."""
    from PIL import ImageChops, ImageCms

    try:
        plain = picture.convert("RGB")
    except ValueError as error:
        raise ImageError(f"of mode {picture.mode} can't be converted to RGB; save it as RGB") from error
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            mode = {"GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space.strip(), "RGB")
            found = ImageCms.profileToProfile(
                picture if picture.mode == mode else plain.convert(mode),
                profile,
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            assert found is not None
            far = max(int(high) for _, high in ImageChops.difference(found, plain).getextrema())  # type: ignore
            if far <= ROUNDING:
                return plain
            name = " ".join(ImageCms.getProfileDescription(profile).split())[:60]
            notes.append(f"converted to sRGB from its colour profile {name}".rstrip())
            return found
        except Exception:  # damaged: as with EXIF
            notes.append("its colour profile can't be read: colours taken as sRGB")
    if picture.mode == "CMYK":
        notes.append("converted from CMYK without a colour profile")
    return plain


def _eight_bits(picture: Image.Image, transparent: Any) -> tuple[Image.Image, Image.Image | None]:
    """A grey picture of 16 bits in 8, and alpha where one of its values is transparent."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("has 32-bit values; save it with 8 or 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not isinstance(transparent, int):
        return grey, None
    # Before anything is reduced: neighbours of the transparent value become the same 8 bits.
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _from_array(value: Any, label: str) -> Image.Image:
    """Of an array or a tensor, see `PictureFile.of`."""
    import numpy as np
    from PIL import Image

    tensor = hasattr(value, "detach")
    if tensor:  # bfloat16 and a GPU's memory are unknown to numpy
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    pixels = np.asarray(value)
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    if tensor and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, 2)
    wanted = "[C, H, W]" if tensor else "[H, W, C]"
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)) or not pixels.size:
        raise ImageError(f"{label} has shape {list(value.shape)}, wanted {wanted} with 1, 3 or 4 channels")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
            raise ImageError(
                f"{label} has values from {pixels.min():.4g} to {pixels.max():.4g}, wanted 0 to 1, or uint8"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"{label} is of {pixels.dtype}, wanted uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
