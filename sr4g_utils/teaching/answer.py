"""How a check answers: one sentence where all is well, a figure and one sentence where it is not."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from ..dataset import figures


class CounterExample(AssertionError):
    """An answer that does not hold; ``figure`` shows where. A notebook prints the sentence and no traceback."""

    def __init__(self, sentence: str, figure: Figure) -> None:
        super().__init__(sentence)
        self.figure = figure

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"✗ {self}"]


def accept(sentence: str) -> None:
    print(f"✓ {sentence}")


def refuse(sentence: str, figure: Figure) -> NoReturn:
    """Draw the counter-example and raise :class:`CounterExample`."""
    display(figure)
    plt.close(figure)  # or the notebook would draw it once more
    raise CounterExample(sentence, figure) from None


def call(function: Callable, *arguments: Any, figure: Callable[[str], Figure], **options: Any) -> Any:
    """What a reader's function returns; a function that is empty or stops is refused with ``figure(title)``.

    Warnings are printed like any other output: nbgrader gives no points to a cell that writes to stderr.
    """
    name = getattr(function, "__name__", "the function")
    try:
        with contextlib.redirect_stderr(sys.stdout):
            value = function(*arguments, **options)
            return list(value) if isinstance(value, Iterator) else value
    except NotImplementedError:
        refuse(f"{name} is not written yet: here is what it will be asked.", figure("not written yet"))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        refuse(f"{name} stops in line {_line(function, error)} with {reason}.", figure(f"{name} stops here"))


def _line(function: Callable, error: BaseException) -> int:
    """The line of the reader's own cell or file in which the error came up, or through which it passed."""
    own, line, step = function.__code__.co_filename, 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == own:
            line = step.tb_lineno
        step = step.tb_next
    return line


def words(title: str) -> Figure:
    """A figure of a sentence, where there is nothing else to show."""
    figure, axis = plt.subplots(figsize=(5, 1))
    axis.text(0.5, 0.5, title, ha="center", va="center")
    axis.set_axis_off()
    return figure


def pair(subject: np.ndarray, object: np.ndarray, title: str, names: tuple[str, str] = ("dog", "cat")) -> Figure:
    """A subject's and an object's box (xywh), with room around them."""
    corner = np.minimum(subject[:2], object[:2]) - 30
    size = np.maximum(subject[:2] + subject[2:], object[:2] + object[2:]) - corner + 30
    boxes = {f"{role}_box": box - [*corner, 0, 0] for role, box in (("subject", subject), ("object", object))}
    row = {"subject": names[0], "object": names[1], "caption": title, "width": size[0], "height": size[1], **boxes}
    return figures.examples(pd.DataFrame([row]), [None])


STATES = ("not both found", "both found, relation wrong", "relation holds")
_MARKS = ("", "✗", "✓")
_SHADES = ("#ffffff", "#f7d9a8", "#0173b2")


def grid(records: pd.DataFrame, title: str) -> Figure:
    """Records as a table of squares: a row per prompt, a square per image, coloured by its outcome.
    ``records``: prompt_id, both_found and correct."""
    prompts = list(dict.fromkeys(records.prompt_id))
    most = int(records.groupby("prompt_id").size().max()) if len(records) else 1
    figure, axis = plt.subplots(figsize=(0.6 * most + 4, 0.42 * max(len(prompts), 1) + 1.2))
    for y, prompt in enumerate(prompts):
        rows = records[records.prompt_id == prompt]
        for x, state in enumerate((rows.both_found.astype(int) + (rows.both_found & rows.correct)).tolist()):
            axis.add_patch(plt.Rectangle((x, y), 0.9, 0.9, facecolor=_SHADES[state], edgecolor="black"))
            axis.text(x + 0.45, y + 0.48, _MARKS[state], ha="center", va="center", color="white" if state == 2 else "k")
    for mark, shade, label in zip(_MARKS, _SHADES, STATES, strict=True):
        axis.scatter([], [], marker="s", s=90, color=shade, edgecolor="black", label=f"{mark} {label}")
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    axis.set(xlim=(-0.1, most), ylim=(max(len(prompts), 1), -0.1), xticks=[], title=title)
    axis.set_yticks(np.arange(len(prompts)) + 0.45, [f"prompt {prompt}" for prompt in prompts])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    figure.tight_layout()
    return figure
