#!/usr/bin/env bash
# pycocotools: the annotations of no image are those of all images.
#
# Expected: getAnnIds(imgIds=[]) gives nothing, as a filter that nothing passes does.
# Happens: an empty list stands for "no filter". Where a query for images finds none (here: a category without a
# picture), the next query, for the annotations of those images, gives every annotation of the file.
# Seen with pycocotools 2.0.11 numpy 2.4.6, Python 3.11:
#     images with a cat: []; annotations of those images: [1, 2]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
from pycocotools.coco import COCO

coco = COCO()
coco.dataset = {
    "images": [{"id": i, "width": 9, "height": 9} for i in (1, 2)],
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 18, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0} for i in (1, 2)
    ],
}
coco.createIndex()
images = coco.getImgIds(catIds=[17])
annotations = coco.getAnnIds(imgIds=images)
print(f"images with a cat: {images}; annotations of those images: {annotations}")
assert images == [] and annotations == [1, 2]
PY
