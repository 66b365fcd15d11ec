"""For all tests: array shapes are checked, and real data is found or the test is skipped with a reason."""

import os
import re
from pathlib import Path

import matplotlib
import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a file to a core
matplotlib.use("Agg")  # no windows

ROOT = Path(__file__).resolve().parent.parent
# Before any test module imports the package: types are checked everywhere, and shapes where there are some. Checking
# shapes costs 15 µs a call, which functions like `captions.caption` pay a million times.
modules = [path.relative_to(ROOT) for path in (ROOT / "sr4g_utils").rglob("*.py")]
shapes = [path for path in modules if re.search(r"jaxtyping|\bPixels\b", (ROOT / path).read_text(encoding="utf-8"))]
beartype_package("sr4g_utils", conf=BeartypeConf(claw_is_pep526=False))
install_import_hook([".".join(path.with_suffix("").parts) for path in shapes], "beartype.beartype")

# no limit of time: the machine may be busy
settings.register_profile("sr4g", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sr4g")


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """A line is said once a process; each test hears it anew."""
    from sr4g_utils.store.files import say

    say.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models: the three layouts of Stable Diffusion, and owlvit. A test changes a copy of them."""
    import tiny

    folder = tmp_path_factory.mktemp("models")
    for version in tiny.VERSIONS:
        tiny.stable_diffusion(folder / version, version)
    tiny.owlvit(folder / "owlvit")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, which is not part of the project: $SR4G_SHARED, or ../shared/data."""
    folder = Path(os.environ.get("SR4G_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set SR4G_SHARED to a folder with coco2017/, coco_excerpt/, …)")
    return folder
