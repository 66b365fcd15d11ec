"""Where a model is, and what is known about it before it is loaded. Nothing here imports torch."""

import difflib
import re
from pathlib import Path
from typing import Any

import msgspec

from ..store import settings

_ON_THE_HUB = re.compile(r"(?!.*\.(?:safetensors|ckpt|pth?|bin)$)\w[\w.-]*(?:/[\w][\w.-]*)?")  # what an id can be
PRECISIONS = ("float32", "bfloat16", "float16")


class ModelError(RuntimeError):
    """A model cannot be loaded. The message is one line: which model, what is wrong, and what to do."""


def causes(error: BaseException) -> list[BaseException]:
    """An error and, in turn, those that led to it."""
    chain = [error]
    while (at := chain[-1].__cause__ or chain[-1].__context__) is not None and at not in chain:
        chain.append(at)
    return chain


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model is: ``folder`` if given, else ``id`` at ``revision`` on the Hub, else its mirrors in turn."""

    id: str | None = None
    revision: str = "main"
    mirrors: list[str] = []  # "owner/name" or "owner/name@revision"
    folder: str | None = None
    variant: str | None = None  # of the weight files, such as "fp16"
    pickled: bool = False  # read pickled weights (as tensors only) where a part has no safetensors
    checksums: str | None = None  # "<sha256>  <path>" of all files, or all weights; by default its SHA256SUMS

    @classmethod
    def of(cls, value: Any) -> "Source":
        """A source from a mapping with these keys (a profile's), or from the path of a folder, or from a Hub id.

        Raises:
            ModelError: an unknown key, a value of the wrong type, or neither an id nor a folder.
        """
        if isinstance(value, str | Path):
            local = Path(value).expanduser().exists() or not _ON_THE_HUB.fullmatch(str(value))
            return cls(folder=str(value)) if local else cls(id=str(value))
        try:
            source = value if isinstance(value, cls) else settings.convert(value, cls, "model")
        except ValueError as error:
            raise ModelError(str(error)) from None
        if source.folder is None and source.id and not _ON_THE_HUB.fullmatch(source.id):
            raise ModelError(f"model: {source.id!r} is no id on the Hub (owner/name); a path is given as 'folder'")
        if not (source.id or source.folder):
            raise ModelError("model: neither 'folder' nor 'id' is given; name a local folder or an id on the Hub")
        return source

    def alike(self) -> str:
        """A folder here that may be meant where this one is not there, as a question; "" if there is none."""
        path = Path(str(self.folder or self.id)).expanduser()
        if not path.parent.is_dir() or (self.folder is None and len(path.parts) < 2):
            return ""
        names = sorted(other.name for other in path.parent.iterdir() if other.is_dir())
        close = difflib.get_close_matches(path.name, names, 1)
        return f"; did you mean {path.parent / close[0]}?" if close else ""

    @property
    def name(self) -> str:
        return self.id or Path(str(self.folder)).name

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.name}: {problem}")
