"""A fine-tuned network or LoRA as one passes it on: its weights with a model card in the Hub's form, made from a run's
records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from .. import __version__
from ..evaluation.scores import MAIN
from ..models.lora import FILE as LORA
from ..store.files import digest, markdown, write_text
from ..store.run import copy
from . import arms

RAIL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
BASE_LICENCES = {  # of base models, by their id's owner or their name
    "CompVis": ("creativeml-openrail-m", RAIL),
    "stable-diffusion-v1-5": ("creativeml-openrail-m", RAIL),
    "sd2-community": ("openrail++", "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"),
    "stable-diffusion-xl-base-1.0": (
        "openrail++",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    ),
    "stable-diffusion-3.5-medium": (
        "stabilityai-ai-community",
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    ),
    "FLUX.1-dev": (
        "flux-1-dev-non-commercial-license",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    "tiny-sd": ("apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
}
OTHERS = ("stabilityai-ai-community", "flux-1-dev-non-commercial-license")  # for which the Hub has no short name
PHOTOS = {"miniature": "the miniature world's photos", "photos": "COCO 2017's photos"}  # by notebook 04's ``world``


def release(path: str | Path, unet: str | Path, result: str | Path, scores: str | Path, *, model: str) -> list[str]:
    """A stage: a folder to upload, which diffusers loads as a network or LoRA, with its card; the names of its files.

    Args:
        unet: ``best`` or ``last`` of a fine-tuning; its files are linked, not copied, where the disk can.
        result: ``result.json`` of the same fine-tuning.
        scores: ``results/scores.json`` of notebook 04, which calls the UNet ``model``.
    """
    copy(Path(unet), Path(path))
    record, tested = (json.loads(Path(file).read_text(encoding="utf-8")) for file in (result, scores))
    write_text(Path(path) / "README.md", card(Path(unet).name, record["result"], tested, model))
    return sorted(file.name for file in Path(path).iterdir())


def card(which: str, record: Mapping[str, Any], tested: Mapping[str, Any], model: str) -> str:
    """The card's text: header, how to load it, data, recipe, hours, validation and test scores, licence."""
    base, c, captions, about = record["model"]["id"], record["choices"], record["captions"], tested["about"]
    licence, link = licence_of(base)
    kind = _kind(record, json.dumps(base))
    header = {
        "base_model": base, "library_name": "diffusers",
        **({"license": "other", "license_name": licence} if licence in OTHERS else {"license": licence}),
        "license_link": link, "tags": ["text-to-image", *kind["tags"], "spatial-relations", "sr4g"],
        "datasets": ["SR4G-captions"],
    }  # fmt: skip
    held_out = ", ".join(map(markdown, record["held_out"]))
    without = f"without captions that name {held_out}" if held_out else "on all captions"
    step = record["best"]["step"] if which == "best" else c["steps"]
    machine = f"{tested['provenance']['machine']}; {record['processes']} process{'es' * (record['processes'] > 1)}"
    hours = f"{record['seconds'] / 3600:.2f} h of steps and {record['other_seconds'] / 3600:.2f}"
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()}
---

# A {kind["is"]} of {markdown(base)}, fine-tuned on captions with explicit spatial relations

```python
{kind["code"]}
```

Made with sr4g_utils {__version__}, an open implementation of SR4G (arXiv 2403.00587).

* **Data**: {PHOTOS[about["world"]]} with {captions["distinct"]:,} distinct captions ({captions["after"]:,} in all),
  judged by the {c["rules"]} rules; {"; ".join([without, *arms.described(c)])}.
* **Recipe**: {step:,} steps of {c["batch"]} ({which}), learning rate {c["lr"]:g} ({c["schedule"]}, {c["warmup"]} steps
  of warm-up), average of weights {c["ema"]:g}, {c["precision"]}, {record["resolution"]} pixels, seed {c["seed"]}.
* **Time**: {hours} h of validation and saving; {record["images_per_s"]:,.0f} images/s. Scored on {machine}.

## Scores

Validation, which chose the step: {_validated(record)}

Test, rules {about["rules"]}, {about["pairs"]} pair of boxes, with 95 % intervals over prompts:

{_scores(tested["rows"], model)}

## Licence and limits

{licence}: {link}. {_restrictions(licence)}COCO's annotations are CC BY 4.0.
Scores are a detector's verdicts; in the miniature world the size of a gain says nothing of photographs. Intended for
research on spatial relations.
"""


def _kind(record: Mapping[str, Any], base: str) -> dict[str, Any]:
    """What was trained, the Hub's tags of it, and how diffusers loads it."""
    pipeline = record["model"].get("class", "StableDiffusionPipeline")
    opened = f"pipeline = {pipeline}.from_pretrained({base}"
    if lora := record.get("lora"):
        loaded = f'pipeline.load_lora_weights("this folder")  # rank {lora["rank"]}; its strength is in it'
        return {"is": "LoRA", "tags": ["lora"], "code": f"from diffusers import {pipeline}\n{opened})\n{loaded}"}
    if pipeline == "StableDiffusionPipeline":
        part, network, tags = "unet", "UNet2DConditionModel", ["stable-diffusion"]
    else:
        part, network, tags = "network", "AutoModel", []
    code = f'{part} = {network}.from_pretrained("this folder")\n'
    name = "unet" if pipeline.startswith("StableDiffusionXL") or part == "unet" else "transformer"
    imports = ", ".join(sorted([pipeline, network]))
    return {
        "is": "UNet" if name == "unet" else "transformer", "tags": tags,
        "code": f"from diffusers import {imports}\n{code}{opened}, {name}={part})",
    }  # fmt: skip


def licence_of(base: str) -> tuple[str, str]:
    """A base model's licence and its address, which bind what is made of it; "unknown" where we do not know."""
    known = (BASE_LICENCES.get(part) for part in (base.partition("/")[0], Path(base).name))
    return next(filter(None, known), ("unknown", f"https://huggingface.co/{base}"))


def _restrictions(licence: str) -> str:
    if "rail" in licence:
        binds = "bind whoever uses this model or passes it on, and must be passed on with it."
        return f"Its use-based restrictions (attachment A) {binds} "
    unsure = licence in ("unknown", *OTHERS)
    return "Look up what the base model's licence asks before you pass this on. " if unsure else ""


def _validated(record: Mapping[str, Any]) -> str:
    if not record["start"]:
        return "none was made."
    start, best = record["start"], record["best"]
    values = ", ".join(f"{name} {start[name]:.1f} → {best[name]:.1f}" for name in MAIN)
    return f"{values} ({best['images']} images, at the best step, {best['step']:,})."


def _scores(rows: list[dict[str, Any]], model: str) -> str:
    """A table of the model's scores on all relations."""
    table = pd.DataFrame(rows).query("model == @model and relation == 'all' and metric in @MAIN")
    if not len(table):
        raise ValueError(f"model card: notebook 04 has no scores of {model!r}")
    lines = (f"| {r.objects} | {r.metric} | {r.value:.1f} | [{r.low:.1f}, {r.high:.1f}] |" for r in table.itertuples())
    return "\n".join(["| objects | metric | value | interval |", "|---|---|---|---|", *lines])


def releases(artifacts: Path, models: Mapping[str, Any]) -> dict[str, tuple[Path, Path]]:
    """Which of notebook 04's models were fine-tuned in this run: their weights' folder and result, by the model's name.

    ``models``: notebook 04's records, by name. A model is recognised by the sha256 of its weights.
    """
    files = {"fine-tuned": "diffusion_pytorch_model.safetensors", "lora": LORA}
    folders = {
        digest(folder / file): folder
        for which in ("last", "best")  # where both are the same weights, they are the best
        for folder in sorted(artifacts.glob(f"finetune_*/{which}"))
        for file in files.values()
        if (folder / file).is_file()
    }
    tuned = {}
    for name, record in models.items():
        hashes = (record.get("model") or {}).get("files", {})
        for folder in (folders.get(hashes.get(f"{key}/{file}")) for key, file in files.items()):
            if folder:
                tuned[name] = (folder, folder.parent / "result.json")
    return tuned
