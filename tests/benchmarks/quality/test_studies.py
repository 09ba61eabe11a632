"""Studies: what they compare, what they leave out, and what is no study."""

from __future__ import annotations

import json

import pytest

from adapedit import AdapEditError
from benchmarks.quality.studies import ABLATIONS, METHODS, TITLES, make_study


@pytest.mark.parametrize("name", TITLES)
def test_studies_compare_different_settings(name: str) -> None:
    study = make_study(name, knobs={"adapedit": {"alpha_tau": 0.2}})
    assert next(iter(study.variants)) == "adapedit"
    if name == "scenes":
        assert list(study.variants) == list(METHODS)
    else:
        assert all(variant["alpha_tau"] == 0.2 for variant in study.variants.values())
    settings = [json.dumps(dict(variant)) for variant in study.variants.values()]
    assert len(set(settings)) == len(settings)


def test_what_is_left_out_of_all_is_not_left_out_again() -> None:
    study = make_study("ablation", knobs={"adapedit": {"local_blend": False}})
    assert [*make_study("ablation").variants] == [*ABLATIONS]
    assert "without the local blend" not in study.variants
    assert study.variants["without DPS"]["local_blend"] is False
    assert study.variants["the local blend alone"]["local_blend"] is True


def test_the_row_with_a_local_blend_has_the_knobs_of_its_method() -> None:
    knobs = {"prompt-to-prompt": {"cross_replace_steps": 0.9}}
    found = make_study("scenes", knobs=knobs).variants["prompt-to-prompt, local blend"]
    assert found == {"name": "prompt-to-prompt", "cross_replace_steps": 0.9, "local_blend": True}


def test_some_labels_alone() -> None:
    variants = make_study(
        "ablation", ["without DPS", "without the mask"], {"adapedit": {"lambda_tau": 0.7}}
    ).variants
    assert variants == {
        "adapedit": {"name": "adapedit", "lambda_tau": 0.7},
        "without DPS": {"name": "adapedit", "lambda_tau": 0.7, "dps": False},
        "without the mask": {"name": "adapedit", "lambda_tau": 0.7, "mask": False},
    }
    study = make_study("knobs", ["lambda_tau"])
    assert [sweep.knob for sweep in study.sweeps] == ["lambda_tau"]
    assert set(study.variants) == {"adapedit", *(study.sweeps[0].label(v) for v in study.sweeps[0].values)}
    assert make_study("scenes", ["instruct-pix2pix"]).variants == {
        "instruct-pix2pix": {"name": "instruct-pix2pix"}
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos",), "no study 'photos'; use one of: scenes, ablation"),
        (("scenes", ["p2p"]), "p2p"),
        (("scenes", None, {"adapedit": {"lambda_t": 1}}), "lambda_t"),
        (("knobs", ["alpha_tau"]), "the study knobs has no 'alpha_tau'; use some of: lambda_tau"),
        (("ablation", ["blend"]), "the study ablation has no 'blend'; use some of: adapedit, without FWT"),
    ],
)
def test_what_is_no_study_is_refused_in_a_line(arguments: tuple, message: str) -> None:
    with pytest.raises(AdapEditError, match=message) as error:
        make_study(*arguments)
    assert "\n" not in str(error.value)
