"""Generation against the stock pipeline; noise by prompt alone; resuming, shards, memory; prompt sets."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

from sr4g_utils import generate, models
from sr4g_utils.captions import caption
from sr4g_utils.generate import Sampling
from sr4g_utils.relations import NAMES

FAST = {"images": 2, "steps": 2, "batch": 4, "group": 2}
TRIPLETS = [
    ("dog", "left of", "cat"), ("cat", "above", "dog"), ("cup", "inside", "bowl"), ("tv", "wider", "car"),
    ("bus", "below", "kite"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipelines")
    for version in tiny.VERSIONS:
        tiny.stable_diffusion(made / version, version)
    return made


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> diffusers.StableDiffusionPipeline:
    return models.load_pipeline(folder / "v1.4", device="cpu")[0]


@pytest.fixture
def prompts() -> pd.DataFrame:
    table = pd.DataFrame(TRIPLETS, columns=["subject", "relation", "object"])
    return table.assign(prompt_id=np.arange(len(table)) + 7, caption=[caption(*triplet) for triplet in TRIPLETS])


@pytest.fixture
def file(prompts: pd.DataFrame, tmp_path: Path) -> Path:
    prompts.to_parquet(tmp_path / "prompts.parquet")
    return tmp_path / "prompts.parquet"


def drawn(pipeline, prompts: pd.DataFrame, **sampling) -> dict[tuple, np.ndarray]:
    made = generate.sample(pipeline, prompts, Sampling(**{**FAST, **sampling}))
    return {(id, index): image for id, index, image in made}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("scheduler", [None, "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_images_equal_the_stock_pipeline(
    folder: Path, prompts: pd.DataFrame, version: str, scheduler: str | None
) -> None:
    """One prompt and one image at a time, prompts as text, through diffusers alone."""
    ours = drawn(models.load_pipeline(folder / version, device="cpu")[0], prompts, scheduler=scheduler, steps=3)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(folder / version, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    if scheduler:
        stock.scheduler = getattr(diffusers, scheduler).from_config(stock.scheduler.config)
    assert len(ours) == 2 * len(prompts)
    for row in prompts.itertuples():
        for index in range(2):
            generator = generate.noise(0, row.caption, index)
            image = stock(row.caption, num_inference_steps=3, generator=generator).images[0]
            off = np.abs(ours[row.prompt_id, index].astype(int) - np.asarray(image).astype(int))
            assert off.max() <= 2, (row.caption, index)  # a level or two: sums are rounded in another order


def test_noise_depends_on_prompt_and_number_alone(pipeline, prompts: pd.DataFrame) -> None:
    all = drawn(pipeline, prompts)
    assert len({image.tobytes() for image in all.values()}) == len(all)
    other = drawn(pipeline, prompts.iloc[::-1].assign(prompt_id=range(5)), batch=3, group=5)
    for old, new in zip(prompts.prompt_id, reversed(range(5)), strict=True):
        for index in range(2):
            assert np.abs(all[old, index].astype(int) - other[new, index].astype(int)).max() <= 2
    assert not np.array_equal(all[7, 0], drawn(pipeline, prompts.head(1), seed=1)[7, 0])


def test_noise_is_the_same_on_every_machine() -> None:
    """Frozen: a change would silently make every recorded result another one."""
    first = torch.randint(1 << 30, (3,), generator=generate.noise(0, "a dog to the left of a cat", 1))
    assert first.tolist() == [281109045, 834866851, 820476019]
    assert generate.noise(1, "a", 0).initial_seed() != generate.noise(0, "a", 1).initial_seed()


def test_a_pipeline_of_another_class(pipeline, prompts: pd.DataFrame) -> None:
    """A pipeline that is not Stable Diffusion gets its prompts as text, and only what its call takes."""

    class Other(diffusers.DiffusionPipeline):
        def __init__(self, tokenizer, scheduler) -> None:
            super().__init__()
            self.register_modules(tokenizer=tokenizer, scheduler=scheduler)

        def __call__(self, prompt, num_inference_steps, generator, output_type):
            assert isinstance(prompt, list)
            options = {"num_inference_steps": num_inference_steps, "generator": generator, "output_type": output_type}
            return pipeline(prompt, **options)

    expected = drawn(pipeline, prompts)
    for key, image in drawn(Other(pipeline.tokenizer, pipeline.scheduler), prompts).items():
        assert np.abs(expected[key].astype(int) - image.astype(int)).max() <= 2


def test_out_of_memory_halves_the_batch(pipeline, prompts: pd.DataFrame, monkeypatch, capsys) -> None:
    expected, sizes = drawn(pipeline, prompts), []
    own = type(pipeline).__call__

    def short(self, *args, **options):
        sizes.append(len(options["prompt_embeds"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return own(self, *args, **options)

    monkeypatch.setattr(type(pipeline), "__call__", short)
    made = drawn(pipeline, prompts)
    assert sizes == [4, 2, 2, 2, 2, 2] and "going on with batches of 2" in capsys.readouterr().err
    assert made.keys() == expected.keys()
    for key, image in made.items():
        assert np.abs(expected[key].astype(int) - image.astype(int)).max() <= 2
    monkeypatch.setattr(type(pipeline), "__call__", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        drawn(pipeline, prompts)


def test_the_pipeline_is_left_as_it_was(pipeline, prompts: pd.DataFrame) -> None:
    own = pipeline.scheduler
    made = generate.sample(pipeline, prompts, Sampling(**FAST, scheduler="DDIMScheduler"))
    next(made)
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    made.close()
    assert pipeline.scheduler is own


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 3}, "unknown field `step`; its keys are images, steps"),
        ({"steps": "many"}, "Expected `int`, got `str`"),
        ({"images": 0}, "images must be at least 1, got 0"),
    ],
)
def test_wrong_sampling(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling.of(values)


def test_wrong_schedulers_and_words(pipeline, prompts: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no scheduler 'Euler'; this pipeline takes .*DPMSolverMultistepScheduler"):
        drawn(pipeline, prompts, scheduler="Euler")
    with pytest.raises(ValueError, match="no scheduler 'UNet2DConditionModel'"):
        drawn(pipeline, prompts, scheduler="UNet2DConditionModel")
    long = prompts.assign(caption="a dog " * 50)
    with pytest.raises(ValueError, match="has 100 tokens, but the model reads 75; shorten it"):
        drawn(pipeline, long)


# ---------------------------------------------------------------------------------------------------------- stage


def test_write_images(folder: Path, file: Path, prompts: pd.DataFrame, tmp_path: Path, pipeline) -> None:
    record = generate.write_images(tmp_path / "images", file, model=str(folder / "v1.4"), sampling=FAST)
    assert record == json.loads((tmp_path / "images" / "record.json").read_text())
    assert record["model"]["prediction_type"] == "epsilon" and record["sampling"]["steps"] == 2
    assert record["prompts"]["number"] == 5
    assert str(tmp_path) not in json.dumps(record)
    expected = drawn(pipeline, prompts)
    read = list(generate.read_images(tmp_path / "images"))
    assert [(row["prompt_id"], row["image_index"]) for row, _ in read] == list(expected)
    assert all(np.array_equal(image, expected[row["prompt_id"], row["image_index"]]) for row, image in read)
    assert read[0][0]["caption"] == "a dog to the left of a cat"


def test_interrupted_and_shared_runs_end_with_the_same_bytes(
    folder: Path, file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    options = {"model": str(folder / "v2.1"), "sampling": FAST}
    generate.write_images(tmp_path / "whole", file, **options)
    own, calls = generate._write, []

    def stops(path: Path, image: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        own(path, image)

    monkeypatch.setattr(generate, "_write", stops)
    with pytest.raises(OSError, match="No space"):
        generate.write_images(tmp_path / "resumed", file, **options)
    with pytest.raises(ValueError, match="run the generation again to finish it"):
        generate.list_images(tmp_path / "resumed")
    generate.write_images(tmp_path / "resumed", file, **options)
    assert len(calls) == 8 + 6  # the second group of two again, and the third
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    for shard in (2, 0, 1):
        generate.write_images(tmp_path / "shared", file, **options, shard=shard, shards=3)
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    # nothing is made again
    calls.clear()
    generate.write_images(tmp_path / "shared", file, **options)
    assert not calls
    monkeypatch.setattr(generate, "_write", own)
    # another configuration starts afresh, but not under the feet of other shards
    other = {**options, "sampling": {**FAST, "seed": 1}}
    with pytest.raises(ValueError, match=r"another configuration \(sampling\); delete it first"):
        generate.write_images(tmp_path / "shared", file, **other, shard=0, shards=3)
    generate.write_images(tmp_path / "shared", file, **other)
    assert "another configuration (sampling); starting afresh" in capsys.readouterr().err
    new, old = contents(tmp_path / "shared"), contents(tmp_path / "whole")
    assert new.keys() == old.keys() and all(new[k] != old[k] for k in new if k.endswith("webp"))
    with pytest.raises(ValueError, match="shards are numbered from 0 to 1"):
        generate.write_images(tmp_path / "shared", file, **options, shard=2, shards=2)


def test_killed_at_any_moment(folder: Path, file: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the command, then the same again: the bytes of the undisturbed run."""
    settings = [f"{key}={value}" for key, value in FAST.items()]
    command = [sys.executable, "-m", "sr4g_utils.generate", str(tmp_path / "killed"), "--prompts", str(file)]
    command += ["--model", str(folder / "v1.4"), *(word for each in settings for word in ("--set", each))]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "killed").rglob("*.webp"))) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("killed", "whole"):
        generate.write_images(tmp_path / name, file, model=str(folder / "v1.4"), sampling=FAST)
    made, expected = (contents(tmp_path / name) for name in ("killed", "whole"))
    assert {k: v for k, v in made.items() if ".partial" not in k} == expected


def test_the_command_says_what_is_wrong(folder: Path, tmp_path: Path, capsys) -> None:
    command = [str(tmp_path / "images"), "--model", str(folder / "v1.4"), "--prompts"]
    assert generate.main([*command, "nothing"]) == 1
    assert capsys.readouterr().err == "generate: prompts: 'nothing' is neither a file nor one of sr2d, sr4g, geneval\n"
    assert generate.main([*command, "sr2d", "--set", "steps=many"]) == 1
    assert "Expected `int`, got `str`" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ images made elsewhere


def test_folders_made_elsewhere(prompts: pd.DataFrame, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    for layout in ("visor/{id}_{n}.png", "geneval/{id:05}/samples/{n:04}.jpg"):
        for id in prompts.prompt_id:
            for n in (1, 2, 3):
                path = tmp_path / layout.format(id=id, n=n)
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
        listed = generate.list_images(tmp_path / layout.split("/")[0], prompts)
        assert (
            list(listed.prompt_id) == list(np.repeat(prompts.prompt_id, 3))
            and list(listed.image_index) == [0, 1, 2] * 5
        )
    visor = tmp_path / "visor"
    for n in (1, 2, 3):
        (visor / f"8_{n}.png").unlink()  # a part of a prompt set may be drawn
    assert generate.list_images(visor, prompts).attrs["without_images"] == 1
    (visor / "9_3.png").unlink()
    with pytest.raises(ValueError, match="prompt 9 has 2 images, not 3; each prompt needs as many"):
        generate.list_images(visor, prompts)
    image.save(visor / "99_1.png")
    with pytest.raises(
        ValueError, match=r"99_1.png: belongs to no prompt; images are named <prompt_id>_<number>, as 7_0.png"
    ):
        generate.list_images(visor, prompts)
    shutil.rmtree(visor)
    with pytest.raises(ValueError, match="no such folder of images"):
        generate.list_images(visor, prompts)
    visor.mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        generate.list_images(visor, prompts)
    with pytest.raises(ValueError, match="made elsewhere"):
        generate.list_images(visor)


# ----------------------------------------------------------------------------------------------------- prompt sets


def test_sr2d_is_the_published_set(shared: Path, tmp_path: Path) -> None:
    ours = generate.read_prompts("sr2d")
    (tmp_path / "sr2d.json").write_bytes(
        gzip.decompress((shared / "sr2d" / "text_spatial_rel_phrases.json.gz").read_bytes())
    )
    pd.testing.assert_frame_equal(ours, generate.read_prompts(tmp_path / "sr2d.json"))
    assert len(ours) == 25_280 and ours.attrs["left_out"] == 6_400
    assert set(ours.relation) == {"left of", "right of", "above", "below"}
    assert (ours.caption == [caption(*t) for t in zip(ours.subject, ours.relation, ours.object, strict=True)]).all()


def test_geneval_and_compbench(shared: Path) -> None:
    geneval = generate.read_prompts(shared / "prompts" / "geneval_evaluation_metadata.jsonl")
    assert len(geneval) == 100 and geneval.attrs["left_out"] == 453
    first = geneval.iloc[0]
    assert (first.subject, first.relation, first.object) == ("dog", "right of", "teddy bear")
    assert first.caption == "a photo of a dog right of a teddy bear"
    for row in geneval.itertuples():  # the words of each prompt say the same
        assert row.caption == f"{caption(row.subject, row.relation, row.object, 'photo')}".replace("to the ", "")
    compbench = generate.read_prompts(shared / "prompts" / "t2icompbench_spatial_val.txt")
    assert len(compbench) + compbench.attrs["left_out"] == 300 and len(compbench) > 200
    first = compbench.iloc[0]
    assert (first.subject, first.relation, first.object, first.prompt_id) == ("girl", "above", "frog", 1)


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "jsonl"])
def test_a_users_prompts(tmp_path: Path, form: str) -> None:
    table = pd.DataFrame(
        {"subject": ["dog", "cat"], "relation": ["to the left of", "inside"], "object": ["cat", "cup"]}
    )
    path = tmp_path / f"mine.{form}"
    write = {
        "csv": lambda: table.to_csv(path, index=False), "parquet": lambda: table.to_parquet(path),
        "json": lambda: table.to_json(path, orient="records"),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
    }  # fmt: skip
    write[form]()
    read = generate.read_prompts(path)
    assert list(read.relation) == ["left of", "inside"] and list(read.prompt_id) == [0, 1]
    assert list(read.caption) == ["a dog to the left of a cat", "a cat inside a cup"]
    assert generate.write_prompts(tmp_path / "out.parquet", source=path) == {"prompts": 2, "left_out": 0}
    pd.testing.assert_frame_equal(generate.read_prompts(tmp_path / "out.parquet"), read, check_like=True)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("subject,relation,object\ndog,near,cat\n", "a.csv", f"prompt 0 has the relation 'near'; .* {NAMES[0]}"),
        ("subject,relation,object\ndog,above,\n", "a.csv", "prompt 0 has no object"),
        ("subject,relation\ndog,above\n", "a.csv", "the column 'object' is missing"),
        ("subject,relation,object\n", "a.csv", "holds no prompts"),
        ("prompt_id,subject,relation,object\n1,dog,above,cat\n1,dog,above,cup\n", "a.csv", "prompt_id '1' occurs"),
        ("prompt_id,subject,relation,object\na/b,dog,above,cat\n", "a.csv", "prompt_id 'a/b' occurs twice or is not"),
        ('[{"subject": "dog"}]', "a.json", "row 1: not a prompt"),
        ('{"a": 1}', "a.json", "expected a list of prompts, found dict"),
        ("{", "a.jsonl", "not valid JSON"),
        ('[{"tag": "color", "prompt": "a red bench"}]', "a.json", "holds no prompts"),
    ],
)  # fmt: skip
def test_wrong_prompts(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        generate.read_prompts(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
