#!/usr/bin/env bash
# transformers: RT-DETR finds a cat and a dog in one and the same box.
#
# Expected: post_process_object_detection gives each query, that is each thing found, its best label, as DETR's,
# YOLOS' and OWL-ViT's do.
# Happens: it takes the best of all pairs of query and label, so that one query comes back with two labels and the
# same four numbers. Who asks whether both things are there, or which is left of which, compares a box with itself.
# Seen with torch 2.13.0 transformers 5.24.0 pillow 13.0.0, Python 3.11:
#     label 0: 0.95 [80.0, 40.0, 120.0, 60.0]
#     label 1: 0.92 [80.0, 40.0, 120.0, 60.0]
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

from types import SimpleNamespace

import torch
from transformers import RTDetrImageProcessor

logits = torch.tensor([[[3.0, 2.5, -5.0], [-6.0, -6.0, -6.0]]])  # a query that is sure of two labels, and an empty one
boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
(found,) = RTDetrImageProcessor().post_process_object_detection(
    outputs, threshold=0.5, target_sizes=torch.tensor([[100, 200]])
)
for label, score, box in zip(found["labels"], found["scores"], found["boxes"]):
    print(f"label {int(label)}: {float(score):.2f} {[round(float(side), 1) for side in box]}")
assert found["labels"].tolist() == [0, 1] and torch.equal(found["boxes"][0], found["boxes"][1])
PY
