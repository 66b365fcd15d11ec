#!/usr/bin/env bash
# diffusers and peft: a UNet saved with its adapter loads with random attention.
#
# Expected: save_pretrained of a network with a LoRA adapter writes the adapter, the merged weights or an error.
# Happens: it writes the wrapped modules' names (to_q.base_layer.weight, to_q.lora_A...). from_pretrained knows none
# of them: every to_q is drawn anew, and a warning in a list of dozens of names is all that tells. The LoRA had not
# even changed the outputs (its B is 0).
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0 peft 0.21.2, Python 3.11:
#     to_q weights in the file: 0 of 8; outputs differ by more than 0.001: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
given = torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8)
with torch.no_grad():
    before = unet(*given).sample
    wanted = sum(name.endswith("to_q.weight") for name in unet.state_dict())
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    unet.save_pretrained("saved")
    names = load_file("saved/diffusion_pytorch_model.safetensors")
    kept = sum(name.endswith("to_q.weight") for name in names)
    far = float((UNet2DConditionModel.from_pretrained("saved")(*given).sample - before).abs().max()) > 1e-3
print(f"to_q weights in the file: {kept} of {wanted}; outputs differ by more than 0.001: {far}")
assert kept == 0 and wanted == 8 and far
PY
