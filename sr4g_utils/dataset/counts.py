"""Counts of a data set: objects, pairs, captions, and where rule sets disagree (notebooks 01 and 02)."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from ..relations import NAMES, RULES, complete_rules
from ..store.files import read_table, reported, write_table
from ..store.run import RECORDED, Result, Run
from . import coco, inputs, triplets
from .boxes import BoxTable


def warnings(tables: dict[str, BoxTable]) -> list[str]:
    """What makes a pair of annotation files unfit to train or test on; empty if nothing does."""
    train, val = tables["train"], tables["val"]
    lines = []
    if np.intersect1d(train.image_id, val.image_id).size:
        lines.append("train and validation annotations share images: what is tested on may have been trained on")
    for split, table in tables.items():
        if table.merged:
            ids = ", ".join(map(str, table.merged))
            lines.append(f"{split}: the categories {ids} share a name with another and count as it")
        if len(np.unique(table.category)) == 1:
            lines.append(f"{split}: boxes of one category only: no caption and no prompt is about two different things")
        if missing := sorted(set(table.names) - {table.names[i] for i in np.unique(table.category)}):
            some = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
            lines.append(f"{split}: no box of {len(missing)} categories ({some})")
    return lines


def funnel(tables: dict[str, BoxTable], frequencies: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """From images to captions: one row a step, one column a split."""
    columns = {}
    for split, table in tables.items():
        counted = frequencies[split]
        different = counted[counted.subject != counted.object]
        per_image = np.bincount(table.image, minlength=len(table.image_id)).astype(np.int64)
        columns[split] = {
            "images": len(per_image),
            "images with a box": int((per_image > 0).sum()),
            "annotations left out": sum(table.excluded.values()),
            "boxes": len(table),
            "ordered pairs of boxes": int((per_image * (per_image - 1)).sum()),
            "relations between boxes": int(counted.n_pairs.sum()),
            "captions (distinct triplets per image)": int(counted.n_images.sum()),
            "captions of different categories (main)": int(different.n_images.sum()),
            "captions of seen categories (unseen split)": int(different.n_images[different.objects == "seen"].sum()),
            "distinct triplets of different categories": len(different),
        }
    return pd.DataFrame(columns).rename_axis("step").reset_index()


def never_together(table: BoxTable) -> list[tuple[str, str]]:
    """The pairs of categories that share no image, in the order of ids (``data/apart.yaml`` holds train2017's)."""
    shown = np.zeros((len(table.image_id), len(table.names)), bool)
    shown[table.image, table.category] = True
    shared = shown.T.astype(np.int32) @ shown.astype(np.int32)
    return [(table.names[i], table.names[j]) for i, j in np.argwhere(np.triu(shared == 0, 1))]


def object_frequencies(frequencies: pd.DataFrame) -> pd.DataFrame:
    """Captions that name each category, as subject, as object and in either place; most frequent first."""
    sums = {f"as_{side}": frequencies.groupby(side).n_images.sum() for side in ("subject", "object")}
    same = frequencies[frequencies.subject == frequencies.object].groupby("subject").n_images.sum()  # counted twice
    table = pd.DataFrame({"captions": 0, **sums}).rename_axis("name").fillna(0)
    table["captions"] = table.as_subject + table.as_object - same.reindex(table.index, fill_value=0)
    table = table.astype(int).reset_index()
    return table.sort_values(["captions", "name"], ascending=[False, True], ignore_index=True)


def roles(frequencies: pd.DataFrame) -> dict[str, float]:
    """Do all objects occur in both roles of every relation, and equally often (arXiv 2403.16394)?

    Returns:
        Of captions of different objects, ``completeness``: the percentage of all (object, relation, role) that occurs;
        ``balance``: the mean entropy in bits of an object's two roles in a relation, over those that occur: 1 is even,
        0 is one role only. Both are NaN where there are no different objects.
    """
    different = frequencies[frequencies.subject != frequencies.object]
    if different.empty:
        return {"completeness": np.nan, "balance": np.nan}
    counts = [different.groupby([side, "relation"]).n_images.sum() for side in ("subject", "object")]
    both = pd.concat(counts, axis=1, ignore_index=True).fillna(0).to_numpy(np.float64)
    share = both / both.sum(axis=1, keepdims=True)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    cells = 2 * len({*different.subject, *different.object}) * len(NAMES)
    return {"completeness": 100 * float((both > 0).sum()) / cells, "balance": float(entropy.mean())}


def pair_frequencies(frequencies: pd.DataFrame) -> pd.DataFrame:
    """Captions of each (subject, object); most frequent first."""
    table = frequencies.groupby(["subject", "object"], as_index=False).n_images.sum()
    table = table.sort_values(["n_images", "subject", "object"], ascending=[False, True, True], ignore_index=True)
    return table.rename(columns={"n_images": "captions"})


def write_rule_disagreement(path: str | Path, annotations: str | Path, split: str = "train") -> None:
    """How often two rule sets judge a pair of COCO boxes differently (an artifact: written to ``path`` as Parquet).

    One row per two rule sets ``a`` and ``b`` and relation that both define: pairs (ordered pairs of boxes judged),
    both, only_a, only_b.
    """
    table = coco.read(annotations, split).without_crowds()
    counted = {two: np.zeros((3, len(NAMES)), np.int64) for two in combinations(RULES, 2)}
    n = 0
    for _, subject, object, _ in triplets.pairs(table):
        verdicts = {rules: triplets.holds(table, subject, object, rules) for rules in RULES}
        n += int((subject != object).sum())
        for (a, b), counts in counted.items():
            one, other = verdicts[a], verdicts[b]
            counts += [(one & other).sum(0), (one & ~other).sum(0), (other & ~one).sum(0)]
    rows = [
        (name, a, b, n, *counts[:, i].tolist())
        for (a, b), counts in counted.items()
        for i, name in enumerate(NAMES)
        if name in RULES[a].defines and name in RULES[b].defines
    ]
    write_table(path, pd.DataFrame(rows, columns=["relation", "a", "b", "pairs", "both", "only_a", "only_b"]))


# sg2im's own reading of COCO (sg2im/data/coco.py): objects of at least 2 % of the image, images with 3 to 8 of them
SG2IM_AREA, SG2IM_OBJECTS = 0.02, (3, 8)


def write_reconstruction(path: str | Path, train: str | Path, val: str | Path) -> None:
    """Which reading of the paper gives 9.9 million captions? (an artifact: written to ``path`` as Parquet)

    One row per set of images ("train", "val", "train + val", which is COCO 2014's), rule set, box filter ("with crowds"
    where all of their annotations have crowd regions), what is counted (box pairs in a relation, distinct triplets per
    image, distinct (subject, relation, object)), and whether of all categories or of different ones only.

    Raises:
        ValueError: the splits have other categories.
    """
    tables = {"train": coco.read(train, "train"), "val": coco.read(val, "val")}
    if tables["train"].names != tables["val"].names:
        raise ValueError(f"{train} and {val} have not the same categories")
    kept = {"all boxes": BoxTable.without_crowds, "sg2im's filter": _filtered, "with crowds": lambda table: table}
    rows = []
    for (boxes_kept, choose), rules in product(kept.items(), complete_rules()):
        parts = {split: _captions(choose(table), rules) for split, table in tables.items()
                 if boxes_kept != "with crowds" or table.crowd.any()}  # fmt: skip
        for images in ("train", "val", "train + val"):
            if set(splits := images.split(" + ")) <= set(parts):
                about = {"images": images, "rules": rules, "boxes": boxes_kept}
                rows += [
                    about | row for row in _counted([parts[split] for split in splits], len(tables["train"].names))
                ]
    write_table(path, pd.DataFrame(rows))


def _filtered(table: BoxTable) -> BoxTable:
    """The boxes that sg2im takes: large ones, in images that have neither few nor many of them."""
    table = table.without_crowds()
    large = table.w * table.h >= SG2IM_AREA * (table.width * table.height)[table.image]
    per_image = np.bincount(table.image[large], minlength=len(table.image_id))[table.image]
    return table.rows(large & (per_image >= SG2IM_OBJECTS[0]) & (per_image <= SG2IM_OBJECTS[1]))


Codes = Int64[np.ndarray, "_"]


def _captions(table: BoxTable, rules: str) -> tuple[dict[tuple[str, str], int], Codes]:
    """How many captions a rule set writes, by what is counted and of which categories; and the triplets there are, as
    numbers: (subject · categories + object) · relations + relation."""
    counted = dict.fromkeys(product(("box pairs", "triplets per image"), ("all", "different")), 0)
    seen = np.empty(0, np.int64)
    for groups, counts in triplets.count_pairs(table, rules) if len(table) else ():
        different = groups[:, 1] != groups[:, 2]
        for which, rows in (("all", slice(None)), ("different", different)):
            counted["box pairs", which] += int(counts[rows].sum())
            counted["triplets per image", which] += int(np.count_nonzero(counts[rows]))
        group, relation = np.nonzero(counts)
        pair = groups[:, 1].astype(np.int64) * len(table.names) + groups[:, 2]
        seen = pd.unique(np.concatenate([seen, pair[group] * len(NAMES) + relation]))
    return counted, seen


def _counted(parts: Sequence[tuple[dict[tuple[str, str], int], Codes]], categories: int) -> list[dict[str, Any]]:
    """The counts of splits together: of images they add up, and a triplet that is in both is one."""
    total = {kind: sum(counted[kind] for counted, _ in parts) for kind in parts[0][0]}
    seen = pd.unique(np.concatenate([seen for _, seen in parts]))
    subject, object = np.divmod(seen // len(NAMES), categories)
    total["distinct triplets", "all"] = len(seen)
    total["distinct triplets", "different"] = int((subject != object).sum())
    return [{"counted": counted, "categories": which, "n": n} for (counted, which), n in total.items()]


def beside_reported(section: str, ours: Mapping[str, float | int]) -> pd.DataFrame:
    """Published numbers of a section of ``data/reported.yaml`` beside ours: claim, reported, ours, ratio, source."""
    published = reported(section)
    claims = [(name, published[name], value) for name, value in ours.items()]
    rows = [(name, claim["value"], value, value / claim["value"], claim["source"]) for name, claim, value in claims]
    return pd.DataFrame(rows, columns=["claim", "reported", "ours", "ours / reported", "source"])


ENDS = 10  # rows of a long table's head, and of its tail, that are kept as a result


def rule_disagreement(run: Run, train_annotations: Any) -> Result:
    """:func:`write_rule_disagreement` of training annotations (:func:`inputs.annotations`), or "recorded"."""

    def make() -> Result:
        source = inputs.annotations(run, train_annotations, "train")
        path, _ = run.stage("rule_disagreement.parquet", write_rule_disagreement, {"annotations": source})
        return read_table(path), {"annotations": source.name}

    return run.recorded_or("rule_disagreement", "coco", train_annotations == RECORDED, make)


def reconstruction(run: Run, train_annotations: Any, val_annotations: Any) -> Result:
    """:func:`write_reconstruction` of annotations; for the miniature's, the recorded one of COCO."""
    annotations = {"train": train_annotations, "val": val_annotations}

    def make() -> Result:
        sources = {split: inputs.annotations(run, source, split) for split, source in annotations.items()}
        path, _ = run.stage("reconstruction.parquet", write_reconstruction, sources)
        return read_table(path), {"annotations": ", ".join(dict.fromkeys(path.name for path in sources.values()))}

    return run.recorded_or("reconstruction", "coco", any(map(inputs.is_miniature, annotations.values())), make)


def real(run: Run, train_annotations: Any, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of the captions of photos: ``table``, kept as the result ``name``, or COCO's recorded one where ``table``
    is of the miniature's. Of a long table, the first and the last ``ENDS`` rows, with their rank."""

    def make() -> Result:
        rows = table
        if len(table) > 2 * ENDS:
            ranked = table.assign(rank=range(1, len(table) + 1))[["rank", *table.columns]]
            rows = pd.concat([ranked.head(ENDS), ranked.tail(ENDS)])
        return rows, {"annotations": inputs.annotations(run, train_annotations, "train").name}

    return run.recorded_or(name, "coco", inputs.is_miniature(train_annotations), make)[0]
