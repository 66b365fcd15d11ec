#!/usr/bin/env bash
# diffusers: an EMAModel without warm-up warms up all the same.
#
# Expected: EMAModel(decay=0.9999) with use_ema_warmup=False, the default, averages with 0.9999 from the first step.
# Happens: it then takes the smaller of 0.9999 and (1 + step) / (10 + step): 0.18 at the third step, 0.99 after 900,
# and 0.9999 only after 90,000. The switch chooses between two warm-ups. A short training's average is almost its last
# weights.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     use_ema_warmup: False; decay after 2, 100, 1000, 90000 steps: 0.1818, 0.9174, 0.9911, 0.9999
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

import torch
from diffusers.training_utils import EMAModel

average = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999)
decays = [average.get_decay(step) for step in (2, 100, 1_000, 90_000)]
print(f"use_ema_warmup: {average.use_ema_warmup}; decay after 2, 100, 1000, 90000 steps:",
      ", ".join(f"{decay:.4f}" for decay in decays))
assert not average.use_ema_warmup and decays[0] < 0.2 and decays[2] < 0.992 and decays[3] > 0.9998
PY
