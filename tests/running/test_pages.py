"""Pages of notebooks: they load nothing, show equations, describe pictures and enlarge them."""

import base64
import io
import json
import re

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


def test_links_to_the_checkout_lead_there_from_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path / "checkout")
    text = "[a](../docs/a.md#b), [b](https://example.org/../b) and [c](#c)"
    for folder, lead in (("checkout/runs/x/notebooks", "../../../docs/a.md#b"), ("elsewhere", None)):
        path = tmp_path / folder / "09_nine.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
        page = bs4.BeautifulSoup(pages.to_html(path).read_text(encoding="utf-8"), "html.parser").select_one("main p")
        links = [link["href"] for link in page.select("a")]
        assert page.text == "a, b and c" and links == [lead, "https://example.org/../b", "#c"][lead is None :]


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
        small = driver.find_element("css selector", ".jp-RenderedImage img")
        assert small.size["width"] <= width and small.get_attribute("role") == "button"
        driver.execute_script("arguments[0].focus()", small)
        small.send_keys("\ue007")
        dialog = driver.find_element("css selector", "dialog[open]")
        large = dialog.find_element("css selector", "img")
        assert large.size["width"] == 1500 and large.get_attribute("alt") == small.get_attribute("alt")
        dialog.find_element("css selector", "button").click()
        WebDriverWait(driver, 60).until(lambda driver: not driver.find_elements("css selector", "dialog"))
        check_nothing_asked(driver)


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


def test_a_figure_is_shown_once_with_its_caption(tmp_path):
    """In a kernel, where matplotlib would show it once more at the cell's end."""
    nbclient = pytest.importorskip("nbclient")
    code = (
        "from matplotlib import pyplot as plt\nfrom sr4g_utils.store.run import Run\n"
        f"run = Run({str(tmp_path)!r}, '09_nine')\n"
        "for name in ('one', 'two'):\n"
        "    figure, axis = plt.subplots()\n    run.figure(figure, name, f'Figure {name}')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})]
    assert [output.metadata["image/png"]["alt"] for output in shown] == ["Figure one", "Figure two"]
    assert Image.open(tmp_path / "figures" / "two.png").info["Description"] == "Figure two"
