#!/usr/bin/env bash
# transformers: the detection pipelines cut boxes to whole pixels.
#
# Expected: pipeline("object-detection") and pipeline("zero-shot-object-detection") give the boxes that the model's
# own post-processing gives.
# Happens: every corner is cut towards 0 (not rounded). Centres that differ by less than a pixel can become equal, so
# that neither thing is left of the other. Corners left of or above the picture move to the right, all others to the
# left.
# Seen with torch 2.13.0 transformers 5.24.0 pillow 13.0.0, Python 3.11:
#     ObjectDetectionPipeline: [10.9, 20.9, 30.9, 40.9] became [10, 20, 30, 40]; [-0.9, 1.2, 30.1, 40.9] became [0, 1, 30, 40]
#     ZeroShotObjectDetectionPipeline: the same
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
from transformers import ObjectDetectionPipeline, ZeroShotObjectDetectionPipeline

boxes = [[10.9, 20.9, 30.9, 40.9], [-0.9, 1.2, 30.1, 40.9]]
for kind in (ObjectDetectionPipeline, ZeroShotObjectDetectionPipeline):
    pipeline = object.__new__(kind)  # what turns the model's boxes into the answer, without a model
    pipeline.framework = "pt"
    cut = [list(pipeline._get_bounding_box(torch.tensor(box)).values()) for box in boxes]
    print(f"{kind.__name__}:", "; ".join(f"{box} became {whole}" for box, whole in zip(boxes, cut)))
    assert cut == [[10, 20, 30, 40], [0, 1, 30, 40]]
PY
