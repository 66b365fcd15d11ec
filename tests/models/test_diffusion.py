"""Generation against the stock pipeline; noise by prompt alone; memory."""

import diffusers
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from pretend import five_prompts
from refusals import refuses

from sr4g_utils.models import diffusion, load
from sr4g_utils.models.sampling import Sampling

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


def test_a_pipeline_of_another_class(pipeline):
    """A pipeline that is not Stable Diffusion gets its prompts as text, and only what its call takes."""

    class Other(diffusers.DiffusionPipeline):
        def __init__(self, tokenizer, scheduler) -> None:
            super().__init__()
            self.register_modules(tokenizer=tokenizer, scheduler=scheduler)

        def __call__(self, prompt, num_inference_steps, generator, output_type):
            assert isinstance(prompt, list)
            options = {"num_inference_steps": num_inference_steps, "generator": generator, "output_type": output_type}
            return pipeline(prompt, **options)

    assert near(drawn(Other(pipeline.tokenizer, pipeline.scheduler)), drawn(pipeline))


def test_out_of_memory_halves_the_batch(pipeline, monkeypatch, capsys):
    expected, sizes = drawn(pipeline), []
    own = type(pipeline).__call__

    def short(self, *args, **options):
        sizes.append(len(options["prompt_embeds"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return own(self, *args, **options)

    monkeypatch.setattr(type(pipeline), "__call__", short)
    made = drawn(pipeline)
    assert sizes == [4, 2, 2, 2, 2, 2] and "going on with batches of 2" in capsys.readouterr().err
    assert near(made, expected)
    monkeypatch.setattr(type(pipeline), "__call__", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
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
        ({"step": 3}, r"unknown field `step` .did you mean .steps.\?.; its keys are images, steps"),
        ({"steps": "many"}, "Expected `int`, got `str`"),
        ({"images": 0}, "images must be at least 1, got 0"),
    ):
        refuses(message, Sampling.of, values)
    made = Sampling.of({"steps": 3, "guidance": 5})
    assert made == Sampling(steps=3, guidance=5.0) and Sampling.of(made) is made and made.images == 4
