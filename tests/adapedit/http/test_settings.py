"""Flags before the environment before the file; and nobody is let in by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapedit import AdapEditError
from adapedit.http.settings import ModelSource, Settings, is_loopback


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nmax_rows = 2\nquota = "1GiB"\n[[models]]\nname = "a"\nsource = "builtin"\n')
    monkeypatch.setenv("ADAPEDIT_PORT", "5")
    monkeypatch.setenv("ADAPEDIT_MAX_STEPS", "7")
    found = Settings.read(file, {"max_rows": 3})
    assert (found.port, found.max_rows, found.max_steps, found.quota) == (5, 3, 7, 2**30)
    assert [model.name for model in found.models] == ["a"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"host": "0.0.0.0"}, "no keys; give a file by --keys, or --insecure"),
        ({"host": "example.org"}, "no keys"),
        ({"port": 70000}, "settings: port is 70000"),
        ({"colour": 3}, "colour"),
        ({"budget": "much"}, "budget"),
        ({"models": []}, "at least one"),
        ({"models": [ModelSource(name="a", source="x")] * 2}, "different names"),
        ({"models": [{"name": "../a", "source": "x"}]}, "models.0.name"),
    ],
)
def test_what_is_wrong_is_said(flags, said):
    with pytest.raises(AdapEditError, match=said):
        Settings.read(None, flags)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(AdapEditError, match="no settings file"):
        Settings.read(tmp_path / "x.toml", {})
    (tmp_path / "x.toml").write_text("port = ")
    with pytest.raises(AdapEditError, match="can't be read"):
        Settings.read(tmp_path / "x.toml", {})


def test_others_come_with_a_key_or_where_they_may_without(tmp_path: Path):
    assert Settings.read(None, {"host": "0.0.0.0", "insecure": True}).host == "0.0.0.0"
    assert Settings.read(None, {"host": "0.0.0.0", "keys": tmp_path / "keys"}).keys
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.3.2.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "host")))


def test_models_are_named_by_their_last_part():
    assert ModelSource.named("some/model") == {"name": "model", "source": "some/model"}
    assert ModelSource.named("a=some/model")["name"] == "a"
