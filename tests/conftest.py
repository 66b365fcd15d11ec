"""For all tests: array shapes are checked, and real data is found or the test is skipped with a reason."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a file to a core
install_import_hook("sr4g_utils", "beartype.beartype")  # before any test module imports the package

# no limit of time: the machine may be busy
settings.register_profile("sr4g", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sr4g")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, which is not part of the project: $SR4G_SHARED, or ../shared/data."""
    folder = Path(os.environ.get("SR4G_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set SR4G_SHARED to a folder with coco2017/, coco_excerpt/, …)")
    return folder
