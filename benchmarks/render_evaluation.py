"""Tables and plots of what `adapedit eval` wrote; a part of `python -m benchmarks.render`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.plot import Series, chart

MEANS = ("success", "kept", "background", "product")
OF_TRUTH = ("truth_psnr", "truth_ssim")
SOFT = ("all", "pose", "size")
"""Groups whose comparisons are shown: all kinds together, and the soft edits."""


def study(data: Mapping[str, Any], results: Path, *, suffix: str = "") -> list[str]:
    """A study of the suite: means of all edits, what sets the first variant apart, and curves of knobs.

    suffix: of the plots' file names.
    """
    parts = [
        f"{data['usable']} of {data['cases']} edits; means with 95 % bootstrap intervals.",
        "",
        _means(data),
        "",
    ]
    if data["curves"]:
        return [
            *parts,
            _correlations(data),
            "",
            *[_curve(curve, results, suffix) for curve in data["curves"]],
        ]
    first = next(iter(data["settings"]))
    parts += [
        f"Product of {first} minus that of the others, paired by edit, with the p-value of a sign-flip test; in how "
        "many edits it is better / worse by more than a thousandth:"
    ]
    return [*parts, "", _comparisons(data)]


def inversion(data: Mapping[str, Any], _: Path) -> list[str]:
    """What inversions lose without an edit."""
    rows = [
        (
            label,
            interval(found["psnr"], 2),
            interval(found["ssim"], 4),
            interval(found["latent_rmse"], 4),
            f"{found['seconds']:.1f}",
        )
        for label, found in data["means"].items()
    ]
    head = ("", "PSNR, dB", "SSIM", "latents, RMSE", "seconds a picture")
    steps = (
        f"{data['cases']} drawings, {data['num_inference_steps']} steps, guidance {data['guidance_scale']:g}."
    )
    return [steps, "", table(head, rows)]


def interval(found: Mapping[str, float], digits: int = 3) -> str:
    """A value with the ends of its interval."""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _means(data: Mapping[str, Any]) -> str:
    means = data["groups"]["all"]["means"]
    names = [name for name in (*MEANS, *OF_TRUTH) if name in next(iter(means.values()))]
    rows = [
        (
            label,
            *(interval(found[name], 1 if name == "truth_psnr" else 3) for name in names),
            f"{data['rows of a step'][label]:g}",
        )
        for label, found in means.items()
    ]
    return table(("", *names, "UNet rows a step"), rows)


def _comparisons(data: Mapping[str, Any]) -> str:
    groups = {name: data["groups"][name] for name in SOFT if name in data["groups"]}
    others = next(iter(groups.values()))["product against"]
    rows = [
        (other, *(_difference(group["product against"][other]) for group in groups.values()))
        for other in others
    ]
    head = ("", *(f"{name} ({group['count']} edits)" for name, group in groups.items()))
    return table(head, rows)


def _difference(found: Mapping[str, Any]) -> str:
    gap, p = found["difference"], found["p_value"]
    chance = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    text = f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}), {chance}"
    text = f"**{text}**" if gap["low"] > 0 else text
    # Reports of before do not count.
    return f"{text}; {found['better']} / {found['worse']}" if "better" in found else text


def _correlations(data: Mapping[str, Any]) -> str:
    rows = []
    for curve in data["curves"]:
        seen = [curve[name]["rank correlation"] for name in ("success", "moved")]
        rows.append(
            (curve["knob"], "rise" if curve["expected sign"] > 0 else "fall", *(interval(r, 2) for r in seen))
        )
    return table(("knob", "success should", "success, rank correlation", "distance to the source"), rows)


def _curve(curve: Mapping[str, Any], results: Path, suffix: str) -> str:
    name = f"knob_{curve['knob']}{suffix}.svg"
    lines = [
        Series(metric, curve["values"], [mean["value"] for mean in curve[metric]["means"]])
        for metric in ("success", "background", "product")
    ]
    chart(results / name, f"Edits by {curve['knob']}", curve["knob"], "mean", lines)
    return f"![{curve['knob']}]({name})"


Section = Callable[[Mapping[str, Any], Path], list[str]]

STUDIES: dict[str, tuple[str, Section]] = {
    "scenes": ("Methods", study),
    "scenes-more": ("Three methods, more edits of all kinds", study),
    "scenes-pose": ("Methods, more edits of the pose", study),
    "scenes-size": ("Methods, more edits of the size", study),
    "rendered": ("Methods on drawn sources", study),
    "ablation-more": ("AdapEdit without the paper's parts (Figure 6), more edits", study),
    "ablation": ("AdapEdit without any of its parts", study),
    "ablation-no-blend": ("The paper's parts alone, without the local blend", study),
    "ablation-paper": ("The same with the paper's own numbers", study),
    "knobs": ("AdapEdit's knobs (Figure 7 of the paper)", study),
    "knobs-paper": (
        "λ_τ with the paper's own numbers, without the local blend",
        partial(study, suffix="-paper"),
    ),
    "variants": ("Variants of AdapEdit", study),
    "inversion": ("Inversions without an edit", inversion),
}
"""Files of `results/evaluation`, with their titles."""


def take(folder: Path, results: Path) -> None:
    """Copy the reports that `adapedit eval --out FOLDER` wrote."""
    results.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        name = path.stem
        if json.loads(text).get("sources") == "rendered":
            name = name.replace("scenes", "rendered")
        if name in STUDIES:
            (results / f"{name}.json").write_text(text, encoding="utf-8")


def write_page(results: Path) -> None:
    """Write README.md into the folder of the reports, if there are any."""
    parts = []
    for name, (title, section) in STUDIES.items():
        path = results / f"{name}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {title}\n", *section(data, results), f"\n{_origin(data)}\n"]
    if parts:
        (results / "README.md").write_text(
            "\n".join(["# How well edits are made\n", *parts]), encoding="utf-8"
        )
        print(results / "README.md")


def _origin(data: Mapping[str, Any]) -> str:
    steps, made = data["num_inference_steps"], data.get("versions", {})
    about = [
        f"model {data['model']}, weights {data['weights']}",
        f"{steps} steps",
        *(f"{k} {v}" for k, v in made.items()),
    ]
    return f"*{'; '.join(about)}.*"
