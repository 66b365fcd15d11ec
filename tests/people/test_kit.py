"""The annotators' kit: made, used to its end in a real browser, and read back."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import browser, check_nothing_asked
from PIL import Image
from processes import until
from refusals import refuses

from sr4g_utils.__main__ import main
from sr4g_utils.dataset import coco
from sr4g_utils.people import answers, kit

ANSWERS = ("yes", "no", "unclear", "missing")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models' images of twenty spatial prompts, each of a colour of its own."""
    rng = np.random.default_rng(0)
    prompts = pd.DataFrame(
        {"prompt_id": f"p{i}", "subject": "dog", "relation": name, "object": "cat", "caption": f"a dog {name} a cat"}
        for i, name in enumerate(("left of", "right of", "above", "below", "inside") * 4)
    )
    folders = {model: tmp_path_factory.mktemp(model) for model in ("base", "tuned")}
    for folder in folders.values():
        prompts.to_parquet(folder / "prompts.parquet")
        for id in prompts.prompt_id:
            Image.new("RGB", (60, 40), tuple(rng.integers(0, 255, 3).tolist())).save(folder / f"{id}_0.png")
    return folders


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("kit") / "kit.html"
    images = [f"{model}={folder}" for model, folder in folders.items()]
    assert main(["kit", "--images", *images, "--per-relation", "4", "--seed", "3", "--out", str(path)]) == 0
    return path


def answers_of(page, person: str, answer) -> pd.DataFrame:
    name, key = kit.read_key(page)
    rows = [{"kit": name, "person": person, "item": item, "position": i + 1, "answer": answer(i), "seconds": 1.5}
            for i, item in enumerate(key["item"])]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_tenth_is_asked_again_later_and_the_page_tells_nothing(page, folders):
    _, key = kit.read_key(page)
    again = key[key.repeat_of.notna()]
    assert len(key) == 22 and len(again) == 2 and key["item"].is_unique
    place = {item: i for i, item in enumerate(key["item"])}
    assert all(place[row["item"]] > place[row.repeat_of] for _, row in again.iterrows())
    assert set(key.model) == {"base", "tuned"}
    for name in (kit.read_key(page)[0], *key["item"]):
        assert re.fullmatch("[kq][0-9a-f]{11}", name), "a spreadsheet would read 00123 and 12e5 as numbers"
    assert key[key.repeat_of.isna()].groupby("relation").model.value_counts().eq(2).all()
    text = page.read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    shown = json.dumps(data["items"])
    for hidden in ("base", "tuned", "prompt", *(f"p{i}_" for i in range(20)), *map(str, folders.values())):
        assert hidden not in shown and f'"{hidden}"' not in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", text), "nothing comes from the network"


def test_the_same_seed_makes_the_same_page(page, folders, tmp_path):
    images = [f"{model}={folder}" for model, folder in folders.items()]
    for seed, same in (("3", True), ("4", False)):
        other = tmp_path / f"{seed}.html"
        main(["kit", "--images", *images, "--per-relation", "4", "--seed", seed, "--out", str(other)])
        assert (other.read_bytes() == page.read_bytes()) == same


@pytest.mark.slow("a browser")
def test_a_person_answers_all_twenty_in_a_browser(page, tmp_path):
    with browser(tmp_path) as driver:
        use(driver, page)
        saved = until(lambda: list(tmp_path.glob("answers-*.csv")), 60)[0]
        check_nothing_asked(driver)
    _, key = kit.read_key(page)
    told = answers.read(page, [saved])
    assert told["item"].tolist() == key["item"].tolist() and set(told.person) == {"Ada L."}
    assert told.answer.tolist() == ["no", *(ANSWERS[i % 4] for i in range(1, 22))]
    assert (told.seconds >= 0).all() and told.repeat_of.notna().sum() == 2
    again = answers.among(told, resamples=10).query("between == 'Ada L. and Ada L. again' and relation == 'all'")
    first = told.set_index("item").verdict
    same = [first[row["item"]] == first[row.repeat_of] for _, row in told[told.repeat_of.notna()].iterrows()]
    assert again.n.item() == 2 and again.agreement.item() == 100 * np.mean(same)


def use(browser, page) -> None:
    """Begin, answer some by key and some by touch, go back and correct, leave and come back, and go on to the end."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def there(id: str):
        return browser.find_element(By.ID, id)

    def press(key: str) -> None:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)

    browser.get(page.as_uri())
    there("begin").click()
    assert there("start").is_displayed(), "a name is needed"
    there("person").send_keys("Ada L.", Keys.ENTER)
    assert there("where").text == "Picture 1 of 22" and there("question").text.startswith("Does the picture show a dog")
    shown = there("picture")
    assert shown.get_property("naturalWidth") == 60 and shown.size["width"] >= 384 and shown.size["height"] >= 256
    assert shown.value_of_css_property("image-rendering") == "pixelated"
    press("1")
    press(Keys.ARROW_LEFT)
    assert browser.find_element(By.CSS_SELECTOR, "[data-answer=yes]").get_attribute("aria-pressed") == "true"
    press("2")
    for i in range(1, 8):
        press(str(i % 4 + 1))
    browser.get(page.as_uri())  # gone and back again
    there("person").send_keys("Ada L.", Keys.ENTER)
    assert there("where").text == "Picture 9 of 22"
    for i in range(8, 22):
        browser.find_element(By.CSS_SELECTOR, f"[data-answer={ANSWERS[i % 4]}]").click()
    assert there("end").is_displayed()
    there("save").click()


def test_several_people_agree_and_disagree(page, tmp_path):
    people = {"Ann": lambda i: ANSWERS[i % 2], "Ben": lambda i: ANSWERS[i % 2], "Cy": lambda i: ANSWERS[1 - i % 2]}
    for person, answer in people.items():
        answers_of(page, person, answer).to_csv(tmp_path / f"{person}.csv", index=False)
    told = answers.read(page, sorted(tmp_path.glob("*.csv")))
    table = answers.among(told, resamples=100).query("relation == 'all'").set_index("between")
    assert table.loc["Ann and Ben", ["n", "agreement", "kappa"]].tolist() == [20, 100, 1]
    assert table.loc["Ann and Cy", "agreement"] == 0
    assert table.loc["everybody", "agreement"] == pytest.approx(100 / 3) and table.loc["everybody", "n"] == 20
    assert table.loc["everybody", "agreement_low"] < 100 / 3 < table.loc["everybody", "agreement_high"]
    # one rule set that says what Ann says, and one that never says yes
    first = told[(told.person == "Ann") & told.repeat_of.isna()]
    said = pd.DataFrame({"item": first["item"], "visor": first.verdict == "true", "never": False})
    rows = answers.with_rules(told, said, resamples=50).query("relation == 'all'").set_index(["rules", "person"])
    assert rows.loc[("visor", "majority"), "kappa"] == rows.loc[("visor", "Ann"), "kappa"] == 1
    assert rows.loc[("visor", "Cy"), "accuracy"] == 0 and rows.loc[("never", "Ann"), "recall"] == 0
    for name in ("accuracy", "recall", "kappa"):
        assert (rows[f"{name}_low"] < rows[f"{name}_high"]).all(), "an interval has a width, also at 0 and 100 %"
    assert rows.loc[("visor", "Ann"), "accuracy_high"] == 1 and 0.7 < rows.loc[("visor", "Ann"), "accuracy_low"] < 0.9
    few = answers.with_rules(told, said, resamples=50).query("relation == 'left of'")
    assert (few.n == 4).all() and few.filter(regex="_low|_high").isna().all(axis=None), "four questions are too few"
    text = answers.summary(answers.among(told, 100), answers.with_rules(told, said, 50))
    assert re.search(r"^Two people agree on 33 % \[\d+, \d+\] of 20 questions\. Ann gives the same answer again", text)
    assert re.search(r"The rule sets agree with the majority: visor on 100 % \[\d+, 100\] of 20, never on \d+ %", text)


def test_generated_pictures_meet_their_detections(page, tmp_path, capsys):
    answers_of(page, "Ann", lambda i: "yes").to_csv(tmp_path / "ann.csv", index=False)
    found = [
        {"prompt_id": f"p{i}", "image_index": 0, "label": label, "score": 0.9, "x": x, "y": 0.0, "w": 9.0, "h": 9.0,
         "width": 60, "height": 40}
        for i in range(20) for label, x in (("dog", 0.0), ("cat", 40.0))
    ]  # fmt: skip
    pd.DataFrame(found).to_parquet(tmp_path / "d.parquet")
    files = [f"{model}={tmp_path / 'd.parquet'}" for model in ("base", "tuned")]
    command = ["answers", str(page), str(tmp_path / "ann.csv"), "--resamples", "100", "--out", str(tmp_path / "out")]
    assert main([*command, "--detections", *files]) == 0
    table = pd.read_csv(tmp_path / "out" / "with_rules.csv").set_index(["relation", "rules"])
    assert table.loc[("left of", "visor"), "recall"] == 1 and table.loc[("right of", "visor"), "recall"] == 0
    assert table.loc[("all", "visor"), "n"] == 20 and ("inside", "geneval") not in table.index
    assert main([*command, "--detections", files[0]]) == 1
    assert "the model 'tuned' of the kit has no file" in capsys.readouterr().err


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_answers_saved_by_a_spreadsheet_are_read(page, tmp_path, delimiter):
    table = answers_of(page, "Zoë", lambda i: ANSWERS[i % 4])
    table.to_csv(tmp_path / "plain.csv", index=False)
    plain = answers.read(page, [tmp_path / "plain.csv"])
    table["answer"] = table.answer.str.upper() + " "
    table["seconds"] = "1,5" if delimiter != "," else "1.5"
    text = table.to_csv(index=False, sep=delimiter, lineterminator="\r\n") + delimiter * 5 + "\r\n"
    (tmp_path / "saved.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(answers.read(page, [tmp_path / "saved.csv"]), plain)


def test_mistakes_are_named(page, tmp_path):
    table = answers_of(page, "Ann", lambda i: "yes")
    for column, value, message in (
        ("kit", "other", "an answer to the kit 'other', not to"), ("item", "x", "the kit has no item 'x'"),
        ("answer", "perhaps", "answer 'perhaps' is none of yes, no, unclear, missing"),
        ("person", "", "the person has no name"),
    ):  # fmt: skip
        spoilt = table.copy()
        spoilt.loc[0, column] = value
        spoilt.to_csv(tmp_path / "a.csv", index=False)
        refuses(f"a.csv, line 2: {message}", answers.read, page, [tmp_path / "a.csv"])
    for name in ("a", "b"):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match=r"b.csv: 'Ann' answered \w+ in another file, too"):
        answers.read(page, [tmp_path / "a.csv", tmp_path / "b.csv"])
    table.drop(columns="answer").to_csv(tmp_path / "c.csv", index=False)
    refuses("column 'answer' is missing", answers.read, page, [tmp_path / "c.csv"])
    (tmp_path / "no.html").write_text("<html></html>")
    refuses(r"no.html: not a kit written by", answers.read, tmp_path / "no.html", [tmp_path / "a.csv"])


def test_photos_are_stratified_by_margin_and_weighted_back(shared, tmp_path):
    excerpt = shared / "coco_excerpt"
    annotations = excerpt / "annotations" / "instances_val2017.json"
    path = tmp_path / "photos.html"
    command = ["--images", str(excerpt / "val2017"), "--annotations", str(annotations), "--out", str(path)]
    assert main(["kit", *command, "--per-relation", "4"]) == 0
    _, key = kit.read_key(path)
    asked = key[key.repeat_of.isna()]
    common = asked[asked.relation.isin(["left of", "above", "larger"])]
    assert common.groupby("relation").stratum.apply(set).map(len).eq(4).all()
    assert asked.drop_duplicates(["relation", "stratum"]).groupby("relation").share.sum().le(1 + 1e-9).all()
    answers_of(path, "Ann", lambda i: "yes").to_csv(tmp_path / "a.csv", index=False)
    told = answers.read(path, [tmp_path / "a.csv"])
    said = answers.by_rules(told, [coco.read(annotations, "val").without_crowds()])
    items = said.merge(asked, on="item")
    assert (items.visor.astype(bool) == items.stratum.str.startswith("true")).all()
    rows = answers.with_rules(told, said, resamples=10).set_index(["relation", "rules"])
    strata = asked[asked.relation == "left of"].drop_duplicates("stratum")
    true = strata[strata.stratum.str.startswith("true")].share.sum()
    assert rows.loc[("left of", "visor"), "accuracy"] == pytest.approx(true / strata.share.sum())
