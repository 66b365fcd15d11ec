#!/usr/bin/env bash
# diffusers: Qwen-Image's last block has layers that never learn.
#
# Expected: a transformer that is trained gives each of its weights a gradient, as its processes wait for when they are several.
# Happens: the last block of QwenImageTransformer2DModel computes what becomes of the text, and nothing reads it: six weights of
# its `attn.to_add_out` and `txt_mlp` have no gradient at all. SD3's last block, with the same two streams, has no such layers.
# Seen with diffusers 0.42.1, torch 2.13.0, Python 3.11:
#     QwenImageTransformer2DModel: 6 of 77 weights have no gradient: transformer_blocks.1.attn, transformer_blocks.1.txt_mlp
#     SD3Transformer2DModel: 0 of 66 weights have no gradient
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0
"$venv/bin/python" -I - <<'PY'
import torch
from diffusers import QwenImageTransformer2DModel, SD3Transformer2DModel

torch.manual_seed(0)
qwen = QwenImageTransformer2DModel(
    patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=8, axes_dims_rope=(8, 4, 4),
)
sd3 = SD3Transformer2DModel(
    sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8, out_channels=4,
)
texts, t = torch.randn(2, 5, 8), torch.rand(2)
outputs = {
    qwen: qwen(torch.randn(2, 16, 16), timestep=t, encoder_hidden_states=texts, img_shapes=[[(1, 4, 4)]] * 2,
               encoder_hidden_states_mask=torch.ones(2, 5, dtype=torch.bool), return_dict=False)[0],
    sd3: sd3(torch.randn(2, 4, 8, 8), texts, torch.randn(2, 8), 1000 * t, return_dict=False)[0],
}
silent = {}
for network, output in outputs.items():
    output.square().mean().backward()
    none = [name for name, weight in network.named_parameters() if weight.grad is None]
    where = sorted({".".join(name.split(".")[:3]) for name in none})
    silent[type(network).__name__] = where
    count = f"{len(none)} of {len(list(network.parameters()))} weights have no gradient"
    print(f"{type(network).__name__}: {count}" + (f": {', '.join(where)}" if where else ""))
assert silent["QwenImageTransformer2DModel"] == ["transformer_blocks.1.attn", "transformer_blocks.1.txt_mlp"]
assert silent["SD3Transformer2DModel"] == []
PY
