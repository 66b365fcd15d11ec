"""A world to fine-tune in, made once for all of these tests."""

import functools
from pathlib import Path

import diffusers
import pytest
import tiny_pipelines
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


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """``folders(name)``: the tiny pipeline of a class, made once."""

    @functools.cache
    def folder(name: str) -> Path:
        made = tiny_pipelines.pipeline(tmp_path_factory.mktemp(name) / "it", name.replace("Sigma", "Alpha"))
        if "Sigma" in name:
            diffusers.PixArtSigmaPipeline.from_pretrained(made).save_pretrained(made)
        return made

    return folder
