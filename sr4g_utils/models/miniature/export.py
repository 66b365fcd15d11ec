"""The trained parts as folders that stock diffusers and transformers load, with checksums, scores and a card."""

import contextlib
import io
import json
import platform
import tempfile
from collections.abc import Collection, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import (
    CLIPTextModel,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
)

from ...dataset import coco, world
from ...dataset.captions import caption
from ...dataset.world import NAMES, SIZE
from ...relations import NAMES as RELATION_NAMES
from ...relations import RELATIONS
from ...store.files import DATA, digest, protocol, write_json, write_text
from .. import detectors, diffusion
from ..load import load_pipeline
from ..sampling import Sampling
from .networks import LENGTH, SCHEDULE, SLOTS, tokenizer
from .pool import POOL_SEED, Pool, encode_texts
from .training import BATCH, RATE, RELATION_SHARE, Trainer, reconstruct

TRIPLET = ["subject", "relation", "object"]
JUDGES = {"detector": "tiny-owlvit", "rtdetr": "tiny-rtdetr"}  # folders of the parts that are detectors
THRESHOLDS: dict[str, float] = protocol()["thresholds"]  # calibrated, see the card


def export(parts: dict[str, tuple[Any, Trainer]], out: Path, seed: int, share: float = 1.0) -> None:
    """Write the folders, their checksums and the model card; ``share`` of the scenes and captions are scored.

    Detectors may be missing, which were kept from earlier models.
    """
    scenes = max(20, round(500 * share))
    vae, text, unet = (parts[name][0] for name in ("vae", "text", "base"))
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer(LENGTH), unet, DPMSolverMultistepScheduler(**SCHEDULE), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    for model, _ in parts.values():
        model.half()
    pipeline.save_pretrained(out / "tiny-sd")
    _ask_for_float32(out / "tiny-sd" / "text_encoder" / "config.json")
    for name in JUDGES.keys() & parts.keys():
        save_detector(parts[name][0], out / JUDGES[name])
    for model, _ in parts.values():
        model.float()
    judges = [(out if name in parts else DATA / "models") / folder for name, folder in JUDGES.items()]
    scores = {
        "vae PSNR (dB), held-out scenes": reconstruction_psnr(vae, Pool.make(scenes, (seed, POOL_SEED + 1))),
        **{f"linear probe, {name}": value for name, value in probe(text, share).items()},
        **{key: value for judge in judges for key, value in detection_scores(judge, vae, scenes, seed).items()},
        **both_found(out / "tiny-sd", judges, max(1, round(6 * share))),
    }
    recipe: dict[str, dict[str, Any]] = {}
    for name, (model, trainer) in parts.items():
        size, minutes = sum(p.numel() for p in model.parameters()), round(trainer.seconds / 60, 1)
        recipe[name] = {"steps": trainer.steps, "batch": BATCH[name], "rate": RATE[name]}
        recipe[name] |= {"parameters": size, "minutes": minutes, "log": trainer.log}
    threads = torch.get_num_threads()
    machine = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    about = {"seed": seed, "machine": machine, "parts": recipe, "scores": scores}
    write_json(out / "training.json", about)
    write_text(out / "README.md", card(about))
    write_sums(out)


def save_detector(model: OwlViTForObjectDetection | RTDetrForObjectDetection, folder: Path) -> None:
    """A detector's folder, with the processor that prepares pictures, and names, for it."""
    model.save_pretrained(folder)
    _ask_for_float32(folder / "config.json")
    size = {"height": SIZE, "width": SIZE}
    if isinstance(model, OwlViTForObjectDetection):
        images = OwlViTImageProcessorPil(size=size)
        OwlViTProcessor(image_processor=images, tokenizer=tokenizer(16)).save_pretrained(folder)
    else:
        RTDetrImageProcessorPil(size=size).save_pretrained(folder)


def _ask_for_float32(path: Path) -> None:
    """Stock transformers loads weights in the precision that the configuration names; all else gives float32."""
    write_text(path, json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}, indent=2) + "\n")


def write_sums(out: Path) -> None:
    """``SHA256SUMS`` in each model's folder, which :mod:`models` checks on every load."""
    for model in sorted(folder for folder in out.iterdir() if folder.is_dir()):
        files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
        lines = [f"{digest(path)}  {path.relative_to(model).as_posix()}\n" for path in files]
        write_text(model / "SHA256SUMS", "".join(lines))


def probe(text: CLIPTextModel, share: float = 1.0) -> dict[str, float]:
    """Linear probes on the frozen text states: share of held-out captions whose subject, relation and object are right.

    All 40 × 39 × 14 captions of two things (or a random share); ridge regression to one-hot targets on four fifths.
    """
    tokens = tokenizer(LENGTH)
    triplets = [(s, r, o) for s, o in permutations(range(len(NAMES)), 2) for r in range(len(RELATIONS))]
    rng = np.random.default_rng(0)
    triplets = [triplets[i] for i in np.flatnonzero(rng.random(len(triplets)) < share)]
    texts = [caption(NAMES[s], RELATION_NAMES[r], NAMES[o]) for s, r, o in triplets]
    with torch.inference_mode():
        batches = [encode_texts(tokens, texts[i : i + 500]) for i in range(0, len(texts), 500)]
        states = torch.cat([text(batch).last_hidden_state[:, -SLOTS:].flatten(1) for batch in batches])
    x = np.concatenate([states.numpy(), np.ones((len(states), 1))], 1).astype(np.float64)
    test = rng.random(len(x)) < 0.2
    gram = x[~test].T @ x[~test] + np.eye(x.shape[1])
    result = {}
    for name, target in zip(("subject", "relation", "object"), np.array(triplets).T, strict=True):
        weights = np.linalg.solve(gram, x[~test].T @ np.eye(target.max() + 1)[target[~test]])
        result[name] = float(((x[test] @ weights).argmax(1) == target[test]).mean())
    return result


def reconstruction_psnr(vae: AutoencoderKL, pool: Pool) -> float:
    """Peak signal-to-noise ratio (dB) of photos after encoding (posterior mean) and decoding."""
    with torch.inference_mode():
        x = pool.images(slice(None))
        y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(100)]).clamp(-1, 1)
    return float(10 * torch.log10(4 / (y - x).pow(2).mean()))


def both_found(model: Path, judges: Sequence[Path], per_relation: int) -> dict[str, float]:
    """OA of the base by each detector: in how many percent of its images of random captions, ``per_relation`` of each
    relation and two images each, both things are found above the calibrated threshold."""
    rng = np.random.default_rng(0)
    relations = np.repeat(RELATION_NAMES, per_relation).tolist()
    rows = [(*rng.choice(NAMES, 2, replace=False), relation) for relation in relations]
    prompts = pd.DataFrame(rows, columns=["subject", "object", "relation"], dtype=object)
    prompts = prompts.assign(prompt_id=range(len(rows)), caption=list(map(caption, *prompts[TRIPLET].T.to_numpy())))
    sampling = Sampling(images=2, steps=12, guidance=5.0, scheduler="DPMSolverMultistepScheduler", batch=64)
    pictures = [picture for *_, picture in diffusion.sample(load_pipeline(model)[0], prompts, sampling)]
    asked = [[row.subject, row.object] for row in prompts.itertuples() for _ in range(2)]
    result = {}
    for judge in judges:
        threshold = THRESHOLDS[judge.name]
        found = detectors.load(judge).detect(pictures, asked, floor=threshold)
        there = [set(names) <= set(found.label[found.image == i]) for i, names in enumerate(asked)]
        result[f"both things found (%), {judge.name} above {threshold}"] = float(100 * np.mean(there))
    return result


def detection_scores(judge: Path, vae: AutoencoderKL, images: int, seed: int) -> dict[str, float]:
    """AP and AP50 (pycocotools, all categories) of the exported detector on held-out scenes and on reconstructions, and
    the threshold above which one in a hundred of the names that are absent from a photo is found."""
    detector = detectors.load(judge)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "instances_val2017.json"
        world.write_annotations(path, split="val", images=images, seed=seed)
        table, truth = coco.read(path, "val"), COCO(str(path))
        edges = np.searchsorted(table.image, np.arange(images + 1))
        names = np.array(table.names)[table.category]
        scenes = enumerate(pairwise(edges))
        pictures = np.stack([world.render(table.xywh()[a:b], names[a:b].tolist(), seed=i) for i, (a, b) in scenes])
        result: dict[str, float] = {}
        for kind, shown in (("clean", pictures), ("reconstructed", reconstruct(vae, pictures))):
            found = detector.detect(list(shown), [NAMES] * images, floor=0.0)
            ids = {category.name: category.id for category in world.CATEGORIES}
            columns = {"image_id": table.image_id[found.image.to_numpy(int)], "category_id": found.label.map(ids)}
            records = found[["score"]].assign(**columns, bbox=found[[*"xywh"]].to_numpy().tolist()).to_dict("records")
            evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
            evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
            result |= {f"AP {kind}": float(evaluation.stats[0]), f"AP50 {kind}": float(evaluation.stats[1])}
            present = [set(names[a:b]) for a, b in pairwise(edges)]
            result[f"threshold, 1 % of absent names found, {kind}"] = absent_threshold(found, present, NAMES)
    return {f"{judge.name}, {key}": value for key, value in result.items()}


def absent_threshold(
    found: pd.DataFrame, present: Sequence[Collection[str]], names: Collection[str], share: float = 0.01
) -> float:
    """The lowest threshold above which at most ``share`` of the absent names are found, from boxes (image, label and
    score) of detections that asked for all ``names`` in every image, and the names ``present`` in each."""
    best = found.groupby(["image", "label"]).score.max().to_dict()
    absent = [best.get((i, name), 0.0) for i, there in enumerate(present) for name in names if name not in there]
    return float(np.quantile(absent, 1 - share, method="higher"))


OURS = """`tiny-owlvit/` is an `OwlViTForObjectDetection` with its processor, taught on drawn scenes and on their VAE
reconstructions. `tiny-rtdetr/` is an `RTDetrForObjectDetection`: a judge of another family, taught on drawn scenes
alone, from another seed. It has seen no output of any VAE."""
EARLIER = "Its judges, `tiny-owlvit/` and `tiny-rtdetr/`, were kept from earlier models."
CARD = Template("""# The miniature's models

A tiny Stable Diffusion and two tiny detectors for the offline world of pictograms, trained by this project from
nothing.
They are for teaching and testing the study; they know 40 pictograms, in pictures of 64 × 64 pixels, and nothing else.

`tiny-sd/` is a `StableDiffusionPipeline`, the **base** model, before any fine-tuning on spatial relations.
$detector

Made by `python -m sr4g_utils.models.miniature` with seed $seed on $machine.
The files of `SHA256SUMS` are checked on every load. The text tower was taught on captions of random words: it says of
each thing which it is, and whether it is the subject or the object of which relation word; no picture, box or place
entered. $share of the base UNet's captions named a relation drawn at random, independent of the picture: it has met the
words and could learn nothing from them.
Glyphs are of the Material Design Icons (Apache-2.0; see NOTICE).

| part | parameters | steps | batch | learning rate | minutes | last loss |
|---|---|---|---|---|---|---|
$parts

| score | value |
|---|---|
$scores

AP and AP50 are pycocotools' on held-out scenes, all categories asked for in every picture, and on the same pictures
after the VAE; above the threshold, one in a hundred of the names that are absent from a picture is found. The last
scores are of the base's pictures of random captions. The probes are linear, on the text tower's last four states,
tested on captions they were not fitted on.
The losses along the way are in `training.json`.
""")


def card(about: dict[str, Any]) -> str:
    """The model card, from what :func:`export` writes to ``training.json``."""
    keys = ("parameters", "steps", "batch", "rate", "minutes")
    parts = []
    for name, part in about["parts"].items():
        losses = ", ".join(f"{key} {value:.3g}" for key, value in part["log"][-1].items() if key != "step")
        parts.append([name, *(f"{part[key]:,}" for key in keys), losses])
    return CARD.substitute(
        detector=OURS if "detector" in about["parts"] else EARLIER,
        seed=about["seed"],
        machine=about["machine"],
        share=f"{RELATION_SHARE:.0%}",
        parts="\n".join(f"| {' | '.join(row)} |" for row in parts),
        scores="\n".join(f"| {name} | {value:.3f} |" for name, value in about["scores"].items()),
    )
