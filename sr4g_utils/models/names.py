"""The names that detectors know: aliases, spellings and the detector's query."""

import re
from collections.abc import Collection, Iterable
from typing import Any

FLOOR = 0.01  # scores below it are not stored; VISOR's threshold is 0.1
QUERY = "a photo of a {name}"  # VISOR's


# Other words for COCO's categories, both without spaces: Pascal VOC's (and RT-DETR's), GenEval's and LVIS'.
ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "televisionset": "tv",
    "computermouse": "mouse",
    "computerkeyboard": "keyboard",
    "tvremote": "remote",
    "remotecontrol": "remote",
    "laptopcomputer": "laptop",
    "cellulartelephone": "cellphone",
    "mobilephone": "cellphone",
    "microwaveoven": "microwave",
    "doughnut": "donut",
    "hairdryer": "hairdrier",
    "fireplug": "firehydrant",
    "necktie": "tie",
}


# --------------------------------------------------------------------------------------------------- names and ids


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def plain(name: str) -> str:
    """A name without case, spaces, underscores and hyphens, and in COCO's word where ``ALIASES`` knows another."""
    name = _squeezed(name)
    return ALIASES.get(name, name)


def readings(labels: Iterable[str], asked: Collection[str]) -> dict[str, str]:
    """Which of the names asked for each label means; a label that means none is left out.

    The same name; else the one that is spelt alike but for case, spaces, underscores and hyphens; else the one of which
    it is an alias. Where several names asked for are alike in this way, the label must be one of them to the letter.
    """
    alike: list[tuple[Any, dict[str, str]]] = []
    for spelling in (str, _squeezed, plain):
        names: dict[str, list[str]] = {}
        for name in dict.fromkeys(asked):
            names.setdefault(spelling(name), []).append(name)
        alike.append((spelling, {key: of[0] for key, of in names.items() if len(of) == 1}))
    found = {}
    for label in labels:
        meant = [names[spelling(label)] for spelling, names in alike if spelling(label) in names]
        if meant:
            found[label] = meant[0]
    return found
