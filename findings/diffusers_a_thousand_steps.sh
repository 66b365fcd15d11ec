#!/usr/bin/env bash
# diffusers: with a thousand steps DPM-Solver, UniPC and DEIS visit one timestep, a thousand times.
#
# Expected: with as many steps as the model was trained on every timestep is visited once.
# Happens: with timestep_spacing "leading", which Stable Diffusion's folders ask for, the distance between steps is
# 1000 // (steps + 1): 0 from 1,000 steps on. All steps are at timestep 1 (the offset), nothing is denoised, no error.
# DDIM and Euler divide by the number of steps and then go one too far, to timestep 1,000 of 0 to 999.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     DPMSolverMultistepScheduler: 1000 steps, 1 distinct: [1]
#     UniPCMultistepScheduler: 1000 steps, 1 distinct: [1]
#     DEISMultistepScheduler: 1000 steps, 1 distinct: [1]
#     DDIMScheduler: 1000 steps, 1000 distinct, up to 1000
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

import diffusers

settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
settings |= {"timestep_spacing": "leading", "num_train_timesteps": 1000}
for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "DDIMScheduler"):
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(1000)
    steps = scheduler.timesteps.tolist()
    few = sorted(set(steps))
    what = f"up to {few[-1]}" if len(few) > 9 else f"{few}"
    print(f"{name}: {len(steps)} steps, {len(few)} distinct{',' if len(few) > 9 else ':'} {what}")
    assert (few[-1] == 1000) if name == "DDIMScheduler" else (few == [1])
PY
