"""A judge that has learnt nothing: matching of templates."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sr4g_utils.dataset import world
from sr4g_utils.dataset.world import NAMES
from sr4g_utils.evaluation import glyph_judge
from sr4g_utils.evaluation.detections import read_detections


@pytest.mark.slow("many draws")
def test_the_second_judge_finds_what_was_drawn():
    overlaps, false = [], []
    rng = np.random.default_rng(1)
    for i, (names, drawn) in enumerate(world.scenes(60, (0, 8))):
        picture = world.render(drawn, names, seed=i)
        for name, (x, y, w, h) in zip(names, drawn, strict=True):
            found = glyph_judge.find(picture, name)
            fx, fy, fw, fh = found[1] if found else (0, 0, 0, 0)
            common = max(min(x + w, fx + fw) - max(x, fx), 0) * max(min(y + h, fy + fh) - max(y, fy), 0)
            overlaps.append(common / (w * h + fw * fh - common))
        false += [glyph_judge.find(picture, name) is not None for name in rng.choice(NAMES, 3) if name not in names]
    assert np.mean(np.array(overlaps) > 0.5) > 0.8
    assert np.mean(false) < 0.2


def test_matches_as_a_stage(tmp_path):
    columns = ["prompt_id", "subject", "relation", "object", "caption"]
    prompts = pd.DataFrame([(0, "dog", "left of", "car", "–")], columns=columns)
    prompts.to_parquet(tmp_path / "prompts.parquet")
    drawn = np.array([[4, 20, 24, 20], [36, 20, 24, 20]])
    for number in range(2):
        picture = world.render(drawn, ["dog", "car"], seed=number)
        Image.fromarray(picture).save(tmp_path / f"0_{number}.png")
    assert glyph_judge.write_matches(tmp_path / "m.parquet", tmp_path) == 1
    found = read_detections(tmp_path / "m.parquet")
    assert found.label.tolist() == ["dog", "car"] and set(found.image_index) == {0} and set(found.width) == {64}
    assert found[["x", "y", "w", "h"]].to_numpy() == pytest.approx(drawn, abs=4)
