"""Families and processes: each trains as its published script does, and Stable Diffusion as it always has."""

import json
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from refusals import refuses
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tuning import distance, net_of, tune, weights

from sr4g_utils.__main__ import main
from sr4g_utils.finetuning import batches, loop, nets
from sr4g_utils.finetuning.batches import Batch, Text
from sr4g_utils.finetuning.checkpoints import Learner, save_network
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.latents import posterior
from sr4g_utils.finetuning.processes import Flow
from sr4g_utils.models import diffusion, lora, pipelines
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.sampling import Sampling
from sr4g_utils.models.source import ModelError
from sr4g_utils.running import profiles
from sr4g_utils.store.files import ROOT


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
    unet.set_attn_processor(AttnProcessor())  # as on every CPU
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


def published_qwen_image(pipeline: Any, batch: Batch, texts: list[str]) -> torch.Tensor:
    """examples/dreambooth/train_dreambooth_lora_qwen_image.py, whose captions are filled up to the longest"""
    with torch.no_grad():
        each = [pipeline.encode_prompt(text)[0][0] for text in texts]  # of one text there is no mask
    states = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
    mask = torch.arange(states.shape[1]) < torch.tensor([[len(one)] for one in each])
    x, t, target = _straight(batch, 1.0)
    n, channel, h, w = x.shape
    packed, wanted = (
        image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(n, h * w // 4, channel * 4)
        for image in (x, target)
    )
    (predicted,) = pipeline.transformer(
        hidden_states=packed, timestep=t / 1000, encoder_hidden_states=states, encoder_hidden_states_mask=mask,
        img_shapes=[(1, h // 2, w // 2)] * n, return_dict=False,
    )  # fmt: skip
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
    "PixArtAlphaPipeline": published_pixart, "QwenImagePipeline": published_qwen_image,
}  # fmt: skip
TEXTS = ["a dog to the left of a cat", "a cup above a bed", "a bus"]


def gradients(network: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", PUBLISHED)
def test_loss_and_gradient_are_those_of_the_published_script(tiny_folders, name):
    pipeline, _ = load_pipeline(tiny_folders(name), device="cpu")
    net, draw = net_of(pipeline, 16), torch.Generator().manual_seed(0)
    size = 16 // pipeline.vae_scale_factor
    channels = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.z_dim
    latents, noise = torch.randn(2, 3, channels, size, size, generator=draw)
    batch = Batch(latents, noise, torch.tensor([20, 500, 970]), np.arange(3))
    states = Text(net, TEXTS, 512, 0)(np.arange(3))
    ours = loop.diffusion_loss(net.module, net, batch, states)
    theirs = PUBLISHED[name](pipeline, batch, TEXTS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    a, b = gradients(net.module, ours), gradients(net.module, theirs)
    assert a.keys() == b.keys() and sum(value.abs().sum() for value in a.values()) > 0.1
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5)
    assert set(Learner(net, net.c).weights) <= a.keys(), "processes wait for the gradient of all that learns"


@pytest.mark.parametrize(("choices", "mean"), [
    ({"noise_levels": "uniform"}, 0.5005), ({}, 0.5), ({"logit_mean": 1.0}, 0.303), ({"logit_mean": -1.0}, 0.697),
    ({"noise_levels": "uniform", "shift": 3.0}, 0.676), ({"logit_std": 0.1, "shift": 3.0}, 0.75),
])  # fmt: skip
def test_the_mean_noise_of_each_way_to_draw_levels(choices, mean):
    flow, rng = Flow(diffusers.FlowMatchEulerDiscreteScheduler(), Choices(**choices), "it"), np.random.default_rng(0)
    drawn = flow.sigmas[[flow.draw(rng) for _ in range(20_000)]]
    assert drawn.mean().item() == pytest.approx(mean, abs=0.005)


def test_the_levels_are_of_a_scheduler_that_nobody_has_stepped():
    stepped = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    stepped.set_timesteps(1000)
    sana = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    flux = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    for scheduler, choices, shift in (
        (stepped, {}, 3.0),
        (sana, {}, 3.0),
        (sana, {"shift": 1.0}, 1.0),
        (flux, {}, 1.0),
    ):
        flow = Flow(scheduler, Choices(**choices), "it")
        torch.testing.assert_close(flow.sigmas, _levels(shift))
        torch.testing.assert_close(flow.timesteps, 1000 * _levels(shift))
    assert (stepped.sigmas[:-1] - _levels(3.0)).abs().max() > 0.005, "set_timesteps shifts once more"
    refuses("it has a DDPMScheduler, which does no flow matching", Flow, DDPMScheduler(), Choices(), "it")


@pytest.mark.parametrize(("kind", "weight"), [
    ("equal", lambda s: 1 + 0 * s), ("sigma_sqrt", lambda s: s**-2),
    ("cosmap", lambda s: 2 / torch.pi / (1 - 2 * s + 2 * s**2)),
])  # fmt: skip
def test_weights_are_by_level(kind, weight):
    flow = Flow(diffusers.FlowMatchEulerDiscreteScheduler(), Choices(loss_weights=kind), "it")
    latents, noise, level = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2), torch.tensor([0, 500, 999])
    loss = flow.loss(lambda x, t: torch.zeros_like(x), Batch(latents, noise, level, np.arange(3)))
    torch.testing.assert_close(loss, weight(_levels(1.0)[level]).mean())


def test_the_empty_caption_is_read_as_the_pipeline_draws_unguided(tiny_folders):
    """Sana's without its instruction; SDXL's is nothing."""
    for name in ("SanaPipeline", "StableDiffusionXLPipeline"):
        pipeline, _ = load_pipeline(tiny_folders(name), device="cpu")
        empty, own = (state[:1] for state in net_of(pipeline, 16).encode(["", TEXTS[0]]).values())
        _, _, theirs, mask = pipeline.encode_prompt(TEXTS[0], device="cpu", **({"negative_prompt": ""}))[:4]
        if name == "SanaPipeline":
            torch.testing.assert_close(empty, theirs)
            torch.testing.assert_close(own, mask)
        else:
            assert not empty.any() and not own.any()


def test_latents_of_a_vae_of_videos_are_one_frame_normalised_by_channel(tiny_folders):
    """What the pipeline does before it decodes gives the VAE's latents back."""
    pipeline, _ = load_pipeline(tiny_folders("QwenImagePipeline"), device="cpu")
    vae, mean, deviation = pipeline.vae, [0.5, -1.0, 0.0, 2.0], [2.0, 3.0, 0.5, 1.0]
    vae.register_to_config(latents_mean=mean, latents_std=deviation)
    net, pixels = net_of(pipeline, 16), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours, theirs = posterior(vae, pixels), vae.encode(pixels.unsqueeze(2)).latent_dist
    for moment, their in zip(ours.unbind(1), (theirs.mean, theirs.std), strict=True):
        torch.testing.assert_close(moment, their.squeeze(2))
    normal = (ours[:, 0].numpy() - net.shift) * net.scale
    back = torch.from_numpy(normal) * torch.tensor(deviation).view(4, 1, 1) + torch.tensor(mean).view(4, 1, 1)
    assert normal.dtype == np.float32 and normal.shape == (2, 4, 4, 4)
    torch.testing.assert_close(back, ours[:, 0])


def test_captions_of_several_lengths_are_kept_as_they_are_read_alone(tiny_folders, monkeypatch):
    pipeline, _ = load_pipeline(tiny_folders("QwenImagePipeline"), device="cpu")
    net = net_of(pipeline, 16)
    monkeypatch.setattr(batches, "TEXTS", 2)
    kept = Text(net, ["", *TEXTS], 512, 9)
    assert kept.cached
    states, masks = kept(np.arange(4)).values()
    for text, state, mask in zip([" ", *TEXTS], states, masks, strict=True):
        alone, _ = pipeline.encode_prompt(text)
        assert mask.sum() == alone.shape[1] and mask[: alone.shape[1]].all()
        torch.testing.assert_close(state[mask], alone[0], rtol=1e-5, atol=1e-5)


def drawn(pipeline: Any) -> np.ndarray:
    prompts = pd.DataFrame({"prompt_id": [0, 1], "caption": TEXTS[:2]})
    size = 32 if "Sana" in type(pipeline).__name__ else 16
    takes = {"images": 1, "steps": 2, "guidance": None, "size": [size, size]}
    return np.stack([image for *_, image in diffusion.sample(pipeline, prompts, Sampling.of(takes))]).astype(int)


LORAS = ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
         "SanaPipeline", "QwenImagePipeline"]  # fmt: skip


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_draws_the_same_after_stock_diffusers_has_loaded_it(tiny_folders, tmp_path, name):
    """Also with an alpha that is not its rank; nothing of the family's targets is missed."""
    pipeline, _ = load_pipeline(tiny_folders(name), device="cpu")
    base, net = drawn(pipeline), net_of(pipeline, 16, lora_rank=2, lora_alpha=7.0, ema=0.0)
    learner = Learner(net, net.c)
    with torch.no_grad():
        for weight in learner.weights.values():
            weight.normal_(generator=torch.Generator().manual_seed(weight.numel()))
    before = drawn(pipeline)
    assert np.abs(before - base).max() > 20 and learner.lora["layers"] * 2 == len(learner.weights)
    save_network(tmp_path, learner, Accelerator(cpu=True))
    stock = diffusers.DiffusionPipeline.from_pretrained(tiny_folders(name), safety_checker=None)
    stock.load_lora_weights(tmp_path)
    ours, record = load_pipeline(tiny_folders(name), device="cpu", lora=tmp_path)
    assert record["lora"] == {"name": tmp_path.name, "layers": learner.lora["layers"]}
    assert f"lora/{lora.FILE}" in record["files"]
    for after in (stock, ours):
        assert np.abs(drawn(after) - before).max() <= 1
    ends = {end for end in net.targets if any(f".{end}.lora_A." in key for key in learner.weights)}
    assert set(net.targets) - ends <= {"to_add_out"}, "each is there; the last of SD3's blocks has no text at its end"


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: {key.replace("transformer.", "unet.", 1): value for key, value in state.items()}, "none of its 7"),
    (lambda state: {key.replace("to_q", "to_z"): value for key, value in state.items()}, "only 6 of its 7 layers"),
    (lambda state: {"a": torch.ones(2)}, "has no layers of a LoRA"), (None, "is no whole file of safetensors"),
])  # fmt: skip
def test_a_lora_that_adapts_less_than_it_has_is_an_error(tiny_folders, tmp_path, change, message):
    pipeline, _ = load_pipeline(folder := tiny_folders("StableDiffusion3Pipeline"), device="cpu")
    net = net_of(pipeline, 16, lora_rank=2)
    save_network(tmp_path, Learner(net, net.c), Accelerator(cpu=True))
    (file := tmp_path / "other.safetensors").write_bytes(b"x" * 20)
    if change:
        save_file(change(load_file(tmp_path / lora.FILE)), file)
    with pytest.raises(ModelError, match=message) as caught:
        load_pipeline(folder, device="cpu", lora=file)
    assert "\n" not in str(caught.value)


def test_a_lora_of_a_family_that_diffusers_loads_none_for_is_refused(tiny_folders):
    pipeline, _ = load_pipeline(tiny_folders("PixArtSigmaPipeline"), device="cpu")
    net = net_of(pipeline, 16, lora_rank=2)
    refuses("diffusers loads no LoRA into a PixArtSigmaPipeline; set it to 0", Learner, net, net.c)
    pipeline, _ = load_pipeline(tiny_folders("SanaPipeline"), device="cpu")
    net = net_of(pipeline, 16, lora_rank=2)
    net.targets = ("to_z",)
    refuses("this SanaTransformer2DModel has none of the layers to_z", Learner, net, net.c)


def test_a_network_and_a_lora_are_told_apart(tiny_folders, tmp_path):
    sd3 = tiny_folders("StableDiffusion3Pipeline")
    (tmp_path / lora.FILE).touch()
    for options, message in (
        ({"unet": tmp_path}, "is a LoRA; give it as 'lora'"), ({"lora": tmp_path / "nowhere"}, "there is no such LoRA"),
        ({"lora": sd3 / "transformer"}, "it is a network's folder: give it as 'unet'"),
        ({"unet": sd3 / "vae"}, "its _class_name is AutoencoderKL, but the transformer of it has SD3Tr"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            load_pipeline(sd3, device="cpu", **options)


@pytest.mark.parametrize(("name", "choices"), [
    ("StableDiffusion3Pipeline", {"lora_rank": 2, "precision": "bfloat16"}),
    ("StableDiffusion3Pipeline", {}), ("SanaPipeline", {"lora_rank": 2, "resolution": 32}), ("PixArtSigmaPipeline", {}),
    ("QwenImagePipeline", {"lora_rank": 2}), ("QwenImagePipeline", {}),
])  # fmt: skip
def test_a_family_trains_is_validated_and_loads_again(world, tiny_folders, tmp_path, any_precision, name, choices):
    how: dict[str, Any] = {"steps": 2, "batch": 4, "validate_every": 2, "resolution": 16, **choices}
    how |= {"threshold": 0.01, "track": "tensorboard"}
    how["sampling"] = {"images": 1, "steps": 2, "size": [how["resolution"]] * 2, "guidance": None}
    result = tune(world, tmp_path / "run", str(tiny_folders(name)), **how)
    assert result["start"]["images"] == 14 and result["best"]["step"] == 2 and np.isfinite(result["loss_last"])
    tuned = {"lora" if "lora_rank" in choices else "unet": tmp_path / "run" / "last"}
    base, ours = (load_pipeline(tiny_folders(name), device="cpu", **more)[0] for more in ({}, tuned))
    assert np.abs(drawn(base) - drawn(ours)).max() > 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*")), "scores and images are tracked"
    if name == "SanaPipeline":
        (tmp_path / "p.csv").write_text("subject,relation,object\ndog,left of,cat\n")
        images = [str(tmp_path / "images"), "--prompts", str(tmp_path / "p.csv"), "--model", str(tiny_folders(name))]
        assert main(["generate", *images, "--lora", str(tuned["lora"]), "--set", "images=1", "--set", "steps=1"]) == 0
        record = json.loads((tmp_path / "images" / "record.json").read_text())["model"]
        assert record["lora"] == {"name": "last", "layers": result["lora"]["layers"]}
    if "lora_rank" in choices:
        base = choices.get("precision", "float32")
        assert result["lora"]["base"] == result["model"]["dtype"] == base and result["lora"]["alpha"] == 2
        assert {weight.dtype for weight in load_file(tmp_path / "run" / "last" / lora.FILE).values()} == {torch.float32}


def test_the_table_of_families_is_what_trains(tiny_folders):
    """`docs/cluster.md`, from the classes; that each trains, and by LoRA, is above."""
    rows = []
    for family in nets.Net.families:
        learns = "flow matching" if family.kind is Flow else "noise or velocity"
        ends = ", ".join(f"`{end}`" for end in family.targets)
        changes = "none: diffusers loads none into it" if family is nets.PixArt else ends
        rows.append(f"| {family.title} | `{family.network}` | {learns} | {changes} |")
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert text.split("| a LoRA changes |\n|---|---|---|---|\n")[1].split("\n\n")[0].splitlines() == rows, "\n".join(
        rows
    )
    trained = {type(net_of(load_pipeline(tiny_folders(name), device="cpu")[0], 16)) for name in {*PUBLISHED, *LORAS}}
    assert trained == set(nets.Net.families)


SIZES: dict[str, tuple[type, Any, dict[str, Any], int, tuple[int, int]]] = {  # the published configurations
    "sd35": (nets.SD3, diffusers.SD3Transformer2DModel, {
        "sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
        "joint_attention_dim": 4096, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    }, 8, (333, 2048)),
    "flux": (nets.Flux, diffusers.FluxTransformer2DModel, {"guidance_embeds": True}, 8, (512, 768)),
    "sana": (nets.Sana, diffusers.SanaTransformer2DModel, {"sample_size": 16}, 32, (300, 0)),
}  # fmt: skip


@pytest.mark.slow("counts on published sizes, without their weights")
@pytest.mark.parametrize("profile", SIZES)
def test_a_profile_s_operations_and_weights_are_counted(profile):
    family, network, sizes, side, (tokens, pooled) = SIZES[profile]
    notes = profiles.read_profile(profile)[1]["plan"]
    with torch.device("meta"):
        made = network(**sizes)
        width = made.config.get("joint_attention_dim") or made.config.caption_channels
        states = {"encoder_hidden_states": torch.empty(1, tokens, width)}
        more = {"pooled_projections": torch.empty(1, pooled)} if pooled else {}
        states |= more or {"encoder_attention_mask": torch.ones(1, tokens)}
        x, t = torch.empty(1, notes["latents"][1], 512 // side, 512 // side), torch.empty(1)
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=x.shape[1], scaling_factor=1.0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = SimpleNamespace(transformer=made, vae=vae, vae_scale_factor=side, scheduler=scheduler)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family(pipeline, "it", 512, Choices()).call(made, x, t, states)
    assert counter.get_total_flops() / 1e12 == pytest.approx(notes["teraflop"], abs=5e-4)
    assert sum(weight.numel() for weight in made.parameters()) == notes["unet_parameters"]
    ends = tuple(f".{end}" for end in family.targets)
    layers = [layer for name, layer in made.named_modules() if name.endswith(ends)]
    assert sum(layer.in_features + layer.out_features for layer in layers) == notes["lora_parameters"]
