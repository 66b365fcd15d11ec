"""How fast does a judge wear out? The best of n pictures by a reward, measured by judges that had no say.

Who follows a reward ends where the best of ever more pictures is: it likes what is right, and what it takes for right
(for language models' rewards: Gao, Schulman and Hilton 2023, arXiv 2210.10760). What was decided beforehand is
``wear`` in ``data/protocol_1.yaml``.
"""

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .reward import Reward
from .statistics import student

PROXIES: dict[str, dict[str, Any]] = {  # rewards by name: how they judge the detector's boxes
    "any pair": {"rules": "visor", "pairs": "any", "extra": 0},
    "best pair": {"rules": "visor", "pairs": "best", "extra": 0},
    "people": {"rules": "people", "pairs": "best", "extra": 0},
    "soft": {"rules": "people", "pairs": "best", "extra": 0, "soft": True},
    "people, guarded": {"rules": "people", "pairs": "best"},
}
OWN = {"soft": "people", "people, guarded": "people"}  # what a reward counts as right, if it is no yes or no itself
CHEATS = ("several", "giant", "absent")  # what a picture may show instead of obeying
GIANT = 0.4  # of the picture's area
NS = (1, 2, 4, 8, 16, 32, 64)


def pictures(
    prompts: pd.DataFrame, boxes: pd.DataFrame, judges: Mapping[str, pd.DataFrame], threshold: float
) -> pd.DataFrame:
    """Every picture with what each reward gives it and what the judges say.

    Args:
        prompts, boxes: of :func:`verdicts.verdicts`; the rewarding detector's boxes, with width and height.
        judges: verdicts by judges apart from that detector, all on the same pictures.
        threshold: boxes of the rewarding detector with a higher score count.

    Returns:
        prompt_id, image_index, a column for each of ``PROXIES`` and each judge (0 to 1), "median" of the judges, and
        of ``CHEATS``: several boxes of a name that are no one thing, a box of more than ``GIANT``, and a thing absent
        by more than half of the judges.

    Raises:
        ValueError: there is no judge, or two judged other pictures.
    """
    key = ["prompt_id", "image_index"]
    tables = {name: table.sort_values(key, ignore_index=True) for name, table in judges.items()}
    listed = next((table[key] for table in tables.values()), None)
    if listed is None:
        raise ValueError("judges: none is given; name at least one that had no say in the reward")
    if other := [name for name, table in tables.items() if not table[key].equals(listed)]:
        raise ValueError(f"judges: {other[0]!r} judged other pictures than {next(iter(tables))!r}; take the same")
    place = {pair: i for i, pair in enumerate(listed.itertuples(index=False, name=None))}
    at = np.array([place.get(pair, -1) for pair in boxes[key].itertuples(index=False, name=None)], int)
    boxes = boxes.assign(image=at)[(at >= 0) & (boxes.score > threshold)]
    boxes = boxes.sort_values(["image", "score"], ascending=[True, False], kind="stable", ignore_index=True)
    wanted = listed[["prompt_id"]].merge(prompts, on="prompt_id", how="left")[["subject", "relation", "object"]]
    size = np.full((len(listed), 2), np.nan)
    size[boxes.image] = boxes[["width", "height"]]
    rewards = {name: Reward(_KnownBoxes(), **how).of_boxes(wanted, boxes, size) for name, how in PROXIES.items()}
    obeyed = pd.DataFrame({name: table.correct.astype(float) for name, table in tables.items()})
    found = pd.DataFrame({name: table.both_found for name, table in tables.items()})
    several = next(iter(rewards.values()))[["n_subject", "n_object"]].max(axis=1) > 1
    largest = (boxes.w * boxes.h / (boxes.width * boxes.height)).groupby(boxes.image).max()
    cheats = {
        "several": several,
        "giant": largest.reindex(listed.index, fill_value=0) > GIANT,
        "absent": found.mean(axis=1) < 0.5,
    }
    columns = {name: table.reward for name, table in rewards.items()} | dict(obeyed.items())
    columns |= {name: cheat.astype(float) for name, cheat in cheats.items()}
    return listed.assign(**columns, median=obeyed.median(axis=1))


class _KnownBoxes:
    """In place of a detector, where the boxes are known."""

    def detect(self, *_: Any, **__: Any) -> pd.DataFrame:
        raise NotImplementedError


def shares(score: Float[np.ndarray, "image"], n: int) -> Float[np.ndarray, "image"]:
    """How often each of the pictures is the best of n that are drawn from them, none twice; equal ones in equal parts.

    The best of n is among the k worst in C(k, n) of C(all, n) cases.
    """
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    reached = [comb(int(k), n) / comb(len(score), n) for k in np.cumsum(size)]
    return (np.diff(reached, prepend=0) / size)[group]


def best_of(table: pd.DataFrame, proxy: str, measured: Sequence[str], ns: Sequence[int] = NS) -> pd.DataFrame:
    """What the best of n by one reward are worth by others.

    Args:
        table: of :func:`pictures`; each prompt with as many as the largest n.
        proxy: the column that chooses. measured: columns that tell what was chosen.

    Returns:
        A row for each n and measured column: proxy, n, of, value (percent), gain over the least n (points) with low and
        high (95 %, Student's t over prompts), lost (the reward's own gain, or ``OWN``'s, less this one) with lost_low
        and lost_high, and prompts.

    Raises:
        ValueError: a prompt has fewer pictures than the largest n.
    """
    fewest = table.groupby("prompt_id").size().min()
    if fewest < max(ns):
        raise ValueError(f"best of {max(ns)}: a prompt has {fewest} pictures only; draw more, or take a smaller n")
    columns = list(dict.fromkeys([OWN.get(proxy, proxy), proxy, *measured]))
    values = np.array([
        [100 * shares(part[proxy].to_numpy(), n) @ part[columns].to_numpy(float) for n in ns]
        for _, part in table.groupby("prompt_id")
    ])  # (prompt, n, column)  # fmt: skip
    gain = values - values[:, [list(ns).index(min(ns))]]
    lost = gain[:, :, :1] - gain
    rows = []
    for i, n in enumerate(ns):
        for j, name in enumerate(columns):
            ends = _mean("", gain[:, i, j]), _mean("lost_", lost[:, i, j])
            about = {"proxy": proxy, "n": n, "of": name, "value": values[:, i, j].mean(), "gain": gain[:, i, j].mean()}
            rows.append({**about, **ends[0], "lost": lost[:, i, j].mean(), **ends[1], "prompts": len(values)})
    return pd.DataFrame(rows)


def _mean(of: str, values: Float[np.ndarray, "prompt"]) -> dict[str, float]:
    """The interval of a mean over prompts."""
    n = len(values)
    half = student(n - 1, 0.95) * values.std(ddof=1) / sqrt(n) if n > 1 else np.nan
    return {f"{of}low": values.mean() - half, f"{of}high": values.mean() + half}
