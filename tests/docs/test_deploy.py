"""What is in deploy/ says what the service is: paths, settings, user; and the tools that read it take it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adapedit.http.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
WHERE = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE"}
INSTRUCTIONS |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile, each with what follows it."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def environment() -> dict[str, str]:
    pairs = [pair for name, rest in instructions() if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_containerfile_is_sound():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert re.fullmatch(r"\S+:[\w.-]+", dict(found)["FROM"]) and not dict(found)["FROM"].endswith(":latest")
    assert all(re.match(r"\[.*\]$", rest) for name, rest in found if name in ("ENTRYPOINT", "CMD", "VOLUME"))
    assert dict(found)["USER"] == "10001" and [name for name, _ in found].index("USER") > 8
    for name, rest in found:
        if name == "COPY":
            assert all((DEPLOY.parent / path).exists() for path in rest.split()[:-1]), rest
    fields = {
        name.removeprefix("ADAPEDIT_").lower() for name in environment() if name.startswith("ADAPEDIT_")
    }
    assert fields <= set(Settings.model_fields)


def test_what_the_container_is_told_can_be_served(monkeypatch: pytest.MonkeyPatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    found = Settings.read(None, {})
    assert (found.host, found.port) == ("0.0.0.0", 8000) and found.keys and not found.insecure


def test_the_probes_are_routes_and_the_grace_is_longer_than_the_drain():
    service, replicas = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = replicas["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {
        container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {"/health", "/health/ready"}
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain"].default + 5
    assert pod["securityContext"]["runAsUser"] == 10001
    assert service["spec"]["selector"] == replicas["spec"]["selector"]["matchLabels"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["keys"] == environment()["ADAPEDIT_KEYS"]
    assert environment()["ADAPEDIT_DATA"].startswith(mounts["edits"])


@pytest.mark.skipif(shutil.which("hadolint", path=WHERE) is None, reason="needs hadolint")
def test_the_linter_takes_the_containerfile():
    tool = str(shutil.which("hadolint", path=WHERE))
    done = subprocess.run([tool, str(DEPLOY / "Containerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path):
    text = (DEPLOY / "adapedit.service").read_text()
    unit = tmp_path / "adapedit.service"
    unit.write_text(text.replace("/opt/adapedit/bin/adapedit", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "adapedit.service" in line]
    assert not said, said
    stop = float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1])
    assert stop > Settings.model_fields["drain"].default + 5


def test_the_example_of_settings_is_taken(tmp_path: Path):
    file = DEPLOY / "serve.toml"
    found = Settings.read(file, {"keys": tmp_path / "keys"})
    assert found.budget and [model.name for model in found.models] == ["builtin", "stable-diffusion"]
