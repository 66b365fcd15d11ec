#!/usr/bin/env bash
# transformers: a DETR query that says "nothing is here" is returned as a thing.
#
# Expected: a query whose most probable class is "no object" is left out; the threshold is for those that saw
# something.
# Happens: post_process_object_detection drops the class "no object" first and then takes the best of the others. With
# any threshold below 0.5 a query that is 60 % sure of nothing and 35 % of a cat is a cat.
# Seen with torch 2.13.0 transformers 5.24.0 pillow 13.0.0, Python 3.11:
#     probabilities cat 0.35, dog 0.05, nothing 0.60: DetrImageProcessor finds label 0 with 0.35
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
from transformers import DetrImageProcessor

probabilities = torch.tensor([[[0.35, 0.05, 0.60]]])
outputs = SimpleNamespace(logits=probabilities.log(), pred_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]))
(found,) = DetrImageProcessor().post_process_object_detection(
    outputs, threshold=0.3, target_sizes=torch.tensor([[100, 200]])
)
label, score = found["labels"].tolist(), [round(value, 2) for value in found["scores"].tolist()]
print(f"probabilities cat 0.35, dog 0.05, nothing 0.60: DetrImageProcessor finds label {label[0]} with {score[0]}")
assert label == [0] and score == [0.35]
PY
