"""Speed of the heavy stages, each beside its baseline in the same run: ``python tests/bench_stages.py``.

    generate   images/s of batches across prompts, against the stock pipeline, one prompt at a time
    detect     images/s of the batched detector, against the stock processor, one image at a time
    finetune   images/s of the stage, against a plain loop that passes photos and captions through VAE and text encoder
               at every step
    owlv2, dino   the same for OWLv2 and Grounding DINO, which are in no record
    reward     images/s of the reward on drawn scenes by the miniature's detector, against GenEval's way: the stock
               processor, model, post-processing and its rule, one image at a time; both must agree on nearly all. On a
               CPU also with a detector of hardly any arithmetic, for the overheads
    base       images/s of a training step of the miniature's base on a CPU, against the step of stock diffusers: not
               compiled, in float32, with its own attention
    score      images/s of verdicts and scores of SR2D's 101,120 images with intervals, against a bootstrap of 10,000
               that draws prompts one resample at a time (a fiftieth of them, times fifty); no model, on the CPU
    neighbour  images/s of training the miniature's UNet beside a process that keeps two threads busy, with the threads
               that kernels and commands take there (files.share_cores), against as many as there are cores, which spin
               while they wait (torch's default). Both are compared with the latter alone. For a machine of two cores
               where nothing else is at work

Models have random weights. On a GPU they have the published sizes (Stable Diffusion v1.4 at 512 × 512, OWL-ViT base at
768 × 768, ``--small`` for tiny ones); on a CPU they are tiny, so the ratios there speak of overheads and not of
arithmetic. Rates go into the section ``plan`` of a profile, which `run_all.py --profile paper --dry-run` reads.

The first three are the part for a GPU: ``--only generate detect finetune``. Of published sizes it leaves a record in
``data/results/bench/<device>.json``, of tiny ones only where ``--out`` says; ``--table`` makes the table in
docs/cluster.md of the records. Operations are those of matrix products, convolutions and attention that one image
needs, counted by torch on the very model:

    generate   text encoder, UNet at each of the scheduler's calls (twice, for guidance) and the VAE's decoder
    detect     image tower and heads, once; what a name's text takes is shared by all images
    finetune   the UNet's forward and backward pass

MFU is what they come to per second, as a share of the device's peak by its data sheet.
"""

import argparse
import datetime
import gc
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scalar
import tiny
import tiny_detectors
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pretend import neighbours
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sr4g_utils.dataset import coco, world
from sr4g_utils.dataset.photos import Photos, crop_photo, crop_table
from sr4g_utils.dataset.prompt_sets import read_prompts
from sr4g_utils.evaluation import scores, verdicts
from sr4g_utils.evaluation.reward import Reward
from sr4g_utils.finetuning.captions import true_captions
from sr4g_utils.finetuning.log import PEAKS, read_log
from sr4g_utils.finetuning.stage import finetune
from sr4g_utils.models import detectors, diffusion
from sr4g_utils.models.load import default_device, load_pipeline
from sr4g_utils.models.miniature.networks import LENGTH, WIDTH, make_unet
from sr4g_utils.models.miniature.training import predictor
from sr4g_utils.models.sampling import Sampling
from sr4g_utils.relations import family
from sr4g_utils.store import files

RECORDS = files.DATA / "results" / "bench"
PAGE = files.ROOT / "docs" / "cluster.md"
MARKS = "<!-- made by `python tests/bench_stages.py --table` -->", "<!-- end of what it made -->"
FLOAT16_PEAKS = {"V100": 125e12, "T4": 65e12}  # by data sheet, of cards whose tensor cores know no bfloat16


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[title(bench) for bench in (*STAGES, *OTHERS)])
    parser.add_argument("--small", action="store_true", help="tiny models on a GPU too")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the record")
    parser.add_argument("--table", action="store_true", help="measure nothing; put the records into docs/cluster.md")
    args = parser.parse_args(argv)
    if args.table:
        return files.write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), RECORDS))
    full = default_device() != "cpu" and not args.small
    chosen = [bench for bench in (*STAGES, *OTHERS) if not args.only or title(bench) in args.only]
    # an excerpt, or tiny models, must not take the place of a whole record
    out = args.out or (RECORDS if full and set(chosen) >= set(STAGES) else None)
    run(chosen, full, out and out / f"{file_name(device_name())}.json")


def run(benches: list[Callable], full: bool, out: Path | None) -> None:
    began, dtype = time.perf_counter(), "float16" if full else "float32"
    record: dict[str, Any] = {"device": device_name(), "date": datetime.date.today().isoformat()}
    record |= {"sizes": "published" if full else "tiny", **files.provenance(), "stages": {}}
    print(f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}; random weights,",
          "published sizes" if full else "tiny: overheads only")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny.stable_diffusion(folder / "sd", full=full)
        tiny.owlvit(folder / "owlvit", full=full)
        for bench in benches:
            started, more = time.perf_counter(), ""
            forget()
            made = bench(folder, dtype, full)
            if bench in STAGES:
                record["stages"][title(bench)] = made
                if out:  # at once: a later stage that does not fit into memory leaves this one's numbers
                    files.write_json(out, record)
                ours, baseline, more = made["images_per_s"], made["baseline_images_per_s"], told(made)
            else:
                ours, baseline = made
            print(f"{title(bench):9}{ours:9.2f} images/s, baseline {baseline:9.2f}, ratio {ours / baseline:.1f}{more};",
                  f"took {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    print(f"in all {time.perf_counter() - began:.0f} s" + (f"; the record is {out}" if out else ""))


# ------------------------------------------------------------------------------------------------ what a record says


def title(bench: Callable) -> str:
    return bench.__name__.removeprefix("bench_")


def device_name() -> str:
    device = default_device()
    return torch.cuda.get_device_name() if device == "cuda" else device


def file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def peak(device: str, dtype: str) -> float | None:
    """FLOP/s of a device's tensor cores by its data sheet; None of a card (or CPU) or a precision not listed."""
    known = PEAKS | FLOAT16_PEAKS if dtype == "float16" else PEAKS if dtype == "bfloat16" else {}
    return next((peak for card, peak in known.items() if re.search(rf"\b{card}\b", device)), None)


def measured(
    images: int, seconds: float, flop: int, memory: float | None, dtype: str, baseline: str, rate: float
) -> dict[str, Any]:
    """A stage's part of the record; ``flop`` of one image, ``rate`` the baseline's images/s, ``memory`` in GB."""
    best = peak(device_name(), dtype)
    return {
        "images": images, "seconds": seconds, "images_per_s": images / seconds, "baseline": baseline,
        "baseline_images_per_s": rate, "ratio": images / seconds / rate, "dtype": dtype, "tflop_per_image": flop / 1e12,
        "mfu": images * flop / seconds / best if best else None, "peak_memory_gb": memory,
    }  # fmt: skip


def told(stage: dict[str, Any]) -> str:
    mfu, memory = stage["mfu"], stage["peak_memory_gb"]
    share = f"MFU {mfu:.1%}" if mfu else f"no MFU (this device's peak in {stage['dtype']} is not listed)"
    most = f", at most {memory:.1f} GB" if memory else ""
    return f", {stage['tflop_per_image']:.3g} TFLOP per image, {share}{most}"


def table(folder: Path) -> str:
    """The records of a folder in Markdown."""
    titles = ("card", "stage", "images/s", "baseline", "its images/s", "times", "TFLOP per image", "MFU",
              "peak memory", "measured")  # fmt: skip
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = files.read_json(path)
        when = f"{record['date']}, torch {record['torch']}, {record['sizes']} sizes"
        for name, stage in record["stages"].items():
            mfu, memory = stage["mfu"], stage["peak_memory_gb"]
            rows.append((
                record["device"], f"{name}, {stage['dtype']}", f"{stage['images_per_s']:.2f}", stage["baseline"],
                f"{stage['baseline_images_per_s']:.2f}", f"{stage['ratio']:.1f}", f"{stage['tflop_per_image']:.3g}",
                f"{mfu:.1%}" if mfu else "–", f"{memory:.1f} GB" if memory else "–", when,
            ))  # fmt: skip
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "No card has been measured yet."


def with_table(text: str, folder: Path) -> str:
    """A page with the records' table between its marks."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table(folder)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


# ---------------------------------------------------------------------------------------------------------- measuring


def seconds(work: Callable[[], object]) -> float:
    """Of a call, after one that warms up."""
    work()
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def rate(images: int, work: Callable[[], object]) -> float:
    """Images per second."""
    return images / seconds(work)


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def forget() -> None:
    """What an earlier stage left in a GPU's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float | None:
    """GB of tensors at most in a GPU's memory since :func:`forget`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def flops(work: Callable[[], object]) -> int:
    """Operations of a call. Attention is done plainly meanwhile: what fast kernels do twice, no model needs twice."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------------- stages


def bench_generate(folder: Path, dtype: str, full: bool) -> dict[str, Any]:
    pipeline, _ = load_pipeline(folder / "sd", dtype)
    prompts, steps = neighbours(32 if full else 16), 20 if full else 5
    sampling = Sampling(images=1, steps=steps, batch=32, group=32)

    def stock() -> None:
        for text in prompts.caption[:8]:
            pipeline(text, num_inference_steps=steps)

    pipeline.set_progress_bar_config(disable=True)

    def ours(prompts: pd.DataFrame) -> None:
        for _ in diffusion.sample(pipeline, prompts, sampling):
            pass

    spent, memory = seconds(lambda: ours(prompts)), peak_memory()
    flop = flops(lambda: ours(prompts[:1]))
    baseline = "the stock pipeline, one prompt at a time"
    return measured(len(prompts), spent, flop, memory, dtype, baseline, rate(8, stock))


Detection = tuple[Callable[[int], object], Callable[[], object], int]  # of n images; the stock way; how many there are


def stock_boxes(loaded: Any, image: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What the stock processor, model and post-processing find of the names in one image."""
    texts = [loaded.query.format(name=name).removesuffix(".") for name in names]
    inputs = loaded.processor(text=[texts], images=Image.fromarray(image), return_tensors="pt").to(loaded.model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(loaded.model.dtype)
    with torch.inference_mode():
        outputs = loaded.model(**inputs)
    sizes = [image.shape[:2]]
    return loaded.processor.post_process_grounded_object_detection(outputs, threshold=0.1, target_sizes=sizes)[0]


def detection(folder: Path, dtype: str, full: bool) -> Detection:
    """An open-vocabulary detector on images, each asked for its two names: batched here, and the stock way on 16."""
    loaded = detectors.load(folder, dtype)
    rng, side = np.random.default_rng(0), 512 if full else 64
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(128 if full else 64)]
    names = [("dog", "cat")] * len(images)

    def stock() -> None:
        for image, asked in zip(images[:16], names[:16], strict=True):
            stock_boxes(loaded, image, asked)

    return lambda n: loaded.detect(images[:n], names[:n]), stock, len(images)


def bench_detect(folder: Path, dtype: str, full: bool) -> dict[str, Any]:
    ours, stock, n = detection(folder / "owlvit", dtype, full)
    spent, memory = seconds(lambda: ours(n)), peak_memory()
    flop = flops(lambda: ours(1))
    baseline = "the stock processor, one image at a time"
    return measured(n, spent, flop, memory, dtype, baseline, rate(16, stock))


def bench_owlv2(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    ours, stock, n = detection(tiny.owlv2(folder / "owlv2", full=full), dtype, full)
    return n / seconds(lambda: ours(n)), rate(16, stock)


def bench_dino(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    ours, stock, n = detection(tiny_detectors.build("grounding-dino", folder / "dino", full=full), dtype, full)
    return n / seconds(lambda: ours(n)), rate(16, stock)


def bench_reward(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    scenes = [scene for scene in world.scenes(400, (0, 9)) if len(set(scene[0][:2])) == 2][:256]
    drawn = [world.render(boxes, names, (world.SIZE, world.SIZE), i) for i, (names, boxes) in enumerate(scenes)]
    images = [image.repeat(8, 0).repeat(8, 1) if full else image for image in drawn]
    told = itertools.cycle(family("projective"))
    prompts = [(names[0], relation, names[1]) for (names, _), relation in zip(scenes, told, strict=False)]
    some = list(zip(images, prompts, strict=True))[:32]

    def both(
        loaded: Any, threshold: float = files.protocol()["thresholds"]["tiny-owlvit"]
    ) -> tuple[float, float]:  # the miniature's
        reward = Reward(loaded, rules="geneval", threshold=threshold, extra=0)
        one_by_one = [stock_reward(loaded, *each, reward.threshold) for each in some]
        assert np.mean(one_by_one == reward(*zip(*some, strict=True))) > 0.9, "the two ways reward other images"
        stock = rate(len(some), lambda: [stock_reward(loaded, *each, reward.threshold) for each in some])
        return rate(len(images), lambda: reward(images, prompts)), stock

    if not full:
        quick = detectors.load(folder / "owlvit", dtype)
        found = quick.detect(images, [prompt[::2] for prompt in prompts])
        ours, stock = both(quick, found.score.sort_values().iloc[-2 * len(images)])  # two boxes an image
        print(f"    a detector of hardly any arithmetic: {ours:.1f} images/s, baseline {stock:.1f}, {ours / stock:.1f}")
    return both(detectors.load(folder / "owlvit" if full else files.DATA / "models" / "tiny-owlvit", dtype))


def stock_reward(loaded: Any, image: np.ndarray, prompt: tuple[str, str, str], threshold: float) -> float:
    """GenEval's way: does the relation hold between the most confident box of each name?"""
    found, best = stock_boxes(loaded, image, prompt[::2]), {}
    for score, label, box in zip(*(found[name].tolist() for name in ("scores", "labels", "boxes")), strict=True):
        if score > max(threshold, best.get(label, (0,))[0]):
            best[label] = score, [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return float(len(best) == 2 and prompt[1] in scalar.relations(best[0][1], best[1][1], "geneval"))


def bench_finetune(folder: Path, dtype: str, full: bool) -> dict[str, Any]:
    batch, steps = (32, 20) if full else (8, 10)
    photos = folder / "photos"
    world.write_annotations(folder / "train.json", split="train", images=256 if full else 64)
    world.write_photos(photos, folder / "train.json", split="train")
    choices = {"batch": batch, "precision": "bfloat16" if full else "float32", "validate_every": 0, "warmup": 1}
    how = {"model": str(folder / "sd"), "steps": 2 * steps, "log_every": steps, "checkpoint_every": 10 * steps}
    finetune(folder / "tuned", folder / "train.json", photos, **how, **choices)
    spent = steps * batch / float(read_log(folder / "tuned").images_per_s.iloc[-1])  # of the second half
    memory = peak_memory()  # of encoding the photos, too
    forget()
    pipeline, record = load_pipeline(folder / "sd")
    flop = training_flops(pipeline.unet)
    plain = plain_loop(pipeline, folder / "train.json", photos, record["resolution"][0], batch, steps, choices)
    baseline = "a plain loop that encodes photos and captions at every step"
    return measured(steps * batch, spent, flop, memory, choices["precision"], baseline, rate(steps * batch, plain))


def training_flops(unet: Any) -> int:
    """Operations of a UNet's forward and backward pass on one image."""
    size, c = unet.config.sample_size, unet.config
    latents = torch.randn(1, c.in_channels, size, size, device=unet.device, dtype=unet.dtype)
    states = torch.randn(1, 77, c.cross_attention_dim, device=unet.device, dtype=unet.dtype)
    t = torch.ones(1, device=unet.device, dtype=torch.long)
    flop = flops(lambda: unet(latents, t, states).sample.square().mean().backward())
    unet.zero_grad()
    return flop


def plain_loop(
    pipeline: Any, annotations: Path, photos: Path, resolution: int, batch: int, steps: int, choices: dict[str, Any]
) -> Callable[[], None]:
    """The public recipe: every step reads photos and passes them and the captions through the frozen models."""
    unet, device, noise = pipeline.unet, pipeline.device, DDPMScheduler.from_config(pipeline.scheduler.config)
    table = crop_table(coco.read(annotations), resolution)
    captions, files = true_captions(table), Photos(photos)
    texts = [captions.text(triplet) for triplet in captions.triplet]
    optimiser = torch.optim.AdamW(unet.requires_grad_(True).train().parameters(), lr=1e-5)
    rng = np.random.default_rng(0)

    def run() -> None:
        for _ in range(steps):
            rows = rng.integers(len(captions), size=batch)
            names = table.file_name.take(captions.image[rows]).to_pylist()
            read = [crop_photo(files.read(name), resolution) for name in names]
            pixels = torch.from_numpy(np.stack(read)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            tokens = pipeline.tokenizer(
                [texts[row] for row in rows], padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=choices["precision"] == "bfloat16"):
                with torch.no_grad():
                    latents = pipeline.vae.encode(pixels).latent_dist.sample() * pipeline.vae.config.scaling_factor
                    states = pipeline.text_encoder(tokens)[0]
                target = torch.randn_like(latents)
                t = torch.randint(noise.config.num_train_timesteps, (batch,), device=device)
                made = unet(noise.add_noise(latents, target, t), t, states).sample
                loss = torch.nn.functional.mse_loss(made.float(), target.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


def bench_base(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    latents = torch.randn(64, 8, 16, 16)
    given = torch.randint(1000, (64,)), torch.randn(64, LENGTH, WIDTH)

    def trained(predict: Callable, unet: Any) -> float:
        optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)

        def steps(n: int) -> None:
            for _ in range(n):
                predict(latents, *given).square().mean().backward()
                optimiser.step()
                optimiser.zero_grad()

        steps(2)  # compiles
        return rate(8 * len(latents), lambda: steps(8))

    ours, stock = make_unet(), make_unet()
    return trained(predictor(ours), ours), trained(lambda *given: stock(*given).sample, stock)


def bench_score(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    prompts, resamples, part = read_prompts("sr2d"), 10_000, 200
    n, rng = 400_000, np.random.default_rng(0)
    at = rng.integers(0, len(prompts), n)
    role = np.where(rng.random(n) < 0.5, prompts.subject.to_numpy(object)[at], prompts.object.to_numpy(object)[at])
    found = pd.DataFrame({"prompt_id": prompts.prompt_id.to_numpy()[at], "image_index": rng.integers(0, 4, n)})
    found = found.assign(label=role, score=rng.random(n), **{side: 200 * rng.random(n) + 1 for side in "xywh"})

    def plain() -> None:
        records = verdicts.verdicts(prompts, found, 4)
        for of in (records, *(rows for _, rows in records.groupby("relation"))):
            sums = of.groupby("prompt_id")[["both_found", "correct"]].sum().to_numpy()
            for _ in range(part):
                drawn = sums[rng.integers(0, len(sums), len(sums))].sum(axis=0)
                assert drawn[1] <= drawn[0]

    images = 4 * len(prompts)
    judging = images / rate(images, lambda: verdicts.verdicts(prompts, found, 4))  # seconds
    drawing = images / rate(images, plain) - judging
    ours = rate(images, lambda: scores.scores(verdicts.verdicts(prompts, found, 4)))
    return ours, images / (judging + drawing * resamples / part)


TRAIN = """
import sys, time, torch
from sr4g_utils.models.load import load_pipeline

unet = load_pipeline(sys.argv[1], device="cpu")[0].unet.train()
optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
size, n, steps = unet.config.sample_size, 16, int(sys.argv[2])
latents = torch.randn(n, unet.config.in_channels, size, size)
states = torch.randn(n, 16, unet.config.cross_attention_dim)
for step in range(steps + 2):
    if step == 2:
        began = time.perf_counter()
    unet(latents, torch.randint(1000, (n,)), encoder_hidden_states=states).sample.square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
print(steps * n / (time.perf_counter() - began))
"""
SHARE = "from sr4g_utils.store.files import share_cores\nshare_cores()\n"
BUSY = "import torch; torch.set_num_threads(2); x = torch.randn(600, 600)\nwhile True: x @ x"


def bench_neighbour(folder: Path, dtype: str, full: bool) -> tuple[float, float]:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    where = {name: value for name, value in os.environ.items() if name not in names}
    where["PYTHONPATH"] = os.pathsep.join([str(files.ROOT), where.get("PYTHONPATH", "")])

    def train(code: str, steps: int) -> float:
        command = [sys.executable, "-c", code, str(files.DATA / "models" / "tiny-sd"), str(steps)]
        return float(subprocess.run(command, env=where, capture_output=True, text=True, check=True).stdout)

    ours = {"threads as share_cores takes them": SHARE + TRAIN, "threads that spin": TRAIN}
    alone = {name: train(code, 40) for name, code in ours.items()}
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY], env=where)
    try:
        time.sleep(5)  # until it is busy
        beside = {name: train(code, 20) for name, code in ours.items()}
    finally:
        neighbour.kill()
        neighbour.wait()
    for name, a, b in zip(ours, alone.values(), beside.values(), strict=True):
        print(f"    {name}: {a:.1f} images/s alone, {b:.1f} beside a neighbour, {a / b:.1f} times as long")
    shared, spinning = beside.values()
    return shared, spinning


STAGES = bench_generate, bench_detect, bench_finetune
OTHERS = bench_owlv2, bench_dino, bench_reward, bench_base, bench_score, bench_neighbour


if __name__ == "__main__":
    main()
