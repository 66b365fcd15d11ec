"""A score in one call: the numbers of verdicts and scores, whatever the boxes or images come as."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny_detectors
from PIL import Image
from pretend import draw, make_prompts, picture
from refusals import refuses
from scipy import special
from slowly import VISORS

from sr4g_utils import __version__, score
from sr4g_utils.dataset.prompt_sets import prompts_hash, read_prompts
from sr4g_utils.evaluation import score as score_module
from sr4g_utils.evaluation.detections import read_visor_results
from sr4g_utils.evaluation.scores import MAIN, chance, scores
from sr4g_utils.evaluation.statistics import second_opinion, student
from sr4g_utils.evaluation.verdicts import VARIANTS, verdicts

PROMPTS = make_prompts()
BOXES = draw(PROMPTS, 0.7, seed=1)


def test_students_t_is_scipys():
    for level in (0.5, 0.9, 0.95, 0.99):
        degrees = np.array([*range(1, 60), 100, 333, 1000, 25_279, 62_459])
        ours = [student(int(n), level) for n in degrees]
        np.testing.assert_allclose(ours, special.stdtrit(degrees, (1 + level) / 2), rtol=1e-11)
    assert np.isnan(student(0, 0.95))


@pytest.mark.parametrize("form", ["table", "parquet", "csv", "json", "jsonl", "corners", "corners in memory"])
def test_the_numbers_are_those_of_verdicts_and_scores(form, tmp_path):
    own = [name for name in BOXES if name not in "xywh"]
    corners = BOXES[own].assign(x1=BOXES.x, y1=BOXES.y, x2=BOXES.x + BOXES.w, y2=BOXES.y + BOXES.h)
    path = tmp_path / f"boxes.{'csv' if form == 'corners' else form}"
    if form == "parquet":
        BOXES.to_parquet(path)
    elif form in ("csv", "corners"):
        (corners if form == "corners" else BOXES).to_csv(path, index=False)
    elif form in ("json", "jsonl"):
        BOXES.to_json(path, orient="records", lines=form == "jsonl")
    boxes = {"table": BOXES, "corners in memory": corners}.get(form, path)
    result = score(boxes, PROMPTS, corners="corners" in form, detector="mine")
    records = verdicts(PROMPTS, BOXES, 4)
    pd.testing.assert_frame_equal(result.verdicts, records)
    pd.testing.assert_frame_equal(result.scores.drop(columns="chance"), scores(records))
    expected = chance(records).set_index(["relation", "metric"]).value
    np.testing.assert_array_equal(result.scores.set_index(["relation", "metric"]).chance, expected)
    assert result.judged["prompts"]["sha256"] == prompts_hash(PROMPTS) and result.judged["version"] == __version__
    assert result.judged["images"]["number"] == 4 * len(PROMPTS) and result.judged["detector"] == {"id": "mine"}
    assert (result.judged["threshold"], result.judged["pairs"], result.judged["rules"]) == (0.1, "any", "visor")


def test_genevals_own_settings_are_one_word():
    able = PROMPTS[PROMPTS.relation.isin(["left of", "right of", "above", "below"])]
    result = score(BOXES, able, like="geneval")
    pd.testing.assert_frame_equal(result.verdicts, verdicts(able, BOXES, 4, 0.3, **VARIANTS["geneval"]))
    assert score(BOXES, able, like="geneval", pairs="any").judged["pairs"] == "any"


def test_it_says_what_it_found_and_how():
    result = score(BOXES, PROMPTS)
    text, row = str(result), result.scores.query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
    shown = f"VISOR_Cond {row.value:.1f} [{row.low:.1f}, {row.high:.1f}]"
    assert shown in " ".join(text.split()) and f"{row['count']:,} of {row.of:,}" in text and f"{row.chance:.1f}" in text
    for words in ("threshold 0.1", "any pair", "rules visor", "no seed", __version__, prompts_hash(PROMPTS)[:12]):
        assert words in " ".join(text.split()), words
    assert shown in result.cite() and "\n" not in result.cite()
    assert result._repr_html_().startswith("<table") and "How it was judged" in result._repr_html_()
    assert ["all", *result.per_relation().relation] == list(dict.fromkeys(result.scores.relation))
    whole = json.loads(json.dumps(result.to_json()))
    assert whole["judged"] == result.judged and len(whole["scores"]) == len(result.scores)


def test_what_cannot_be_measured_is_a_dash_and_null():
    one = score(BOXES[BOXES.image_index == 0], PROMPTS, per_prompt=1)
    assert [name for name in one.table().metric if name in VISORS] == [*MAIN, "VISOR_1"]
    half = score(BOXES[BOXES.label == "dog"], PROMPTS, per_prompt=4)
    row = half.table().set_index("metric").loc["VISOR_Cond"]
    assert (row.percent, row.counts, row.chance) == ("–", "0 of 0", "–")
    rows = {(row["relation"], row["metric"]): row for row in half.to_json()["scores"]}
    assert rows["all", "VISOR_Cond"]["value"] is None and rows["all", "OA"]["value"] == 0


def test_images_in_memory_are_judged_as_their_folder_is(models, tmp_path):
    triplets = [("dog", "left of", "cat"), ("tv", "above", "car"), ("cat", "inside", "tv")]
    pixels = [[picture(40, 60, 10 * i + n) for n in range(2)] for i in range(3)]
    paths = [[tmp_path / "images" / f"{i}_{n}.png" for n in range(2)] for i in range(3)]
    (tmp_path / "images").mkdir()
    for path, image in ((paths[i][n], pixels[i][n]) for i in range(3) for n in range(2)):
        Image.fromarray(image).save(path)
    options = {"prompts": triplets, "detector": str(models / "owlvit"), "threshold": 0.02}
    expected = score(tmp_path / "images", **options)
    expected.write(tmp_path / "out")
    assert (
        "../images" in (tmp_path / "out" / "gallery.html").read_text() and len(list((tmp_path / "out").iterdir())) == 5
    )
    assert expected.judged["detector"]["id"] == "owlvit" and "owlvit@sha256 " in expected.how()
    nested = {
        "arrays": pixels, "PIL": [[Image.fromarray(image) for image in images] for images in pixels],
        "floats": [np.stack(images) / 255 for images in pixels],
        "paths": [[str(path) for path in images] for images in paths], "by prompt": dict(enumerate(pixels)),
    }  # fmt: skip
    for kind, images in nested.items():
        result = score(images, **options)
        pd.testing.assert_frame_equal(result.verdicts, expected.verdicts, obj=kind)
        assert result.judged["detector"] == expected.judged["detector"]
    first = score([images[0] for images in paths], **options)
    zeroth = expected.verdicts[expected.verdicts.image_index == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.verdicts, zeroth)
    assert score({2: pixels[2]}, **options).verdicts.prompt_id.tolist() == [2, 2]


def test_two_detectors_are_scored_each_and_their_agreement(models, tmp_path):
    triplets = [("dog", "left of", "cat"), ("tv", "above", "person"), ("cat", "right of", "tv")]
    pixels = [[picture(40, 60, 10 * i + n) for n in range(2)] for i in range(3)]
    (tmp_path / "images").mkdir()
    for i, n in np.ndindex(3, 2):
        Image.fromarray(pixels[i][n]).save(tmp_path / "images" / f"{i}_{n}.png")
    words, labels = str(models / "owlvit"), str(tiny_detectors.build("yolos", tmp_path / "yolos"))
    options = {"detector": [words, labels], "threshold": [0.02, 0.1], "boxes": tmp_path / "boxes.parquet"}
    result = score(tmp_path / "images", triplets, **options)
    alone = [score(pixels, triplets, detector=words, threshold=0.02), score(pixels, triplets, detector=[labels])]
    for name, one in zip(("owlvit", "yolos"), alone, strict=True):
        found = result.each[name]
        assert found.judged["threshold"] == one.judged["threshold"]
        pd.testing.assert_frame_equal(found.verdicts, one.verdicts)
        own = result.scores[result.scores.detector == name].drop(columns="detector").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, one.scores)
        assert one.table().to_string(index=False) in str(result)
    agreement = second_opinion(*(one.verdicts for one in alone))
    pd.testing.assert_frame_equal(result.agreement.drop(columns=["first", "second"]), agreement)
    assert "How far they agree" in str(result) and "How far they agree" in result._repr_html_()
    result.write(tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "agreement.csv")) == len(agreement) == 2
    assert [one["judged"]["threshold"] for one in json.loads(json.dumps(result.to_json()))["detectors"]] == [0.02, 0.1]
    assert sorted(path.name for path in tmp_path.glob("boxes*")) == ["boxes_1.parquet", "boxes_2.parquet"]
    twice = score(pixels, triplets, detector=[words, words], threshold=[0.02, 0.03])
    assert list(twice.each) == ["1 owlvit", "2 owlvit"]
    refuses("detector: 2 are named, but boxes are those of one", score, BOXES, PROMPTS, detector=["a", "b"])
    refuses("threshold: 2 for 1 detectors; give one, or one for each", score, BOXES, PROMPTS, threshold=[0.1, 0.2])


def test_published_results_are_scored(tmp_path):
    prompts = PROMPTS[PROMPTS.relation == "left of"]
    image = {"classes": ["dog", "cat"], "centroid": [[1, 1], [9, 1]], "recall": 2, "sra": 1, "text": "–"}
    images = {f"{id}_{n}": image | {"sra": n % 2} for id in prompts.prompt_id for n in range(4)}
    (tmp_path / "results_sd.json").write_text(json.dumps(images))
    result = score(tmp_path / "results_sd.json", prompts)
    expected = scores(read_visor_results(tmp_path / "results_sd.json", prompts))
    pd.testing.assert_frame_equal(result.scores.drop(columns="chance"), expected)
    assert "verdicts as published in results_sd.json" in result.how()
    refuses("pairs and rules cannot change", score, tmp_path / "results_sd.json", prompts, rules="sg2im")


def test_mistakes_are_named(tmp_path):
    pixels = picture(40, 60, 0)
    (tmp_path / "c.csv").write_text("prompt_id,image_index,label,score,xmin,ymin,xmax,ymax\n0,0,dog,1,0,0,1,1\n")
    (tmp_path / "b.csv").write_text("prompt_id,image_index,label,score,x,y,w,h\n0,0,dog,1,0,0,1,1\n")
    triplet = [("dog", "left of", "cat")]
    for message, arguments in {
        "nothing.csv: no such folder": {"images": "nothing.csv"},
        "images: does not say what was asked for": {"images": [pixels]},
        "like: unknown value 'me'": {"images": BOXES, "prompts": PROMPTS, "like": "me"},
        "x1, y1, x2, y2 look like corners": {"images": tmp_path / "c.csv", "prompts": triplet},
        r"b\.csv: the column 'x1' is missing; corners are x1, y1, x2, y2": {
            "images": tmp_path / "b.csv", "prompts": triplet, "corners": True,
        },
        r"images: 1 for 2 prompts \(1 more name none of our relations\)": {
            "images": [pixels], "prompts": ["a dog above a cat", "a dog near a cat", "a cup below a bed"],
        },
        "images: 7 is the prompt_id of no prompt": {"images": {0: pixels, 7: pixels}, "prompts": triplet},
        "boxes: are kept of a folder": {"images": [pixels], "prompts": triplet, "boxes": tmp_path / "b.parquet"},
    }.items():  # fmt: skip
        refuses(message, score, **arguments)
    refuses(r"not ndarray of float64 \(40, 60\)", score_module._pixels, pixels[..., 0] * 1.0)


def test_things_that_never_meet_have_a_row_of_their_own():
    prompts = read_prompts("sr2d")
    prompts = pd.concat([prompts[prompts.met == name].head(10) for name in ("together", "never together")])
    rows = [
        (row.prompt_id, 0, name, 0.9, x, 10, 10, 10)
        for k, row in enumerate(prompts.itertuples()) if k != 12
        for x, name in ((10, row.subject), (60, row.object))
    ]  # fmt: skip
    boxes = pd.DataFrame(rows, columns=["prompt_id", "image_index", "label", "score", *"xywh"])
    result = score(boxes, prompts, per_prompt=1)
    table = result.per_pair()
    assert table.things.tolist() == ["together", "never together"] and table.prompts.tolist() == [10, 10]
    assert table.OA[0].startswith("100.0") and table.OA[1].startswith("90.0") and "(9 of 10)" in table.OA[1]
    assert "never together" in str(result) and "never together" in result._repr_html_()
    assert result.to_json()["pairs"][1]["things"] == "never together"
    assert score(boxes, prompts.drop(columns="met"), per_prompt=1).per_pair().empty
