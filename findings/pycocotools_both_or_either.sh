#!/usr/bin/env bash
# pycocotools: two categories mean "both" to getImgIds and "either" to getAnnIds.
#
# Expected: getImgIds(catIds=[dog, cat]) gives the images of getAnnIds(catIds=[dog, cat]), that is all with a dog or a
# cat.
# Happens: it gives the images that show every one of the categories. Whoever collects the photos of some categories
# so gets almost none, and the more categories, the fewer; the annotations of the same list are of all photos.
# Seen with pycocotools 2.0.11 numpy 2.4.6, Python 3.11:
#     images of getImgIds: [3]
#     images of getAnnIds: [1, 2, 3]
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
    "images": [{"id": i, "width": 9, "height": 9} for i in (1, 2, 3)],
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": k, "image_id": image, "category_id": category, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0}
        for k, (image, category) in enumerate([(1, 17), (2, 18), (3, 17), (3, 18)], 1)
    ],
}
coco.createIndex()
images = sorted(coco.getImgIds(catIds=[17, 18]))
of_annotations = sorted({a["image_id"] for a in coco.loadAnns(coco.getAnnIds(catIds=[17, 18]))})
print("images of getImgIds:", images)
print("images of getAnnIds:", of_annotations)
assert images == [3] and of_annotations == [1, 2, 3]
PY
