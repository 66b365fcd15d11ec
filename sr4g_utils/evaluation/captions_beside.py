"""Captions that lie beside images: in ``metadata.jsonl``, in ``prompt.txt``, in a text of the image's own name."""

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..dataset.prompt_files import read_cells

FORMS = (".txt", ".caption", ".json", ".jsonl", ".csv")
WHOLE = ("metadata", "prompt", "caption")  # names of files that speak of a folder's images
LONGEST = 1 << 20  # bytes; a longer file is no caption

Caption = tuple[str, str]  # the text, and the file that holds it


def captions_beside(folder: Path, images: Iterable[str], others: Iterable[str]) -> dict[str, Caption]:
    """The caption of each image that has one beside it, and the file that holds it; paths within ``folder``.

    A caption is the first line of a text, or the "prompt", "caption" or "text" of a JSON object: in a file of the
    image's own name (``.txt``, ``.caption``, ``.json``), in ``metadata.jsonl`` or ``.csv`` with its file_name, or, for
    all images of a folder or of its ``samples``, in a file of one line whose name is one of ``WHOLE``.

    Raises:
        ValueError: the files beside an image say different things.
    """
    captions: dict[tuple[str, str], list[Caption]] = defaultdict(list)  # by folder and an image's name or stem; "": all
    for at in sorted(others):
        if at.endswith(FORMS) and (folder / at).is_file() and (folder / at).stat().st_size <= LONGEST:
            for name, text in _captions(folder, at).items():
                captions[PurePosixPath(at).parent.as_posix(), name].append((text, at))
    beside = {}
    for image in images if captions else ():
        path = PurePosixPath(image)
        place, whole = path.parent, path.parents[1] if path.parent.name == "samples" else path.parent
        keys = [(place, path.name), (place, path.stem), (whole, "")]
        held = [caption for at, name in keys for caption in captions.get((at.as_posix(), name), ())]
        if len({" ".join(text.lower().split()) for text, _ in held}) > 1:
            texts = " and ".join(f"{text!r} ({at})" for text, at in held)
            raise ValueError(f"{folder / image}: the captions beside it are {texts}; keep the one that was drawn")
        if held:
            beside[image] = held[0]
    return beside


def _captions(folder: Path, at: str) -> dict[str, str]:
    """What a file says, by the name or stem of the image that it says it of."""
    path, text = PurePosixPath(at), (folder / at).read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    values: list[dict[str, Any]] = [{"text": line} for line in lines]
    if path.suffix == ".csv":
        values = read_cells(folder / at).to_dict("records") if path.stem in WHOLE else []
    elif path.suffix in (".json", ".jsonl"):
        values = [_parsed(text)] if path.suffix == ".json" else [_parsed(line) for line in lines]
    by_file = {value["file_name"]: value for value in values if isinstance(value.get("file_name"), str)}
    if path.stem in WHOLE and len(values) == 1 and not by_file:
        by_file = {"": values[0]}
    elif path.stem not in WHOLE and path.suffix != ".jsonl" and values:
        by_file = {path.stem: values[0]}
    return {name: caption for name, value in by_file.items() if (caption := _caption(value))}


def _parsed(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}


def _caption(value: dict[str, Any]) -> str:
    """Words; numbers alone, as of boxes in a text of the image's name, are no caption."""
    texts = [value.get(key) for key in ("prompt", "caption", "text")]
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and any(map(str.isalpha, text))), "")
