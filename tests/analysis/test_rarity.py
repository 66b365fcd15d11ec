"""How often captions of photos say where things are."""

import hashlib
import json
import re
import zipfile

import pandas as pd
import pytest

from sr4g_utils.analysis import rarity
from sr4g_utils.relations import NAMES, RELATIONS
from sr4g_utils.store.files import DATA, ROOT

CAPTIONS = [
    "A dog to the LEFT of a cat .", "a bird above the trees", "a bird over the trees above the sea", "a dogabove",
    "a cat under a bed", "a boy runs", "two cups overlapping", "a cat",
]  # fmt: skip


def write(tmp_path, kind):
    path = tmp_path / f"captions.{kind}"
    record = json.dumps({"annotations": [{"image_id": i // 2, "caption": text} for i, text in enumerate(CAPTIONS)]})
    lines = {
        "txt": CAPTIONS,
        "tsv": [f"{text}\thttp://example.org/{i}" for i, text in enumerate(CAPTIONS)],
        "token.txt": [f"{i // 2}.jpg#{i % 2}\t{text}" for i, text in enumerate(CAPTIONS)],
        "json": [record],
    }
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("annotations/captions_train2017.json", record)
    else:
        path.write_text("\n".join(lines[kind]) + "\n")
    return path


@pytest.mark.parametrize("kind,photos", [("txt", 8), ("tsv", 8), ("token.txt", 4), ("json", 4), ("zip", 4)])
def test_captions_are_read_and_counted_as_by_hand(tmp_path, kind, photos):
    captions = rarity.read_captions(write(tmp_path, kind))
    assert captions.caption.tolist() == CAPTIONS and captions.photo.nunique() == photos
    table = rarity.count({"mine": captions}).set_index(["relation", "wording"])
    assert (table.captions == 8).all() and len(table) == 2 * 15
    hits = table[table.hits > 0].hits.to_dict()
    own = {("left of", "own"): 1, ("above", "own"): 2, ("overlapping", "own"): 1, (rarity.ANY, "own"): 4}
    assert hits == own | {(name, "all"): n for (name, _), n in own.items()} | {
        ("below", "all"): 1,
        (rarity.ANY, "all"): 5,
    }
    assert table.share_of_pair["above", "all"] == pytest.approx(200 / 3)
    read = rarity.WORDS["above"]["read"]["own"]
    assert table.placed["above", "own"] == pytest.approx(100 * 2 / 8 * read[1] / read[0])
    assert table.low.isna().all() if photos < 8 else (table.low <= table.percent).all()


def test_a_file_without_captions_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "other.json").write_text('{"images": []}')
    (tmp_path / "cut.zip").write_bytes(b"PK")
    damaged = dict.fromkeys(("latin.txt", "deep.json", "other.json", "cut.zip"), "not readable as captions")
    for name, what in {"empty.txt": "has no caption", "none.txt": "no such file", **damaged}.items():
        with pytest.raises(ValueError, match=f"{name}: {what}"):
            rarity.read_captions(tmp_path / name)


def test_every_relation_has_words_and_what_was_read_is_counted():
    assert tuple(rarity.WORDS) == NAMES
    for relation in RELATIONS:
        assert all(true <= read <= rarity.SAMPLE for read, true in rarity.WORDS[relation.name]["read"].values())
    record = json.loads((DATA / "results" / "coco" / "caption_words.json").read_text())
    total = next(row for row in record["rows"] if row["relation"] == rarity.ANY and row["wording"] == "all")
    assert (total["read"], total["true"]) == (201, 111)


def test_the_sample_that_was_read_is_drawn_again(shared):
    """The first by hash of each relation and wording; their number is what data/words.yaml says was read."""
    files = {"Conceptual Captions": "Validation_GCC-1.1.0-Validation.tsv", "Flickr8k": "Flickr8k.token.txt"}
    sources = {name: rarity.read_captions(shared / "captions" / file) for name, file in files.items()}
    sizes = rarity.sample(sources).groupby(["relation", "wording"]).size()
    for relation in NAMES:
        for wording in ("own", "others"):
            assert sizes.get((relation, wording), 0) == rarity.WORDS[relation]["read"][wording][0]
    record = json.loads((DATA / "results" / "coco" / "caption_words.json").read_text())
    counted = rarity.count(sources)
    assert counted.hits.tolist() == [row["hits"] for row in record["rows"]]
    text = "\n".join(sources["Flickr8k"].caption)
    assert len(re.findall(r"(?i)\bto the left of\b", text)) == 5  # a slow look
    assert (
        record["about"]["sources"]["Flickr8k"]
        == hashlib.sha256((shared / "captions" / "Flickr8k.token.txt").read_bytes()).hexdigest()
    )


def test_notebook_02_tells_the_recorded_shares():
    cells = json.loads((ROOT / "notebooks" / "02_dataset.ipynb").read_text(encoding="utf-8"))["cells"]
    text = next("".join(cell["source"]) for cell in cells if cell["id"] == "rarity-result")
    table = pd.DataFrame(json.loads((DATA / "results" / "coco" / "caption_words.json").read_text())["rows"])

    def ends(relation, wording, column, form):
        values = table[(table.relation == relation) & table.wording.isin(wording)][column]
        return f"{values.min():{form}} to {values.max():{form}} %"

    for wording, form in (("own", ".1f"), ("all", ".0f")):
        assert (
            ends(rarity.ANY, [wording], "percent", form) in text
            and ends(rarity.ANY, [wording], "placed", ".1f") in text
        )
    for relation in ("above", "inside"):
        assert ends(relation, ["own", "all"], "share_of_pair", ".0f") in text
    sides = table[table.relation.isin(["left of", "right of"]) & (table.wording == "all")]
    assert f"{sides.hits.sum()} of {sides.drop_duplicates('source').captions.sum():,} captions" in text
