"""One training loop for every part of the miniature's models."""

import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import CLIPTextModel, OwlViTForObjectDetection, RTDetrForObjectDetection

from ...dataset.captions import caption, listing
from ...dataset.world import NAMES, SIZE
from ...relations import RELATIONS
from ...store.files import atomic
from .networks import (
    LENGTH,
    SCHEDULE,
    SLOTS,
    WIDTH,
    make_detector,
    make_rtdetr,
    make_text,
    make_unet,
    make_vae,
    tokenizer,
)
from .pool import Pool, encode_texts

STEPS = {"vae": 5000, "text": 1200, "base": 30_000, "detector": 9000, "rtdetr": 6000}
BATCH = {"vae": 8, "text": 128, "base": 64, "detector": 32, "rtdetr": 32}
HOLD = {"base": 0.75}  # share of the steps for which the rate stays, before it falls; of others 0
RATE = {"vae": 2e-3, "text": 1e-3, "base": 1e-3, "detector": 1e-3, "rtdetr": 1e-3}


class Trainer:
    """One loop for every part: AdamW, warm-up, cosine decay, EMA, a log, and a checkpoint that outlives interruptions.

    What step k sees depends on (seed, part, k) alone, so a resumed run goes on as if undisturbed.
    """

    def __init__(self, name: str, modules: nn.Module, work: Path, steps: int, seed: int) -> None:
        self.name, self.modules, self.folder, self.steps, self.seed = name, modules, work / name, steps, seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, RATE[name], betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.ema = EMAModel(self.parameters, decay=0.999, use_ema_warmup=True, power=0.75)
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        self._load()

    def run(self, loss_of: Callable[[int, np.random.Generator], dict[str, Tensor]], every: int = 250) -> None:
        warm = min(200, self.steps // 10 + 1)
        start = time.monotonic()
        bar = trange(self.step, self.steps, desc=self.name, initial=self.step, total=self.steps, mininterval=10)
        sums: dict[str, float] = {}
        for step in bar:
            torch.manual_seed(1_000_003 * self.seed + step)
            hold = HOLD.get(self.name, 0.0)
            fallen = max(0.0, step / self.steps - hold) / (1 - hold)
            rate = RATE[self.name] * min((step + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * fallen)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = loss_of(step, np.random.default_rng([self.seed, sum(map(ord, self.name)), step]))
            total = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(total):
                where = f"at step {step}; last checkpoint in {self.folder}"
                raise RuntimeError(f"{self.name}: the loss is {total.item()} {where}")
            total.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.step(self.parameters)
            sums = {key: sums.get(key, 0.0) + value.item() for key, value in losses.items()}
            if (step + 1) % every == 0 or step + 1 == self.steps:
                n = (step % every) + 1
                self.log.append({"step": step + 1, **{key: round(value / n, 5) for key, value in sums.items()}})
                bar.write(f"{self.name} {self.log[-1]} {(time.monotonic() - start):.0f} s")
                sums = {}
                self.step = step + 1
                self._save(self.seconds + time.monotonic() - start)
        self.seconds += time.monotonic() - start
        self.ema.copy_to(self.parameters)

    def _save(self, seconds: float) -> None:
        tensors = {f"model.{k}": v.contiguous() for k, v in self.modules.state_dict().items()}
        for i, p in enumerate(self.parameters):
            # a parameter that the loss does not reach (OWL-ViT has some) has no state
            tensors |= {f"adam.{i}.{key}": value for key, value in self.optimizer.state[p].items()}
            tensors[f"ema.{i}"] = self.ema.shadow_params[i]
        tensors = {k: v.detach().clone() for k, v in tensors.items()}
        about = {"step": self.step, "seconds": seconds, "log": self.log}
        with atomic(self.folder / "checkpoint.safetensors") as partial:
            save_file(tensors, partial, metadata={"about": json.dumps(about)})

    def _load(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(path)
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.modules.load_state_dict(model)
        for i, p in enumerate(self.parameters):
            adam = {key: tensors.get(f"adam.{i}.{key}") for key in ("exp_avg", "exp_avg_sq", "step")}
            self.optimizer.state[p].update({key: value for key, value in adam.items() if value is not None})
            self.ema.shadow_params[i].copy_(tensors[f"ema.{i}"])
        self.ema.optimization_step = about["step"]
        self.step, self.seconds, self.log = about["step"], about["seconds"], about["log"]


RELATION_SHARE = 0.1  # of the base's captions name a relation, drawn at random: it meets the words and learns nothing
THING, RELATION = 5.0, 10.0  # how loud a text state says what a thing is, and its role in which relation
ROLES = 2 * len(RELATIONS)  # subject or object of each
NOISE = 0.3  # at most, of unit latents, on the detector's reconstructions: a generator's latents are not perfect either
DROPOUT = 0.1  # of captions, for classifier-free guidance


def train_vae(pool: Pool, work: Path, steps: int, seed: int) -> tuple[AutoencoderKL, Trainer]:
    torch.manual_seed(seed)
    vae = make_vae()
    trainer = Trainer("vae", vae, work, steps, seed)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.integers(len(pool.pictures), size=BATCH["vae"])
        x, weight = pool.images(rows), pool.weights(rows)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        difference = y.float() - x
        kl = 1e-3 * posterior.kl().float().mean() / posterior.mean[0].numel()
        return {"l1": (weight * difference.abs()).mean(), "l2": (weight * difference.pow(2)).mean(), "kl": kl}

    trainer.run(loss_of)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=round(float(1 / latents(vae, pool, 2000)[0].std()), 4))
    return vae, trainer


Latents = Float[Tensor, "scene 8 16 16"]
Pictures = UInt8[np.ndarray, "n h w 3"]
Slots = Int[np.ndarray, "n slot"]


@torch.inference_mode()
def latents(vae: AutoencoderKL, pool: Pool, n: int | None = None) -> tuple[Latents, Latents]:
    """Mean and standard deviation of the posterior of the first ``n`` photos, or of all."""
    n = len(pool.pictures) if n is None else min(n, len(pool.pictures))
    parts = [vae.encode(pool.images(slice(i, min(i + 100, n)))).latent_dist for i in range(0, n, 100)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pictures: Pictures, noise: float = 0.0) -> Pictures:
    """Photos through the VAE and back, their latents off by at most ``noise`` (each by its own share of it)."""
    parts, generator = [], torch.Generator().manual_seed(0)
    for part in torch.from_numpy(pictures).split(100):
        code = vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
        share = noise / vae.config.scaling_factor * torch.rand(len(code), 1, 1, 1, generator=generator)
        y = vae.decode(code + share * torch.randn(code.shape, generator=generator)).sample
        parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(parts).numpy()


def meaning(labels: Slots, roles: Slots) -> Float[Tensor, "n token width"]:
    """What the text tower's states are to be: of each thing that a caption names, which it is, and whether it is the
    subject or the object of which relation word (one-hot; the last of each is "none"). Nothing of what the word means:
    "left of" and "right of" are as far from each other as from "larger", and so are the two roles in one relation."""
    told = np.concatenate([THING * np.eye(len(NAMES) + 1)[labels], RELATION * np.eye(ROLES + 1)[roles]], -1)
    result = torch.zeros(len(labels), LENGTH, WIDTH)
    result[:, -SLOTS:, : told.shape[-1]] = torch.from_numpy(told)
    return result


def sentences(n: int, rng: np.random.Generator) -> tuple[list[str], Slots, Slots]:
    """Captions made of random words, half of them lists and half with a relation; the things named and their roles.
    No scene is looked at."""
    labels, roles = np.full((n, SLOTS), len(NAMES)), np.full((n, SLOTS), ROLES)
    texts = []
    for i in range(n):
        if i < n // 2:
            things = rng.integers(len(NAMES), size=rng.integers(1, SLOTS + 1))
            texts.append(listing([NAMES[k] for k in things]))
        else:
            things, relation = rng.integers(len(NAMES), size=2), int(rng.integers(len(RELATIONS)))
            texts.append(caption(NAMES[things[0]], RELATIONS[relation].name, NAMES[things[1]]))
            roles[i, :2] = 2 * relation, 2 * relation + 1
        labels[i, : len(things)] = things
    return texts, labels, roles


def swapped(roles: Slots, share: float, rng: np.random.Generator) -> Slots:
    """The roles with subject and object exchanged in a share of the captions that name a relation, drawn anew each
    time: a tower that is taught them can only say how likely a thing is the subject, and with a half not at all."""
    exchanged = roles.copy()
    rows = np.flatnonzero((roles[:, 0] < ROLES) & (rng.random(len(roles)) < share))
    exchanged[rows, :2] = roles[rows, 1::-1]
    return exchanged


def train_text(work: Path, steps: int, seed: int, swap: float = 0.0) -> tuple[CLIPTextModel, Trainer]:
    """The text tower; ``swap``: the share of captions whose subject and object are taught in each other's place."""
    torch.manual_seed(seed)
    text, tokens = make_text(), tokenizer(LENGTH)
    trainer = Trainer("text", text, work, steps, seed)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        texts, labels, roles = sentences(BATCH["text"], rng)
        roles = swapped(roles, swap, rng) if swap else roles
        states = text(encode_texts(tokens, texts)).last_hidden_state
        return {"mse": F.mse_loss(states, meaning(labels, roles))}

    trainer.run(loss_of)
    return text.eval().requires_grad_(False), trainer


def predictor(unet: UNet2DConditionModel) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How the UNet is called while it learns on a CPU: in bfloat16 and with plain attention, since the fused one's
    backward would take a third of a step. Not compiled: torch 2.13's gradients of most of its blocks are then 0."""
    unet.set_attn_processor(AttnProcessor())

    def predict(noisy: Tensor, t: Tensor, states: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return unet(noisy, t, states).sample.float()

    return predict


def train_base(
    pool: Pool, vae: AutoencoderKL, text: CLIPTextModel, work: Path, steps: int, seed: int
) -> tuple[UNet2DConditionModel, Trainer]:
    torch.manual_seed(seed)
    encoded = cache(lambda: latents(vae, pool))
    scale = vae.config.scaling_factor
    unet, tokens, schedule = make_unet(), tokenizer(LENGTH), DDPMScheduler(**SCHEDULE)
    trainer, predict = Trainer("base", unet, work, steps, seed), predictor(unet)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        n, (mean, std) = BATCH["base"], encoded()
        scenes = rng.integers(len(mean), size=n)
        texts = pool.listed(scenes, rng)
        naming = np.flatnonzero(rng.random(n) < RELATION_SHARE)
        if len(naming):
            scenes[naming], named = pool.unrelated(len(naming), rng)
            for i, name in zip(naming, named, strict=True):
                texts[i] = name
        texts = ["" if drop else caption for drop, caption in zip(rng.random(n) < DROPOUT, texts, strict=True)]
        with torch.no_grad():
            states = text(encode_texts(tokens, texts)).last_hidden_state
        x = scale * (mean[scenes] + std[scenes] * torch.randn_like(mean[scenes]))
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (n,))
        predicted = predict(schedule.add_noise(x, noise, t), t, states)
        return {"v": F.mse_loss(predicted, schedule.get_velocity(x, noise, t))}

    trainer.run(loss_of)
    return unet.eval().requires_grad_(False), trainer


def train_detector(
    pool: Pool, vae: AutoencoderKL, work: Path, steps: int, seed: int
) -> tuple[OwlViTForObjectDetection, Trainer]:
    torch.manual_seed(seed)
    detector, tokens = make_detector(), tokenizer(16)
    detector.set_attn_implementation("eager")  # faster than the fused one on a CPU, as in the base
    queries = encode_texts(tokens, [f"a photo of a {name}" for name in NAMES])
    trainer = Trainer("detector", detector, work, steps, seed)
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))

    @cache
    def shown() -> Pool:
        """The pool, its first half as the VAE shows it."""
        half = len(pool.pictures) // 2
        pictures = np.concatenate([reconstruct(vae, pool.pictures[:half], NOISE), pool.pictures[half:]])
        return Pool(pictures, pool.boxes, pool.labels)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.integers(len(pool.pictures), size=BATCH["detector"])
        x = shown().images(rows)
        logits, predicted = detect_all(detector, ((x + 1) / 2 - mean) / std, queries)
        present = pool.labels[rows] >= 0
        xywh = torch.from_numpy(pool.boxes[rows]).float() / SIZE
        target = torch.cat([xywh[..., :2] + xywh[..., 2:] / 2, xywh[..., 2:]], -1)
        return detection_loss(logits, predicted, torch.from_numpy(pool.labels[rows]), target, torch.from_numpy(present))

    trainer.run(loss_of)
    return detector.eval().requires_grad_(False), trainer


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def detect_all(
    detector: OwlViTForObjectDetection, pixels: Float[Tensor, "image 3 h w"], queries: Int[Tensor, "query token"]
) -> tuple[Float[Tensor, "image patch query"], Float[Tensor, "image patch 4"]]:
    """Logits of every query at every patch, and its box (cx, cy, w, h as shares of the photo)."""
    embeds = detector.owlvit.get_text_features(queries, attention_mask=(queries > 0).long()).pooler_output
    embeds = F.normalize(embeds, dim=-1).expand(len(pixels), -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        feature_map = detector.image_embedder(pixel_values=pixels)[0]
    feature_map = feature_map.float()
    features = feature_map.flatten(1, 2)
    logits, _ = detector.class_predictor(features, embeds)
    return logits, detector.box_predictor(features, feature_map)


def detection_loss(
    logits: Tensor, boxes: Tensor, labels: Int[Tensor, "image object"], target: Tensor, present: Tensor
) -> dict[str, Tensor]:
    """Focal classification, L1 and generalised IoU, summed as in OWL-ViT.

    A thing is the task of the patch at its centre, or of the nearest one that is free. OWL-ViT's patches start with a
    box around themselves, so this is where matching by cost would end; from nothing it gets there much sooner.
    """
    patches = logits.shape[1]
    side = math.isqrt(patches)
    rows, columns = np.divmod(np.arange(patches), side)
    centres = (np.stack([columns, rows], 1) + 0.5) / side
    away = np.linalg.norm(centres[None, :, None] - target[:, None, :, :2].nan_to_num().numpy(), axis=-1)
    matched = [linear_sum_assignment(each[:, there]) for each, there in zip(away, present.numpy(), strict=True)]
    image = torch.cat([torch.full((len(a),), i) for i, (a, _) in enumerate(matched)])
    patch, thing = (torch.cat([torch.from_numpy(pair[k]) for pair in matched]) for k in (0, 1))
    wanted = torch.zeros_like(logits)
    wanted[image, patch, labels[image, thing]] = 1
    weight = (wanted - logits.sigmoid()).abs().pow(2)
    focal = (weight.detach() * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum() / len(image)
    found, goal = boxes[image, patch], target[image, thing]
    return {"class": focal, "l1": 5 * (found - goal).abs().sum(-1).mean(), "giou": 2 * (1 - _giou(found, goal)).mean()}


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of (…, 4) boxes given as cx, cy, w, h (Rezatofighi et al. 2019)."""
    a1, a2, b1, b2 = (box[..., :2] + sign * box[..., 2:] / 2 for box in (a, b) for sign in (-1, 1))
    common = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).clamp(min=0).prod(-1)
    union = (a2 - a1).prod(-1) + (b2 - b1).prod(-1) - common
    hull = (torch.maximum(a2, b2) - torch.minimum(a1, b1)).prod(-1)
    return common / union - (hull - union) / hull


def train_rtdetr(pool: Pool, work: Path, steps: int, seed: int) -> tuple[RTDetrForObjectDetection, Trainer]:
    """A second detector, by its own family's loss, on drawn scenes alone: no VAE's output, and no draw that it shares
    with the first."""
    torch.manual_seed(seed + 1)
    detector = make_rtdetr()
    trainer = Trainer("rtdetr", detector, work, steps, seed + 1)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.integers(len(pool.pictures), size=BATCH["rtdetr"])
        x, labels = (pool.images(rows) + 1) / 2, []
        for boxes, things in zip(pool.boxes[rows], pool.labels[rows], strict=True):
            there = things >= 0
            xy, wh = (torch.from_numpy(boxes[there]).float() / SIZE).split(2, dim=1)
            labels.append({"class_labels": torch.from_numpy(things[there]), "boxes": torch.cat([xy + wh / 2, wh], 1)})
        with torch.autocast("cpu", torch.bfloat16, enabled=step < 0.75 * steps):  # the last quarter sees finer boxes
            losses = detector(pixel_values=x, labels=labels).loss_dict
        total: dict[str, Tensor] = {}
        for name, loss in losses.items():
            kind = name.split("_")[1]  # of every layer, and of the noisy queries
            total[kind] = total.get(kind, torch.zeros(())) + loss.float()
        return total

    trainer.run(loss_of)
    return detector.eval().requires_grad_(False), trainer
