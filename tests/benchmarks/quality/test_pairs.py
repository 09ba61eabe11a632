"""A file of pairs: both kinds of columns, names, seeds, knobs, and every way in which a line can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapedit import AdapEditError
from benchmarks.quality.pairs import Pair, read_pairs

GOOD = {"source_prompt": "a red dog", "target_prompt": "a blue dog"}


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def test_both_kinds_of_columns(tmp_path: Path) -> None:
    published = {"input": " a red dog\n", "edit": "make it blue", "output": "a blue dog", "url": "somewhere"}
    own = {**GOOD, "seed": 7, "name": "blue", "knobs": {"sdedit": {"strength": 0.3}}}
    first, second = read_pairs(written(tmp_path / "f", published, b"", own))
    assert first.pair == Pair(**GOOD, instruction="make it blue") and (first.number, first.name) == (
        1,
        "00001",
    )
    assert second.pair == Pair(**own) and (second.number, second.name) == (3, "blue")
    assert first.error is None is second.error


def test_seeds_are_given_or_follow_from_the_source_prompt() -> None:
    pair, other = Pair(**GOOD), Pair(**{**GOOD, "target_prompt": "a green dog"})
    assert pair.chosen_seed == other.chosen_seed != Pair(**{**GOOD, "source_prompt": "a cat"}).chosen_seed
    assert Pair(**GOOD, seed=0).chosen_seed == 0
    digests = {pair.key, other.key, Pair(**GOOD, seed=1).key}
    assert len(digests) == 3 and Pair(**GOOD, name="x").key == pair.key


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"source_prompt": "a red', "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (
            ["a red dog", "a blue dog"],
            "it is no JSON object; wanted source_prompt and target_prompt, or input and",
        ),
        ({"source_prompt": "a dog"}, "it has no target_prompt (it has source_prompt)"),
        ({}, "it has no source_prompt and no target_prompt (it has nothing)"),
        ({"input": "a dog", "edit": "make it a cat"}, "it has no target_prompt"),
        ({**GOOD, "target_prompt": "  "}, "target_prompt: "),
        ({**GOOD, "target_prompt": 5}, "target_prompt: Input should be a valid string"),
        ({**GOOD, "target_prompt": GOOD["source_prompt"]}, "both prompts are the same"),
        ({**GOOD, "seed": "often"}, "seed: "),
        ({**GOOD, "seed": -1}, "seed: "),
        ({**GOOD, "sead": 1}, "sead: Extra inputs are not permitted"),
        ({**GOOD, "knobs": [1]}, "knobs: "),
    ],
)
def test_a_broken_line_is_named_and_the_rest_goes_on(tmp_path: Path, line: Any, message: str) -> None:
    first, broken, last = read_pairs(written(tmp_path / "f", GOOD, line, GOOD))
    assert first.pair is not None is not last.pair
    assert (broken.number, broken.name, broken.pair) == (2, "00002", None)
    assert broken.error is not None and message in broken.error and "\n" not in broken.error
    assert len(broken.error) < 250


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AdapEditError, match="can't be read .*give a file with one JSON object a line"):
        read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(AdapEditError, match="is empty"):
        read_pairs(written(tmp_path / "f", b"", b"  "))
    (line,) = read_pairs(written(tmp_path / "f", b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r"))
    assert line.pair == Pair(**GOOD)


def test_a_pair_has_its_own_knobs_over_those_of_all() -> None:
    pair = Pair(**GOOD, instruction="make it blue", knobs={"adapedit": {"lambda_tau": 0.5}})
    common = {"name": "adapedit", "lambda_tau": 2, "alpha_tau": 0.1}
    # What nobody named stays open for the model's own defaults.
    assert pair.variant(common) == {"name": "adapedit", "lambda_tau": 0.5, "alpha_tau": 0.1}
    assert pair.variant({"name": "plain"}) == {"name": "plain"}


def test_instructions_go_to_the_method_that_is_told_them() -> None:
    common = {"name": "instruct-pix2pix"}
    assert Pair(**GOOD, instruction="make it blue").variant(common)["instruction"] == "make it blue"
    assert Pair(**GOOD).variant(common) == common
    own = Pair(**GOOD, instruction="x", knobs={"instruct-pix2pix": {"instruction": "paint it blue"}})
    assert own.variant(common)["instruction"] == "paint it blue"
