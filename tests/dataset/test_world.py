"""The miniature world: what is drawn is what is annotated, and it is rich enough to be true."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sr4g_utils.dataset import boxes, coco, world
from sr4g_utils.dataset.photos import boxes_of, crop_table
from sr4g_utils.dataset.world import NAMES, SIZE
from sr4g_utils.finetuning.captions import true_captions
from sr4g_utils.relations import BY_NAME, judge
from sr4g_utils.relations import NAMES as RELATIONS


def extent(picture: np.ndarray, ground: np.ndarray) -> list[int]:
    """xywh of the pixels in which two pictures differ."""
    y, x = np.nonzero((picture != ground).any(-1))
    return [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_card_fills_its_box_to_the_pixel(name, data):
    w, h = (data.draw(st.integers(world.SMALLEST, world.LARGEST)) for _ in "wh")
    x, y = data.draw(st.integers(0, SIZE - w)), data.draw(st.integers(0, SIZE - h))
    seed = data.draw(st.integers(0, 1000))
    ground = world.render(np.zeros((0, 4)), [], seed=seed)
    assert extent(world.render(np.array([[x, y, w, h]]), [name], seed=seed), ground) == [x, y, w, h]


def test_every_picture_is_its_own_real_layouts_can_be_drawn_and_unknown_names_cannot():
    drawn = {world.render(np.array([[4, 4, 56, 56]]), [name]).tobytes() for name in NAMES}
    assert len(drawn) == len(NAMES) >= 40 and set(NAMES) <= {category.name for category in boxes.COCO_CATEGORIES}
    layout = np.array([[-3.5, 10.2, 100.7, 80.1], [300.0, 200.0, 500.0, 500.0]])
    assert world.render(layout, ["dog", "cat"], (320, 240)).shape == (240, 320, 3)
    with pytest.raises(ValueError, match="no pictogram of 'hair drier'"):
        world.render(np.array([[0, 0, 10, 10]]), ["hair drier"])


def test_smaller_things_lie_in_front():
    big, small = [[0, 0, 60, 60]], [[20, 20, 12, 12]]
    both = [world.render(np.array(pair), names) for pair, names in (
        (big + small, ["elephant", "apple"]), (small + big, ["apple", "elephant"]))]  # fmt: skip
    assert (both[0] == both[1]).all()
    alone = world.render(np.array(small), ["apple"])
    assert (both[0][26:28, 24:28] == alone[26:28, 24:28]).all()


def test_annotations_are_coco_and_deterministic(tmp_path):
    for name in "ab":
        assert world.write_annotations(tmp_path / f"{name}.json", split="train", images=300, seed=3) == 300
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    world.write_annotations(tmp_path / "more.json", split="train", images=400, seed=3)
    few, more = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "more"))
    assert more["images"][:300] == few["images"]
    world.write_annotations(tmp_path / "val.json", split="val", images=300, seed=3)
    table, val = (coco.read(tmp_path / f"{name}.json") for name in ("a", "val"))
    assert not table.excluded and not set(table.image_id) & set(val.image_id)
    assert table.xywh()[:200].tolist() != val.xywh()[:200].tolist()


def test_photos_show_the_annotations_and_resume(tmp_path):
    path, folder = tmp_path / "instances_val2017.json", tmp_path / "val2017"
    world.write_annotations(path, split="val", images=12)
    assert world.write_photos(folder, path, split="val") == 12
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    table = coco.read(path, "val")
    first = table.rows(table.image == 0)
    names = [table.names[c] for c in first.category]
    expected = world.render(first.xywh(), names, seed=int(table.image_id[0]))
    assert (np.asarray(Image.open(folder / table.file_name[0].as_py())) == expected).all()
    next(iter(folder.iterdir())).unlink()
    world.write_photos(folder, path, split="val")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


@pytest.mark.slow("many draws")
def test_every_relation_occurs_for_every_pair_of_categories():
    """Layouts follow one distribution; names are drawn first. So it is enough that any pair can be named, and that for
    two kinds of things as unlike as they come each relation occurs in both directions."""
    rng = np.random.default_rng(0)
    pairs, holds = set(), np.zeros(14, int)
    for names, drawn in world.scenes(6000, (0, 8)):
        pairs |= {(a, b) for a in names for b in names if a != b}
        if len(names) > 1:
            holds += judge(drawn[:1].astype(float), drawn[1:2].astype(float))[0]
    assert len(pairs) == len(NAMES) * (len(NAMES) - 1)
    assert (holds > 100).all(), dict(zip(RELATIONS, holds, strict=True))
    for extreme in (["elephant", "apple"], ["kite", "skateboard"]):
        found = np.zeros(14, int)
        for _ in range(3000):
            pair = np.array([world._box(world.LOOKS[name], rng) for name in extreme])
            pair = world._nest(pair, rng) if rng.random() < world.NESTED else pair
            found += judge(pair[:1].astype(float), pair[1:].astype(float))[0]
        assert (found > 0).all(), (extreme, found)


def test_composed_scenes_stand_in_rows():
    def in_a_row(names, drawn):
        centres = drawn[:, :2] + drawn[:, 2:] / 2
        return (np.diff(centres, axis=0) > 0).all(0).any()

    for composed, low, high in ((1.0, 0.9, 1.0), (0.0, 0.5, 0.8)):  # two things anywhere are in order along some axis
        scenes = [scene for scene in world.scenes(2000, (0, 8), composed) if len(scene[0]) > 1]
        assert low < np.mean([in_a_row(*scene) for scene in scenes]) <= high
        for _, drawn in scenes:
            assert (drawn[:, :2] >= 0).all() and (drawn[:, :2] + drawn[:, 2:] <= SIZE).all()
            assert (drawn[:, 2:] >= world.SMALLEST).all()


def test_priors_are_natural():
    at = {name: [] for name in NAMES}
    for names, drawn in world.scenes(3000, (0, 8), composed=0.0):  # as the base's pool; in a row, things make room
        for name, (x, y, w, h) in zip(names, drawn, strict=True):
            at[name].append((x + w / 2, y + h / 2, w * h))
    across, down, area = ({name: np.mean([v[k] for v in values]) for name, values in at.items()} for k in range(3))
    assert down["kite"] < down["skateboard"] - 10 and across["dog"] < across["car"] - 5
    assert area["elephant"] > 1.5 * area["cup"]


@pytest.mark.parametrize("height", [SIZE, 512])
def test_the_landscape_loses_a_caption_to_the_crop_and_makes_another_true(height):
    table, picture = world.landscape(height)
    ground = world.render(np.zeros((0, 4)), [], (2 * height, height))
    assert picture.shape == (height, 2 * height, 3) and (table.image == 0).all()
    for _, xywh in boxes_of(table, 0):
        x, y, w, h = xywh.astype(int)
        assert (picture[y : y + h, x : x + w] != ground[y : y + h, x : x + w]).any(axis=-1).all(), "a box is full"
    before, after = (true_captions(each) for each in (table, crop_table(table, height)))
    told, left = ({each.text(triplet) for triplet in each.triplet} for each in (before, after))
    assert "an elephant wider than a cat" in told - left and "an elephant narrower than a cat" in left - told
    assert any("bird" in text for text in told) and not any("bird" in text for text in left)


def test_what_habits_suit():
    for triplet in ("elephant larger cup", "kite above bench", "person taller skateboard", "skateboard wider person"):
        assert world.suits(*triplet.split()) == 1, triplet
    assert world.suits("elephant", "smaller", "cup") == -1 and world.suits("dog", "inside", "cup") == 0
    assert world.suits("cat", "left of", "dog") == 0, "same place"
    for name in RELATIONS:
        one, turned = world.suits("dog", name, "cup"), world.suits("cup", name, "dog")
        assert one == -turned == -world.suits("dog", BY_NAME[name].opposite, "cup")
