"""A run's pages: templates, and its notebooks as HTML, one file each that loads nothing.

Equations become MathML, which browsers draw themselves. ``docs/conf.py`` prepares notebooks for the site alike.
"""

import html
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..store.files import ROOT, write_text

TEMPLATES = Path(__file__).with_name("templates")


@cache
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)


def render(template: str, **values: Any) -> str:
    """A page from a template of ``running/templates``; texts among the values are escaped."""
    return _environment().get_template(template).render(values)


def to_html(path: Path) -> Path:
    """Write an executed notebook as one HTML page beside it, and return its path."""
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
            cell.source = _with_links(cell.source, path.resolve().parent)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}})
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


def _with_links(source: str, folder: Path) -> str:
    """A text of ``notebooks/`` whose links to the checkout's files lead there from a page in ``folder``; of a page
    outside the checkout only the links' texts remain."""

    def lead(match: re.Match[str]) -> str:
        text, link = match.groups()
        if not folder.is_relative_to(ROOT):
            return text
        return f"[{text}]({Path(os.path.relpath(ROOT / 'notebooks' / link, folder)).as_posix()})"

    return re.sub(r"\[([^]]+)\]\((\.\./[^)\s]+)\)", lead, source)


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
