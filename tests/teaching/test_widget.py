"""Two boxes to drag: the browser judges as the package does, and a real one drags them in a page and a notebook."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import product

import numpy as np
import pytest
from browser import browser, check_nothing_asked
from processes import until

from sr4g_utils import relations
from sr4g_utils.dataset import captions
from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.relations import BY_NAME, NAMES, RULES, judge
from sr4g_utils.store.files import ROOT
from sr4g_utils.teaching import widget

OURS = {name: rules for name, rules in RULES.items() if rules.rule.__module__ == "sr4g_utils.relations"}
SIZE = (640, 480)


def node(code: str, *files) -> str:
    """What a script prints that imports the module as ``boxes``."""
    if not (program := shutil.which("node")):
        pytest.skip("node is not installed (Debian: apt-get install nodejs)")
    head = f'import * as boxes from "{widget.MODULE.as_uri()}"; import * as fs from "node:fs";'
    command = [program, "--input-type=module", "-e", head + code, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr
    return done.stdout


def pairs(n: int, seed: int = 0) -> np.ndarray:
    """(n, 8): subject and object boxes; a fifth each random, on whole pixels, tied, nested and touching."""
    rng = np.random.default_rng(seed)
    random = np.concatenate([rng.uniform(0, 400, (n, 2)), rng.uniform(1, 240, (n, 2))] * 2, axis=1)
    random[:, 4:] = rng.permutation(random[:, :4])
    whole = rng.integers(1, 12, (n, 8)).astype(float)  # small numbers: equal centres, diagonals, equal sizes
    tied = random.copy()
    tied[np.arange(n), 4 + rng.integers(4, size=n)] = 0
    for side in range(4):
        tied[:, 4 + side] = np.where(rng.random(n) < 0.5, tied[:, side], tied[:, 4 + side])
    nested, shares = random.copy(), rng.choice([0, 0.25, 0.5, 0.75, 1], (n, 4))
    nested[:, 6:] = nested[:, 2:4] * np.maximum(shares[:, 2:], 0.25)
    nested[:, 4:6] = nested[:, :2] + shares[:, :2] * (nested[:, 2:4] - nested[:, 6:])
    touching = whole.copy()
    touching[:, 4] = touching[:, 0] + touching[:, 2]
    kinds = [random, whole, tied, nested, touching]
    made = np.concatenate([kind[: -(-n // len(kinds))] for kind in kinds])[:n]
    swapped = rng.random(n) < 0.5
    made[swapped] = np.roll(made[swapped], 4, axis=1)
    return made


@pytest.mark.parametrize("name", OURS)
def test_the_browser_judges_as_the_package(name, tmp_path):
    boxes = pairs(100_000)
    boxes.tofile(tmp_path / "pairs")
    (tmp_path / "constants.json").write_text(json.dumps(widget.constants()))
    node(
        f"""
        const [pairs, constants, verdicts] = process.argv.slice(1);
        const c = JSON.parse(fs.readFileSync(constants, "utf8")), raw = fs.readFileSync(pairs);
        if (!("{name}" in boxes.RULES)) throw Error("boxes.mjs lacks the rule set {name} of relations.py");
        const all = new Float64Array(raw.buffer, raw.byteOffset, raw.length / 8), n = all.length / 8;
        const found = new Uint8Array(n * 14), box = (i) => all.slice(4 * i, 4 * i + 4);
        for (let i = 0; i < n; i++)
          found.set(boxes.judge(box(2 * i), box(2 * i + 1), "{name}", {list(SIZE)}, c), 14 * i);
        fs.writeFileSync(verdicts, found);""",
        tmp_path / "pairs", tmp_path / "constants.json", tmp_path / "verdicts",
    )  # fmt: skip
    theirs = np.fromfile(tmp_path / "verdicts", np.uint8).reshape(-1, len(NAMES)).astype(bool)
    ours = judge(boxes[:, :4], boxes[:, 4:], name, np.array([SIZE], float))
    different = np.flatnonzero((ours != theirs).any(axis=1))
    assert not len(different), (boxes[different[0]], ours[different[0]], theirs[different[0]])
    defined = [NAMES.index(relation) for relation in RULES[name].defines]
    assert ours[:, defined].any(axis=0).all(), "every relation occurs"
    assert not ours[:, defined].all(axis=0).any(), "and none always"


def test_the_browser_offers_the_package_s_rule_sets_and_writes_its_captions():
    assert {"visor", "sg2im", "sstd", "geneval"} <= set(OURS)
    assert set(OURS) <= set(json.loads(node("console.log(JSON.stringify(Object.keys(boxes.RULES)))")))
    others = ["Apple", "unicycle", "hour glass", "the_white cat"]
    names = [*(category.name for category in COCO_CATEGORIES[:40:4]), *others]
    asked = list(product(names, NAMES, names))
    given = json.dumps([(widget.options(s, o)["things"], BY_NAME[name].phrase) for s, name, o in asked])
    template = json.dumps(widget.constants()["template"])
    code = f"console.log(JSON.stringify({given}.map(([things, phrase]) => boxes.caption(things, phrase, {template}))))"
    assert json.loads(node(code)) == [captions.caption(*each) for each in asked]


def test_a_box_stays_within_the_picture_and_a_border_runs_where_it_should():
    cases = product((0, 300, 540), ([-900, -900], [900, 900], [7.4, 0]), ("true", "false"))
    made = [f"boxes.changed([{x}, 20, 100, 80], {by}, {resize}, [640, 480])" for x, by, resize in cases]
    for x, y, w, h in json.loads(node(f"console.log(JSON.stringify([{', '.join(made)}]))")):
        assert x >= 0 and y >= 0 and w >= 15 and h >= 15 and x + w <= 640 and y + h <= 480
        assert (x, y, w, h) == (int(x), int(y), int(w), int(h))
    # the border runs where the verdict changes: every segment's ends lie on a diagonal, or a circle
    line = json.loads(node("console.log(JSON.stringify(boxes.border((x, y) => x > y, [100, 60])))"))
    assert len(line) >= 10
    assert all(abs(x1 - y1) < 0.1 and abs(x2 - y2) < 0.1 for x1, y1, x2, y2 in line)
    inside = "(x, y) => (x - 50) ** 2 + (y - 30) ** 2 < 400"
    ring = json.loads(node(f"console.log(JSON.stringify(boxes.border({inside}, [100, 60])))"))
    assert all(abs(np.hypot(x - 50, y - 30) - 20) < 0.1 for x1, y1, x2, y2 in ring for x, y in ((x1, y1), (x2, y2)))
    assert sum(np.hypot(x2 - x1, y2 - y1) for x1, y1, x2, y2 in ring) == pytest.approx(2 * np.pi * 20, rel=0.02)
    assert node("console.log(boxes.border(() => 1, [100, 60]).length)") == "0\n"


@pytest.mark.parametrize(("given", "told"), [
    ({"rules": "best"}, "unknown rule set 'best'"),
    ({"subject_box": (1, 2, 3)}, "subject_box: needs x, y, width and height"),
    ({"object_box": (1, 2, 0, 3)}, "object_box: needs x, y, width and height"),
    ({"object_box": (1, float("nan"), 2, 3)}, "object_box"), ({"subject": ""}, "subject: the name is empty"),
])  # fmt: skip
def test_bad_input_is_told_in_one_line(given, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        widget.options(**given)
    assert "\n" not in str(error.value)


def test_a_page_is_whole_asks_for_nothing_and_is_the_same_each_time_without_anywidget(monkeypatch):
    page = widget.page(picture=np.zeros((30, 40, 3), np.uint8), subject="</script><b>dog")
    assert page.count("</script>") == 1
    addresses = set(re.findall(r"https?://[^\s\"']+", page)) - {"http://www.w3.org/2000/svg"}
    assert not addresses and "import " not in re.sub(r"//.*|/\*.*?\*/", "", page, flags=re.DOTALL)
    monkeypatch.setattr(widget, "find_spec", lambda name: None)
    html = widget.show(subject="dog", object="apple", rules="sg2im")._repr_html_()
    assert html == widget.boxes(subject="dog", object="apple", rules="sg2im")._repr_html_()
    assert '"object": "apple"' in html and html.count("<script") == 1 and "export function mount" in html


def test_the_widget_hands_every_option_to_the_browser():
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    state = widget.show(subject_box=(1, 2, 30, 40), rules="sstd").get_state()
    assert state["subject_box"] == [1, 2, 30, 40] and state["rules"] == "sstd" and state["size"] == list(SIZE)
    assert state["constants"] == json.loads(json.dumps(widget.constants())) and "export default" in state["_esm"]
    taken = re.findall(r'"(\w+)"', re.findall(r"const (?:SHARED|GIVEN) = (.*?);", widget.MODULE.read_text()).__str__())
    assert set(taken) == set(widget.options())


def test_constants_are_the_package_s():
    told = widget.constants()
    assert all(told[name] == getattr(relations, name) for name in ("SSTD_SLACK", "GENEVAL_SLACK"))
    module = re.sub(r'//.*|/\*.*?\*/|"a dog.*', "", widget.MODULE.read_text(encoding="utf-8"))
    assert not re.search(r"0\.02|0\.1\b|\b53\b|to the left of|separated from", module)


def holding(driver) -> set[str]:
    return {e.get_attribute("data-relation") for e in driver.find_elements("css selector", ".sr4g-boxes li.holds")}


def side(driver, role: str) -> list[float]:
    frame = driver.find_element("css selector", f".sr4g-boxes .{role} rect")
    return [float(frame.get_attribute(name)) for name in ("x", "y", "width", "height")]


def judged(driver, rules: str) -> set[str]:
    """What the package says of the boxes that the browser shows."""
    s, o = (np.array([side(driver, role)]) for role in ("subject", "object"))
    return {name for name, true in zip(NAMES, judge(s, o, rules, np.array([SIZE], float))[0], strict=True) if true}


def drag(driver, target, dx: int, dy: int, kind: str = "mouse") -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    actions = ActionChains(driver, devices=[PointerInput(kind, "finger")], duration=50)
    pointer = actions.w3c_actions.pointer_action
    pointer.move_to(target).pointer_down()
    pointer.move_by(dx // 2, dy // 2)
    pointer.move_by(dx - dx // 2, dy - dy // 2).pointer_up()
    actions.perform()


def grip(driver, role: str, part: str = "rect"):
    return driver.find_element("css selector", f".sr4g-boxes .{role} {part}")


def check_boxes_answer(driver, kind: str = "mouse") -> None:
    """Drag, resize and the other rule sets: the browser shows what the package says."""
    assert holding(driver) == judged(driver, "visor")
    before, other = side(driver, "subject"), side(driver, "object")
    drag(driver, grip(driver, "subject"), 150, 40, kind)
    after = side(driver, "subject")
    assert after[0] > before[0] + 100 and after[1] > before[1] and after[2:] == before[2:]
    assert side(driver, "object") == other and holding(driver) == judged(driver, "visor")
    drag(driver, grip(driver, "object", ".reach"), -40, -30, kind)
    smaller = side(driver, "object")
    assert smaller[:2] == other[:2] and smaller[2] < other[2] and smaller[3] < other[3]
    for option in driver.find_elements("css selector", ".sr4g-boxes option"):
        option.click()
        assert holding(driver) == judged(driver, option.text), option.text
        assert len(driver.find_element("css selector", ".border.projective").get_attribute("d")) > 100


@pytest.mark.slow("a browser")
def test_a_browser_drags_a_box_in_a_page_from_a_file(tmp_path):
    from selenium.webdriver import ActionChains, Keys

    path = tmp_path / "boxes.html"
    path.write_text(widget.page(picture=np.full((480, 640, 3), 200, np.uint8)), encoding="utf-8")
    with browser(tmp_path, height=1000) as driver:
        driver.get(path.as_uri())
        check_boxes_answer(driver)
        box = driver.find_element("css selector", ".sr4g-boxes g.subject")
        driver.execute_script("arguments[0].focus()", box)
        x, y, w, h = side(driver, "subject")
        ActionChains(driver).send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP).perform()
        assert side(driver, "subject") == [x - 5, y - 5, w, h]
        shifted = ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        shifted.key_up(Keys.SHIFT).perform()
        assert side(driver, "subject") == [x - 5, y - 5, w + 5, h + 5]
        label = box.get_attribute("aria-label")
        assert label.startswith(f"subject: dog, {x - 5:.0f} from the left") and box.get_attribute("tabindex") == "0"
        driver.find_elements("css selector", ".sr4g-boxes option")[0].click()
        lines = driver.find_element("css selector", ".sr4g-boxes output").text.splitlines()
        assert lines == [captions.caption("dog", name, "cat") for name in NAMES if name in judged(driver, "visor")]
        check_nothing_asked(driver)


@pytest.mark.slow("a browser")
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_whole_light_and_dark_and_a_finger_drags(dark, tmp_path):
    path = tmp_path / "boxes.html"
    path.write_text(widget.page(object_box=(440, 320, 200, 160)), encoding="utf-8")  # in the corner
    with browser(tmp_path, 390, dark) as driver:
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        driver.get(path.as_uri())
        assert driver.execute_script("return innerWidth") == 390
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        root, svg, handle = (
            driver.find_element("css selector", f".sr4g-boxes{part}") for part in ("", " svg", " .handle")
        )
        assert handle.rect["x"] + handle.rect["width"] <= root.rect["x"] + root.rect["width"]
        assert svg.value_of_css_property("overflow-x") == "visible", "the handle of a box in the corner is whole"
        before = side(driver, "subject")
        drag(driver, grip(driver, "subject"), 60, 40, "touch")
        assert side(driver, "subject")[0] > before[0] + 60, "a touch moves it, and does not scroll the page"
        assert holding(driver) == judged(driver, "visor")
        colour = driver.execute_script("return getComputedStyle(document.querySelector('.sr4g-boxes output')).color")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 380) == dark


CELL = """\
from pathlib import Path

from sr4g_utils.teaching import widget

boxes = widget.show()
boxes.observe(lambda change: Path("moved").write_text(str(change["new"])), "subject_box")
boxes"""


@contextlib.contextmanager
def jupyterlab(folder):
    """A running JupyterLab with one notebook, boxes.ipynb; yields its address."""
    import nbformat

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel)
    nbformat.write(notebook, folder / "boxes.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
               "--ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--LabApp.news_url=", "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    own = {f"JUPYTER{name}_DIR": str(folder / name) for name in ("_CONFIG", "LAB_SETTINGS", "LAB_WORKSPACES")}
    with (folder / "jupyter.log").open("w") as log:
        environment = os.environ | own | {"PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:

        def answers() -> bool:
            assert server.poll() is None, (folder / "jupyter.log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=60).close()
                return True
            return False

        until(answers)
        yield f"http://127.0.0.1:{port}/lab/tree/boxes.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


@pytest.mark.slow("a browser")
def test_a_browser_drags_a_box_in_jupyterlab_and_python_hears_of_it(tmp_path):
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    (tmp_path / "lab").mkdir()
    with browser(tmp_path, height=1400) as driver, jupyterlab(tmp_path / "lab") as address:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        places, ran = [{}], [-60.0]

        def ready(d) -> bool:
            """The cell was run, again if JupyterLab, still starting, has not taken it; and nothing moves any more."""
            blank = d.find_element("css selector", ".jp-CodeCell .jp-InputPrompt").text in ("[ ]:", "")
            if blank and time.monotonic() > ran[-1] + 30:
                ran.append(time.monotonic())
                d.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            places.append(grip(d, "subject").rect)
            return not blank and places[-1] == places[-2]

        wait = WebDriverWait(driver, 300, 1, [NoSuchElementException, StaleElementReferenceException])
        driver.get(address)
        wait.until(lambda d: d.find_elements("css selector", ".jp-Notebook .jp-CodeCell"))
        wait.until(lambda d: d.find_elements("css selector", ".jp-Notebook-ExecutionIndicator[data-status='idle']"))
        wait.until(ready)
        check_boxes_answer(driver)
        moved = tmp_path / "lab" / "moved"
        wait.until(lambda d: moved.is_file() and json.loads(moved.read_text()) == side(d, "subject"))
