#!/usr/bin/env bash
# diffusers and transformers: of a model saved in half precision, a half loads in single.
#
# Expected: from_pretrained without a dtype loads all parts of a pipeline alike.
# Happens: diffusers' networks load as float32 whatever the file holds, transformers' (since 5) as the file has them.
# A pipeline whose parts were saved as float16 has a float32 UNet beside a float16 text encoder, and fails or rounds
# where the two meet.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     saved as torch.float16; UNet2DConditionModel loads as torch.float32, CLIPTextModel loads as torch.float16
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
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

unet = UNet2DConditionModel(
    sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
config = CLIPTextConfig(
    vocab_size=50, hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=1
)
found = {}
for part in (unet, CLIPTextModel(config)):
    name = type(part).__name__
    part.half().save_pretrained(name)
    found[name] = type(part).from_pretrained(name).dtype
print("saved as torch.float16;", ", ".join(f"{name} loads as {dtype}" for name, dtype in found.items()))
assert list(found.values()) == [torch.float32, torch.float16]
PY
