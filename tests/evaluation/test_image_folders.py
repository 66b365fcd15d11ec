"""Folders of images as they lie about: one model's images, each once with its prompt, or one line."""

import json
import os
import re
import shutil
from itertools import product
from pathlib import Path

import mutate
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pretend import five_prompts
from refusals import refuses

from sr4g_utils.dataset.prompt_sets import others, read_prompts
from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.evaluation import images
from sr4g_utils.evaluation.images import list_images

PROMPTS = pd.DataFrame({
    "prompt_id": [0, 7], "subject": ["dog", "cup"], "relation": ["left of", "above"], "object": ["cat", "tv"],
    "caption": ["a dog to the left of a cat", "a cup above a tv"],
})  # fmt: skip


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def refusal(folder: Path, prompts: pd.DataFrame = PROMPTS) -> str:
    with pytest.raises(ValueError) as caught:
        list_images(folder, prompts)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def said_of(folder: Path, capsys: pytest.CaptureFixture[str], prompts: pd.DataFrame = PROMPTS) -> str:
    """What is said while a folder is listed."""
    capsys.readouterr()
    list_images(folder, prompts)
    return capsys.readouterr().err


@pytest.mark.parametrize(("second", "both"), [
    ("0_0.jpg", "0_0.jpg and 0_0.png"), ("0_00.png", "0_0.png and 0_00.png"), ("00_0.png", "00_0.png and 0_0.png"),
    ("a dog to the left of a cat_0.png", "0_0.png and a dog to the left of a cat_0.png"),
])  # fmt: skip
def test_two_files_for_one_image_are_both_named(tmp_path, second, both):
    assert f"{both} are both image 0 of prompt 0; keep one" in refusal(put(tmp_path, "0_0.png", "7_0.png", second))


@pytest.mark.parametrize("layout", ["{m}/{id}_{n}.png", "{m}/{id:05}/samples/{n:04}.png", "{m}/x/{id}_{n}.png"])
def test_several_models_are_not_pooled(tmp_path, layout):
    """VISOR publishes seven models' images side by side in ``images/``."""
    for number, model in enumerate(("cogview2", "dalle-v2", "glide")):
        first = 10 * number  # other numbers do not make it one model
        put(tmp_path, *(layout.format(m=model, id=id, n=first + n) for id in (0, 7) for n in range(4)))
    told = refusal(tmp_path)
    assert all(model in told for model in ("cogview2", "dalle-v2", "glide")) and "give one of them" in told
    assert len(list_images(tmp_path / "glide", PROMPTS)) == 8


def test_sub_folders_of_different_prompts_are_one_model_without_what_systems_leave_about(tmp_path):
    folder = put(tmp_path / "a", "00000/0_0.png", "00000/0_1.png", "00001/7_0.png", "00001/7_1.png")
    assert list(list_images(folder, PROMPTS).prompt_id) == [0, 0, 7, 7]
    folder = put(tmp_path / "b", "0_0.png", "7_0.png", "#recycle/0_0.png", "x/lost+found/0_0.png", ".git/0_0.png")
    assert list(list_images(put(folder, *mutate.LITTER), PROMPTS).file_name) == ["0_0.png", "7_0.png"]


def test_linked_folders_are_followed_once(tmp_path):
    folder = put(tmp_path / "images", "real/0_0.png")
    put(tmp_path / "elsewhere", "7_0.png")
    links = {"loop": folder, "up": tmp_path, "again": folder / "real", "there": tmp_path / "elsewhere"}
    links |= {"there too": tmp_path / "elsewhere"}
    for name, target in links.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    assert list(list_images(folder, PROMPTS).file_name) == ["real/0_0.png", "there/7_0.png"]
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    assert list(list_images(tmp_path / "linked", PROMPTS).file_name) == ["real/0_0.png", "there/7_0.png"]


def test_an_image_of_no_prompt_is_refused_and_a_text_of_two_names_neither(tmp_path):
    twice = PROMPTS.assign(caption="a cup above a tv")
    assert "belongs to several prompts of one text" in refusal(put(tmp_path / "x", "a cup above a tv_0.png"), twice)
    folder = put(tmp_path / "images", "0_0.png", "7_0.png")
    assert "99_0.png: belongs to no prompt; images are named <prompt_id>_<number>" in refusal(put(folder, "99_0.png"))
    (folder / "99_0.png").unlink()
    for name in ("grid.png", "0.png", "x/samples/0.png", "a cat_0.png"):
        assert "belongs to no prompt" in refusal(put(folder, name))
        (folder / name).unlink()


def test_images_of_prompts_that_were_left_out_are_counted(tmp_path, monkeypatch, capsys):
    few = put(tmp_path / "few", "0_0.png")
    said = said_of(few, capsys)
    assert re.search(r"1 of 2 prompts \(50%\) are left out: without any image; such as prompt [07]; draw them", said)
    assert "without any image" in refusal(few, pd.concat([PROMPTS, PROMPTS.assign(prompt_id=[8, 9])]))
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "1")
    tmp_path = tmp_path / "images"
    sr2d = read_prompts("sr2d")
    put(tmp_path, *(f"{id}_{n}.png" for id in (0, 10, 31_600, 31_679) for n in range(4)))  # two of a single object
    listed = list_images(tmp_path, sr2d)
    assert len(listed) == 8 and listed.attrs == {"without_images": 25_278, "left_out_images": 8}
    assert "31680_0.png: belongs to no prompt" in refusal(put(tmp_path, "31680_0.png"), sr2d)
    (tmp_path / "31680_0.png").unlink()
    drawn = draw_prompts(sr2d[sr2d.prompt_id < 8], per_relation=1, seed=0)
    assert set(sr2d[sr2d.prompt_id < 8].prompt_id) - set(drawn.prompt_id) <= {int(id) for id in others(drawn)}
    (only_others := tmp_path / "b").mkdir()
    assert "holds no image of these prompts, 1 of others" in refusal(put(only_others, "31600_0.png"), sr2d)


def test_geneval_as_its_readme_lays_it_out(shared, tmp_path):
    prompts = read_prompts(shared / "prompts" / "geneval_evaluation_metadata.jsonl")
    for id in range(553):
        put(tmp_path / f"{id:05}", "metadata.jsonl", "grid.png", *(f"samples/{n:04}.png" for n in range(2)))
    listed = list_images(tmp_path, prompts)
    assert len(listed) == 200 and listed.attrs == {"without_images": 0, "left_out_images": 906}
    assert listed.file_name[0] == f"{prompts.prompt_id[0]:05}/samples/0000.png"


@pytest.mark.parametrize("blank", [" ", "_"])
def test_compbench_as_its_script_names_files(shared, tmp_path, blank, monkeypatch):
    """GORS_finetune/inference_eval.py: one running number over all prompts, and a grid beside ``samples``."""
    path = shared / "prompts" / "t2icompbench_spatial_val.txt"
    for i, text in enumerate(path.read_text().splitlines()):
        name = text.replace(" ", blank)
        put(tmp_path, *(f"samples/{name}_{2 * i + n:06}.png" for n in range(2)), f"{name}-grid-{i:05}.png")
    listed = list_images(tmp_path, path)
    assert len(listed) == 2 * 215 and listed.attrs == {"without_images": 0, "left_out_images": 2 * 85}
    assert listed.file_name[0] == f"samples/{'a girl on the top of a frog'.replace(' ', blank)}_000002.png"
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "1")
    stopped = tmp_path / "stopped"
    put(stopped, "A girl on the top of a frog._000000.png")
    assert list(list_images(stopped, path).prompt_id) == [1]


def test_our_own_images_are_of_the_prompts_they_were_drawn_for(tmp_path):
    folder = put(tmp_path / "others", "0_0.png", "7_0.png")
    for record in ([], {"sampling": 3}, {"sampling": {}}, {"sampling": {"images": 9}}):  # not ours: no record
        (folder / "record.json").write_text(json.dumps(record))
        assert len(list_images(folder, PROMPTS)) == 2
    tmp_path = tmp_path / "ours"
    put(tmp_path, "00000/0_0.webp", "00000/7_0.webp")
    PROMPTS.to_parquet(tmp_path / "prompts.parquet")
    (tmp_path / "record.json").write_text(json.dumps({"model": {}, "sampling": {"images": 1}}))
    assert list_images(tmp_path, PROMPTS.iloc[:1]).attrs == {"without_images": 0, "left_out_images": 1}
    other = PROMPTS.assign(caption=["a cow", "a tv"], subject="cow")
    told = "prompt 0 was drawn as 'a dog to the left of a cat', but the prompts given say 'a cow'"
    assert told in refusal(tmp_path, other)


FORTY = pd.DataFrame({"prompt_id": range(40), "subject": "dog", "relation": "left of", "object": "cat"})
FORTY["caption"] = [f"a dog left of a cat no. {i}" for i in range(40)]


@pytest.mark.parametrize("name", ["{seed}_{prompt:05}.png", "{seed}/samples/{prompt}.png", "{seed}_{prompt}.avif"])
@pytest.mark.parametrize("prompts", [40, 8])
def test_numbers_that_fit_the_prompts_both_ways_are_refused(tmp_path, name, prompts):
    """diffusers' and others' scripts name files by seed and prompt; VISOR's by prompt and number."""
    put(tmp_path, *(name.format(seed=seed, prompt=prompt) for seed in range(4) for prompt in range(prompts)))
    told = refusal(tmp_path, FORTY)
    assert f"<prompt_id>_<number>: 4 prompts with {prompts} images each" in told
    assert f"<number>_<prompt_id>: {prompts} prompts with 4 images each" in told
    if prompts == 8:  # only one of the readings is of these prompts
        assert len(list_images(tmp_path, FORTY[:4])) == 32
    at = next(tmp_path.rglob("*.*"))
    at.with_suffix(".txt").write_text(FORTY.caption[int(at.stem.rpartition("_")[2])])
    assert "fit the prompts both ways" in refusal(tmp_path, FORTY), "of the others nothing is known"
    for at in [path for path in tmp_path.rglob("*.*") if path.suffix != ".txt"]:  # a caption says which it is
        at.with_suffix(".txt").write_text(FORTY.caption[int(at.stem.rpartition("_")[2])])
    listed = list_images(tmp_path, FORTY[:prompts])
    assert list(listed.prompt_id) == list(np.repeat(range(prompts), 4))


def test_numbers_that_fit_equally_well_both_ways_are_said(tmp_path, capsys):
    put(tmp_path / "four", *(f"{id}_{n}.png" for id in range(4) for n in range(4)))
    assert "fit the prompts both ways; they are read as" in said_of(tmp_path / "four", capsys, FORTY[:4])
    put(tmp_path / "ten", *(f"{id}_{n}.png" for id in range(10) for n in range(4)))
    assert not said_of(tmp_path / "ten", capsys, FORTY[:10])
    put(tmp_path / "seeds", *(f"{seed}_{id}.png" for id in range(8) for seed in (42, 43)))
    assert "42_0.png: belongs to no prompt" in refusal(tmp_path / "seeds", FORTY[:8])
    assert "read as <number>_<prompt_id> it is of prompt 0" in refusal(tmp_path / "seeds", FORTY[:8])


BESIDE = {  # where a caption stands, by what holds it
    "metadata.jsonl": ("{i:05}/samples/{n:05}.png", "{i:05}/metadata.jsonl", '{{"tag": "position", "prompt": "{c}"}}'),
    "prompt.txt": ("{i}/samples/{n}.png", "{i}/prompt.txt", "{c}\n"),
    "of the same name": ("{i}_{n}.jfif", "{i}_{n}.txt", "{c}\nNegative prompt: ugly\nSteps: 20"),
    "JSON": ("photo {i}{n}.png", "photo {i}{n}.json", '{{"caption": "{c}", "seed": 3}}'),
    "CSV": ("x{i}{n}.png", "metadata.csv", "file_name,text\nx{i}{n}.png,{c}\n"),
    "a folder's JSON": ("{i}/samples/{n}.png", "{i}/metadata.json", '{{"prompt": "{c}"}}'),
    "file_name": ("x{i}{n}.png", "metadata.jsonl", '{{"file_name": "x{i}{n}.png", "text": "{c}"}}\n'),
}


@pytest.mark.parametrize("holder", BESIDE)
def test_a_caption_beside_an_image_wins_over_its_number(tmp_path, holder, capsys):
    name, beside, text = BESIDE[holder]
    captions, expected = list(FORTY.caption[:4])[::-1], {}
    for i, n in product(range(4), range(2)):
        put(tmp_path, at := name.format(i=i, n=n), words := beside.format(i=i, n=n))
        expected[at] = captions[i]
        written = text.format(i=i, n=n, c=captions[i])
        with (tmp_path / words).open("a" if "file_name" in text else "w") as file:
            file.write(written if file.tell() == 0 else written.removeprefix("file_name,text\n"))
    said = said_of(tmp_path, capsys, FORTY[:4])
    listed = list_images(tmp_path, FORTY[:4])
    assert dict(zip(listed.file_name, listed.caption, strict=True)) == expected and len(expected) == 8
    assert list(listed.image_index) == [0, 1] * 4
    assert ("8 of 8 images" in said and "another prompt's number" in said) == name.startswith("{i")


def test_a_caption_in_other_words_says_the_same_triplet(tmp_path):
    put(tmp_path, *(f"{i:05}/samples/0.png" for i in range(2)))
    for i, words in enumerate(["A cup on the top of a TV.", "a dog on the left of a cat"]):
        (tmp_path / f"{i:05}" / "prompt.txt").write_text(words)
    assert list(list_images(tmp_path, PROMPTS.assign(prompt_id=[0, 1])).file_name) == [
        "00001/samples/0.png",
        "00000/samples/0.png",
    ]
    (tmp_path / "00000" / "prompt.txt").write_text("a cat on the left of a dog")
    assert "that is no prompt's" in refusal(tmp_path, PROMPTS.assign(prompt_id=[0, 1]))


def test_captions_that_contradict_are_refused(tmp_path):
    put(tmp_path, "0_0.png", "7_0.png", "0_0.txt")
    (tmp_path / "0_0.txt").write_text("0 0.5 0.5 0.1 0.2\n")  # boxes are no caption
    assert len(list_images(tmp_path, PROMPTS)) == 2
    (tmp_path / "0_0.txt").write_text("a cow above a tv")
    told = (
        "0_0.txt says 'a cow above a tv', but by its name it is of prompt 0, 'a dog to the left of a cat'; that is no"
    )
    assert told in refusal(tmp_path)
    (tmp_path / "0_0.txt").write_text("A dog  to the left of a cat.")
    (tmp_path / "0_0.json").write_text('{"prompt": "a cup above a tv"}')
    assert "the captions beside it are" in refusal(tmp_path)
    other = put(tmp_path / "text", "a dog to the left of a cat_0.png")
    (other / "a dog to the left of a cat_0.txt").write_text("a cup above a tv")
    assert "so the two contradict each other" in refusal(other)


@pytest.mark.parametrize("suffix", [*images.SUFFIXES, ".TIF", ".Jfif"])
def test_what_pillow_reads_is_read(tmp_path, suffix):
    if suffix.lower() not in Image.registered_extensions():
        pytest.skip(f"this Pillow does not know {suffix}")
    prompts, pixels = PROMPTS[:1], np.full((16, 16, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"0_0{suffix}")
    (_, image), = images.read_images(tmp_path, prompts)  # fmt: skip
    assert image.shape == (16, 16, 3) and abs(image.astype(int) - 200).max() < 5


def test_what_is_not_read_is_said(tmp_path, capsys):
    folder = put(tmp_path / "some", "0_0.png", "7_0.png", "7_1.heic", "0_0.npy", "0_1.xyz.json", "read me", "x.mp4")
    assert "1 of 3 images (33%) are left out: of a kind that is not read (.heic)" in said_of(folder, capsys)
    folder = put(tmp_path / "most", "0_0.heic", "7_0.svg", "0_1.png", "7_1")
    assert "3 of 4 images (75%)" in refusal(folder) and "(.heic, .svg, no suffix)" in refusal(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_told_at_once(tmp_path, make):
    make(put(tmp_path, "0_0.png") / "7_0.png")
    assert "7_0.png: is a pipe, a device or a link to nothing" in refusal(tmp_path)


def test_a_picture_above_the_limit_is_one_line_before_it_is_unpacked(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "0_0.png")
    monkeypatch.setenv("SR4G_PHOTO_PIXELS", "1000")
    refuses("0_0.png is not a readable photo .*1,200 is above the limit of 1,000.*SR4G_PHOTO_PIXELS",
            lambda: list(images.read_images(tmp_path, PROMPTS[:1])))  # fmt: skip


@mutate.numbers(200)
def test_mutated_image_folders_end_in_a_right_list_or_one_line(number):
    ends = mutate.run("images", number)
    assert min(ends["right"], ends["refused"]) > number / 4


def test_folders_made_elsewhere(tmp_path):
    prompts = five_prompts()
    image = Image.new("RGB", (8, 8))
    for layout in ("visor/{id}_{n}.png", "geneval/{id:05}/samples/{n:04}.jpg"):
        for id, n in product(prompts.prompt_id, (1, 2, 3)):
            path = tmp_path / layout.format(id=id, n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        listed = images.list_images(tmp_path / layout.split("/")[0], prompts)
        assert list(listed.prompt_id) == list(np.repeat(prompts.prompt_id, 3))
        assert list(listed.image_index) == [0, 1, 2] * 5
    visor = tmp_path / "visor"
    for n in (1, 2, 3):
        (visor / f"8_{n}.png").unlink()  # a part of a prompt set may be drawn
    assert images.list_images(visor, prompts).attrs["without_images"] == 1
    (visor / "9_3.png").unlink()
    refuses("prompt 9 has 2 images, not 3; each prompt needs as many", images.list_images, visor, prompts)
    image.save(visor / "99_1.png")
    named = r"99_1.png: belongs to no prompt; images are named <prompt_id>_<number>, as 7_0.png"
    refuses(named, images.list_images, visor, prompts)
    shutil.rmtree(visor)
    refuses("no such folder of images", images.list_images, visor, prompts)
    visor.mkdir()
    refuses("holds no image", images.list_images, visor, prompts)
    refuses("made elsewhere", images.list_images, visor)


def test_images_are_read_in_order_with_their_prompts(tmp_path):
    """More of them than are decoded at once."""
    five = five_prompts()
    prompts = pd.concat([five.assign(prompt_id=five.prompt_id + 10 * i) for i in range(15)], ignore_index=True)
    for id in prompts.prompt_id:
        Image.fromarray(np.full((2, 3, 3), id, np.uint8)).save(tmp_path / f"{id}_0.png")
    read = list(images.read_images(tmp_path, prompts))
    assert [row["prompt_id"] for row, _ in read] == list(prompts.prompt_id) and len(read) == 75
    assert all((image == row["prompt_id"]).all() and image.shape == (2, 3, 3) for row, image in read)
    assert [row["caption"] for row, _ in read] == list(prompts.caption)


def test_a_text_in_a_name_may_be_quoted_as_in_an_address(tmp_path):
    prompts = read_prompts([("dog", "left of", "cat"), ("cup", "above", "bed")])
    folder = put(tmp_path, *(f"{text.replace(' ', '%20')}_0.png" for text in prompts.caption))
    assert list_images(folder, prompts).prompt_id.tolist() == [0, 1]


def test_images_that_are_numbered_from_1(tmp_path):
    prompts = read_prompts([("dog", "left of", "cat"), ("cup", "above", "bed")])
    says = refusal(put(tmp_path, "1_0.png", "2_0.png"), prompts)
    assert "are the images numbered from 1? give the prompts a column prompt_id" in says and "read as" not in says
    assert len(list_images(tmp_path, prompts.assign(prompt_id=[1, 2]))) == 2


def test_images_that_are_numbered_from_1_and_the_last_of_which_is_missing(tmp_path, capsys):
    triplets = [("dog", "left of", thing) for thing in ("cat", "cup", "bed")]
    folder = put(tmp_path, "1_0.png", "2_0.png")
    assert "of prompts 1 to 2, the prompts count from 0, and 0 has no image" in refusal(folder, read_prompts(triplets))
    own = tmp_path / "p.csv"
    lines = [f"{i},{','.join(triplet)}" for i, triplet in enumerate(triplets)]
    own.write_text("\n".join(["prompt_id,subject,relation,object", *lines]))
    assert "are the images numbered from 1?" in said_of(folder, capsys, own)
    put(tmp_path, "0_0.png")
    assert len(list_images(folder, read_prompts(triplets))) == 3
