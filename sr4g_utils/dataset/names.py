"""Names of things, as annotations, prompts and detectors write them: one tidy form, and one key to compare them by."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_ARTICLE = re.compile(r"^(?:(?:an?|the|another) )+(?=\S)", re.IGNORECASE)
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")  # soft hyphens and marks without a width


@lru_cache(1 << 16)
def tidy(name: str) -> str:
    """A name without an article and with single spaces, as a sentence holds it: "truck" for "truck ", "traffic light"
    for "traffic_light", "bow (decorative)" for "bow_(decorative)", "black cat" for "a  black cat". Capitals stay."""
    words = _UNSEEN.sub("", unicodedata.normalize("NFC", name)).replace("_", " ").split()
    return _ARTICLE.sub("", " ".join(words), count=1)


@lru_cache(1 << 16)
def key(name: str) -> str:
    """What two spellings of one name share: the tidy form without capitals, spaces and hyphens."""
    return re.sub(r"[\s-]+", "", unicodedata.normalize("NFKC", tidy(name)).casefold())


def among(known: Iterable[str], wanted: Iterable[str], where: str) -> list[str]:
    """The known names that some others mean. Raises ValueError where one means none; ``where`` begins its message."""
    by_key = {key(name): name for name in known}
    wanted = list(wanted)
    if unknown := [name for name in wanted if key(name) not in by_key]:
        raise ValueError(f"{where} {unknown[0]!r}")
    return [by_key[key(name)] for name in wanted]


def amount(number: int, thing: str) -> str:
    """A number of things: "1 image", "1,568 images"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
