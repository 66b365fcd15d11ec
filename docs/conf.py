"""The site of a run: its answers, notebooks and tables and the project's docs, searchable without a network.

``make site RUN=runs/miniature SITE=build/site`` runs ``sphinx-build`` with this file. Nothing is executed again. The
pages' sources are written to a temporary folder first: those of the docs, and what the run folder holds.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sr4g_utils.running import done, index, pages, profiles  # noqa: E402
from sr4g_utils.store.files import read_json, write_text  # noqa: E402
from sr4g_utils.store.run import labels  # noqa: E402

WORK = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
SOURCE = WORK / "source"
ROWS = 200  # of a table on a page; the rest is in its CSV
SHOWN = ("image/svg+xml", "image/png", "image/jpeg")  # the images that MyST-NB draws
CSS, JS = ("answer.css", "enlarge.css", "equation.css", "wide.css"), ("enlarge.js", "equation.js")

project = html_title = "SR4G"
extensions = ["myst_nb"]
exclude_patterns = ["extra", "files"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3  # for links to a section
nb_execution_mode = "off"
nb_code_prompt_show = nb_code_prompt_hide = "Parameters"  # nothing else is folded
nb_ipywidgets_js: dict[str, Any] = {}  # which would be loaded from a CDN
html_theme = "furo"
html_math_renderer = "mathml"
html_copy_source = html_show_copyright = html_use_index = False
html_show_search_summary = False  # a page that was opened as a file may not read the others
html_extra_path = [str(SOURCE / "extra")]
html_static_path = [str(pages.TEMPLATES / name) for name in (*CSS, *JS)] + [str(ROOT / "docs" / "site.css")]
html_css_files = [*CSS, "site.css"]
html_js_files = [(name, {"defer": "defer"}) for name in JS]


def setup(app: Any) -> None:
    app.add_config_value("run", str(ROOT / "runs" / "miniature"), "env")
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("config-inited", _read_the_run)
    app.connect("builder-inited", _write_to_work, priority=900)  # after MyST-NB's own
    app.connect("doctree-read", _describe)


def _read_the_run(app: Any, config: Any) -> None:
    folder = Path(config.run).expanduser().resolve()
    executed = [path.stem for path in sorted((folder / "notebooks").glob("*.ipynb"))]
    if not executed:
        raise SystemExit(f"{folder} has no executed notebook; run the profile first, or give its folder: RUN=…")
    note = read_json(folder / ".state" / "profile.json")
    names = list(profiles.load_profile(str(folder / note), [], folder)) if note else executed
    write_sources(SOURCE, folder, names, executed)
    app.srcdir, app.doctreedir = SOURCE, WORK / "doctrees"


def _write_to_work(app: Any) -> None:
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(WORK / "outputs"))


# --------------------------------------------------------------------------------------------------------- the sources


def write_sources(source: Path, folder: Path, names: list[str], executed: list[str]) -> None:
    """What Sphinx reads: the run's answers, notebooks and tables, and the checkout's README and docs."""
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
            elif {"parameters", "injected-parameters"} & {*cell.metadata.get("tags", [])}:
                cell.metadata.tags.append("hide-input")
        write_text(source / path, nbformat.writes(notebook))
    shutil.copytree(folder / "figures", source / "extra" / "figures", dirs_exist_ok=True)
    answer = index.answer(folder, names, {name: f"notebooks/{name}.html" for name in executed})
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
    head = f"# SR4G, profile {folder.name}\n\n``````{{raw}} html\n{answer}\n``````\n"
    write_text(source / "index.md", "\n".join([head, *trees]))


def write_tables(source: Path, folder: Path, name: str) -> bool:
    """A page with the tables of a notebook, each with its CSV and LaTeX to download; whether there are any."""
    parts, outputs = [f"# Tables of {profiles.title(name)}"], done.outputs(name, folder)
    called = labels(name, outputs)
    for path in (folder / output for output in outputs):
        if path.parent.name != "tables" or path.suffix != ".md" or not path.is_file():
            continue
        caption, _, *lines = path.read_text(encoding="utf-8").splitlines()
        lines, note = ([line for line in lines if line.startswith("|") is of_table] for of_table in (True, False))
        links = [_download(kind, path.with_suffix(f".{kind.lower()}"), path.stem, source) for kind in ("CSV", "TEX")]
        parts += [f"## {called[f'tables/{path.stem}']}. {caption.strip('*')}", " · ".join(links)]
        if len(lines) > ROWS + 2:
            parts.append(f"The first {ROWS} of {len(lines) - 2:,} rows; the CSV has all.")
        parts += ["\n".join(lines[: ROWS + 2]), *filter(None, note)]
    if len(parts) > 1:
        write_text(source / "tables" / f"{name}.md", "\n\n".join(parts) + "\n")
    return len(parts) > 1


def with_links(text: str, path: Path, documents: Collection[Path], source: Path, root: Path = ROOT) -> str:
    """The text of a file of the checkout, with links that lead somewhere in the site.

    Links to the site's documents stay, files become downloads, images go along, and of folders the name remains.
    """

    def lead(match: re.Match[str]) -> str:
        is_image, words, link = match.groups()
        place = Path(os.path.normpath(path.parent / link.partition("#")[0]))
        if place in documents or not (root / place).exists():
            return match[0]
        if is_image:
            _copy(root / place, source / place)
            return match[0]
        return words if (root / place).is_dir() else _download(words, root / place, str(place.parent), source)

    return re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", lead, text)


def _download(text: str, file: Path, place: str, source: Path) -> str:
    """A link to a copy of a file, which is not read as a document."""
    _copy(file, source / "files" / place / file.name)
    return f"{{download}}`{text.replace('`', '')} </files/{place}/{file.name}>`"


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


# ----------------------------------------------------------------------------------------------------------- the pages


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(pages.equation(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{pages.equation(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _describe(app: Any, doctree: Any) -> None:
    """MyST-NB leaves out the alternative texts of a notebook's images."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    outputs = [output for cell in read_json(path)["cells"] for output in cell.get("outputs", [])]
    texts = [output["metadata"][kind]["alt"] for output in outputs for kind in output.get("data", {}) if kind in SHOWN]
    boxes = [box for box in doctree.findall(nodes.container) if box.get("nb_element") == "cell_code_output"]
    for image, text in zip((image for box in boxes for image in box.findall(nodes.image)), texts, strict=True):
        image["alt"] = text
