"""Files: paths, atomic writes, hashes, downloads, and what stands in ``data/``.

Everything a run writes appears under its final name only when it is whole (:func:`atomic`).
"""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from .. import __version__

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
DATA = ROOT / "data"

# ------------------------------------------------------------------------------------------------ writing and hashes


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
        return hash_of([[str(file.relative_to(path)), file.stat().st_size, _blocks(file)] for file in files])
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


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


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
        "pinned": pinned(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def pinned() -> bool:
    """Whether every installed package that ``constraints.txt`` names has the version that it names."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    found = {name: found for name in wanted if (found := _version(name)) is not None}
    return all(version.partition("+")[0] == wanted[name] for name, version in found.items())


def _version(library: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(library)
    return None


# ---------------------------------------------------------------------------------------------------- published files


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
    under these names and is asked instead of the official hosts.

    Raises:
        RuntimeError: the download fails or its hash is wrong; nothing is left under the final name.
    """
    import pooch  # the only thing here that needs the network

    source = sources()[name]
    url, mirror = source["url"], os.environ.get("SR4G_MIRROR")
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
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
