"""curve_json.py MODELS OUT.json N SNAPSHOTS: both things found (%) by each judge in N list captions' pictures of every snapshot of
SNAPSHOTS, with the judges, VAE and text tower of MODELS; and in N drawn scenes. What OUT has is kept."""
import sys, json, pathlib; 
import numpy as np, torch; torch.set_num_threads(1)
from safetensors.torch import load_file
from sr4g_utils.evaluation import readable as R
from sr4g_utils.models import detectors, diffusion
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.miniature.training import BATCH
from sr4g_utils.store.files import protocol, write_json
models, out = map(pathlib.Path, sys.argv[1:3]); n = int(sys.argv[3]) if len(sys.argv) > 3 else 98
J = {k: (detectors.load(models / k), t) for k, t in protocol()["thresholds"].items()} | {"templates": (None, 0.0)}
t = R.questions(n, 0); asked = t[["subject", "object"]].to_numpy().tolist()
def shares(pics, names): return {j: round(100 * float(R.both_found(b, names).mean()), 1) for j, b in R.look(J, pics, names).items()}
have = json.loads(out.read_text()) if out.exists() else {"curve": [], "drawn": shares(*R.drawn(n, 0))}
p = load_pipeline(models / "tiny-sd")[0]
snaps = sorted(pathlib.Path(sys.argv[4]).glob("*.safetensors"), key=lambda f: int(f.stem))
for f in snaps:
    pictures = BATCH["base"] * int(f.stem)
    if any(x["pictures"] == pictures for x in have["curve"]): continue
    p.unet.load_state_dict(load_file(f))
    pics = np.stack([q for *_, q in diffusion.sample(p, t.assign(caption=t["list"]), R.SAMPLING)])
    have["curve"].append({"pictures": pictures, "both found": shares(pics, asked)}); print(have["curve"][-1], flush=True)
    write_json(out, have)
print(have["drawn"])
