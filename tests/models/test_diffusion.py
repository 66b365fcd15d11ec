"""Generation against the stock pipeline; noise by prompt alone; memory."""

import functools

import diffusers
import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_pipelines
import torch
from pretend import five_prompts
from refusals import refuses

from sr4g_utils.models import diffusion, load, pipelines
from sr4g_utils.models.sampling import Sampling
from sr4g_utils.models.source import ModelError

FAST = {"images": 2, "steps": 2, "batch": 4, "group": 2}
PROMPTS = five_prompts()


@pytest.fixture(scope="module")
def pipeline(models):
    return load.load_pipeline(models / "v1.4", device="cpu")[0]


def drawn(pipeline, prompts: pd.DataFrame = PROMPTS, **sampling) -> dict[tuple, np.ndarray]:
    made = diffusion.sample(pipeline, prompts, Sampling(**{**FAST, **sampling}))
    return {(id, index): image for id, index, image in made}


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("scheduler", [None, "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_images_equal_the_stock_pipeline(models, version, scheduler):
    """One prompt and one image at a time, prompts as text, through diffusers alone."""
    ours = drawn(load.load_pipeline(models / version, device="cpu")[0], scheduler=scheduler, steps=3)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(models / version, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    if scheduler:
        spacing = {"timestep_spacing": "linspace"}  # the class's own: diffusers would take what PNDM left in the folder
        stock.scheduler = getattr(diffusers, scheduler).from_config(stock.scheduler.config, **spacing)
    assert len(ours) == 2 * len(PROMPTS)

    def drawn_alone(caption: str, index: int):
        return stock(caption, num_inference_steps=3, generator=diffusion.noise(0, caption, index)).images[0]

    expected = {(row.prompt_id, n): drawn_alone(row.caption, n) for row in PROMPTS.itertuples() for n in range(2)}
    assert near(ours, expected)


LAID = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler",
        "HeunDiscreteScheduler", "DDIMScheduler", "DEISMultistepScheduler")  # fmt: skip


@pytest.mark.parametrize("name", LAID)
def test_a_named_scheduler_lays_its_steps_alike_in_a_published_folder_and_in_the_same_saved_by_diffusers(models, name):
    """A saved folder has all of its class's defaults as if somebody had chosen them."""
    saved = diffusers.StableDiffusionPipeline.from_pretrained(models / "v1.4", safety_checker=None)
    assert saved.scheduler.config["timestep_spacing"] == "leading"
    beta = {key: saved.scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    published = diffusers.DDPMPipeline(None, diffusers.PNDMScheduler(**beta, skip_prk_steps=True, steps_offset=1))
    stock = getattr(diffusers, name).from_config(published.scheduler.config)
    stock.set_timesteps(5)
    for own in (published, saved):
        ours = diffusion._scheduler(own, Sampling(scheduler=name))
        ours.set_timesteps(5)
        assert ours.timesteps.tolist() == stock.timesteps.tolist()
        chosen = diffusion.scheduling(own, Sampling(scheduler=name, timestep_spacing="trailing", steps_offset=0))
        assert chosen["class"] == name and (chosen["timestep_spacing"], chosen["steps_offset"]) == ("trailing", 0)
        assert diffusion.scheduling(own, Sampling())["class"] == "PNDMScheduler", "the model's own, as it is"
    with pytest.raises(ValueError, match="steps: 1000 do not fit the model's timesteps; take at most 998"):
        diffusion._scheduler(saved, Sampling(scheduler=name, timestep_spacing="leading", steps=1_000))
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler has no timestep_spacing; leave it out"):
        diffusion._scheduler(own, Sampling(scheduler="ScoreSdeVeScheduler", timestep_spacing="leading"))


def near(ours: dict, expected: dict) -> bool:
    """A level or two apart: sums are rounded in another order."""
    pairs = [(np.asarray(ours[key], int), np.asarray(expected[key], int)) for key in expected]
    return ours.keys() == expected.keys() and all(np.abs(a - b).max() <= 2 for a, b in pairs)


def test_noise_depends_on_prompt_and_number_alone(pipeline):
    all = drawn(pipeline)
    assert len({image.tobytes() for image in all.values()}) == len(all)
    other = drawn(pipeline, PROMPTS.iloc[::-1].assign(prompt_id=range(5)), batch=3, group=5)
    old = dict(zip(reversed(range(5)), PROMPTS.prompt_id, strict=True))
    assert near({(old[new], index): image for (new, index), image in other.items()}, all)
    assert not np.array_equal(all[7, 0], drawn(pipeline, PROMPTS.head(1), seed=1)[7, 0])
    # frozen: a change would silently make every recorded result another one
    first = torch.randint(1 << 30, (3,), generator=diffusion.noise(0, "a dog to the left of a cat", 1))
    assert first.tolist() == [281109045, 834866851, 820476019]
    assert diffusion.noise(1, "a", 0).initial_seed() != diffusion.noise(0, "a", 1).initial_seed()


class Other(diffusers.DiffusionPipeline):
    """A pipeline that is not Stable Diffusion: it gets its prompts as text, and only what its call takes."""

    def __init__(self, tokenizer, scheduler) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, scheduler=scheduler)

    @classmethod
    def around(cls, pipeline):
        other = cls(pipeline.tokenizer, pipeline.scheduler)
        other.draw, other.sizes = pipeline, []
        return other

    def __call__(self, prompt, num_inference_steps, generator, output_type):
        assert isinstance(prompt, list)
        self.sizes.append(len(prompt))
        return self.draw(prompt, num_inference_steps=num_inference_steps, generator=generator, output_type=output_type)


def test_a_pipeline_of_another_class(pipeline, capsys):
    other = Other.around(pipeline)
    assert near(drawn(other), drawn(pipeline)) and other.sizes == [4, 1, 4, 1, 2, 1], "one image of each group, alone"
    assert "WARNING" not in capsys.readouterr().err
    assert pipelines.applied(other, Sampling(guidance=3)).guidance is None
    assert "Other ignores guidance" in capsys.readouterr().err
    refuses("Other draws in one size only; leave size out", drawn, other, size=[8, 8])


def test_a_pipeline_whose_images_depend_on_the_batch_draws_them_alone(pipeline, capsys):
    class Mixed(Other):
        """As GLM-Image: of a batch, the first one's noise counts alone."""

        def __call__(self, prompt, num_inference_steps, generator, output_type):
            generator = [generator[0].clone_state() for _ in generator]
            return super().__call__(prompt, num_inference_steps, generator, output_type)

    mixed = Mixed.around(pipeline)
    assert near(drawn(mixed), drawn(pipeline)) and mixed.sizes == [4] + [1] * 11
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "Mixed draws" in lines[0] and "going on one image at a time" in lines[0]
    mixed.sizes.clear()
    assert near(drawn(mixed, batch=1), drawn(pipeline)) and mixed.sizes == [1] * 10


@pytest.mark.parametrize(("error", "line"), [
    (AttributeError("'list' has no\nattribute 'device'"), "AttributeError: 'list' has no attribute 'device'"),
    (NameError("name 'ftfi' is not defined", name="ftfi"), "install the package ftfi (pip install ftfi)"),
    (RuntimeError("size of tensor a (2) must match 8"), "and 3 more: RuntimeError: size of tensor a"),
    (KeyError("x"), "set batch to 1 in sampling"),
])  # fmt: skip
def test_any_failure_of_a_pipeline_is_one_line(pipeline, error, line):
    class Broken(Other):
        def __call__(self, prompt, generator):
            raise error

    with pytest.raises(ModelError) as caught:
        drawn(Broken.around(pipeline))
    text = str(caught.value)
    assert text.startswith("Broken fails on the prompt 'a") and line in text and "\n" not in text


SMALL = {"FluxPipeline": [16, 16], "Flux2Pipeline": [16, 16], "Flux2KleinKVPipeline": [16, 16]}
SMALL |= {"HunyuanImagePipeline": [16, 16], "QwenImagePipeline": [32, 32], "ZImagePipeline": [32, 32]}
UNBINNED = {"PixArtAlphaPipeline": [8, 8], "SanaPipeline": [32, 32]}


SLOW = {"HunyuanImagePipeline": pytest.mark.slow("six seconds, most of them its VAE's")}
DRAWN = [pytest.param(name, marks=SLOW.get(name, ())) for name in tiny_pipelines.NAMES]


@pytest.mark.parametrize("name", DRAWN)
def test_todays_pipelines_draw_as_stock_diffusers_does(tmp_path, name, capsys):
    """One prompt and one image at a time, by the stock pipeline's own defaults, within a level; in any batch; and
    guidance moves the image, or is said not to."""
    if name == "Flux2Pipeline":
        pytest.importorskip("torchvision", reason="FLUX.2's tokenizer is a processor that needs torchvision")
    folder = tiny_pipelines.pipeline(tmp_path / name, name)
    ours = load.load_pipeline(folder, device="cpu")[0]
    prompts, sampling = PROMPTS.head(2), {"size": SMALL.get(name), "steps": 2}
    images = drawn(ours, prompts, **sampling, batch=4)
    assert within(1, images, drawn(ours, prompts, **sampling, batch=1))
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    size = SMALL.get(name) or UNBINNED.get(name)
    options = {"height": size[0], "width": size[1]} if size else {}
    options |= {"use_resolution_binning": False} if name in UNBINNED else {}
    options |= {"negative_prompt": " "} if name == "QwenImagePipeline" else {}

    def alone(text: str, index: int):
        noise = diffusion.noise(0, text, index)
        return np.asarray(stock(prompt=text, num_inference_steps=2, generator=noise, **options)[0][0])

    expected = {(row.prompt_id, n): alone(row.caption, n) for row in prompts.itertuples() for n in range(2)}
    assert within(1, images, expected)
    capsys.readouterr()
    unguided = drawn(ours, prompts.head(1), **sampling, guidance=1)
    guided = drawn(ours, prompts.head(1), **sampling, guidance=30)
    ignored = pipelines.applied(ours, Sampling(guidance=9)).guidance is None
    assert ignored == (name == "Flux2KleinKVPipeline") == within(0, unguided, guided) == within(2, unguided, guided)
    assert ignored == ("ignores guidance as this model was made; the record says null" in capsys.readouterr().err)


def within(levels: int, one: dict, other: dict) -> bool:
    return all(np.abs(one[key].astype(int) - other[key]).max() <= levels for key in one.keys() & other.keys())


def test_what_a_call_takes_is_what_is_recorded(tmp_path, pipeline, capsys):
    def calls(folder: str, name: str, options: dict, **chosen):
        loaded = load.load_pipeline(tiny_pipelines.pipeline(tmp_path / folder, name, **options), device="cpu")[0]
        capsys.readouterr()
        sampling = pipelines.applied(loaded, Sampling(**chosen))
        return loaded, sampling, pipelines.call_record(loaded, sampling)

    _, sampling, call = calls("sana", "SanaPipeline", {})
    assert (call["height"], call["width"], call["use_resolution_binning"]) == (32, 32, False), "not 1024, and shrunk"
    assert sampling.guidance == call["guidance_scale"] == 4.5 and len(call["complex_human_instruction"]) > 5
    assert "SanaPipeline puts 1," in (line := capsys.readouterr().err) and "before each prompt" in line
    _, sampling, call = calls("qwen", "QwenImagePipeline", {})
    assert (
        (sampling.guidance, sampling.negative_prompt) == (4.0, " ") == (call["true_cfg_scale"], call["negative_prompt"])
    )
    flux, sampling, call = calls(
        "flux", "FluxPipeline", {"guidance_embeds": False}, guidance=7.5, negative_prompt="a cat"
    )
    assert (sampling.guidance, sampling.negative_prompt, call["negative_prompt"]) == (None, "", "")
    assert (
        "FluxPipeline ignores guidance" in (lines := capsys.readouterr().err) and "not read a negative prompt" in lines
    )
    refuses(r"FluxPipeline draws 14 x 14 pixels where size is 15 x 15", drawn, flux, PROMPTS.head(1), size=[15, 15])
    long = PROMPTS.head(1).assign(caption="a dog " * 50)
    assert drawn(flux, long, size=[16, 16], images=1), "too long for CLIP, which its T5 reads"
    refuses("has 1200 tokens, but the model reads 511; shorten it", drawn, flux, long.assign(caption="a dog " * 300))
    assert drawn(pipeline, PROMPTS.head(1), size=[32, 48])[7, 0].shape == (32, 48, 3)
    assert Sampling(size=[32, 48]).record()["size"] == [32, 48] and not {"size", "offload"} & Sampling().record().keys()


def test_offload_is_recorded_where_it_is_done(models, capsys, monkeypatch):
    loaded, _ = load.load_pipeline(models / "v1.4", device="cpu", offload=True)
    assert capsys.readouterr().err == "v1.4: offload does nothing without a GPU\n"
    assert not pipelines.applied(loaded, Sampling(offload=True)).offload
    calls = []
    monkeypatch.setattr(type(loaded), "enable_model_cpu_offload", lambda self, device: calls.append(device))
    load._place(loaded, torch.device("cuda", 1), True, "v1.4")
    loaded.unet._hf_hook = None  # as accelerate marks what it moves
    assert calls == [torch.device("cuda", 1)] and pipelines.applied(loaded, Sampling(offload=True)).offload


def test_guidance_in_a_part_of_its_own():
    """HunyuanImage 2.1's; a pipeline's own is left alone."""

    class Guided(diffusers.DiffusionPipeline):
        def __init__(self, guider, ocr_guider) -> None:
            super().__init__()
            self.register_modules(guider=guider, ocr_guider=ocr_guider)

        def __call__(self, prompt, distilled_guidance_scale=3.25):
            raise NotImplementedError

    parts = [diffusers.AdaptiveProjectedMixGuidance(guidance_scale=scale) for scale in (3.5, 4.5)]
    guided = Guided(*parts)
    own = pipelines.applied(guided, Sampling()).guidance
    assert own == 3.5 and pipelines.guiders(guided, own) == {} and pipelines.arguments(guided, Sampling()) == {}
    other = pipelines.guiders(guided, 7.0)
    assert {name: part.config.guidance_scale for name, part in other.items()} == {"guider": 7.0, "ocr_guider": 7.0}
    assert pipelines.guidance_argument(Guided(None, None)) is None


def test_out_of_memory_halves_the_batch(pipeline, monkeypatch, capsys):
    expected, sizes = drawn(pipeline), []
    own = type(pipeline).__call__

    @functools.wraps(own)
    def short(self, *args, **options):
        sizes.append(len(options["prompt_embeds"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return own(self, *args, **options)

    monkeypatch.setattr(type(pipeline), "__call__", short)
    made = drawn(pipeline)
    assert sizes == [4, 2, 2, 2, 2, 2] and "going on with batches of 2" in capsys.readouterr().err
    assert near(made, expected)
    failing = functools.wraps(own)(lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a bug")))
    monkeypatch.setattr(type(pipeline), "__call__", failing)
    with pytest.raises(ModelError, match=r"StableDiffusionPipeline fails on the prompt .* a bug"):
        drawn(pipeline)


def test_the_pipeline_is_left_as_it_was_and_wrong_schedulers_and_words_are_named(pipeline):
    own = pipeline.scheduler
    made = diffusion.sample(pipeline, PROMPTS, Sampling(**FAST, scheduler="DDIMScheduler"))
    next(made)
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    made.close()
    assert pipeline.scheduler is own
    for message, prompts, scheduler in (
        (r"no scheduler 'Euler'; this pipeline takes .*DPMSolverMultistepScheduler", PROMPTS, "Euler"),
        ("no scheduler 'UNet2DConditionModel'", PROMPTS, "UNet2DConditionModel"),
        ("has 100 tokens, but the model reads 75; shorten it", PROMPTS.assign(caption="a dog " * 50), None),
    ):
        refuses(message, drawn, pipeline, prompts, scheduler=scheduler)


def test_a_profiles_sampling():
    for values, message in (
        ({"step": 3}, r"unknown key 'step' .did you mean .steps.\?.; its keys are images, steps"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"size": [512]}, r"or null .2 values., got .512."),
        ({"size": [512, 0]}, "size must be at least 8 and at most 65,536, got 0"),
        ({"guidance": float("nan")}, "guidance must be at least 0"),
    ):
        refuses(message, Sampling.of, values)
    made = Sampling.of({"steps": 3, "guidance": 5})
    assert made == Sampling(steps=3, guidance=5.0) and Sampling.of(made) is made and made.images == 4
