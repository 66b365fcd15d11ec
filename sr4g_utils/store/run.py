"""The run folder: where a run's files go, and which stages are done already.

A stage is done if its record, written *after* its files, still fits: same configuration, code, inputs and outputs.
"""

import ast
import base64
import contextlib
import fcntl
import html
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from . import files
from .files import (
    PACKAGE,
    atomic,
    digest,
    hash_of,
    lock,
    markdown,
    provenance,
    read_json,
    temporary,
    write_json,
    write_text,
)
from .limits import set_limit

RECORDED = "recorded"  # what a parameter says in place of a path: take the recorded result
Result = tuple[pd.DataFrame, dict[str, Any]]  # a table, and what it was made from

_NONE = type(None)
ROOMS_OF_RUNS = tuple(f"{PACKAGE.name}.{room}" for room in ("store", "running"))
WRITTEN_ON = (".jsonl",)  # files that a prolonged stage appends to; all others are replaced whole


class Run:
    """A run folder as one notebook uses it.

    Opening it takes a shared lock for as long as the process lives, so that a second run sees that a kernel is still at
    work here. All inputs and outputs are recorded, in ``.state``, for the decision whether a notebook is done.
    ``allow_loss``: see :func:`limits.check_loss`.
    """

    def __init__(self, folder: str | Path, notebook: str, allow_loss: float | int | None = None) -> None:
        set_limit("allow_loss", allow_loss)
        self.folder = Path(folder).resolve()
        self.notebook = notebook
        self.inputs: dict[str, str | None] = {}
        self.outputs: list[str] = []
        self.note = ""  # what stands below each table: how its numbers were judged
        for part in ("artifacts", "figures", "tables", "notebooks"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        for part in ("figures", "tables", "artifacts/results", ".state"):
            files.sweep(self.folder / part)
        self._lock = lock(self.folder / ".kernels", shared=True)
        self._note()

    def _note(self) -> None:
        write_json(state_file(self.folder, self.notebook, "files"), {"inputs": self.inputs, "outputs": self.outputs})

    def _wrote(self, path: Path) -> None:
        if (name := str(path.relative_to(self.folder))) not in self.outputs:
            self.outputs.append(name)
            self._note()

    def read(self, path: str | Path) -> Path:
        """Record that this notebook reads ``path`` (an artifact's name or any file) and return it.

        Raises:
            FileNotFoundError: it does not exist; the message says which notebook makes it.
        """
        file = self.folder / "artifacts" / path
        if not file.exists():
            hint = "run the notebook that makes it first" if not Path(path).is_absolute() else "check the path"
            raise FileNotFoundError(f"{file} is missing: {hint}")
        self.inputs[str(file)] = digest(file)
        self._note()
        return file

    def read_all(self, folder: Path, pattern: str) -> list[Path]:
        """The files in a folder that a pattern with ``*`` stands for; that this notebook reads them is recorded, those
        of them that are not there yet as well."""
        self.inputs[str(folder.resolve() / pattern)] = digest(folder.resolve() / pattern)
        self._note()
        return files.matching(folder.resolve() / pattern)

    def stage(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Mapping[str, str | Path] | None = None,
        *,
        heavy: bool = False,
        prolongs: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> tuple[Path, Any]:
        """Make the artifact ``name`` with ``function(path, **inputs, **prolongs, **config)`` unless it is there.

        It is there if it was finished with the same configuration, the same content of the input files and of the files
        and local models that the configuration names, and the same code (:func:`code_digest`). A ``heavy`` stage is
        kept, with a message, when only code has changed; if its module has a number ``BEHAVIOUR``, that number stands
        for the code.

        The artifact may be a folder in which the function keeps its own state: it gets the output of an interrupted
        call back, and that of a call that differs in ``prolongs`` alone. The output of a different configuration is
        removed first (of a heavy stage: moved to ``<name>.before``, ``.before-2``, …), with a message.

        Returns:
            The artifact's path, and the function's JSON-able result (kept beside the artifact).

        Raises:
            BlockingIOError: another process is making it. ValueError: the name leads out of the artifacts' folder.
        """
        root, record = self.folder / "artifacts", state_file(self.folder, name, "stage")
        path = root / name
        if path == root or ".." in Path(name).parts or not path.is_relative_to(root):
            raise ValueError(f"{name!r} cannot name an artifact: it leads out of {root}; choose a plain name")
        inputs = {key: self.read(Path(value).resolve()) for key, value in (inputs or {}).items()}
        behaviour = getattr(sys.modules.get(function.__module__), "BEHAVIOUR", None) if heavy else None
        code = code_digest(function.__module__) if behaviour is None else f"behaviour {behaviour}"
        wanted = {
            "function": function.__qualname__,
            "code": None if heavy and behaviour is None else code,
            "inputs": {key: self.inputs[str(value)] for key, value in inputs.items()},
            "config": config,
            "models": {name: self.inputs[str(self.read(Path(name).resolve()))] for name in _named_files(config)},
        }
        keys = {"key": hash_of([wanted, dict(prolongs or {})]), "belongs": hash_of(wanted)}
        state = read_json(record) or {}
        if state.get("key") == keys["key"] and "output" in state and state["output"] == digest(path):
            if state["code"] != code:
                print(f"{name} was made by other code than today's; delete {path} to make it again", file=sys.stderr)
        else:
            with lock(state_file(self.folder, name, "lock"), of=path):
                if state and state.get("belongs") != keys["belongs"]:
                    _clear(name, path, heavy)
                files.sweep(path.parent)
                write_json(record, keys)
                options = {**inputs, **(prolongs or {}), **config}
                result = made(path, hash_of([keys["key"], code]), lambda: function(path, **options))
                state = {**keys, "code": code, "output": digest(path), "result": result}
                write_json(record, state)
        self._wrote(path)
        return path, state["result"]

    def figure(self, figure: Any, name: str, caption: str) -> None:
        """Save a matplotlib figure as PNG and PDF. The caption travels in the PNG; there are no dates in either.

        In a notebook the figure is shown here, with the caption as its alternative text and, numbered, below it.
        """
        png = {"Description": caption, "Software": None}
        pdf = {"Title": caption, "CreationDate": None, "Creator": None, "Producer": None}
        for suffix, metadata in (("png", png), ("pdf", pdf)):
            with atomic(path := self.folder / "figures" / f"{name}.{suffix}") as partial:
                figure.savefig(partial, format=suffix, dpi=150, metadata=metadata, bbox_inches="tight")
            self._wrote(path)
        from IPython import display, get_ipython  # not for --help
        from matplotlib import pyplot as plt

        if get_ipython() is not None:
            shown = {"image/png": _small_png(figure), "text/plain": repr(figure)}
            display.display(shown, metadata={"image/png": {"alt": caption}}, raw=True)
            plt.close(figure)  # else it is shown once more at the cell's end
        self._show_caption(f"figures/{name}", caption)

    def table(self, table: pd.DataFrame, name: str, caption: str) -> pd.DataFrame:
        """Save a table as CSV (full precision), Markdown and LaTeX (four digits, caption first), and return it.

        In a notebook its numbered caption is shown here, above what the cell shows of it.
        """
        rows, headers = table.astype(object).where(table.notna(), None).values.tolist(), list(table.columns)
        names = [i for i, column in enumerate(zip(*rows, strict=True)) if {str} == {type(v) for v in column} - {_NONE}]
        form: dict[str, Any] = {"floatfmt": ".4g", "disable_numparse": names}  # a model called 1e3 is no number
        shown = [[markdown(value) if isinstance(value, str) else value for value in row] for row in [headers, *rows]]
        markdown_table = tabulate(shown[1:], shown[0], "github", missingval="–", intfmt=",", **form)
        latex = tabulate(rows, headers, "latex_booktabs", missingval="--", **form)
        texts = {
            "csv": table.to_csv(index=False),
            "md": f"**{markdown(caption)}**\n\n{markdown_table}" + (self.note and f"\n\n{markdown(self.note)}"),
            "tex": f"% {' '.join(caption.split())}\n{latex}" + (self.note and f"\n% {self.note}"),
        }
        for suffix, text in texts.items():
            write_text(path := self.folder / "tables" / f"{name}.{suffix}", text.rstrip("\n") + "\n")
            self._wrote(path)
        self._show_caption(f"tables/{name}", caption, f"tables/{name}.csv")
        return table

    def _show_caption(self, made: str, caption: str, file: str = "") -> None:
        from IPython import display, get_ipython  # not for --help

        if get_ipython() is not None:
            label = labels(self.notebook, self.outputs)[made]
            text = f"<strong>{label}.</strong> {html.escape(caption)}{file and f' <small><code>{file}</code></small>'}"
            shown = f'<p class="caption" id="{label.lower().replace(" ", "-")}">{text}</p>'
            display.display({"text/html": shown, "text/plain": f"{label}. {caption}"}, raw=True)

    def result(self, table: pd.DataFrame, name: str, **about: Any) -> pd.DataFrame:
        """Save a table as a result with its provenance: ``artifacts/results/{name}.json``, which a run can record."""
        path = self.folder / "artifacts" / "results" / f"{name}.json"
        rows = json.loads(table.to_json(orient="records", double_precision=12))
        write_json(path, {"about": about, "provenance": provenance(), "rows": rows})
        self._wrote(path)
        return table

    def recorded(self, name: str, profile: str = "coco") -> Result:
        """A result of a recorded run, shipped in ``data/results``: its rows, and where they come from."""
        record = json.loads(self.read(files.DATA / "results" / profile / f"{name}.json").read_text(encoding="utf-8"))
        return pd.DataFrame(record["rows"]), {**record["about"], **record["provenance"]}

    def recorded_or(self, name: str, profile: str, wanted: bool, make: Callable[[], Result]) -> Result:
        """The recorded result if that is ``wanted``; else what ``make()`` returns, kept as this run's result."""
        if wanted:
            return self.recorded(name, profile)
        table, about = make()
        return self.result(table, name, **about), about


def _small_png(figure: Any) -> str:
    """A figure as a notebook keeps it: PNG of 256 colours, which is a third as large, in base 64."""
    from PIL import Image  # not for --help

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=figure.dpi, bbox_inches="tight", facecolor="white")
    image = Image.open(whole).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def labels(notebook: str, outputs: Sequence[str]) -> dict[str, str]:
    """What a notebook's figures and tables are called, in the order of writing: {"figures/scores": "Figure 4.3", …}."""
    number = re.sub(r"^0*(\d*).*", r"\1", notebook)  # of 04_evaluation: 4
    names: dict[str, str] = {}
    for kind, part, suffix in (("Figure", "figures", ".png"), ("Table", "tables", ".md")):
        paths = [path.removesuffix(suffix) for path in outputs if path.startswith(f"{part}/") and path.endswith(suffix)]
        names |= {path: f"{kind} {number}.{i}" for i, path in enumerate(paths, 1)}
    return names


def _named_files(value: Any) -> list[str]:
    """The files and local models that a configuration names: what is in them counts, not what they are called."""
    if isinstance(value, Mapping):
        return [name for part in value.values() for name in _named_files(part)]
    if isinstance(value, str):
        with contextlib.suppress(OSError, ValueError):  # a text that is too long for a name, or has a NUL
            if any((Path(value) / name).is_file() for name in ("model_index.json", "config.json")):
                return [value]
            if ("." in value or os.sep in value) and Path(value).is_file():  # a bare word is a set's or a rule's
                return [value]
    return []


def _clear(name: str, path: Path, keep: bool) -> None:
    """Make way for a stage of another configuration, with a message."""
    why = f"{name} was made under another configuration, from other inputs or by other code: starting afresh"
    if keep and path.exists():
        print(f"{why}; {files.set_aside(path)}", file=sys.stderr)
    elif path.is_dir():
        files.remove(path)
        print(why, file=sys.stderr)


def state_file(folder: Path, name: str, kind: str) -> Path:
    return folder / ".state" / f"{name.replace('/', '%')}.{kind}.json"


@cache
def code_digest(module: str | None = None) -> str:
    """Hash of a module, of all modules of the package that it imports, and of files of ``data`` that these name; of the
    whole package if None.

    Comments, docstrings and layout do not count, nor do the rooms ``store`` and ``running``: where a stage's files lie
    does not change what is in them. Code of functions defined in a notebook is not hashed.
    """
    paths = [file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("*.py")]
    todo = [module] if module else sorted(".".join(path.parts) for path in paths)
    data = sorted(files.DATA.glob("*.*"))
    seen: dict[str, Any] = {}
    while todo:
        file = source_file(name := todo.pop())
        if name in seen or not file.is_file() or (module and name.startswith(ROOMS_OF_RUNS)):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        todo += imports(name, tree)
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        seen[name] = ast.dump(_without_docstrings(tree)), [digest(path) for path in data if path.name in texts]
    return hash_of(seen)


def source_file(module: str) -> Path:
    """The file of a module of the package; it need not exist."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str, tree: ast.Module) -> set[str]:
    """The modules of this package that a module imports, those inside its functions, too."""
    package = module.split(".") if source_file(module).name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            place = ".".join([*base, *filter(None, [node.module])])
            names |= {place, *(f"{place}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE.name and source_file(name).is_file()}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def store() -> Path | None:
    """The folder that this run's stages are shared in; None if they are not."""
    return Path(folder) if (folder := os.environ.get("SR4G_STAGES")) else None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file. A process that dies lets the next one in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """The result of ``make()``, which writes the artifact ``path``, or the cached result of another run with the same
    key: a hash of everything that the artifact depends on. A folder may hold the output of an interrupted ``make``."""
    if (folder := store()) is None:
        return make()
    entry, kept = folder / key, folder / key / "artifact"
    with alone(folder / f"{key}.lock"):
        files.sweep(entry)
        record = read_json(entry / "record.json")
        if record and record["output"] == digest(kept):
            copy(kept, path)
        else:
            record = {"result": make(), "output": digest(path)}
            copy(path, kept)
            write_json(entry / "record.json", record)
    return record["result"]


def copy(source: Path, target: Path) -> None:
    """Replace ``target`` by a file or folder, atomically; with hard links where the disk has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(target)
    if source.is_dir():
        shutil.copytree(source, partial, copy_function=_link)
    else:
        _link(str(source), str(partial))
    if target.is_dir():
        files.remove(target)
    target.unlink(missing_ok=True)  # renamed over a link to itself, a link would stay
    partial.replace(target)


def _link(source: str, target: str) -> None:
    if not source.endswith(WRITTEN_ON):
        with contextlib.suppress(OSError):  # another disk, or one without links
            os.link(source, target)
            return
    shutil.copy2(source, target)
