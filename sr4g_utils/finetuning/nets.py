"""The families of models that can be fine-tuned: what differs between them, a class each.

A family says which part of the pipeline learns, which of its layers a low-rank adaptation changes, how latents are
normalised, what the network reads of a caption, and how it is called; its process (:mod:`.processes`) has the loss. A
new family is a class here.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxPipeline, QwenImagePipeline
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor

from ..models import pipelines
from .choices import Choices
from .processes import Ddpm, Flow

States = dict[str, Tensor]  # what a network reads of captions, by name; a row for each caption
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # the text's stream, too


class Net:
    """A pipeline's network that learns, of the class ``network`` and called ``part`` in the pipeline. ``targets`` are
    the ends of the names of the layers that a low-rank adaptation changes; ``packed`` x ``packed`` latents are one
    pixel to the network."""

    families: ClassVar[list[type["Net"]]] = []
    title: ClassVar[str]
    network: ClassVar[str]
    part: ClassVar[str] = "transformer"
    targets: ClassVar[tuple[str, ...]] = ATTENTION
    packed: ClassVar[int] = 1
    kind: ClassVar[type[Ddpm | Flow]] = Flow
    idle: tuple[str, ...] = ()  # layers whose output nothing reads: they get no gradient, and learn nothing

    def __init_subclass__(cls) -> None:
        Net.families.append(cls)

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return type(getattr(pipeline, cls.part, None)).__name__ == cls.network

    def __init__(self, pipeline: Any, name: str, resolution: int | None, c: Choices) -> None:
        self.pipeline, self.c = pipeline, c
        config, vae = self.module.config, pipeline.vae.config
        channels = getattr(vae, "latent_channels", None) or vae.z_dim
        if config.in_channels != channels * self.packed**2:
            kind = "UNet" if self.part == "unet" else self.part
            both = f"takes {config.in_channels} channels, but its VAE makes {channels}"
            raise ValueError(f"model: {name}'s {kind} {both}; name a text-to-image model")
        if c.guidance_embed is not None and not getattr(config, "guidance_embeds", False):
            raise ValueError(f"guidance_embed: {name} is told no guidance; leave it out")
        self.process = self.kind(pipeline.scheduler, c, name)
        factor = pipeline.vae_scale_factor * max(self.packed, getattr(config, "patch_size", 1))
        if not resolution:
            raise ValueError(f"resolution: {name} does not say its own; name one, a multiple of {factor}")
        if resolution % factor:
            raise ValueError(f"resolution: {resolution} is no multiple of {factor}, the VAE's factor")
        self.resolution = resolution
        self.scale, self.shift = self.moments(vae)

    def moments(self, vae: Any) -> tuple[Any, Any]:
        """What latents are multiplied by, after what is taken from them: numbers, or float32 (channel, 1, 1)."""
        return vae.scaling_factor, getattr(vae, "shift_factor", None) or 0.0

    @property
    def module(self) -> Any:
        return getattr(self.pipeline, self.part)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def encode(self, texts: list[str]) -> States:
        """What the network reads of captions, as the pipeline itself makes it; of "", where it draws unguided."""
        raise NotImplementedError

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        """The network's prediction at timesteps ``t`` of the scheduler."""
        raise NotImplementedError


class UNet(Net):
    title, network, part, kind = "Stable Diffusion 1 and 2", "UNet2DConditionModel", "unet", Ddpm

    def __init__(self, pipeline: Any, name: str, resolution: int | None, c: Choices) -> None:
        super().__init__(pipeline, name, resolution, c)
        if self.device.type == "cpu":  # where the fused attention's backward takes a third of a step
            self.module.set_attn_processor(AttnProcessor())

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        if not super().fits(pipeline):
            return False
        config = pipeline.unet.config
        return config.addition_embed_type in (None, "text") and not config.class_embed_type  # "text": of the states

    def encode(self, texts: list[str]) -> States:
        states, _ = self.pipeline.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        return network(x, t, **states).sample


class UNetXL(UNet):
    """Told, as when it draws by itself, that its images are of the resolution and not cropped."""

    title = "Stable Diffusion XL"

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        xl = type(pipeline).__name__.startswith("StableDiffusionXL")
        return xl and pipeline.unet.config.addition_embed_type == "text_time"

    def encode(self, texts: list[str]) -> States:
        prompt = {"prompt": texts, "device": self.device, "do_classifier_free_guidance": False}
        states, _, pooled, _ = self.pipeline.encode_prompt(**prompt)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not text for text in texts], device=pooled.device)
            states, pooled = states.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        size = (self.resolution, self.resolution)
        sizes = torch.tensor([[*size, 0, 0, *size]], device=x.device, dtype=x.dtype).expand(len(x), -1)
        added = {"text_embeds": states["text_embeds"], "time_ids": sizes}
        return network(x, t, states["encoder_hidden_states"], added_cond_kwargs=added).sample


class SD3(Net):
    title, network = "Stable Diffusion 3 and 3.5", "SD3Transformer2DModel"
    targets = JOINT

    def encode(self, texts: list[str]) -> States:
        prompt = {"prompt": texts, "prompt_2": None, "prompt_3": None, "device": self.device}
        states, _, pooled, _ = self.pipeline.encode_prompt(**prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        return network(x, timestep=t, **states, return_dict=False)[0]


class Flux(Net):
    """Its latents are packed, 2 x 2 to a token; one that was distilled is told a guidance."""

    title, network, packed = "FLUX.1", "FluxTransformer2DModel", 2
    targets = (*JOINT, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")

    def encode(self, texts: list[str]) -> States:
        states, pooled, _ = self.pipeline.encode_prompt(texts, None, device=self.device)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        n, channel, h, w = x.shape
        guidance = x.new_full([n], 3.5 if self.c.guidance_embed is None else self.c.guidance_embed)
        ids = FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, x.device, x.dtype)
        predicted = network(
            FluxPipeline._pack_latents(x, n, channel, h, w), timestep=t / 1000, **states, img_ids=ids,
            txt_ids=x.new_zeros(states["encoder_hidden_states"].shape[1], 3), return_dict=False,
            guidance=guidance if self.module.config.guidance_embeds else None,
        )[0]  # fmt: skip
        return FluxPipeline._unpack_latents(predicted, h, w, vae_scale_factor=1)


class QwenImage(Net):
    """Latents of its VAE, one frame of a video, are normalised by channel and packed as FLUX's. Captions are read after
    its template, whose own tokens are dropped; they are as long as the longest, so a mask goes with them."""

    title, network, packed = "Qwen-Image", "QwenImageTransformer2DModel", 2
    targets = JOINT

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return super().fits(pipeline) and type(pipeline).__name__ == "QwenImagePipeline"  # others are given images

    def __init__(self, pipeline: Any, name: str, resolution: int | None, c: Choices) -> None:
        super().__init__(pipeline, name, resolution, c)
        last = f"transformer_blocks.{len(self.module.transformer_blocks) - 1}"  # its text goes nowhere
        self.idle = (f"{last}.attn.to_add_out", f"{last}.txt_mlp")

    def moments(self, vae: Any) -> tuple[Any, Any]:
        mean, deviation = np.array([vae.latents_mean, vae.latents_std], np.float32)[..., None, None]
        return 1 / deviation, mean

    def encode(self, texts: list[str]) -> States:
        longest = pipelines.defaults(self.pipeline)["max_sequence_length"]
        prompts = [text or " " for text in texts]  # it is given a space where it draws unguided
        states, mask = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=longest)
        mask = states.new_ones(states.shape[:2]) if mask is None else mask  # none is where all are of one length
        return {"encoder_hidden_states": states, "encoder_hidden_states_mask": mask.bool()}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        n, channel, h, w = x.shape
        predicted = network(
            QwenImagePipeline._pack_latents(x, n, channel, h, w), timestep=t / 1000, **states,
            img_shapes=[[(1, h // 2, w // 2)]] * n, return_dict=False,
        )[0]  # fmt: skip
        return QwenImagePipeline._unpack_latents(predicted, h, w, vae_scale_factor=1)[:, :, 0]


class Sana(Net):
    """Reads its captions after the instruction that its pipeline puts before each prompt, but for the empty one."""

    title, network = "Sana", "SanaTransformer2DModel"

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return super().fits(pipeline) and not pipeline.transformer.config.guidance_embeds  # Sana Sprint, distilled

    def encode(self, texts: list[str]) -> States:
        instruction = pipelines.defaults(self.pipeline)["complex_human_instruction"]
        prompt = {"device": self.device, "do_classifier_free_guidance": False}
        states, mask, _, _ = self.pipeline.encode_prompt(texts, **prompt, complex_human_instruction=instruction)
        if empty := [i for i, text in enumerate(texts) if not text]:
            states, mask = states.clone(), mask.clone()
            states[empty], mask[empty], _, _ = self.pipeline.encode_prompt("", **prompt)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        return network(x, timestep=t * self.module.config.timestep_scale, **states, return_dict=False)[0]


class PixArt(Net):
    title, network, kind = "PixArt-α and PixArt-Σ", "PixArtTransformer2DModel", Ddpm

    def encode(self, texts: list[str]) -> States:
        prompt = {"device": self.device, "do_classifier_free_guidance": False}
        states, mask, _, _ = self.pipeline.encode_prompt(texts, **prompt)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def call(
        self, network: Any, x: Float[Tensor, "n channel h w"], t: Tensor, states: States
    ) -> Float[Tensor, "n out h w"]:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.module.use_additional_conditions:
            added = {"resolution": x.new_full([len(x), 2], self.resolution), "aspect_ratio": x.new_ones(len(x), 1)}
        return network(x, timestep=t, **states, added_cond_kwargs=added, return_dict=False)[0]


def of(pipeline: Any, record: dict[str, Any], c: Choices) -> Net:
    """The family of a loaded pipeline. Raises ValueError where there is none, or the model cannot be trained so."""
    family = next((family for family in Net.families if family.fits(pipeline)), None)
    if family is None:
        known = ", ".join(family.title for family in Net.families)
        raise ValueError(f"model: {record['id']} is a {record['class']}; what can be fine-tuned is {known}")
    return family(pipeline, record["id"], c.resolution or (record["resolution"] or [None])[0], c)
