"""Puts the kept weights where ``python -m sr4g_utils.models.miniature --work WORK`` goes on from: ``python training/unpack.py WORK``.

A finished part has the average of its weights alone; the base has its own, too. Adam's state is not kept.
"""

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sr4g_utils.models.miniature.networks import make_detector, make_rtdetr, make_text, make_unet, make_vae

here, work = Path(__file__).parent, Path(sys.argv[1])
for name, make in {"vae": make_vae, "text": make_text, "base": make_unet, "detector": make_detector, "rtdetr": make_rtdetr}.items():
    with safe_open(here / f"{name}.safetensors", "pt") as file:
        about = file.metadata()
    kept, network = load_file(here / f"{name}.safetensors"), make()
    own = {key.removeprefix("model."): value for key, value in kept.items() if key.startswith("model.")}
    for i, p in enumerate(p for p in network.parameters() if p.requires_grad):
        p.data.copy_(kept[f"ema.{i}"])
    network.load_state_dict(own, strict=False)
    tensors = {f"model.{key}": value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    tensors |= {key: value.float() for key, value in kept.items() if key.startswith("ema.")}
    (work / name).mkdir(parents=True, exist_ok=True)
    save_file(tensors, work / name / "checkpoint.safetensors", metadata=about)
