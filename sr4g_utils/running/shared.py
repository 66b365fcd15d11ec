"""What the runs of a sweep share: a stage that several of them need is made by one, and the others get its files.

Where ``$SR4G_STAGES`` names a folder, :func:`made` keeps finished stages there. Without it nothing is shared.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import files
from .files import digest, read_json, remove, temporary, write_json

WRITTEN_ON = (".jsonl",)  # files that a prolonged stage appends to; all others are replaced whole


def store() -> Path | None:
    """The folder that this run's stages are shared in; None if they are not."""
    folder = os.environ.get("SR4G_STAGES")
    return Path(folder) if folder else None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file. A process that dies lets the next one in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """The result of ``make()``, which writes the artifact ``path``; or that of a run that has made the same before.

    Args:
        path: a file or folder. Of a folder, what an interrupted ``make`` left there is handed to it again.
        key: of all that the artifact depends on: where keys are equal, so are the artifacts.
    """
    if (folder := store()) is None:
        return make()
    entry = folder / key
    kept = entry / "artifact"
    with alone(folder / f"{key}.lock"):
        files.sweep(entry)
        found = read_json(entry / "record.json")
        if found and found["output"] == digest(kept):
            copy(kept, path)
        else:
            found = {"result": make(), "output": digest(path)}
            copy(path, kept)
            write_json(entry / "record.json", found)
    return found["result"]


def copy(source: Path, target: Path) -> None:
    """Put a file or folder, whole or not at all, in the place of ``target``: as hard links, where the disk has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(target)
    if source.is_dir():
        shutil.copytree(source, partial, copy_function=_link)
    else:
        _link(str(source), str(partial))
    if target.is_dir():
        remove(target)
    target.unlink(missing_ok=True)  # renamed over a link to itself, a link would stay
    partial.replace(target)


def _link(source: str, target: str) -> None:
    if not source.endswith(WRITTEN_ON):
        with contextlib.suppress(OSError):  # another disk, or one without links
            os.link(source, target)
            return
    shutil.copy2(source, target)
