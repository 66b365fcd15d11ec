"""For all tests: array shapes are checked, and real data is found or the test is skipped with a reason."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a file to a core
install_import_hook("sr4g_utils", "beartype.beartype")  # before any test module imports the package

settings.register_profile("sr4g", deadline=None, print_blob=True)
settings.load_profile("sr4g")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, which is not part of the project: $SR4G_SHARED, or ../shared/data."""
    folder = Path(os.environ.get("SR4G_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set SR4G_SHARED to a folder with coco2017/, coco_excerpt/, …)")
    return folder
