from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.service import Running, serving, settings_for


@pytest.fixture(scope="session")
def service(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for all tests that leave it as it was."""
    more = {
        "max_steps": 100,
        "max_text": 300,
        "max_body": 2**20,
        "max_picture_pixels": 100_000,
        "burst": 10_000,
    }
    with serving(settings_for(tiny_folder, tmp_path_factory.mktemp("service"), **more)) as running:
        yield running
