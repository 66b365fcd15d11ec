"""Which notebooks of a run are done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..store import files
from ..store.files import digest, hash_of, read_json, write_json
from ..store.run import _state, code_digest
from .profiles import source_digest


def _key(notebook: str, parameters: Mapping[str, Any]) -> str:
    """Whatever a notebook's outputs depend on, its input files apart."""
    data = {str(file): digest(file) for file in sorted(files.DATA.glob("*.yaml"))}
    return hash_of([source_digest(notebook), dict(parameters), code_digest(), data])


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
