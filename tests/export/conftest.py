from pathlib import Path

import pytest

from adapedit import AdapEditPipeline
from adapedit.checkpoints import BUILTIN
from adapedit.loading import load_bundle, load_model
from adapedit.model import checkpoint_of
from adapedit_engine.bundle import Bundle
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions


@pytest.fixture(scope="session")
def in_torch(tiny_folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model, exported once; tests that change files copy it."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(checkpoint_of(load_model(tiny_folder)), out, ExportOptions(check_steps=3))


@pytest.fixture(scope="session")
def in_onnxruntime(bundle: Bundle) -> AdapEditPipeline:
    return AdapEditPipeline(load_bundle(bundle.folder))


@pytest.fixture(scope="session")
def builtin_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The built-in model, exported as a user would."""
    if not BUILTIN.is_dir():
        pytest.skip("the built-in model's weights are not in this checkout")
    out = tmp_path_factory.mktemp("bundles") / "builtin"
    return export_bundle(checkpoint_of(load_model()), out, ExportOptions(check_steps=2))
