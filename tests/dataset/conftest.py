"""What more than one test of the dataset reads."""

from pathlib import Path

import pandas as pd
import pytest

from sr4g_utils.dataset import triplets
from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", "01_test")


@pytest.fixture(scope="session")
def frequencies(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """How often each triplet occurs in COCO's validation part, counted once more from the rows."""
    path = tmp_path_factory.mktemp("triplets") / "t.parquet"
    held_out = triplets.held_out_categories(COCO_CATEGORIES, 16)
    triplets.build(path, shared / "coco2017" / "val2017_boxes.parquet", split="train", held_out=held_out)
    counted = triplets.frequencies(path)
    key = ["subject", "relation", "object"]
    found, expected = counted.set_index(key), pd.read_parquet(path).groupby(key).n_pairs.agg(["count", "sum"])
    assert found.n_images.to_dict() == expected["count"].to_dict()
    assert found.n_pairs.to_dict() == expected["sum"].to_dict()
    return counted
