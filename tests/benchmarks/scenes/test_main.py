"""The stages on the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from benchmarks.scenes import __main__ as command


def test_every_stage_has_its_command_and_asking_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "draw_scenes", lambda **options: pytest.fail("a stage was begun"))
    for name in ("draw", "vae", "reader", "generator", "publish", "evaluate", "train"):
        assert CliRunner().invoke(command.app, [name, "--help"]).exit_code == 0
    said = CliRunner().invoke(command.app, [])
    assert "generator" in said.output and "publish" in said.output
