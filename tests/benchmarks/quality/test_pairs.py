"""A file of pairs: both kinds of columns, names, seeds, knobs, and every way in which a line can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.pairs import Pair, checked, read_pairs
from adapedit.methods.settings import make_settings
from adapedit import AdapEditError

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
    digests = {pair.digest, other.digest, Pair(**GOOD, seed=1).digest}
    assert len(digests) == 3 and Pair(**GOOD, name="x").digest == pair.digest


def test_names_are_distinct(tmp_path: Path) -> None:
    names = ["dog", "dog", "dog-2", None, "00004"]
    lines = [GOOD if name is None else {**GOOD, "name": name} for name in names]
    found = [line.name for line in read_pairs(written(tmp_path / "f", *lines))]
    assert found == ["dog", "dog-2", "dog-2-2", "00004", "00004-2"]


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
        ({**GOOD, "input": "a dog"}, "columns of two kinds of file"),
        ({**GOOD, "target_prompt": "  "}, "target_prompt is '"),
        ({**GOOD, "target_prompt": 5}, "target_prompt is 5: input should be a valid string"),
        ({**GOOD, "target_prompt": GOOD["source_prompt"]}, "both prompts are the same"),
        ({**GOOD, "seed": "often"}, "seed is 'often'"),
        ({**GOOD, "seed": -1}, "seed is -1"),
        ({**GOOD, "sead": 1}, "sead is 1: extra inputs are not permitted"),
        ({**GOOD, "knobs": {"p2p": {}}}, "there is no method 'p2p'"),
        ({**GOOD, "knobs": {"sdedit": {"power": 1}}}, "sdedit has no knob 'power'"),
        ({**GOOD, "knobs": {"sdedit": {"strength": 3}}}, "strength is 3"),
        ({**GOOD, "knobs": [1]}, "knobs is [1]"),
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
    common = make_settings("adapedit", lambda_tau=2, alpha_tau=0.1)
    found = pair.settings(common)
    assert (found.lambda_tau, found.alpha_tau) == (0.5, 0.1)
    # What nobody named stays open for the model's own defaults.
    assert found.model_fields_set == {"lambda_tau", "alpha_tau"}
    plain = make_settings("plain")
    assert pair.settings(plain) == plain
    request = pair.request(common, 9, 3.0)
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (9, 3.0, pair.chosen_seed)
    assert request.method == found


def test_instructions_go_to_the_method_that_is_told_them() -> None:
    pair, common = Pair(**GOOD, instruction="make it blue"), make_settings("instruct-pix2pix")
    assert pair.settings(common).instruction == "make it blue"
    assert Pair(**GOOD).settings(common).instruction is None
    own = Pair(**GOOD, instruction="x", knobs={"instruct-pix2pix": {"instruction": "paint it blue"}})
    assert own.settings(common).instruction == "paint it blue"


def test_checks_take_pairs_out(tmp_path: Path) -> None:
    def check(pair: Pair) -> None:
        if pair.seed == 1:
            raise AdapEditError("not this one")

    lines = read_pairs(written(tmp_path / "f", GOOD, {**GOOD, "seed": 1}, b"{"))
    found = checked(lines, check)
    assert [line.error for line in found[:2]] == [None, "not this one"] and found[1].pair is None
    assert found[0] == lines[0] and found[2] == lines[2]
