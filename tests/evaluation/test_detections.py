"""Tables of boxes: ours, others', and VISOR's published results."""

import json

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from slowly import holds_slowly, make_detections, make_prompts, random_world

from sr4g_utils.evaluation import detections, scores, verdicts
from sr4g_utils.relations import NAMES

PROJECTIVE = NAMES[:4]
GOOD = (100, 0, "dog", 0.9, 0.0, 0.0, 5.0, 5.0)


@pytest.mark.parametrize(("column", "value", "message"), [
    ("score", 1.5, r"row 1: the score is not in \[0, 1\]"), ("x", np.nan, "row 1: a value is missing"),
    ("y", np.inf, "row 1: a number is infinite"), ("w", -1.0, "row 1: width or height is negative"),
    ("image_index", -1, "row 1: image_index is not a whole number"), ("label", None, "row 1: a value is missing"),
])  # fmt: skip
def test_impossible_detections_are_named(column, value, message):
    table = make_detections(GOOD, GOOD)
    table[column] = [table[column][0], value]
    refuses(message, detections.check_detections, table)


def test_other_errors_say_what_to_do(tmp_path):
    table = make_detections(GOOD)
    refuses("column 'h' is missing", detections.check_detections, table.drop(columns="h"))
    refuses("'score' must hold numbers", detections.check_detections, table.assign(score="high"))
    (tmp_path / "half.parquet").write_bytes(b"PAR1 half a file")
    refuses(r"half\.parquet: not readable", detections.read_detections, tmp_path / "half.parquet")
    refuses("no such file", detections.read_detections, tmp_path / "none.parquet")
    refuses(r"read from \.parquet", detections.read_detections, tmp_path / "boxes.pkl")


@pytest.mark.parametrize("form", ["parquet", "json", "columns", "jsonl"])
def test_detections_made_elsewhere(tmp_path, form):
    _, table = random_world(2, 5)
    table["prompt_id"] = "p" + table.prompt_id.astype(str).str.zfill(3)
    path = tmp_path / f"boxes.{'json' if form == 'columns' else form}"
    if form == "parquet":
        table.to_parquet(path)
    elif form == "columns":
        path.write_text(json.dumps(table.to_dict("list")))
    else:
        table.to_json(path, orient="records", lines=form == "jsonl")
    read = detections.read_detections(path)
    pd.testing.assert_frame_equal(read[list(table)], table, check_dtype=False)


def published(prompts: pd.DataFrame, table: pd.DataFrame) -> dict:
    """VISOR's results format, written image by image as its detection script does."""
    results = {}
    for p in prompts.to_dict("records"):
        for index in range(4):
            of = table[(table.prompt_id == p["prompt_id"]) & (table.image_index == index)]
            of = of[(of.score > 0.1) & of.label.isin([p["subject"], p["object"]])]
            centroid = [[r.x + r.w / 2, r.y + r.h / 2] for r in of.itertuples()]
            sra = any(
                holds_slowly(p["relation"], s, o)
                for s in of[of.label == p["subject"]].to_dict("records")
                for o in of[of.label == p["object"]].to_dict("records")
            )
            results[f"{p['prompt_id']}_{index}"] = {
                "classes": of.label.tolist(), "centroid": centroid, "recall": of.label.nunique(), "sra": int(sra),
                "text": f"a {p['subject']} {p['relation']} a {p['object']}",
            }  # fmt: skip
    return results


def test_published_results_score_as_the_boxes_do(tmp_path):
    prompts, boxes = random_world(4, 30, relations=PROJECTIVE)
    results = published(prompts, boxes)
    results["9999_0"] = {"classes": [], "centroid": [], "recall": 0, "sra": 0, "text": "a dog and a cat"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    records = detections.read_visor_results(tmp_path / "results.json", prompts)
    ours = verdicts.verdicts(prompts, boxes, 4)
    columns = ["prompt_id", "image_index", "n_subject", "n_object", "both_found", "correct", *PROJECTIVE]
    pd.testing.assert_frame_equal(records[columns], ours[columns], check_dtype=False)
    pd.testing.assert_frame_equal(scores.scores(records), scores.scores(ours))
    # as the published script counts: det_both * sra, over the images in the file
    both = [(r["subject"], r["object"]) for r in records.to_dict("records")]
    of = [results[f"{r.prompt_id}_{r.image_index}"] for r in records.itertuples()]
    found = [s in image["classes"] and o in image["classes"] for (s, o), image in zip(both, of, strict=True)]
    cond = 100 * sum(f * image["sra"] for f, image in zip(found, of, strict=True)) / sum(found)
    table = scores.scores(records).set_index(["relation", "metric"])["value"]
    assert table["all", "VISOR_Cond"] == pytest.approx(cond)
    assert table["all", "OA"] == pytest.approx(100 * np.mean(found))


def test_broken_published_results_are_named(tmp_path):
    prompts = make_prompts(("dog", "left of", "cat")).assign(prompt_id=[0])
    image = {"classes": [], "centroid": [], "recall": 0, "sra": 0, "text": ""}
    for content, message in [
        ({"0_0": image | {"sra": 2}}, "image '0_0': 'sra' must be 0 or 1"),
        ({"0_0": image | {"classes": None}}, "image '0_0': the field 'classes' is missing"),
        ({"0_0": image | {"centroid": [[1, 2]]}}, "image '0_0': 0 classes but 1 centroids"),
        ("{", "not readable as JSON"), ([], "expected an object"), ({"a": {}}, "'a' is not named"),
        ({"5_0": image}, "no prompt_id is one of the prompts'"),
    ]:  # fmt: skip
        (tmp_path / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
        refuses(message, detections.read_visor_results, tmp_path / "results.json", prompts)
