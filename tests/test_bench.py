"""The benchmark of the stages: what it counts, the record it leaves, and the table made of records."""

import math
from pathlib import Path
from typing import Any

import bench_stages
import diffusers
import pytest
import torch
from torch.nn import functional as F

from sr4g_utils.models.load import load_pipeline
from sr4g_utils.store import files


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench")
    bench_stages.main(["--only", "generate", "detect", "finetune", "--small", "--out", str(out)])
    (path,) = out.iterdir()
    assert path.stem == bench_stages.file_name(bench_stages.device_name())
    return files.read_json(path)


@pytest.mark.slow("whole runs")
def test_every_field_of_the_record_is_filled(record: dict[str, Any]) -> None:
    about = ("device", "date", "torch", "diffusers", "transformers", "machine")
    assert all(record[name] for name in about) and record["sizes"] == "tiny"
    assert list(record["stages"]) == ["generate", "detect", "finetune"]
    for stage in record["stages"].values():
        assert stage["mfu"] is None and stage["dtype"] == "float32", "no tensor core's peak is for float32"
        assert (stage["peak_memory_gb"] is None) == (not torch.cuda.is_available())
        numbers = ("images", "seconds", "baseline_images_per_s", "ratio", "tflop_per_image")
        assert all(math.isfinite(stage[name]) and stage[name] > 0 for name in numbers) and stage["baseline"]
        assert stage["images_per_s"] == pytest.approx(stage["images"] / stage["seconds"])
        assert stage["ratio"] == pytest.approx(stage["images_per_s"] / stage["baseline_images_per_s"])


@pytest.mark.slow("whole runs")
def test_what_generation_counts_is_the_sum_of_its_parts(record: dict[str, Any], tmp_path: Path) -> None:
    pipeline, _ = load_pipeline(bench_stages.tiny.stable_diffusion(tmp_path / "sd"), device="cpu")
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    pipeline.scheduler.set_timesteps(5)
    with torch.no_grad():
        text = bench_stages.flops(lambda: pipeline.text_encoder(torch.ones(2, 77, dtype=torch.long)))
        denoise = bench_stages.flops(lambda: pipeline.unet(latents, 1, states))
        decode = bench_stages.flops(lambda: pipeline.vae.decode(latents[:1]))
    parts = text + len(pipeline.scheduler.timesteps) * denoise + decode
    assert record["stages"]["generate"]["tflop_per_image"] == pytest.approx(parts / 1e12)


def test_operations_are_those_of_the_closed_forms() -> None:
    linear, x = torch.nn.Linear(30, 50), torch.randn(7, 30)
    assert bench_stages.flops(lambda: linear(x)) == 2 * 7 * 30 * 50
    assert bench_stages.flops(lambda: linear(x.requires_grad_()).sum().backward()) == 3 * 2 * 7 * 30 * 50
    q, k, v = torch.randn(3, 1, 2, 64, 16, requires_grad=True)  # 2 heads of 64 places and 16 numbers
    forward = 2 * (2 * 2 * 64 * 64 * 16)
    assert bench_stages.flops(lambda: F.scaled_dot_product_attention(q, k, v)) == forward
    trained = bench_stages.flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert trained == 3 * forward, "what a fast kernel computes again does not count"


def test_the_page_says_what_the_published_unet_takes_and_has_the_table_of_the_records() -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        trained = bench_stages.training_flops(unet)
    page = bench_stages.PAGE.read_text(encoding="utf-8")
    assert f"| {trained / 1e12:.2f} TFLOP |" in page
    assert bench_stages.with_table(page, bench_stages.RECORDS) == page, "run `python tests/bench_stages.py --table`"


# L40 is another card than L4, and not listed
@pytest.mark.parametrize(("device", "dtype", "peak"), [
    ("NVIDIA H100 80GB HBM3", "float16", 989e12), ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
    ("NVIDIA GeForce RTX 4090", "float16", 165e12), ("NVIDIA L4", "float16", 121e12), ("NVIDIA L40", "float16", None),
    ("Tesla T4", "float16", 65e12), ("Tesla V100-SXM2-16GB", "bfloat16", None),
    ("NVIDIA H100 80GB HBM3", "float32", None), ("cpu", "float16", None),
])  # fmt: skip
def test_a_peak_is_of_the_card_and_the_precision(device: str, dtype: str, peak: float | None) -> None:
    assert bench_stages.peak(device, dtype) == peak


def test_mfu_is_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_stages, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    stage = bench_stages.measured(10, 2.0, int(989e11), 41.25, "bfloat16", "a plain loop", 2.5)
    assert stage["mfu"] == pytest.approx(0.5) and stage["ratio"] == 2
    assert bench_stages.told(stage) == ", 98.9 TFLOP per image, MFU 50.0%, at most 41.2 GB"


@pytest.mark.slow("whole runs")
def test_a_table_of_records(tmp_path: Path, record: dict[str, Any]) -> None:
    assert bench_stages.table(tmp_path) == "No card has been measured yet."
    stage = record["stages"]["generate"] | {"images_per_s": 3.456, "baseline_images_per_s": 1.2, "ratio": 2.88}
    stage |= {"tflop_per_image": 36.252, "mfu": 0.4012, "peak_memory_gb": 9.87, "dtype": "float16"}
    card = {"device": "NVIDIA Made-up 9000", "date": "2026-01-02", "torch": "2.13.0", "sizes": "published"}
    name = bench_stages.file_name(card["device"])
    assert name == "nvidia-made-up-9000"
    stages = {"generate": stage, "finetune": stage | {"mfu": None, "peak_memory_gb": None}}
    files.write_json(tmp_path / f"{name}.json", record | card | {"stages": stages})
    lines = bench_stages.table(tmp_path).splitlines()
    assert lines[2] == (
        "| NVIDIA Made-up 9000 | generate, float16 | 3.46 | the stock pipeline, one prompt at a time | 1.20 | 2.9 | "
        "36.3 | 40.1% | 9.9 GB | 2026-01-02, torch 2.13.0, published sizes |"
    )
    assert lines[3].split(" | ")[7:9] == ["–", "–"] and len({line.count("|") for line in lines}) == 1
    page = f"Before.\n{bench_stages.MARKS[0]}\nold\n{bench_stages.MARKS[1]}\nAfter.\n"
    made = bench_stages.with_table(page, tmp_path)
    start, end = bench_stages.MARKS
    assert made == "\n\n".join([f"Before.\n{start}", "\n".join(lines), f"{end}\nAfter.\n"])


def test_a_run_on_a_cpu_or_of_tiny_models_leaves_no_record_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(bench_stages, "run", lambda benches, full, out: asked.append((full, out)))
    monkeypatch.setattr(bench_stages, "device_name", lambda: "NVIDIA L4")
    for device, options in [
        ("cpu", []), ("cuda", []), ("cuda", ["--small"]), ("cuda", ["--only", "detect"]),
        ("cuda", ["--only", "finetune", "detect", "generate"]),
    ]:  # fmt: skip
        monkeypatch.setattr(bench_stages, "default_device", lambda device=device: device)
        bench_stages.main(options)
    whole = bench_stages.RECORDS / "nvidia-l4.json"
    assert asked == [(False, None), (True, whole), (False, None), (True, None), (True, whole)]
