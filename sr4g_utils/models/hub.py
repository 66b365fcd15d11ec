"""Models found: in a local folder, in the Hub's cache, or on the Hub and its mirrors; and why one could not be had."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import errors, get_cached_repo_tree, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

from . import checks
from .source import ModelError, Source, causes

PartsOf = Callable[[dict[str, Any], Source], Mapping[str, bool]]


def find(source: Source, index: str, parts_of: PartsOf) -> tuple[Path, str | None, list[str]]:
    """A model's folder, the commit that its revision stands for, and the files in it that loading reads.

    On the Hub, ``index`` is fetched and the repository's files are listed first: what cannot be used is refused before
    anything large is fetched. What is in the cache already is not asked for again.

    Args:
        index: the file that says what the model is made of, ``model_index.json`` or ``config.json``.
        parts_of: from its content, the parts of :func:`checks.choose`; it raises ModelError for a model of no use here.

    Raises:
        ModelError: the model cannot be had, or is of no use.
    """
    if source.folder is not None:
        folder = Path(source.folder).expanduser()
        if not folder.exists():
            remedy = source.alike() or "; check the path, or give an id on the Hub"
            raise source.error(f"there is no folder {folder}{remedy}")
        if not (folder / index).is_file():
            raise source.error(checks.instead(folder, index))
        return folder, None, _chosen(folder, listing(folder), index, parts_of, source)
    failures = []
    for place in [f"{source.id}@{source.revision}", *source.mirrors]:
        name, _, revision = place.partition("@")
        here = msgspec.structs.replace(source, id=name, revision=revision or "main")
        try:
            folder, files = _fetch(here, index, parts_of)
        except ModelError as error:
            if not source.mirrors:
                raise
            failures.append(str(error))
        except Exception as error:
            failures.append(f"{name}: {_why(error, here)}")
        else:
            return folder, f"{name}@{folder.name}", files  # a snapshot's folder is named after its commit
    why = "; ".join(failures)
    here_too = f". There is no folder of that name here{source.alike()}" if source.alike() else ""
    remedy = "Or copy the model here and give its path as 'folder'"
    raise ModelError(f"{source.id} cannot be loaded: {why}{here_too}. {remedy}")


def listing(folder: Path) -> list[str]:
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _chosen(folder: Path, names: list[str], index: str, parts_of: PartsOf, source: Source) -> list[str]:
    parts = parts_of(checks.read(folder / index, source), source)
    return list(dict.fromkeys([index, *checks.choose(names, parts, source)]))


def _fetch(source: Source, index: str, parts_of: PartsOf) -> tuple[Path, list[str]]:
    name = str(source.id)
    with _quiet():
        folder = Path(snapshot_download(name, revision=source.revision, allow_patterns=[index]))
    try:
        names = [file.path for file in get_cached_repo_tree(name, revision=folder.name)]
    except errors.CachedRepoTreeNotFoundError:  # offline, and cached by a version that kept no list
        names = listing(folder)
    if index not in names:
        layout = "it is not in the layout of diffusers or transformers"
        others = "a LoRA goes beside its model, as 'lora'; a single checkpoint is not read"
        raise ModelError(f"{name} has no {index}: {layout}; {others}")
    files = _chosen(folder, names, index, parts_of, source)
    if not all((folder / file).is_file() for file in files):
        snapshot_download(name, revision=folder.name, allow_patterns=files)
    return folder, files


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for one small file."""
    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    try:
        logging.set_verbosity_error()
        disable_progress_bars()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def _why(error: BaseException, source: Source) -> str:
    """A failed download's reason and remedy, read from the chain of errors that led to it."""
    chain = causes(error)
    licence, away = f"https://huggingface.co/{source.id}", "not (wholly) in the cache, and the Hub cannot be reached"
    remedies: dict[Any, str] = {
        errors.GatedRepoError: f"it is gated: accept its licence at {licence} and run `hf auth login`",
        errors.DisabledRepoError: "it was withdrawn from the Hub; name a mirror",
        errors.RepositoryNotFoundError: "no such model on the Hub (or a private one); correct the id, or name a mirror",
        errors.RevisionNotFoundError: f"it has no revision {source.revision!r}; correct 'revision'",
        errors.IncompleteSnapshotError: "its download is incomplete; connect and run again to finish it",
        errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | ConnectionError: (
            f"{away}; connect once (and unset HF_HUB_OFFLINE)"
        ),
    }
    for kinds, remedy in remedies.items():
        if any(isinstance(each, kinds) for each in chain):
            return remedy
    if any("connect" in type(each).__name__.lower() or "timeout" in type(each).__name__.lower() for each in chain):
        return f"{away}; connect once"
    reported = next((each for each in chain if isinstance(each, errors.HfHubHTTPError)), error)
    return f"{type(reported).__name__}: {' '.join(str(reported).split())[:300]}"
