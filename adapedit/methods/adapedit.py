"""AdapEdit as data: word steps from FWT, the spatial map from DPS (SPEC: Eq. 4 to 9 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from adapedit.methods.base import Cells, Context, Findings, Knob, Method, Share, whole_error
from adapedit.methods.words import (
    Span,
    Words,
    WordShares,
    ends,
    key_tokens,
    local_blend,
    tokens_of,
    with_word_values,
)
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.prompts.alignment import Alignment
    from adapedit_engine.plan import Adaptive, EditOutcome, EditPlan, LocalBlend
    from adapedit_kernels import WordRelation

RELEASED = {"threshold": 0.002, "threshold_mode": "absolute", "normalise": "sum", "centre": False}
"""The authors' code's; the paper's threshold, alpha_tau, is 0.03."""


class AdapEdit(Method, name="adapedit"):
    """AdapEdit (AAAI 2024): FWT frees words by their relation to the edited ones, DPS says where the edit may act.

    lambda_tau:     factor on the words' steps, Eq. 7: less frees words earlier.
    lambda_s:       weight of the target's maps after a word is freed, Eq. 8.
    lambda_spatial: factor on the spatial map, Eq. 9; above 1 (not in the paper) the map is cut off at 1.
    spatial_grow:   cells by which the spatial map is widened (not in the paper): features at a figure's edge look less
                    like it, so what is left out there stays as it was.
    spatial_grow_several: the same, if it is more, where an edit is about several words: S compares with the mean of
                    their embeddings, which no pixel looks like, and leaves out more of each.
    alpha_tau:      what of a map counts as looked at (threshold_mode "absolute": a probability, as in the paper;
                    "relative": a share of each map's peak).
    normalise, temperature, centre: how maps become weights, and whether features lose their mean over the pixels.
    variant:        "paper", or "released": the authors' code's formulas (its threshold and normalisation, no DPS).
    two_pass:       FWT and DPS from a pass over the target before the edit, the faithful variant; else from running
                    averages of the edit itself.
    observed_prompts: whose pictures are looked at: "target", as in the paper, or "both": the spatial map is the larger
                    of the target's and of that of what the edit is about in the source, where otherwise that would
                    stay. With two passes that takes two rows a step more in the first, of which the local blend takes
                    its places, too.
    blend_difference: of two passes that look at both: cells in which the two prompts' latents differ by more than this
                    (root mean square over channels) belong to the words' places that they touch, unless those are half
                    of the picture: a foot of the source's figure that no word looks at would stay. None: no cell does.
    fwt, dps, mask: switches for the ablations; without FWT every word has `cross_replace_steps`.
    word_steps:     {"dog": 0.3}: the share for which a word is held, over what is found or given for all. An inserted
                    word is held to nothing.
    self_replace_steps: share for self-attention, or two: from and to; None: what FWT gives to tokens without a word.
    local_blend:    words outside whose places the source's latents are kept, as in Prompt-to-Prompt; true: those that
                    the edit is about and what they replace. Not in the paper.
    """

    gone: ClassVar = {
        "single_pass": "one pass is what is done now; leave it out, or write two_pass=True for two",
        "spatial_map": "leave it out; the single pass finds S anew at every step",
        "blend_by": "leave it out; the local blend goes by its words",
    }

    lambda_tau: Knob = 1.0
    lambda_s: Share = 0.98
    lambda_spatial: Knob = 1.0
    spatial_grow: Cells = 0
    spatial_grow_several: Cells = 0
    alpha_tau: Share = 0.3
    threshold_mode: Literal["relative", "absolute"] = "relative"
    normalise: Literal["sum", "softmax"] = "sum"
    temperature: Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False, strict=True)] = 0.01
    centre: bool = True
    variant: Literal["paper", "released"] = "paper"
    two_pass: bool = False
    observed_prompts: Literal["target", "both"] = "target"
    fwt: bool = True
    dps: bool = True
    mask: bool = True
    cross_replace_steps: Share = 0.8
    word_steps: WordShares = ()
    self_replace_steps: Span | None = None
    local_blend: Words = ()
    blend_difference: Knob | None = None
    blend_threshold: Share = 0.3
    blend_start: Share = 0.2
    blend_grow: Cells = 1

    @model_validator(mode="after")
    def _has_its_pass(self) -> AdapEdit:
        if self.blend_difference is not None and not (self.two_pass and self.observed_prompts == "both"):
            raise whole_error(
                f"blend_difference is {self.blend_difference:g}, which only two passes that look at both prompts read; "
                "add two_pass=True, observed_prompts='both', or leave it out"
            )
        return self

    def observe(self, context: Context) -> EditPlan | None:
        """Averages for FWT and DPS: of the target prompt alone, or of the source's as well."""
        if not self.two_pass or not (self.fwt or self._spatial or self._observes_both):
            return None
        return context.plan(("source", "target") if self._observes_both else ("target",))

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        from adapedit_engine.plan import CrossEdit, SelfEdit

        alignment = context.alignment.as_variant(self.variant)
        self._refuse_unheld(alignment)
        words, spatial = (None, None) if observed is None else self._found(context, observed)
        word_steps, span = self._times(context, words)
        layers = context.coarse_layers()
        rows = context.from_source(layers, *span)
        strength = [1.0, self.lambda_s if self.variant == "paper" else 1.0]
        return context.plan(
            cross_attention=CrossEdit(
                token_map=context.on_target(alignment.token_map),
                own_weight=context.on_target(alignment.own_weight),
                word_steps=context.on_target(word_steps),
                strength=torch.tensor(strength, dtype=torch.float32, device="cpu"),
                spatial_map=context.on_target(spatial[-1]) if spatial is not None and self._spatial else None,
            ),
            self_attention=SelfEdit(query=rows, key=rows, layers=context.on_target(layers)),
            local_blend=self._blend(context, observed),
            adaptive=None if self.two_pass else self._adaptive(context, tracks=2),
        )

    def findings(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        assert edited.word_steps is not None and edited.spatial_map is not None
        spatial = edited.spatial_map[1].cpu()
        words, _ = self._found(context, edited if observed is None else observed)
        relation = words.relation[-1].cpu()
        # Where a mask says it, S need not.
        told = spatial if self._spatial and context.mask is None else None
        return Findings(
            word_steps=edited.word_steps[1].cpu(),
            relation=relation,
            spatial_map=spatial,
            warnings=collapse_warnings(context.alignment, relation, told, self._relation()),
        )

    @property
    def _observes_both(self) -> bool:
        return self.observed_prompts == "both" and (self._spatial or bool(self.local_blend))

    @property
    def _spatial(self) -> bool:
        return self.dps and self.variant == "paper"

    def _times(self, context: Context, found: WordRelation | None) -> tuple[Tensor, tuple[Any, Any]]:
        """Word steps [N], and the shares from and to which self-attention is the source's."""
        import torch

        tokens = context.alignment.num_tokens
        word_steps = torch.full((tokens,), self.cross_replace_steps, dtype=torch.float32, device="cpu")
        share: Any = self.cross_replace_steps
        if self.fwt and found is not None:
            word_steps, share = found.word_steps[-1], found.default_steps[-1]
        elif self.fwt and not self.two_pass:
            # Nothing has been seen before the first step: hold every word through it, but those that the edit is
            # about, which are free whatever is seen. The layout is held as long as the other tokens are.
            word_steps = (~key_tokens(context.alignment)).to(torch.float32)
            share = 1 / len(context.schedule)
        word_steps = with_word_values(
            word_steps, context.alignment, ((one, one.value) for one in self.word_steps)
        )
        return word_steps, (0.0, share) if self.self_replace_steps is None else ends(self.self_replace_steps)

    def _found(self, context: Context, seen: EditOutcome) -> tuple[WordRelation, Tensor]:
        """What FWT finds, and S [K, P] of DPS, in a pass whose last track is the target's."""
        import torch

        from adapedit_engine.batch import observe
        from adapedit_engine.cache import to_device

        # Of a pass before the edit features of the last step, as the paper and its code: there the picture is done.
        features = seen.last_features if self.two_pass else seen.features
        assert seen.maps is not None and features is not None
        device, tracks = seen.maps.device, len(seen.maps)
        adaptive = vars(self._adaptive(context, tracks))
        knobs = to_device({name: knob for name, knob in adaptive.items() if knob is not None}, device)
        source = torch.zeros(tracks, dtype=torch.int64, device=device)
        return observe(seen.maps, features, knobs, source, context.map_size)

    def _adaptive(self, context: Context, tracks: int) -> Adaptive:
        """What FWT and DPS want to know of the edit, for a plan whose last track is the target."""
        import torch

        from adapedit_engine.plan import Adaptive
        from adapedit_kernels import RelationKnobs

        alignment = context.alignment
        nothing = torch.zeros(tracks, alignment.num_tokens, dtype=torch.bool, device="cpu")
        keys = nothing.clone()
        keys[-1] = key_tokens(alignment)
        if tracks == 2:
            keys[0] = alignment.source_key_tokens
        several = len(alignment.word_of_token[keys[-1]].unique()) > 1
        target = torch.arange(tracks, device="cpu") == tracks - 1
        by_relation = self.fwt and self.self_replace_steps is None
        knobs = RelationKnobs.make(tracks, lambda_tau=self.lambda_tau, **self._relation(), device="cpu")
        return Adaptive(
            key_tokens=keys,
            word_of_token=alignment.word_of_token.expand(tracks, -1).clone(),
            **knobs._asdict(),
            lambda_spatial=torch.full((tracks,), self.lambda_spatial, dtype=torch.float32, device="cpu"),
            temporal=target.unsqueeze(1) & ~tokens_of(self.word_steps, alignment) & self.fwt,
            spatial=target & self._spatial,
            joined=target & (self.observed_prompts == "both"),
            grow=target * max(self.spatial_grow, self.spatial_grow_several if several else 0),
            self_layers=target.unsqueeze(1) & context.coarse_layers() & by_relation,
        )

    def _refuse_unheld(self, alignment: Alignment) -> None:
        for one in self.word_steps:
            for word in alignment.find(one.word, one.occurrence):
                if alignment.own_weight[word.tokens[0]] == 1:
                    raise AdapEditError(
                        f"word_steps names {word.text!r}, for which the source prompt has no word that could hold it; "
                        "leave it out"
                    )

    def _relation(self) -> dict[str, Any]:
        """The knobs of `RelationKnobs.make`, but lambda_tau."""
        own = {name: getattr(self, name) for name in ("threshold_mode", "normalise", "centre")}
        knobs = RELEASED if self.variant == "released" else {**own, "threshold": self.alpha_tau}
        masked = {} if self.mask else {"threshold": 0.0}
        return {**knobs, **masked, "temperature": self.temperature, "variant": self.variant}

    def _blend(self, context: Context, observed: EditOutcome | None) -> LocalBlend | None:
        """The local blend, by what the pass before the edit saw of both prompts, where there is one."""
        import torch

        from adapedit_engine.batch import widened, word_places

        blend = local_blend(context, self)
        if blend is None or not (self.two_pass and self._observes_both):
            return blend
        # Places are found, cut and widened here, so that a plan that does not know them yet differs in nothing else.
        height, width = context.map_size
        mask = torch.zeros(height * width, dtype=torch.float32, device="cpu")
        if observed is not None and observed.maps is not None:
            of_source, of_target = (
                word_places(
                    observed.maps[track : track + 1],
                    weights[1:].to(observed.maps.device, non_blocking=True),
                )
                for track, weights in enumerate((blend.source_weights, blend.token_weights))
            )
            grow = torch.full((1,), self.blend_grow, device=of_target.device)
            wide = widened(torch.maximum(of_source, of_target), context.map_size, grow)[0]
            mask = (wide > self.blend_threshold).to(torch.float32)
            if self.blend_difference is not None:
                cells = mask.unflatten(0, (height, width))
                wider = with_difference(cells, observed.latents, self.blend_difference)
                mask = torch.where(mask.mean() <= 0.5, wider.flatten(), mask)
        known = torch.tensor([False, True], device="cpu")
        return replace(
            blend,
            known=known,
            places=context.on_target(mask),
            threshold=torch.where(known, 0.5, blend.threshold),
            grow=torch.zeros_like(blend.grow),
        )


def with_difference(mask: Tensor, latents: Tensor, least: float) -> Tensor:
    """Widen a mask by the cells that touch it, themselves or through others, and in which two latents differ.

    mask [h, w], 0 and 1, float; latents [2, C, H, W], any float dtype; least: in the latents' units, root mean square
    over the channels and a cell's latents above which they do. Returns [h, w] as the mask is. That two prompts'
    predictions differ where an edit acts is what DiffEdit goes by (Couairon et al. 2022).
    """
    import torch
    import torch.nn.functional as F

    height, width = mask.shape
    apart = (latents[0] - latents[1]).float().square().mean(0)
    apart = F.adaptive_avg_pool2d(apart[None], (height, width))[0].sqrt()
    may = torch.maximum(mask, (apart > least).to(mask.dtype))
    # Whether that is all is not looked at, which would wait for the device. No shortest way through cells that touch
    # has more than two cells of a square of four.
    for _ in range(2 * -(-height // 2) * -(-width // 2)):
        mask = torch.minimum(F.max_pool2d(mask[None], 3, stride=1, padding=1)[0], may)
    return mask


def collapse_warnings(
    alignment: Alignment, relation: Tensor, spatial_map: Tensor | None, by: Mapping[str, Any]
) -> tuple[str, ...]:
    """Say when FWT or DPS has nothing to tell apart, and which knob mends it.

    relation [N] (Lambda), spatial_map [P] (S), both found `by` these knobs. An edit that changes nothing has nothing to
    warn of.
    """
    if not key_tokens(alignment).any():
        return ()
    warnings = []
    better = {"normalise": "sum", "threshold_mode": "relative", "centre": True}
    missing = [f"{knob}={value!r}" for knob, value in better.items() if by[knob] != value]
    advice = f"; try {', '.join(missing)}" if missing else ""
    words = [float(relation[word.tokens[0]]) for word in alignment.target_words if not word.is_key]
    if len(words) > 1 and max(words) - min(words) < 0.05:
        warnings.append(
            f"FWT has collapsed: all kept words are related to the edit by {sum(words) / len(words):.2f}, so all get "
            f"the same steps{advice}"
        )
    if spatial_map is not None and (float(spatial_map.max()) < 0.05 or float(spatial_map.std()) < 0.02):
        warnings.append(
            f"DPS has collapsed: the spatial map is {float(spatial_map.mean()):.2f} nearly everywhere, so it points at "
            "nothing; lower alpha_tau or set threshold_mode='relative', centre=True"
        )
    return tuple(warnings)
