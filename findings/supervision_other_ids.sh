#!/usr/bin/env bash
# supervision: a COCO file that is read and written again has other ids of images and categories.
#
# Expected: DetectionDataset.from_coco(...).as_coco(...) keeps the ids, by which detections and people's notes refer
# to images, or says that it does not.
# Happens: images are numbered from 1 in the order of the files, categories from 1 in the order of their ids, and
# supercategories become "common-objects". Results that were made with the first file are scored against other images
# and classes of the second without an error.
# Seen with supervision 0.31.2 numpy 2.4.6 opencv-python-headless 5.0.0.93, Python 3.11:
#     image ids [30, 70] became [1, 2]; category ids [17, 18] became [1, 2]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check supervision==0.31.2 numpy==2.4.6 opencv-python-headless==5.0.0.93
"$venv/bin/python" -I - <<'PY'
import json
from pathlib import Path

import cv2
import numpy as np
import supervision as sv

Path("photos").mkdir()
for id in (30, 70):
    cv2.imwrite(f"photos/{id}.jpg", np.zeros((40, 60, 3), np.uint8))
data = {
    "images": [{"id": id, "width": 60, "height": 40, "file_name": f"{id}.jpg"} for id in (30, 70)],
    "categories": [{"id": id, "name": name, "supercategory": "animal"} for id, name in ((17, "cat"), (18, "dog"))],
    "annotations": [
        {"id": 1, "image_id": 30, "category_id": 18, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0, "segmentation": []}
    ],
}
Path("in.json").write_text(json.dumps(data))
sv.DetectionDataset.from_coco("photos", "in.json").as_coco(annotations_path="out.json")
written = json.loads(Path("out.json").read_text())
images, categories = ([item["id"] for item in written[key]] for key in ("images", "categories"))
print(f"image ids [30, 70] became {images}; category ids [17, 18] became {categories}")
assert images == [1, 2] and categories == [1, 2]
PY
