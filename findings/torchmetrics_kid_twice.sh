#!/usr/bin/env bash
# torchmetrics: KID of the same features differs each time it is computed.
#
# Expected: a metric's compute() is a function of what it was updated with, as FrechetInceptionDistance's is.
# Happens: its subsets are drawn from torch's global generator: two metrics with the same features differ, and so does
# the next random number of whatever else the program draws. No argument takes a seed.
# Seen with torch 2.13.0 torchmetrics 1.9.0 numpy 2.4.6, Python 3.11:
#     KID of the same features: two values; the next random number: another
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
from torchmetrics.image.kid import KernelInceptionDistance


class Pixels(torch.nn.Module):
    num_features = 8

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)[:, :8] / 255


torch.manual_seed(0)
images = [torch.randint(0, most, (60, 3, 4, 4), dtype=torch.uint8) for most in (255, 180)]
values = []
torch.manual_seed(1)
for _ in range(2):
    metric = KernelInceptionDistance(feature=Pixels(), subsets=10, subset_size=20)
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    values.append(float(metric.compute()[0]))
after = float(torch.rand(1))
torch.manual_seed(1)
print("KID of the same features:", "two values" if values[0] != values[1] else "one value", end="; ")
print("the next random number:", "another" if float(torch.rand(1)) != after else "the same")
assert values[0] != values[1]
PY
