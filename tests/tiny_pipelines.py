"""Today's text-to-image pipelines with random weights, small enough for tests, as folders that diffusers saves.

One builder for each class; the sizes are about those of diffusers' own tests, and the tokenizers are made here.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

CHAT = "{% for turn in messages %}{% if turn.content is string %}{{ turn.content }}{% else %}{{ turn.content[0].text }}"
CHAT += "{% endif %}{% endfor %}"
Parts = dict[str, Any]


def _bytes() -> transformers.Qwen2Tokenizer:
    """A tokenizer of the kind that Qwen and Gemma have, whose tokens are bytes."""
    letters = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[IMG]", "[IMG_END]"]
    vocabulary = {token: i for i, token in enumerate([*letters, "[IMG_BREAK]"])}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=CHAT, model_max_length=4096)


def _clip(kind: Any = transformers.CLIPTextModelWithProjection) -> tuple[Any, Any]:
    tokens = tiny.tokenizer()
    return tokens, kind(transformers.CLIPTextConfig(**tiny._text(tokens, 77, projection_dim=32)))


def _t5(folder: Path) -> tuple[Any, Any]:
    tokens = tiny.t5_tokenizer(folder.parent)
    config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return tokens, transformers.T5EncoderModel(config)


def _qwen3(kind: Any, layers: int) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    return kind(transformers.Qwen3Config(**sizes, num_hidden_layers=layers, head_dim=8, vocab_size=262))


def _vae(channels: int, levels: int = 1, kind: Any = diffusers.AutoencoderKL, **more: Any) -> Any:
    return kind(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=channels, sample_size=16, **more,
    )  # fmt: skip


SHIFTED = {"shift_factor": 0.0609, "scaling_factor": 1.5035}


def sdxl(folder: Path) -> Parts:
    (tokens, text), (tokens_2, text_2) = _clip(transformers.CLIPTextModel), _clip()
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, attention_head_dim=(2, 4), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return {
        "unet": unet, "vae": _vae(4, 2), "scheduler": diffusers.EulerDiscreteScheduler(**schedule), "tokenizer": tokens,
        "text_encoder": text, "tokenizer_2": tokens_2, "text_encoder_2": text_2,
    }  # fmt: skip


def sd3(folder: Path) -> Parts:
    (tokens, text), (tokens_2, text_2), (tokens_3, text_3) = _clip(), _clip(), _t5(folder)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": _vae(4, **SHIFTED), "tokenizer": tokens, "text_encoder": text,
        "tokenizer_2": tokens_2, "text_encoder_2": text_2, "tokenizer_3": tokens_3, "text_encoder_3": text_3,
    }  # fmt: skip


def flux(folder: Path, guidance_embeds: bool = True) -> Parts:
    (tokens, text), (tokens_2, text_2) = _clip(transformers.CLIPTextModel), _t5(folder)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=guidance_embeds,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": _vae(1, **SHIFTED), "tokenizer": tokens, "text_encoder": text,
        "tokenizer_2": tokens_2, "text_encoder_2": text_2,
    }  # fmt: skip


def _flux2(text: Any) -> Parts:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    vae = _vae(1, kind=diffusers.AutoencoderKLFlux2, use_quant_conv=False, use_post_quant_conv=False)
    return {"transformer": transformer, "vae": vae, "text_encoder": text}


def flux2(folder: Path) -> Parts:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    text = {"hidden_size": 16, "num_hidden_layers": 31, "num_attention_heads": 4, "intermediate_size": 16}
    config = transformers.Mistral3Config(
        text_config={**text, "model_type": "mistral", "vocab_size": 262, "num_key_value_heads": 2, "head_dim": 4},
        vision_config={**vision, "model_type": "pixtral", "image_size": 30, "patch_size": 6},
        image_token_index=259,
    )
    images = transformers.PixtralImageProcessor(patch_size=6, size={"longest_edge": 30})
    processor = transformers.PixtralProcessor(images, _bytes(), patch_size=6, chat_template=CHAT)
    return _flux2(transformers.Mistral3ForConditionalGeneration(config)) | {"tokenizer": processor}


def flux2_klein_kv(folder: Path) -> Parts:
    return _flux2(_qwen3(transformers.Qwen3ForCausalLM, 28)) | {"tokenizer": _bytes()}


def sana(folder: Path) -> Parts:
    blocks, channels = ("ResBlock", "EfficientViTBlock"), (8, 8)
    text = transformers.Gemma2Config(
        head_dim=8, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=262,
        num_key_value_heads=2,
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "text_encoder": transformers.Gemma2Model(text), "tokenizer": _bytes(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }  # fmt: skip


def _qwen2_5() -> Any:
    layers = {"hidden_size": 16, "intermediate_size": 16}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 262}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**layers, **heads, "rope_scaling": rope, "rope_theta": 1e6},
        vision_config={**layers, "depth": 1, "num_heads": 2, "out_hidden_size": 16},
        image_token_id=259, video_token_id=260, vision_start_token_id=257, vision_end_token_id=258,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _attentive(transformer: torch.nn.Module) -> None:
    """Random weights that read their texts: else all prompts give nearly the same image."""
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            weight.mul_(100 if "add_v_proj.weight" in name else 10 if "attn.to_out.0.weight" in name else 1)


def hunyuan_image(folder: Path) -> Parts:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=16, text_embed_2_dim=32, rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 64, 64), layers_per_block=1,
        scaling_factor=0.476986, spatial_compression_ratio=8, sample_size=128,
    )  # fmt: skip
    _attentive(transformer)
    glyphs = transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4)
    return {
        "transformer": transformer, "vae": vae, "text_encoder": _qwen2_5(), "tokenizer": _bytes(),
        "text_encoder_2": transformers.T5EncoderModel(glyphs), "tokenizer_2": transformers.ByT5Tokenizer(),
        "guider": diffusers.AdaptiveProjectedMixGuidance(), "ocr_guider": diffusers.AdaptiveProjectedMixGuidance(),
    }  # fmt: skip


def qwen_image(folder: Path) -> Parts:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    _attentive(transformer)
    return {"transformer": transformer, "vae": vae, "text_encoder": _qwen2_5(), "tokenizer": _bytes()}


def z_image(folder: Path) -> Parts:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # else whatever lay in memory
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    vae = _vae(16, 2, scaling_factor=0.3611, shift_factor=0.1159)
    text = _qwen3(transformers.Qwen3Model, 2)
    return {"transformer": transformer, "vae": vae, "text_encoder": text, "tokenizer": _bytes()}


BUILDERS: dict[str, Callable[[Path], Parts]] = {
    "StableDiffusionXLPipeline": sdxl, "StableDiffusion3Pipeline": sd3, "FluxPipeline": flux,
    "Flux2Pipeline": flux2, "Flux2KleinKVPipeline": flux2_klein_kv, "SanaPipeline": sana,
    "HunyuanImagePipeline": hunyuan_image, "QwenImagePipeline": qwen_image, "ZImagePipeline": z_image,
}  # fmt: skip
NAMES = ["StableDiffusionPipeline", "PixArtAlphaPipeline", *BUILDERS]


def pipeline(folder: Path, name: str, **options: Any) -> Path:
    """A folder of a pipeline of ``NAMES``."""
    if name not in BUILDERS:
        return {"StableDiffusionPipeline": tiny.stable_diffusion, "PixArtAlphaPipeline": tiny.pixart}[name](folder)
    torch.manual_seed(0)
    parts = partial(BUILDERS[name], **options)(folder)
    parts = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **parts}
    getattr(diffusers, name)(**parts).save_pretrained(folder)
    for part, tokens in parts.items():
        if isinstance(tokens, transformers.T5Tokenizer):  # as published: transformers saves it without its vocabulary
            (folder / part / "tokenizer.json").unlink()
            shutil.copy(folder.parent / "spiece.model", folder / part / "spiece.model")
    return folder
