"""Approximations by name: on requests, in mixed batches, in the server, on the command line; and who refuses them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from adapedit import EditRequest
from adapedit.approximations import EXACT, parse, split
from adapedit.cli import knobs
from adapedit.cli.commands import app
from adapedit.serving.batch import read_lines
from adapedit.sharing import observation_key, share
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, STEPS, TARGET, grey_levels, request

KNOBS = [
    {"guidance_until": 0.4},
    {"solver": "dpm++"},
    {"guidance_until": 0.4, "solver": "dpm++"},
]


def approximated(knob, **fields):
    return EditRequest.make(**{**request(**fields).model_dump(), **knob})


def test_each_is_a_field_whose_default_is_exact():
    for name, value in EXACT.items():
        assert getattr(request(), name) == value
        assert parse([f"{name.replace('_', '-')}={value}"]) == {name: str(value)}
    assert split({"solver": "dpm++", "lambda_tau": 1}) == ({"solver": "dpm++"}, {"lambda_tau": 1})


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("speed=9", "there is no approximation 'speed'; use one of: guidance_until, solver"),
        ("guidance_until", "gives no value; write, say, guidance_until=0.6"),
        ("feature_interval=3", "feature_interval is gone: use num_inference_steps=20 with solver='dpm"),
        ("solver=", "gives no value; write, say, solver=dpm"),
    ],
)
def test_what_is_no_approximation(assignment, said):
    with pytest.raises(AdapEditError, match=said):
        parse([assignment])


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ({"guidance_until": 1.5}, "guidance_until is 1.5"),
        ({"guidance_until": "soon"}, "guidance_until is 'soon'"),
        ({"solver": "heun"}, "solver is 'heun'"),
    ],
)
def test_values_are_checked(knob, said):
    with pytest.raises(AdapEditError, match=said):
        approximated(knob)


def test_in_a_batch_with_exact_edits(pipe):
    wanted = [approximated(knob, seed=seed) for seed, knob in enumerate(KNOBS)] + [request(seed=9)]
    together = pipe.edit_batch(wanted)
    exact = pipe.edit_batch([approximated({}, seed=seed) for seed in range(len(KNOBS))])
    for one, result in zip(wanted, together, strict=True):
        alone = pipe.edit_batch([one])[0]
        assert grey_levels(alone.target_image, result.target_image) <= 1
        assert grey_levels(alone.source_image, result.source_image) <= 1
    for one, other in zip(exact, together[:-1], strict=True):
        assert grey_levels(one.target_image, other.target_image) > 1


def test_in_the_server_with_exact_edits(pipe):
    wanted = [*(approximated(knob, seed=4) for knob in KNOBS), request(seed=4)]
    with pipe.serve() as server:
        results = [future.result() for future in [server.submit(one) for one in wanted]]
        again = server.submit(wanted[-1]).result()
    assert grey_levels(again.target_image, results[-1].target_image) <= 1
    for one, result in zip(wanted, results, strict=True):
        alone = pipe.edit_batch([one])[0]
        assert grey_levels(alone.target_image, result.target_image) <= 1


@pytest.mark.parametrize("method", ["sdedit", "masactrl", "prompt-to-prompt", "plain"])
def test_every_method_takes_them(pipe, method):
    (result,) = pipe.edit_batch([approximated(KNOBS[-1], method=method, steps=6)])
    assert result.request.solver == "dpm++"


def test_by_name_in_python_and_back_from_disk(pipe, tmp_path):
    result = pipe(
        SOURCE, TARGET, num_inference_steps=STEPS, guidance_until=0.6, solver="dpm++", lambda_tau=0.5
    )
    result.save(tmp_path / "one")
    read = EditRequest.read(tmp_path / "one")
    assert (read.guidance_until, read.solver, read.method.lambda_tau) == (0.6, "dpm++", 0.5)


@pytest.mark.parametrize("knob", KNOBS)
def test_sources_are_shared_only_by_edits_that_approximate_alike(pipe, knob):
    from adapedit.checked import CheckedEdit

    exact, one, other = (
        CheckedEdit.of(approximated(k, target=t), pipe.model)
        for k, t in (({}, TARGET), (knob, TARGET), (knob, "a blue dog standing on the grass"))
    )
    assert share([exact.draft, one.draft, other.draft]) == [(0,), (1, 2)]
    assert observation_key(exact.observe) != observation_key(one.observe)


def test_on_the_command_line(tmp_path):
    lines = tmp_path / "lines.jsonl"
    line = {"source_prompt": SOURCE, "target_prompt": TARGET}
    lines.write_text("\n".join(json.dumps(fields) for fields in (line, {**line, "guidance_until": 0.5})))
    read = [there.request for there in read_lines(lines, {"guidance_until": "0.3"})]
    assert [one.guidance_until for one in read if one is not None] == [0.3, 0.5]
    swept = knobs.varied(line, "adapedit", {}, "guidance-until", ["1", "0.4"])
    assert [one.guidance_until for one in swept] == [1, 0.4]
    said = CliRunner().invoke(app, ["edit", SOURCE, TARGET, "--approximate", "speed=9"])
    assert said.exit_code and "there is no approximation 'speed'" in f"{said.output}{said.exception}"
