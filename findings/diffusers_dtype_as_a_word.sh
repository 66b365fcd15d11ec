#!/usr/bin/env bash
# diffusers: torch_dtype="float16" gives float32, and the warning names float32 as what is wrong.
#
# Expected: a word is taken as transformers takes it, or refused.
# Happens: "float16" is replaced by torch.float32 before the warning is written, which so says that torch.float32 "is
# not a torch.dtype". Twice the memory and other rounding, with a sentence that seems to be a mistake.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     transformers: torch.float16, diffusers: torch.float32
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
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

config = CLIPTextConfig(
    vocab_size=50, hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=1
)
CLIPTextModel(config).save_pretrained("text")
AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained("vae")
text = CLIPTextModel.from_pretrained("text", dtype="float16").dtype
vae = AutoencoderKL.from_pretrained("vae", torch_dtype="float16").dtype
print(f"transformers: {text}, diffusers: {vae}")
assert (text, vae) == (torch.float16, torch.float32)
PY
