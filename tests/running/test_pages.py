"""Pages of notebooks: they load nothing, show equations, describe pictures and enlarge them."""

import base64
import io
import json
import re
import shutil

import bs4
import nbformat
import numpy as np
import pytest
from browser import browser, check_boxes_move, check_fits, check_loads_nothing, check_nothing_asked
from PIL import Image

from sr4g_utils.running import pages, profiles
from sr4g_utils.store.files import ROOT

WITH_BOXES = "01_heuristics"


def picture(size: tuple[int, int] = (1500, 900)) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def notebook(tmp_path):
    """An executed notebook with equations, a picture with and one without a description, and a wide table."""
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    text = "# 09 · Nine\n\nFor $x < y$ and \\$5:\n\n$$\\mathbb{E}\\lVert\\epsilon - \\epsilon_\\theta\\rVert_2^2$$\n"
    outputs = [
        nbformat.v4.new_output("display_data", {"image/png": picture(), "text/plain": "<Figure>"}),
        nbformat.v4.new_output("display_data", {"image/png": picture()}, metadata={"image/png": {"alt": 'A "b" & c'}}),
        nbformat.v4.new_output("display_data", {"text/latex": "$\\alpha$"}),
        nbformat.v4.new_output("display_data", {"text/html": f"<table><tr>{'<td>number</td>' * 60}</tr></table>"}),
    ]
    code = nbformat.v4.new_code_cell("print('a line that is long')  # " + "long " * 40, outputs=outputs)
    made.cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_markdown_cell("## 9.1 Look"), code]
    path = tmp_path / "09_nine.ipynb"
    nbformat.write(made, path)
    return path


def test_a_page_loads_nothing_draws_its_equations_and_describes_its_pictures(notebook):
    page = pages.to_html(notebook)
    text = page.read_text(encoding="utf-8")
    check_loads_nothing(text)
    described = [picture["alt"] for picture in bs4.BeautifulSoup(text, "html.parser").select("img")]
    assert described == ["A picture of “9.1 Look”", 'A "b" & c']
    assert "<title>09_nine</title>" in text and "mount(document" not in text
    assert nbformat.read(notebook, 4).cells[2].outputs[0].metadata == {}, "the notebook itself stays as it is"
    assert text.count('<math display="inline"') == 2 and text.count('<math display="block"') == 1
    assert "$5" in text and "mathjax" not in text.lower() and "\\epsilon" not in text, "drawn without a script"


@pytest.mark.parametrize("name", list(profiles.load_profile("miniature", [], ROOT)))
def test_the_pages_of_the_study_load_nothing(name, tmp_path):
    path = tmp_path / f"{name}.ipynb"
    path.write_bytes(profiles.notebooks()[name].read_bytes())
    text = pages.to_html(path).read_text(encoding="utf-8")
    check_loads_nothing(text)
    assert "No description has been provided" not in text
    assert ("mount(document.querySelector" in text) == (name == WITH_BOXES)


def soup_of(page) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def written(path, *cells) -> bs4.BeautifulSoup:
    """The page of a notebook of these cells, alone in its folder."""
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return soup_of(pages.to_html(path))


def test_what_a_text_links_in_the_checkout_is_named(tmp_path):
    text = "[a](../docs/a.md#b), [`data/c.yaml`](../data/c.yaml), [b](https://example.org/../b) and [c](#c)"
    paragraph = written(tmp_path / "09_nine.ipynb", nbformat.v4.new_markdown_cell(text)).select_one("main p")
    assert paragraph.text == "a (docs/a.md), data/c.yaml, b and c"
    assert [link["href"] for link in paragraph.select("a")] == ["https://example.org/../b", "#c"]
    text = "![cards](../data/results/miniature/cards.png) ![gone](../data/gone.png)"
    paragraph = written(tmp_path / "09_nine.ipynb", nbformat.v4.new_markdown_cell(text)).select_one("main p")
    assert [image["src"][:22] for image in paragraph.select("img")] == [
        "data:image/png;base64,"
    ] and "gone" in paragraph.text


def test_a_page_leads_to_its_sections_and_in_a_run_to_its_neighbours(tmp_path):
    text = "# 02 · Two\n\n## 2.1 One `x` & $y$\n\n### Less\n\n## 2.2 Two"
    alone = written(tmp_path / "09_nine.ipynb", nbformat.v4.new_markdown_cell(text))
    sections = alone.select("nav.ways .contents a")
    assert [link.text for link in sections] == ["2.1 One x & y", "2.2 Two"]
    assert all(alone.find(id=link["href"][1:]).name == "h2" for link in sections)
    assert [link for link in alone.select("a[href]") if not link["href"].startswith("#")] == []
    names = ["01_heuristics", "02_dataset", "04_evaluation"]
    for name, around in (("01_heuristics", [None, "02_dataset"]), ("02_dataset", ["01_heuristics", "04_evaluation"])):
        shutil.copy(tmp_path / "09_nine.ipynb", path := tmp_path / f"{name}.ipynb")
        links = {
            link.get("rel", ["index"])[0]: link["href"] for link in soup_of(pages.to_html(path, names)).select(".run a")
        }
        wanted = dict(zip(("prev", "next"), around, strict=True))
        assert links == {"index": "../index.html"} | {rel: f"{other}.html" for rel, other in wanted.items() if other}


def test_code_can_be_folded_and_parameters_are(tmp_path):
    cells = [nbformat.v4.new_code_cell(f"x = {i}") for i in range(3)]
    for cell, tag in zip(cells, ("parameters", "injected-parameters"), strict=False):
        cell.metadata.tags = [tag]
    folds = written(tmp_path / "09_nine.ipynb", *cells).select("details.code")
    assert [fold.summary.text for fold in folds] == ["Parameters", "Parameters of this run", "Code"]
    assert [fold.has_attr("open") for fold in folds] == [False, False, True] and "x = 2" in folds[2].text


@pytest.mark.parametrize(("tex", "tag"), [
    (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"), (r"\begin{align*} a &= b \end{align*}", "<mtable"),
    (r"\frac{1}{N}\sum_{i=1}^{N} x_i", "<mfrac>"), (r"\frac{", "<code>"), (r"a_", "<code>"),
    (r"\big\lVert x \big\rVert", "<code>"), (r"\nosuchthing{x}", "<code>"), (r"<b>\nosuchthing", "<code>&lt;b&gt;"),
])  # fmt: skip
def test_an_equation_is_drawn_or_shown_as_it_is_written(tex, tag):
    assert tag in pages.equation(tex, "block")


def test_all_equations_of_the_project_can_be_drawn(monkeypatch):
    seen = []
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for text in texts:
        monkeypatch.setattr(pages, "equation", lambda tex, display="inline": seen.append(tex) or "")
        pages.markdown_to_html(text)
        monkeypatch.undo()
    assert [tex for tex in seen if "<math" not in pages.equation(tex)] == []


@pytest.mark.slow("a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_and_enlarges_a_picture(notebook, width, tmp_path):
    from selenium.webdriver.support.wait import WebDriverWait

    page = pages.to_html(notebook)
    with browser(tmp_path, width) as driver:
        check_fits(driver, page)
        assert driver.execute_script("return document.querySelector('math').getBoundingClientRect().width") > 10
        letter, index = driver.find_elements("css selector", "msub > *")[:2]
        assert index.rect["y"] + index.rect["height"] > letter.rect["y"] + letter.rect["height"] + 2, "it is lowered"
        for wide in ("div:has(> table)", ".jp-InputArea-editor"):
            place = driver.find_element("css selector", wide)
            scrolled = driver.execute_script("arguments[0].scrollLeft = 50; return arguments[0].scrollLeft", place)
            assert scrolled == 50 and place.size["width"] <= width, wide
        small = driver.find_element("css selector", ".jp-RenderedImage img")
        assert small.size["width"] <= width and small.get_attribute("role") == "button"
        driver.execute_script("arguments[0].focus()", small)
        small.send_keys("\ue007")
        dialog = driver.find_element("css selector", "dialog[open]")
        large = dialog.find_element("css selector", "img")
        assert large.size["width"] == 1500 and large.get_attribute("alt") == small.get_attribute("alt")
        dialog.find_element("css selector", "button").click()
        WebDriverWait(driver, 60).until(lambda driver: not driver.find_elements("css selector", "dialog"))
        fold, code = (driver.find_element("css selector", what) for what in (".ways button", "details.code pre"))
        driver.execute_script("arguments[0].click()", fold)
        assert not code.is_displayed() and fold.text == "Unfold code"
        check_nothing_asked(driver)


@pytest.mark.slow("a browser")
def test_a_page_that_was_taken_out_of_its_run_leads_nowhere_else(notebook, tmp_path):
    with browser(tmp_path) as driver:
        for folder, is_in_run in (("notebooks", True), ("mail", False)):
            path = tmp_path / folder / notebook.name
            path.parent.mkdir()
            shutil.copy(notebook, path)
            driver.get(pages.to_html(path, ["01_heuristics"]).as_uri())
            assert driver.find_element("css selector", ".ways .run").is_displayed() == is_in_run


@pytest.mark.slow("a browser")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_drags_the_boxes_of_notebook_01(width, dark, tmp_path):
    path = tmp_path / f"{WITH_BOXES}.ipynb"
    path.write_bytes(profiles.notebooks()[WITH_BOXES].read_bytes())
    with browser(tmp_path, width, dark) as driver:
        check_fits(driver, pages.to_html(path))
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        check_boxes_move(driver)
        check_nothing_asked(driver)


def test_figures_and_tables_are_shown_once_with_numbers_and_captions(tmp_path):
    """In a kernel, where matplotlib would show a figure once more at the cell's end."""
    nbclient = pytest.importorskip("nbclient")
    code = (
        "import pandas as pd\nfrom matplotlib import pyplot as plt\nfrom sr4g_utils.dataset.figures import use_style\n"
        f"from sr4g_utils.store.run import Run\nuse_style()\nrun = Run({str(tmp_path)!r}, '09_nine')\n"
        "for name in ('one', 'two', 'one'):\n"
        "    figure, axis = plt.subplots()\n    run.figure(figure, name, f'Figure <{name}>')\n"
        "run.table(pd.DataFrame({'n': [1234, None]}), 'three', 'Table of *three*').head()"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = notebook.cells[0].outputs
    alts = [output.metadata["image/png"]["alt"] for output in outputs if "image/png" in output.data]
    assert alts == ["Figure <one>", "Figure <two>", "Figure <one>"]
    captions = [output.data["text/plain"] for output in outputs[1:7:2]]
    assert captions == ["Figure 9.1. Figure <one>", "Figure 9.2. Figure <two>", "Figure 9.1. Figure <one>"]
    assert outputs[6].data["text/plain"] == "Table 9.1. Table of *three*"
    nbformat.write(notebook, tmp_path / "09_nine.ipynb")
    page = soup_of(pages.to_html(tmp_path / "09_nine.ipynb"))
    assert page.find(id="table-9.1").text == "Table 9.1. Table of *three* tables/three.csv"
    assert page.find(id="figure-9.2").text == "Figure 9.2. Figure <two>"
    assert [cell.text for cell in page.select("td")] == ["1,234", "–"]
    assert Image.open(tmp_path / "figures" / "two.png").info["Description"] == "Figure <two>"
