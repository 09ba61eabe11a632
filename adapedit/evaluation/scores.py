"""Scores of edits: `evaluate` runs methods over cases and judges what comes out."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from PIL import Image

from adapedit.evaluation.judge import Judge, SceneReader, Verdict
from adapedit.evaluation.sources import Rendered
from adapedit.evaluation.suite import Case, Half
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

STEPS = 20
"""Denoising steps of an edit unless told otherwise: the whole table in well under an hour on two cores."""

BATCH = 4
"""Cases that are edited together, each by all methods."""


class Edited(Protocol):
    """What the judge wants of a result."""

    source_image: Image.Image
    target_image: Image.Image


class Editor(Protocol):
    """Edits requests: an `AdapEditPipeline`, with a model whose facts hold its own defaults."""

    model: Any

    def edit_batch(self, requests: Sequence[EditRequest]) -> Sequence[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """One edit of the suite by one variant, judged.

    variant: the label of a method with its knobs; settings: eight hexadecimal digits of them.
    """

    case: str
    kind: str
    half: Half
    figures: int
    variant: str
    settings: str
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Flat, for a line of JSON."""
        fields = asdict(self)
        return {**fields, **fields.pop("verdict")} | {"product": round(self.verdict.product, 6)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Score:
        """The reverse. Raises `KeyError` where something is missing."""
        verdict = Verdict(**{name: fields[name] for name in Verdict.__dataclass_fields__})
        own = {name: fields[name] for name in cls.__dataclass_fields__ if name != "verdict"}
        return cls(**own, verdict=verdict)


def evaluate(
    pipe: Editor,
    cases: Sequence[Case],
    settings: Any,
    *,
    reader: SceneReader | None = None,
    num_inference_steps: int = STEPS,
    guidance_scale: float | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
    sources: Rendered | None = None,
) -> list[Score]:
    """Edit every case by every variant and judge it; scores case by case, in the order given.

    settings: those of one method (`make_settings`), or {label: settings} of several, which then share their sources.
    reader:   the trained one by default.
    progress: called with the number of edits that are done and that of all.
    sources:  drawn ones with an inversion; None: what the model makes of the source prompts.

    >>> scores = evaluate(pipe, scene_suite("development", 70), make_settings("adapedit", lambda_tau=0.8))
    >>> sum(score.verdict.product for score in scores if score.verdict.usable)
    """
    variants = settings if isinstance(settings, Mapping) else {settings.name: settings}
    work = [(case, tuple(variants)) for case in cases]
    scores: list[Score] = []
    judge = judge_with(reader)
    for part in run(pipe, work, variants, judge, num_inference_steps, guidance_scale, batch, sources):
        scores += part
        if progress is not None:
            progress(len(scores), len(cases) * len(variants))
    return scores


def run(
    pipe: Editor,
    work: Sequence[tuple[Case, tuple[str, ...]]],
    variants: Mapping[str, Any],
    judge: Judge,
    num_inference_steps: int,
    guidance_scale: float | None,
    batch: int,
    sources: Rendered | None = None,
) -> Iterator[list[Score]]:
    """Scores batch by batch, of cases with the labels of the variants that each wants."""
    if batch < 1:
        raise AdapEditError(f"batch is {batch}, wanted at least 1")
    digests = {label: settings_digest(pipe, value) for label, value in variants.items()}
    for start in range(0, len(work), batch):
        # Variants that differ in nothing but their label (a sweep passes through the default) are run once.
        part = [
            (case, labels, _first_of_each(labels, digests)) for case, labels in work[start : start + batch]
        ]
        requests = [
            request_of(case, variants[label], num_inference_steps, guidance_scale, sources)
            for case, _, different in part
            for label in different.values()
        ]
        with warnings.catch_warnings():
            # Each says that a map points at nothing; over a suite the scores say it.
            warnings.simplefilter("ignore")
            results = iter(pipe.edit_batch(requests))
        scores: list[Score] = []
        for case, labels, different in part:
            if not labels:
                continue
            edits = [next(results) for _ in different]
            source = edits[0].source_image if sources is None else sources.picture(case)
            view = judge.view(case, source, rendered=sources is not None)
            verdicts = judge.verdicts(view, [edit.target_image for edit in edits])
            found = dict(zip(different, verdicts, strict=True))
            scores += [_score(case, label, digests[label], found[digests[label]]) for label in labels]
        yield scores


def _first_of_each(labels: Sequence[str], digests: Mapping[str, str]) -> dict[str, str]:
    """Per digest, the first label that has it."""
    return {digests[label]: label for label in reversed(labels)}


def request_of(
    case: Case,
    settings: Any,
    steps: int = STEPS,
    guidance_scale: float | None = None,
    sources: Rendered | None = None,
) -> EditRequest:
    """The request that a case is to a method."""
    return EditRequest.make(
        source_prompt=case.source_prompt,
        target_prompt=case.target_prompt,
        seed=case.seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        method=settings,
        **({} if sources is None else sources.request(case)),
    )


def filled_settings(pipe: Editor, settings: Any) -> Any:
    """What edits run with: the model's own defaults where a method's settings name nothing else."""
    return settings.with_defaults(pipe.model.facts.defaults.get(settings.name, {}))


def settings_digest(pipe: Editor, settings: Any) -> str:
    """Eight hexadecimal digits of the settings that a method runs with."""
    content = json.dumps(filled_settings(pipe, settings).model_dump(), sort_keys=True)
    return f"{zlib.crc32(content.encode()):08x}"


def judge_with(reader: SceneReader | None) -> Judge:
    """A judge with this reader, or with the trained one. Raises `AdapEditError` where its weights are missing."""
    if reader is not None:
        return Judge(reader)
    from adapedit.scenes.reader import BUILTIN, load_reader

    if not BUILTIN.exists():
        raise AdapEditError(
            f"the reader's weights are not at {BUILTIN}; train it: python -m adapedit.training.reader"
        )
    return Judge(load_reader())


def _score(case: Case, label: str, settings: str, verdict: Verdict) -> Score:
    return Score(
        case=case.name,
        kind=case.kind,
        half=case.half,
        figures=case.figures,
        variant=label,
        settings=settings,
        verdict=verdict,
    )
