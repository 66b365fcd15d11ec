"""Models found, checked and loaded from local folders and from a Hub on this machine; every failure in one line."""

import json
import shutil
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import constants, hf_api
from safetensors.torch import load_file, save_file

from sr4g_utils import models
from sr4g_utils.models import ModelError, Source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in tiny.VERSIONS:
        tiny.stable_diffusion(folder / version, version)
    tiny.owlvit(folder / "owlvit")
    return folder


@pytest.fixture
def pipeline(made: Path, tmp_path: Path) -> Path:
    """A copy of v1.4 to be damaged."""
    return Path(shutil.copytree(made / "v1.4", tmp_path / "v1.4"))


# ------------------------------------------------------------------------------------------------------ local folders


LAYOUTS = [("v1.4", "epsilon", 64), ("v2.1-base", "epsilon", 64), ("v2.1", "v_prediction", 96)]


@pytest.mark.parametrize(("version", "prediction", "pixels"), LAYOUTS)
def test_the_three_layouts(made: Path, version: str, prediction: str, pixels: int) -> None:
    loaded, record = models.load_pipeline(made / version, device="cpu")
    assert record["prediction_type"] == prediction and record["resolution"] == [pixels, pixels]
    assert record["class"] == "StableDiffusionPipeline" and record["id"] == version and record["commit"] is None
    assert loaded.safety_checker is None and not record["safety_checker"]
    weights = made / version / "unet" / "diffusion_pytorch_model.safetensors"
    assert record["files"]["unet/diffusion_pytorch_model.safetensors"] == sha256(weights.read_bytes()).hexdigest()
    assert not any(name.startswith("safety_checker/") for name in record["files"])
    assert record["parameters"] > 100_000 and str(made) not in json.dumps(record)


def test_precision_and_safety_checker(made: Path) -> None:
    loaded, record = models.load_pipeline(made / "v1.4", "bfloat16", "cpu", safety_checker=True)
    assert {p.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder) for p in part.parameters()} == {
        torch.bfloat16
    }
    assert record["safety_checker"] and record["dtype"] == "bfloat16"
    assert any(name.startswith("safety_checker/") for name in record["files"])
    with pytest.raises(ModelError, match=r"unknown precision 'half'; choose one of float32, bfloat16, float16"):
        models.load_pipeline(made / "v1.4", "half", "cpu")
    detector, _, record = models.load_detector(made / "owlvit", "bfloat16", "cpu")
    assert detector.dtype == torch.bfloat16 and record["resolution"] == [64, 64] and record["model_type"] == "owlvit"


def test_a_fine_tuned_unet_takes_the_place_of_the_pipelines_own(made: Path, tmp_path: Path) -> None:
    first, _ = models.load_pipeline(made / "v1.4", device="cpu")
    first.unet.conv_out.bias.data.fill_(3)
    first.unet.save_pretrained(tmp_path / "best")
    loaded, record = models.load_pipeline(made / "v1.4", device="cpu", unet=tmp_path / "best")
    assert (loaded.unet.conv_out.bias == 3).all() and record["unet"] == "best"
    assert "fine-tuned/diffusion_pytorch_model.safetensors" in record["files"]
    with pytest.raises(ModelError, match="no such folder of a fine-tuned UNet"):
        models.load_pipeline(made / "v1.4", device="cpu", unet=tmp_path / "worst")


def test_checksums(made: Path, pipeline: Path, tmp_path: Path) -> None:
    sums = tmp_path / "SHA256SUMS"
    _, record = models.load_pipeline(pipeline, device="cpu")
    sums.write_text("".join(f"{value}  {name}\n" for name, value in record["files"].items()))
    source = Source(folder=str(pipeline), checksums=str(sums))
    models.load_pipeline(source, device="cpu")
    (pipeline / "vae" / "extra.json").write_text("{}")
    with pytest.raises(ModelError, match=r"vae/extra.json is not listed in SHA256SUMS"):
        models.load_pipeline(source, device="cpu")
    (pipeline / "vae" / "extra.json").unlink()
    weights = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model.safetensors has sha256 .* as in SHA256SUMS"):
        models.load_pipeline(source, device="cpu")
    with pytest.raises(ModelError, match="nowhere are not readable"):
        models.load_pipeline(Source(folder=str(made / "v1.4"), checksums="nowhere"), device="cpu")


def cut(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def index(**changes) -> object:
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGE = {
    "damaged or only partly downloaded; delete it and fetch it again": cut,
    "unet has only pickled weights, which are never read; convert them to safetensors": pickled,
    "unet has no weights; fetch it again": lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "the part 'vae' is missing from its folder": lambda f: shutil.rmtree(f / "vae"),
    "model_index.json is missing from its folder; it is not such a model": lambda f: (f / "model_index.json").unlink(),
    "model_index.json is not valid JSON": lambda f: (f / "model_index.json").write_text("{"),
    "its pipeline is code of its own": index(_class_name=["pipeline", "Mine"]),
    "its unet is code of its own (mine.Net), which is never run": index(unet=["mine", "Net"]),
    "the files do not load as a model": lambda f: (f / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel", "sample_size": "large"}'
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_folders(pipeline: Path, message: str) -> None:
    DAMAGE[message](pipeline)
    with pytest.raises(ModelError) as caught:
        models.load_pipeline(pipeline, device="cpu")
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("v1.4: ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"id": "a/b", "rev": "x"}, "unknown field `rev`; its keys are id, revision, mirrors"),
        ({"id": 3}, "Expected `str | null`, got `int`"),
        ({}, "neither 'folder' nor 'id' is given"),
        ({"folder": "nowhere"}, "there is no folder nowhere; correct the profile's 'folder', or give an 'id'"),
    ],
)
def test_wrong_sources(value: dict, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.load_pipeline(value, device="cpu")
    assert message in str(caught.value)


def test_words(made: Path) -> None:
    tokenizer = tiny.tokenizer()
    models.check_words(tokenizer, ["a dog", "a cat"])
    models.check_words(tokenizer, [])
    with pytest.raises(ValueError, match=r"prompt 'a a a a a .* has 80 tokens, but the model reads 75; shorten it"):
        models.check_words(tokenizer, ["a " * 80])


def test_words_outside_a_whole_word_vocabulary() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "dog": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", model_max_length=8)
    models.check_words(tokenizer, ["a dog"])
    with pytest.raises(ValueError, match="prompt 'a unicorn': the model's vocabulary lacks 'unicorn'"):
        models.check_words(tokenizer, ["a dog", "a unicorn"])


# ---------------------------------------------------------------------------------------------------------------- Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as downloads need: models/{id}/revision, models/{id}/tree and resolve."""

    folders: dict[str, Path]  # of the models that there are
    asked: list[str]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0].strip("/").removeprefix("api/models/")
        owner, name, *rest = path.split("/")
        if (
            code := {"gated": "GatedRepo", "missing": "RepoNotFound", "withdrawn": "DisabledRepo"}.get(name)
        ) is not None:
            return self.answer(
                404 if name == "missing" else 403,
                b"{}",
                {
                    "X-Error-Code": code,
                    "X-Error-Message": "Access to this resource is disabled." if name == "withdrawn" else name,
                },
            )
        folder = self.folders[name]
        files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["revision"] or not rest:
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": file, "size": at.stat().st_size, "oid": file} for file, at in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode())
        data = files["/".join(rest[2:])].read_bytes() if "/".join(rest[2:]) in files else None
        if data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(data).hexdigest()}"'})

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Hub on this machine, with an empty cache."""
    Hub.folders, Hub.asked = {path.name: path for path in made.iterdir()}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield
    server.shutdown()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE say to a fresh process: huggingface_hub reads them once, when imported."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)


def load(kind: str, **source: object) -> str:
    """The commit that was loaded, or the error."""
    try:
        return getattr(models, f"load_{kind}")(source, device="cpu")[-1]["commit"]
    except ModelError as error:
        assert "\n" not in str(error)
        return str(error)


def test_models_from_a_hub(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloaded, by mirror, gated, withdrawn, missing, a wrong revision; then offline from the cache."""
    assert load("pipeline", id="CompVis/v1.4") == f"CompVis/v1.4@{COMMIT}"
    assert not any("safety_checker" in path and path.endswith("safetensors") for path in Hub.asked)
    mirrored = load("pipeline", id="stabilityai/missing", mirrors=[f"community/v2.1@{COMMIT}"])
    assert mirrored == f"community/v2.1@{COMMIT}"
    assert load("detector", id="google/owlvit") == f"google/owlvit@{COMMIT}"
    gated = load("pipeline", id="a/gated")
    assert "a/gated: it is gated: accept its licence at https://huggingface.co/a/gated and run `hf auth login`" in gated
    assert gated.endswith("Or copy the model here and give its path as 'folder'")
    neither = load("pipeline", id="a/missing", mirrors=["b/withdrawn"])
    assert "a/missing: no such model on the Hub (or a private one)" in neither
    assert "b/withdrawn: it was withdrawn from the Hub; name a mirror" in neither
    assert "it has no revision 'v9'; correct 'revision'" in load("pipeline", id="CompVis/v1.4", revision="v9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("pipeline", id="CompVis/v1.4") == f"CompVis/v1.4@{COMMIT}"
    offline = load("pipeline", id="CompVis/v2.1-base")
    assert "CompVis/v2.1-base: not (wholly) in the cache, and the Hub cannot be reached; connect once" in offline


def test_half_downloaded_models(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted download leaves is said offline, and completed by the next attempt."""
    whole = load("pipeline", id="CompVis/v2.1-base")
    (weights,) = tmp_path.rglob("snapshots/*/unet/*.safetensors")
    weights.resolve().rename(weights.resolve().with_suffix(".incomplete"))
    weights.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        answer = load("pipeline", id="CompVis/v2.1-base")
    assert "CompVis/v2.1-base: not (wholly) in the cache, and the Hub cannot be reached; connect once" in answer
    assert load("pipeline", id="CompVis/v2.1-base") == whole == f"CompVis/v2.1-base@{COMMIT}"


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    answer = load("pipeline", id="CompVis/v1.4")
    assert "not (wholly) in the cache, and the Hub cannot be reached; connect once" in answer
