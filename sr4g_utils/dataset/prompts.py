"""Prompts that are made here: of triplets, of true photos, drawn for tests and for validation."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..relations import BY_NAME, NAMES, OPPOSITES, SYMMETRIC
from ..store.files import read_table, write_table
from . import boxes
from . import triplets as dataset_triplets
from .captions import caption
from .prompt_sets import MET, _with_others


def from_triplets(
    train: pd.DataFrame,
    held_out: Collection[str],
    seed: int,
    test_per_relation: int = 500,
    validation_per_relation: int = 100,
    same_category: bool = False,
    withheld: float = 0.0,
    apart: float = 0.0,
    dosed: int = 0,
) -> pd.DataFrame:
    """Evaluation prompts: the training annotations' distinct triplets (:func:`triplets.frequencies`), one row each.

    Columns: prompt_id, subject, relation, object, caption, n_images, objects (seen, mixed, unseen; "withheld" or "never
    together": seen objects, but see :func:`triplets.withheld` and :func:`triplets.kept_apart`), in_main and in_unseen
    (is it among the training captions of that split?), split ("validation" or "test", disjoint) and balanced (in the
    test set of ``test_per_relation`` prompts).

    Validation prompts are for choosing checkpoints: per relation at most ``validation_per_relation``, at most a tenth.
    ``dosed`` prompts of each relation are for the experiment on frequency: objects is "dosed", and see :func:`_dosed`.
    """
    table = train if same_category else train[train.subject != train.object]
    table = table.sort_values(["subject", "object", "relation"], ignore_index=True)
    seen = ~(table.subject.isin(held_out) | table.object.isin(held_out))
    back = dataset_triplets.withheld(zip(table.subject, table.relation, table.object, strict=True), withheld)
    never = dataset_triplets.kept_apart(zip(table.subject, table.object, strict=True), apart)
    order = np.random.default_rng(seed).permutation(len(table))
    rank = pd.Series(range(len(table)), index=order).groupby(table.relation.to_numpy()[order]).cumcount().sort_index()
    of_relation = table.groupby("relation")["caption"].transform("count")
    n_validation = np.minimum(validation_per_relation, of_relation // 10)
    prompts = table[["subject", "relation", "object", "caption", "n_images"]].assign(
        objects=table.objects.mask(seen & back, "withheld").mask(seen & never, MET[1]),
        in_main=~(back | never),
        in_unseen=seen & ~(back | never),
        split=np.where(rank < n_validation, "validation", "test"),
        balanced=(rank >= n_validation) & (rank < n_validation + test_per_relation),
    )
    prompts.insert(0, "prompt_id", np.arange(len(table)))
    if dosed:
        prompts = prompts.join(_dosed(prompts[(prompts.objects == "seen") & (prompts.n_images > 1)], dosed, seed))
        prompts.loc[prompts.group.notna(), ["objects", "split", "balanced"]] = "dosed", "test", False
    return prompts


DOSE_GROUPS = 5  # of prompts; each run of the Latin square gives a group another dose


def _dosed(table: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """Prompts whose triplets fine-tuning shall meet as often as an experiment says: ``number`` of each relation, at
    random, none with its converse, which would show the same. Their index; the ``group`` (0 to 4, as many of each) that
    a dose goes to; and ``one_image``: are a triplet's draws all of one image?

    Raises:
        ValueError: there are fewer.
    """
    taken: dict[tuple[str, str, str], Any] = {}
    count = dict.fromkeys(NAMES, 0)
    for row in table.sample(frac=1, random_state=np.random.default_rng(seed)).itertuples():
        s, r, o = str(row.subject), str(row.relation), str(row.object)
        if count[r] < number and (o, BY_NAME[r].converse, s) not in taken:
            taken[s, r, o] = row.Index, count[r] % DOSE_GROUPS, count[r] // DOSE_GROUPS % 2 == 1
            count[r] += 1
    if short := [name for name in NAMES if count[name] < number]:
        raise ValueError(f"dosed: only {count[short[0]]} triplets {short[0]!r} are shown by two images; ask for fewer")
    rows = pd.DataFrame(taken.values(), columns=["index", "group", "one_image"]).set_index("index")
    return rows.astype({"group": "Int8", "one_image": "boolean"})


def write_study_prompts(path: str | Path, triplets: str | Path, **options: Any) -> int:
    """A stage: :func:`from_triplets` of a triplet file, as Parquet. Returns their number."""
    table = from_triplets(dataset_triplets.frequencies(triplets), **options)
    write_table(path, table)
    return len(table)


def true_prompts(table: boxes.BoxTable, n_per_relation: int, seed: int, rules: str = "visor") -> pd.DataFrame:
    """At most ``n_per_relation`` triplets of different categories per relation, each with an image that shows it."""
    parts = []
    for groups, counts in dataset_triplets.count_pairs(table, rules):
        group, relation = np.nonzero(counts * (groups[:, 1] != groups[:, 2])[:, None])
        parts.append(np.column_stack([groups[group], relation]))
    triplets = np.concatenate(parts)
    order = np.random.default_rng(seed).permutation(len(triplets))
    rank = pd.Series(triplets[order, 3]).groupby(triplets[order, 3]).cumcount().to_numpy()
    image, subject, object, relation = triplets[np.sort(order[rank < n_per_relation])].T
    names, relations = np.array(table.names, dtype="object"), np.array(NAMES, dtype="object")
    columns = {"subject": names[subject], "relation": relations[relation], "object": names[object]}
    about = {"file_name": table.file_name.take(image).to_pylist(), "width": table.width[image]}
    drawn = pd.DataFrame({"prompt_id": np.arange(len(image)), **columns, **about, "height": table.height[image]})
    return drawn.assign(caption=list(map(caption, drawn.subject, drawn.relation, drawn.object)))


# of a prompt's objects, from the nearest to fine-tuning; "opposites": see :func:`of_opposites`
OBJECT_SETS = ("dosed", "opposites", "seen", "withheld", MET[1], "mixed", "unseen")
THINGS = (1, 2, 3)  # that a prompt without a relation asks for; :mod:`without_relation` writes them


def of_opposites(table: pd.DataFrame, number: int | None, seed: int) -> pd.DataFrame:
    """Of the study's prompts, the two directions of each pair of true opposites, asked of the same ordered pairs of
    seen things: ``number`` of these for each pair of opposites, or all. Their ``objects`` is "opposites".

    Raises:
        ValueError: there are fewer.
    """
    asked = table[(table.split == "test") & (table.objects == "seen")]
    by_things, rng, parts = asked.set_index(["subject", "object"]), np.random.default_rng(seed), []
    for pair in OPPOSITES:
        if pair[0] in SYMMETRIC:
            continue
        one, other = (by_things.index[by_things.relation == name] for name in pair)
        both = one.intersection(other).sort_values()
        if len(both) < (number or 1):
            what = f"only {len(both)} ordered pairs of things are asked for both {pair[0]!r} and {pair[1]!r}"
            raise ValueError(f"prompts: {what}; ask for fewer, set per_relation")
        things = both[rng.permutation(len(both))[:number]]
        of_things = pd.MultiIndex.from_frame(asked[["subject", "object"]]).isin(things)
        parts.append(asked[asked.relation.isin(pair) & of_things])
    return pd.concat(parts).assign(objects="opposites")


def draw_prompts(
    table: pd.DataFrame, per_relation: int | None, seed: int, objects: Sequence[str] = ("seen", "unseen")
) -> pd.DataFrame:
    """The prompts to score: for each set of objects, ``per_relation`` of every relation (all of them if None).

    Of the study's own prompts (with the columns ``split`` and ``objects``) only test prompts of the sets ``objects``
    are taken; of other prompts, any, and their ``objects`` is "all". The rest are the table's :func:`others`.

    Raises:
        ValueError: nothing is left.
    """
    prompts = table
    if unknown := [name for name in objects if name not in OBJECT_SETS]:
        raise ValueError(f"prompts: {unknown[0]!r} is no set of objects; they are {', '.join(OBJECT_SETS)}")
    if "opposites" in objects:
        if len(objects) > 1 or not {"split", "objects"} <= set(table):
            raise ValueError("prompts: objects 'opposites' are drawn of the study's own prompts, and alone")
        table = of_opposites(table, per_relation, seed)
    elif {"split", "objects"} <= set(table):
        table = table[(table.split == "test") & table.objects.isin(objects)]
    else:
        table = table.assign(objects="all")
    drawn = table.sample(frac=1, random_state=np.random.default_rng(seed))
    if per_relation is not None:
        drawn = drawn.groupby(["objects", "relation"], sort=False).head(per_relation)
    if not len(drawn):
        raise ValueError(f"prompts: no test prompt with objects that are {' or '.join(objects)} is left to score")
    rest = prompts[~prompts.prompt_id.isin(drawn.prompt_id)]
    drawn = drawn.sort_values("prompt_id", ignore_index=True)
    return _with_others(drawn, zip(rest.prompt_id, rest.caption, strict=True))


def write_test_prompts(path: str | Path, prompts: str | Path, **options: Any) -> dict[str, int]:
    """A stage: :func:`draw_prompts` from a Parquet file to another. Returns how many of each set of objects."""
    table = draw_prompts(read_table(prompts), **options)
    write_table(path, table)
    return {str(name): int(n) for name, n in table.objects.value_counts().items()}


def validation_prompts(path: str | Path, held_out: Collection[str], number: int, seed: int) -> pd.DataFrame:
    """The ``number`` prompts that choose among checkpoints, as many of each relation: of the validation prompts of
    :func:`write_study_prompts` those whose objects are both seen, not ``held_out``.

    Raises:
        ValueError: there are none.
    """
    table = read_table(path)
    seen = ~(table.subject.isin(held_out) | table.object.isin(held_out) | table.objects.isin(["withheld", MET[1]]))
    table = table[(table.split == "validation") & seen]
    if not len(table):
        raise ValueError(f"{path}: no validation prompt whose objects are both seen; write more in notebook 02")
    drawn = table.sample(frac=1, random_state=seed).groupby("relation").head(max(number // table.relation.nunique(), 1))
    return drawn.sort_values("prompt_id", ignore_index=True)
