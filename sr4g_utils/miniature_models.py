"""Trains the miniature's models from nothing: ``python -m sr4g_utils.miniature_models``, on two cores, offline.

    python -m sr4g_utils.miniature_models --work runs/miniature_models --out data/models

Five parts, each seeded, each resumed from its last checkpoint in ``--work`` after an interruption:

* ``vae``: pictures of 64 × 64 to latents of 8 × 8 × 8 and back (L1, light KL);
* ``text``: a CLIP text tower, taught by an objective on text alone. Its last four states stand for the first four
  things that a caption names, and say of each which it is, how it stands to the other (the object of "left of" is right
  of the subject) and where it lies on average, in coordinates of their own (:func:`meaning`). The words' own states say
  nothing. CLIP's tower has read relations on the web, even if Stable Diffusion has not learnt to use them; this one
  has, here. How states say it matters: where linear probes read as much, but mixed and from the words too, UNets did
  not learn left from right in as many steps;
* ``detector``: an OWL-ViT on pictures and on their VAE reconstructions, since it will see what a decoder does to them;
* ``base``: the denoising UNet (v-prediction) on captions of which ``RELATION_SHARE`` name a relation, the paper's
  hypothesis about captions on the web; the text tower is frozen;
* ``export``: the folders that stock diffusers and transformers load, in fp16 safetensors, with checksums and scores.

The pool of scenes that models learn from shares no scene with the train and val splits of :mod:`.miniature`. Its things
lie anywhere, as on the web: no scene is composed.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
)

from . import miniature
from .captions import TEMPLATES, caption, with_article
from .miniature import NAMES, SIZE
from .relations import NAMES as RELATION_NAMES
from .relations import RELATIONS, judge
from .runs import DATA, atomic, digest, write_json, write_text

POOL = 40_000  # scenes to learn from
POOL_SEED = 2  # miniature.SPLITS are 0 and 1
RELATION_SHARE = 0.005  # of the base's captions name a relation; 2 % (and 9,000 steps) teach it relations
OPPOSITE = np.array([RELATION_NAMES.index(relation.opposite) for relation in RELATIONS])
LENGTH = 24  # tokens of a caption
SLOTS = 4  # positions at the end of a caption's states, one for each thing that it names
WIDTH = 128  # of the text states
THING, RELATION, PLACE = 5.0, 10.0, 10.0  # how loud a text state says what a thing is, how it stands, where it lies
NOISE = 0.3  # at most, of unit latents, on the detector's reconstructions: a generator's latents are not perfect either
DROPOUT = 0.1  # of captions, for classifier-free guidance
MOST = max(miniature.N_OBJECTS)

STEPS = {"vae": 3600, "text": 1200, "detector": 6000, "base": 6000}
BATCH = {"vae": 8, "text": 128, "detector": 32, "base": 48}
RATE = {"vae": 2e-3, "text": 1e-3, "detector": 1e-3, "base": 1e-3}
FOREGROUND = 5.0  # weight of a pixel inside a box in the VAE's loss; grounds are easy and large


# ---------------------------------------------------------------------------------------------------------- models


def vocabulary() -> list[str]:
    """Every word of every caption and query; the special tokens last, the end token very last (OWL-ViT pools there)."""
    texts = [*NAMES, *(r.phrase for r in RELATIONS), *TEMPLATES.values(), "a an another and , photo of"]
    words = {word.strip(".") for text in texts for word in text.lower().split() if "{" not in word}
    return ["<|pad|>", "<|unknown|>", ".", *sorted(words - {""}), "<|start|>", "<|end|>"]


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A whole-word tokenizer: a word outside the vocabulary becomes ``<|unknown|>``, which callers refuse."""
    words = {word: i for i, word in enumerate(vocabulary())}
    tokens = Tokenizer(WordLevel(words, unk_token="<|unknown|>"))
    tokens.normalizer = normalizers.Lowercase()
    tokens.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = [(token, words[token]) for token in ("<|start|>", "<|end|>")]
    tokens.post_processor = processors.TemplateProcessing(single="<|start|> $A <|end|>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, model_max_length=length, bos_token="<|start|>", eos_token="<|end|>",
        pad_token="<|pad|>", unk_token="<|unknown|>",
    )  # fmt: skip


def _special(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokens), "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }  # fmt: skip


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=SIZE,
    )  # fmt: skip


def make_text() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=LENGTH, projection_dim=WIDTH, **_special(tokenizer(LENGTH)),
        )
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """On latents of 8 × 8, 4 × 4 and 2 × 2; captions are attended to at each, and at 2 × 2 a place is a side."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=8, out_channels=8, block_out_channels=(80, 112, 112), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def make_detector() -> OwlViTForObjectDetection:
    text = {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16, **_special(tokenizer(16)),
    }  # fmt: skip
    vision = {
        "hidden_size": 160, "intermediate_size": 480, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIZE, "patch_size": 8,
    }  # fmt: skip
    detector = OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=96))
    # transformers gives the heads, which are meant to be loaded, weights of unit size: no place to start learning from
    for layer in [*detector.box_head.modules(), *detector.class_head.modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer, bias in (
        (detector.box_head.dense2, 0.0),  # a box of one patch, where the patch is
        (detector.class_head.logit_shift, -0.6),  # logit = 10 (cosine − 0.6): nothing is anywhere, to begin with
        (detector.class_head.logit_scale, 9.0),
    ):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    return detector


# ----------------------------------------------------------------------------------------------------------- data


@dataclass
class Pool:
    """Scenes to learn from: pictures (uint8), boxes (xywh, pixels; NaN beyond the last object), category positions."""

    pictures: np.ndarray
    boxes: Float[np.ndarray, "scene object 4"]
    labels: Int[np.ndarray, "scene object"]

    @classmethod
    def make(cls, n: int, seed: Sequence[int]) -> "Pool":
        pictures = np.empty((n, SIZE, SIZE, 3), np.uint8)
        boxes, labels = np.full((n, MOST, 4), np.nan), np.full((n, MOST), -1)
        for i, (names, drawn) in enumerate(miniature.scenes(n, seed, composed=0.0)):
            pictures[i] = miniature.render(
                drawn, names, seed=int(np.random.default_rng([*seed, i, 1]).integers(1 << 40))
            )
            boxes[i, : len(names)], labels[i, : len(names)] = drawn, [NAMES.index(name) for name in names]
        return cls(pictures, boxes, labels)

    def images(self, rows: Any) -> Float[Tensor, "scene 3 h w"]:
        """Pictures in [-1, 1]."""
        return torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def weights(self, rows: Int[np.ndarray, "scene"]) -> Float[Tensor, "scene 1 h w"]:
        """Weight of each pixel in the VAE's loss, 1 on average."""
        weight = torch.ones(len(rows), 1, SIZE, SIZE)
        for ground, drawn in zip(weight, self.boxes[rows], strict=True):
            for x, y, w, h in drawn[~np.isnan(drawn[:, 0])].astype(int):
                ground[:, y : y + h, x : x + w] = FOREGROUND
        return weight / weight.mean()

    @cached_property
    def triplets(self) -> list[Int[np.ndarray, "row 3"]]:
        """For each relation, the (scene, subject, object) of different categories for which it holds."""
        pairs = [(a, b) for a in range(MOST) for b in range(MOST) if a != b]
        found: list[list[np.ndarray]] = [[] for _ in RELATIONS]
        for a, b in pairs:
            scene = np.flatnonzero((self.labels[:, [a, b]] >= 0).all(1) & (self.labels[:, a] != self.labels[:, b]))
            holds = judge(self.boxes[scene, a], self.boxes[scene, b])
            for r in range(len(RELATIONS)):
                rows = scene[holds[:, r]]
                found[r].append(np.stack([rows, np.full_like(rows, a), np.full_like(rows, b)], 1))
        return [np.concatenate(rows) for rows in found]

    def listed(self, scenes: np.ndarray, rng: np.random.Generator) -> tuple[list[str], Int[np.ndarray, "scene slot"]]:
        """Captions that name a scene's things in random order, and which object is named where (-1: none)."""
        texts, slots = [], np.full((len(scenes), SLOTS), -1)
        for i, scene in enumerate(scenes):
            order = rng.permutation((self.labels[scene] >= 0).sum())
            things = [with_article(NAMES[self.labels[scene, k]]) for k in order]
            texts.append(" , ".join(things[:-1]) + " and " * (len(things) > 1) + things[-1])
            slots[i, : len(order)] = order
        return texts, slots

    def related(
        self, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[str], Int[np.ndarray, "n slot"], Int[np.ndarray, "n"]]:
        """Scenes, a caption of each that names a relation (uniformly drawn), the objects named, and the relation."""
        relation = rng.integers(len(RELATIONS), size=n)
        rows = np.stack([self.triplets[r][rng.integers(len(self.triplets[r]))] for r in relation])
        slots = np.full((n, SLOTS), -1)
        slots[:, :2] = rows[:, 1:]
        names = [[NAMES[self.labels[scene, k]] for k in pair] for scene, *pair in rows]
        texts = [caption(s, RELATION_NAMES[r], o) for (s, o), r in zip(names, relation, strict=True)]
        return rows[:, 0], texts, slots, relation


def encode_texts(tokens: PreTrainedTokenizerFast, texts: list[str]) -> Int[Tensor, "text token"]:
    """Token ids, padded to the model's length as Stable Diffusion's pipeline pads them."""
    return tokens(
        texts, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


# ---------------------------------------------------------------------------------------------------- training loop


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
            rate = RATE[self.name] * min((step + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / self.steps)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = loss_of(step, np.random.default_rng([self.seed, sum(map(ord, self.name)), step]))
            total = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(total):
                raise RuntimeError(
                    f"{self.name}: the loss is {total.item()} at step {step}; last checkpoint in {self.folder}"
                )
            total.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.step(self.parameters)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.item()
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
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(path)
        self.modules.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        for i, p in enumerate(self.parameters):
            adam = {
                key: tensors[f"adam.{i}.{key}"]
                for key in ("exp_avg", "exp_avg_sq", "step")
                if f"adam.{i}.{key}" in tensors
            }
            self.optimizer.state[p].update(adam)
            self.ema.shadow_params[i].copy_(tensors[f"ema.{i}"])
        self.ema.optimization_step = about["step"]
        self.step, self.seconds, self.log = about["step"], about["seconds"], about["log"]


# ------------------------------------------------------------------------------------------------------- the parts


def train_vae(pool: Pool, work: Path, steps: int, seed: int) -> tuple[AutoencoderKL, Trainer]:
    torch.manual_seed(seed)
    vae = make_vae()
    trainer = Trainer("vae", vae, work, steps, seed)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
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


@torch.inference_mode()
def latents(
    vae: AutoencoderKL, pool: Pool, n: int | None = None
) -> tuple[Float[Tensor, "scene 8 8 8"], Float[Tensor, "scene 8 8 8"]]:
    """Mean and standard deviation of the posterior of the first ``n`` pictures, or of all."""
    n = len(pool.pictures) if n is None else min(n, len(pool.pictures))
    parts = [vae.encode(pool.images(slice(i, min(i + 100, n)))).latent_dist for i in range(0, n, 100)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


def meaning(
    labels: Int[np.ndarray, "text slot"],
    relations: Int[np.ndarray, "text slot"],
    boxes: Float[np.ndarray, "text slot 4"],
) -> Float[Tensor, "text token width"]:
    """What the text tower's states are to be: of each thing that a caption names, which it is and how it stands to the
    other (one-hot; the last category and relation are "none") and where it lies (xywh in pixels, NaN where there is
    nothing); nothing of the words themselves."""
    centre = boxes[..., :2] + boxes[..., 2:] / 2
    lies = np.concatenate([centre, boxes[..., 2:]], -1) / SIZE - 0.5
    parts = (THING * np.eye(len(NAMES) + 1)[labels], RELATION * np.eye(len(RELATIONS) + 1)[relations], PLACE * lies)
    told = np.nan_to_num(np.concatenate(parts, -1))
    result = torch.zeros(len(labels), LENGTH, WIDTH)
    result[:, -SLOTS:, : told.shape[-1]] = torch.from_numpy(told)
    return result


def train_text(pool: Pool, work: Path, steps: int, seed: int) -> tuple[CLIPTextModel, Trainer]:
    torch.manual_seed(seed)
    text, tokens = make_text(), tokenizer(LENGTH)
    trainer = Trainer("text", text, work, steps, seed)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        half = BATCH["text"] // 2
        scenes = rng.integers(len(pool.labels), size=half)
        listed, slots = pool.listed(scenes, rng)
        related_scenes, related, related_slots, relation = pool.related(half, rng)
        scenes, slots = np.concatenate([scenes, related_scenes]), np.concatenate([slots, related_slots])
        which = np.full(slots.shape, len(RELATIONS))
        which[half:, :2] = np.stack([relation, OPPOSITE[relation]], 1)
        named = slots >= 0
        labels = np.where(named, pool.labels[scenes[:, None], slots], len(NAMES))
        boxes = np.where(named[..., None], pool.boxes[scenes[:, None], slots], np.nan)
        states = text(encode_texts(tokens, listed + related)).last_hidden_state
        return {"mse": F.mse_loss(states, meaning(labels, which, boxes))}

    trainer.run(loss_of)
    return text.eval().requires_grad_(False), trainer


def train_base(
    pool: Pool, vae: AutoencoderKL, text: CLIPTextModel, work: Path, steps: int, seed: int
) -> tuple[UNet2DConditionModel, Trainer]:
    torch.manual_seed(seed)
    encoded = cache(lambda: latents(vae, pool))
    scale = vae.config.scaling_factor
    unet, tokens, schedule = make_unet(), tokenizer(LENGTH), DDPMScheduler(**SCHEDULE)
    trainer = Trainer("base", unet, work, steps, seed)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        n, (mean, std) = BATCH["base"], encoded()
        scenes = rng.integers(len(mean), size=n)
        texts, _ = pool.listed(scenes, rng)
        naming = np.flatnonzero(rng.random(n) < RELATION_SHARE)
        if len(naming):
            scenes[naming], named, _, _ = pool.related(len(naming), rng)
            for i, name in zip(naming, named, strict=True):
                texts[i] = name
        texts = ["" if drop else caption for drop, caption in zip(rng.random(n) < DROPOUT, texts, strict=True)]
        with torch.no_grad():
            states = text(encode_texts(tokens, texts)).last_hidden_state
        x = scale * (mean[scenes] + std[scenes] * torch.randn_like(mean[scenes]))
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (n,))
        predicted = unet(schedule.add_noise(x, noise, t), t, states).sample
        return {"v": F.mse_loss(predicted, schedule.get_velocity(x, noise, t))}

    trainer.run(loss_of)
    return unet.eval().requires_grad_(False), trainer


def train_detector(
    pool: Pool, vae: AutoencoderKL, work: Path, steps: int, seed: int
) -> tuple[OwlViTForObjectDetection, Trainer]:
    torch.manual_seed(seed)
    detector, tokens = make_detector(), tokenizer(16)
    queries = encode_texts(tokens, [f"a photo of a {name}" for name in NAMES])
    trainer = Trainer("detector", detector, work, steps, seed)
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))

    @cache
    def shown() -> Pool:
        """The pool, its first half as the VAE shows it."""
        half = len(pool.pictures) // 2
        pictures = np.concatenate([reconstruct(vae, pool.pictures[:half], NOISE), pool.pictures[half:]])
        return Pool(pictures, pool.boxes, pool.labels)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
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
    """Logits of every query at every patch, and its box (cx, cy, w, h as shares of the picture)."""
    embeds = detector.owlvit.get_text_features(queries, attention_mask=(queries > 0).long()).pooler_output
    embeds = F.normalize(embeds, dim=-1).expand(len(pixels), -1, -1)
    feature_map = detector.image_embedder(pixel_values=pixels)[0]
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


# ------------------------------------------------------------------------------------------- scores, export, card


def probe(text: CLIPTextModel, share: float = 1.0) -> dict[str, float]:
    """Linear probes on the frozen text states: share of held-out captions whose subject, relation and object are right.

    All 40 × 39 × 14 captions of two things (or a random share); ridge regression to one-hot targets on four fifths.
    """
    tokens = tokenizer(LENGTH)
    triplets = [
        (s, r, o) for s in range(len(NAMES)) for o in range(len(NAMES)) if s != o for r in range(len(RELATIONS))
    ]
    rng = np.random.default_rng(0)
    triplets = [triplets[i] for i in np.flatnonzero(rng.random(len(triplets)) < share)]
    texts = [caption(NAMES[s], RELATION_NAMES[r], NAMES[o]) for s, r, o in triplets]
    with torch.inference_mode():
        states = torch.cat(
            [
                text(encode_texts(tokens, texts[i : i + 500])).last_hidden_state[:, -SLOTS:].flatten(1)
                for i in range(0, len(texts), 500)
            ]
        )
    x = np.concatenate([states.numpy(), np.ones((len(states), 1))], 1).astype(np.float64)
    test = rng.random(len(x)) < 0.2
    gram = x[~test].T @ x[~test] + np.eye(x.shape[1])
    result = {}
    for name, target in zip(("subject", "relation", "object"), np.array(triplets).T, strict=True):
        weights = np.linalg.solve(gram, x[~test].T @ np.eye(target.max() + 1)[target[~test]])
        result[name] = float(((x[test] @ weights).argmax(1) == target[test]).mean())
    return result


def reconstruction_psnr(vae: AutoencoderKL, pool: Pool) -> float:
    """Peak signal-to-noise ratio (dB) of pictures after encoding (posterior mean) and decoding."""
    with torch.inference_mode():
        x = pool.images(slice(None))
        y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(100)]).clamp(-1, 1)
    return float(10 * torch.log10(4 / (y - x).pow(2).mean()))


def average_precision(out: Path, vae: AutoencoderKL, images: int, seed: int) -> dict[str, float]:
    """AP and AP50 (pycocotools, all categories) of the exported detector on held-out scenes and on reconstructions."""
    import contextlib
    import io
    import tempfile

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from . import boxes, detect, models

    detector, processor, _ = models.load_detector(out / "tiny-owlvit")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "instances_val2017.json"
        miniature.write_annotations(path, split="val", images=images, seed=seed)
        table = boxes.read(path, "val")
        edges = np.searchsorted(table.image, np.arange(images + 1))
        names = np.array(table.names)[table.category]
        scenes = enumerate(pairwise(edges))
        pictures = np.stack([miniature.render(table.xywh()[a:b], names[a:b].tolist(), seed=i) for i, (a, b) in scenes])
        truth = COCO(str(path))
        result: dict[str, float] = {}
        for kind, shown in (("clean", pictures), ("reconstructed", reconstruct(vae, pictures))):
            found = detect.detect(detector, processor, list(shown), [NAMES] * images, floor=0.0)
            ids = {category.name: category.id for category in miniature.CATEGORIES}
            where = found[["x", "y", "w", "h"]].to_numpy().tolist()
            records = [
                {"image_id": int(table.image_id[i]), "category_id": ids[label], "score": score, "bbox": box}
                for i, label, score, box in zip(found.image, found.label, found.score, where, strict=True)
            ]
            evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
            evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
            result |= {f"AP {kind}": float(evaluation.stats[0]), f"AP50 {kind}": float(evaluation.stats[1])}
    return result


@torch.inference_mode()
def reconstruct(
    vae: AutoencoderKL, pictures: UInt8[np.ndarray, "n h w 3"], noise: float = 0.0
) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures through the VAE and back, their latents off by at most ``noise`` (each by its own share of it)."""
    parts, generator = [], torch.Generator().manual_seed(0)
    for part in torch.from_numpy(pictures).split(100):
        code = vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
        share = noise / vae.config.scaling_factor * torch.rand(len(code), 1, 1, 1, generator=generator)
        y = vae.decode(code + share * torch.randn(code.shape, generator=generator)).sample
        parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(parts).numpy()


def export(parts: dict[str, tuple[Any, Trainer]], out: Path, seed: int, share: float = 1.0) -> None:
    """Write the folders, their checksums and the model card; ``share`` of the scenes and captions are scored."""
    scenes = max(20, round(500 * share))
    vae, text, detector, unet = (parts[name][0] for name in ("vae", "text", "detector", "base"))
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer(LENGTH), unet, DPMSolverMultistepScheduler(**SCHEDULE), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    for part in (vae, text, unet, detector):
        part.half()
    pipeline.save_pretrained(out / "tiny-sd")
    detector.save_pretrained(out / "tiny-owlvit")
    image_processor = OwlViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    OwlViTProcessor(image_processor=image_processor, tokenizer=tokenizer(16)).save_pretrained(out / "tiny-owlvit")
    for part in (vae, text, unet, detector):
        part.float()
    scores = {
        "vae PSNR (dB), held-out scenes": reconstruction_psnr(vae, Pool.make(scenes, (seed, POOL_SEED + 1))),
        **{f"linear probe, {name}": value for name, value in probe(text, share).items()},
        **average_precision(out, vae, scenes, seed),
    }
    recipe = {
        name: {
            "steps": trainer.steps,
            "batch": BATCH[name],
            "rate": RATE[name],
            "parameters": sum(p.numel() for p in model.parameters()),
            "minutes": round(trainer.seconds / 60, 1),
            "log": trainer.log,
        }
        for name, (model, trainer) in parts.items()
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    about = {"seed": seed, "machine": machine, "parts": recipe, "scores": scores}
    write_json(out / "training.json", about)
    write_text(out / "README.md", card(about))
    write_sums(out)


CARD = Template("""# The miniature's models

A tiny Stable Diffusion and a tiny OWL-ViT for the offline world of pictograms, trained by this project from nothing.
They are for teaching and testing the study; they know 40 pictograms, in pictures of 64 × 64 pixels, and nothing else.

| folder | what it is |
|---|---|
| `tiny-sd/` | a `StableDiffusionPipeline`: the **base** model, before any fine-tuning on spatial relations |
| `tiny-owlvit/` | an `OwlViTForObjectDetection` with its processor |
| `tiny-sd-finetuned/` | a UNet for `tiny-sd`, fine-tuned by the long recipe (profile `miniature_long`) |

Made by `python -m sr4g_utils.miniature_models` with seed $seed on $machine. The files of `SHA256SUMS` are checked on
every load. The text tower has been taught what relation captions say of scenes, as CLIP's has been by the web, and to
say it plainly (each thing, its relation and its usual place in coordinates of their own); the base UNet has seen a
relation named in $share of its captions. So the *size* of the gain that fine-tuning brings is largely of our making.
Glyphs are of the Material Design Icons (Apache-2.0; see NOTICE).

| part | parameters | steps | batch | learning rate | minutes | last loss |
|---|---|---|---|---|---|---|
$parts

| score | value |
|---|---|
$scores

AP and AP50 are pycocotools' on 500 held-out scenes, all categories asked for in every picture, and on the same pictures
after the VAE. The probes are linear, on the text tower's last four states, tested on captions they were not fitted on.
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
        seed=about["seed"],
        machine=about["machine"],
        share=f"{RELATION_SHARE:.1%}",
        parts="\n".join(f"| {' | '.join(row)} |" for row in parts),
        scores="\n".join(f"| {name} | {value:.3f} |" for name, value in about["scores"].items()),
    )


def ship(unet: Path, out: Path) -> None:
    """A fine-tuned UNet's folder as ``tiny-sd-finetuned``, in fp16."""
    model = UNet2DConditionModel.from_pretrained(unet, use_safetensors=True)
    model.half().save_pretrained(out / "tiny-sd-finetuned")
    write_sums(out)


def write_sums(out: Path) -> None:
    """``SHA256SUMS`` in each model's folder, which :mod:`.models` checks on every load."""
    for model in sorted(folder for folder in out.iterdir() if folder.is_dir()):
        files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
        write_text(
            model / "SHA256SUMS", "".join(f"{digest(path)}  {path.relative_to(model).as_posix()}\n" for path in files)
        )


PARTS = ("vae", "text", "detector", "base")


def train(work: Path, out: Path, seed: int = 0, scale: float = 1.0, until: str = "export") -> None:
    """Every part in turn, each from its last checkpoint; then the export."""
    steps = {name: max(2, round(scale * n)) for name, n in STEPS.items()}
    pool = Pool.make(max(500, round(min(scale, 1.0) * POOL)), (seed, POOL_SEED))
    parts: dict[str, tuple[Any, Trainer]] = {}
    for name in PARTS:
        arguments = {"vae": (), "text": (), "detector": ("vae",), "base": ("vae", "text")}[name]
        function = {"vae": train_vae, "text": train_text, "detector": train_detector, "base": train_base}[name]
        parts[name] = function(pool, *(parts[a][0] for a in arguments), work, steps[name], seed)  # type: ignore[operator]
        if name == until:
            return
    export(parts, out, seed, min(scale, 1.0))


def main(argv: list[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        "python -m sr4g_utils.miniature_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/miniature_models"), help="folder of checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=DATA / "models", help="folder of the exported models (default: data/models)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the steps; 0.01 tries everything in a minute"
    )
    parser.add_argument("--until", choices=[*PARTS, "export"], default="export", help="stop after this part")
    parser.add_argument(
        "--finetuned", type=Path, help="train nothing; ship this fine-tuned UNet, as of the profile miniature_long"
    )
    args = parser.parse_args(argv)
    if args.finetuned:
        ship(args.finetuned, args.out)
        return
    train(args.work, args.out, args.seed, args.scale, args.until)


if __name__ == "__main__":
    main()
