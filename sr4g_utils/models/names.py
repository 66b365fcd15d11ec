"""The names that detectors know: aliases, spellings and the detector's query."""

from collections.abc import Collection, Iterable
from typing import Any

from ..dataset.names import key

FLOOR = 0.01  # scores below it are not stored; VISOR's threshold is 0.1
QUERY = "a photo of a {name}"  # VISOR's


# Other words for COCO's categories, both without spaces: Pascal VOC's (and RT-DETR's), GenEval's and LVIS'.
ALIASES = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "doughnut": "donut", "necktie": "tie",
    "tvmonitor": "tv", "television": "tv", "televisionset": "tv", "tvremote": "remote", "remotecontrol": "remote",
    "computermouse": "mouse", "computerkeyboard": "keyboard", "laptopcomputer": "laptop", "mobilephone": "cellphone",
    "cellulartelephone": "cellphone", "microwaveoven": "microwave", "hairdryer": "hairdrier", "fireplug": "firehydrant",
}  # fmt: skip


def spelling(name: str) -> str:
    """The key of a name, or of COCO's word for it where ``ALIASES`` knows another."""
    return ALIASES.get(key(name), key(name))


def readings(labels: Iterable[str], prompted: Collection[str]) -> dict[str, str]:
    """Which of the prompted names each label means; a label that means none is left out.

    The same name; else the one that is spelt alike but for case, spaces, underscores and hyphens; else the one of which
    it is an alias. Where several prompted names are alike in this way, the label must be one of them to the letter.
    """
    alike: list[tuple[Any, dict[str, str]]] = []
    for simplify in (str, key, spelling):
        names: dict[str, list[str]] = {}
        for name in dict.fromkeys(prompted):
            names.setdefault(simplify(name), []).append(name)
        alike.append((simplify, {form: same[0] for form, same in names.items() if len(same) == 1}))
    meanings = {}
    for label in labels:
        meant = [names[simplify(label)] for simplify, names in alike if simplify(label) in names]
        if meant:
            meanings[label] = meant[0]
    return meanings
