#!/usr/bin/env bash
# datasets: of images named by their prompts, only those of a train are loaded.
#
# Expected: load_dataset("imagefolder", data_dir=...) loads every image of a folder.
# Happens: the words train, test and val in a file's name choose its split, and once some file has such a word the
# files without one are left out, silently. "train" is one of COCO's 80 categories: in a folder of
# "<prompt>_<number>.png" the images of trains are the whole dataset.
# Seen with datasets 5.2.0 pillow 13.0.0, Python 3.11:
#     3 images in the folder, in the dataset: {'train': 1}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
"$venv/bin/python" -I - <<'PY'
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
Path("samples").mkdir()
prompts = ["a dog to the left of a cat", "a train to the left of a dog", "a cup above a bed"]
for prompt in prompts:
    Image.new("RGB", (8, 8)).save(f"samples/{prompt}_000000.png")
loaded = datasets.load_dataset("imagefolder", data_dir="samples", cache_dir="cache")
rows = {split: table.num_rows for split, table in loaded.items()}
print(f"{len(prompts)} images in the folder, in the dataset: {rows}")
assert rows == {"train": 1}
PY
