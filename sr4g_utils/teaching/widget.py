"""Two boxes to drag, and the relations between them: a widget in JupyterLab, and a piece of HTML in any page.

The browser's part is ``boxes.mjs``. It judges as :mod:`sr4g_utils.relations` does and is tested to agree; every name,
phrase and constant that it needs comes from here.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import HTML
from PIL import Image

from .. import relations
from ..dataset.captions import TEMPLATES, things
from ..relations import RELATIONS, RULES, rules_named

MODULE = Path(__file__).with_name("boxes.mjs")
SIZE = (640, 480)  # pixels, of the picture if none is given
SUBJECT_BOX, OBJECT_BOX = (80, 150, 160, 120), (320, 200, 200, 160)
_CONSTANTS = ("SSTD_SLACK", "GENEVAL_SLACK", "PEOPLE_HALF_WIDTH")


def constants() -> dict[str, Any]:
    """What ``boxes.mjs`` needs of the package: the relations, those of each rule set, the template, the numbers."""
    return {
        "relations": [{"name": r.name, "phrase": r.phrase, "family": r.family} for r in RELATIONS],
        "rules": {name: list(rules.defines) for name, rules in RULES.items()},
        "template": TEMPLATES["plain"],
        **{name: getattr(relations, name) for name in _CONSTANTS if hasattr(relations, name)},
    }


def options(
    subject: str = "dog", object: str = "cat", subject_box: Sequence[float | int] = SUBJECT_BOX,
    object_box: Sequence[float | int] = OBJECT_BOX, picture: np.ndarray | None = None, rules: str = "visor",
) -> dict[str, Any]:  # fmt: skip
    """The choices that :func:`show`, :func:`boxes` and :func:`page` offer, checked and ready for JSON.

    Args:
        subject, object, subject_box, object_box: names of the two things, and xywh of each in pixels of the picture.
        picture: uint8 (h, w, 3) behind the boxes; by default an empty one of 640 × 480 pixels.
        rules: the rule set to begin with.

    Raises:
        ValueError: a box that is not four numbers with a width and a height, a name without letters, unknown rules.
    """
    rules_named(rules)
    for role, name, box in (("subject", subject, subject_box), ("object", object, object_box)):
        if not name:
            raise ValueError(f"{role}: the name is empty; the caption needs one")
        if len(box) != 4 or not np.isfinite(np.asarray(box, float)).all() or min(box[2:]) <= 0:
            raise ValueError(f"{role}_box: needs x, y, width and height in pixels, the last two above 0; got {box!r}")
    size, address = SIZE, ""
    if picture is not None:  # as an address that holds it, so that nothing is loaded
        size, file = picture.shape[1::-1], io.BytesIO()
        Image.fromarray(np.asarray(picture, np.uint8)).save(file, "PNG")
        address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {
        "subject": subject, "object": object, "things": list(things(subject, object)),
        "subject_box": [float(side) for side in subject_box],
        "object_box": [float(side) for side in object_box], "size": list(size), "rules": rules, "picture": address,
        "constants": constants(),
    }  # fmt: skip


def inline(**choices: Any) -> str:
    """The boxes as a piece of HTML that works anywhere, also from a file and without a network.
    ``choices``: as :func:`options`."""
    values = json.dumps(options(**choices)).replace("<", "\\u003c")  # "</script>" in a name would end the script
    call = f'mount(document.querySelector(".sr4g-boxes-place:empty"), {values});'  # each script takes the next place
    module = MODULE.read_text(encoding="utf-8")
    return f'<div class="sr4g-boxes-place"></div>\n<script type="module">\n{module}\n{call}\n</script>\n'


def page(title: str = "Drag two boxes", **choices: Any) -> str:
    """:func:`inline` as a page of its own, readable on a phone, light or dark as the reader's device is."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>body {{ margin: 1rem; font-family: system-ui, sans-serif }}</style>\n"
        f"</head>\n<body>\n<h1>{title}</h1>\n{inline(**choices)}</body>\n</html>\n"
    )


def boxes(**choices: Any) -> HTML:
    """The boxes as the output of a notebook's cell, in JupyterLab and in a page made of the notebook.
    ``choices``: as :func:`options`."""
    return HTML(inline(**choices))


def show(**choices: Any) -> Any:
    """The boxes in a notebook: a widget where ``anywidget`` is installed, else :func:`boxes`.

    The widget's ``subject_box``, ``object_box`` and ``rules`` follow the reader's hand, and may be set from Python.
    ``choices``: as :func:`options`.
    """
    return _widget(options(**choices)) if find_spec("anywidget") else boxes(**choices)


def _widget(values: dict[str, Any]) -> Any:
    import anywidget
    import traitlets

    kinds: dict[type, Any] = {str: traitlets.Unicode, list: traitlets.List, dict: traitlets.Dict}
    traits = {name: kinds[type(value)]().tag(sync=True) for name, value in values.items()}
    return type("Boxes", (anywidget.AnyWidget,), {"_esm": MODULE.read_text(encoding="utf-8"), **traits})(**values)
