"""Annotation files as other tools write them, against pycocotools, and mutated ones against a slow lenient reader."""

import contextlib
import copy
import io
import json
import math
import re
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_boxes import official, same, write

from sr4g_utils.dataset import coco as dataset_coco
from sr4g_utils.dataset.boxes import BoxTable
from sr4g_utils.dataset.jsonstream import JsonStream


@pytest.fixture(scope="module", autouse=True)
def _whatever_is_left_out():
    """The files here have few annotations; one in three is much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SR4G_ALLOW_LOSS", "1")
        yield


# ------------------------------------------------------------------------------------------- other tools' exports
def excerpt(shared: Path) -> dict:
    return json.loads((shared / "coco_excerpt" / "annotations" / "instances_val2017.json").read_text())


EXPORTS = {
    "crowds as truth values": [("annotations", "iscrowd", bool)],
    "crowds as floats": [("annotations", "iscrowd", float)],
    "crowds as text": [("annotations", "iscrowd", str)],
    "no supercategory": [("categories", "supercategory", lambda _: None)],
    "ids as text": [("images", "id", str), ("annotations", "image_id", str), ("annotations", "id", str),
                    ("categories", "id", str), ("annotations", "category_id", str)],
    "float ids": [("images", "id", float), ("annotations", "image_id", float), ("annotations", "category_id", float)],
    "ids with zeros": [("images", "id", "{:012d}".format), ("annotations", "image_id", "{:012d}".format)],
    "sizes as floats": [("images", "width", float), ("images", "height", float)],
    "sizes as text": [("images", "width", str), ("images", "height", lambda side: f"{side}.0")],
    "boxes as text": [("annotations", "bbox", lambda box: [f"{side!r} " for side in box])],
    "backslashes": [("images", "file_name", r"photos\val\{}".format)],
    "one annotation id": [("annotations", "id", lambda _: 0)],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_what_loses_nothing_is_converted(shared, tmp_path, name):
    """Each box equals what pycocotools reads from the same file, and the table is that of the official file."""
    from pycocotools.coco import COCO

    data = excerpt(shared)
    plain = dataset_coco.read(write(tmp_path, data))
    for key, field, to in EXPORTS[name]:
        for record in data[key]:
            record[field] = to(record[field])
    path = write(tmp_path, data)
    table = dataset_coco.read(path)
    if "annotation id" in name:
        assert table.excluded == {} and sorted(map(tuple, table.xywh())) == sorted(map(tuple, plain.xywh()))
    elif name == "backslashes":
        assert table.file_name.to_pylist() == [f"photos/val/{name}" for name in plain.file_name.to_pylist()]
    elif name == "no supercategory":
        assert table.names == plain.names and {c.supercategory for c in table.categories} == {""}
    else:
        assert same(table, plain)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    theirs = [a for annotations in coco.imgToAnns.values() for a in annotations]
    ours = zip(table.image_id[table.image].tolist(), table.category.tolist(), table.xywh().tolist(), strict=True)
    assert sorted((image, table.categories[c].id, *map(float, box)) for image, c, box in ours) == sorted(
        (int(a["image_id"]), int(a["category_id"]), *map(float, a["bbox"])) for a in theirs
    )


def test_one_odd_annotation_changes_nothing_for_the_others(shared, tmp_path):
    """Here and there an annotation without a box: the others are those that pycocotools gives."""
    data = excerpt(shared)
    for i, bad in zip(range(0, 800, 50), [[], None, [1, 2, 3], ["a"] * 4] * 4, strict=True):
        data["annotations"][i]["bbox"] = bad
    table = dataset_coco.read(write(tmp_path, data))
    assert table.excluded == {"no box of four finite numbers": 16} and len(table) == len(data["annotations"]) - 16
    kept = [a for i, a in enumerate(data["annotations"]) if i % 50 or i >= 800]
    kept.sort(key=lambda a: (a["image_id"], a["category_id"], a["id"]))
    assert table.xywh().tolist() == [a["bbox"] for a in kept]


GOOD = {"id": 9, "width": 64, "height": 48}


@pytest.mark.parametrize(("key", "records", "reason"), [
    *(("images", [GOOD, {"id": 7, **size}], "image without a size")
      for size in ({"width": 100}, {"width": 0, "height": 80}, {"width": "wide", "height": 80})),
    ("images", [GOOD, {"id": "7a", "width": 100, "height": 80}], "unknown image"),
    ("images", [None, GOOD, 5], "unknown image"),
    *(("categories", [{"id": 17, "name": "cat"}, *others], "unknown category")
      for others in ([{"id": 18, "name": None}], [{"id": 18, "name": ""}], [None, {"name": "dog"}])),
])  # fmt: skip
def test_annotations_of_bad_images_and_categories_are_left_out_and_counted(tmp_path, key, records, reason):
    table = dataset_coco.read(write(tmp_path, official(**{key: records})))
    assert table.excluded == {reason: 2} and table.xywh().tolist() == [[0, 0, 64, 48]]
    assert table.image.tolist() == [table.image_id.tolist().index(9)]
    assert (table.width > 0).all() and len(table.file_name) == len(table.width) == len(table.image_id)
    assert key != "images" or table.image_id.tolist() == [9]


def test_the_annotation_id_plays_no_part_but_in_the_order(tmp_path):
    first = official()["annotations"][0]
    del first["id"]
    boxes = [{**first, "bbox": [i, 1, 2, 3]} for i in range(9, 0, -1)]
    for ids in ([0] * 9, [None] * 9, [f"{i:x}-4f2a" for i in range(9)], range(9), range(0, -9, -1), None):
        records = boxes if ids is None else [{**box, "id": id} for box, id in zip(boxes, ids, strict=True)]
        table = dataset_coco.read(write(tmp_path, official(annotations=records)))
        falling = ids == range(0, -9, -1)  # otherwise as in the file
        assert table.excluded == {} and table.x.tolist() == (list(range(1, 10)) if falling else list(range(9, 0, -1)))


def test_categories_of_one_name_are_one(tmp_path):
    """With two, "a dog to the left of another dog" would be one caption of two contradictory counts."""
    own, pet = official()["categories"], {"id": 3, "name": "dog", "supercategory": "pet"}
    more = [{"id": 5, "name": "Dog "}, {"id": 6, "name": "a_DOG"}, {"id": 7, "name": "dog (toy)"}]
    data = official(categories=[*own, pet, {"id": 40, "name": "cat"}, own[0], *more])
    data["annotations"][2]["category_id"] = 3
    table = dataset_coco.read(write(tmp_path, data))
    found = [(c.id, c.name, c.supercategory) for c in table.categories]
    assert found == [(3, "dog", "pet"), (7, "dog (toy)", ""), (17, "cat", "animal")]
    assert table.merged == {5: 3, 6: 3, 18: 3, 40: 17} and table.excluded == {}
    assert [table.names[i] for i in table.category] == ["dog", "dog", "cat"]
    assert table.without_crowds().merged == table.merged
    plain = dataset_coco.read(write(tmp_path, official()))
    twice = dataset_coco.read(write(tmp_path, official(images=[*official()["images"], official()["images"][0]])))
    assert plain.merged == {} and same(twice, plain), "an image that is listed twice alike"


# ----------------------------------------------------------------------------------------------- where a fault is
@pytest.mark.parametrize("chunk", [100, 5000, 1 << 19])
@pytest.mark.parametrize("place", [0, 300, 700])
def test_the_byte_that_is_named_is_that_of_the_file(shared, tmp_path, monkeypatch, chunk, place):
    monkeypatch.setattr(JsonStream, "CHUNK", chunk)
    text = json.dumps(excerpt(shared), ensure_ascii=False)
    at = [found.end() for found in re.finditer(r'"area":', text)][place]
    with pytest.raises(ValueError, match="invalid JSON") as caught:
        dataset_coco.read(write(tmp_path, f"{text[:at]} ; {text[at:]}"))
    assert abs(int(re.search(r"near byte ([0-9,]+)$", str(caught.value))[1].replace(",", "")) - at) <= 2


@pytest.mark.parametrize("chunk", [1, 64, 1 << 19])
def test_the_record_that_is_named_is_that_of_the_file(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(JsonStream, "CHUNK", chunk)
    annotations = [{"id": i, "image_id": 1000 + i, "category_id": 18, "bbox": [1, 1, 2, 2]} for i in range(40)]
    annotations[25]["bbox"], annotations[30]["image_id"] = [1, 2], None
    with pytest.raises(ValueError) as caught:
        dataset_coco.read(write(tmp_path, official(annotations=annotations)))
    told = "(unknown image: 40); annotations[25] has the bbox [1, 2] (expected: four finite numbers)"
    assert str(caught.value).endswith(f"no usable annotation among 40 {told}")


def test_masks_of_any_length_are_read_without_being_held(tmp_path, monkeypatch):
    """Records longer than what is read at once, and lists that nobody needs."""
    data = official(more=[{"a": [1, {"b": 2}]}] * 3000)
    plain = dataset_coco.read(write(tmp_path, data))
    for i, annotation in enumerate(data["annotations"] * 20):
        annotation["segmentation"] = {"counts": list(range(100_000, 130_000)), "size": [1, {"}, {": i}]}
    data["annotations"] = data["annotations"] * 20
    path = write(tmp_path, data)
    tracemalloc.start()
    table = dataset_coco.read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 20 * len(plain) and most < 0.4 * path.stat().st_size
    monkeypatch.setenv("SR4G_JSON_VALUE", "100000")
    monkeypatch.setattr(JsonStream, "CHUNK", 1000)
    with pytest.raises(ValueError, match=r"bytes of a value near byte [\d,]+: [\d,]+ is above the limit of 100,000;"):
        dataset_coco.read(path)


# ------------------------------------------------------------------------------------------- the slow lenient reader
def whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.0*)?", value, re.ASCII):
        return None
    if isinstance(value, float) and not abs(value) <= 2**53:  # NaN included
        return None
    exact = Fraction(value)
    return int(exact) if exact.denominator == 1 and abs(exact) < 2**63 else None


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?\d[\d.]*\s*", value, re.ASCII):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 2**63 else ""
    return value if isinstance(value, str) and value.encode("utf-8", "replace").decode() == value else ""


def tidy(value: Any) -> str:
    return " ".join(text(value).replace("_", " ").split())


def key(value: Any) -> str:
    return re.sub("[ -]", "", tidy(value).casefold())


def crowd(value: Any) -> int | None:
    return 0 if value is None else int(value) if isinstance(value, bool) else whole(value)


def sized(image: dict) -> bool:
    return all(0 < (whole(image.get(side)) or 0) < 2**31 for side in ("width", "height"))


def reason(annotation: Any, images: dict, names: dict[int, str]) -> str | None:
    """Why an annotation is left out: the first that fits."""
    fields = annotation if isinstance(annotation, dict) else {}
    if (image := images.get(whole(fields.get("image_id")))) is None:
        return "unknown image"
    if not sized(image):
        return "image without a size"
    if whole(fields.get("category_id")) not in names:
        return "unknown category"
    box = fields.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(math.isfinite(number(side)) for side in box):
        return "no box of four finite numbers"
    if crowd(fields.get("iscrowd")) not in (0, 1):
        return "iscrowd neither 0 nor 1"
    x, y, w, h = map(number, box)
    if w <= 0 or h <= 0:
        return "zero or negative size"
    inside = x >= -1 and y >= -1 and x + w <= whole(image["width"]) + 1 and y + h <= whole(image["height"]) + 1
    return None if inside else "outside the image"


def by_id(records: list, alike: Any) -> dict[int, dict]:
    """Records with an id; two of one id must be alike."""
    found: dict[int, dict] = {}
    for record in records:
        if isinstance(record, dict) and (id := whole(record.get("id"))) is not None:
            first = found.setdefault(id, record)
            if alike(first) != alike(record):
                raise ValueError("occurs more than once")
    return found


def file_name(image: dict) -> str:
    return (text(image.get("file_name")) or f"{whole(image['id']):012d}.jpg").replace("\\", "/")


def slow(data: dict) -> dict[str, Any]:
    """What the table must be, or ValueError."""
    images = by_id(data["images"], lambda i: (file_name(i), sized(i) and (whole(i["width"]), whole(i["height"]))))
    categories = [c for c in data["categories"] if isinstance(c, dict) and tidy(c.get("name"))]
    names = {id: tidy(category["name"]) for id, category in by_id(categories, lambda c: key(c["name"])).items()}
    lowest = {name: min(id for id in names if key(names[id]) == key(name)) for name in names.values()}
    reasons = [reason(annotation, images, names) for annotation in data["annotations"]]
    if None not in reasons:
        raise ValueError("no usable annotation")
    kept = [a for a, why in zip(data["annotations"], reasons, strict=True) if why is None]

    def place(annotation: dict) -> tuple:
        id = whole(annotation.get("id"))
        image, category = whole(annotation["image_id"]), lowest[names[whole(annotation["category_id"])]]
        return image, category, -(2**63) if id is None else id

    kept.sort(key=place)
    usable = [(id, image) for id, image in sorted(images.items()) if sized(image)]
    return {
        "images": [(id, file_name(image), whole(image["width"]), whole(image["height"])) for id, image in usable],
        "names": [names[id] for id in sorted(set(lowest.values()))],
        "merged": {id: lowest[name] for id, name in names.items() if lowest[name] != id},
        "excluded": dict(Counter(why for why in reasons if why)),
        "boxes": [(*place(a)[:2], *map(number, a["bbox"]), bool(crowd(a.get("iscrowd")))) for a in kept],
    }


def as_slow(table: BoxTable) -> dict[str, Any]:
    ids = table.image_id[table.image].tolist(), [table.categories[i].id for i in table.category]
    images = zip(table.image_id.tolist(), table.file_name.to_pylist(), table.width, table.height, strict=True)
    boxes = [(i, c, *box, crowd) for i, c, box, crowd in zip(*ids, table.xywh(), table.crowd, strict=True)]
    return {"images": list(images), "boxes": boxes, **{k: getattr(table, k) for k in ("names", "merged", "excluded")}}


ODD = [
    None, "", "7", "07", "7.0", " 7 ", "7.5", "1e5", "-3", "abc", "dog", "cat", r"a\b.jpg", "half \ud800", "}, {", "]",
    True, False, 0, 1, 2, 7, 9, 17, 18, 7.0, 9.0, 7.5, -1, 1e5, 2**31, 2**53 + 1, 2.0**60, 2**63, -(2**63), 10**400,
    math.nan, math.inf, -math.inf, [], {}, [1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4.25"], [1, 2, 3, "x"],
    [1, 2, None, 4], [0.1, 0.2, 2**70, 0.3], [1, 2, 10**400, 4], [[1, 2, 3, 4]], {"id": 7}, [{"a": 1}, {"b": 2}],
]  # fmt: skip
FIELDS = {
    "images": ["id", "width", "height", "file_name"],
    "annotations": ["id", "image_id", "category_id", "bbox", "iscrowd"],
    "categories": ["id", "name", "supercategory"],
}
mutations = st.lists(
    st.sampled_from([(key, field) for key in FIELDS for field in [*FIELDS[key], "whole", "twice", "gone"]]).flatmap(
        lambda at: st.tuples(st.just(at), st.integers(0, 9), st.sampled_from(ODD), st.booleans())
    ),
    max_size=8,
)


def mutated(changes: list) -> dict:
    """An official file with fields replaced or left out, and records that are none, are twice or are gone."""
    data = official()
    data["annotations"] += [{**annotation, "bbox": [i, 2, 3, 4]} for i, annotation in enumerate(data["annotations"])]
    data = copy.deepcopy(data)
    for (key, field), place, value, drop in changes:
        if not (records := data[key]):
            continue
        record, value = records[place % len(records)], copy.deepcopy(value)  # no record may become a part of itself
        if field == "whole":
            records[place % len(records)] = value
        elif field == "twice":
            records.append(copy.deepcopy(record))
        elif field == "gone":
            del records[place % len(records)]
        elif isinstance(record, dict) and drop:
            record.pop(field, None)
        elif isinstance(record, dict):
            record[field] = value
    return data


@given(mutations, st.sampled_from([1, 40, 300, 1 << 19]), st.sampled_from([None, 1]))
@example([(("categories", "name"), 1, "half \ud800", False)], 1, None)  # which msgspec calls truncated
@settings(max_examples=400)
def test_mutated_files_against_the_slow_reader(tmp_path_factory, changes, chunk, indent):
    """The same table, or one line that names the file; wherever the stream is cut."""
    data = mutated(changes)
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(data, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JsonStream, "CHUNK", chunk)
        try:
            expected = slow(data)
        except ValueError:
            with pytest.raises(ValueError) as caught:
                dataset_coco.read(path)
            assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
            return
        assert as_slow(dataset_coco.read(path)) == expected
