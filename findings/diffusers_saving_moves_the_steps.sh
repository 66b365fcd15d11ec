#!/usr/bin/env bash
# diffusers: a scheduler that was loaded and saved hands other timesteps to the scheduler that replaces it.
#
# Expected: DPMSolverMultistepScheduler made from a published configuration and from the same one after
# save_pretrained are alike.
# Happens: published configurations are older than some settings. What they lack is filled with the defaults of the
# class that reads them: DPM-Solver's own ("linspace") from the published file, PNDM's ("leading") from the file that
# PNDM wrote. Two folders of equal weights draw other images from the same seed. (In memory, from_config of the loaded
# PNDM is as from the published file: defaults are marked.)
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     from the published file: linspace [999, 799, 599, 400, 200]
#     after PNDM has saved it: leading [831, 665, 499, 333, 167]
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

from diffusers import DPMSolverMultistepScheduler, PNDMScheduler

published = {  # as Stable Diffusion 1's first folders have it
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}
PNDMScheduler.from_config(published).save_pretrained("saved")
steps = []
for where, scheduler in (
    ("from the published file", DPMSolverMultistepScheduler.from_config(published)),
    ("after PNDM has saved it", DPMSolverMultistepScheduler.from_pretrained("saved")),
):
    scheduler.set_timesteps(5)
    steps.append(scheduler.timesteps.tolist())
    print(f"{where}: {scheduler.config.timestep_spacing} {steps[-1]}")
assert steps[0][0] == 999 and steps[1][0] < 900
PY
