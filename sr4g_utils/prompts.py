"""Prompt sets of every kind: read, checked, made, and drawn from."""

import json
import re
import tempfile
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import boxes, dataset
from .captions import caption, with_article
from .relations import BY_NAME, NAMES, RELATIONS, family
from .running.files import atomic, download

_WORDS = {word: r.name for r in RELATIONS for word in (r.name, r.phrase)}
# T2I-CompBench's wording (Huang et al. 2023); "next to", "near" and "on side of" name no relation of ours.
_COMPBENCH = {
    "on the left of": "left of",
    "on the right of": "right of",
    "on the top of": "above",
    "on the bottom of": "below",
}
_COMPBENCH_LINE = re.compile(rf"an? (.+?) ({'|'.join(_COMPBENCH)}) an? (.+)")


NEEDED = ("prompt_id", "subject", "relation", "object")  # to score; to draw, a caption as well


def check_prompts(table: pd.DataFrame, source: str, needed: Sequence[str] = (*NEEDED, "caption")) -> pd.DataFrame:
    """The table itself, when it is one of prompts with the columns ``needed``.

    Raises:
        ValueError: it names the source, the column and the value.
    """
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"{source}: the column {missing[0]!r} is missing; prompts have {', '.join(needed)}")
    if not len(table):
        raise ValueError(f"{source}: the table is empty, it holds no prompts")
    if (unknown := table[~table.relation.isin(NAMES)]).size:
        row = unknown.iloc[0]
        raise ValueError(
            f"{source}: prompt {row.prompt_id} has the relation {row.relation!r}; it must be one of {', '.join(NAMES)}"
        )
    for name in needed:
        empty = table[name].isna() | (table[name].astype(str).str.strip() == "")
        if empty.any():
            raise ValueError(f"{source}: prompt {table.prompt_id[empty].iloc[0]} has no {name}")
    ids = table.prompt_id.astype(str)
    if (twice := ids[table.prompt_id.duplicated()]).size:
        raise ValueError(f"{source}: prompt_id {twice.iloc[0]!r} occurs more than once")
    if "caption" in needed and (odd := ids[~ids.str.fullmatch(r"[\w.-]+")]).size:  # images are named after them
        raise ValueError(f"{source}: prompt_id {odd.iloc[0]!r} is not made of letters, digits, '_', '.' and '-'")
    return table


def read_prompts(source: str | Path) -> pd.DataFrame:
    """A prompt set: columns prompt_id, subject, relation, object, caption, and what else its file holds.

    Args:
        source: ``"sr2d"`` (VISOR's 25,280 spatial prompts), ``"sr4g"`` (the triplets of COCO train2017, which is
            downloaded), ``"geneval"`` (its 100 position prompts, downloaded) or a file: Parquet, CSV, JSON or JSON
            Lines with subject, relation (a name or its phrase), object and perhaps caption and prompt_id; SR2D's
            published JSON; GenEval's ``evaluation_metadata.jsonl``; T2I-CompBench's spatial lines (``.txt``). Of the
            last three, prompts without one of the 14 relations are left out; ``attrs["left_out"]`` is their number.

    Raises:
        ValueError: no such file or set, or a row that cannot be read; file, row and value are named.
    """
    name = str(source)
    if name == "sr2d":
        rows = json.loads(sr2d([category.name for category in boxes.COCO_CATEGORIES]))
    elif name == "sr4g":
        return _sr4g()
    else:
        path = download("geneval_evaluation_metadata.jsonl") if name == "geneval" else Path(source).expanduser()
        if not path.is_file():
            raise ValueError(f"prompts: {name!r} is neither a file nor one of sr2d, sr4g, geneval")
        if path.suffix == ".parquet":
            return _named(pd.read_parquet(path), name)
        if path.suffix == ".csv":
            return _named(pd.read_csv(path), name)
        rows = _lines(path)
    made = [prompt for i, row in enumerate(rows) for prompt in [_prompt(i, row, f"{name}, row {i + 1}")] if prompt]
    if not made:
        raise ValueError(f"{name}: holds no prompts with one of the relations {', '.join(NAMES)}")
    table = _named(pd.DataFrame(made), name)
    table.attrs["left_out"] = len(rows) - len(table)
    return table


def _lines(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of prompts, found {type(rows).__name__}")
    return rows


def _prompt(row: int, value: Any, where: str) -> dict[str, Any] | None:
    """One prompt of a published set or a user's file; None where it names no relation."""
    match value:
        case str():  # T2I-CompBench
            if not (found := _COMPBENCH_LINE.fullmatch(value)):
                return None
            id, s, words, o, text = row, found[1], _COMPBENCH[found[2]], found[3], value
        case {
            "unique_id": id,
            "obj_1_attributes": [s],
            "obj_2_attributes": [o],
            "rel_type": words,
            "text": text,
        }:  # SR2D
            if words not in _WORDS:
                return None
        case {"tag": str(), "include": [{"class": o}, {"class": s, "position": [words, 0]}], "prompt": text}:  # GenEval
            id = row
        case {"tag": str(), "prompt": str()}:
            return None
        case {"subject": _, "relation": _, "object": _}:
            return {"prompt_id": row, **value}
        case _:
            raise ValueError(f"{where}: not a prompt ({str(value)[:80]}); it needs subject, relation and object")
    return {"prompt_id": id, "subject": s, "relation": _WORDS.get(words, words), "object": o, "caption": text}


def _named(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The prompts, with what a user's file may leave out: prompt_id, caption, and a relation's name for its phrase."""
    if "prompt_id" not in table:
        table = table.assign(prompt_id=np.arange(len(table)))
    if "relation" in table:
        table = table.assign(relation=[_WORDS.get(words, words) for words in table.relation])
    table = check_prompts(table if "caption" in table else table.assign(caption="–"), source).reset_index(drop=True)
    if (table.caption == "–").all():
        table["caption"] = [
            caption(s, r, o) for s, r, o in zip(table.subject, table.relation, table.object, strict=True)
        ]
    return table


def _sr4g() -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as scratch:
        triplets = Path(scratch) / "triplets.parquet"
        dataset.build(triplets, download("annotations_trainval2017.zip"), split="train")
        held_out = dataset.held_out_categories(boxes.COCO_CATEGORIES, 16)
        return from_triplets(dataset.frequencies(triplets), held_out, seed=0)


def write_given_prompts(path: str | Path, *, source: str | Path) -> dict[str, Any]:
    """A stage: :func:`read_prompts` as Parquet. Returns how many there are and how many were left out."""
    table = read_prompts(source)
    with atomic(path) as partial:
        table.to_parquet(partial, index=False)
    return {"prompts": len(table), "left_out": table.attrs.get("left_out", 0)}


# ---------------------------------------------------------------------------------------------------------- made here


def sr2d(names: Sequence[str]) -> bytes:
    """VISOR's SR2D prompt set, byte for byte the published ``text_spatial_rel_phrases.json`` for COCO's 80 names.

    Every unordered pair of names in both orders for the four projective relations and "and", then each name alone
    (Gokhale et al. 2022, section 3.1; microsoft/VISOR).
    """
    phrases = [BY_NAME[name].phrase for name in family("projective")] + ["and"]
    prompts: list[tuple[str, str | None, str, str]] = [
        (a, b, phrase, f"{with_article(a)} {phrase} {with_article(b)}")
        for pair in combinations(names, 2)
        for phrase in phrases
        for a, b in (pair, pair[::-1])
    ]
    prompts += [(name, None, "single", with_article(name)) for name in names]
    records = [
        {
            "unique_id": i,
            "num_objects": 1 if b is None else 2,
            "obj_1_attributes": [a],
            "obj_2_attributes": [b],
            "rel_type": phrase,
            "text": text,
        }
        for i, (a, b, phrase, text) in enumerate(prompts)
    ]
    return json.dumps(records, indent=2).encode()


def write_sr2d(path: str | Path) -> int:
    """A stage: :func:`sr2d` for COCO's 80 categories. Returns the number of prompts."""
    data = sr2d([category.name for category in boxes.COCO_CATEGORIES])
    with atomic(path) as partial:
        partial.write_bytes(data)
    return len(json.loads(data))


def from_triplets(
    train: pd.DataFrame,
    held_out: Collection[str],
    seed: int,
    test_per_relation: int = 500,
    validation_per_relation: int = 100,
    same_category: bool = False,
) -> pd.DataFrame:
    """Evaluation prompts: the training annotations' distinct triplets (:func:`dataset.frequencies`), one row each.

    Columns: prompt_id, subject, relation, object, caption, n_images, objects (seen, mixed, unseen), in_main and
    in_unseen (is it among the training captions of that split?), split ("validation" or "test", disjoint) and balanced
    (in the default test set of ``test_per_relation`` prompts per relation).

    Validation prompts are for choosing checkpoints: per relation at most ``validation_per_relation``, at most a tenth.
    """
    table = train if same_category else train[train.subject != train.object]
    table = table.sort_values(["subject", "object", "relation"], ignore_index=True)
    seen = ~(table.subject.isin(held_out) | table.object.isin(held_out))
    order = np.random.default_rng(seed).permutation(len(table))
    rank = pd.Series(range(len(table)), index=order).groupby(table.relation.to_numpy()[order]).cumcount().sort_index()
    of_relation = table.groupby("relation")["caption"].transform("count")
    n_validation = np.minimum(validation_per_relation, of_relation // 10)
    return pd.DataFrame(
        {
            "prompt_id": np.arange(len(table)),
            **{name: table[name] for name in ("subject", "relation", "object", "caption", "n_images", "objects")},
            "in_main": True,
            "in_unseen": seen,
            "split": np.where(rank < n_validation, "validation", "test"),
            "balanced": (rank >= n_validation) & (rank < n_validation + test_per_relation),
        }
    )


def write_study_prompts(path: str | Path, triplets: str | Path, **options: Any) -> int:
    """A stage: :func:`from_triplets` of a triplet file, as Parquet. Returns their number."""
    table = from_triplets(dataset.frequencies(triplets), **options)
    with atomic(path) as partial:
        table.to_parquet(partial, index=False)
    return len(table)


def true_prompts(table: boxes.BoxTable, n_per_relation: int, seed: int, rules: str = "visor") -> pd.DataFrame:
    """At most ``n_per_relation`` triplets of different categories per relation, each with an image that shows it."""
    found = []
    for groups, counts in dataset.count_pairs(table, rules):
        group, relation = np.nonzero(counts * (groups[:, 1] != groups[:, 2])[:, None])
        found.append(np.column_stack([groups[group], relation]))
    triplets = np.concatenate(found)
    order = np.random.default_rng(seed).permutation(len(triplets))
    rank = pd.Series(triplets[order, 3]).groupby(triplets[order, 3]).cumcount().to_numpy()
    image, subject, object, relation = triplets[np.sort(order[rank < n_per_relation])].T
    names = np.array(table.names, dtype="object")
    drawn = pd.DataFrame(
        {
            "prompt_id": np.arange(len(image)),
            "subject": names[subject],
            "relation": np.array(NAMES, dtype="object")[relation],
            "object": names[object],
            "file_name": table.file_name.take(image).to_pylist(),
            "width": table.width[image],
            "height": table.height[image],
        }
    )
    triplet = zip(drawn.subject, drawn.relation, drawn.object, strict=True)
    return drawn.assign(caption=[caption(*each) for each in triplet])


# ------------------------------------------------------------------------------------------------------------ drawing

SETS = ("seen", "unseen")  # of a prompt's objects; where one of two is unseen it is in neither


def draw_prompts(table: pd.DataFrame, per_relation: int | None, seed: int) -> pd.DataFrame:
    """The prompts to score: for each set of objects, ``per_relation`` of every relation (all of them if None).

    Of the study's own prompts (with the columns ``split`` and ``objects``) only test prompts whose objects are both
    seen or both unseen are taken; of other prompts, any, and their ``objects`` is "all". A set that has fewer gives
    what it has.

    Raises:
        ValueError: nothing is left.
    """
    if {"split", "objects"} <= set(table):
        table = table[(table.split == "test") & table.objects.isin(SETS)]
    else:
        table = table.assign(objects="all")
    drawn = table.sample(frac=1, random_state=np.random.default_rng(seed))
    if per_relation is not None:
        drawn = drawn.groupby(["objects", "relation"], sort=False).head(per_relation)
    if not len(drawn):
        raise ValueError("prompts: no test prompt with seen or with unseen objects is left to score")
    return drawn.sort_values("prompt_id", ignore_index=True)


def write_test_prompts(path: str | Path, prompts: str | Path, **options: Any) -> dict[str, int]:
    """A stage: :func:`draw_prompts` from a Parquet file to another. Returns how many of each set of objects."""
    table = draw_prompts(pd.read_parquet(prompts), **options)
    with atomic(path) as partial:
        table.to_parquet(partial, index=False)
    return {name: int(n) for name, n in table.objects.value_counts().items()}


def validation_prompts(path: str | Path, held_out: Collection[str], number: int, seed: int) -> pd.DataFrame:
    """The prompts that choose among checkpoints: split "validation", both objects seen, as many of each relation.

    Args:
        path: Parquet of :func:`write_study_prompts`.
        held_out: categories that fine-tuning does not see.
        number: prompts over all relations.

    Raises:
        ValueError: there are none.
    """
    table = pd.read_parquet(path)
    table = table[(table.split == "validation") & ~table.subject.isin(held_out) & ~table.object.isin(held_out)]
    if not len(table):
        raise ValueError(f"{path}: no validation prompt whose objects are both seen; write more in notebook 02")
    shuffled = table.sample(frac=1, random_state=seed)
    each = max(number // table.relation.nunique(), 1)
    return shuffled.groupby("relation").head(each).sort_values("prompt_id", ignore_index=True)
