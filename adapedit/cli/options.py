"""The options that commands have in common, with their help; nothing here imports torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

Texts = list[str] | None
Text = str | None
Number = float | None
METHOD, MODEL, OUTPUT, PICTURE = "Method", "Model", "Output", "Real picture"


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["[dim]Examples:[/dim]", *lines])


def builtin_words() -> str:
    """The words that the built-in model knows, for the end of a command's help."""
    facts = Path(__file__).parents[1] / "builtin" / "adapedit.json"
    return "[dim]Words of the built-in model:[/dim] " + " ".join(json.loads(facts.read_text())["known_words"])


def option(help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option under the heading `panel`, named after its parameter unless `names` are given."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_method, _model, _output, _picture = (
    partial(option, panel=name) for name in (METHOD, MODEL, OUTPUT, PICTURE)
)


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclass parameters as options of their own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = groups.get(parameter.name)
        own = inspect.signature(group, eval_str=True).parameters.values() if group else [parameter]
        parameters += [one.replace(kind=one.KEYWORD_ONLY) for one in own]

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _print_version(wanted: bool) -> None:
    if wanted:
        from adapedit import __version__

        print(f"adapedit {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, option("Print the version.", "--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What holds for all commands."""


Method = Annotated[
    str, _method("adapedit, prompt-to-prompt, masactrl, sdedit, instruct-pix2pix, or plain: the seed alone.")
]
Set = Annotated[
    Texts,
    _method(
        "Any knob of the method; may be repeated. A wrong name lists those that there are.",
        "--set",
        metavar="KNOB=VALUE",
    ),
]
Approximate = Annotated[
    Texts,
    _method("Faster, not exact: guidance_until=0.6, solver=dpm++; may be repeated.", metavar="NAME=VALUE"),
]
HowToFit = Annotated[
    Literal["crop", "pad", "stretch"], _picture("To the model's size: its middle, white bars, or stretched.")
]
MaxRows = Annotated[int, _model("Rows of a call at most: less takes less memory.", min=1)]
Out = Annotated[Path, _output("Folder for the results; it is made if need be.")]
Json = Annotated[bool, _output("Print one JSON object and nothing else.", "--json")]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is denoised."""

    seed: Annotated[int, option("Of the first noise; it decides the source picture.")] = 0
    steps: Annotated[int, option("Denoising steps.", "--steps", "--num-inference-steps")] = 50
    guidance: Annotated[
        Number,
        option(
            "Guidance scale; by default what suits the model (7.5 for Stable Diffusion).",
            "--guidance",
            "--guidance-scale",
        ),
    ] = None

    def fields(self) -> dict[str, Any]:
        """As a request has them."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Prompts(Sampling):
    """A pair of prompts, and how their pictures are denoised."""

    source: Annotated[str, typer.Argument(help="What the picture shows.")]
    target: Annotated[str, typer.Argument(help="What it shall show.")]
    prompt_weights: Annotated[
        bool,
        option("Read (word:1.3) in TARGET as a weight, of a method with an equalizer.", "--prompt-weights"),
    ] = False
    max_embeddings_multiples: Annotated[
        int, option("Times 77 tokens that a prompt may have, in chunks; only in PyTorch.", min=1)
    ] = 1
    negative: Annotated[
        Text, option("What neither picture shall show.", "--negative", "--negative-prompt", metavar="TEXT")
    ] = None
    source_negative: Annotated[Text, option("What the source shall not show.", metavar="TEXT")] = None
    target_negative: Annotated[Text, option("What the target shall not show.", metavar="TEXT")] = None

    def fields(self) -> dict[str, Any]:
        return {
            "source_prompt": self.source,
            "target_prompt": self.target,
            "prompt_weights": self.prompt_weights,
            "max_embeddings_multiples": self.max_embeddings_multiples,
            "negative_prompt": self.negative,
            "source_negative_prompt": self.source_negative,
            "target_negative_prompt": self.target_negative,
            **super().fields(),
        }


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A real picture, and its inversion."""

    image: Annotated[
        Path | None, _picture("A real picture to edit, which SOURCE describes.", metavar="FILE")
    ] = None
    fit: HowToFit = "crop"
    mask: Annotated[
        Path | None,
        _picture(
            "Where the picture may change: white may, black stays. Of the picture's size.", metavar="FILE"
        ),
    ] = None
    inversion: Annotated[Text, _picture("ddim, null-text, direct or edit-friendly; by default direct.")] = (
        None
    )
    inversion_set: Annotated[
        Texts,
        _picture(
            "Any knob of the inversion, such as skip=0.5 of edit-friendly; may be repeated.",
            metavar="KNOB=VALUE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The model, and what it runs on. dtype: of weights and activations; latents are float32 throughout."""

    model: Annotated[
        str,
        _model("builtin, a folder in the diffusers layout, a .safetensors file, a bundle, or a hub name."),
    ] = "builtin"
    runner: Annotated[
        Text,
        _model(
            "What executes the model: pytorch or pytorch-compiled for checkpoints; onnxruntime, openvino, "
            "onnxruntime-cuda, ... for bundles, and for checkpoints, which are exported once; tensorrt, ... for "
            "bundles with plans."
        ),
    ] = None
    device: Annotated[str, _model("auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")] = "auto"
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        _model("Of a checkpoint's weights; by default float32."),
    ] = None
    weights_variant: Annotated[
        Text, _model("The word in the names of weight files, such as fp16 or non_ema.")
    ] = None
    config: Annotated[
        Path | None, _model("Of a single file: a folder with its configurations and tokenizers.")
    ] = None
    tokenizer: Annotated[
        Path | None, _model("Of a single file without --config: the folder of a CLIP tokenizer.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """Knobs of methods that have an option of their own."""

    lambda_tau: Annotated[Number, _method("Factor on the words' steps: less frees words earlier.")] = None
    lambda_s: Annotated[Number, _method("Weight of the target's maps once a word is free, 0 to 1.")] = None
    lambda_spatial: Annotated[Number, _method("Factor on the spatial map: less confines the edit.")] = None
    alpha_tau: Annotated[Number, _method("What of a map counts as looked at, 0 to 1.")] = None
    variant: Annotated[Text, _method("paper, or released: the formulas of the authors' code.")] = None
    two_pass: Annotated[
        bool | None,
        _method(
            "Find the words' steps in a pass before the edit, or during it (default).",
            "--two-pass/--single-pass",
        ),
    ] = None
    no_fwt: Annotated[bool, _method("Ablation: hold all words equally long.", "--no-fwt")] = False
    no_dps: Annotated[bool, _method("Ablation: let the edit act everywhere.", "--no-dps")] = False
    no_mask: Annotated[bool, _method("Ablation: count all of a map as looked at.", "--no-mask")] = False
    cross_replace_steps: Annotated[Number, _method("Share of the steps in which all words are held.")] = None
    word_steps: Annotated[
        Text,
        _method("Share of the steps in which a word is held, as dog:0.3,grass:0.8.", metavar="WORD:SHARE"),
    ] = None
    self_replace_steps: Annotated[Number, _method("Share in which self-attention is the source's.")] = None
    local_blend: Annotated[
        Texts,
        _method(
            "Change nothing away from this word; may be repeated (adapedit, prompt-to-prompt).",
            metavar="WORD",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        on = {name: value for name, value in vars(self).items() if not name.startswith("no_")}
        off = {name: False for name in ("fwt", "dps", "mask") if getattr(self, f"no_{name}")}
        return {name: value for name, value in on.items() if value not in (None, [])} | off
