"""Folders of images with their prompts."""

import shutil
from itertools import product

import numpy as np
import pandas as pd
from PIL import Image
from pretend import five_prompts
from refusals import refuses

from sr4g_utils.evaluation import images


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
