#!/usr/bin/env bash
# diffusers and transformers: after its last step a cosine schedule climbs back to the full rate.
#
# Expected: a schedule of 10 steps stays at 0 afterwards, as "linear", "polynomial" and "cosine_with_restarts" do.
# Happens: nothing stops the cosine at its half period. A run that goes on for longer than planned, as after a resume
# with more steps or where the steps were counted per process, ends at the highest learning rate.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     diffusers: rate at steps 0, 5, 10, 15, 20: cosine 1.0 0.5 0.0 0.5 1.0, linear 1.0 0.5 0.0 0.0 0.0
#     transformers: rate at steps 0, 5, 10, 15, 20: cosine 1.0 0.5 0.0 0.5 1.0, linear 1.0 0.5 0.0 0.0 0.0
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
import transformers
from diffusers.optimization import get_scheduler


def rates(make, name: str) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(name, optimiser, num_warmup_steps=0, num_training_steps=10)
    found = []
    for _ in range(21):
        found.append(round(schedule.get_last_lr()[0], 3))
        optimiser.step()
        schedule.step()
    return found[::5]


for library, make in (("diffusers", get_scheduler), ("transformers", transformers.get_scheduler)):
    cosine, linear = rates(make, "cosine"), rates(make, "linear")
    print(f"{library}: rate at steps 0, 5, 10, 15, 20: cosine", *cosine, end=", linear ")
    print(*linear)
    assert cosine == [1, 0.5, 0, 0.5, 1] and linear == [1, 0.5, 0, 0, 0]
PY
