"""CLIP score and CLIP directional similarity, by any CLIP checkpoint that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adapedit.checkpoint import HUB_NAME, ModelError, Place, check_weights, on_hub, read_part
from adapedit_kernels.errors import AdapEditError

FILES = (("config.json",), ("tokenizer_config.json",), ("preprocessor_config.json", "processor_config.json"))
"""What a folder has; of the last, which of the two depends on the version of the library that saved it."""

KIND = "a folder that CLIPModel and CLIPProcessor were saved in"


class ClipMetric:
    """Measures edits in the space that a CLIP model (Radford et al. 2021) embeds pictures and texts in.

    With E the embeddings of length 1, x and c picture and prompt of the source, x* and c* those of the edit:

        clip_score       = 100 cos(E(x*), E(c*))
        clip_directional = cos(E(x*) - E(x), E(c*) - E(c)), 0 where one of the two did not change
        clip_image       = cos(E(x), E(x*))

    Pictures are resized, cropped and normalised as the checkpoint says, by Pillow; nothing is cut off a prompt.
    """

    columns = ("clip_score", "clip_directional", "clip_image")

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, *, about: Mapping[str, str]) -> None:
        self._model, self._tokenizer, self._image_processor = model.eval(), tokenizer, image_processor
        self.about = dict(about)
        # What a file says is often absent or endless; the table of positions is neither.
        self._longest = int(model.config.text_config.max_position_embeddings)
        self._last: tuple[bytes, Tensor] | None = None

    def check(self, prompt: str) -> None:
        """Raise `AdapEditError` where the prompt has more tokens than the model reads."""
        count = len(self._tokenizer(prompt).input_ids)
        if count > self._longest:
            raise AdapEditError(
                f"the prompt {_shortened(prompt)!r} has {count} tokens, CLIP reads {self._longest}; shorten it"
            )

    @torch.inference_mode()
    def embed_text(self, prompt: str) -> Tensor:
        """[D] float32 of length 1, on the CPU."""
        inputs = self._tokenizer(prompt, return_tensors="pt").to(self._model.device)
        return _unit(self._model.get_text_features(**inputs))

    @torch.inference_mode()
    def embed_image(self, picture: Image.Image) -> Tensor:
        """[D] float32 of length 1, on the CPU. Alone, so that equal pictures have exactly equal embeddings."""
        inputs = self._image_processor(picture.convert("RGB"), return_tensors="pt").to(self._model.device)
        return _unit(self._model.get_image_features(**inputs))

    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        """The three figures of an edit."""
        x, edited = self._embed_source(source), self.embed_image(target)
        c, wanted = self.embed_text(source_prompt), self.embed_text(target_prompt)
        return {
            "clip_score": 100 * _cosine(edited, wanted),
            "clip_directional": _cosine(edited - x, wanted - c),
            "clip_image": _cosine(x, edited),
        }

    def _embed_source(self, source: Image.Image) -> Tensor:
        """Edits of one source come one after the other; it is embedded once."""
        key = source.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self.embed_image(source)
        return self._last[1]


def load_clip(source: str | Path, *, device: str | torch.device = "cpu") -> ClipMetric:
    """A CLIP checkpoint from a folder or the hub, float32. Raises `ModelError` in one line where it can't be used."""
    place = _locate(str(source))
    import transformers

    from adapedit.evaluation.store import fingerprint

    # With torchvision there would be a second way of resizing; figures shall not depend on what is installed.
    resizer = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    model = read_part(place, "CLIP weights", transformers.CLIPModel, subfolder="", dtype=torch.float32)
    tokenizer = read_part(place, "CLIP tokenizer", transformers.CLIPTokenizer, subfolder="")
    image_processor = read_part(place, "CLIP image processor", resizer, subfolder="")
    about = {"CLIP model": place.name, "CLIP weights": fingerprint(model)}
    return ClipMetric(model.requires_grad_(False).to(device), tokenizer, image_processor, about=about)


def _locate(name: str) -> Place:
    folder = Path(name).expanduser()
    if folder.is_dir():
        missing = [names[0] for names in FILES if not any((folder / name).is_file() for name in names)]
        if missing:
            raise ModelError(f"{folder} is no CLIP checkpoint (no {', '.join(missing)}); give {KIND}")
        check_weights(folder)
        return Place(name=name, folder=folder)
    if HUB_NAME.fullmatch(name) and not folder.exists():
        return on_hub(name, KIND, "config.json")
    raise ModelError(f"there is no CLIP model at {name!r}; give {KIND}, or a hub name (owner/name)")


def _unit(features: Any) -> Tensor:
    features = getattr(
        features, "pooler_output", features
    )  # which of the two depends on the library's version
    return torch.nn.functional.normalize(features[0].float(), dim=0).cpu()


def _cosine(one: Tensor, two: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), two.double(), dim=0, eps=1e-12))


def _shortened(prompt: str, length: int = 40) -> str:
    return prompt if len(prompt) <= length else prompt[:length].rstrip() + " ..."
