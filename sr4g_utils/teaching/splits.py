"""Exercise 5: an unseen split that leaks, and one that does not."""

from collections.abc import Callable
from functools import cache, partial
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..dataset import figures, world
from ..dataset.captions import caption
from ..relations import BY_NAME, NAMES, judge
from .answer import accept, call, refuse

PICTURES, SEED = 300, 4
UNSEEN = ("dog", "cat", "bus", "apple")  # the objects that training must not see


@cache
def _scenes() -> tuple[tuple[list[str], np.ndarray], ...]:
    return tuple((names, boxes.astype(np.float64)) for names, boxes in world.scenes(PICTURES, (SEED, 0)))


def captions() -> pd.DataFrame:
    """The projective captions of 300 pictures of the miniature world: picture, subject, relation, object, caption."""
    rows = []
    for picture, (names, boxes) in enumerate(_scenes()):
        for s, o in permutations(range(len(names)), 2):
            for name, holds in zip(NAMES, judge(boxes[[s]], boxes[[o]])[0], strict=True):
                triplet = (names[s], name, names[o])
                if holds and BY_NAME[name].family == "projective" and names[s] != names[o]:
                    rows.append((picture, *triplet, caption(*triplet)))
    return pd.DataFrame(rows, columns=["picture", "subject", "relation", "object", "caption"])


def draw(picture: int | np.integer, title: str, marked: tuple[str, ...] = UNSEEN) -> Figure:
    """A picture, with a frame around the objects in ``marked``."""
    names, boxes = _scenes()[picture]
    figure, axis = plt.subplots(figsize=(3.6, 3.8))
    axis.imshow(world.render(boxes, names, seed=int(picture)), extent=(0, world.SIZE, world.SIZE, 0))
    for name, (x, y, w, h) in zip(names, boxes.tolist(), strict=True):
        if name in marked:
            axis.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=4))
            axis.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor=figures.COLOURS[1], linewidth=2))
    axis.set(xticks=[], yticks=[], xlabel=", ".join(names))
    axis.set_title(title, fontsize="small")
    axis.grid(False)
    figure.tight_layout()
    return figure


def _shows_unseen(picture: int | np.integer) -> bool:
    return bool(set(_scenes()[picture][0]) & set(UNSEEN))


def _training(function: Callable) -> pd.DataFrame:
    """The captions that a reader's split trains on, or a refusal."""
    rows = captions()
    kept = call(function, rows.copy(), set(UNSEEN), figure=partial(draw, 0))
    if not isinstance(kept, pd.DataFrame) or list(kept.columns) != list(rows.columns):
        refuse(f"{function.__name__} returns {type(kept).__name__}; return the rows of `captions` to train on.",
               draw(0, "a picture of the captions"))  # fmt: skip
    if strangers := sorted(set(kept.index) - set(rows.index)):
        refuse(f"{function.__name__} returns a row that is not among the captions: {strangers[0]}.", draw(0, "?"))
    return rows.loc[sorted(set(kept.index))]


def _named(rows: pd.DataFrame) -> pd.Series:
    return rows.subject.isin(UNSEEN) | rows.object.isin(UNSEEN)


def check_leaks(function: Callable) -> None:
    """Whether a function finds the pictures through which a training set leaks: it takes the training captions, all
    captions and the set of unseen objects, and returns the set of training pictures that show an unseen object.

    Raises:
        CounterExample: a picture that it misses, or accuses without reason, drawn.
    """
    rows, rng = captions(), np.random.default_rng(0)
    silent = rows[~_named(rows)]
    for training in (silent, rows, silent[~silent.picture.map(_shows_unseen)], rows[rng.random(len(rows)) < 0.3]):
        value = call(function, training.copy(), rows.copy(), set(UNSEEN), figure=partial(draw, 0))
        try:
            pictures = {int(picture) for picture in value}
        except (TypeError, ValueError):
            refuse(f"{function.__name__} returns {value!r}; return a set of picture numbers.", draw(0, "a picture"))
        leaks = {int(picture) for picture in training.picture.unique() if _shows_unseen(picture)}
        if missed := sorted(leaks - pictures):
            lines = training[training.picture == missed[0]].caption
            refuse("This training picture shows an unseen object, whatever its captions say, and was not found.",
                   draw(missed[0], f"trained with\n{lines.iloc[0]!r}"))  # fmt: skip
        if wrong := sorted(pictures - leaks):
            reason = "shows no unseen object" if wrong[0] in set(training.picture) else "is not in this training set"
            refuse(f"Picture {wrong[0]} {reason}.", draw(wrong[0], f"picture {wrong[0]}"))
    accept(f"{function.__name__} finds every leak, and nothing else.")


def check_leaky(function: Callable) -> None:
    """Whether a split looks clean, since no training caption names an unseen object, and leaks all the same. The
    function takes all captions and the set of unseen objects, and returns the rows to train on.

    Raises:
        CounterExample: a caption that gives it away, or a picture that shows it to be clean, drawn.
    """
    training = _training(function)
    if (named := training[_named(training)]).size:
        row = named.iloc[0]
        refuse("Anyone who searches the captions finds this one: the leak should be harder to see.",
               draw(row.picture, row.caption))  # fmt: skip
    if not training.picture.map(_shows_unseen).any():
        left = next(p for p in captions().picture if _shows_unseen(p))
        refuse("This split does not leak: no training picture shows an unseen object, not even one like this.",
               draw(left, "not trained on"))  # fmt: skip
    accept("No caption names an unseen object, and the model sees some all the same: that is a leak.")


def check_clean(function: Callable) -> None:
    """Whether a split, a function as in :func:`check_leaky`, leaks nothing and throws nothing away without need.

    Raises:
        CounterExample: a training picture that shows an unseen object, or one that was left out needlessly, drawn.
    """
    training = _training(function)
    if len(shown := training[training.picture.map(_shows_unseen).astype(bool)]):
        row = shown.iloc[0]
        refuse("The model would be trained on this picture, and it shows an unseen object.",
               draw(row.picture, f"trained with\n{row.caption!r}"))  # fmt: skip
    rows = captions()
    if len(lost := rows[~rows.picture.map(_shows_unseen).astype(bool) & ~rows.index.isin(training.index)]):
        row = lost.iloc[0]
        refuse("This caption was left out, and its picture gives nothing away.", draw(row.picture, row.caption))
    accept("No training picture shows an unseen object, and all others are kept.")
