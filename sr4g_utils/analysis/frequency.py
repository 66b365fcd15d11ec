"""Gains by how often a triplet was drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from ..evaluation import scores, statistics
from ..relations import FAMILIES, family
from ..store.files import protocol
from .bias import COND
from .claims import ALPHA, UNDECIDED
from .effects import with_visor
from .sweeps import BASE, base_of

THIRDS = ("rarest third", "middle third", "most frequent third")


def known(prompts: pd.DataFrame) -> pd.DataFrame:
    """The prompts whose objects fine-tuning saw; all of them if none is marked as seen."""
    seen = prompts[prompts.objects == "seen"]
    return seen if len(seen) else prompts


def gain_by_frequency(
    before: pd.DataFrame, after: pd.DataFrame, prompts: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Is the gain larger where fine-tuning saw the prompt's triplet more often?

    Prompts are ranked by ``n_images`` (training images that show the triplet) *within their relation*, and cut into
    thirds: relations differ in frequency and in difficulty, and would otherwise be confounded with it.

    Returns:
        A row per third: frequency (its name), prompts, images_median, before, after, difference, low, high (VISOR_Cond,
        points); null for a third without prompts. The last row, "most − least", has the outer thirds' difference.
    """
    before, after = scores.common([before, after])
    prompts = prompts[prompts.prompt_id.isin(before.prompt_id)]
    by_relation = prompts.groupby("relation").n_images
    place = (by_relation.rank(method="first") - 0.5) / by_relation.transform("size")
    gains, rows = [], []
    for i, name in enumerate(THIRDS):
        part = prompts[np.floor(3 * place) == i]
        drawn = np.full((2, resamples + 1), np.nan)
        if len(part):
            records = [r[r.prompt_id.isin(part.prompt_id)] for r in (before, after)]
            drawn = scores.draws(records, resamples, seed + i)["all"][:, :, COND]
        gains.append(drawn[1] - drawn[0])
        values = {"images_median": part.n_images.median(), "before": drawn[0, 0], "after": drawn[1, 0]}
        gain = scores.estimate(gains[-1], "difference", "low", "high")
        rows.append({"frequency": name, "prompts": len(part), **values, **gain})
    contrast = scores.estimate(gains[-1] - gains[0], "difference", "low", "high")
    return pd.DataFrame([*rows, {"frequency": "most − least", "prompts": len(prompts), **contrast}])


def by_dose(table: pd.DataFrame) -> pd.DataFrame:
    """What a dose gains over the base, on the same prompts: dose, part (all, a family, one image or all images) and the
    columns of :func:`with_visor`."""
    base, rows = base_of(table), []
    for dose, treated in table[table.model != BASE].groupby("dose"):
        for part, chosen in _parts(table.drop_duplicates("prompt_id")).items():
            before, after = (records[records.prompt_id.isin(chosen)] for records in (base, treated))
            rows.append({"dose": dose, "part": part, **with_visor([after], [before])})
    return pd.DataFrame(rows)


def _parts(prompts: pd.DataFrame) -> dict[str, pd.Series]:
    """The ids of all prompts, of those of a family, and of those whose triplet is drawn of one image or of all."""
    ids, one = prompts.prompt_id, prompts.one_image.astype(bool)
    families = {name: ids[prompts.relation.isin(family(name))] for name in FAMILIES}
    return {"all": ids, **families, "all images": ids[~one], "one image": ids[one]}


def slopes(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """How much VISOR_Cond rises when 1 + dose doubles, in points, for the parts of :func:`by_dose`.

    Success, where both things are found, is prompt + run + slope · log2(1 + dose), by least squares; the errors of a
    prompt's images are clustered (Liang and Zeger 1986). So a prompt is compared with itself alone.

    Returns:
        part, slope, low, high, p, detectable (the slope that would be found four times in five), prompts, pictures.
    """
    records = table[(table.model != BASE) & table.both_found]
    rows = []
    for part, chosen in _parts(table.drop_duplicates("prompt_id")).items():
        cells = records[records.prompt_id.isin(chosen)].groupby(["prompt_id", "run", "dose"]).correct
        cells = cells.agg(["mean", "size"]).reset_index()
        # a column for each prompt and each run: what they explain is taken out of dose and success alike, so that the
        # slope left between the two is that within a prompt and a run (Frisch and Waugh 1933)
        fixed = pd.get_dummies(cells[["prompt_id", "run"]].astype(str), dtype=float).to_numpy()
        root = np.sqrt(cells["size"].to_numpy(float))[:, None]  # a cell of two images weighs twice
        both = root * np.column_stack([np.log2(1 + cells.dose), 100 * cells["mean"]])
        x, y = (both - root * fixed @ np.linalg.lstsq(root * fixed, both)[0]).T
        slope = x @ y / (x @ x)
        # the images of a prompt share what makes it easy, so their errors are added up before they are squared
        pull = pd.Series(x * (y - slope * x)).groupby(cells.prompt_id.to_numpy()).sum() / (x @ x)
        n = len(pull)
        error = np.sqrt(n / (n - 1) * (pull**2).sum())  # n / (n - 1): few clusters look too sure of themselves
        half = stats.t.ppf((1 + level) / 2, n - 1) * error
        p, least = 2 * stats.t.sf(abs(slope) / error, n - 1), stats.norm.ppf([0.975, 0.8]).sum() * error
        rows.append({"part": part, "slope": slope, "low": slope - half, "high": slope + half, "p": p,
                     "detectable": least, "prompts": n, "pictures": cells["size"].sum()})  # fmt: skip
    return pd.DataFrame(rows)


def dose_verdict(slope: Mapping[str, Any]) -> str:
    """The first protocol's verdict on a row of :func:`slopes`: the dose matters, does not, or it is undecided."""
    if slope["low"] > 0:
        return "matters"
    within = max(-slope["low"], slope["high"]) < protocol(1)["margins"]["frequency"]
    return "does not matter" if within else "undecided"


def by_cell(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """What each dose gains over none, with the errors of the cells to which doses were assigned.

    In the 25 cells of group and run, over the images with both things: percent obeyed = group + run + dose, by least
    squares weighted by images. 25 cells less 13 numbers leave 12 degrees of freedom.

    Returns:
        dose, difference (points over 0 draws; for the dose "doubling": for each doubling of 1 + dose, a straight line
        in place of the four), low, high, p, p_holm (over the four), freedom, cells.
    """
    records = table[(table.model != BASE) & table.both_found]
    cells = records.groupby(["group", "run", "dose"], observed=True).correct.agg(["mean", "size"]).reset_index()
    groups, runs, doses = (  # of each a column less: the first is what the others are compared with, of doses none
        pd.get_dummies(cells[name].astype(int), drop_first=True, dtype=float) for name in ("group", "run", "dose")
    )
    fixed = np.column_stack([np.ones(len(cells)), groups, runs])
    line = pd.DataFrame({"doubling": np.log2(1 + cells.dose.to_numpy(float))})
    y, weight = 100 * cells["mean"].to_numpy(), cells["size"].to_numpy(float)
    rows = [row for wanted in (doses, line) for row in least_squares(fixed, wanted, y, weight, level)]
    found = pd.DataFrame(rows).rename(columns={"name": "dose", "value": "difference"})
    four = found.dose != "doubling"
    return found.assign(p_holm=statistics.holm(found.p.where(four).to_numpy(float)), cells=len(cells))


def least_squares(
    fixed: Float[np.ndarray, "row column"], wanted: pd.DataFrame, y: Float[np.ndarray, "row"],
    weight: Float[np.ndarray, "row"] | None = None, level: float = 0.95,
) -> list[dict[str, Any]]:  # fmt: skip
    """Weighted least squares of ``y`` on some columns: of each of ``wanted`` its name, value, low, high, p (Student's t
    with the residuals' ``freedom``)."""
    root = np.sqrt(np.ones(len(y)) if weight is None else weight)
    x = root[:, None] * np.column_stack([fixed, wanted.to_numpy(float)])
    inverse = np.linalg.inv(x.T @ x)
    values = inverse @ x.T @ (root * y)
    freedom = len(y) - x.shape[1]
    errors = np.sqrt(np.diag(inverse) * ((root * y - x @ values) ** 2).sum() / freedom)
    half = stats.t.ppf((1 + level) / 2, freedom) * errors
    p = 2 * stats.t.sf(abs(values) / errors, freedom)
    numbers = (part[fixed.shape[1] :] for part in (values, values - half, values + half, p))
    ends = zip(wanted.columns, *numbers, strict=True)
    return [dict(zip(("name", "value", "low", "high", "p"), end, strict=True)) | {"freedom": freedom} for end in ends]


def cell_verdict(table: pd.DataFrame) -> str:
    """The second protocol's verdict on :func:`by_cell`: the dose matters if one of the four differs from none (Holm),
    does not if all four intervals lie within the margin, and else it is undecided."""
    four, margin = table[table.dose != "doubling"], protocol()["margins"]["dose"]
    if (four.p_holm < ALPHA).any():
        return "matters"
    return "does not matter" if four.low.gt(-margin).all() and four.high.lt(margin).all() else UNDECIDED
