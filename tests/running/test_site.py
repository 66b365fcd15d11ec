"""The site of a run: built without a complaint, searchable from a file, at home on a phone, and asking nobody."""

import base64
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import bs4
import nbformat
import pandas as pd
import pytest
from browser import browser, check_boxes_move, check_fits, check_loads_nothing, check_nothing_asked

from sr4g_utils.running import profiles
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT
from sr4g_utils.store.run import Run

for name in ("sphinx", "myst_nb", "furo"):
    pytest.importorskip(name, reason=f"{name} is not installed (the extra `site`)")

ROWS = 200  # of a table on a page
NAMES = ["01_heuristics", "02_dataset", "03_finetuning", "04_evaluation"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with the checkout's own notebooks and a picture in each, the recorded results, and a long table."""
    picture = base64.b64encode((ROOT / "data" / "results" / "miniature" / "cards.png").read_bytes()).decode()
    folder = tmp_path_factory.mktemp("runs") / "miniature"
    for name in NAMES:
        run = Run(folder, name)
        notebook = nbformat.read(profiles.notebooks()[name], 4)
        output = nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"})
        notebook.cells.append(nbformat.v4.new_code_cell("draw()", outputs=[output]))
        files.write_text(folder / "notebooks" / f"{name}.ipynb", nbformat.writes(notebook))
    run.table(files.ledger(), "ledger", "Decisions & more")
    run.table(pd.DataFrame({"number": range(ROWS + 34), "a_wide_column " * 30: "text"}), "long", "A long, wide table")
    shutil.copytree(ROOT / "data" / "results" / "miniature", folder / "artifacts" / "results", dirs_exist_ok=True)
    (folder / "figures" / "scores.png").write_bytes(
        (ROOT / "data" / "results" / "miniature" / "cards.png").read_bytes()
    )
    profiles.claim(folder, "miniature")
    record = {"inputs": {}, "outputs": ["figures/scores.png"]}
    record["outputs"] += [f"tables/{name}.{form}" for name in ("ledger", "long") for form in ("csv", "md", "tex")]
    files.write_json(folder / ".state" / "04_evaluation.files.json", record)
    return folder


def sphinx(run: Path, target: Path) -> subprocess.CompletedProcess:
    """``make site``'s command."""
    command = [sys.executable, "-m", "sphinx", "-qE", "-D", f"run={run}", "docs", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def building(run_folder, tmp_path_factory):
    """The site, what building it said, and the seconds that it took."""
    target = tmp_path_factory.mktemp("sites") / "a site"
    began = os.times().children_user
    done = sphinx(run_folder, target)
    assert done.returncode == 0, done.stderr
    return target, done.stdout + done.stderr, os.times().children_user - began


@pytest.fixture(scope="module")
def built(building):
    return building[0]


def pages_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.html"))


def soup_of(path: Path) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_it_is_built_quickly_without_a_complaint_and_leaves_nothing_beside_it(building):
    built, complaints, seconds = building
    assert complaints == ""
    assert seconds < 120, "of one core; 30 s on a machine of its own"
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    names = {str(path.relative_to(built)) for path in pages_of(built)}
    docs = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    notebooks = {f"notebooks/{name}.html" for name in NAMES}
    assert names == docs | notebooks | {"index.html", "search.html", "README.html", "tables/04_evaluation.html"}


def test_no_page_loads_anything_and_every_link_leads_somewhere(built):
    for path in pages_of(built):
        check_loads_nothing(path.read_text(encoding="utf-8"))
        for tag in soup_of(path).select("[href], [src]"):
            address = (tag.get("href") or tag["src"]).partition("#")[0].partition("?")[0]
            if address and not address.startswith(("http", "data:", "mailto:")):
                assert (path.parent / address.replace("%20", " ")).exists(), (path, address)


def test_the_first_page_answers_first(built):
    soup = soup_of(built / "index.html")
    standing = soup.select_one(".standing").text
    count = len(profiles.load_profile("miniature", [], ROOT))
    assert f"Unfinished: 0 of {count}" in standing and "05_analysis: not run" in standing
    assert [heading.text.rstrip("¶#") for heading in soup.select(".answer h2")][:2] == ["The paper's claims", "Scores"]
    assert soup.select_one(".answer figure img")["alt"]


def test_tables_and_files_can_be_downloaded(built):
    soup = soup_of(built / "tables" / "04_evaluation.html")
    assert f"The first {ROWS} of {ROWS + 34} rows" in soup.text and "Table 4.1. Decisions & more" in soup.text
    long = soup.select("table")[1]
    assert len(long.select("tbody tr")) == ROWS
    downloads = [link["href"] for link in soup.select("a.download")]
    assert [Path(link).name for link in downloads] == ["ledger.csv", "ledger.tex", "long.csv", "long.tex"]
    csv = (built / "tables" / downloads[2]).read_text(encoding="utf-8")
    assert len(csv.splitlines()) == ROWS + 35


def test_the_notebooks_show_equations_pictures_and_boxes(built):
    page = soup_of(built / "notebooks" / "03_finetuning.html")
    assert page.select_one("math[display=block]") and page.select_one("math[display=inline]")
    assert not [script for script in page.select("script") if "mathjax" in str(script).lower()]
    for name in NAMES:
        soup = soup_of(built / "notebooks" / f"{name}.html")
        pictures = soup.select(".cell_output img")
        assert pictures and all(picture["alt"] and "_images" not in picture["alt"] for picture in pictures)
        assert ("mount(document.querySelector" in str(soup)) == (name == "01_heuristics")


@pytest.mark.slow("a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_reads_every_page_and_finds_visor_cond(built, width, tmp_path):
    from selenium.webdriver.support.wait import WebDriverWait

    with browser(tmp_path, width) as driver:
        for path in pages_of(built):
            check_fits(driver, path)
        driver.get((built / "notebooks" / "01_heuristics.html").as_uri())
        check_boxes_move(driver)
        picture = driver.find_element("css selector", ".cell_output img")
        driver.execute_script("arguments[0].click()", picture)
        assert driver.find_element("css selector", "dialog[open] img").size["width"] >= width - 40
        driver.get(f"{(built / 'search.html').as_uri()}?q=VISOR_Cond")

        def found():  # results come one by one
            links = driver.find_elements("css selector", "#search-results li a")
            return {link.get_attribute("href").partition("?")[0].partition("#")[0] for link in links}

        page = (built / "notebooks" / "04_evaluation.html").as_uri()
        WebDriverWait(driver, 120).until(lambda _: page in found())
        check_nothing_asked(driver)


def test_what_else_is_in_the_folder_is_kept(run_folder, tmp_path):
    bare, mine = tmp_path / "runs" / "miniature", tmp_path / "mine"
    for folder in ("figures", "notebooks"):
        (bare / folder).mkdir(parents=True)
    shutil.copy(run_folder / "notebooks" / f"{NAMES[0]}.ipynb", bare / "notebooks")
    files.write_text(mine / "thesis.tex", "years of work")
    assert sphinx(bare, mine).returncode == 0 and (mine / "index.html").is_file()
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_a_run_that_has_no_notebook_is_told_in_one_line(tmp_path):
    done = sphinx(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path} has no executed notebook; run the profile first, or give its folder: RUN=…\n"


def test_links_of_the_docs_lead_to_pages_downloads_or_nowhere(tmp_path):
    with_links, checkout = runpy.run_path(str(ROOT / "docs" / "conf.py"))["with_links"], tmp_path / "checkout"
    for name in ("docs/a.md", "docs/b.md", "data/c.yaml", "notebooks/01_one.ipynb", "notebooks/02_two.ipynb", "d.png"):
        files.write_text(checkout / name, name)
    text = (
        "[b](b.md#there) [c `x`](../data/c.yaml) [data](../data) [one](../notebooks/01_one.ipynb) "
        "[two](../notebooks/02_two.ipynb) ![picture](../d.png) [out](https://example.org/) [none](../none.md)"
    )
    documents = {Path("docs/a.md"), Path("docs/b.md"), Path("notebooks/01_one.ipynb")}
    source = tmp_path / "source"
    assert with_links(text, Path("docs/a.md"), documents, source, checkout) == (
        "[b](b.md#there) {download}`c x </files/data/c.yaml>` data [one](../notebooks/01_one.ipynb) "
        "{download}`two </files/notebooks/02_two.ipynb>` ![picture](../d.png) [out](https://example.org/) "
        "[none](../none.md)"
    )
    assert (source / "files" / "data" / "c.yaml").read_text() == "data/c.yaml" and (source / "d.png").exists()
