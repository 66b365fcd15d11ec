#!/usr/bin/env bash
# globox and pycocotools: what globox writes has a first annotation that pycocotools never counts as found.
#
# Expected: boxes written by globox and given as their own detections have an average precision of 1.
# Happens: globox numbers annotations from 0. COCOeval notes for each detection the id of the box that it matches and
# takes 0 for "none", so that the first box counts as missed and its detection as false. globox also writes crowd
# regions as plain boxes (iscrowd 0).
# Seen with globox 2.9.0 pycocotools 2.0.11 numpy 2.4.6, Python 3.11:
#     ids of the annotations: [0, 1]; iscrowd: [0, 0], was [0, 1]
#     AP of perfect detections: 0.50 with these ids, 1.00 with ids from 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check globox==2.9.0 pycocotools==2.0.11 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import contextlib
import io
import json
from pathlib import Path

from globox import AnnotationSet
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

boxes = [
    {"id": 5 + k, "image_id": k, "category_id": k, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": int(k == 2)}
    for k in (1, 2)
]
data = {
    "images": [{"id": k, "width": 60, "height": 60, "file_name": f"{k}.jpg"} for k in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": boxes,
}
Path("in.json").write_text(json.dumps(data))
AnnotationSet.from_coco("in.json").save_coco("out.json")
written = json.loads(Path("out.json").read_text())


def precision(first: int) -> float:
    for id, annotation in enumerate(written["annotations"], first):
        annotation["id"] = id
    Path("truth.json").write_text(json.dumps(written))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO("truth.json")
        found = [{**a, "score": 1.0} for a in json.loads(Path("truth.json").read_text())["annotations"]]
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


ids, crowds = ([a[name] for a in written["annotations"]] for name in ("id", "iscrowd"))
print(f"ids of the annotations: {ids}; iscrowd: {crowds}, was [0, 1]")
zero, one = precision(0), precision(1)
print(f"AP of perfect detections: {zero:.2f} with these ids, {one:.2f} with ids from 1")
assert ids == [0, 1] and crowds == [0, 0] and abs(zero - 0.5) < 0.01 and abs(one - 1) < 0.01
PY
