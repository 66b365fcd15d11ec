"""A run's notebooks as HTML pages: one file each that loads nothing, with equations, described pictures and the widget.

Equations become MathML, which browsers draw themselves. What is done to a notebook here is also done to it in the site
(:mod:`sr4g_utils.running.site`).
"""

import html
import os
import re
from pathlib import Path
from typing import Any

from ..store.files import ROOT, write_text
from ..teaching import widget

WITH_BOXES = "01_heuristics"  # the notebook whose page has two boxes to drag

ENLARGE_STYLE = """
dialog.picture { width: 100vw; max-width: 100vw; height: 100vh; max-height: 100vh; padding: 0; border: 0;
  overflow: auto; background: #fff }
dialog.picture img { display: block; min-width: 100%; max-width: none; height: auto }
dialog.picture button { position: sticky; top: .5rem; left: .5rem; font: inherit; padding: .3rem .8rem }
[role=button][data-large] { cursor: zoom-in }
.tap { display: none; font-size: .8rem; opacity: .7 }
@media (max-width: 45rem) {
  img[data-large] + .tap { display: block }
}
"""
# A picture opens in a dialog as large as it is and at least as wide as the window; without scripts it stays as it is
ENLARGE = """
for (const picture of document.querySelectorAll(".jp-RenderedImage img, .cell_output img")) {
  const enlarge = (event) => {
    event.preventDefault();  // else Enter presses the new button, too
    const dialog = document.createElement("dialog"), button = document.createElement("button");
    dialog.className = "picture";
    button.textContent = "Close";
    const large = new Image();
    large.src = picture.src;
    large.alt = picture.alt;
    dialog.append(button, large);
    dialog.onclick = () => dialog.close();
    dialog.onclose = () => dialog.remove();
    document.body.append(dialog);
    dialog.showModal();
  };
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.dataset.large = "";
  picture.title = "Enlarge";
  const hint = document.createElement("span");
  hint.className = "tap";
  hint.textContent = "Tap the picture to enlarge it";
  picture.after(hint);  // not after what the cell prints below it
  picture.onclick = enlarge;
  picture.onkeydown = (event) => event.key === "Enter" && enlarge(event);
}
"""

# Chromium alone looks for the first of these fonts only
EQUATION_STYLE = """
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "Noto Sans Math", "DejaVu Math TeX Gyre",
  math }
.no-math-font math { padding-bottom: .2em }
.no-math-font msub > :last-child { position: relative; top: .2em }
"""
# Without a font for equations it sets an index on the line of its letter, and x_t reads as a product
EQUATION = """
const probe = document.createElement("p");
probe.style.fontSize = "100px";
probe.innerHTML = "<math><msub><mi>x</mi><mi>x</mi></msub></math>";
document.body.append(probe);
const [letter, index] = [...probe.querySelectorAll("mi")].map((each) => each.getBoundingClientRect().bottom);
probe.remove();
document.body.classList.toggle("no-math-font", index - letter < 15);
"""

STYLE = """
body.jp-Notebook { padding: 1rem }
main { max-width: 66rem; margin: auto }
.jp-RenderedHTML, .jp-RenderedMarkdown, .jp-OutputArea-output, .jp-InputArea .jp-InputArea-editor { overflow-x: auto }
.jp-RenderedMarkdown [id^=sr4g-boxes] ul { padding: 0; margin: .5rem 0 }
.jp-RenderedImage img { background: #fff }
.jp-RenderedHTMLCommon :is(h1, h2) { line-height: 1.25 }
.jp-RenderedMarkdown pre { font-family: var(--jp-code-font-family) }
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere }
math[display=block] { margin: 1rem 0; overflow-x: auto }
@media (max-width: 45rem) {
  body.jp-Notebook { padding: .5rem }
  .jp-InputPrompt, .jp-OutputPrompt { display: none }
  .jp-OutputArea-output table { width: max-content }
  main .jp-OutputArea-output.jp-RenderedHTMLCommon :is(td, th) { max-width: 10rem; overflow-wrap: anywhere }
}
"""
# nbconvert's own page, less what it loads (require.js, MathJax, Mermaid, widgets), plus alt texts and the night
TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js_requirejs %}{% endblock -%}
{%- block jupyter_widgets %}{% endblock -%}
{%- block html_head_js_mathjax %}{% endblock -%}
{%- block html_head_js_mermaidjs %}{% endblock -%}
{%- block html_head_css %}
{{ resources.include_css("static/theme-dark.css") | replace("<style", '<style media="(prefers-color-scheme: dark)"') }}
<style>STYLE</style>
{% endblock -%}
{%- macro picture(output, kind) %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:{{ kind }};base64,{{ output.data[kind] }}" alt="{{ output | get_metadata('alt', kind) | escape_html }}">
</div>
{% endmacro -%}
{%- block data_png %}{{ picture(output, 'image/png') }}{% endblock -%}
{%- block data_jpg %}{{ picture(output, 'image/jpeg') }}{% endblock -%}
{%- block data_latex %}<div class="jp-OutputArea-output">{{ output.data['text/latex'] | markdown2html }}</div>
{% endblock -%}
{%- block footer_js %}<script>ENLARGE</script>{% endblock -%}
""".replace("STYLE", ENLARGE_STYLE + EQUATION_STYLE + STYLE).replace("ENLARGE", ENLARGE + EQUATION)


def to_html(path: Path) -> Path:
    """Write an executed notebook as one HTML page beside it, and return its path."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", raw_template=TEMPLATE, filters={"markdown2html": markdown_to_html})
    notebook = prepared(nbformat.read(path, 4), path.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_links(cell.source, path.resolve().parent)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}})
    write_text(path.with_suffix(".html"), page)
    return path.with_suffix(".html")


def prepared(notebook: Any, name: str) -> Any:
    """The notebook with an alternative text for every picture that has none, and in ``WITH_BOXES`` the widget."""
    heading = name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = ([heading, *re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)])[-1]
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    output.metadata.setdefault(kind, {}).setdefault("alt", f"A picture of “{heading}”")
    if name == WITH_BOXES:
        notebook.cells.insert(1, _boxes())
    return notebook


def _with_links(source: str, folder: Path) -> str:
    """A text of ``notebooks/`` whose links to the checkout's files lead there from a page in ``folder``.

    Of a page outside the checkout only the links' texts remain.
    """

    def lead(match: re.Match[str]) -> str:
        text, link = match.groups()
        if not folder.is_relative_to(ROOT):
            return text
        return f"[{text}]({Path(os.path.relpath(ROOT / 'notebooks' / link, folder)).as_posix()})"

    return re.sub(r"\[([^]]+)\]\((\.\./[^)\s]+)\)", lead, source)


def _boxes() -> Any:
    import nbformat

    text = re.sub(r"\n\s*\n", "\n", widget.inline())  # an empty line would end the piece of HTML within Markdown
    return nbformat.v4.new_markdown_cell(f"## Drag two boxes\n\n{text}", id="drag-two-boxes")


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
    """An equation in TeX as MathML, or as code where it cannot be read.

    Args:
        display: "inline" or "block".
    """
    from latex2mathml.converter import convert

    known = re.sub(r"(begin|end){aligned}", r"\1{align*}", tex.strip())  # which is what latex2mathml calls it
    try:
        made = convert(known, display=display)
    except Exception:  # it has a dozen kinds without a common parent
        made = ""
    return made if made and ">\\" not in made else f"<code>{html.escape(tex)}</code>"
