"""Models found on the Hub, its mirrors and in its cache, from a Hub on this machine; every failure in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import tiny
from hub import Hub, use
from huggingface_hub import constants

from sr4g_utils.models import detectors
from sr4g_utils.models.load import load_detector, load_pipeline
from sr4g_utils.models.source import ModelError
from sr4g_utils.running.profiles import load_profile
from sr4g_utils.store.files import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def published(models, tmp_path_factory):
    """The tiny models, and some in other forms."""
    folder = copytree(models, tmp_path_factory.mktemp("published"), dirs_exist_ok=True)
    tiny.pickle(copytree(folder / "v1.4", folder / "pickled"))
    tiny.pickle(copytree(folder / "owlvit", folder / "pickled-owlvit"))
    for file in list(copytree(folder / "v1.4", folder / "half").glob("*/*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    (folder / "lora").mkdir()
    (folder / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The Hub on this machine, with an empty cache."""
    folders: dict[str, Path | str] = {f"a/{path.name}": path for path in published.iterdir()}
    folders |= {f"CompVis/v1.4@{COMMIT}": published / "v1.4", "a/pickled@refs/pr/3": published / "v1.4"}
    with Hub(folders | {"a/gated": "gated", "b/withdrawn": "withdrawn"}) as hub:
        use(monkeypatch, hub.url, tmp_path)
        yield hub


def load(kind: str, **source: object) -> str:
    """The commit that was loaded, or the error."""
    try:
        if kind == "detector":
            return load_detector(source, device="cpu", families=detectors.FAMILIES)[-1]["commit"]
        return load_pipeline(source, device="cpu")[-1]["commit"]
    except ModelError as error:
        assert "\n" not in str(error)
        return str(error)


def test_models_from_a_hub_and_then_offline_from_the_cache(hub, monkeypatch):
    assert load("pipeline", id="CompVis/v1.4", revision=COMMIT) == f"CompVis/v1.4@{COMMIT}"
    assert not any("safety_checker" in path for path in hub.fetched)
    assert load("pipeline", id="a/missing", mirrors=["a/v2.1@main"]) == f"a/v2.1@{hub.commit('a/v2.1@main')}"
    assert load("detector", id="a/owlvit") == f"a/owlvit@{hub.commit('a/owlvit@main')}"
    gated = load("pipeline", id="a/gated")
    assert "a/gated: it is gated: accept its licence at https://huggingface.co/a/gated and run `hf auth login`" in gated
    assert gated.endswith("Or copy the model here and give its path as 'folder'")
    neither = load("pipeline", id="a/missing", mirrors=["b/withdrawn"])
    assert "a/missing: no such model on the Hub (or a private one)" in neither
    assert "b/withdrawn: it was withdrawn from the Hub; name a mirror" in neither
    assert "it has no revision 'v9'; correct 'revision'" in load("pipeline", id="CompVis/v1.4", revision="v9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("pipeline", id="CompVis/v1.4", revision=COMMIT) == f"CompVis/v1.4@{COMMIT}"
    assert load("detector", id="a/owlvit") == f"a/owlvit@{hub.commit('a/owlvit@main')}"
    offline = load("pipeline", id="a/v2.1-base")
    assert "a/v2.1-base: not (wholly) in the cache, and the Hub cannot be reached; connect once" in offline


def test_what_is_in_the_cache_is_not_fetched_again(hub, tmp_path, capfd, monkeypatch):
    whole = load("pipeline", id="a/v1.4")
    fetched = len([path for path in hub.asked if "/resolve/" in path])
    capfd.readouterr()
    load("pipeline", id="a/v1.4")
    assert len([path for path in hub.asked if "/resolve/" in path]) == fetched
    assert capfd.readouterr().err == ""
    for file in tmp_path.rglob("trees/*.json"):  # an older version kept no list of files
        file.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("pipeline", id="a/v1.4") == whole


def test_half_downloaded_models(hub, tmp_path, monkeypatch):
    """What an interrupted download leaves is said offline, and completed by the next attempt."""
    whole = load("pipeline", id="a/v2.1-base")
    (weights,) = tmp_path.rglob("snapshots/*/unet/*.safetensors")
    weights.resolve().rename(weights.resolve().with_suffix(".incomplete"))
    weights.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        answer = load("pipeline", id="a/v2.1-base")
    assert "a/v2.1-base: not (wholly) in the cache, and the Hub cannot be reached; connect once" in answer
    assert load("pipeline", id="a/v2.1-base") == whole == f"a/v2.1-base@{hub.commit('a/v2.1-base@main')}"
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "nothing")  # no connection
    answer = load("pipeline", id="CompVis/v1.4")
    assert "not (wholly) in the cache, and the Hub cannot be reached; connect once" in answer
    assert "detectors are owlvit, owlv2" in load("detector", id="facebook/detr-resnet-50")


FORMS = {
    name: f"{name}: {part} has only pickled weights, which are not read unasked; name a conversion's "
    f"`revision: refs/pr/N` (see https://huggingface.co/{name}/discussions), or add `pick"
    for name, part in {"a/pickled": "text_encoder", "a/pickled-owlvit": "the folder"}.items()
} | {
    "a/half": "a/half: text_encoder has weights of the variant fp16 only; add `variant: fp16` to the model",
    "a/lora": "a/lora has no model_index.json: it is not in the layout of diffusers or transformers; a LoRA",
    "a/owlvit": "a/owlvit has no model_index.json: it is not in the layout of diffusers or transformers",
}


@pytest.mark.parametrize("id", FORMS)
def test_weights_in_a_form_that_is_not_read_are_refused_before_the_download(hub, id):
    assert FORMS[id] in load("detector" if "pickled-owlvit" in id else "pipeline", id=id)
    assert {path.removeprefix(f"{id}/") for path in hub.fetched} <= {"model_index.json", "config.json"}


def test_what_a_message_advises_helps(hub, tmp_path):
    assert load("pipeline", id="a/half", variant="fp16").startswith("a/half@")
    assert load("pipeline", id="a/pickled", revision="refs/pr/3") == f"a/pickled@{hub.commit('a/pickled@refs/pr/3')}"
    assert not any(path.endswith(".bin") for path in hub.fetched)
    assert load("pipeline", id="a/pickled", pickled=True) == f"a/pickled@{hub.commit('a/pickled@main')}"
    assert load("detector", id="a/pickled-owlvit", pickled=True).startswith("a/pickled-owlvit@")
    assert load("pipeline", id="a/pickled", mirrors=["a/v1.4"]) == f"a/v1.4@{hub.commit('a/v1.4@main')}"
    name = "unet/diffusion_pytorch_model.safetensors"  # the profile's checksums hold for mirrors
    (tmp_path / "sums").write_text(f"{'0' * 64}  {name}\n")
    answer = load("pipeline", id="a/missing", mirrors=["a/v1.4"], checksums=str(tmp_path / "sums"))
    assert f"a/missing: {name} has sha256" in answer and "as in sums; fetch it again" in answer


def change(file: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


@pytest.mark.parametrize(("kind", "name", "edit", "message"), [
    ("pipeline", "v1.4", change("model_index.json", _class_name="KandinskyV22Pipeline"), "takes no prompt"),
    ("pipeline", "v1.4", change("model_index.json", unet=["mine", "Net"]), "its unet is code of its own"),
    ("detector", "owlvit", change("config.json", model_type="sam"), "names the model_type 'sam'; detectors are"),
])  # fmt: skip
def test_models_of_no_use_are_refused_before_the_download(models, tmp_path, monkeypatch, kind, name, edit, message):
    edit(copytree(models / name, tmp_path / "model"))
    with Hub({"a/b": tmp_path / "model"}) as hub:
        use(monkeypatch, hub.url, tmp_path / "cache")
        assert message in load(kind, id="a/b")
        assert hub.fetched <= {"a/b/model_index.json", "a/b/config.json"}


def test_kandinskys_decoder_is_refused_before_the_download(shared, tmp_path, monkeypatch):
    """The published file, of which the weights are 5 GB."""
    id = "kandinsky-community/kandinsky-2-2-decoder"
    with Hub({id: shared / "hub" / id.replace("/", "--")}) as hub:
        use(monkeypatch, hub.url, tmp_path)
        answer = load("pipeline", id=id)
    told = "which takes no prompt (it needs image_embeds, negative_image_embeds); name a text-to-image model"
    assert answer == f"{id} is a KandinskyV22Pipeline, {told}"


@pytest.mark.parametrize(("profile", "name"), [("paper", "v1.4"), ("paper_v21", "v2.1")])
def test_other_weights_under_a_profiles_own_id_are_refused(models, tmp_path, monkeypatch, profile, name):
    source = load_profile(profile, [], ROOT)["03_finetuning"]["model"]
    with Hub({f"{source['id']}@{source['revision']}": models / name}) as hub:
        use(monkeypatch, hub.url, tmp_path)
        answer = load("pipeline", **source)
        assert load("pipeline", id=source["id"], revision=source["revision"]).endswith(source["revision"])
    assert "unet/diffusion_pytorch_model.safetensors has sha256" in answer and "fetch it again" in answer
