"""Two boxes to drag, and the relations between them: in JupyterLab as a widget, in a page as one piece of HTML.

The browser's part is ``boxes.mjs``. It judges as :mod:`sr4g_utils.relations` does and is tested to agree; every name,
phrase and constant that it needs is handed to it from here.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from .. import relations
from ..dataset.captions import TEMPLATES, caption
from ..relations import NAMES, RELATIONS, RULES, judge, rules_named

MODULE = Path(__file__).with_name("boxes.mjs")
SIZE = (640, 480)  # pixels, of the picture if none is given
SUBJECT_BOX, OBJECT_BOX = (80, 150, 160, 120), (320, 200, 200, 160)
_CONSTANTS = ("SSTD_SLACK", "GENEVAL_SLACK", "PEOPLE_HALF_WIDTH")


def constants() -> dict[str, Any]:
    """What the module takes from the package: the relations, what each rule set defines, the template, the numbers."""
    return {
        "relations": [{"name": r.name, "phrase": r.phrase, "family": r.family} for r in RELATIONS],
        "rules": {name: list(rules.defines) for name, rules in RULES.items()},
        "template": TEMPLATES["plain"],
        **{name: getattr(relations, name) for name in _CONSTANTS if hasattr(relations, name)},
    }


def options(
    subject: str = "dog",
    object: str = "cat",
    subject_box: Sequence[float | int] = SUBJECT_BOX,
    object_box: Sequence[float | int] = OBJECT_BOX,
    picture: np.ndarray | None = None,
    rules: str = "visor",
) -> dict[str, Any]:
    """What :func:`show`, :func:`inline` and :func:`page` are asked, checked and as JSON can hold it.

    Args:
        subject, object: names of the two things.
        subject_box, object_box: four numbers each, xywh in pixels of the picture.
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
    return {
        "subject": subject,
        "object": object,
        "subject_box": [float(side) for side in subject_box],
        "object_box": [float(side) for side in object_box],
        "size": list(SIZE if picture is None else picture.shape[1::-1]),
        "rules": rules,
        "picture": "" if picture is None else _address(picture),
        "constants": constants(),
    }


def _address(picture: np.ndarray) -> str:
    """The picture as an address that holds it, so that nothing is loaded."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(picture, np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def inline(**given: Any) -> str:
    """The boxes as a piece of HTML that works anywhere, also from a file and without a network.

    Args:
        given: as :func:`options`.
    """
    asked = json.dumps(options(**given)).replace("<", "\\u003c")  # "</script>" in a name would end the script
    place = f"sr4g-boxes-{uuid4().hex}"
    call = f'mount(document.getElementById("{place}"), {asked});'
    return (
        f'<div id="{place}"></div>\n<script type="module">\n{MODULE.read_text(encoding="utf-8")}\n{call}\n</script>\n'
    )


def page(title: str = "Drag two boxes", **given: Any) -> str:
    """:func:`inline` as a page of its own, readable on a phone, light or dark as the reader's device is."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>body {{ margin: 1rem; font-family: system-ui, sans-serif }}</style>\n"
        f"</head>\n<body>\n<h1>{title}</h1>\n{inline(**given)}</body>\n</html>\n"
    )


def show(**given: Any) -> Any:
    """The boxes in a notebook: a widget where ``anywidget`` is installed, else a figure of the boxes and captions.

    The widget's ``subject_box``, ``object_box`` and ``rules`` follow the reader's hand, and may be set from Python.

    Args:
        given: as :func:`options`.
    """
    asked = options(**given)
    return _widget(asked) if find_spec("anywidget") else _figure(asked, given.get("picture"))


def _widget(asked: dict[str, Any]) -> Any:
    import anywidget
    import traitlets

    kinds: dict[type, Any] = {str: traitlets.Unicode, list: traitlets.List, dict: traitlets.Dict}
    traits = {name: kinds[type(value)]().tag(sync=True) for name, value in asked.items()}
    return type("Boxes", (anywidget.AnyWidget,), {"_esm": MODULE.read_text(encoding="utf-8"), **traits})(**asked)


def _figure(asked: dict[str, Any], picture: np.ndarray | None) -> Any:
    import pandas as pd

    from ..dataset import figures

    s, o = (np.array(asked[f"{role}_box"]) for role in ("subject", "object"))
    holds = judge(s[None], o[None], asked["rules"], np.array([asked["size"]], float))[0]
    written = [
        caption(asked["subject"], name, asked["object"]) for name, true in zip(NAMES, holds, strict=True) if true
    ]
    row = {"subject": asked["subject"], "object": asked["object"], "subject_box": s, "object_box": o}
    row |= {"caption": "\n".join(written), "width": asked["size"][0], "height": asked["size"][1]}
    return figures.examples(pd.DataFrame([row]), [picture])
