"""Metrics of an edit from its two pictures and prompts: what one is, and those of CLIP, by any checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import torch
import transformers
from PIL import Image
from torch import Tensor

from adapedit import AdapEditError
from adapedit.inversion.cache import weights_digest


class MetricError(AdapEditError):
    """Weights of a metric that can't be loaded, or pictures and prompts that it can't measure."""


class PictureMetric(Protocol):
    """Measures an edit from its two pictures and its two prompts.

    about: what the figures depend on, ready for JSON: figures under another `about` can't be compared.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def check(self, prompt: str) -> None:
        """Raise `AdapEditError` for a prompt that can't be measured."""

    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        """A number for each of `columns`."""


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
            raise MetricError(
                f"the prompt {shorten(prompt, 40)!r} has {count} tokens, CLIP reads {self._longest}; shorten it"
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
    """A CLIP checkpoint from a folder or the hub, float32, safetensors alone. Raises `MetricError` in one line."""
    name = str(source)
    try:
        model, info = transformers.CLIPModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name)
        # There is a second way of resizing, by torchvision; figures shall not depend on what is installed.
        image_processor = transformers.CLIPImageProcessorPil.from_pretrained(name)
    except Exception as error:
        raise MetricError(
            f"there is no CLIP model at {name!r} ({one_line(error)}); give a folder that CLIPModel and CLIPProcessor "
            "were saved in as safetensors, or a hub name (owner/name)"
        ) from error
    if info["missing_keys"]:  # which the library fills up with random numbers
        raise MetricError(f"CLIP model {name!r} lacks {sorted(info['missing_keys'])[0]}; copy it again")
    about = {"CLIP model": name, "CLIP weights": weights_digest(model)[:8]}
    return ClipMetric(model.requires_grad_(False).to(device), tokenizer, image_processor, about=about)


def one_line(error: Exception) -> str:
    """The reason, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unit(features: Any) -> Tensor:
    # Which of the two it is depends on the library's version.
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features[0].float(), dim=0).cpu()


def _cosine(one: Tensor, two: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), two.double(), dim=0, eps=1e-12))
