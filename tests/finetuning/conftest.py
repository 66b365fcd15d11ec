"""A world to fine-tune in, made once for all of these tests."""

from types import SimpleNamespace
from typing import Any

import pytest
import tuning

from sr4g_utils.finetuning.captions import Captions, true_captions
from sr4g_utils.finetuning.latents import Encoded
from sr4g_utils.models.load import load_pipeline


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return tuning.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def pipeline(world: SimpleNamespace) -> Any:
    return load_pipeline(world.folder / "v1.4", device="cpu")[0]


@pytest.fixture(scope="session")
def captions(world: SimpleNamespace) -> Captions:
    return true_captions(world.table)


@pytest.fixture(scope="session")
def encoded(world: SimpleNamespace, captions: Captions, pipeline: Any) -> Encoded:
    return tuning.encode(world, captions, pipeline, world.folder / "latents")
