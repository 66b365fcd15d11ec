"""Sentences of prompts are understood whole or left out with a count."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from refusals import refuses

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import TEMPLATES, caption
from sr4g_utils.dataset.prompt_sets import others, read_prompts
from sr4g_utils.dataset.sentences import NONE, understood
from sr4g_utils.relations import NAMES

UNDERSTOOD = {
    "The fluffy cat is on the left of the soft pillow": ("fluffy cat", "left of", "soft pillow"),
    "a cat sits to the left of a dog.": ("cat", "left of", "dog"),
    "A GLASS OF WATER ON THE LEFT-HAND SIDE OF A BOOK": ("glass of water", "left of", "book"),
    "the bird is flying directly above the bus": ("bird", "above", "bus"),
    "a dog that is larger than the  cat": ("dog", "larger", "cat"),
    "a high quality photo of a wine glass under a chair": ("wine glass", "below", "chair"),
    "there is a dog, at the right side of an ugly old couch": ("dog", "right of", "ugly old couch"),
    "the left shoe is above the right shoe": ("left shoe", "above", "right shoe"),
    "dog left of cat": ("dog", "left of", "cat"), "an a black cat above a dog": ("black cat", "above", "dog"),
    "a tall building is taller than one house": ("tall building", "taller", "house"),
    "a bus placed below a stop sign": ("bus", "below", "stop sign"), "a dog above another dog": ("dog", "above", "dog"),
}  # fmt: skip
FORM = "not two names and a relation"
LEFT_OUT = {
    "a dog to the left of a cat and to the right of a bird": "more than one relation",
    "a dog to the left of a cat, above a bird": "more than one relation", "a dog and a cat": NONE,
    "a cat on side of a dog": NONE, "a dog next to a cat": NONE, "": NONE,
    **dict.fromkeys([
        "a dog to the left of a cat and a bird", "a dog and a cat above a bird", "two dogs left of a cat",
        "a dog barking above a cat", "a dog barks above a cat", "a dog is not above a cat", "above a cat",
        "a dog above",
        "a man in a hat above a dog", "a cat on the left of the image", "to the left of the cat is a dog",
        "a dog to the top left of a cat", "a dog to the left of a cat, 4k", "a dog to the left of a cat in a park",
        "3 dogs above a cat", "it is above a cat", "a dog chasing a cat above a bed", "a dog above a cat sleeping",
    ], FORM),
}  # fmt: skip


@pytest.mark.parametrize("sentence", UNDERSTOOD)
def test_two_names_and_a_relation(sentence):
    assert understood(sentence) == UNDERSTOOD[sentence]


@pytest.mark.parametrize("sentence", LEFT_OUT)
def test_anything_else_is_not_half_read(sentence):
    assert understood(sentence) == LEFT_OUT[sentence]


def test_every_caption_of_cocos_names_is_understood():
    names = [category.name for category in COCO_CATEGORIES]
    for subject, relation, template in product(names, NAMES, TEMPLATES):
        object = names[len(names) - 1 - names.index(subject)]
        assert understood(caption(subject, relation, object, template)) == (subject, relation, object)


@pytest.mark.parametrize("form", ["txt", "csv", "jsonl", "list", "table"])
def test_a_file_of_sentences_with_its_counts(tmp_path: Path, capsys, form):
    lines = [*UNDERSTOOD, *list(LEFT_OUT)[:4]]
    path = tmp_path / f"{form}-mine.{form}"
    table = pd.DataFrame({"prompt_id": range(7, 7 + len(lines)), "text": lines, "note": "x"})
    if form == "txt":
        path.write_text("\n".join(lines))
    elif form == "csv":
        table.to_csv(path, index=False)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps({"prompt": line}) for line in lines))
    found = read_prompts({"list": lines, "table": table}.get(form, path))
    triplets = list(zip(found.subject, found.relation, found.object, strict=True))
    assert triplets == list(UNDERSTOOD.values()) and found.attrs["left_out"] == 4
    assert list(found.caption) == [line.strip() for line in UNDERSTOOD]
    assert list(others(found).values()) == lines[-4:] and found.prompt_id[0] == (7 if form in ("csv", "table") else 0)
    said = capsys.readouterr().err
    if form == "txt":
        assert (
            f"WARNING: {path}: 2 of 17 prompts (12%) are left out: none of the 14 relations; such as 'a dog and a"
            in said
        )
        assert (
            "are left out: more than one relation; such as 'a dog to the left of a cat and to the right of a " in said
        )


def test_a_file_of_which_most_is_not_understood_is_refused(tmp_path: Path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("a dog above a cat\na dog and a cat above a bird\ntwo dogs above a cat\n")
    told = "2 of 3 prompts .67%. are left out, more than allow_loss = 0.5 .*: 2 not two names and a relation; such"
    refuses(told, read_prompts, path)
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "0.7")
    assert len(read_prompts(path)) == 1


def test_names_of_a_table_are_tidy_and_have_one_spelling():
    rows = [
        ("a black cat", "left of", "the_white  cat"),
        ("Black_Cat ", "above", "an apple"),
        ("Apple", "above", "apple"),
    ]
    found = read_prompts(pd.DataFrame(rows, columns=["subject", "relation", "object"]))
    assert list(found.subject) == ["black cat", "black cat", "Apple"]
    assert list(found.caption) == [
        "a black cat to the left of a white cat", "a black cat above an Apple", "an Apple above another Apple",
    ]  # fmt: skip


def test_limits_of_a_file_of_prompts(tmp_path: Path, monkeypatch):
    path = tmp_path / "mine.csv"
    path.write_text("subject,relation,object\ndog,above,cat\ncat,above,dog\n")
    for name, most in (("PROMPT_BYTES", 20), ("CELLS", 2)):
        with monkeypatch.context() as patch:
            patch.setenv(f"SR4G_{name}", str(most))
            refuses(rf"mine.csv: its .* is above the limit of {most}; to take it, set SR4G_{name}", read_prompts, path)
    assert len(read_prompts(path)) == 2
