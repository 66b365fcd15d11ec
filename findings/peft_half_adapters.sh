#!/usr/bin/env bash
# peft and diffusers: the same LoRA on the same half-precision network is float32 by one door and float16 by the
# other.
#
# Expected: unet.add_adapter(config), diffusers' door to peft, makes the adapter that peft's get_peft_model(unet,
# config) makes.
# Happens: peft raises adapters on a float16 base to float32, since they are what is trained; diffusers' add_adapter
# leaves them in float16. There AdamW's epsilon of 1e-8 is 0, and the first step divides by it wherever a gradient is
# 0.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0 peft 0.21.2, Python 3.11:
#     get_peft_model: torch.float32, add_adapter: torch.float16; 1e-8 in float16: 0.0
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
from peft import LoraConfig, get_peft_model


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).half()


def kind(network: torch.nn.Module) -> torch.dtype:
    (dtype,) = {weight.dtype for name, weight in network.named_parameters() if "lora_" in name}
    return dtype


config, own = LoraConfig(r=2, target_modules=["to_q"]), unet()
own.add_adapter(config)
by_peft, by_diffusers = kind(get_peft_model(unet(), config)), kind(own)
least = float(torch.tensor(1e-8, dtype=torch.float16))
print(f"get_peft_model: {by_peft}, add_adapter: {by_diffusers}; 1e-8 in float16: {least}")
assert (by_peft, by_diffusers, least) == (torch.float32, torch.float16, 0)
PY
