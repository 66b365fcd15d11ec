"""A run's pages: templates, and its notebooks as HTML, one file each that loads nothing.

Equations become MathML, which browsers draw themselves. ``docs/conf.py`` prepares notebooks for the site alike.
"""

import base64
import html
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..store.files import ROOT, write_text
from . import profiles

TEMPLATES = Path(__file__).with_name("templates")


@cache
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)


def render(template: str, **values: Any) -> str:
    """A page from a template of ``running/templates``; texts among the values are escaped."""
    return _environment().get_template(template).render(values)


def to_html(path: Path, names: Sequence[str] = ()) -> Path:
    """Write an executed notebook as one HTML page beside it, and return its path.

    ``names`` are the notebooks of its run that have a page, or get one: the page leads to the run's ``index.html`` and
    to its neighbours among them. Without them it leads nowhere.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="lab",
        raw_template=(TEMPLATES / "notebook.html").read_text(encoding="utf-8"),
        extra_loaders=[FileSystemLoader(TEMPLATES)],  # of what it includes
        filters={"markdown2html": markdown_to_html},
    )
    notebook = prepared(nbformat.read(path, 4), path.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _without_links(cell.source)
    around = {"in_run": bool(names), "neighbours": _neighbours(path.stem, names)}
    ways = render("ways.html", **around, contents=contents(notebook))
    about = {"name": path.stem, "path": str(path.parent)}
    page, _ = exporter.from_notebook_node(notebook, {"metadata": about, "ways": ways})
    write_text(path.with_suffix(".html"), page)
    return path.with_suffix(".html")


def prepared(notebook: Any, name: str) -> Any:
    """The notebook with an alternative text for every image that has none: the heading above it."""
    heading = name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = ([heading, *re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)])[-1]
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    output.metadata.setdefault(kind, {}).setdefault("alt", f"A picture of “{heading}”")
    return notebook


def contents(notebook: Any) -> list[tuple[str, str]]:
    """The id and the words of each section's heading."""
    texts = [markdown_to_html(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = re.findall(r'<h2[^>]* id="([^"]*)"[^>]*>(.*?)<a class="anchor-link"', "\n".join(texts))
    return [(html.unescape(id), Markup(text).striptags()) for id, text in headings]


def _neighbours(name: str, names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """The page before and after: which it is, its address, its number and its title."""
    at = names.index(name) if name in names else len(names)
    rows = []
    for rel, others in (("prev", names[max(at - 1, 0) : at]), ("next", names[at + 1 : at + 2])):
        for other in others:
            number, _, title = profiles.title(other).partition(":")[0].partition(" · ")
            rows.append((rel, f"{other}.html", number, title))
    return rows


def _without_links(source: str) -> str:
    """A text of ``notebooks/`` that names the checkout's files, where it has links to them: a page goes anywhere. An
    image goes along; of one that is not there, the words remain."""
    source = re.sub(r"!\[([^]]+)\]\(\.\./([^)\s]+\.png)\)", _image, source)
    return re.sub(r"\[([^]]+)\]\(\.\./([^)#\s]+)[^)\s]*\)", _name, source)


def _image(match: re.Match[str]) -> str:
    words, file = match.groups()
    if not (ROOT / file).is_file():
        return words
    return f"![{words}](data:image/png;base64,{base64.b64encode((ROOT / file).read_bytes()).decode()})"


def _name(match: re.Match[str]) -> str:
    words, file = match.groups()
    return words if words.strip("`") == file else f"{words} (`{file}`)"


def markdown_to_html(source: str) -> str:
    """Markdown as nbconvert reads it, with equations in MathML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return equation(body, "block")

        def inline_math(self, body: str) -> str:
            return equation(body)

        def latex_environment(self, name: str, body: str) -> str:
            return equation(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


def equation(tex: str, display: str = "inline") -> str:
    """An equation in TeX as MathML, or as code where it cannot be read; ``display`` is "inline" or "block"."""
    from latex2mathml.converter import convert

    known = re.sub(r"(begin|end){aligned}", r"\1{align*}", tex.strip())  # which is what latex2mathml calls it
    try:
        mathml = convert(known, display=display)
    except Exception:  # it has a dozen kinds without a common parent
        mathml = ""
    return mathml if mathml and ">\\" not in mathml else f"<code>{html.escape(tex)}</code>"
