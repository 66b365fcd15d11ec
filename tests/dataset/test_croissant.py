"""The dataset's Croissant file: valid by mlcroissant, and loading through it gives the Parquet's rows."""

import json
import logging

import pandas as pd
import pytest

from sr4g_utils.dataset import card, triplets, world

mlc = pytest.importorskip("mlcroissant", reason="the validator is not installed: pip install mlcroissant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("croissant")
    for split in ("train", "val"):
        world.write_annotations(folder / f"{split}.json", split=split, images=12)
        triplets.build(folder / f"triplets_{split}.parquet", folder / f"{split}.json", split=split)
    files = [folder / f"triplets_{split}.parquet" for split in ("train", "val")]
    rows = card.write_croissant(folder / "croissant.json", *files, source="the miniature world", rules="visor")
    assert rows == sum(len(pd.read_parquet(file)) for file in files)
    return folder


def test_it_is_valid_and_says_what_a_benchmark_track_asks_for(folder, caplog):
    with caplog.at_level(logging.WARNING):
        found = mlc.Dataset(str(folder / "croissant.json")).metadata
    assert not caplog.records, "neither errors nor warnings"
    assert found.name == "SR4G-captions"
    about = json.loads((folder / "croissant.json").read_text())
    assert about["conformsTo"][0].endswith("croissant/1.1")
    asked = ("dataCollection", "dataBiases", "dataLimitations", "dataUseCases", "dataSocialImpact",
             "personalSensitiveInformation", "dataReleaseMaintenancePlan")  # fmt: skip
    assert all(about[f"rai:{name}"] for name in asked)


@pytest.mark.parametrize("split", ["train", "val"])
def test_its_records_are_the_rows_of_the_parquet_file(folder, split):
    rows = pd.read_parquet(folder / f"triplets_{split}.parquet").to_dict("records")
    loaded = [{key.removeprefix(f"{split}/"): value for key, value in row.items()}
              for row in mlc.Dataset(str(folder / "croissant.json")).records(split)]  # fmt: skip
    assert [{key: v.decode() if isinstance(v, bytes) else v for key, v in row.items()} for row in loaded] == rows
