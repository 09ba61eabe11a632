"""AdapEdit as data: word steps from FWT, the spatial map from DPS (SPEC: Eq. 4 to 9 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit.alignment import Alignment
from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.prompt_to_prompt import local_blend
from adapedit.methods.settings import AdapEdit
from adapedit_engine.adaptive import Adaptive, Found, observe
from adapedit_engine.blend import LocalBlend, blend_mask, word_places
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_kernels import RelationKnobs, word_relation

RELEASED_THRESHOLD = 0.002
"""alpha_tau of the authors' code; the paper's is 0.03."""

SPATIAL_CUT = 0.2
"""What of the spatial map belongs to the edit, where the local blend goes by it."""


@dataclass(frozen=True)
class AdapEditMethod(Method):
    """Two passes (faithful) or one: see `AdapEdit` for the knobs."""

    settings: AdapEdit

    def observe(self, context: EditContext) -> EditPlan | None:
        """Averages for FWT and DPS: of the target prompt alone, or of the source's as well."""
        settings = self.settings
        both = self._observes_both
        if settings.single_pass or not (settings.fwt or self._spatial or both):
            return None
        return context.plan((context.source, context.target) if both else (context.target,), collect=True)

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        settings, alignment = self.settings, context.alignment
        aligned = alignment.as_variant(settings.variant)
        tokens, pixels = alignment.num_tokens, context.map_size[0] * context.map_size[1]
        word_steps = torch.full((tokens,), settings.cross_replace_steps)
        self_share = settings.cross_replace_steps
        spatial_map = torch.ones(pixels)
        adaptive: Adaptive | None = None
        found: Found | None = None
        if observed is not None and observed.maps is not None and observed.features is not None:
            tracks = len(observed.maps)
            sources = torch.zeros(tracks, dtype=torch.int64, device=observed.maps.device)
            adaptive_ = self.adaptive(context, tracks=tracks).to(observed.maps.device)
            found = observe(observed.maps, observed.features, adaptive_, sources)
            if settings.fwt:
                word_steps, self_share = found.word_steps[-1].cpu(), float(found.self_share[-1])
            if self._spatial:
                spatial_map = found.spatial_map[-1].cpu()
        elif settings.single_pass:
            adaptive = self.adaptive(context, tracks=2)
            if settings.fwt:
                # Nothing has been seen before the first step: hold every word through it, but those that the edit is
                # about, which are free whatever is seen. The layout is held as long as the other tokens are.
                word_steps = (~key_tokens(alignment)).float()
                self_share = 1 / len(context.schedule)
        if self._spatial and settings.spatial_map == "per-step" and adaptive is None:
            adaptive = self.adaptive(context, tracks=2)
        if settings.self_replace_steps is not None:
            self_share = settings.self_replace_steps
        rows = context.self_table(self_share)
        return context.plan(
            (context.source, context.target),
            source_track=(0, 0),
            token_map=context.on_target(aligned.token_map),
            own_weight=context.on_target(aligned.own_weight),
            word_steps=context.on_target(word_steps),
            strength=torch.tensor([1.0, settings.lambda_s if settings.variant == "paper" else 1.0]),
            spatial_map=context.on_target(spatial_map),
            self_query=rows,
            self_key=rows,
            adaptive=adaptive,
            local_blend=self._blend(context, observed, found),
            collect=True,
        )

    def _blend(
        self, context: EditContext, observed: EditOutcome | None, found: Found | None
    ) -> LocalBlend | None:
        """The local blend, by what the pass before the edit saw of both prompts, where there is one."""
        settings, blend = self.settings, local_blend(context.alignment, self.settings)
        if blend is None or not self._observes_both:
            return blend
        size, sources = context.map_size, torch.zeros(2, dtype=torch.int64)
        # Places are found, cut and widened here, so that a plan that does not know them yet differs in nothing else.
        blend = replace(blend, places=torch.zeros(2, size[0] * size[1]), threshold=0.5, grow=0)
        if observed is None or observed.maps is None or found is None:
            return blend
        spatial, by = found.spatial_map.cpu(), settings.blend_by
        places, cut = word_places(observed.maps.cpu(), blend.token_weights), settings.blend_threshold
        grow = settings.blend_grow
        # Of a place S covers most of the picture. Its words look here and there, and what is widened takes from the
        # figures that have to stay.
        if self._spatial and (by == "spatial-map" or (by == "auto" and float(spatial[-1].mean()) > 0.5)):
            places, cut, grow = spatial, SPATIAL_CUT, 0
        mask = blend_mask(places, sources, map_size=size, latent_size=size, threshold=cut, grow=grow)[1, 0]
        if settings.blend_difference is not None and float(mask.mean()) <= 0.5:
            mask = with_difference(mask, observed.latents.cpu(), settings.blend_difference)
        # The source's places are in the target's by now. Its own are left empty: edits that share it may see others.
        return replace(blend, places=context.on_target(mask.flatten()))

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        word_steps = None if edited.word_steps is None else edited.word_steps[1].cpu()
        spatial = None if edited.spatial_map is None else edited.spatial_map[1].cpu()
        seen = edited if observed is None else observed
        assert seen.maps is not None and seen.features is not None
        alignment = context.alignment
        relation = word_relation(
            seen.maps[-1:].cpu(),
            seen.features[-1:].cpu(),
            key_tokens(alignment)[None],
            alignment.word_of_token[None],
            RelationKnobs.make(1, lambda_tau=self.settings.lambda_tau, **self._relation()),
        ).relation[0]
        warnings = collapse_warnings(
            alignment, relation, spatial if self._spatial else None, self._relation()
        )
        return Findings(word_steps=word_steps, relation=relation, spatial_map=spatial, warnings=warnings)

    @property
    def _observes_both(self) -> bool:
        settings = self.settings
        wanted = settings.observed_prompts == "both" and not settings.single_pass
        return wanted and (self._spatial or bool(settings.local_blend))

    @property
    def _spatial(self) -> bool:
        return self.settings.dps and self.settings.variant == "paper"

    def _relation(self) -> dict[str, Any]:
        settings = self.settings
        if settings.variant == "released":
            return {
                "threshold": RELEASED_THRESHOLD if settings.mask else 0.0,
                "threshold_mode": "absolute",
                "normalise": "sum",
                "centre": False,
                "variant": "released",
            }
        return {
            "threshold": settings.alpha_tau if settings.mask else 0.0,
            "threshold_mode": settings.threshold_mode,
            "normalise": settings.normalise,
            "temperature": settings.temperature,
            "centre": settings.centre,
            "variant": "paper",
        }

    def adaptive(self, context: EditContext, *, tracks: int) -> Adaptive:
        """What FWT and DPS want to know of the edit, for a plan whose last track is the target."""
        settings, alignment = self.settings, context.alignment
        keys = torch.zeros(tracks, alignment.num_tokens, dtype=torch.bool)
        keys[-1] = key_tokens(alignment)
        if tracks == 2:
            keys[0] = alignment.source_key_tokens
        layers = torch.zeros(len(context.specs.self_layers), tracks, dtype=torch.bool)
        layers[:, -1] = context.coarse_layers()
        several = len(alignment.word_of_token[key_tokens(alignment)].unique()) > 1
        grow = max(settings.spatial_grow, settings.spatial_grow_several if several else 0)
        from_relation = settings.fwt and settings.single_pass and settings.self_replace_steps is None
        return Adaptive(
            key_tokens=keys,
            word_of_token=alignment.word_of_token.expand(tracks, -1).clone(),
            temporal=settings.fwt and settings.single_pass,
            spatial=self._spatial,
            relation=self._relation(),
            lambda_tau=settings.lambda_tau,
            lambda_spatial=settings.lambda_spatial,
            joined=settings.observed_prompts == "both",
            spatial_grow=(0,) * (tracks - 1) + (grow,),
            map_size=context.map_size,
            self_layers=layers if from_relation else None,
        )


def with_difference(mask: Tensor, latents: Tensor, least: float) -> Tensor:
    """Widen a mask by the cells that touch it, themselves or through others, and in which two latents differ.

    mask [h, w], 0 and 1, float, on the CPU; latents [2, C, H, W], any float dtype, on the CPU; least: in the latents'
    units, root mean square over the channels and a cell's latents above which they do. Returns [h, w] in the mask's
    dtype. That two prompts' predictions differ where an edit acts is what DiffEdit goes by (Couairon et al. 2022).
    """
    from skimage.morphology import reconstruction

    apart = (latents[0] - latents[1]).float().square().mean(0)
    apart = F.adaptive_avg_pool2d(apart[None], (len(mask), mask.shape[1]))[0].sqrt()
    may = torch.maximum(mask, (apart > least).to(mask.dtype))
    return torch.from_numpy(reconstruction(mask.numpy(), may.numpy())).to(mask.dtype)


def key_tokens(alignment: Alignment) -> Tensor:
    """[N] bool: tokens of the key words; of an edit that only deletes, those of what the words belonged to."""
    return alignment.key_tokens if alignment.key_tokens.any() else alignment.anchor_tokens


def collapse_warnings(
    alignment: Alignment, relation: Tensor, spatial_map: Tensor | None, by: Mapping[str, Any]
) -> tuple[str, ...]:
    """Say when FWT or DPS has nothing to tell apart, and which knob mends it.

    relation [N] (Lambda), spatial_map [P] (S), both found `by` these settings. An edit that changes nothing has nothing
    to warn of.
    """
    if not key_tokens(alignment).any():
        return ()
    warnings = []
    better = {"normalise": "sum", "threshold_mode": "relative", "centre": True}
    missing = [f"{knob}={value!r}" for knob, value in better.items() if by[knob] != value]
    advice = f"; try {', '.join(missing)}" if missing else ""
    words = torch.tensor([relation[word.tokens[0]] for word in alignment.target_words if not word.is_key])
    if len(words) > 1 and float(words.max() - words.min()) < 0.05:
        warnings.append(
            f"FWT has collapsed: all kept words are related to the edit by {float(words.mean()):.2f}, so all get the "
            f"same steps{advice}"
        )
    if spatial_map is not None and (float(spatial_map.max()) < 0.05 or float(spatial_map.std()) < 0.02):
        warnings.append(
            f"DPS has collapsed: the spatial map is {float(spatial_map.mean()):.2f} nearly everywhere, so it points at "
            "nothing; lower alpha_tau or set threshold_mode='relative', centre=True"
        )
    return tuple(warnings)
