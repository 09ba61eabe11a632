"""A result as files, and back: what the service keeps of an edit, and what a client makes an `EditResult` of."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit.images import PictureFile
from adapedit.prompts.alignment import Alignment, Word
from adapedit.request import EditRequest
from adapedit.result import EditResult, OutputFolder, WordReport, strict_json

ARRAYS, EDIT = "arrays.safetensors", "edit.json"
PICTURES = ("source", "target")
MASKED = ("edited_image", "mask")
"""What an edit with a mask has besides, kept as arrays."""
MAPS = ("source_maps", "target_maps", "spatial_map")
WORDS = ("source_words", "target_words")
LEVEL = 1
"""Of PNG's compression: more takes ten times as long, for a tenth of the size."""


def save(result: EditResult, folder: Path) -> dict[str, Any]:
    """Write a result; returns what edit.json says. The folder is whole where that is there."""
    import numpy as np
    from safetensors.numpy import save_file

    alignment = result.alignment
    tensors = {f.name: getattr(alignment, f.name) for f in fields(alignment)}
    arrays = {name: value.numpy() for name, value in tensors.items() if hasattr(value, "numpy")}
    arrays |= {name: getattr(result, name) for name in MAPS if getattr(result, name) is not None}
    arrays["latents"] = result.latents.numpy()
    if result.mask is not None:
        arrays |= {name: np.asarray(getattr(result, name)) for name in MASKED}
    words = {name: [asdict(word) for word in getattr(alignment, name)] for name in WORDS}
    described = {**result.to_dict(), **words, "spatial_map": result.spatial_map is not None}
    with OutputFolder(folder) as part:
        for name in PICTURES:
            getattr(result, f"{name}_image").save(part / f"{name}.png", compress_level=LEVEL)
        save_file({name: _contiguous(array) for name, array in arrays.items()}, part / ARRAYS)
        (part / EDIT).write_text(strict_json(described), encoding="utf-8")
    return described


def size(folder: Path) -> int:
    """Bytes of a saved result."""
    return sum(path.stat().st_size for path in folder.iterdir())


def read(open_: Callable[[str], bytes], request: EditRequest) -> EditResult:
    """The result of files: `open_` gives what is in one of that name. request: as it was asked for."""
    import torch
    from safetensors.numpy import load

    described: dict[str, Any] = json.loads(open_(EDIT))
    arrays = load(open_(ARRAYS))
    masked = {name: Image.fromarray(arrays.pop(name)) for name in MASKED if name in arrays}
    source, target = (Image.open(io.BytesIO(open_(f"{name}.png"))) for name in PICTURES)
    for picture in (source, target):
        picture.load()
    latents = torch.from_numpy(arrays.pop("latents").copy())
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array.copy()) for name, array in arrays.items() if name not in MAPS
    }
    words: dict[str, Any] = {name: tuple(_word(word) for word in described[name]) for name in WORDS}
    sent = {name: value for name, value in request if isinstance(value, PictureFile)}
    return EditResult(
        request=EditRequest.make(**{**described["request"], **sent}),
        model=described["model"],
        source_image=source,
        target_image=target,
        edited_image=masked.get("edited_image", target),
        latents=latents,
        mask=masked.get("mask"),
        alignment=Alignment(
            source_prompt=request.source_prompt, target_prompt=request.target_prompt, **words, **tensors
        ),
        words=tuple(WordReport(**word) for word in described["words"]),
        source_maps=arrays["source_maps"],
        target_maps=arrays["target_maps"],
        spatial_map=arrays.get("spatial_map"),
        made_with=described["made_with"],
        timings=described["timings"],
        warnings=tuple(described["warnings"]),
        image=None if request.image is None else request.image.open(masked.get("edited_image", target).size),
        reconstruction_psnr=described.get("reconstruction_psnr"),
    )


def draw(variant: str, folder: Path, request: EditRequest) -> bytes:
    """A PNG that is drawn when it is asked for: "maps", the sheet of all words, or "spatial-map", S in grey."""
    import numpy as np

    result = read(lambda name: (folder / name).read_bytes(), request)
    if variant == "maps":
        picture = result.maps_sheet()
    else:
        assert result.spatial_map is not None
        grey = Image.fromarray((result.spatial_map.clip(0, 1) * 255).round().astype(np.uint8))
        picture = grey.resize(result.edited_image.size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=LEVEL)
    return buffer.getvalue()


def _word(described: Mapping[str, Any]) -> Word:
    return Word(**{**described, "tokens": tuple(described["tokens"])})


def _contiguous(array: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(array)
