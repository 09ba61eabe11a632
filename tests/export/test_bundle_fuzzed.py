"""A bundle with any value of any of its JSON files changed edits, or is refused in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.loading import load_bundle
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import MANIFEST_FILE
from tests.helpers.edits import SOURCE, TARGET

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 0.5, -0.5, 1e39, float("nan"), float("inf")),
    *(
        "",
        "a",
        "../x",
        "/etc/passwd",
        "float64",
        "int64",
        "\x00",
        "é" * 200,
        [],
        {},
        [1],
        [None],
        [[]],
        {"a": 1},
    ),
    [2] * 5000,
)
DELETED = object()


@pytest.fixture(scope="module")
def broken(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundle to be broken."""
    return Path(shutil.copytree(bundle.folder, tmp_path_factory.mktemp("fuzzed") / "bundle"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value; of a long list or table the first few."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children)[:40]:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if put is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = put
    return value


def fuzzed(folder: Path, file: int, place: int, put: Any) -> None:
    """Change one value, hold the manifest's sums right, and edit."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    name = names[file % len(names)]
    before = {path: (folder / path).read_bytes() for path in {name, MANIFEST_FILE}}
    value = json.loads(before[name])
    every = list(places(value))
    text = json.dumps(changed(value, every[place % len(every)], put)).encode()
    (folder / name).write_bytes(text)
    if name != MANIFEST_FILE:
        manifest = json.loads(before[MANIFEST_FILE])
        manifest["files"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    try:
        AdapEditPipeline(load_bundle(folder))(SOURCE, TARGET, num_inference_steps=1)
    except AdapEditError as error:
        assert "\n" not in str(error), (name, every[place % len(every)], put)
    except Exception as error:
        raise AssertionError(f"{name} {every[place % len(every)]} = {put!r}: {error!r}") from error
    finally:
        for path, content in before.items():
            (folder / path).write_bytes(content)


calm: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None}
calm["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
anything = given(st.integers(0, 100), st.integers(0, 10**4), st.sampled_from([*ODD, DELETED]))


@settings(max_examples=60, **calm)
@anything
def test_bundles_fuzzed(broken: Path, file: int, place: int, put: Any) -> None:
    fuzzed(broken, file, place, put)


@pytest.mark.slow
@settings(max_examples=1000, **calm)
@anything
def test_bundles_fuzzed_for_long(broken: Path, file: int, place: int, put: Any) -> None:
    fuzzed(broken, file, place, put)
