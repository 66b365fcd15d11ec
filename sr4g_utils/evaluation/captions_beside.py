"""Captions that lie beside images: GenEval's ``metadata.jsonl``, ``prompt.txt``, a text of the image's own name."""

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

FORMS = (".txt", ".caption", ".json", ".jsonl")
LONGEST = 1 << 20  # bytes; a longer file is no caption

Caption = tuple[str, str]  # the text, and the file that holds it


def captions_beside(folder: Path, images: Iterable[str], others: Iterable[str]) -> dict[str, Caption]:
    """The caption of each image that has one beside it, and the file that holds it; paths within ``folder``.

    A caption is the first line of a text, or the "prompt", "caption" or "text" of a JSON object: in a file of the
    image's own name (``.txt``, ``.caption``, ``.json``), in ``metadata.jsonl`` with its file_name, or, for all images
    of a folder or of its ``samples``, in a ``metadata.jsonl`` or ``prompt.txt`` of one line.

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
            said = " and ".join(f"{text!r} ({at})" for text, at in held)
            raise ValueError(f"{folder / image}: the captions beside it are {said}; keep the one that was drawn")
        if held:
            beside[image] = held[0]
    return beside


def _captions(folder: Path, at: str) -> dict[str, str]:
    """What a file says, by the name or stem of the image that it says it of."""
    path, text = PurePosixPath(at), (folder / at).read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.name == "metadata.jsonl":
        values = [_parsed(line) for line in lines]
        named = {value["file_name"]: value for value in values if isinstance(value.get("file_name"), str)}
        found = named or ({"": values[0]} if len(values) == 1 else {})
        return {name: text for name, value in found.items() if (text := _caption(value))}
    if path.suffix == ".jsonl" or (path.name == "prompt.txt" and len(lines) != 1):
        return {}
    caption = _caption(_parsed(text) if path.suffix == ".json" else {"text": lines[0] if lines else ""})
    return {"" if path.name == "prompt.txt" else path.stem: caption} if caption else {}


def _parsed(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}


def _caption(value: dict[str, Any]) -> str:
    """Words; numbers alone, as of boxes in a text of the image's name, are no caption."""
    texts = [value.get(key) for key in ("prompt", "caption", "text")]
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and any(map(str.isalpha, text))), "")
