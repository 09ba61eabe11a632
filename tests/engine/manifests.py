"""The manifest of a bundle of one layer of each kind, as JSON has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapedit_engine.bundle import describe_files

ROWS, EDITED, MAPS, TOKENS, SIDE = "rows", "edits", "maps", 6, 8
EDITS = {
    "edited_row": ("int64", [EDITED]),
    "source_row": ("int64", [EDITED]),
    "token_map": ("float32", [EDITED, TOKENS, TOKENS]),
    "own_weight": ("float32", [EDITED, TOKENS]),
    "spatial_weight": ("float32", [EDITED, TOKENS]),
    "spatial_map": ("float32", [EDITED, 16]),
    "map_row": ("int64", [MAPS]),
    **dict.fromkeys(("self_query_row", "self_key_row", "self_value_row"), ("int64", [1, ROWS])),
}
SAMPLE, HIDDEN = ("float32", [ROWS, 4, SIDE, SIDE]), ("float32", [ROWS, TOKENS, 32])
PIXELS, TEXT = ("float32", [ROWS, 3, 64, 64]), ("float32", [ROWS, TOKENS, 40])
TENSORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text_encoder": ({"input_ids": ("int64", [ROWS, TOKENS])}, {"hidden_states": HIDDEN}),
    "text_projection": ({"encoder_hidden_states": HIDDEN}, {"projected_text": TEXT}),
    "unet": (
        {"sample": SAMPLE, "timestep": ("float32", [ROWS]), "projected_text": TEXT, **EDITS},
        {
            "noise_pred": SAMPLE,
            "cross_attention_maps": ("float32", [MAPS, 16, TOKENS]),
            "visual_features": ("float32", [MAPS, 16, 20]),
        },
    ),
    "vae_decoder": ({"latents": SAMPLE}, {"pixels": PIXELS}),
    "vae_encoder": ({"pixels": PIXELS}, {"latents": SAMPLE}),
}


def a_manifest(folder: Path) -> dict[str, Any]:
    """Of a bundle of one layer of each kind, whose files are in `folder`."""
    layer = {"name": "mid.attn1", "place": "mid", "level": 1, "channels": 20}
    specs = {"in_channels": 4, "out_channels": 4, "text_channels": 32, "self_layers": [layer]}
    specs |= {"cross_layers": [layer | {"name": "mid.attn2"}], "map_level": 1, "feature_channels": 20}

    def listed(tensors: dict[str, Any]) -> list[Any]:
        return [{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()]

    graphs = {
        name: {
            "file": f"{name}.onnx",
            "inputs": listed(ins),
            "outputs": listed(outs),
            "opset": 23,
            "nodes": 9,
        }
        for name, (ins, outs) in TENSORS.items()
    }
    return {
        "format": 4,
        "model": "tiny",
        "precision": "float32",
        "specs": specs,
        "tokens": TOKENS,
        "vocabulary": 49408,
        "height": SIDE,
        "width": SIDE,
        "rows": None,
        "vae": {"factor": 8, "scaling_factor": 0.18215},
        "scheduler": "DDIMScheduler",
        "graphs": graphs,
        "files": {name: vars(spec) for name, spec in describe_files(folder).items()},
        "versions": {"torch": "2"},
        "parity": {"edit": {"maps": {"largest": 0.1, "mean": 0, "ratio": 1e-9}}},
    }
