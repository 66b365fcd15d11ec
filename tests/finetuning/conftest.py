"""A world to fine-tune in, made once for all of these tests."""

import pytest
import tuning

from sr4g_utils.finetuning.captions import true_captions
from sr4g_utils.models.load import load_pipeline


@pytest.fixture(scope="session")
def world(models, tmp_path_factory):
    return tuning.make_world(tmp_path_factory.mktemp("world"), models)


@pytest.fixture(scope="session")
def pipeline(world):
    return load_pipeline(world.models / "v1.4", device="cpu")[0]


@pytest.fixture(scope="session")
def net(pipeline):
    return tuning.net_of(pipeline)


@pytest.fixture(scope="session")
def captions(world):
    return true_captions(world.table)


@pytest.fixture(scope="session")
def encoded(world, captions, pipeline):
    return tuning.encode(world, captions, pipeline, world.folder / "latents")
