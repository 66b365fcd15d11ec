#!/usr/bin/env bash
# torch, diffusers: a UNet compiled for a CPU trains in bfloat16 with gradients of 0 in most of its layers.
#
# Expected: torch.compile changes how fast a network is, and roundings.
# Happens: under autocast to bfloat16 no gradient arrives behind the first upsampler: 160 of 206 weights get exactly 0, without an
# error or a warning. In float32, or not compiled, all get theirs. The loss falls all the same, by the layers that are left. The
# pieces that do it are torch's: a convolution, twice the size by nearest neighbours, two convolutions. From 8 x 8 the first one
# gets 0, from 16 x 16 it does not.
# Seen with torch 2.13.0+cpu, diffusers 0.42.1, Python 3.11, on x86_64 with AVX-512 and its bfloat16 products:
#     bfloat16, not compiled: 0 of 206 weights have a gradient of 0
#     float32, compiled: 0 of 206 weights have a gradient of 0
#     bfloat16, compiled: 160 of 206 weights have a gradient of 0
#     three convolutions from 8 x 8: 2 of 6
#     three convolutions from 16 x 16: 0 of 6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0
"$venv/bin/python" -I - <<'PY'
import torch
from diffusers import UNet2DConditionModel

inputs = torch.randn(4, 4, 16, 16), torch.randint(0, 1000, (4,)), torch.randn(4, 8, 16)
counts = {}


def zero_gradients(network, weights, bfloat16, *inputs):
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = network(*inputs)
    getattr(output, "sample", output).float().square().mean().backward()
    return sum(weight.grad is None or not weight.grad.any() for weight in weights), len(weights)


for precision, compiled in (("bfloat16", False), ("float32", True), ("bfloat16", True)):
    torch._dynamo.reset()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
    )
    how = f"{precision}, {'compiled' if compiled else 'not compiled'}"
    network = torch.compile(unet) if compiled else unet
    counts[how] = zeros, total = zero_gradients(network, list(unet.parameters()), precision == "bfloat16", *inputs)
    print(f"{how}: {zeros} of {total} weights have a gradient of 0")
for size in (8, 16):
    torch._dynamo.reset()
    pieces = torch.nn.Sequential(
        torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.Upsample(scale_factor=2.0, mode="nearest"),
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.Conv2d(32, 4, 3, padding=1),
    )
    counts[size] = zero_gradients(torch.compile(pieces), list(pieces.parameters()), True, torch.randn(4, 4, size, size))
    print(f"three convolutions from {size} x {size}: {counts[size][0]} of {counts[size][1]}")
assert counts["bfloat16, not compiled"] == counts["float32, compiled"] == (0, 206)
assert counts["bfloat16, compiled"] == (160, 206) and counts[8] == (2, 6) and counts[16] == (0, 6)
PY
