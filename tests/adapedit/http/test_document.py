"""schemathesis against the OpenAPI document: all checks, all phases, stateful links; nothing made up is a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapedit.http.limits import Keys
from tests.helpers.service import serving, settings_for

CONFIG = """
# A request that the schema allows may name a word that the model does not know, a size that it does not have, or come
# without the picture that a method wants: no schema can say that, and 400 and 422 do.
# An edit that was not begun by its deadline has 504 in the place of pictures.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "404", "409", "413", "422", "429", "503", "504", "507"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504", "507"]
"""


def fuzz(folder: Path, out: Path, phases: str, examples: int, seed: int) -> tuple[int, str]:
    """Exit code and what was said."""
    key, line = Keys.make("fuzzer")
    (out / "keys").write_text(line)
    (out / "schemathesis.toml").write_text(CONFIG)
    more = {"max_steps": 50, "max_pixels": 32 * 32, "rate": 1e9, "burst": 10**6, "max_pending": 10**5}
    with serving(settings_for(folder, out / "data", keys=out / "keys", **more)) as running:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{running.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--no-color"]
        command += ["--phases", phases, "--suppress-health-check", "all"]
        command += ["--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"]
        done = subprocess.run(
            command, cwd=out, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        health = running.client.get("/health/ready")
    assert health.status_code == 200
    return done.returncode, done.stdout + done.stderr


def test_the_document_is_whole(service):
    found = service.client.get("/openapi.json").json()
    schemas = found["components"]["schemas"]
    assert schemas["EditBody"]["properties"]["num_inference_steps"]["maximum"] == 100
    assert schemas["EditBody"]["properties"]["source_prompt"]["maxLength"] == 300
    assert set(schemas["ImageBody"]["properties"]) > {"prompt", "source_prompt", "seed", "method"}
    text = service.client.get("/openapi.json").text
    for name in schemas:
        assert f'"#/components/schemas/{name}"' in text or name in (
            "HTTPValidationError",
            "ValidationError",
        ), name
    for path, verbs in found["paths"].items():
        for verb, operation in verbs.items():
            assert {"400", "422"} <= set(operation["responses"]), (verb, path)


@pytest.mark.service
@pytest.mark.parametrize("seed", range(2))
def test_nothing_made_up_is_a_fault(tiny_folder: Path, tmp_path: Path, seed: int):
    code, said = fuzz(tiny_folder, tmp_path, "coverage,fuzzing,stateful", examples=100, seed=seed)
    assert code == 0, said[-8000:]


def test_little_of_what_is_made_up_is_a_fault(tiny_folder: Path, tmp_path: Path):
    code, said = fuzz(tiny_folder, tmp_path, "fuzzing,stateful", examples=2, seed=0)
    assert code == 0, said[-8000:]
