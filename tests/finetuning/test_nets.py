"""Families and processes: each trains as its published script does, and Stable Diffusion as it always has."""

import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from torch.nn import functional
from tuning import distance, net_of, tune, weights

from sr4g_utils.finetuning import loop
from sr4g_utils.finetuning.batches import Batch, Text
from sr4g_utils.models import pipelines
from sr4g_utils.models.load import load_pipeline


@pytest.fixture
def any_precision():
    """accelerate keeps one precision per process; a test that wants another must say so."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize(("model", "precision"), [("v1.4", "float32"), ("v2.1", "float32"), ("v1.4", "bfloat16")])
def test_stable_diffusion_ends_with_the_bytes_of_a_plain_loop(
    world, tmp_path, monkeypatch, any_precision, model, precision
):
    real, seen = loop.diffusion_loss, []
    monkeypatch.setattr(loop, "diffusion_loss", lambda *given: seen.append(given[2:]) or real(*given))
    tune(world, tmp_path, model, steps=4, detector=None, precision=precision, warmup=2, ema=0.9999)
    pipeline = load_pipeline(world.models / model, device="cpu")[0]
    schedule, unet = DDPMScheduler.from_config(pipeline.scheduler.config), pipeline.unet.train()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1, weight_decay=0.01, fused=True)
    mean = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    for step, (batch, states) in enumerate(seen):
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timestep)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            predicted = unet(noisy, batch.timestep, states["encoder_hidden_states"]).sample.float()
        velocity = schedule.get_velocity(batch.latents, batch.noise, batch.timestep)
        functional.mse_loss(predicted, batch.noise if model == "v1.4" else velocity).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2)
        optimiser.step()
        optimiser.zero_grad()
        for name, weight in unet.named_parameters():
            mean[name].lerp_(weight.detach(), 1 - (1 + step) / (10 + step))
    assert len(seen) == 4 and distance(weights(tmp_path / "last"), mean) == 0


def _levels(shift: float) -> torch.Tensor:
    share = torch.arange(1000, 0, -1, dtype=torch.float32) / 1000
    return shift * share / (1 + (shift - 1) * share)


def _straight(batch: Batch, shift: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timesteps and what is predicted, as in diffusers' scripts for flow matching."""
    sigma = _levels(shift)[batch.timestep]
    mixed = sigma.view(-1, 1, 1, 1)
    return (1 - mixed) * batch.latents + mixed * batch.noise, 1000 * sigma, batch.noise - batch.latents


def _noised(pipeline: Any, batch: Batch) -> torch.Tensor:
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    return schedule.add_noise(batch.latents, batch.noise, batch.timestep)


def _encoded(pipeline: Any, texts: list[str], *keys: int, **options: Any) -> list[torch.Tensor]:
    """Text states as the pipeline makes them, one text at a time."""
    with torch.no_grad():
        each = [pipeline.encode_prompt(text, **options) for text in texts]
    return [torch.cat([one[key] for one in each]) for key in keys]


def published_sdxl(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/text_to_image/train_text_to_image_lora_sdxl.py"""
    states, pooled = _encoded(pipeline, texts, 0, 2, do_classifier_free_guidance=False)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * len(texts))
    conditions = {"time_ids": sizes, "text_embeds": pooled}
    predicted = pipeline.unet(
        _noised(pipeline, batch), batch.timestep, states, added_cond_kwargs=conditions, return_dict=False
    )
    return functional.mse_loss(predicted[0], batch.noise)


def published_sd3(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/dreambooth/train_dreambooth_lora_sd3.py, without its equivalent ``precondition_outputs``"""
    options = {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
    states, pooled = _encoded(pipeline, texts, 0, 2, **options)
    x, t, target = _straight(batch, pipeline.scheduler.config.shift)
    predicted = pipeline.transformer(
        hidden_states=x, timestep=t, encoder_hidden_states=states, pooled_projections=pooled, return_dict=False
    )
    return ((predicted[0] - target) ** 2).flatten(1).mean(1).mean()


def published_flux(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/dreambooth/train_dreambooth_lora_flux.py"""
    states, pooled = _encoded(pipeline, texts, 0, 1, prompt_2=None)
    x, t, target = _straight(batch, 1.0)
    n, channel, h, w = x.shape
    packed = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(n, h * w // 4, channel * 4)
    rows, columns = torch.meshgrid(torch.arange(h // 2.0), torch.arange(w // 2.0), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    guidance = torch.full([n], 3.5) if pipeline.transformer.config.guidance_embeds else None
    (predicted,) = pipeline.transformer(
        hidden_states=packed, timestep=t / 1000, guidance=guidance, pooled_projections=pooled,
        encoder_hidden_states=states, txt_ids=torch.zeros(states.shape[1], 3), img_ids=ids, return_dict=False,
    )  # fmt: skip
    wanted = target.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(packed.shape)
    return ((predicted - wanted) ** 2).flatten(1).mean(1).mean()


def published_sana(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/dreambooth/train_dreambooth_lora_sana.py"""
    instruction = pipelines.defaults(pipeline)["complex_human_instruction"]
    assert len("".join(instruction)) > 1000
    options = {"do_classifier_free_guidance": False, "complex_human_instruction": instruction}
    states, mask = _encoded(pipeline, texts, 0, 1, **options)
    x, t, target = _straight(batch, pipeline.scheduler.config.shift)
    predicted = pipeline.transformer(
        hidden_states=x, encoder_hidden_states=states, encoder_attention_mask=mask, timestep=t, return_dict=False
    )
    return ((predicted[0] - target) ** 2).flatten(1).mean(1).mean()


def published_pixart(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/research_projects/pixart/train_pixart_controlnet_hf.py, without its control net"""
    states, mask = _encoded(pipeline, texts, 0, 1, do_classifier_free_guidance=False)
    predicted = pipeline.transformer(
        _noised(pipeline, batch), encoder_hidden_states=states, encoder_attention_mask=mask, timestep=batch.timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
    )[0]  # fmt: skip
    assert predicted.shape[1] == 2 * batch.noise.shape[1]  # its variance is learnt
    return functional.mse_loss(predicted.chunk(2, dim=1)[0], batch.noise)


PUBLISHED = {
    "StableDiffusionXLPipeline": published_sdxl, "StableDiffusion3Pipeline": published_sd3,
    "FluxPipeline": published_flux, "SanaPipeline": published_sana, "PixArtSigmaPipeline": published_pixart,
    "PixArtAlphaPipeline": published_pixart,
}  # fmt: skip
TEXTS = ["a dog to the left of a cat", "a cup above a bed", "a bus"]


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory):
    """``folders(name)``: the tiny pipeline of a class, made once."""

    @functools.cache
    def folder(name: str) -> Path:
        made = tiny_pipelines.pipeline(tmp_path_factory.mktemp(name) / "it", name.replace("Sigma", "Alpha"))
        if "Sigma" in name:
            diffusers.PixArtSigmaPipeline.from_pretrained(made).save_pretrained(made)
        return made

    return folder


def gradients(network: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", PUBLISHED)
def test_loss_and_gradient_are_those_of_the_published_script(tiny_folders, name):
    pipeline, _ = load_pipeline(tiny_folders(name), device="cpu")
    net, draw = net_of(pipeline, 16), torch.Generator().manual_seed(0)
    size = 16 // pipeline.vae_scale_factor
    latents, noise = torch.randn(2, 3, pipeline.vae.config.latent_channels, size, size, generator=draw)
    batch = Batch(latents, noise, torch.tensor([20, 500, 970]), np.arange(3))
    states = Text(net, TEXTS, 512, 0)(np.arange(3))
    ours = loop.diffusion_loss(net.module, net, batch, states)
    theirs = PUBLISHED[name](pipeline, batch, TEXTS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    a, b = gradients(net.module, ours), gradients(net.module, theirs)
    assert a.keys() == b.keys() and sum(value.abs().sum() for value in a.values()) > 0.1
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5)
