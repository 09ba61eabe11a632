"""EditResult: both pictures, what was found about the words, and a folder that is enough to repeat the edit."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapedit import __version__
from adapedit.images import OpenedImage, PictureFile
from adapedit.request import PICTURES, EditRequest
from adapedit_kernels.errors import AdapEditError

# The folder's part is used by commands before anything heavy is loaded.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from adapedit.methods.base import Context, Findings
    from adapedit.model import EditModel
    from adapedit.prompts.alignment import Alignment, Word
    from adapedit.sheets import Heading
    from adapedit_engine.plan import EditOutcome

FORMAT = 1
LEAST_SPACE = 32 * 2**20
"""Bytes that must be free before work begins; an edit at 512 x 512 pixels writes about 2 MB."""
LARGE, POOR = 1.5, 20.0
"""A picture's side over the model's, and decibels of a picture that comes back, from which on there is a warning."""
SHOWN = 40
"""Characters of a prompt in the short form of a result."""


class OutputError(AdapEditError):
    """An output folder that can't be written, or a disk that is full."""


@dataclass(frozen=True, kw_only=True)
class WordReport:
    """A word of the target prompt: how it was aligned and how long it was held.

    word_steps: tau, the share of the trajectory in which its map was the source's; None where nothing is held.
    relation:   Lambda, the cosine with the edited words; None where it was not computed.
    """

    text: str
    kind: str
    is_key: bool
    replaces: str | None
    word_steps: float | None
    relation: float | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditResult:
    """What an edit gave.

    request:      with every knob that was left open filled in: the same request gives the same pictures.
    source_maps, target_maps: [mh, mw, N] float32, cross-attention averaged over steps, layers and heads.
    spatial_map:  [mh, mw] float32, S; None for methods without one.
    made_with:    runner, device, dtype, scheduler and versions, see `EditModel.made_with`.
    timings:      seconds, of the whole batch that the edit shared.
    warnings:     what looks like a slip in the prompts, and what the method found suspicious.
    edited_image: the target as the model made it, at its size; `target_image` is the same but where a mask kept the
                  source, and of a real picture with a mask at the picture's own size.
    latents:      [2, C, h, w] float32 on the CPU: of source and target, as they were decoded.
    mask:         where the picture was allowed to change, of one channel, where one was given.
    image:        the real picture that was edited, as the model took it; `source_image` is then its reconstruction.
    reconstruction_psnr: of `source_image` against it, decibels; at most 60.
    """

    request: EditRequest
    model: str
    source_image: Image.Image
    target_image: Image.Image
    edited_image: Image.Image
    latents: Tensor
    alignment: Alignment
    words: tuple[WordReport, ...]
    source_maps: NDArray[np.float32]
    target_maps: NDArray[np.float32]
    spatial_map: NDArray[np.float32] | None = None
    made_with: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    mask: Image.Image | None = None
    image: OpenedImage | None = None
    reconstruction_psnr: float | None = None

    def __repr__(self) -> str:
        source, target = (
            repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
            for text in (self.request.source_prompt, self.request.target_prompt)
        )
        width, height = self.target_image.size
        name, seed = self.request.method.name, self.request.seed
        return f"EditResult({source} to {target}, {name}, seed {seed}, {width} x {height} pixels)"

    def _repr_png_(self) -> bytes:
        """Source and target under their prompts: what a notebook shows."""
        from adapedit.sheets import Cell, sheet

        cells = [Cell(self.source_image, "source"), Cell(self.target_image, "target")]
        buffer = io.BytesIO()
        sheet([("", cells)], headings=self.headings(), cell=256).save(buffer, "PNG")
        return buffer.getvalue()

    def word_map(self, word: Word, *, prompt: str = "target") -> NDArray[np.float32]:
        """The map [mh, mw] of a word of `alignment.target_words` (or source_words), its tokens added up."""
        maps = self.target_maps if prompt == "target" else self.source_maps
        return maps[:, :, list(word.tokens)].sum(2)

    def maps_sheet(self) -> Image.Image:
        """Pictures, spatial map and every word's map, labelled, as one picture."""
        from adapedit.sheets import Cell, overlay, sheet

        first = [Cell(self.source_image, "source"), Cell(self.target_image, "target")]
        if self.image is not None:
            first.insert(
                0, Cell(self.image.picture, "input", f"comes back at {self.reconstruction_psnr:.1f} dB")
            )
        if self.mask is not None:
            first.append(Cell(self.mask, "mask", "white: may change"))
        if self.spatial_map is not None:
            picture = overlay(self.edited_image, self.spatial_map, peak=1.0)
            first.append(Cell(picture, "spatial map S", "bright: the edit may act"))
        source = [
            Cell(overlay(self.source_image, self.word_map(word, prompt="source")), word.text, word.kind)
            for word in self.alignment.source_words
        ]
        target = [
            Cell(overlay(self.edited_image, self.word_map(word)), word.text, _note(report))
            for word, report in zip(self.alignment.target_words, self.words, strict=True)
        ]
        rows = [("", first), ("Where each word of the source looks", source), ("and of the target", target)]
        return sheet(rows, headings=self.headings(), columns=8)

    def headings(self) -> tuple[Heading, Heading]:
        """Both prompts for the top of a sheet, what differs standing out."""
        from adapedit.sheets import Heading

        source = tuple((word.text, word.kind != "kept") for word in self.alignment.source_words)
        target = tuple((word.text, word.is_key) for word in self.alignment.target_words)
        return Heading("source", source), Heading("target", target)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and maps, ready for JSON."""
        described: dict[str, Any] = {
            "format": FORMAT,
            "adapedit": __version__,
            "model": self.model,
            "made_with": self.made_with,
            "request": self._request(),
            "words": [asdict(word) for word in self.words],
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "warnings": list(self.warnings),
        }
        if self.image is not None and self.reconstruction_psnr is not None:
            described["input"] = {"size": list(self.image.size), "notes": list(self.image.notes)}
            described["reconstruction_psnr"] = round(self.reconstruction_psnr, 3)
        return described

    def _request(self) -> dict[str, Any]:
        """The request as it can be repeated from any working folder: with the whole paths of its pictures."""
        request = self.request.model_dump(mode="json")
        for name, picture in self._pictures().items():
            request[name]["file"] = os.path.abspath(picture.file) if picture.kept is None else picture.kept_as
        return request

    def _pictures(self) -> dict[str, PictureFile]:
        """Pictures of the request, by field."""
        given = {name: getattr(self.request, name) for name in PICTURES}
        return {name: picture for name, picture in given.items() if picture is not None}

    def save(self, folder: str | Path) -> Path:
        """Write source.png, target.png, maps.png and edit.json; earlier ones are replaced.

        A picture that was not given as a path is written as input.png, too, byte for byte, and a mask as mask.png.
        Raises `OutputError` where the folder can't be written; nothing half-written is left.
        """
        folder = folder_path(folder)
        with OutputFolder(folder) as part:
            self.source_image.save(part / "source.png")
            self.target_image.save(part / "target.png")
            self.maps_sheet().save(part / "maps.png")
            for picture in self._pictures().values():
                if picture.kept is not None:
                    (part / picture.kept_as).write_bytes(picture.kept)
            (part / "edit.json").write_text(strict_json(self.to_dict()), encoding="utf-8")
        return folder


def make_result(
    *,
    request: EditRequest,
    model: EditModel,
    context: Context,
    edited: EditOutcome,
    found: Findings,
    source_image: Image.Image,
    edited_image: Image.Image,
    seconds: Mapping[str, float],
) -> EditResult:
    """Put together what the engine, the method and the decoder gave; `edited` has the source's track first.

    What a mask keeps is put back here.
    """
    from adapedit.prompts.alignment import prompt_warnings

    assert edited.maps is not None
    # A weight or an instruction changes the picture though the prompts are equal.
    more = getattr(request.method, "equalizer", ()) or getattr(request.method, "instruction", None)

    def grid(values: Tensor) -> NDArray[np.float32]:
        return values.float().cpu().reshape(*context.map_size, *values.shape[1:]).numpy()

    mask = context.mask
    decibels = None if context.image is None else psnr(context.image.picture, source_image)
    return EditResult(
        request=request,
        model=model.name,
        made_with=dict(model.made_with),
        source_image=source_image,
        target_image=edited_image if mask is None else mask.paste(edited_image, source_image),
        edited_image=edited_image,
        latents=edited.latents[:2].float().cpu(),
        alignment=context.alignment,
        words=_reports(context.alignment, found),
        source_maps=grid(edited.maps[0]),
        target_maps=grid(edited.maps[1]),
        spatial_map=None if found.spatial_map is None else grid(found.spatial_map),
        timings=dict(seconds),
        warnings=(
            *prompt_warnings(context.alignment, changes_more=bool(more)),
            *_picture_warnings(edited_image.size, decibels, model),
            *found.warnings,
        ),
        mask=None if mask is None else mask.picture,
        image=context.image,
        reconstruction_psnr=decibels,
    )


def _picture_warnings(size: tuple[int, int], decibels: float | None, model: EditModel) -> Iterator[str]:
    """What is asked of a model that it was not trained for. decibels: of a real picture as it comes back."""
    if max(size) > LARGE * model.side:
        yield (
            f"{size[0]} x {size[1]} pixels are more than {LARGE} times the model's {model.side}: things may come "
            "twice; leave height and width out"
        )
    if decibels is not None and decibels < POOR:
        mend = "try another inversion or more steps"
        if model.name == "builtin":
            mend = "the built-in model knows only its drawings: name another by --model or from_pretrained"
        yield f"the picture comes back at {decibels:.1f} dB, hardly to be known again; {mend}"


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, decibels, at most 60."""
    import numpy as np

    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return 60.0 if error == 0 else min(60.0, float(10 * np.log10(255**2 / error)))


def _reports(alignment: Alignment, found: Findings) -> tuple[WordReport, ...]:
    reports = []
    for word in alignment.target_words:
        place = word.tokens[0]
        replaced = alignment.source_words[word.counterpart] if word.counterpart is not None else None
        reports.append(
            WordReport(
                text=word.text,
                kind=word.kind,
                is_key=word.is_key,
                replaces=replaced.text if replaced is not None and word.kind == "replaced" else None,
                word_steps=None if found.word_steps is None else float(found.word_steps[place]),
                relation=None if found.relation is None else float(found.relation[place]),
            )
        )
    return tuple(reports)


def _note(report: WordReport) -> str:
    parts = ["edited" if report.is_key else report.kind]
    if report.word_steps is not None:
        parts.append(f"tau {report.word_steps:.2f}")
    if report.relation is not None:
        parts.append(f"relation {report.relation:.2f}")
    return ", ".join(parts)


def strict_json(value: Any) -> str:
    """JSON that every reader takes, in lines. Raises `AdapEditError` for what is no number in it."""
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise AdapEditError(
            "the result has a value that is not finite; the model overflowed: use torch_dtype=torch.bfloat16 or float32"
        ) from error


def folder_path(value: Any) -> Path:
    """A folder's path. Raises unless `value` is a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise AdapEditError(f"folder is {value!r}, wanted a path")
    return Path(value)


def check_output(folder: str | Path) -> None:
    """Raise `OutputError` where `folder` could not be written. Changes nothing, and makes no folder."""
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        there = _nearest(folder)
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        # Asking is not enough: root may do all that permissions forbid, and a file system may be read-only.
        trial = there / _part_name(folder)
        trial.mkdir()
        trial.rmdir()
        if shutil.disk_usage(there).free < LEAST_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritable(folder, error) from error


class OutputFolder:
    """Gives a hidden folder to write into; what is in it takes its place in `folder` when the block ends well.

    A new `folder` appears at once, with all its files. In one that was there earlier files of the same names are
    replaced, each whole: the descriptions (.json) are taken away first and put in last, so that where a description
    stands the pictures beside it are its own. Where the block fails or is interrupted `folder` is left as it was, or
    is not made, nor its parents. Raises `OutputError`, on entry where nothing can be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> Path:
        check_output(self.folder)
        try:
            # Inside a folder that is there already: it may be a mount point, or its parent closed to us.
            self.part = _nearest(self.folder) / _part_name(self.folder)
            self.part.mkdir()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return self.part

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                give_usual_modes(self.part)
                self._publish()
        except OSError as problem:
            raise _unwritable(self.folder, problem) from problem
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(self.folder, error) from error

    def _publish(self) -> None:
        if not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.part, self.folder)
            return
        paths = sorted(self.part.iterdir(), key=lambda path: (path.suffix == ".json", path.name))
        for path in paths:
            if (self.folder / path.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{path.name} in it is a folder")
        for path in paths:
            if path.suffix == ".json":
                (self.folder / path.name).unlink(missing_ok=True)
        for path in paths:
            os.replace(path, self.folder / path.name)


def give_usual_modes(folder: Path) -> None:
    """Let others read the files in a folder as they may any new file of ours: some libraries make theirs private."""
    sample = folder / _part_name(folder)
    sample.touch()
    usual = sample.stat().st_mode & 0o777
    sample.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(usual)


def _part_name(folder: Path) -> str:
    return f".{folder.absolute().name}.{secrets.token_hex(4)}.part"


def _nearest(folder: Path) -> Path:
    """The folder, or else the nearest of its parents that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _unwritable(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    mend = "free some space or " if error.errno == errno.ENOSPC else ""
    return OutputError(f"can't write to {folder} ({reason}); {mend}choose another output folder")
