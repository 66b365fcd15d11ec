"""Runs: what a run is asked (profile), where it leaves things (run folder), and how it knows what is already done.

Everything a run writes appears under its final name only when it is whole (:func:`atomic`). A stage or a notebook is
done when a record written *after* its files says so, and the record still fits: same configuration, code, inputs and
outputs.
"""

import ast
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import pandas as pd
import yaml
from tabulate import tabulate

from . import __version__

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = Path(__file__).resolve().parent


# --------------------------------------------------------------------------------------------------- files, hashes


@contextlib.contextmanager
def atomic(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the final name when the block ends well, else it vanishes.

    ``durable=False`` spares thousands of small files the wait for the disk: a kill is survived, a power failure is not.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; None where there is none or it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest(path: Path) -> str | None:
    """sha256 of a file; of names, sizes and samples of the contents in a folder; None where there is nothing.

    Images are many, so that their names and sizes must do; of other files (weights) a few blocks are read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _hash([[str(file.relative_to(path)), file.stat().st_size, _blocks(file)] for file in files])
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(path: Path, n: int = 8, size: int = 1 << 16) -> str | None:
    """Hash of ``n`` blocks spread over a file; None for an image."""
    if path.suffix.lower() in (".webp", ".png", ".jpg", ".jpeg", ".bmp"):
        return None
    hashed, last = hashlib.sha256(), max(path.stat().st_size - size, 0)
    with path.open("rb") as file:
        for i in range(n):
            file.seek(last * i // (n - 1))
            hashed.update(file.read(size))
    return hashed.hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_digest(module: str | None = None) -> str:
    """Hash of a module's source and of every package module that it imports, this one apart: where a stage's files lie
    does not change what is in them. The hash of the whole package if None."""
    todo = [module] if module else sorted(file.stem for file in PACKAGE.glob("*.py"))
    seen: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name in seen or not (file := PACKAGE / f"{name}.py").is_file() or (module and name == "runs"):
            continue
        seen[name] = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(seen[name])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                todo += [node.module] if node.module else [alias.name for alias in node.names]
    return _hash(seen)


def provenance() -> dict[str, Any]:
    """What a number came from: version, commit, Python, libraries and machine. No dates: same run, same bytes."""
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    libraries = ("numpy", "pyarrow", "pandas", "torch", "diffusers", "transformers")  # asked, not imported
    return {
        "sr4g_utils": __version__,
        "commit": commit,
        "python": platform.python_version(),
        **{name: _version(name) for name in libraries},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _version(library: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(library)
    return None


# ---------------------------------------------------------------------------------------------------------- sources


def cache_folder() -> Path:
    """Where downloads are kept."""
    import pooch

    return Path(os.environ.get("SR4G_CACHE") or pooch.os_cache("sr4g"))


def sources() -> dict[str, dict[str, Any]]:
    """The official files that a run may download (``data/sources.yaml``): url, hash and, of large ones, bytes."""
    return yaml.safe_load((DATA / "sources.yaml").read_text(encoding="utf-8"))


def download(name: str) -> Path:
    """An official file named in ``data/sources.yaml``, from the cache or downloaded into it and checked by its hash.

    The cache is ``$SR4G_CACHE``, by default the user's cache folder. ``$SR4G_MIRROR`` is a URL that holds the files
    under their own names and is asked instead of the official hosts.

    Raises:
        RuntimeError: the download fails or its hash is wrong; nothing is left under the final name.
    """
    import pooch  # the only thing here that needs the network

    source = sources()[name]
    url, mirror = source["url"], os.environ.get("SR4G_MIRROR")
    if mirror:
        url = f"{mirror.rstrip('/')}/{url.rsplit('/', 1)[-1]}"
    folder = cache_folder()
    try:
        return Path(
            pooch.create(
                folder, base_url="", registry={name: source["hash"]}, urls={name: url}, retry_if_failed=2
            ).fetch(name, progressbar=sys.stderr.isatty())
        )
    except Exception as error:
        raise RuntimeError(
            f"{name}: could not download {url} into {folder} ({type(error).__name__}: {error}). "
            "Check the connection, or download the file yourself and pass its path"
        ) from error


def ledger() -> pd.DataFrame:
    """The decisions that the paper leaves open (``data/decisions.yaml``), one row each."""
    return pd.DataFrame(yaml.safe_load((DATA / "decisions.yaml").read_text(encoding="utf-8")))


def reported(section: str) -> dict[Any, dict[str, Any]]:
    """A section of the published numbers, ``data/reported.yaml``."""
    return yaml.safe_load((DATA / "reported.yaml").read_text(encoding="utf-8"))[section]


def claims(section: str, ours: Mapping[str, float | int]) -> pd.DataFrame:
    """Published numbers of a section of ``data/reported.yaml`` beside ours: claim, reported, ours, ratio, source."""
    published = reported(section)
    return pd.DataFrame(
        {
            "claim": name,
            "reported": published[name]["value"],
            "ours": value,
            "ours / reported": value / published[name]["value"],
            "source": published[name]["source"],
        }
        for name, value in ours.items()
    )


# --------------------------------------------------------------------------------------------------------- run folder


class Run:
    """A run folder as one notebook sees it: where figures, tables and artifacts go, and what is done already.

    Opening it takes a shared lock that lasts as long as the process, so that a second batch run can tell that a kernel
    is still at work here. Every input and output that passes through is recorded for :func:`is_done`.
    """

    def __init__(self, folder: str | Path, notebook: str) -> None:
        self.folder = Path(folder).resolve()
        self.notebook = notebook
        self.inputs: dict[str, str | None] = {}
        self.outputs: list[str] = []
        for part in ("artifacts", "figures", "tables", "notebooks"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder / ".kernels", shared=True)
        self._note()

    def _note(self) -> None:
        write_json(_state(self.folder, self.notebook, "files"), {"inputs": self.inputs, "outputs": self.outputs})

    def _made(self, path: Path) -> Path:
        if (name := str(path.relative_to(self.folder))) not in self.outputs:
            self.outputs.append(name)
            self._note()
        return path

    def read(self, path: str | Path) -> Path:
        """Record that this notebook reads ``path`` (an artifact's name or any file) and return it.

        Raises:
            FileNotFoundError: it does not exist; the message says which notebook makes it.
        """
        found = self.folder / "artifacts" / path
        if not found.exists():
            hint = "run the notebook that makes it first" if not Path(path).is_absolute() else "check the path"
            raise FileNotFoundError(f"{found} is missing: {hint}")
        self.inputs[str(found)] = digest(found)
        self._note()
        return found

    def stage(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Mapping[str, str | Path] | None = None,
        *,
        heavy: bool = False,
        **config: Any,
    ) -> tuple[Path, Any]:
        """Make the artifact ``name`` with ``function(path, **inputs, **config)`` unless it is there already.

        It is there if it was finished with the same configuration, the same content of the input files and of the local
        models that the configuration names, and the same code: the function's module and the modules that one imports,
        not the rest of the package. A ``heavy`` stage is kept when only code has changed, which is said: nobody wants
        three days of training again for a comment.

        The artifact may be a folder in which the function keeps its own state: what an interrupted stage left there is
        handed to it again, what belongs to another configuration is removed first (of a heavy stage: moved to
        ``<name>.before``), which is said.

        Returns:
            The artifact's path, and the function's JSON-able result (kept beside the artifact).
        """
        path, record = self.folder / "artifacts" / name, _state(self.folder, name.replace("/", "_"), "stage")
        inputs = {key: self.read(Path(value).resolve()) for key, value in (inputs or {}).items()}
        code = code_digest(function.__module__.rpartition(".")[2])
        wanted = {
            "function": function.__qualname__,
            "code": None if heavy else code,
            "inputs": {key: self.inputs[str(value)] for key, value in inputs.items()},
            "config": config,
            "models": {name: digest(Path(name)) for name in _models(config)},
        }
        key = _hash(wanted)
        found = read_json(record) or {}
        if found.get("key") == key and "output" in found and found["output"] == digest(path):
            if found["code"] != code:
                print(f"{name} was made by other code than today's; delete {path} to make it again", file=sys.stderr)
        else:
            if path.is_dir() and found and found["key"] != key:
                why = "was made under another configuration, from other inputs or by other code: starting afresh"
                aside = path.with_name(f"{path.name}.before")
                shutil.rmtree(aside if heavy else path, ignore_errors=True)
                if heavy:
                    path.rename(aside)
                print(f"{name} {why}" + f"; the old one is {aside}" * heavy, file=sys.stderr)
            write_json(record, {"key": key})
            result = function(path, **inputs, **config)
            found = {"key": key, "code": code, "output": digest(path), "result": result}
            write_json(record, found)
        self._made(path)
        return path, found["result"]

    def annotations(self, source: str | Path | None, split: str) -> Path:
        """The file of an annotation source: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which makes
        a world of pictures; ``"miniature:500"`` makes one of 500."""
        if source is None:
            return download("annotations_trainval2017.zip")
        name, _, images = str(source).partition(":")
        if name == "miniature":
            from . import miniature  # the one source that is computed

            name, count = f"world/instances_{split}2017.json", int(images) if images else None
            return self.stage(name, miniature.write_annotations, split=split, images=count)[0]
        return Path(source)

    def photos(self, source: str | Path | None, split: str, annotations: str | Path) -> Path:
        """The folder or zip of a split's images: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which
        draws the images of the annotation file ``annotations``."""
        if source is None:
            return download(f"{split}2017.zip")
        if source == "miniature":
            from . import miniature

            return self.stage(f"world/{split}2017", miniature.write_photos, {"annotations": annotations}, split=split)[
                0
            ]
        return Path(source)

    def figure(self, figure: Any, name: str, caption: str) -> None:
        """Save a matplotlib figure as PNG and PDF. The caption travels in the PNG; there are no dates in either."""
        for suffix, metadata in {
            "png": {"Description": caption, "Software": None},
            "pdf": {"Title": caption, "CreationDate": None, "Creator": None, "Producer": None},
        }.items():
            with atomic(self.folder / "figures" / f"{name}.{suffix}") as partial:
                figure.savefig(partial, format=suffix, dpi=150, metadata=metadata, bbox_inches="tight")
            self._made(self.folder / "figures" / f"{name}.{suffix}")

    def table(self, table: pd.DataFrame, name: str, caption: str) -> pd.DataFrame:
        """Save a table as CSV (full precision), Markdown and LaTeX (four digits, caption first), and return it."""
        rows, headers = table.astype(object).where(table.notna(), None).values.tolist(), list(table.columns)
        texts = {
            "csv": table.to_csv(index=False),
            "md": f"**{caption}**\n\n" + tabulate(rows, headers, "github", missingval="–", intfmt=",", floatfmt=".4g"),
            "tex": f"% {caption}\n" + tabulate(rows, headers, "latex_booktabs", missingval="--", floatfmt=".4g"),
        }
        for suffix, text in texts.items():
            write_text(path := self.folder / "tables" / f"{name}.{suffix}", text.rstrip("\n") + "\n")
            self._made(path)
        return table

    def result(self, table: pd.DataFrame, name: str, **about: Any) -> pd.DataFrame:
        """Save a table as a result with its provenance: ``artifacts/results/{name}.json``, which a run can record."""
        path = self.folder / "artifacts" / "results" / f"{name}.json"
        rows = json.loads(table.to_json(orient="records", double_precision=12))
        write_json(path, {"about": about, "provenance": provenance(), "rows": rows})
        self._made(path)
        return table

    def recorded(self, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A result of the recorded ``coco`` run, shipped in ``data/results``: its rows, and where they come from."""
        found = json.loads(self.read(DATA / "results" / "coco" / f"{name}.json").read_text(encoding="utf-8"))
        return pd.DataFrame(found["rows"]), {**found["about"], **found["provenance"]}


def _models(value: Any) -> list[str]:
    """The local models that a configuration names."""
    if isinstance(value, Mapping):
        return [name for each in value.values() for name in _models(each)]
    files = ("model_index.json", "config.json")
    return [value] if isinstance(value, str) and any((Path(value) / file).is_file() for file in files) else []


def _state(folder: Path, name: str, kind: str) -> Path:
    return folder / ".state" / f"{name}.{kind}.json"


def lock(path: Path, shared: bool = False) -> Any:
    """Hold a lock file for as long as the returned file object lives, or fail at once.

    Raises:
        BlockingIOError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise BlockingIOError(
            f"{path.parent} is in use by another run or its kernel; wait for it, or choose another folder with --runs"
        ) from None
    return file


# ----------------------------------------------------------------------------------------------- notebooks and profiles


@cache
def notebooks() -> dict[str, Path]:
    """The study's notebooks by name, in order."""
    return {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}


def title(notebook: str) -> str:
    """The notebook's first heading."""
    return next("".join(cell["source"]).splitlines()[0].lstrip("# ") for cell in cells(notebook))


def cells(notebook: str) -> list[dict[str, Any]]:
    return json.loads(notebooks()[notebook].read_text(encoding="utf-8"))["cells"]


@cache
def declared(notebook: str) -> dict[str, tuple[str, Any]]:
    """The parameters of a notebook: name -> (annotation, default), read from its cell tagged ``parameters``."""
    source = next("".join(c["source"]) for c in cells(notebook) if "parameters" in c["metadata"].get("tags", []))
    return {
        node.target.id: (ast.unparse(node.annotation), ast.literal_eval(node.value))
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }


NAMED_SOURCES = ("miniature", "recorded", "sr2d", "sr4g", "geneval")  # what a path parameter may say in place of a path


def checked(notebook: str, name: str, value: Any, where: str, text: str | None = None) -> Any:
    """``value`` as the type that the notebook declares for ``name``; a path becomes absolute, seen from the caller.

    ``text`` is what the value was read from: where a string is wanted, 007 is not the number 7.

    Raises:
        ValueError: the notebook has no such parameter, or the value has the wrong type.
    """
    if name not in declared(notebook):
        raise ValueError(f"{where}: {notebook} has no parameter {name!r}; it has {', '.join(declared(notebook))}")
    annotation, _ = declared(notebook)[name]
    kind = eval(annotation, {"PathLike": str, "Literal": Literal})  # our own notebooks' annotations
    candidates = [value]
    if str in (kind, *get_args(kind)) and (text is not None or not isinstance(value, list | dict)):
        candidates.append(text if text is not None else str(value))
    for candidate in candidates:
        with contextlib.suppress(msgspec.ValidationError):
            value = msgspec.convert(candidate, kind)
            return _absolute(value, hub="dict" in annotation) if "PathLike" in annotation else value
    raise ValueError(f"{where}: {notebook}.{name} must be {annotation}, got {value!r}")


def _absolute(value: Any, hub: bool) -> Any:
    """A path parameter as the kernel, which works elsewhere, can use it: a path seen from the caller becomes absolute.

    Where a model of the Hub may be named as well (``hub``), a string that is no existing path stays as it is, and a
    mapping's own paths are made absolute.
    """
    if isinstance(value, dict):
        paths = ("folder", "checksums", "model", "unet", "images")
        return {k: _absolute(v, hub) if k in paths or isinstance(v, dict) else v for k, v in value.items()}
    named = str(value).partition(":")[0] in NAMED_SOURCES  # "miniature:500" as well
    if value is None or named or (hub and not Path(value).expanduser().exists()):
        return value
    return str(Path(value).expanduser().resolve())


def read_profile(profile: str, children: tuple[Path, ...] = ()) -> tuple[Path, dict[Any, dict[str, Any] | None]]:
    """A profile's file and its sections; arguments and errors as in :func:`load_profile`.

    A profile that says ``extends: NAME`` is that profile with its own keys put over it, section by section;
    ``children`` are the profiles on the way here.
    """
    path = DATA / "profiles" / f"{profile}.yaml"
    if profile.endswith((".yaml", ".yml")) or os.sep in profile:
        path = Path(profile).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (DATA / "profiles").glob("*.yaml")))
        raise ValueError(f"unknown profile {profile!r}: there are {known}, or pass the path of a YAML file")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    parent = sections.pop("extends", None) if isinstance(sections, dict) else None
    if not isinstance(sections, dict) or not all(isinstance(s or {}, dict) for s in sections.values()):
        raise ValueError(f"{path}: a profile maps notebooks to their parameters; see data/profiles/miniature.yaml")
    if path.resolve() in children:
        raise ValueError(f"{path}: extends itself")
    if parent:
        base = read_profile(str(parent), (*children, path.resolve()))[1]
        sections = base | {name: (base.get(name) or {}) | (own or {}) for name, own in sections.items()}
    return path, sections


def load_profile(profile: str, settings: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook that a profile runs: its file's values, then ``--set``.

    Args:
        profile: the name of a file in ``data/profiles`` or the path of a YAML file. Its section ``all`` goes to every
            notebook that declares the key; a section named after a notebook goes to that one.
        settings: ``[NOTEBOOK.]KEY=VALUE``; VALUE is YAML.
        folder: the run folder, which becomes the parameter ``run_folder``.

    Raises:
        ValueError: unknown profile, section, notebook or key, or a value of the wrong type, in one line.
    """
    path, sections = read_profile(profile)
    sections.pop("plan", None)  # is for plan.py
    common = sections.pop("all", None) or {}
    values: dict[str, dict[str, Any]] = {}
    if unknown := [notebook for notebook in sections if notebook not in notebooks()]:
        raise ValueError(f"{path}: unknown notebook {unknown[0]!r}; there are {', '.join(notebooks())}")
    for notebook in sorted(sections):
        mine = {key: value for key, value in common.items() if key in declared(notebook)} | (sections[notebook] or {})
        values[notebook] = {key: checked(notebook, key, value, path.name) for key, value in mine.items()}
        values[notebook]["run_folder"] = str(folder)
    if unused := [key for key in common if not any(key in declared(notebook) for notebook in values)]:
        raise ValueError(f"{path}: no notebook of this profile has the parameter {unused[0]!r}")
    for setting in settings:
        target, equals, text = setting.partition("=")
        scope, dot, key = target.rpartition(".")
        if not equals or not key:
            raise ValueError(f"--set {setting}: expected [NOTEBOOK.]KEY=VALUE")
        scopes = [resolve(scope, "--set")] if dot else [name for name in values if key in declared(name)]
        if not scopes or scopes[0] not in values:
            raise ValueError(
                f"--set {setting}: no notebook of this profile " + (f"is {scope}" if dot else f"has {key!r}")
            )
        for notebook in scopes:
            values[notebook][key] = checked(notebook, key, _value(text), f"--set {setting}", text)
    return values


def _value(text: str) -> Any:
    """A setting's value: YAML, or the text as it is where that is no YAML, as a path need not be."""
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def resolve(name: str, where: str) -> str:
    """The notebook that ``02``, ``02_dataset`` or ``02_dataset.ipynb`` names.

    Raises:
        ValueError: there is no such notebook.
    """
    found = [notebook for notebook in notebooks() if name.removesuffix(".ipynb") in (notebook, notebook[:2])]
    if not found:
        raise ValueError(f"{where}: unknown notebook {name!r}; there are {', '.join(notebooks())}")
    return found[0]


# ------------------------------------------------------------------------------------------------------ what is done


def _key(notebook: str, parameters: Mapping[str, Any]) -> str:
    """Whatever a notebook's outputs depend on, its input files apart."""
    data = {str(file): digest(file) for file in sorted(DATA.glob("*.yaml"))}
    return _hash([source_digest(notebook), dict(parameters), code_digest(), data])


def is_done(notebook: str, parameters: Mapping[str, Any], folder: Path) -> bool:
    """Whether the notebook's last run succeeded, and nothing it depends on or wrote has changed since."""
    done = read_json(_state(folder, notebook, "done"))
    if not done or done["key"] != _key(notebook, parameters):
        return False
    files = {**done["inputs"], **{str(folder / name): value for name, value in done["outputs"].items()}}
    return all(value is not None and digest(Path(name)) == value for name, value in files.items())


def start(notebook: str, folder: Path) -> None:
    """Forget that the notebook was done; called before it runs."""
    _state(folder, notebook, "done").unlink(missing_ok=True)


def finish(notebook: str, parameters: Mapping[str, Any], folder: Path, also: list[Path]) -> None:
    """Record that the notebook is done, with the hashes of what it read and wrote (and of ``also``)."""
    files = read_json(_state(folder, notebook, "files")) or {"inputs": {}, "outputs": []}
    outputs = [*files["outputs"], *(str(path.relative_to(folder)) for path in also)]
    write_json(
        _state(folder, notebook, "done"),
        {
            "key": _key(notebook, parameters),
            "inputs": files["inputs"],
            "outputs": {name: digest(folder / name) for name in outputs},
        },
    )


def outputs(notebook: str, folder: Path) -> list[str]:
    """What the notebook's last run wrote, relative to the run folder, in the order of writing."""
    return (read_json(_state(folder, notebook, "files")) or {"outputs": []})["outputs"]


# -------------------------------------------------------------------------------------------- notebooks with outputs


def tidy(path: Path) -> None:
    """Make an executed notebook the same after every run but for timings: papermill's cell of parameters gets a name in
    place of a random one, and progress bars go."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                lines = re.split("(?<=\n)", "".join(output["text"]))
                output["text"] = "".join(line for line in lines if "\r" not in line)
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr" or o["text"].strip()]
    write_json(path, notebook)


def source_digest(notebook: str) -> str:
    """Hash of a notebook's cells without their outputs."""
    return _hash([["".join(cell["source"]), cell["cell_type"]] for cell in cells(notebook)])


def refresh(notebook: str, folder: Path) -> None:
    """Put the outputs of a run into the checkout's notebook, and the hash of the source that made them (tests compare).

    The injected parameters, papermill's timings and progress bars stay behind.
    """
    path = notebooks()[notebook]
    ours = json.loads(path.read_text(encoding="utf-8"))
    run = json.loads((folder / "notebooks" / path.name).read_text(encoding="utf-8"))
    executed = {cell["id"]: cell for cell in run["cells"]}
    code = [cell for cell in ours["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, 1):
        outputs = [o for o in executed[cell["id"]]["outputs"] if o.get("name") != "stderr"]
        cell |= {"execution_count": count, "outputs": outputs}
        for output in outputs:
            if "execution_count" in output:
                output["execution_count"] = count
    ours["metadata"]["sr4g_source"] = source_digest(notebook)
    write_json(path, ours)
