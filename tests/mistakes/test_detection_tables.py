"""Tables of boxes as others write them: names and ids spelt otherwise are read, and what cannot be read is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr4g_utils import visor
from sr4g_utils.boxes import COCO_CATEGORIES
from sr4g_utils.detections import ALIASES, plain, positions, read_detections, read_visor_results, readings

NAMES = [category.name for category in COCO_CATEGORIES]
VOC = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv",
    "diningtable": "dining table", "pottedplant": "potted plant", "bicycle": "bicycle", "wine_glass": "wine glass",
    "Wine Glass": "wine glass", "HOT-DOG": "hot dog", "traffic_light": "traffic light",
    "cell  phone": "cell phone", "doughnut": "donut",
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("label", list(VOC))
def test_a_label_spelt_otherwise_is_read(label):
    assert readings([label], NAMES) == {label: VOC[label]}


def test_names_of_coco_and_aliases_keep_apart():
    assert len({plain(name) for name in NAMES}) == 80
    assert readings(NAMES, NAMES) == dict(zip(NAMES, NAMES, strict=True))
    assert all(plain(word) == word for word in ALIASES.values()), "an alias leads to a name, not to another alias"
    assert set(ALIASES.values()) <= {plain(name) for name in NAMES}


def test_a_name_that_is_asked_for_is_never_taken_for_another():
    assert readings(["sofa", "couch", "Sofa"], ["sofa", "couch"]) == {"sofa": "sofa", "couch": "couch", "Sofa": "sofa"}
    assert readings(["tvmonitor"], ["tv", "television"]) == {}, "which of them?"
    assert readings(["TV", "t.v."], ["tv"]) == {"TV": "tv"}


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.data())
def test_readings_know_case_spaces_and_hyphens(asked, data):
    name = data.draw(st.sampled_from(asked))
    spelt = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    spelt = spelt.replace(" ", data.draw(st.sampled_from(["", "_", "-", "  "])))
    assert readings([spelt], asked) == {spelt: name}


# -------------------------------------------------------------------------------------------------------------- tables

PROMPTS = pd.DataFrame(
    {
        "prompt_id": np.arange(7, 19),
        "subject": ["wine glass", "dog", "hot dog", "couch"] * 3,
        "relation": ["left of", "above", "separated"] * 4,
        "object": ["dog", "tv", "couch", "wine glass"] * 3,
    }
)


def table() -> pd.DataFrame:
    """Boxes of two images of every prompt: half of them obey."""
    rows = [
        (p.prompt_id, i, name, score, x, 3.0, 8.0, 8.0)
        for p in PROMPTS.itertuples()
        for i in range(2)
        for name, score, x in ((p.subject, 0.9, 0.0), (p.object, 0.8, 20.0 - 40 * i))
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "image_index", "label", "score", "x", "y", "w", "h"])


def scored(boxes: pd.DataFrame, prompts: pd.DataFrame = PROMPTS) -> dict[str, float]:
    found = visor.scores(visor.verdicts(prompts, boxes, 2)).query("relation == 'all'")
    return found.set_index("metric").value.dropna().to_dict()


RIGHT = scored(table())


def test_the_table_has_something_to_lose():
    assert RIGHT["OA"] == 100 and 20 < RIGHT["VISOR_Cond"] < 80


def test_a_whole_vocabulary_spelt_otherwise_gives_the_same_scores():
    others = {"wine glass": "Wine_Glass", "tv": "tvmonitor", "couch": "sofa", "hot dog": "hot-dog", "dog": "DOG"}
    boxes = table()
    assert scored(boxes.assign(label=boxes.label.map(others))) == pytest.approx(RIGHT)
    mine = PROMPTS.assign(subject=PROMPTS.subject.map(others), object=PROMPTS.object.map(others))
    assert scored(boxes, mine) == pytest.approx(RIGHT)


def test_names_that_never_occur_are_named(capsys):
    boxes = table()
    boxes["label"] = boxes.label.replace({"wine glass": "Weinglas", "tv": "Fernseher"})
    records = visor.verdicts(PROMPTS, boxes, 2)
    assert sorted(records.attrs["never_found"]) == ["tv", "wine glass"]
    told = capsys.readouterr().err
    assert "wine glass" in told and "tv" in told and "of 5 names" in told and "Weinglas" in told and "Fernseher" in told
    # what was looked for and not found is no spelling mistake
    records = visor.verdicts(PROMPTS, table().query("label != 'tv'"), 2)
    assert records.attrs["never_found"] == ["tv"] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "asked"),
    [
        (str, int), (int, str), (float, int), (int, float), (float, str), (str, str),
        (lambda id: f"{id:05}", int), (lambda id: f"{id}.0", int), (int, lambda id: f"{id:05}"),
    ],
)  # fmt: skip
def test_ids_as_text_and_as_numbers_are_the_same_ids(ids, asked):
    boxes = table()
    boxes["prompt_id"] = boxes.prompt_id.map(ids)
    assert scored(boxes, PROMPTS.assign(prompt_id=PROMPTS.prompt_id.map(asked))) == pytest.approx(RIGHT)


def test_ids_that_are_no_prompts_name_both_kinds():
    with pytest.raises(ValueError, match=r"no prompt_id .* text such as p007, the prompts have numbers such as 7"):
        visor.verdicts(PROMPTS, table().assign(prompt_id="p007"), 2)
    with pytest.raises(ValueError, match=r"no prompt_id .* numbers such as 99, the prompts have numbers such as 7"):
        visor.verdicts(PROMPTS, table().assign(prompt_id=99), 2)
    texts = PROMPTS[:2].assign(prompt_id=["7", "07"])
    with pytest.raises(ValueError, match="the prompts '7' and '07' have the same one"):
        visor.verdicts(texts, table(), 2)
    assert positions(pd.Series(["07", "7"]), texts.prompt_id).tolist() == [1, 0], "text and text must be equal"
    assert positions(pd.Series([], dtype=object), PROMPTS.prompt_id).tolist() == []
    assert positions(pd.Series(["1e1", "10"]), PROMPTS.prompt_id).tolist() == [-1, 3]


def test_published_results_spell_names_and_ids_otherwise(tmp_path):
    prompts = PROMPTS[:2]
    image = {"centroid": [[0, 0], [9, 0]], "recall": 2, "sra": 1, "text": ""}
    (tmp_path / "r.json").write_text(
        json.dumps(
            {"7_0": image | {"classes": ["Wine_glass", "dog"]}, "8_0": image | {"classes": ["dog", "tvmonitor"]}}
        )
    )
    for ids in (int, str, float):
        records = read_visor_results(tmp_path / "r.json", prompts.assign(prompt_id=prompts.prompt_id.map(ids)))
        assert records.both_found.all() and records.correct.all() and len(records) == 2
    for broken, message in [
        ([], "expected an object, found list"),
        (image | {"classes": ["dog", 5]}, "a class is not a name"),
        (image | {"classes": ["dog", "tv"], "centroid": [1, 2]}, "'centroid' must hold an x and a y"),
    ]:
        (tmp_path / "r.json").write_text(json.dumps({"7_0": broken}))
        with pytest.raises(ValueError, match=f"image '7_0': {message}"):
            read_visor_results(tmp_path / "r.json", prompts)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON", ".JSONL"])
def test_a_byte_order_mark_and_a_capital_suffix_are_read(tmp_path, suffix):
    path = tmp_path / f"boxes{suffix}"
    text = table().to_json(orient="records", lines=suffix.lower() == ".jsonl")
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert scored(read_detections(path)) == pytest.approx(RIGHT)


# ---------------------------------------------------------------------------------------------------- mutated tables

Change = Callable[[np.random.Generator, pd.DataFrame], pd.DataFrame]


def some(rng: np.random.Generator, boxes: pd.DataFrame) -> int:
    return int(rng.integers(len(boxes)))


def put(column: str, *values: object) -> Change:
    """One value of the column becomes another."""

    def change(rng: np.random.Generator, boxes: pd.DataFrame) -> pd.DataFrame:
        cells = boxes[column].astype(object).tolist()
        cells[some(rng, boxes)] = values[rng.integers(len(values))]
        return boxes.assign(**{column: pd.Series(cells, dtype=object if column == "label" else None).to_numpy()})

    return change


def spelt(rng: np.random.Generator, boxes: pd.DataFrame) -> pd.DataFrame:
    ways = [str.upper, str.title, lambda s: s.replace(" ", "_"), lambda s: s.replace(" ", "-"), lambda s: f" {s} "]
    ways.append(lambda s: {"tv": "television", "couch": "sofa"}.get(s, s))
    return boxes.assign(label=boxes.label.map(lambda s: ways[rng.integers(len(ways))](s)))


HARMLESS: dict[str, Change] = {
    "spelt otherwise": spelt,
    "shuffled": lambda rng, boxes: boxes.sample(frac=1, random_state=int(rng.integers(99)), ignore_index=True),
    "ids as text": lambda rng, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(str)),
    "ids as floats": lambda rng, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(float)),
    "ids with zeros": lambda rng, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(str).str.zfill(6)),
    "numbers of images as floats": lambda rng, boxes: boxes.assign(image_index=boxes.image_index.astype(float)),
    "columns in another order": lambda rng, boxes: boxes[rng.permutation(boxes.columns)],
    "more columns": lambda rng, boxes: boxes.assign(image=3, at="x", is_subject=False, area=1.5),
    "boxes of others": lambda rng, boxes: pd.concat(
        [boxes, boxes[:3].assign(prompt_id=boxes.prompt_id[:3].map(lambda id: type(id)(77_777)))], ignore_index=True
    ),
    "weak boxes": lambda rng, boxes: pd.concat([boxes, boxes.assign(score=0.02)], ignore_index=True),
}
HARMFUL: dict[str, Change] = {
    "no such column": lambda rng, boxes: boxes.drop(columns=str(rng.choice(boxes.columns[:8]))),
    "a missing value": lambda rng, boxes: put(str(rng.choice(["score", "x", "w", "label", "prompt_id"])), None)(
        rng, boxes
    ),
    "infinite": lambda rng, boxes: put(str(rng.choice(list("xywh"))), np.inf, -np.inf)(rng, boxes),
    "negative size": lambda rng, boxes: put(str(rng.choice(list("wh"))), -1.0)(rng, boxes),
    "a score beyond 1": put("score", 1.5, -0.1, 90.0),
    "half an image": put("image_index", 0.5, -1),
    "an image too many": put("image_index", 2, 10**9, 10**15),
    "numbers as labels": put("label", 17, 3.5, ["dog"], {"name": "dog"}),
    "numbers as text": lambda rng, boxes: boxes.assign(score=boxes.score.astype(str)),
    "foreign ids": lambda rng, boxes: boxes.assign(prompt_id=boxes.prompt_id + 10_000),
    "foreign labels": lambda rng, boxes: boxes.assign(label="Hund"),
    "nothing": lambda rng, boxes: boxes[:0],
    "all weak": lambda rng, boxes: boxes.assign(score=0.05),
}


def mutate_detections(rng: np.random.Generator, folder: Path) -> tuple[Path, bool | None]:
    """A table of boxes with some changes, as a file, and whether it can be read (None: who knows)."""
    harmless = [str(name) for name in rng.choice(list(HARMLESS), rng.integers(0, 3), replace=False)]
    if len([name for name in harmless if name.startswith("ids")]) > 1:
        harmless = harmless[:1]
    harmful = [str(name) for name in rng.choice(list(HARMFUL), int(rng.random() < 0.5))]
    boxes = table()
    for name in harmful:  # first, while values have their own types
        boxes = HARMFUL[name](rng, boxes)
    for name in harmless if not harmful else []:
        boxes = HARMLESS[name](rng, boxes)
    form = str(rng.choice(["parquet", "json", "columns", "jsonl"]))
    path = folder / f"boxes.{'json' if form == 'columns' else form}"
    if form == "parquet" and not {"numbers as labels"} & set(harmful):
        boxes.to_parquet(path)
    else:
        path = path.with_suffix(".jsonl" if form == "parquet" else path.suffix)
        rows = json.loads(boxes.to_json(orient="records")) if "infinite" not in harmful else boxes.to_dict("records")
        if path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            path.write_text(
                json.dumps(rows if form == "json" or not rows else {c: [r[c] for r in rows] for c in rows[0]})
            )
    if rng.random() < 0.3 and path.stat().st_size:  # and bytes that were lost, or others
        data = bytearray(path.read_bytes())
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data)))
            data = data[:at] if rng.random() < 0.3 else data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]
            if not data:
                break
        path.write_bytes(bytes(data))
        return path, None
    return path, not harmful


@pytest.mark.parametrize("seed", range(8))
def test_mutated_tables_end_in_the_right_score_or_in_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for number in range(60):
        path, readable = mutate_detections(rng, tmp_path)
        try:
            found = scored(read_detections(path))
        except ValueError as error:
            assert readable is not True, (seed, number, error)
            assert "\n" not in str(error) and len(str(error)) < 1000
        else:
            assert readable is not False, (seed, number, path.read_bytes()[:300])
            if readable:
                assert found == pytest.approx(RIGHT), (seed, number)
