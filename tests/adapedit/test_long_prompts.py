"""Prompts of several chunks: words that are never divided, maps over chunks, and what diffusers makes of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.cli.main import USER_ERROR
from adapedit.cli.main import run as command
from adapedit.prompts.alignment import align
from adapedit.prompts.tokens import MAX_CHUNKS, tokenize_words
from tests.helpers.diffusers import diffusers_of
from tests.helpers.edits import SOURCE, TARGET, grey_levels
from tests.helpers.methods import plan_of, run
from tests.helpers.tiny_model import TOKENS, save_tiny_xl
from tests.helpers.tokenizers import small_clip_tokenizer

LONG = f"{SOURCE} in the snow next to a house on a mountain and a glass of milk and a cat"
LONGER = f"{LONG} in the park and two dogs walking next to a bicycle and a bowl of soup"
TARGETS = {one: one.replace("standing", "sitting") for one in (LONG, LONGER)}
STEPS = 4


def asked(source: str = LONG, **more: Any) -> EditRequest:
    fields = {"num_inference_steps": STEPS, "seed": 3, "max_embeddings_multiples": 3, **more}
    return EditRequest.make(source_prompt=source, target_prompt=TARGETS[source], **fields)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "dog", "zebra", "walking", "well-known", ",", "3.5"]), min_size=1, max_size=25
    )
)
def test_every_chunk_is_a_prompt_of_its_own(words):
    tokenizer, limit = small_clip_tokenizer(max_length=12), 12
    whole = tokenize_words(" ".join(words), tokenizer, max_length=1000)
    assume(whole.ends[0] - 1 <= MAX_CHUNKS * (limit - 2))
    cut = tokenize_words(" ".join(words), tokenizer, chunks=12)
    assert cut.texts == whole.texts and len(cut.input_ids) == 12 * limit
    ids = [[one.input_ids[place] for places in one.positions for place in places] for one in (cut, whole)]
    assert ids[0] == ids[1]
    for chunk, end in enumerate(cut.ends):
        own = cut.input_ids[chunk * limit : (chunk + 1) * limit]
        inside = own[1 : end - chunk * limit]
        padding = (tokenizer.pad_token_id,) * (limit - len(inside) - 2)
        assert own == (tokenizer.bos_token_id, *inside, tokenizer.eos_token_id, *padding)
        here = [places for places in cut.positions if places[0] // limit == chunk]
        assert [place for places in here for place in places] == list(range(chunk * limit + 1, end))
    used = cut.positions[-1][0] // limit + 1
    assert tokenize_words(" ".join(words), tokenizer, chunks=used).positions == cut.positions
    if used > 1:
        with pytest.raises(AdapEditError, match="takes .*12: shorten it by "):
            tokenize_words(" ".join(words), tokenizer, chunks=used - 1)


def test_words_find_their_counterparts_in_other_chunks():
    tokenizer = small_clip_tokenizer(max_length=10)
    found = align("a red dog on the grass and a cat", "a dog on the grass and a fox", tokenizer, chunks=3)
    assert found.num_tokens == 30 and torch.allclose(found.token_map.sum(1), torch.ones(30))
    moved = found.source_words[6], found.target_words[5]  # "and"
    assert [word.tokens[0] // 10 for word in moved] == [1, 0]
    assert found.token_map[moved[0].tokens[0], moved[1].tokens[0]] == 1
    red = found.source_words[1]
    assert red.kind == "deleted" and found.token_map[red.tokens[0], 0] == 1
    assert [float(found.token_map[start, start]) for start in (0, 10, 20)] == [1, 1, 1]
    same = align(LONG, LONG, small_clip_tokenizer(max_length=TOKENS), chunks=3)
    assert torch.equal(same.token_map, torch.eye(3 * TOKENS))


def embeddings(pipe: AdapEditPipeline, prompt: str, chunks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What text encoders make of a prompt's chunks, by plain calls of them, and what is pooled of the first."""
    hidden, pooled = [], None
    for tokenizer, encoder in zip(pipe.model.tokenizers, pipe.model.text.encoders, strict=True):
        cut = (
            tokenize_words(prompt, tokenizer, max_length=TOKENS, chunks=chunks).input_ids if prompt else None
        )
        empty = tokenizer("", padding="max_length", max_length=TOKENS).input_ids * chunks
        rows = torch.tensor(cut or empty).reshape(chunks, 1, TOKENS)
        with torch.inference_mode():
            made = [encoder(row, output_hidden_states=True) for row in rows]
        if len(pipe.model.tokenizers) == 1:
            return torch.cat([one.last_hidden_state for one in made], 1), None
        hidden.append(torch.cat([one.hidden_states[-2] for one in made], 1))
        pooled = getattr(made[0], "text_embeds", None)
    return torch.cat(hidden, -1), pooled


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    folder: Path = save_tiny_xl(tmp_path_factory.mktemp("xl"))
    return AdapEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize(("source", "chunks"), [(LONG, 2), (LONGER, 3)])
@pytest.mark.parametrize("negative", ["", "a cat"])
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_source_is_what_diffusers_makes_of_the_joined_embeddings(
    pipe, xl, kind, source, chunks, negative
):
    ours = pipe if kind == "sd" else xl
    plan = plan_of(ours, asked(source, negative_prompt=negative or None, guidance_scale=2.0))
    assert plan.tokens == chunks * TOKENS
    (outcome,) = run(ours, [plan])
    theirs = diffusers_of(ours) if kind == "sd" else StableDiffusionXLPipeline(**ours.components)
    theirs.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {}
    for prefix, prompt in (("", source), ("negative_", negative)):
        hidden, pooled = embeddings(ours, prompt, chunks)
        nothing = kind == "xl" and not prompt
        given[f"{prefix}prompt_embeds"] = torch.zeros_like(hidden) if nothing else hidden
        if pooled is not None:
            given[f"{prefix}pooled_prompt_embeds"] = torch.zeros_like(pooled) if nothing else pooled
    wanted = theirs(
        **given,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=STEPS,
        guidance_scale=2.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(outcome.latents[:1], wanted, atol=1e-4, rtol=0, check_stride=False)


@pytest.mark.parametrize(
    "method", [{"name": "adapedit", "two_pass": True}, "prompt-to-prompt", "masactrl", "sdedit"]
)
def test_methods_edit_under_long_prompts(pipe, method):
    more: dict[str, Any] = {"image": torch.rand(3, 16, 16)} if method == "sdedit" else {}
    if method == "masactrl":
        more = {
            "image": torch.rand(3, 16, 16),
            "inversion": {"name": "null-text", "inner_steps": 1, "cache": "off"},
        }
    (result,) = pipe.edit_batch([asked(method=method, **more)])
    assert grey_levels(result.source_image, result.target_image) > 0
    assert result.target_maps.shape[-1] == 2 * TOKENS


def test_long_and_short_prompts_run_in_one_batch(pipe):
    short = EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, num_inference_steps=STEPS, seed=3)
    requests = [short, asked(), asked(LONGER), short.model_copy(update={"max_embeddings_multiples": 3})]
    alone = [pipe.edit_batch([one])[0] for one in requests]
    for one, other in zip(pipe.edit_batch(requests), alone, strict=True):
        assert grey_levels(one.target_image, other.target_image) <= 1
    assert alone[0].target_image.tobytes() == alone[3].target_image.tobytes()


def test_what_is_too_long_is_refused_in_one_line(pipe, tiny_folder, capsys):
    for more, said in (
        ({"max_embeddings_multiples": 1}, "takes 20: shorten it by .*, or give max_embeddings_multiples=3$"),
        ({"max_embeddings_multiples": 2}, "takes 2 times 20: .*max_embeddings_multiples=3$"),
        (
            {"negative_prompt": "dog " * 200},
            "the negative prompt has 202 tokens, .* takes 20: shorten it by 182$",
        ),
    ):
        with pytest.raises(AdapEditError, match=said) as error:
            pipe.edit_batch([asked(LONGER, **more)])
        assert "\n" not in str(error.value)
    with pytest.raises(AdapEditError, match=f"max_embeddings_multiples is 9: .* {MAX_CHUNKS}"):
        asked(max_embeddings_multiples=9)
    words = ["words", "--no-run", LONG, TARGETS[LONG], "--model", str(tiny_folder)]
    assert command(words) == USER_ERROR
    assert command([*words, "--max-embeddings-multiples", "2"]) == 0
    assert "or give max_embeddings_multiples=2" in capsys.readouterr().err
