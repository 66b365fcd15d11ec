"""NaN, values out of range, the wrong sampling: what used to end as black or foreign pictures, scored all the same."""

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image

from sr4g_utils.__main__ import main
from sr4g_utils.dataset.captions import caption
from sr4g_utils.evaluation import detections, generate
from sr4g_utils.finetuning import loop, nets
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.models import detectors, diffusion, load, sampling
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.sampling import Sampling
from sr4g_utils.store import run as store_run

ROOT = Path(__file__).resolve().parents[2]
TRIPLETS = [("dog", "left of", "cat"), ("cup", "inside", "bowl"), ("bus", "below", "kite"), ("car", "above", "tv")]
FAST = {"images": 1, "steps": 1, "batch": 4, "group": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    at = tmp_path_factory.mktemp("world")
    for make, name in ((tiny.stable_diffusion, "sd"), (tiny.owlvit, "owlvit"), (tiny.rt_detr, "rt_detr")):
        make(at / name)
    table = pd.DataFrame(TRIPLETS, columns=["subject", "relation", "object"])
    table = table.assign(prompt_id=range(len(table)), caption=[caption(*triplet) for triplet in TRIPLETS])
    table.to_parquet(at / "prompts.parquet")
    return SimpleNamespace(at=at, sd=at / "sd", table=table, prompts=at / "prompts.parquet")


def test_nan_from_the_unet_ends_the_stage_and_what_was_good_stays(world, tmp_path, monkeypatch, capsys) -> None:
    own, calls = load.load_pipeline, []

    def nan_from_the_second_call_on(unet: Any, given: Any, output: Any) -> None:
        calls.append(unet)
        if len(calls) > 1:
            output[0].fill_(torch.nan)

    def broken(*args: Any, **more: Any) -> Any:
        pipeline, about = own(*args, **more)
        pipeline.unet.register_forward_hook(nan_from_the_second_call_on)
        return pipeline, about

    monkeypatch.setattr(load, "load_pipeline", broken)
    arguments = [str(tmp_path / "images"), "--prompts", str(world.prompts), "--model", str(world.sd)]
    settings = [part for name, value in FAST.items() for part in ("--set", f"{name}={value}")]
    assert main(["generate", *arguments, *settings]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "'a bus below a kite' gives pixels that are not numbers in float32; use dtype" in told
    assert sorted(path.name for path in (tmp_path / "images").rglob("*.webp")) == ["0_0.webp", "1_0.webp"]
    monkeypatch.setattr(load, "load_pipeline", own)
    assert main(["generate", *arguments, *settings]) == 0
    assert len(list((tmp_path / "images").rglob("*.webp"))) == 4


def test_nan_ends_a_validation_and_a_distance(world, monkeypatch) -> None:
    pipeline, record = load_pipeline(world.sd, device="cpu")
    choices, alone = Choices(sampling=FAST, precision="float32"), Accelerator(cpu=True)
    net, finder = nets.of(pipeline, record, choices), detectors.load(world.at / "owlvit", device="cpu")
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="gives pixels that are not numbers in float32"):
        loop.Validator(net, world.table, finder, choices, alone)()
    judge = detectors.load(world.at / "owlvit", device="cpu")
    torch.nn.init.constant_(judge.towers.vision_model.post_layernorm.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="not numbers"):
        judge.features([np.zeros((64, 64, 3), np.uint8)])


@pytest.mark.parametrize("family", ["owlvit", "rt_detr"])
@pytest.mark.parametrize("part", ["class", "box"])
def test_nan_from_a_detector_is_not_read_as_not_found(world, family, part) -> None:
    judge = detectors.load(world.at / family, device="cpu")
    for name, weight in judge.model.named_parameters():
        if f"{part}_head" in name or (family == "rt_detr" and f"{'bbox' if part == 'box' else 'class'}_embed" in name):
            torch.nn.init.constant_(weight, torch.nan)
    with pytest.raises(FloatingPointError, match=f"{family} gives scores or boxes that are not numbers in float32"):
        judge.detect([np.zeros((64, 64, 3), np.uint8)], [("dog", "cat")])


class Pixelwise(diffusers.DiffusionPipeline):
    """A pipeline that works on pixels, as DeepFloyd IF: [-1, 1] for "pt", [0, 1] for the others."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, prompt: list[str], generator: Any, output_type: str = "pil") -> Any:
        ramp = torch.linspace(-1, 1, 4).expand(len(prompt), 3, 4, 4)
        arrays = (ramp / 2 + 0.5).permute(0, 2, 3, 1).numpy()
        kinds = {"pt": lambda: ramp, "np": lambda: arrays, "pil": lambda: self.numpy_to_pil(arrays)}
        return (kinds[output_type](),)


class Images(Pixelwise):
    """One that knows images only."""

    def __call__(self, prompt: list[str], generator: Any) -> Any:
        return super().__call__(prompt, generator, "pil")


@pytest.mark.parametrize("kind", [Pixelwise, Images])
def test_pixels_are_those_that_the_pipeline_converted(world, kind) -> None:
    made = [image for _, _, image in diffusion.sample(kind(diffusers.DDIMScheduler()), world.table, Sampling.of(FAST))]
    assert len(made) == 4 and made[0][0, :, 0].tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize(("array", "message"), [
    (np.linspace(-1, 1, 12).reshape(1, 2, 2, 3), "returns pixels from -1 to 1, not from 0 to 1"),
    (np.full((1, 2, 2, 3), 255.0), "returns pixels from 255 to 255, not from 0 to 1"),
    (np.zeros((1, 2, 2, 4)), r"returns arrays of shape \(1, 2, 2, 4\), not RGB images"),
    (np.zeros((1, 2, 2, 2, 3)), "not RGB images"),
    (np.full((1, 2, 2, 3), np.nan), "in float16; use dtype bfloat16 or float32, and check"),
])  # fmt: skip
def test_pixels_out_of_range_are_refused_and_half_precision_is_told_what_to_use(array, message) -> None:
    with pytest.raises(FloatingPointError if np.isnan(array).any() else ValueError, match=message):
        diffusion._pixels(array.astype(np.float32), ["a dog"], "SomePipeline", "float16")


COMMON = {"images": 2, "steps": 50, "guidance": 7.5}


def test_a_model_is_sampled_as_its_entry_says() -> None:
    turbo = {"model": "stabilityai/sdxl-turbo", "sampling": {"steps": 4, "guidance": 0}}
    assert sampling.of_model("turbo", turbo, COMMON) == {"images": 2, "steps": 4, "guidance": 0}
    assert sampling.of_model("base", {"model": "a/b", "unet": "c"}, COMMON) == COMMON


@pytest.mark.parametrize(("entry", "message"), [
    ({"model": "a/b", "samplng": {}}, " has an unknown key 'samplng' .did you mean 'sampling'.*its keys are model, "),
    ({"model": "a/b", "sampling": {"step": 4}}, ": sampling: unknown key 'step'"),
    ({"model": "a/b", "sampling": {"steps": 0}}, ": sampling: steps must be at least 1, got 0"),
    ({"model": "a/b", "sampling": 4}, ": sampling must be a mapping"),
    ({"images": "a", "sampling": {"steps": 4}}, " is a folder of images"),
    ({"images": "a", "model": "a/b"}, " needs either a model, a folder of images or a file of boxes"),
    ({"unet": "a"}, " needs either"), ({"boxes": "a", "images": "b"}, " needs either"),
    ({"images": "a", "lora": "b"}, " is a folder of images, which are not sampled here; leave lora out"),
    ({"boxes": "a", "unet": "b"}, " is a file of boxes of images, which are not sampled here; leave unet out"),
])  # fmt: skip
def test_an_entry_that_cannot_be_is_one_line(entry, message) -> None:
    with pytest.raises(ValueError, match=f"models: mine{message}") as caught:
        sampling.of_model("mine", entry, COMMON)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("id", "steps", "guidance", "warned"), [
    ("stabilityai/sdxl-turbo", 50, 7.5, True), ("stabilityai/sdxl-turbo", 4, 7.5, True),
    ("stabilityai/sdxl-turbo", 50, 0.0, True), ("stabilityai/sdxl-turbo", 4, 0.0, False),
    ("Stabilityai/SDXL-Turbo", 1, 1.0, False), ("black-forest-labs/FLUX.1-schnell", 4, 0.0, False),
    ("black-forest-labs/FLUX.1-schnell", 50, 7.5, True), ("SimianLuo/LCM_Dreamshaper_v7", 8, 8.0, False),
    ("SimianLuo/LCM_Dreamshaper_v7", 50, 7.5, True), ("CompVis/stable-diffusion-v1-4", 50, 7.5, False),
])  # fmt: skip
def test_distilled_models_are_known(id, steps, guidance, warned) -> None:
    way = Sampling(steps=steps, guidance=guidance)
    told = sampling.against_card(id, way, sampling.recommended_sampling(id))
    assert (told is not None) == warned
    if told:
        assert told.startswith(f"WARNING: {id} is distilled: ")
        assert "\n" not in told and "into its entry of models" in told


def test_the_record_of_images_says_how_each_model_was_sampled(world, tmp_path, monkeypatch, capsys) -> None:
    own = load.load_pipeline

    def named(*args: Any, **more: Any) -> Any:
        pipeline, about = own(*args, **more)
        return pipeline, {**about, "id": "stabilityai/sd-turbo"}

    monkeypatch.setattr(load, "load_pipeline", named)
    for name, own_way in (("base", {}), ("turbo", {"sampling": {"steps": 1, "guidance": 0}})):
        way = sampling.of_model(name, {"model": "x", **own_way}, {**FAST, "steps": 6})
        record = generate.write_images(tmp_path / name, world.prompts, model=world.sd, sampling=way)
        kept = json.loads((tmp_path / name / "record.json").read_text())
        assert record["sampling"]["steps"] == way["steps"] == kept["sampling"]["steps"]
        assert ("is distilled" in capsys.readouterr().err) == (name == "base")


RECORDED = Path(__file__).with_name("behaviour")


def here() -> dict[str, str]:
    """What bytes are promised for: the same libraries on the same kind of processor."""
    about = {"machine": platform.machine(), "processor": torch.backends.cpu.get_cpu_capability()}
    return about | {"torch": torch.__version__, "diffusers": diffusers.__version__}


def fixed() -> dict[str, Any]:
    """Images of a fixed prompt by the shipped model, and its detector's boxes on the first."""
    torch.set_num_threads(1)
    pipeline, _ = load_pipeline(ROOT / "data" / "models" / "tiny-sd", device="cpu")
    table = pd.DataFrame({"prompt_id": [0], "caption": ["a dog to the left of a cat"]})
    way = Sampling(images=2, steps=6, guidance=5.0, scheduler="DPMSolverMultistepScheduler")
    images = np.stack([image for _, _, image in diffusion.sample(pipeline, table, way)])
    judge = detectors.load(ROOT / "data" / "models" / "tiny-owlvit", device="cpu")
    return {"images": images, "boxes": judge.detect(list(images), [("dog", "cat")] * 2, floor=0.1)}


def test_the_behaviour_of_sampling_and_detection_is_the_recorded_one() -> None:
    """Where it differs on purpose, raise BEHAVIOUR (sampling.py, detections.py) and record by running this file."""
    made, about = fixed(), json.loads((RECORDED / "about.json").read_text())
    assert about["sampling"] == sampling.BEHAVIOUR and about["detection"] == detections.BEHAVIOUR
    recorded = np.stack([np.asarray(Image.open(RECORDED / f"{i}.png")) for i in range(2)])
    off = np.abs(made["images"].astype(int) - recorded.astype(int))
    found = pd.DataFrame(about["boxes"])
    if about["here"] == here():
        assert off.max() == 0
    assert off.max() <= 2, "a level or two: sums are rounded in another order"
    assert made["boxes"].label.tolist() == found.label.tolist()
    np.testing.assert_allclose(made["boxes"][["score", *"xywh"]], found[["score", *"xywh"]], atol=0.05)


def test_images_follow_the_behaviour_and_not_the_code(world, tmp_path, monkeypatch, capsys) -> None:
    run = store_run.Run(tmp_path / "run", "04_test")

    how = {"model": str(world.sd), "sampling": FAST}

    def draw() -> int:
        folder, _ = run.stage("images", generate.write_images, {"prompts": world.prompts}, heavy=True, **how)
        return min(path.stat().st_mtime_ns for path in folder.rglob("*.webp"))

    first = draw()
    monkeypatch.setattr(store_run, "code_digest", lambda module=None: "a changed comment")
    assert draw() == first and capsys.readouterr().err.count("made by other code") == 0
    for module in (generate, sampling):
        monkeypatch.setattr(module, "BEHAVIOUR", sampling.BEHAVIOUR + 1)
    assert draw() > first and "images.before" in capsys.readouterr().err


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    made = fixed()
    for number, image in enumerate(made["images"]):
        Image.fromarray(image).save(RECORDED / f"{number}.png")
    rows = made["boxes"].astype(dict.fromkeys(("score", *"xywh"), float)).round(4).to_dict("list")
    about = {"sampling": sampling.BEHAVIOUR, "detection": detections.BEHAVIOUR, "here": here(), "boxes": rows}
    (RECORDED / "about.json").write_text(json.dumps(about, indent=1) + "\n")
