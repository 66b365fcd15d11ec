"""Triplet to sentence and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import TEMPLATES, caption, parse, with_article
from sr4g_utils.relations import NAMES

COCO_NAMES = [category.name for category in COCO_CATEGORIES]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("dog", "left of", "cat"), "a dog to the left of a cat"),
    (("elephant", "larger", "cup"), "an elephant larger than a cup"),
    (("dog", "left of", "dog"), "a dog to the left of another dog"),
    (("oven", "separated", "umbrella"), "an oven separated from an umbrella"),
    (("person", "inside", "airplane"), "a person inside an airplane"),
    (("skis", "shorter", "scissors"), "a skis shorter than a scissors"),  # SR2D's wording
    (("dog", "above", "cat", "photo"), "a photo of a dog above a cat"),
    (("dog", "above", "cat", "sentence"), "There is a dog above a cat."),
])  # fmt: skip
def test_sentences(arguments, sentence):
    assert caption(*arguments) == sentence


names = st.sampled_from(COCO_NAMES)


@given(names, st.sampled_from(NAMES), names, st.sampled_from(sorted(TEMPLATES)))
def test_parse_is_the_inverse(subject, relation, object, template):
    assert parse(caption(subject, relation, object, template), template) == (subject, relation, object)


def test_every_caption_is_another_and_articles_are_right():
    made = {caption(s, r, o) for s in COCO_NAMES for r in NAMES for o in COCO_NAMES}
    assert len(made) == 80 * 80 * 14
    vowels = sorted(name for name in COCO_NAMES if with_article(name).startswith("an "))
    assert vowels == ["airplane", "apple", "elephant", "orange", "oven", "umbrella"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("dog", "beside", "cat"), "unknown relation 'beside'; choose one of left of, right of"),
    (("dog", "above", "cat", "haiku"), "unknown template 'haiku'; choose one of plain"),
    (("", "above", "cat"), "need a name"),
])  # fmt: skip
def test_bad_arguments_and_what_is_no_caption(arguments, message):
    with pytest.raises(ValueError, match=message):
        caption(*arguments)
    with pytest.raises(ValueError, match=r"not a caption of the template .*: 'a dog and a cat'"):
        parse("a dog and a cat")
