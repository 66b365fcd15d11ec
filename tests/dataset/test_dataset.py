"""Boxes to triplets against a slow loop with sets; the splits and the sampling; the numbers to meet on COCO."""

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from sr4g_utils.dataset import card as dataset_card
from sr4g_utils.dataset import coco, counts, triplets
from sr4g_utils.dataset.boxes import COCO_CATEGORIES, BoxTable, Category
from sr4g_utils.dataset.captions import caption
from sr4g_utils.finetuning.captions import true_captions
from sr4g_utils.relations import NAMES, complete_rules, judge

CATEGORIES = tuple(sorted(COCO_CATEGORIES, key=lambda c: c.id))[:6]
KEY = ["image_id", "subject", "relation", "object"]


def table_of(rows: list[tuple[int, int, tuple[float, ...]]]) -> BoxTable:
    """(image, category, xywh) rows as a table of five images, whose ids are 10, 20, …"""
    image, category, xywh = zip(*sorted(rows, key=lambda row: row[:2]), strict=True)
    ids = 10 * np.arange(1, 6, dtype=np.int64)
    images = ids, pa.array([f"{id:012d}.jpg" for id in ids]), np.full(5, 640.0), np.full(5, 480.0)
    boxes = np.array(image), np.array(category), *np.array(xywh, float).T.copy(), np.zeros(len(rows), bool)
    return BoxTable(*images, CATEGORIES, *boxes)


def slow(table: BoxTable, rules: str = "visor") -> Counter:
    """How many pairs of boxes show each (image, subject, relation, object): pair by pair, no sorting, no batches."""
    shown: Counter = Counter()
    on_border = 0
    names = table.names
    for image, id in enumerate(table.image_id.tolist()):
        inside = np.flatnonzero(table.image == image)
        boxes = zip(table.category[inside], table.xywh(inside).tolist(), strict=True)
        size = (table.width[image], table.height[image])
        for (subject, s), (object, o) in permutations([(names[c], box) for c, box in boxes], 2):
            try:
                found = scalar.relations(s, o, rules, size)
            except scalar.OnBorder:  # rounding decides; these few are taken from the package
                on_border += 1
                verdict = judge(np.array([s]), np.array([o]), rules, np.array([size]))[0]
                found = {name for name, holds in zip(NAMES, verdict, strict=True) if holds}
            for relation in found:
                shown[id, subject, relation, object] += 1
    assert on_border < 0.01 * sum(shown.values()) + 1
    return shown


def written(table: BoxTable, path, **options) -> pd.DataFrame:
    n = triplets.write_triplets(table, path, "train", **options)
    rows = pd.read_parquet(path)
    assert len(rows) == n
    return rows


xywh = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 30), st.integers(1, 30))
rows_of_boxes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), xywh), min_size=1, max_size=25)


@given(rows_of_boxes, st.integers(1, 40), st.sampled_from([1, 4, 512]), st.sampled_from([0, 1 << 17]))
@settings(max_examples=60)
def test_every_triplet_against_the_slow_loop(tmp_path_factory, rows, at_once, dense, kinds):
    table = table_of(rows)
    expected = slow(table)
    path = tmp_path_factory.getbasetemp() / "triplets.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets, "PAIRS_AT_ONCE", at_once)
        patch.setattr(triplets, "PAIRS_PER_ROW_GROUP", 2 * at_once)
        patch.setattr(triplets, "DENSE", dense)
        patch.setattr(triplets, "KINDS_AT_ONCE", kinds)
        if not expected:
            with pytest.raises(ValueError, match="every image holds a single box"):
                written(table, path)
            return
        found = written(table, path)
    assert dict(zip(found[KEY].itertuples(index=False, name=None), found.n_pairs, strict=True)) == dict(expected)


@pytest.mark.parametrize("rules", complete_rules())
@pytest.mark.parametrize("split", ["val", pytest.param("train", marks=pytest.mark.slow("real data"))])
def test_the_excerpt_against_the_slow_loop(shared, tmp_path, split, rules):
    path = shared / "coco_excerpt" / "annotations" / f"instances_{split}2017.json"
    table = coco.read(path).without_crowds()
    expected = slow(table, rules)
    triplets.build(tmp_path / "t.parquet", path, split=split, rules=rules)
    found = pd.read_parquet(tmp_path / "t.parquet")
    assert dict(zip(found[KEY].itertuples(index=False, name=None), found.n_pairs, strict=True)) == dict(expected)
    assert (found.split == split).all()


def test_columns(shared, tmp_path):
    table = coco.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json").without_crowds()
    held_out = ["dog", "person"]
    found = written(table, tmp_path / "t.parquet", held_out=held_out)
    assert found.columns.tolist() == [
        "image_id", "file_name", "subject", "relation", "object", "caption", "n_pairs", "subject_id", "object_id",
        "objects", "split",
    ]  # fmt: skip
    ids = {category.name: category.id for category in COCO_CATEGORIES}
    order = {name: i for i, name in enumerate(NAMES)}
    files = dict(zip(table.image_id, table.file_name.to_pylist(), strict=True))
    for row in found.itertuples():
        assert row.caption == caption(row.subject, row.relation, row.object)
        assert (row.subject_id, row.object_id) == (ids[row.subject], ids[row.object])
        assert row.file_name == files[row.image_id]
        assert row.objects == ("seen", "mixed", "unseen")[(row.subject in held_out) + (row.object in held_out)]
    keys = list(zip(found.image_id, found.subject_id, found.object_id, found.relation.map(order), strict=True))
    assert keys == sorted(set(keys))
    assert (found.subject == found.object).any()  # "a dog to the left of another dog" is kept here


def many(categories: int, boxes: int = 6, id: int = 1) -> BoxTable:
    """Two images, of which the first has nearly all boxes, of the first and the last of many categories."""
    named = tuple(Category(id + i, f"thing {i}") for i in range(categories))
    x, y, w, h = np.random.default_rng(0).integers(1, 200, (4, boxes)).astype(float)
    image, category = np.zeros(boxes, np.int64), np.sort(np.arange(boxes) % 2 * (categories - 1))
    image[-1] = 1
    size = np.full(2, 400.0)
    return BoxTable(np.arange(2), pa.array(["a", "b"]), size, size, named, image, category, x, y, w, h, image > 1)


def test_memory_follows_the_boxes_however_many_categories_there_are_or_boxes_in_a_photo(tmp_path):
    small = written(many(2), tmp_path / "t.parquet").drop(columns=["object_id", "subject_id"])
    for categories in (847, 13_204):
        tracemalloc.start()
        found = written(many(categories), tmp_path / "t.parquet")
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        same = found.replace(f"thing {categories - 1}", "thing 1").drop(columns=["object_id", "subject_id", "caption"])
        pd.testing.assert_frame_equal(same, small.drop(columns="caption"))
        captions = zip(found.subject, found.relation, found.object, found.caption, strict=True)
        assert all(text == caption(s, r, o) for s, r, o, text in captions)
    table = many(3, boxes=1200)
    tracemalloc.start()
    rows = written(table, tmp_path / "t.parquet")
    assert tracemalloc.get_traced_memory()[1] < 60e6, "1.4 million pairs at once take 300"
    tracemalloc.stop()
    counted = {tuple(g): c.tolist() for gs, cs in triplets.count_pairs(table) for g, c in zip(gs, cs, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets, "DENSE", 2000)
        plain = {tuple(g): c.tolist() for gs, cs in triplets.count_pairs(table) for g, c in zip(gs, cs, strict=True)}
        pd.testing.assert_frame_equal(written(table, tmp_path / "u.parquet"), rows)
    assert counted == plain
    assert len(triplets.examples(table, tmp_path / "t.parquet", 5, 0)) == 5


def test_one_category_only(tmp_path):
    """Captions of two of a kind, and no division by the number of different things."""
    table = many(1)
    found = written(table, tmp_path / "t.parquet")
    assert set(found.caption) == {caption("thing 0", relation, "thing 0") for relation in found.relation}
    assert len(triplets.examples(table, tmp_path / "t.parquet", 3, 0)) == 3
    counted = triplets.frequencies(tmp_path / "t.parquet")
    assert all(map(np.isnan, counts.roles(counted).values())) and len(counts.pair_frequencies(counted)) == 1
    assert [line for line in counts.warnings({"train": table, "val": table}) if "of one category only" in line]


def test_held_out_names_are_meant_however_they_are_spelt():
    assert triplets.held_out_categories(CATEGORIES, ["Bicycle ", "motor_cycle"]) == ["bicycle", "motorcycle"]


@pytest.mark.parametrize("id", [1, 2**31 - 2, 3_405_691_582, 2**53 + 1, 2**63 - 8])
def test_ids_of_64_bits(tmp_path, id):
    found = written(many(5, id=id), tmp_path / "t.parquet")
    assert set(found.subject_id) == {id, id + 4} and set(found.object_id) == {id, id + 4}
    assert found.subject_id.dtype == (np.int32 if id + 4 < 2**31 else np.int64)


def test_triplets_are_numbered_without_overflow():
    table = many(13_204)
    found = true_captions(table, same_category=True)
    assert found.triplet.dtype == np.int64 and found.triplet.max() > 2**31
    assert {found.parts(n)[0] for n in found.triplet} == {"thing 0", "thing 13203"}
    assert true_captions(many(80)).triplet.dtype == np.int32


def test_options(shared, tmp_path):
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    n = {crowds: triplets.build(tmp_path / "t.parquet", path, split="val", crowds=crowds) for crowds in (False, True)}
    assert n[True] > n[False]
    triplets.build(tmp_path / "t.parquet", path, split="val", template="photo")
    assert pd.read_parquet(tmp_path / "t.parquet").caption.str.startswith("a photo of a").all()


def test_load_dataset(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    excerpt = shared / "coco_excerpt" / "annotations"
    files = {split: tmp_path / f"triplets_{split}.parquet" for split in ("train", "val")}
    for split, path in files.items():
        triplets.build(path, excerpt / f"instances_{split}2017.json", split=split)
    dataset_card.write_card(tmp_path / "README.md", *files.values(), source="COCO", rules="visor", held_out=["dog"])
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files={s: str(p) for s, p in files.items()}, cache_dir=cache)
    lengths = {split: len(rows) for split, rows in loaded.items()}
    assert lengths == {split: pq.read_metadata(path).num_rows for split, path in files.items()}
    first = loaded["train"][0]
    assert first["caption"] == caption(first["subject"], first["relation"], first["object"])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and f"| train | {len(loaded['train']):,} |" in card
    by_card = datasets.load_dataset(str(tmp_path), cache_dir=cache)  # as on the Hub
    by_card = {split: len(rows) for split, rows in by_card.items()}
    assert by_card == {"train": lengths["train"], "validation": lengths["val"]}


def test_captions_need_a_pair_and_rules_that_define_all_relations(tmp_path):
    one, other = (0, 0, (0, 0, 5, 5)), (0, 1, (9, 9, 5, 5))
    with pytest.raises(ValueError, match="no triplet in 1 boxes"):
        triplets.write_triplets(table_of([one]), tmp_path / "t.parquet", "train")
    with pytest.raises(ValueError, match=r"rules='geneval' define left of, .* only, not 'inside'"):
        triplets.write_triplets(table_of([one, other]), tmp_path / "t.parquet", "train", rules="geneval")
    assert list(tmp_path.iterdir()) == []


def test_held_out_categories_are_spread_and_fixed():
    held_out = triplets.held_out_categories(COCO_CATEGORIES, 16)
    assert held_out == triplets.held_out_categories(tuple(reversed(COCO_CATEGORIES)), 16)
    assert len(set(held_out)) == 16 and set(held_out) < {c.name for c in COCO_CATEGORIES}
    families = Counter(c.supercategory for c in COCO_CATEGORIES)
    held = Counter(c.supercategory for c in COCO_CATEGORIES if c.name in held_out)
    assert all(abs(held[family] - n / 5) < 1 for family, n in families.items())
    assert all(len(set(triplets.held_out_categories(COCO_CATEGORIES, n))) == n for n in range(80))
    assert triplets.held_out_categories(COCO_CATEGORIES, ["cat", "dog"]) == ["cat", "dog"]
    with pytest.raises(ValueError, match="unseen: the annotations have no category 'unicorn'"):
        triplets.held_out_categories(COCO_CATEGORIES, ["cat", "unicorn"])
    for n in (-1, 80):
        with pytest.raises(ValueError, match=f"{n} categories cannot be held out of 80"):
            triplets.held_out_categories(COCO_CATEGORIES, n)


def test_sampling_is_balanced_or_natural_repeatable_and_needs_rows():
    relation = np.repeat(np.arange(14), [10_000, 1_000, *[100] * 11, 1])
    rng = np.random.default_rng(0)
    n = 140_000
    drawn = triplets.sample(relation, n, rng)
    share = np.bincount(relation[drawn], minlength=14) / n
    assert np.allclose(share, 1 / 14, atol=4 * np.sqrt(1 / 14 / n))  # four standard errors
    within = np.bincount(drawn[relation[drawn] == 1] - 10_000, minlength=1_000)
    assert within.min() > 0 and within.max() < 40  # 10 expected each
    natural = triplets.sample(relation, n, rng, balanced=False)
    expected = np.bincount(relation) / len(relation)
    assert np.allclose(np.bincount(relation[natural], minlength=14) / n, expected, atol=0.006)
    relation = np.array([3, 3, 5, 1])
    one, two = (triplets.sample(relation, 50, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one, two)
    for balanced in (True, False):
        with pytest.raises(ValueError, match="no rows to sample from"):
            triplets.sample(np.array([], int), 5, np.random.default_rng(0), balanced)


def test_warnings(shared):
    table = coco.read(shared / "coco2017" / "val2017_boxes.parquet")
    assert counts.warnings({"train": table, "val": table}) == [
        "train and validation annotations share images: what is tested on may have been trained on"
    ]
    few = table_of([(0, 0, (0, 0, 5, 5)), (0, 1, (9, 9, 5, 5))])
    assert "val: no box of 4 categories (" in counts.warnings({"train": table, "val": few})[-1]


def test_funnel(shared, tmp_path):
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    table = coco.read(path).without_crowds()
    triplets.build(tmp_path / "t.parquet", path, split="val", held_out=["person"])
    shown = slow(table)
    different = {key: n for key, n in shown.items() if key[1] != key[3]}
    seen = [key for key in different if "person" not in (key[1], key[3])]
    per_image = Counter(table.image.tolist()).values()
    assert counts.funnel({"val": table}, {"val": triplets.frequencies(tmp_path / "t.parquet")}).val.tolist() == [
        len(table.image_id), len(per_image), sum(table.excluded.values()), len(table),
        sum(n * (n - 1) for n in per_image), sum(shown.values()), len(shown), len(different), len(seen),
        len({key[1:] for key in different}),
    ]  # fmt: skip


def test_examples_show_what_they_say(shared, tmp_path):
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    table = coco.read(path).without_crowds()
    for rules in ("visor", "sg2im"):
        triplets.build(tmp_path / "t.parquet", path, split="val", rules=rules)
        rows = triplets.examples(table, tmp_path / "t.parquet", 30, 0, rules)
        assert len(rows) == 30 and (rows.subject != rows.object).all()
        for row in rows.itertuples():
            assert row.relation in scalar.relations(row.subject_box, row.object_box, rules, (row.width, row.height))
            inside = table.xywh()[table.image_id[table.image] == row.image_id]
            assert all((inside == box).all(1).any() for box in (row.subject_box, row.object_box))


def test_frequencies_of_objects_and_pairs(frequencies):
    objects = counts.object_frequencies(frequencies).set_index("name")
    dog = frequencies[(frequencies.subject == "dog") | (frequencies.object == "dog")]
    assert objects.captions["dog"] == dog.n_images.sum() and objects.captions.is_monotonic_decreasing
    pairs = counts.pair_frequencies(frequencies).set_index(["subject", "object"]).captions
    assert pairs["dog", "person"] == dog[(dog.subject == "dog") & (dog.object == "person")].n_images.sum()
    assert pairs.sum() == frequencies.n_images.sum()


@pytest.mark.slow("all pairs of train2017")
def test_the_numbers_of_train2017_under_sg2im(shared):
    """As counted with exact fractions of hundredths of a pixel."""
    table = coco.read(shared / "coco2017" / "train2017_boxes.parquet").without_crowds()
    captions = different = 0
    triplet = np.zeros((len(table.names), len(table.names), len(NAMES)), bool)
    for groups, n in triplets.count_pairs(table, "sg2im"):
        of_two = groups[:, 1] != groups[:, 2]
        captions, different = captions + np.count_nonzero(n), different + np.count_nonzero(n[of_two])
        np.logical_or.at(triplet, (groups[of_two, 1], groups[of_two, 2]), n[of_two] > 0)
    assert (captions, different, triplet.sum()) == (8_524_446, 7_052_532, 60_466)


def test_the_numbers_of_train2017(shared, tmp_path):
    boxes, path, again = shared / "coco2017" / "train2017_boxes.parquet", tmp_path / "a.parquet", tmp_path / "b.parquet"
    n = triplets.build(path, boxes, split="train")
    counted = triplets.frequencies(path)
    different = counted[counted.subject != counted.object]
    assert counted.n_images.sum() == n == 9_815_810
    assert different.n_images.sum() == 8_171_342 and len(different) == 62_460
    triplets.build(again, boxes, split="train")
    assert again.read_bytes() == path.read_bytes()  # threads do not show
