from pathlib import Path

import pytest

from adapedit import AdapEditPipeline
from tests.helpers.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    """A tiny model all of whose self-attention layers are taken from the source."""
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("coarse"), facts={"self_divisor": 1})
    return AdapEditPipeline.from_pretrained(folder)
