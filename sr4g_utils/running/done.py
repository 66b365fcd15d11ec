"""Which notebooks of a run are done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..store import files
from ..store.files import digest, hash_of, read_json, write_json
from ..store.run import code_digest, state_file
from .profiles import source_digest


def _key(notebook: str, parameters: Mapping[str, Any]) -> str:
    """Hash of everything that a notebook's outputs depend on, except its input files."""
    data = {str(file): digest(file) for file in sorted(files.DATA.glob("*.yaml"))}
    return hash_of([source_digest(notebook), dict(parameters), code_digest(), data])


def is_done(notebook: str, parameters: Mapping[str, Any], folder: Path) -> bool:
    """Whether the notebook's last run succeeded, and nothing it depends on or wrote has changed since."""
    done = read_json(state_file(folder, notebook, "done"))
    if not done or done["key"] != _key(notebook, parameters):
        return False
    digests = {**done["inputs"], **{str(folder / name): value for name, value in done["outputs"].items()}}
    return all(value is not None and digest(Path(name)) == value for name, value in digests.items())


def start(notebook: str, folder: Path) -> None:
    """Forget that the notebook was done; called before it runs."""
    state_file(folder, notebook, "done").unlink(missing_ok=True)


def finish(notebook: str, parameters: Mapping[str, Any], folder: Path, also: list[Path]) -> None:
    """Record that the notebook is done, with the hashes of what it read and wrote (and of ``also``)."""
    record = read_json(state_file(folder, notebook, "files")) or {"inputs": {}, "outputs": []}
    outputs = [*record["outputs"], *(str(path.relative_to(folder)) for path in also)]
    digests = {name: digest(folder / name) for name in outputs}
    about = {"key": _key(notebook, parameters), "inputs": record["inputs"], "outputs": digests}
    write_json(state_file(folder, notebook, "done"), about)


def outputs(notebook: str, folder: Path) -> list[str]:
    """What the notebook's last run wrote, relative to the run folder, in the order of writing."""
    return (read_json(state_file(folder, notebook, "files")) or {"outputs": []})["outputs"]
