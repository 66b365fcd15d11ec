"""The first page of a run: whether the run is good, what it answers, and what it has made."""

import html
import json
import re
import shutil

import bs4
import pytest
from browser import browser, check_fits, check_loads_nothing, check_nothing_asked
from matplotlib import pyplot as plt

from sr4g_utils.running import execute, index, profiles
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT
from sr4g_utils.store.run import Run

NAMES = list(profiles.load_profile("miniature", [], ROOT))
RECORDED = ROOT / "data" / "results"


def finished(folder, names=NAMES, seconds: float = 30.0):
    """A run folder as a run leaves it, with a figure, a table and a result by each notebook."""
    for name in names:
        run = Run(folder, name)
        figure, _ = plt.subplots()
        run.figure(figure, f"figure_{name}", f"A <figure> of {name}")
        plt.close(figure)
        run.table(files.ledger().head(2), f"table_{name}", f"A & table of {name}")
        notebook = json.loads(profiles.notebooks()[name].read_text(encoding="utf-8"))
        notebook["metadata"]["papermill"] = {"duration": seconds}
        for part in ("ipynb", "html"):
            files.write_text(folder / "notebooks" / f"{name}.{part}", json.dumps(notebook))
        files.write_json(folder / ".state" / f"{name}.done.json", {"key": "", "inputs": {}, "outputs": {}})
    (folder / "run.log").touch()
    return folder


@pytest.fixture
def study(tmp_path):
    """The default profile's run with its recorded results."""
    folder = finished(tmp_path / "miniature")
    shutil.copytree(RECORDED / "miniature", folder / "artifacts" / "results", dirs_exist_ok=True)
    return folder


def read(folder, names=NAMES) -> bs4.BeautifulSoup:
    index.write_index(folder, names)
    text = (folder / "index.html").read_text(encoding="utf-8")
    check_loads_nothing(text)
    soup = bs4.BeautifulSoup(text, "html.parser")
    for tag in soup.select("[href], [src]"):
        assert (folder / (tag.get("href") or tag["src"])).exists(), tag
    assert all(picture["alt"] for picture in soup.select("img"))
    return soup


def standing(soup: bs4.BeautifulSoup) -> tuple[str, str]:
    box = soup.select_one(".standing")
    return " ".join(box["class"][1:]), box.get_text(" ")


def test_a_good_run_says_so_and_names_the_results_that_differ_from_the_recorded_ones(study):
    css, text = standing(read(study))
    count = len(list((RECORDED / "miniature").glob("*.json")))
    assert css == "good" and text.startswith(f"✓ Finished: {len(NAMES)} of {len(NAMES)} notebooks are done, in")
    assert f"in {0.5 * len(NAMES):.1f} minutes" in text and f"All {count} results agree" in text
    path = study / "artifacts" / "results" / "scores.json"
    found = files.read_json(path)
    found["rows"][0]["value"] += 50
    files.write_json(path, found)
    (study / "artifacts" / "results" / "bias.json").unlink()
    css, text = standing(read(study))
    assert css == "good" and "2 of " in text and "(bias, scores)" in text


def test_a_failed_cell_is_named(study):
    name = NAMES[3]
    (study / ".state" / f"{name}.done.json").unlink()
    path = study / "notebooks" / f"{name}.ipynb"
    notebook = files.read_json(path)
    failure = {"output_type": "error", "ename": "ValueError", "evalue": "no <cat>", "traceback": []}
    code = next(i for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code")
    notebook["cells"][code]["outputs"] = [failure]
    warning = {"cell_type": "markdown", "metadata": {"tags": ["papermill-error-cell-tag"]}, "source": ""}
    files.write_json(path, notebook | {"cells": [warning, *notebook["cells"]]})  # the first is papermill's own
    soup = read(study)
    css, text = standing(soup)
    assert css == "bad" and f"✗ Failed: {len(NAMES) - 1} of {len(NAMES)}" in text
    assert f"{name}: failed (cell {code + 1}: ValueError: no <cat>)" in text and "agree" not in text
    links = [link["href"] for link in soup.select("a")]
    assert f"notebooks/{name}.ipynb" in links
    assert f"notebooks/{name}.html" not in links, "it is of an earlier run"


def test_a_run_that_was_stopped_says_where(study):
    for name in NAMES[3:]:
        (study / ".state" / f"{name}.done.json").unlink()
    (study / "notebooks" / f"{NAMES[4]}.ipynb").unlink()
    css, text = standing(read(study))
    assert css == "" and f"Unfinished: 3 of {len(NAMES)} notebooks are done" in text
    assert f"{NAMES[3]}: unfinished (stopped before its end; run again to go on)" in text
    assert f"{NAMES[4]}: not run" in text
    shutil.rmtree(study)
    files.write_text(study / "run.log", "")  # one that has not begun
    css, text = standing(read(study))
    assert css == "" and f"Unfinished: 0 of {len(NAMES)}" in text and text.count("not run") == len(NAMES)


def test_a_notebook_that_read_what_has_since_changed_is_out_of_date(study):
    prompts = str(study / "artifacts" / "prompts.parquet")
    for name, record in ((NAMES[1], {"inputs": {}, "outputs": {"artifacts/prompts.parquet": "new"}}),
                         (NAMES[2], {"inputs": {prompts: "old", "/elsewhere": "x"}, "outputs": {}})):  # fmt: skip
        files.write_json(study / ".state" / f"{name}.done.json", record | {"key": ""})
    css, text = standing(read(study))
    assert css == "" and f"{NAMES[2]}: out of date (made from an earlier prompts.parquet; run again)" in text


def test_every_claim_stands_with_its_verdict_and_number(study):
    soup = read(study)
    rows = files.read_json(RECORDED / "miniature" / "claims.json")["rows"]
    shown = [row.get_text(" ") for row in soup.select(".claims tbody tr")]
    assert len(shown) == len(rows) > 12
    for row, text in zip(rows, shown, strict=True):
        assert text.startswith(row["verdict"]) and row["claim"] in text and row["holds if"] in text
        assert (f"this test: {row['test']}" in text) == (row["test"] != row["verdict"])
        if row["number"] is not None:
            whole = row["number"] == int(row["number"])
            assert f"{row['number']:.{0 if whole else 1}f} [".replace("-", "−") in text
    assert "The miniature world" in soup.text and "no number here is the paper's" in soup.text


def changed(objects: str) -> str:
    """VISOR_Cond of the recorded run before and after, in words."""
    rows = files.read_json(RECORDED / "miniature" / "changes.json")["rows"]
    (row,) = (r for r in rows if (r["objects"], r["metric"], r["relation"]) == (objects, "VISOR_Cond", "all"))
    return f"VISOR_Cond {row['before']:.1f} → {row['after']:.1f}, {row['difference']:+.1f} points"


def judge_of(about: dict) -> str:
    return f"boxes of tiny-owlvit@sha256 {files.hash_of(about['detector']['files'])[:12]}"


def test_the_end_of_a_run_says_what_the_median_of_the_judges_says(study):
    rows = files.read_json(RECORDED / "miniature" / "judges.json")["rows"]
    (median,) = (r for r in rows if r["judge"].startswith("median") and r["metric"] == "VISOR_Cond" and r["gain"]
                 and r["objects"] == "unseen")  # fmt: skip
    gain = "{gain:+.1f}, {gain_low:+.1f} to {gain_high:+.1f}".format(**median)
    words = execute.in_words(execute.report(study, {"04_evaluation": 1.0})).splitlines()
    (line,) = (line for line in words if line.startswith("fine-tuned, unseen objects"))
    assert line.endswith(f"; by the median of the judges {gain}).") and changed("unseen") in line
    (study / "artifacts" / "results" / "judges.json").unlink()
    assert "median" not in execute.in_words(execute.report(study, {"04_evaluation": 1.0}))


def test_the_scores_are_the_recorded_ones(study):
    soup, scores = read(study), files.read_json(RECORDED / "miniature" / "scores.json")
    lines = [line.get_text(" ") for line in soup.select("tbody tr")]
    for row in scores["rows"]:
        if row["relation"] == "all" and row["metric"] in index.MAIN:
            shown = f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
            assert any(line.startswith(f"{row['objects']} {row['model']} ") and shown in line for line in lines), row
    about = scores["about"]
    judges = f"Judged by {judge_of(about)}, threshold {about['threshold']}, best pair, rules visor."
    assert judges in soup.text and len(soup.select("details p")) == 6
    assert f"python {scores['provenance']['python']}" in soup.text and scores["provenance"]["machine"] in soup.text


def test_a_run_of_one_model_says_its_score_and_who_judged_it_at_its_end(tmp_path):
    """Also of three prompts, where there is no interval."""
    record = files.read_json(RECORDED / "miniature" / "scores.json")
    rows = [row for row in record["rows"] if row["model"] == "base" and row["objects"] == "all"]
    path = tmp_path / "artifacts" / "results" / "scores.json"
    files.write_json(path, record | {"rows": rows})
    said = execute.report(tmp_path, {"04_evaluation": None})
    (score,) = said["scores"]
    assert {row["metric"] for row in score["scores"]} == set(index.MAIN) and score["judged"]["threshold"] == record[
        "about"
    ]["threshold"]
    words = execute.in_words(json.loads(json.dumps(said)))
    prompts = record["about"]["prompts"]["sha256"][:12]
    judges = f"392 prompts of the study (sha256 {prompts}), 784 images, seed {record['about']['seed']}; "
    judges += judge_of(record["about"])
    whole = {row["metric"]: row for row in rows if row["relation"] == "all"}
    chance = f"chance of VISOR_Cond: {whole['VISOR_Cond']['chance']:.1f}"
    assert f"base, all objects: {score['cite']}; {chance}" in words and judges in words
    assert (
        ", ".join(map("{metric} {value:.1f} [{low:.1f}, {high:.1f}]".format_map, map(whole.get, index.MAIN))) in words
    )
    files.write_json(path, record | {"rows": [row | {"low": None, "high": None} for row in rows]})
    bare = ", ".join(map("{metric} {value:.1f}".format_map, map(whole.get, index.MAIN)))
    assert f"{bare} (" in execute.in_words(execute.report(tmp_path, {"04_evaluation": 1.0}))
    files.write_json(path, record)
    assert (
        "To cite" not in (words := execute.in_words(execute.report(tmp_path, {"04_evaluation": 1.0})))
        and "OA" not in words
    )


COUNTS = "claim,reported,ours,ours / reported,source\ncaptions,9900000,9815810,0.99,arXiv\n"
AGREEMENT = (
    "detector,rules,pairs,images,n,agreement,agreement_low,agreement_high,kappa,kappa_low,kappa_high\n"
    "DINO,visor,any,all,200,74.5,68.5,80.4,0.49,,\nDINO,visor,any,decided,100,80,,,0.5,,\n"
)


@pytest.mark.parametrize(("profile", "names", "made", "content", "title"), [
    ("coco", ["01_heuristics", "02_dataset"], "tables/claims_dataset.csv", COUNTS, "The paper's counts, on COCO"),
    ("people", ["06_people"], "tables/people_generated.csv", AGREEMENT, "Agreement with people"),
    ("evaluate", ["04_evaluation"], "artifacts/results/scores.json", None, "Scores"),
])  # fmt: skip
def test_a_profile_of_some_notebooks_answers_what_it_can(profile, names, made, content, title, tmp_path):
    folder = finished(tmp_path / profile, names)
    files.write_text(folder / made, content or (RECORDED / "miniature" / "scores.json").read_text(encoding="utf-8"))
    soup = read(folder, names)
    shown = {heading.text for heading in soup.select(".answer h2")} - {"Notebooks and minutes", "Made with"}
    assert ("None is of this run" in soup.text) == (profile == "people")
    assert shown == {title} and "not run" not in soup.text and ("9,815,810" in soup.text) == (profile == "coco")
    rows = [row.get_text(" ") for row in soup.select("tbody tr") if "DINO" in row.text]
    assert rows == (["DINO visor any 200 74.5 [68.5, 80.4] 0.49"] if profile == "people" else [])


def test_everything_made_is_linked_and_escaped(study):
    (study / "artifacts" / "a model #1.txt").touch()
    state = study / ".state" / f"{NAMES[0]}.files.json"
    record = files.read_json(state)
    files.write_json(state, record | {"outputs": [*record["outputs"], "artifacts/a model #1.txt"]})
    index.write_index(study, NAMES)
    text = (study / "index.html").read_text(encoding="utf-8")
    for number, name in enumerate(NAMES, 1):
        for label, caption in (("Figure", f"A <figure> of {name}"), ("Table", f"A & table of {name}")):
            assert f"{label} {number}.1. {html.escape(caption)}" in text
        for kind, suffix in (*(("table", s) for s in ("csv", "md", "tex")), ("figure", "png"), ("figure", "pdf")):
            assert f'href="{kind}s/{kind}_{name}.{suffix}"' in text
    assert 'href="artifacts/a%20model%20%231.txt"' in text and '<a href="run.log">' in text


@pytest.mark.slow("a browser")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_a_browser_shows_it_by_day_and_by_night(study, width, dark, tmp_path):
    index.write_index(study, NAMES)
    with browser(tmp_path, width, dark) as driver:
        check_fits(driver, study / "index.html")
        ink = driver.execute_script("return getComputedStyle(document.querySelector('.answer')).color")
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) == dark
        box = driver.find_element("css selector", ".standing")
        assert box.is_displayed() and box.location["y"] + box.size["height"] < 844, "seen without scrolling"
        check_nothing_asked(driver)
