"""One static site of a run: its answers, notebooks and tables and the project's docs, searchable without a network.

Sphinx, MyST-NB and furo make it (the optional dependencies ``site``); nothing is executed again. This module is also
the Sphinx extension that draws equations as :mod:`sr4g_utils.running.pages` does.
"""

import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..store.files import ROOT, read_json, remove, temporary, write_text
from . import done, index, pages, profiles

MARK = ".sr4g-site"  # a folder with this file was made here and may be replaced
ROWS = 200  # of a table on a page; the rest is in its CSV
NEEDS = ("sphinx", "myst_nb", "furo")
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")  # what MyST-NB draws

STYLE = """
article { overflow-wrap: break-word }
.cell_output, .cell_input, .math { overflow-x: auto }
.cell_output img { background: #fff }
.cell_output pre { white-space: pre-wrap; overflow-wrap: anywhere }
.cell_output table { border: 0; border-collapse: collapse; font-size: .85rem }
.cell_output th, .cell_output td { border: 0; border-top: 1px solid var(--color-background-border);
  padding: .25rem .6rem; text-align: right }
code.download { font: inherit; padding: 0; border: 0; background: none }
article [id^=sr4g-boxes] ul { padding: 0 }
"""


def main(target: Path, folder: Path, names: Sequence[str]) -> int:
    """``run_all.py --site``; arguments and errors as in :func:`build`."""
    print(f"Done. Open {build(target.expanduser().resolve(), folder, names)}")
    return 0


def build(target: Path, folder: Path, names: Sequence[str]) -> Path:
    """Make the site of a run.

    Args:
        target: the folder of the site. One that was made here is replaced; another must be empty.
        folder: the run folder.
        names: the notebooks of its profile. Those that were executed get a page.

    Returns:
        The site's first page.

    Raises:
        ValueError: Sphinx or another package is missing, nothing was executed, or the folder holds something else.
    """
    if missing := [name for name in NEEDS if not find_spec(name)]:
        raise ValueError(f"--site needs {', '.join(missing)}: pip install -e '.[site]'")
    executed = [name for name in names if (folder / "notebooks" / f"{name}.ipynb").is_file()]
    if not executed:
        raise ValueError(f"--site: {folder} has no executed notebook; run the profile first")
    if target.exists() and not (target / MARK).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--site: {target} holds something else; name a new or an empty folder")
    made = temporary(target)
    try:
        with tempfile.TemporaryDirectory() as work:
            write_sources(Path(work) / "source", folder, names, executed)
            print(sphinx(Path(work) / "source", Path(work) / "site"), end="", file=sys.stderr)
            shutil.copytree(Path(work) / "site", made)
        (made / MARK).touch()
        if target.exists():
            remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target / "index.html"


# --------------------------------------------------------------------------------------------------------- the sources


def write_sources(source: Path, folder: Path, names: Sequence[str], executed: Sequence[str]) -> None:
    """What Sphinx reads: the run's answers, notebooks and tables, and the checkout's README and docs."""
    import nbformat

    tables = [name for name in executed if write_tables(source, folder, name)]
    texts = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    documents = {*texts, *(Path("notebooks", f"{name}.ipynb") for name in executed)}
    for path in texts:
        write_text(source / path, with_links((ROOT / path).read_text(encoding="utf-8"), path, documents, source))
    for name in executed:
        path = Path("notebooks", f"{name}.ipynb")
        notebook = pages.prepared(nbformat.read(folder / path, 4), name)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_links(cell.source, path, documents, source)
        write_text(source / path, nbformat.writes(notebook))
    shutil.copytree(folder / "figures", source / "extra" / "figures", dirs_exist_ok=True)
    write_text(source / "static" / "sr4g.css", index.STYLE + pages.ENLARGE_STYLE + pages.EQUATION_STYLE + STYLE)
    write_text(source / "static" / "sr4g.js", pages.ENLARGE + pages.EQUATION)
    linked = {name: f"notebooks/{name}.html" for name in executed}
    answer = f"``````{{raw}} html\n{index.answer(folder, names, linked)}\n``````\n"
    contents = {
        "Notebooks": [f"notebooks/{name}" for name in executed],
        "Tables": [f"tables/{name}" for name in tables],
        "Docs": [str(path.with_suffix("")) for path in texts],
    }
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *entries, "```", ""])
        for caption, entries in contents.items()
        if entries
    ]
    write_text(source / "index.md", "\n".join([f"# SR4G, profile {folder.name}", "", answer, *trees]))


def write_tables(source: Path, folder: Path, name: str) -> bool:
    """A page with the tables of a notebook, each with its CSV and LaTeX to download; whether there are any."""
    parts = [f"# Tables of {profiles.title(name)}"]
    for path in (folder / made for made in done.outputs(name, folder)):
        if path.parent.name != "tables" or path.suffix != ".md" or not path.is_file():
            continue
        caption, _, *lines = path.read_text(encoding="utf-8").splitlines()
        links = [_download(kind, path.with_suffix(f".{kind.lower()}"), path.stem, source) for kind in ("CSV", "TEX")]
        parts += [f"## {caption.strip('*')}", " · ".join(links)]
        if len(lines) > ROWS + 2:
            parts.append(f"The first {ROWS} of {len(lines) - 2:,} rows; the CSV has all.")
        parts.append("\n".join(lines[: ROWS + 2]))
    if len(parts) > 1:
        write_text(source / "tables" / f"{name}.md", "\n\n".join(parts) + "\n")
    return len(parts) > 1


def with_links(text: str, path: Path, documents: Collection[Path], source: Path) -> str:
    """The text of a file of the checkout, with links that lead somewhere in the site.

    Links to the site's documents stay, files become downloads, pictures go along, and of folders the name remains.
    """

    def lead(match: re.Match[str]) -> str:
        is_picture, words, link = match.groups()
        place = Path(os.path.normpath(path.parent / link.partition("#")[0]))
        if place in documents or not (ROOT / place).exists():
            return match[0]
        if is_picture:
            _copy(ROOT / place, source / place)
            return match[0]
        return words if (ROOT / place).is_dir() else _download(words, ROOT / place, str(place.parent), source)

    return re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", lead, text)


def _download(text: str, file: Path, place: str, source: Path) -> str:
    """A link to a copy of a file, which is not read as a document."""
    _copy(file, source / "files" / place / file.name)
    return f"{{download}}`{text.replace('`', '')} </files/{place}/{file.name}>`"


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


# -------------------------------------------------------------------------------------------------------------- Sphinx


def sphinx(source: Path, target: Path) -> str:
    """Build the pages; folders beside ``target`` are written, too. Returns Sphinx's complaints, a line each."""
    from sphinx.application import Sphinx
    from sphinx.util.console import strip_escape_sequences
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    settings = {
        "project": "SR4G",
        "extensions": ["myst_nb", __name__],
        "exclude_patterns": ["extra", "files", "static"],
        "myst_enable_extensions": ["amsmath", "dollarmath"],
        "myst_heading_anchors": 3,  # for links to a section
        "nb_execution_mode": "off",
        "nb_ipywidgets_js": {},  # which would be loaded from a CDN
        "html_theme": "furo",
        "html_title": "SR4G",
        "html_math_renderer": "mathml",
        "html_copy_source": False,
        "html_show_copyright": False,
        "html_use_index": False,
        "html_show_search_summary": False,  # a page that was opened as a file may not read the others
        "html_extra_path": [str(source / "extra")],
        "html_static_path": [str(source / "static")],
        "html_css_files": ["sr4g.css"],
        "html_js_files": [("sr4g.js", {"defer": "defer"})],
    }
    said = io.StringIO()
    with patch_docutils(), docutils_namespace():
        Sphinx(source, None, target, target.with_name("doctrees"), "html", settings, status=None, warning=said).build()
    return strip_escape_sequences(said.getvalue())


def setup(app: Any) -> dict[str, bool]:
    """Make this module a Sphinx extension: equations in MathML, and alternative texts of the notebooks' pictures."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("doctree-read", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    _write(translator, pages.equation(node.astext()))


def _block(translator: Any, node: Any) -> None:
    _write(translator, f'<div class="math">{pages.equation(node.astext(), "block")}</div>')


def _write(translator: Any, piece: str) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(piece)
    raise SkipNode


def _describe(app: Any, doctree: Any) -> None:
    """MyST-NB leaves out what a notebook says of its pictures."""
    from docutils import nodes

    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    outputs = [output for cell in read_json(path)["cells"] for output in cell.get("outputs", [])]
    texts = [
        output["metadata"][kind]["alt"] for output in outputs for kind in output.get("data", {}) if kind in PICTURES
    ]
    shown = [box for box in doctree.findall(nodes.container) if box.get("nb_element") == "cell_code_output"]
    pictures = [picture for box in shown for picture in box.findall(nodes.image)]
    for picture, text in zip(pictures, texts, strict=True):
        picture["alt"] = text
