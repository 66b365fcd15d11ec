"""The page with all images: every image once, with its verdict, found from where the page lies."""

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from pretend import draw, make_prompts

from sr4g_utils.evaluation import gallery
from sr4g_utils.evaluation.images import list_images
from sr4g_utils.evaluation.verdicts import verdicts

PROMPTS = make_prompts()
RECORDS = verdicts(PROMPTS, draw(PROMPTS, 0.7, seed=1), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "drawn here, 100% #1"
    folder.mkdir()
    for row in RECORDS.itertuples():
        Image.new("RGB", (8, 8)).save(folder / f"{row.prompt_id}_{row.image_index}.png")
    return folder


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8").split('<script id="data" type="application/json">')[1]
    return json.loads(text.split("</script>")[0])


def test_every_image_is_there_with_its_verdict(folder, tmp_path):
    listed = list_images(folder, PROMPTS)
    shown = RECORDS.merge(listed[["prompt_id", "image_index", "caption", "file_name"]])
    gallery.write_page(page := tmp_path / "deep" / "gallery.html", {"mine": (gallery.address(folder, page), shown)})
    data = data_of(page)
    (model,) = data["models"]
    assert len(model["images"]) == len(RECORDS) and data["relations"] == list(dict.fromkeys(PROMPTS.relation))
    by_file = {Path(unquote(image[0])).stem: image for image in model["images"]}
    for row in RECORDS.itertuples():
        file, _, relation, outcome, reason, subject, _ = by_file[f"{row.prompt_id}_{row.image_index}"]
        assert (page.parent / unquote(model["folder"]) / unquote(file)).resolve().is_file()
        assert data["relations"][relation] == row.relation and reason == row.reason
        expected = 0 if row.correct else 1 if row.both_found else 2 if row.n_subject + row.n_object else 3
        assert outcome == expected and (subject is None) == np.isnan(row.subject_x)
    assert sum(image[3] == 0 for image in model["images"]) == RECORDS.correct.sum() > 0


def test_names_are_never_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    shown = RECORDS[:1].assign(caption=evil, file_name="0_0.png", reason=evil, relation="left of")
    gallery.write_page(tmp_path / "g.html", {evil: (".", shown)})
    text = (tmp_path / "g.html").read_text()
    assert "<img src=x" not in text and data_of(tmp_path / "g.html")["models"][0]["name"] == evil
    assert "innerHTML" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
