"""The miniature's models as they are built, small enough to train on two cores: a Stable Diffusion, and detectors of
two families, an OWL-ViT and an RT-DETR."""

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedTokenizerFast,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)

from ...dataset.captions import TEMPLATES
from ...dataset.world import NAMES, SIZE
from ...relations import RELATIONS

LENGTH = 24  # tokens of a caption
SLOTS = 4  # positions at the end of a caption's states, one for each thing that it names
WIDTH = 128  # of the text states


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
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=8, norm_num_groups=8,
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
    """On latents of 16 × 16, 8 × 8 and 4 × 4. Captions are attended to at the last two; pooled, they are told to all
    (by cross-attention alone, nothing of captions was learnt in the first 160,000 pictures)."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=8, out_channels=8, block_out_channels=(48, 96, 160), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16, encoder_hid_dim=WIDTH,
        addition_embed_type="text", addition_embed_type_num_heads=4,
    )  # fmt: skip


SCHEDULE = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.02, "steps_offset": 1,
    "prediction_type": "v_prediction",
}  # fmt: skip


def make_detector() -> OwlViTForObjectDetection:
    text = {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16, **_special(tokenizer(16)),
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 6,
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


def make_rtdetr() -> RTDetrForObjectDetection:
    """On maps of 16 × 16, 8 × 8 and 4 × 4; it knows the world's names alone."""
    channels, width = (48, 96, 128), 64
    backbone = RTDetrResNetConfig(
        embedding_size=48, hidden_sizes=list(channels), depths=[2, 2, 1], layer_type="basic", out_indices=[1, 2, 3]
    )
    detector = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone, freeze_backbone_batch_norms=False, encoder_in_channels=list(channels),
            feat_strides=[4, 8, 16], encode_proj_layers=[2], encoder_hidden_dim=width, encoder_ffn_dim=192,
            encoder_attention_heads=4, d_model=width, decoder_in_channels=[width] * 3, decoder_ffn_dim=192,
            decoder_layers=2, decoder_attention_heads=4, num_queries=16, num_denoising=8, initializer_range=0.07,
            id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
        )
    )  # fmt: skip
    # transformers gives batch normalisation weights near 0, which are meant to be loaded
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    nn.init.zeros_(detector.model.enc_bbox_head.layers[-1].weight)  # a box of the anchor's size, where the anchor is
    return detector
