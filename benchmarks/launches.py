"""Operations that a step on a device is made of, by kind of edit, without a device: `python -m benchmarks.launches`.

The device is made up ("meta": shapes, and no values), the shape is a published one. What can't be done without waiting
for a device can't be done without values: reading one, or copying to the host, raises. So does an operation that is
given tensors of both sides. A whole edit is run so, but for the picture, and one step of every pass is counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapedit.architectures import ARCHITECTURES, NOISE, TOKENS
from adapedit.checkpoints import BUILTIN
from adapedit.configs import ModelFacts
from adapedit.edit import passes, prepare
from adapedit.methods import AdapEdit, MasaCtrl, Plain, PromptToPrompt, SDEdit
from adapedit.methods.base import Method
from adapedit.model import EditModel
from adapedit.sharing import Caches
from adapedit_engine.batch import Batch
from adapedit_engine.cache import HostCopy
from adapedit_engine.models.text import HIDDEN, POOLED
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.step import run
from adapedit_kernels import dispatch
from benchmarks import common, shapes

DEVICE = torch.device("meta")
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty")
KERNELS = {
    "attention_maps": 2,
    "word_relation": 3,
    "spatial_similarity": 2,
    "group_norm": 2,
    "where.ScalarOther": 2,
    "where.ScalarSelf": 2,
}
"""Launches of an operation that has more than one, where that is known."""
STEPS = 20
EDITS: dict[str, Method] = {
    "plain": Plain(),
    "sdedit": SDEdit(),
    "masactrl": MasaCtrl(),
    "prompt-to-prompt": PromptToPrompt(),
    "prompt-to-prompt, local blend": PromptToPrompt(local_blend=True),
    "adapedit": AdapEdit(),
    "adapedit, local blend": AdapEdit(local_blend=True, observed_prompts="both"),
    "adapedit, two passes": AdapEdit(two_pass=True),
    "adapedit, two passes, local blend": AdapEdit(
        two_pass=True, local_blend=True, observed_prompts="both", blend_difference=0.3
    ),
}


class Pass(NamedTuple):
    """One pass of an edit: rows; operations of one step inside of the model and around it, and launches of the
    project's own kernels among both; copies to the device when it joins.
    """

    rows: int
    model: int
    around: int
    own: int
    copies: int


class Crossing(AssertionError):
    """An operation that would wait for the device, or that no device could do."""


class Recorder(TorchDispatchMode):
    """Counts what is asked of the device, by the room that asks (`where`), and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.where: str | None = None
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        found = func(*args, **kwargs)
        made = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        devices = {t.device.type for t in (*tensors, *made)}
        name, overload = func.overloadpacket.__name__, str(func).partition(".")[2]
        arguments = [argument.name for argument in func._schema.arguments]
        if devices == {"cpu", DEVICE.type}:
            upload = name in ("to", "_to_copy", "copy_") and all(t.is_meta for t in made)
            if not upload or self.where in ("model", "around"):
                raise Crossing(f"{func} is given tensors of the host and of the device")
            if not (dict(zip(arguments, args, strict=False)) | kwargs).get("non_blocking"):
                raise Crossing(f"{func} to the device waits")
            self.counts["copies"] += 1
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        given = {t.untyped_storage()._cdata for t in tensors}
        is_view = not writes and all(t.untyped_storage()._cdata in given for t in made)
        if self.where and DEVICE.type in devices and not is_view and name not in NO_LAUNCH:
            count = KERNELS.get(overload, KERNELS.get(name, 1))
            self.counts[self.where] += count
            self.counts["own"] += count if func.namespace == "adapedit_kernels" else 0
        return found

    @contextmanager
    def room(self, name: str) -> Iterator[None]:
        """Count for a room."""
        before, self.where = self.where, name
        try:
            yield
        finally:
            self.where = before


class Shape(EditModel):
    """A model of which there is a UNet without values; its text encoder and VAE give zeros."""

    def encode_ids(self, input_ids: Tensor) -> dict[str, Tensor]:
        specs, (rows, tokens) = self.runner.specs, input_ids.shape[1:]
        shapes: dict[str, tuple[int, ...]] = {HIDDEN: (rows, tokens, specs.text_channels)}
        if POOLED in specs.conditioning:
            shapes[POOLED] = (rows, *specs.conditioning[POOLED])
        return {name: torch.zeros(shape, dtype=self.runner.dtype) for name, shape in shapes.items()}


def shape_of(unet: Any, side: int) -> Shape:
    """A model around a UNet that lies on "meta". side: of the latents."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BUILTIN / "tokenizer", model_max_length=TOKENS)
    return Shape(
        name="shape",
        tokenizers=(tokenizer,),
        text=None,
        runner=PyTorchRunner(unet.to(memory_format=torch.channels_last).eval().requires_grad_(False)),
        vae=None,
        scheduler=DDIMScheduler(**NOISE),
        facts=ModelFacts(),
        latent_size=side,
        latent_scale=1.0,
        vae_factor=8,
        max_tokens=TOKENS,
    )


def recorded(model: EditModel, method: Method) -> list[Pass]:
    """Every pass of an edit. Raises `Crossing`, or what PyTorch raises where a value is read."""
    edit = prepare(common.request(0, STEPS, method=method), model, Caches.of(model.runner))
    copies: Any = SimpleNamespace(begin=lambda outcome: HostCopy(source=outcome, copy=outcome))
    found = []
    recorder = Recorder()
    with model.runner, patch.object(dispatch, "chosen_implementation", lambda *_, **__: "triton"), recorder:
        job = passes([edit], model, Caches.of(model.runner), copies)
        plans = next(job)
        while True:
            outcomes = []
            for plan in plans:
                outcome, counts = one_step(model.runner, plan, recorder)
                outcomes.append(outcome)
                found.append(counts)
            try:
                plans = job.send(outcomes)
            except StopIteration as end:
                (edited,) = end.value
                if edited.error is not None:
                    raise edited.error from None
                return found


def one_step(runner: Any, plan: EditPlan, recorder: Recorder) -> tuple[Any, Pass]:
    """What the plan comes to, and what a step of it is made of, as it is captured on CUDA."""
    recorder.counts.clear()
    batch = Batch(runner, plan.rows, whole=True)
    seat = batch.join(plan)
    infer = runner.infer

    def inside(*args: Any, **named: Any) -> Any:
        with recorder.room("model"):
            return infer(*args, **named)

    batch.feed([seat])
    with recorder.room("around"), patch.object(runner, "infer", inside), torch.inference_mode():
        run(batch.call([seat]))
    seat.step = plan.steps
    counts = recorder.counts
    return batch.leave(seat), Pass(plan.rows, *(counts[name] for name in Pass._fields[1:]))


def models() -> dict[str, Shape]:
    """A model in each published shape."""
    with DEVICE:
        known, wide = shapes.unet(), UNet2DConditionModel.from_config(ARCHITECTURES["xl_base"]["unet"])
    return {"Stable Diffusion v1.4": shape_of(known.half(), 64), "SDXL": shape_of(wide.half(), 128)}


def main() -> int:
    for title, model in models().items():
        rows = [
            (name if not place else "", place + 1, *each)
            for name, method in EDITS.items()
            for place, each in enumerate(recorded(model, method))
        ]
        print(f"{title}\n\n{common.table(('edit', 'pass', *Pass._fields), rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
