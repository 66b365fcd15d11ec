#!/usr/bin/env bash
# pycocotools: asked for the category "hot dog" by its name, getCatIds gives "dog", too.
#
# Expected: getCatIds(catNms="hot dog") gives the ids of the categories with that name, as getCatIds(catNms=["hot
# dog"]) does.
# Happens: a string counts as a list of names already, so that `name in catNms` looks for a part of the text: every
# category whose name is contained in the one asked for is given, without a word. With COCO's 80 names this hits "hot
# dog" alone ("dog"); with LVIS' or one's own there are many.
# Seen with pycocotools 2.0.11 numpy 2.4.6, Python 3.11:
#     ['dog', 'hot dog'] for 'hot dog', ['hot dog'] for ['hot dog']
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
    "images": [{"id": 1, "width": 9, "height": 9}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 58, "name": "hot dog"}, {"id": 17, "name": "cat"}],
    "annotations": [],
}
coco.createIndex()
names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
text, listed = ([names[id] for id in coco.getCatIds(catNms=asked)] for asked in ("hot dog", ["hot dog"]))
print(text, "for 'hot dog',", listed, "for ['hot dog']")
assert sorted(text) == ["dog", "hot dog"] and listed == ["hot dog"]
PY
