#!/usr/bin/env bash
# torch, diffusers: a UNet compiled for a CPU trains in bfloat16 with gradients of 0 in most of its layers.
#
# Expected: torch.compile changes how fast a network is, and roundings.
# Happens: under autocast to bfloat16 nothing is said, but behind the first upsampler no gradient
# arrives: 160 of 206 weights get exactly 0, without an error or a warning. In float32, or not compiled, all get theirs. The loss
# falls all the same, by the layers that are left; captions, which enter elsewhere, are never learnt.
# Seen with torch 2.13.0+cpu, diffusers 0.42.1, Python 3.11, on x86_64 with AVX-512 and its bfloat16 products:
#     bfloat16, not compiled: 0 of 206 weights have a gradient of 0
#     float32, compiled: 0 of 206 weights have a gradient of 0
#     bfloat16, compiled: 160 of 206 weights have a gradient of 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0
"$venv/bin/python" -I - 2>"$work/advice" <<'PY' || { cat "$work/advice"; exit 1; }
import torch
from diffusers import UNet2DConditionModel

torch.manual_seed(0)
given = torch.randn(4, 4, 16, 16), torch.randint(0, 1000, (4,)), torch.randn(4, 8, 16)
silent = {}
for precision, compiled in (("bfloat16", False), ("float32", True), ("bfloat16", True)):
    torch._dynamo.reset()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
    )
    network = torch.compile(unet) if compiled else unet
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        output = network(*given).sample
    output.float().square().mean().backward()
    weights = list(unet.parameters())
    none = sum(weight.grad is None or not weight.grad.any() for weight in weights)
    how = f"{precision}, {'compiled' if compiled else 'not compiled'}"
    silent[how] = none, len(weights)
    print(f"{how}: {none} of {len(weights)} weights have a gradient of 0")
assert silent["bfloat16, not compiled"] == silent["float32, compiled"] == (0, 206)
assert silent["bfloat16, compiled"] == (160, 206)
PY
