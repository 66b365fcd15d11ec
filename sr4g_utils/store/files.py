"""Files: where they are, atomic writes, hashes, locks, downloads, and the contents of ``data/``.

What a run writes appears under its final name only when it is whole (:func:`atomic`). A run deletes its own files only.
"""

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
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from .. import __version__

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
DATA = PACKAGE / "data" if (PACKAGE / "data").is_dir() else ROOT / "data"  # of a wheel, or of a checkout

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial")  # machine, process, random number
_FORGOTTEN = 24 * 3600  # seconds after which a temporary of another machine belongs to nobody


@contextlib.contextmanager
def atomic(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``: renamed to it when the block succeeds, deleted when it fails.

    Any number of processes may write the same file at once: the last one wins, and its file is whole. With
    ``durable=False`` thousands of small files need not wait for the disk: they survive a kill, not a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    try:
        with full_disk_named(path):
            yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Whatever a library says of a full disk, or of a quota that is used up, becomes an OSError that names the file."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not (full or re.search(r"(?i)no space left on device|disk quota exceeded", str(error))):
            raise
        place = path.parent
        raise OSError(errno.ENOSPC, f"the disk is full: {place} has no room left for the file", str(path)) from error


def temporary(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process, thread or call has."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


@cache
def _machine() -> str:
    """The machine, or the container, within which a process number is unique."""
    space = Path("/proc/self/ns/pid")
    return hash_of([platform.node(), str(space.readlink()) if space.is_symlink() else ""])[:8]


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder and its subfolders."""
    for path in folder.rglob(".*.partial"):
        if not (match := _TEMPORARY.fullmatch(path.name)):
            continue  # not ours
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            is_here = match[1] == _machine()
            if not psutil.pid_exists(int(match[2])) if is_here else time.time() - path.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a kill leaves no half of it under its name."""
    going = temporary(folder)
    try:
        folder.rename(going)
    except FileNotFoundError:  # another process was faster
        return
    for wait in (0.0, 0.1, 1.0):  # another process may be about to write in it
        time.sleep(wait)
        shutil.rmtree(going, ignore_errors=True)
        if not going.exists():
            return


def set_aside(path: Path) -> str:
    """Move a file or folder to the first free of ``<name>.before``, ``.before-2``, …; a phrase with all names."""
    before = [path.with_name(f"{path.name}.before")]
    while before[-1].exists():
        before.append(path.with_name(f"{path.name}.before-{len(before) + 1}"))
    path.rename(before[-1])
    older = f" (and older ones: {', '.join(map(str, before[:-1]))})" if before[1:] else ""
    return f"the old one is {before[-1]}{older}"


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


_MARKUP = re.compile(r"[\\`*|$~]|<(?=[\w/!?])|&(?=#?\w+;)|\[(?=.*\]\()|(?<![^\W_])_|_(?![^\W_])")


def markdown(text: Any) -> str:
    """A text as Markdown shows it: nothing in it is markup, nor parts a table's cells."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", " ".join(str(text).splitlines()))


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_table(path: str | Path, table: pd.DataFrame, **options: Any) -> None:
    """Write a table as Parquet; ``options`` are those of pandas."""
    with atomic(path) as partial:
        table.to_parquet(partial, index=False, **options)


def read_table(path: str | Path, **options: Any) -> pd.DataFrame:
    """A Parquet file that was made here; ``options`` are those of pandas.

    Raises:
        ValueError: it is damaged or lacks a column; the message names it. FileNotFoundError: there is none.
    """
    try:
        return pd.read_parquet(path, **options)
    except FileNotFoundError:
        raise
    except Exception as error:  # Arrow's are of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as Parquet ({reason}); delete it, and run again to make it") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if it is no file, incomplete or nested too deeply."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


YAML_LENGTH = int(os.environ.get("SR4G_YAML_LENGTH", 100_000))  # characters of a text in YAML, at most
YAML_VALUES = int(os.environ.get("SR4G_YAML_VALUES", 20_000))  # that it holds, those that it repeats counted each time
YAML_DEPTH = int(os.environ.get("SR4G_YAML_DEPTH", 50))  # of lists and mappings in each other


class YAMLFault(yaml.YAMLError):
    """YAML that is read without an error by others and means nothing good: said in one line."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: 1e-5 is a number, and 12:30 is not (PyYAML reads YAML 1.1). A key stands once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own, copied for each class)
    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.nodes += 1
        if self.nodes > YAML_VALUES:
            raise YAMLFault(f"holds more values than SR4G_YAML_VALUES={YAML_VALUES}")
        if self.depth > YAML_DEPTH:
            raise YAMLFault(f"lists and mappings are nested more deeply than SR4G_YAML_DEPTH={YAML_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            line = node.start_mark.line + 1
            raise YAMLFault(f"line {line}: holds half a character (\\ud800 to \\udfff); write all of it")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # before values that are merged into it come to it
                name, line = key.value, key.start_mark.line + 1
                if key.tag != "tag:yaml.org,2002:merge":
                    name = self.construct_object(key)
                if name in lines:
                    where = f"in line {lines[name]} and line {line}"
                    raise YAMLFault(f"{name!r} stands twice, {where}; leave one of them out")
                lines[name] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9]\d*)|0o[0-7]+|0x[\da-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf)|\.nan", list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def read_yaml(text: str) -> Any:
    """The value of a text in YAML 1.2. Raises ``yaml.YAMLError``: no YAML, a key that stands twice in a mapping, or a
    text that is longer, holds more values or is nested more deeply than a person writes."""
    if len(text) > YAML_LENGTH:
        raise YAMLFault(f"{len(text):,} characters, more than SR4G_YAML_LENGTH={YAML_LENGTH}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > YAML_VALUES:
            raise YAMLFault(f"repeats itself into more values than SR4G_YAML_VALUES={YAML_VALUES}")
        return loader.construct_document(node)
    except (ValueError, OverflowError, TypeError) as error:  # of a number too long, a date that is none
        raise YAMLFault(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values a node of YAML stands for, where each alias is what it names."""
    if known.get(id(node)) == 0:
        raise YAMLFault(f"line {node.start_mark.line + 1}: refers to itself")
    if id(node) not in known:
        known[id(node)] = 0
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def read_setting(text: str) -> Any:
    """The value of a setting on the command line: YAML, but plain text (such as a path) may hold " #" and ": ".

    Raises:
        ValueError: a key that stands twice, or YAML that is refused; see :func:`read_yaml`.
    """
    try:
        value = read_yaml(text)
        if not isinstance(value, str) or text.lstrip()[:1] in ("'", '"'):
            return value
    except YAMLFault as error:
        raise ValueError(f"{text[:80]}: {error}") from None
    except yaml.YAMLError:
        pass
    return text.strip()


WHOLE, BLOCK = 4 << 20, 1 << 16  # larger files of a folder are hashed by eight blocks of BLOCK bytes
OTHERS_AT_WORK = 25  # percent of the cores
CLOCK = 2  # seconds; a younger file may be rewritten without a new time stamp
MANY = 1000  # files; hashes of larger folders are kept between processes
_seen: dict[str, Any] = {}  # by file: its size and times when it was read, and the hash of its content


def digest(path: Path) -> str | None:
    """sha256 of a file, or of the names and contents of a folder's files, or of those that a path with ``*`` stands
    for; None where there is nothing.

    Hidden files and times do not count. Of a folder, only files whose size or times have changed are read again, and of
    large files (weights) only some blocks.
    """
    if path.is_dir() or "*" in str(path):
        files = sorted(walk(path)) if path.is_dir() else matching(path)
        path = path if path.is_dir() else Path(path.anchor)
        return hash_of(list(zip((str(file.relative_to(path)) for file in files), contents(files), strict=True)))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matching(pattern: Path) -> list[Path]:
    """The files that an absolute path with ``*`` stands for."""
    at = next(i for i, part in enumerate(pattern.parts) if "*" in part)
    return sorted(path for path in Path(*pattern.parts[:at]).glob("/".join(pattern.parts[at:])) if path.is_file())


def walk(folder: Path) -> Iterator[Path]:
    """The files in and below a folder, without hidden ones; a linked folder is followed once."""
    visited: set[str] = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at, name) for name in names if not name.startswith("."))


def contents(files: list[Path]) -> list[str]:
    """A hash of each file's content; "" where there is no file."""
    memory = None
    if len(files) >= MANY:
        place = os.path.commonpath([file.absolute().parent for file in files])
        memory = cache_folder() / "digests" / f"{hash_of(place)[:16]}.json"
        _seen.update(read_json(memory) or {})
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(_content, files))
    if memory and any(was_read for was_read, _ in hashes):
        with contextlib.suppress(OSError):  # the cache is only a help
            write_json(memory, {str(file.absolute()): _seen.get(str(file.absolute())) for file in files})
    return [value for _, value in hashes]


def _content(path: Path) -> tuple[bool, str]:
    """Whether a file had to be read, and a hash of its content: of all, or of blocks spread over a large file."""
    if not path.is_file():
        return False, ""
    name, about = str(path.absolute()), path.stat()
    size, stamp = about.st_size, [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    if (known := _seen.get(name)) and known[0] == stamp:
        return False, known[1]
    hashed = hashlib.sha256(str(size).encode())
    starts = [(size - BLOCK) * i // 7 for i in range(8)] if size > WHOLE else [0]
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            hashed.update(file.read(BLOCK if size > WHOLE else size))
    if time.time() - about.st_ctime > CLOCK:
        _seen[name] = stamp, hashed.hexdigest()
    return True, hashed.hexdigest()


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def provenance() -> dict[str, Any]:
    """Where a number comes from: version, commit, Python, libraries, machine. Without dates: same run, same bytes."""
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    libraries = ("numpy", "pyarrow", "pandas", "torch", "diffusers", "transformers")  # of which none is imported
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
    wanted = [line.split("==") for line in lines if line and not line.startswith("#")]
    return all((_version(name) or number).partition("+")[0] == number for name, number in wanted)


def _version(library: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(library)
    return None


@cache
def say(line: str) -> None:
    """To the log, each line once."""
    print(line, file=sys.stderr)


def reader_is_gone() -> int:
    """The exit status where whoever read our output has closed it, as ``| head`` does: nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
    return 0


def lock(path: Path, shared: bool = False, of: Path | None = None) -> Any:
    """Hold a lock file for as long as the returned file object lives, or fail at once.

    Raises:
        BlockingIOError: another process holds it; the message names what it is ``of``, by default its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        where = f"{of or path.parent} is in use by another run or its kernel"
        raise BlockingIOError(f"{where}; wait for it, or choose another folder with --runs") from None
    return file


def share_cores() -> None:
    """On a busy machine, use only as many threads as there are idle cores, and let waiting threads sleep, not spin.

    For this process and its children; to be called before torch is imported. The user's own settings stay; those of an
    earlier call are decided anew.
    """
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    if os.environ.pop("SR4G_SHARES_CORES", None):
        for name in names:
            os.environ.pop(name, None)
    if not any(name in os.environ for name in names) and (busy := psutil.cpu_percent(0.2)) > OTHERS_AT_WORK:
        idle = max(1, round((os.cpu_count() or 1) * (1 - busy / 100)))
        os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0")  # GNU's OpenMP; Intel's and LLVM's
        os.environ.update(OMP_NUM_THREADS=str(idle), SR4G_SHARES_CORES="1")
        print(f"others keep the cores {busy:.0f} % busy: OMP_NUM_THREADS={idle}", file=sys.stderr)


def hush_advice() -> None:
    """No advice of the libraries on packages that are not needed; to be called before they are imported."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def cache_folder() -> Path:
    """Where downloads are kept."""
    import pooch

    return Path(os.environ.get("SR4G_CACHE") or pooch.os_cache("sr4g"))


def sources() -> dict[str, dict[str, Any]]:
    """The official files that a run may download (``data/sources.yaml``): url, hash and, of large ones, bytes."""
    return shipped("sources.yaml")


def download(name: str) -> Path:
    """An official file named in ``data/sources.yaml``, from the cache or downloaded into it and checked by its hash.

    The cache is ``$SR4G_CACHE``, by default the user's cache folder. ``$SR4G_MIRROR`` is a URL that has the files under
    these names and takes the place of the official hosts.

    Raises:
        RuntimeError: the download fails or its hash is wrong; nothing is left under the final name.
    """
    import pooch  # the only thing here that needs the network

    source, folder = sources()[name], cache_folder()
    url = f"{mirror.rstrip('/')}/{name}" if (mirror := os.environ.get("SR4G_MIRROR")) else source["url"]
    try:
        files = pooch.create(folder, base_url="", registry={name: source["hash"]}, urls={name: url}, retry_if_failed=2)
        return Path(files.fetch(name, progressbar=sys.stderr.isatty()))
    except Exception as error:
        raise RuntimeError(
            f"{name}: could not download {url} into {folder} ({type(error).__name__}: {error}). "
            "Check the connection, or download the file yourself and pass its path"
        ) from error


def shipped(name: str) -> Any:
    """The value of a YAML file of ``data``."""
    return read_yaml((DATA / name).read_text(encoding="utf-8"))


def ledger() -> pd.DataFrame:
    """The decisions that the paper leaves open (``data/decisions.yaml``), one row each."""
    return pd.DataFrame(shipped("decisions.yaml"))


def reported(section: str) -> dict[Any, dict[str, Any]]:
    """A section of the published numbers, ``data/reported.yaml``."""
    return shipped("reported.yaml")[section]


def protocol(number: int | None = None) -> dict[str, Any]:
    """What was decided before scoring, ``data/protocol.yaml``; or, with a ``number``, of an earlier base."""
    return shipped(f"protocol_{number}.yaml" if number else "protocol.yaml")


def extra_of(error: ModuleNotFoundError) -> str:
    """What to install where a library is missing that an extra of the package brings, in one line."""
    library, lines = (error.name or "").partition(".")[0], []
    with contextlib.suppress(PackageNotFoundError):
        lines = [line.replace('"', "'") for line in requires(PACKAGE.name) or []]
    named = rf"(?i){library.replace('_', '[-_]')}(?![\w-]).*extra == '(\w+)'"
    of = [match[1] for line in lines if (match := re.match(named, line))]
    if not of:
        return str(error)
    extra = min(of, key=lambda name: "".join(lines).count(f"'{name}'"))  # the smallest: larger ones hold it, too
    return f"needs the extra {extra}: pip install '{PACKAGE.name}[{extra}]' (there is no {library})"
