#!/usr/bin/env bash
# transformers: DETR's image processor drops crowds and empty boxes without a word.
#
# Expected: annotations that are given to the processor come back as labels, as many, or the number left out is said.
# Happens: crowd regions and boxes without a size are left out, boxes that reach beyond the image are cut, and the
# areas stay those before the cut: 6400 for a box that keeps 400 (at twice the size). The rows no longer line up with
# what was given.
# Seen with torch 2.13.0 transformers 5.24.0 pillow 13.0.0, Python 3.11:
#     4 annotations given, 2 labels: classes [3, 4], area of the last by its sides 400, as told 6400
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 pillow==13.0.0
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

import torch
from PIL import Image
from transformers import DetrImageProcessor

boxes = [([10, 10, 20, 20], 3, 0), ([10, 10, 20, 20], 3, 1), ([50, 50, 0, 10], 4, 0), ([90, 90, 40, 40], 4, 0)]
annotations = [
    {"id": id, "image_id": 1, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
    for id, (box, category, crowd) in enumerate(boxes, 1)
]
processor = DetrImageProcessor(size={"height": 200, "width": 200})
given = {"image_id": 1, "annotations": annotations}
(labels,) = processor(images=Image.new("RGB", (100, 100)), annotations=given, return_tensors="pt")["labels"]
classes, told = labels["class_labels"].tolist(), int(labels["area"][-1])
sides = round(float(labels["boxes"][-1][2:].prod()) * 200 * 200)
print(f"{len(boxes)} annotations given, {len(classes)} labels: classes {classes}, ", end="")
print(f"area of the last by its sides {sides}, as told {told}")
assert classes == [3, 4] and (sides, told) == (400, 6400)
PY
