#!/usr/bin/env bash
# torchmetrics: in a MetricCollection one accuracy gets the value of another threshold, if their first batch agrees.
#
# Expected: two metrics with different thresholds in a collection give what each gives alone.
# Happens: metrics whose states are equal after the first update are taken for one group and share a state from then on,
# whatever their settings are: the first by name is updated, and the other gets its numbers. No warning is given.
# Seen with torch 2.13.0 torchmetrics 1.9.0 numpy 2.4.6, Python 3.11:
#     alone: low 1.0, high 0.5; in a collection: low 0.5, high 0.5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

BATCHES = [([0.1, 0.9], [0, 1]), ([0.5, 0.5], [1, 1])]  # the two thresholds agree on the first, and not on the second


def values(metric) -> dict[str, float] | float:
    for scores, labels in BATCHES:
        metric.update(torch.tensor(scores), torch.tensor(labels))
    result = metric.compute()
    return {name: float(value) for name, value in result.items()} if isinstance(result, dict) else float(result)


THRESHOLDS = {"low": 0.3, "high": 0.7}
alone = {name: values(BinaryAccuracy(threshold=at)) for name, at in THRESHOLDS.items()}
together = values(MetricCollection({name: BinaryAccuracy(threshold=at) for name, at in THRESHOLDS.items()}))
for what, numbers in (("alone", alone), ("in a collection", together)):
    shown = ", ".join(f"{name} {numbers[name]}" for name in THRESHOLDS)
    print(f"{what}: {shown}", end="; " if what == "alone" else "\n")
assert alone == {"low": 1.0, "high": 0.5} and together["low"] != alone["low"]
PY
