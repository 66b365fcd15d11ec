"""Which notebooks of a run are done."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..store import files
from ..store.files import digest, hash_of, read_json, write_json
from ..store.run import code_digest, state_file
from .profiles import declared, declared_in, injected, source_digest


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


def start(notebook: str, folder: Path) -> list[str]:
    """Forget that the notebook was done; called before it runs. Returns what it wrote then."""
    state_file(folder, notebook, "done").unlink(missing_ok=True)
    return outputs(notebook, folder)


def replaced(notebook: str, parameters: Mapping[str, Any], folder: Path) -> list[str]:
    """The parameters in which the notebook's last run there differs from these, of mappings with their keys then; none
    if it never ran."""
    if (executed := read_json(folder / "notebooks" / f"{notebook}.ipynb")) is None:
        return []
    before = {name: default for name, (_, default) in declared_in(executed["cells"]).items()} | injected(executed)
    now = {name: default for name, (_, default) in declared(notebook).items()} | dict(parameters)
    changed = [name for name in now if name in before and hash_of(now[name]) != hash_of(before[name])]
    keys = {name: f" (were {', '.join(before[name])})" for name in changed if isinstance(before[name], dict)}
    return [name + keys.get(name, "") for name in changed if name != "run_folder"]


def finish(
    notebook: str, parameters: Mapping[str, Any], folder: Path, also: list[Path], before: Sequence[str] = ()
) -> None:
    """Record that the notebook is done, with the hashes of what it read and wrote (and of ``also``). Of what it wrote
    ``before``, figures, tables and results that it no longer makes go: they are of another configuration."""
    record = read_json(state_file(folder, notebook, "files")) or {"inputs": {}, "outputs": []}
    outputs = [*record["outputs"], *(str(path.relative_to(folder)) for path in also)]
    clear(set(before) - set(outputs), folder)
    digests = {name: digest(folder / name) for name in outputs}
    about = {"key": _key(notebook, parameters), "inputs": record["inputs"], "outputs": digests}
    write_json(state_file(folder, notebook, "done"), about)


def clear(names: Iterable[str], folder: Path) -> None:
    """Remove the figures, tables and results among what a notebook wrote."""
    for name in names:
        if name.startswith(("figures/", "tables/", "artifacts/results/")):
            (folder / name).unlink(missing_ok=True)


def outputs(notebook: str, folder: Path) -> list[str]:
    """What the notebook's last run wrote, relative to the run folder, in the order of writing."""
    return (read_json(state_file(folder, notebook, "files")) or {"outputs": []})["outputs"]
