"""What a run is asked: the notebooks with their parameters, and the profiles that set them."""

import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import yaml

from ..dataset.captions import TEMPLATES
from ..dataset.prompt_sets import SETS
from ..dataset.prompts import OBJECT_SETS
from ..models import sampling
from ..relations import RULES
from ..store import files
from ..store import settings as limits
from ..store.files import ROOT, hash_of, write_json
from ..store.run import RECORDED
from ..store.settings import meant

NOTEBOOKS = ROOT / "notebooks"


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
    """The parameters of a notebook: name -> (annotation, default), read from its cell tagged ``parameters``.

    Where the cell has the mapping ``choices``, the fields of fine-tuning's Choices that it lacks are parameters, too.
    """
    return declared_in(cells(notebook))


def declared_in(cells: list[dict[str, Any]]) -> dict[str, tuple[str, Any]]:
    """The same of a notebook's cells."""
    own = _declared_in_cell(cells)
    if own.pop("choices", None) is None:
        return own
    choices = _choices()
    kinds = {field.name: inspect.formatannotation(field.type) for field in msgspec.structs.fields(choices)}
    others = {name: (kinds[name], default) for name, default in msgspec.to_builtins(choices()).items()}
    return own | {name: other for name, other in others.items() if name not in own}


def _choices() -> Any:
    """Fine-tuning's Choices, by name: the rooms of this floor do not import each other."""
    return importlib.import_module(f"{files.PACKAGE.name}.finetuning.choices").Choices


def _declared_in_cell(cells: list[dict[str, Any]]) -> dict[str, tuple[str, Any]]:
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    return {
        node.target.id: (ast.unparse(node.annotation), ast.literal_eval(node.value))
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }


def for_cell(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's parameters as its cell declares them: those that it lacks are in ``choices``."""
    names = _declared_in_cell(cells(notebook))
    others = {name: value for name, value in values.items() if name not in names}
    return {name: value for name, value in values.items() if name in names} | ({"choices": others} if others else {})


def injected(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that an executed notebook got, those in ``choices`` among them."""
    values = dict(notebook["metadata"].get("papermill", {}).get("parameters", {}))
    return values.pop("choices", {}) | values


CHOICES: dict[str, Collection[str]] = {"rules": RULES, "template": TEMPLATES}  # of parameters that notebooks call str
NAMED_SOURCES = ("miniature", RECORDED)  # what a path parameter may say in place of a path


def checked(notebook: str, name: str, value: Any, where: str, text: str | None = None) -> Any:
    """``value`` as the type that the notebook declares for ``name``; 1e5 is a whole number, too.

    ``text`` is what the value was read from: where a string is wanted, 007 is not the number 7. A ValueError says that
    the notebook has no such parameter, or that the value has the wrong type.
    """
    if name not in declared(notebook):
        has = f"it has {', '.join(declared(notebook))}"
        raise ValueError(f"{where}: {notebook} has no parameter {name!r}{meant(name, declared(notebook))}; {has}")
    annotation, _ = declared(notebook)[name]
    kind, words = (  # our own notebooks' annotations
        eval(annotation, {"PathLike": path, "Literal": Literal}) for path in (str, os.PathLike)
    )
    if name in CHOICES:
        kind = words = Literal[tuple(CHOICES[name])]
    candidates = [value]
    if str in (kind, *get_args(kind)) and (text is not None or not isinstance(value, list | dict)):
        candidates.append(text if text is not None else str(value))
    if isinstance(value, float) and value.is_integer():
        candidates.insert(0, int(value))  # what wants a float takes it as one
    for candidate in candidates:
        with contextlib.suppress(msgspec.ValidationError, UnicodeError):  # half a character is no text
            converted = msgspec.convert(candidate, kind)
            limits.check(name, converted, f"{where}: {notebook}.{name}")
            return converted
    hint = meant(value, CHOICES[name]) if name in CHOICES else ""
    raise ValueError(f"{where}: {notebook}.{name} must be {limits.in_words(words)}, got {limits.shown(value)}{hint}")


def absolute(notebook: str, name: str, value: Any, seen_from: Path) -> Any:
    """A parameter that names files as the kernel, which works elsewhere, can use it: a path seen from a folder."""
    annotation, _ = declared(notebook).get(name, ("", None))
    if "PathLike" not in annotation:
        return value
    if isinstance(value, list):
        return [_absolute(item, seen_from, hub="dict" in annotation) for item in value]
    return _absolute(value, seen_from, hub="dict" in annotation)


def _absolute(value: Any, seen_from: Path, hub: bool) -> Any:
    """Where a model of the Hub may be named as well (``hub``), a string that is no existing path stays as it is, but
    for one that begins like a path; a mapping's own paths are made absolute. The name of a prompt set is no path."""
    if isinstance(value, dict):
        here = dict.fromkeys(("folder", "checksums", "images", "boxes"), False)
        ids = here | dict.fromkeys(("model", "unet", "lora"), True)
        paths = {key: item for key, item in value.items() if key in ids or isinstance(item, dict)}
        return value | {key: _absolute(item, seen_from, ids.get(key, True)) for key, item in paths.items()}
    named = str(value).partition(":")[0] in NAMED_SOURCES or str(value) in SETS  # "miniature:500" as well
    if value is None or named or isinstance(value, bool | list):
        return value
    value = str(value)
    path = seen_from / Path(value).expanduser()
    plainly = Path(value).is_absolute() or value.startswith(("./", "../", "~"))
    return value if hub and not plainly and not path.exists() else str(path.resolve())


def read_profile(profile: str, children: tuple[Path, ...] = ()) -> tuple[Path, dict[Any, dict[str, Any] | None]]:
    """A profile's file and its sections; arguments and errors as in :func:`load_profile`.

    A profile that says ``extends: NAME`` is that profile with its own keys put over it, section by section;
    ``children`` are the profiles on the way here. Each one's relative paths are seen from its own folder.
    """
    path = profile_path(profile, children[-1].parent if children else Path())
    try:
        with path.open(encoding="utf-8-sig") as file:
            sections = files.read_yaml(file.read(files.YAML_LENGTH + 1))  # which is refused
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    parent = sections.pop("extends", None) if isinstance(sections, dict) else None
    if not isinstance(sections, dict) or not all(isinstance(s or {}, dict) for s in sections.values()):
        raise ValueError(f"{path}: a profile maps notebooks to their parameters; see data/profiles/miniature.yaml")
    if path in children:
        raise ValueError(f"{path}: extends itself")
    for name, values in sections.items():
        for notebook in notebooks() if name == "all" else [name] if name in notebooks() else []:
            for key in values or {}:
                values[key] = absolute(notebook, key, values[key], path.parent)
    if parent:
        base = read_profile(str(parent), (*children, path))[1]
        sections = base | {name: (base.get(name) or {}) | (own or {}) for name, own in sections.items()}
    return path, sections


def profile_path(profile: str, seen_from: Path = Path()) -> Path:
    """The file of a profile: one of ``data/profiles`` by name, or a path seen from a folder; a ValueError if none."""
    path = files.DATA / "profiles" / f"{profile}.yaml"
    if profile.endswith((".yaml", ".yml")) or os.sep in profile:
        path = seen_from / Path(profile).expanduser()
    if not path.is_file():
        known = sorted(file.stem for file in (files.DATA / "profiles").glob("*.yaml"))
        there = f"there are {', '.join(known)}, or pass the path of a YAML file"
        raise ValueError(f"unknown profile {profile!r}{meant(profile, known)}: {there}")
    return path.absolute()


def run_folder(runs: Path, profile: str) -> Path:
    """The folder of a profile's run: named after the profile, and with a hash of its path where another one has it.

    The run folder stores the relative path of its profile, so both can be copied together.
    """
    path, folder = profile_path(profile), runs.expanduser().resolve() / profile_path(profile).stem
    shipped = files.DATA / "profiles" / f"{path.stem}.yaml"
    note = files.read_json(folder / ".state" / "profile.json")
    owner = folder / note if isinstance(note, str) else path
    owner = shipped if shipped.is_file() else owner if owner.is_file() else path
    if owner.resolve() == path.resolve():
        return folder
    mine = folder.with_name(f"{path.stem}-{hash_of(str(path))[:6]}")
    print(f"{folder} is for {owner.resolve()}: the results of {path} are in {mine}", file=sys.stderr)
    return mine


def claim(folder: Path, profile: str) -> None:
    """Note in a run folder whose it is, for :func:`run_folder`."""
    write_json(folder / ".state" / "profile.json", os.path.relpath(profile_path(profile), folder))


def load_profile(
    profile: str, settings: Sequence[str], folder: Path, swept: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook that a profile runs: its file's values, then ``--set``.

    Args:
        profile: the name of a file in ``data/profiles`` or the path of a YAML file. Its section ``all`` goes to every
            notebook that declares the key; a section named after a notebook goes to that one.
        settings: ``[NOTEBOOK.]KEY=VALUE``; VALUE is YAML, but a text is taken as it is, with " #" and ": " in it.
            Relative paths are seen from the caller, those of the file from its folder.
        swept: more of them, from ``--sweep``.
        folder: the run folder, which becomes the parameter ``run_folder``.

    Raises:
        ValueError: unknown profile, section, notebook or key, or a value of the wrong type, in one line.
    """
    path, sections = read_profile(profile)
    sections.pop("plan", None)  # is for plan.py
    common = sections.pop("all", None) or {}
    values: dict[str, dict[str, Any]] = {}
    for name in (name for name in sections if name not in notebooks()):
        hint = meant(name, [*notebooks(), "all", "extends", "plan"])
        raise ValueError(f"{path}: unknown notebook {name!r}{hint}; there are {', '.join(notebooks())}")
    for notebook in sorted(sections):
        mine = {key: value for key, value in common.items() if key in declared(notebook)} | (sections[notebook] or {})
        values[notebook] = {key: checked(notebook, key, value, path.name) for key, value in mine.items()}
        values[notebook]["run_folder"] = str(folder)
    known = {key for notebook in values for key in declared(notebook)}
    if unused := [key for key in common if key not in known]:
        hint = meant(unused[0], known)
        raise ValueError(f"{path}: no notebook of this profile has the parameter {unused[0]!r}{hint}")
    for option, setting in [*(("--set", text) for text in settings), *(("--sweep", text) for text in swept)]:
        target, equals, text = setting.partition("=")
        scope, dot, key = target.rpartition(".")
        where = f"{option} {setting}"
        if not equals or not key:
            raise ValueError(f"{where}: expected [NOTEBOOK.]KEY=VALUE")
        scopes = [resolve(scope, where)] if dot else [name for name in values if key in declared(name)]
        if not scopes or scopes[0] not in values:
            lack = f"is {scope}" if dot else f"has {key!r}{meant(key, known)}"
            raise ValueError(f"{where}: no notebook of this profile {lack}")
        for notebook in scopes:
            value = checked(notebook, key, files.read_setting(text), where, text)
            values[notebook][key] = absolute(notebook, key, value, Path.cwd())
    for notebook, mine in values.items():  # now, not after hours of other work
        _check({name: default for name, (_, default) in declared(notebook).items()} | mine)
    return values


def _check(values: Mapping[str, Any]) -> None:
    """Refuse a notebook's parameters that cannot be together, or that are mappings whose parts cannot be."""
    for name, known in (("objects", OBJECT_SETS), ("splits", ("main", "unseen"))):
        if other := limits.unknown(values.get(name, ()), known):
            raise ValueError(f"{name}: unknown {other[0]!r}{other[1]}; choose some of {', '.join(known)}")
        if name in values and not values[name]:
            raise ValueError(f"{name}: is empty; choose some of {', '.join(known)}")
    if "sampling" in values:
        sampling.Sampling.of(values["sampling"])
    for name, entry in values.get("models", {}).items():
        sampling.of_model(name, entry, values["sampling"])
    if "micro_batch" in values:
        _choices().among(values)


def resolve(name: str, where: str) -> str:
    """The notebook that ``02``, ``02_dataset`` or ``02_dataset.ipynb`` names; a ValueError if there is none."""
    matches = [notebook for notebook in notebooks() if name.removesuffix(".ipynb") in (notebook, notebook[:2])]
    if not matches:
        raise ValueError(f"{where}: unknown notebook {name!r}; there are {', '.join(notebooks())}")
    return matches[0]


def tidy(path: Path) -> None:
    """Make an executed notebook the same after every run but for timings: papermill's cell of parameters and
    styled tables get names in place of random ones, addresses of objects and progress bars go."""
    text = re.sub(r" at 0x[0-9a-f]{6,}>", ">", path.read_text(encoding="utf-8"))
    table = r"\bT_[0-9a-f]{5}(?=[_\\ ])"  # pandas draws the id of a styled table at random
    names = {name: f"T_{i:05x}" for i, name in enumerate(dict.fromkeys(re.findall(table, text)))}
    notebook = json.loads(re.sub(table, lambda match: names[match[0]], text))
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
        if "outputs" in cell:
            cell["outputs"] = _joined(cell["outputs"])
    write_json(path, notebook)


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without progress bars, and consecutive outputs of one stream as one list of lines: how a kernel parts them is
    chance."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr":
            lines = re.split("(?<=\n)", "".join(output["text"]))
            output["text"] = "".join(line for line in lines if "\r" not in line)
            if not output["text"].strip():
                continue
        if joined and output["output_type"] == "stream" and joined[-1].get("name") == output["name"]:
            output["text"] = [*joined.pop()["text"], *output["text"]]
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"]).splitlines(keepends=True)
        joined.append(output)
    return joined


def source_digest(notebook: str) -> str:
    """Hash of a notebook's cells without their outputs."""
    return hash_of([["".join(cell["source"]), cell["cell_type"]] for cell in cells(notebook)])


def refresh(notebook: str, folder: Path) -> None:
    """Put the outputs of a run into the checkout's notebook, and the hash of the source that made them (tests compare):
    without the injected parameters, papermill's timings and progress bars."""
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
