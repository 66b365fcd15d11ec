"""One tidy form and one key of a name, and its article."""

import subprocess
import sys

import pytest
from refusals import refuses

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import caption, with_article
from sr4g_utils.dataset.names import among, amount, key, tidy
from sr4g_utils.models.names import readings

NAMES = [category.name for category in COCO_CATEGORIES]


@pytest.mark.parametrize(("written", "form"), [
    ("truck ", "truck"), (" traffic  light\t", "traffic light"), ("traffic_light", "traffic light"), ("Dog", "Dog"),
    ("bow_(decorative)", "bow (decorative)"), ("a black cat", "black cat"), ("the  White cat", "White cat"),
    ("an a cat", "cat"), ("Another dog", "dog"), ("a", "a"), ("ant", "ant"), ("thermos", "thermos"), ("_", ""),
    ("cafe\u0301", "café"), ("zero\u200bwidth", "zerowidth"), ("nbsp\u00a0here", "nbsp here"), ("T-shirt", "T-shirt"),
])  # fmt: skip
def test_the_tidy_form(written, form):
    assert tidy(written) == form and tidy(form) == form and key(written) == key(form)


def test_one_key_for_all_spellings():
    ways = ("traffic light", "Traffic Light", "traffic_light", " traffic  light ", "a traffic light", "TRAFFIC-LIGHT")
    assert len({key(name) for name in ways}) == 1 and len({key(name) for name in NAMES}) == 80
    assert len({key("bow (decorative)"), key("bow_(weapon)"), key("bow")}) == 3
    assert readings(["Bow_(decorative)", "the  dog"], ["bow (decorative)", "dog"]) == {
        "Bow_(decorative)": "bow (decorative)", "the  dog": "dog"
    }  # fmt: skip
    assert among(NAMES, ["Traffic_light", "dog "], "x") == ["traffic light", "dog"]
    where = "unseen: the annotations have no category"
    refuses(f"{where} 'dgo'", among, NAMES, ["dgo"], where)


@pytest.mark.parametrize("phrase", [
    "an Apple", "a unicycle", "an hour", "an hourglass", "a house", "an honest man", "a European bison", "an umbrella",
    "an X-ray", "an MRI scanner", "a one-way sign", "a uniform", "an éclair", "an 8-ball", "an 11-sided die",
    "a $5 bill", "a bow (decorative)", "an unlit candle", "a user", "a 犬", "an ear", "a ewe", "a ukulele",
    "an L-shaped sofa",
])  # fmt: skip
def test_articles_go_by_the_sound(phrase):
    name = phrase.partition(" ")[2]
    assert with_article(name) == with_article(f"a {name}") == with_article(f"the {name}") == phrase


def test_cocos_captions_are_those_of_the_first_letter_and_inflect_agrees():
    import inflect

    engine = inflect.engine()
    for name in NAMES:
        assert with_article(name) == f"{'an' if name[0] in 'aeiou' else 'a'} {name}" == engine.a(name)


def test_captions_of_names_as_they_are_found():
    assert caption("a black cat", "left of", "the_white  cat") == "a black cat to the left of a white cat"
    assert caption("Truck ", "above", "truck") == "a Truck above another truck"
    refuses("need a name; got '_' and 'cat'", caption, "_", "above", "cat")


def test_inflect_is_loaded_for_the_first_name_that_is_not_cocos():
    code = "import sys; from sr4g_utils import caption; caption('apple', 'above', 'dog')"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('inflect' in sys.modules)"], check=True)


def test_one_thing_is_not_several():
    assert [amount(n, "image") for n in (0, 1, 2, 1568)] == ["0 images", "1 image", "2 images", "1,568 images"]
