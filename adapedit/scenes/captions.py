"""Captions of scenes, with the role of every word: which figure it names, or the place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapedit.scenes.world import COLOURS, KINDS, PLACES, POSES, SIZES, Figure, Scene

FUNCTION_WORDS = ("a", "an", "and", "on", "the")
VOCABULARY: tuple[str, ...] = (*FUNCTION_WORDS, *SIZES, *COLOURS, *KINDS, *POSES, *PLACES)
"""Every word that a caption can hold: the built-in model knows these and no others."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """Which attributes a caption names. `pose` is "before" (a sitting dog), "after" (a dog sitting) or None."""

    size: bool = True
    colour: bool = True
    pose: str | None = "after"


@dataclass(frozen=True, kw_only=True)
class CaptionWord:
    """A word with its role (an attribute's name or "function") and the figure that it speaks of."""

    text: str
    role: str
    figure: int | None = None


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as words with roles."""

    words: tuple[CaptionWord, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def _figure_words(figure: Figure, mention: Mention, index: int) -> list[CaptionWord]:
    named: list[tuple[str, str]] = []
    if mention.size:
        named.append((figure.size, "size"))
    if mention.colour:
        named.append((figure.colour, "colour"))
    if mention.pose == "before":
        named.append((figure.pose, "pose"))
    named.append((figure.kind, "kind"))
    if mention.pose == "after":
        named.append((figure.pose, "pose"))
    article = "an" if named[0][0][0] in "aeiou" else "a"
    words = [CaptionWord(text=article, role="function", figure=index)]
    return words + [CaptionWord(text=text, role=role, figure=index) for text, role in named]


def caption(scene: Scene, mentions: tuple[Mention, ...] | None = None, *, place: bool = True) -> Caption:
    """The caption of a scene, e.g. *a small red dog sitting and a blue bird on the grass*.

    mentions: what is named of each figure; all of it by default.
    """
    mentions = mentions or tuple(Mention() for _ in scene.figures)
    words: list[CaptionWord] = []
    for index, (figure, mention) in enumerate(zip(scene.figures, mentions, strict=True)):
        if index:
            words.append(CaptionWord(text="and", role="function"))
        words += _figure_words(figure, mention, index)
    if place:
        words += [CaptionWord(text="on", role="function"), CaptionWord(text="the", role="function")]
        words.append(CaptionWord(text=scene.place, role="place"))
    return Caption(words=tuple(words))


def random_mention(rng: np.random.Generator) -> Mention:
    """Adjectives are left out often enough for the model to know prompts with and without each."""
    pose = rng.choice(("after", "before", ""), p=(0.5, 0.38, 0.12))
    return Mention(size=bool(rng.random() < 0.6), colour=bool(rng.random() < 0.85), pose=str(pose) or None)


def random_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of the scene that leaves out some of what could be said."""
    mentions = tuple(random_mention(rng) for _ in scene.figures)
    return caption(scene, mentions, place=bool(rng.random() < 0.94))
