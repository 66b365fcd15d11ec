"""A real browser without a window, what it asked for, and how wide its pages are."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
    "disable-background-networking", "disable-component-update",
)  # fmt: skip


@contextlib.contextmanager
def browser(folder: Path, width: int = 1280, dark: bool = False, height: int = 844) -> Iterator[Any]:
    """Chromium with a window of ``width`` pixels, a phone's if that is below 600, that saves files in ``folder``. Skips
    where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"user-data-dir={folder / 'browser'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def check_nothing_asked(driver: Any) -> None:
    """No error in the console, and no request that leaves the machine."""
    assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and [url for url in asked if not url.startswith(("file:", "data:", "chrome", "about:"))] == []


def check_fits(driver: Any, page: Path) -> None:
    """A page is as wide as the window, and every picture has an alternative text."""
    driver.get(page.as_uri())
    width, window = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= window, page
    assert driver.execute_script("return [...document.images].filter((i) => !i.alt).map((i) => i.outerHTML)") == []


def check_boxes_move(driver: Any) -> None:
    """The page's subject, moved to the right, changes what is said of the two boxes."""
    box = driver.find_element("css selector", ".sr4g-boxes g.subject")
    before = driver.find_element("css selector", ".sr4g-boxes output").text
    driver.execute_script("arguments[0].focus()", box)
    for _ in range(60):
        box.send_keys("\ue014")  # to the right
    assert driver.find_element("css selector", ".sr4g-boxes output").text != before


def check_loads_nothing(text: str) -> None:
    """A page's text names no resource of the network; links to follow are no resources."""
    import bs4

    soup = bs4.BeautifulSoup(text, "html.parser")
    loaded = [tag.get("src") or tag.get("href") for tag in soup.select("[src], link[href]")]
    assert [address for address in loaded if address.startswith(("http", "//"))] == []
    for piece in (*soup.select("style"), *soup.select("script")):
        assert not any(word in piece.text for word in ("@import", "url(http", "url(//", "cdn", "unpkg.com"))
