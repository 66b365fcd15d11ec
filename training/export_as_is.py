"""The models of the checkpoints as they are: ``python training/export_as_is.py WORK OUT [CURVE.json]``."""

import json
import sys
from pathlib import Path

from safetensors import safe_open

from sr4g_utils.models.miniature import export, training
from sr4g_utils.models.miniature.pool import POOL, POOL_SEED, Pool
from sr4g_utils.store.files import write_json

work, out = map(Path, sys.argv[1:3])


def steps(name: str) -> int:
    with safe_open(work / name / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["about"])["step"]


pool = Pool.make(POOL, (0, POOL_SEED))
parts = {"vae": training.train_vae(pool, work, steps("vae"), 0), "text": training.train_text(work, steps("text"), 0)}
vae, text = parts["vae"][0], parts["text"][0]
parts["base"] = training.train_base(pool, vae, text, work, steps("base"), 0)
parts["detector"] = training.train_detector(pool, vae, work, steps("detector"), 0)
parts["rtdetr"] = training.train_rtdetr(pool, work, steps("rtdetr"), 0)
export.export(parts, out, 0)
if len(sys.argv) > 3:
    about = json.loads((out / "training.json").read_text())
    about["parts"]["base"] |= json.loads(Path(sys.argv[3]).read_text())
    write_json(out / "training.json", about)
    (out / "README.md").write_text(export.card(about))
