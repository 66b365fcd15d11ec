"""Answers to a kit: several people's CSV files, their agreement with themselves, with each other and with the rules."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ..dataset.boxes import BoxTable
from ..evaluation.statistics import Clusters, cohen, outcomes, pairwise, with_labels
from ..relations import RULES
from .kit import read_key
from .vsr import judge_like_people

VERDICTS = {"yes": "true", "no": "false", "unclear": "undecidable", "missing": "false"}
_COLUMNS = ("kit", "person", "item", "answer", "seconds")


def read(kit: str | Path, answers: Sequence[str | Path]) -> pd.DataFrame:
    """The answers of several people to one kit, a row per person and question.

    Returns:
        person, the kit's key (see :data:`kit.KEY`), answer, verdict ("true", "false" or "undecidable"; a missing object
        makes the caption false), both (are both things there?) and seconds.

    Raises:
        ValueError: a file is no table of answers to this kit; file, row, value and remedy are named.
    """
    name, key = read_key(kit)
    tables = [_one(Path(path), name, set(key.item)) for path in answers]
    every = pd.concat(tables, ignore_index=True)
    if (twice := every[every.duplicated(["person", "item"])]).size:
        raise ValueError(
            f"{twice.file.iloc[0]}: {twice.person.iloc[0]!r} answered {twice['item'].iloc[0]} in another file, too; "
            "give each person's last file only, and let people take different names"
        )
    every = every.assign(verdict=every.answer.map(VERDICTS), both=every.answer != "missing")
    columns = ["person", *key.columns, "answer", "verdict", "both", "seconds"]
    return every.merge(key, on="item", how="left")[columns]


def _one(path: Path, kit: str, items: set[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"kit": str, "person": str, "item": str, "answer": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as CSV ({error})") from None
    if missing := [name for name in _COLUMNS if name not in table]:
        raise ValueError(f"{path}: the column {missing[0]!r} is missing; the kit's page saves {', '.join(_COLUMNS)}")
    for row, (which, person, item, answer) in enumerate(zip(*(table[name] for name in _COLUMNS[:4]), strict=True), 2):
        if which != kit:
            raise ValueError(
                f"{path}, line {row}: an answer to the kit {which!r}, not to {kit!r}; give that kit's page"
            )
        if item not in items:
            raise ValueError(f"{path}, line {row}: the kit has no item {item!r}; was the file changed?")
        if answer not in VERDICTS:
            raise ValueError(f"{path}, line {row}: answer {answer!r} is none of {', '.join(VERDICTS)}")
        if not person:
            raise ValueError(f"{path}, line {row}: the person has no name")
    if not len(table):
        raise ValueError(f"{path}: holds no answer")
    return table[list(_COLUMNS)].assign(file=str(path))


def among(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far people agree, over all relations and per relation; repeated questions count once (the first time).

    Returns:
        Columns relation ("all" first), between ("everybody", "A and B", or "A and A again" of the repeated questions),
        n (questions), agreement (percent) and kappa (Fleiss' for everybody, else Cohen's) with ``_low`` and ``_high``:
        95 % bootstrap over questions, for everybody only.
    """
    rows = []
    for relation, part in _per_relation(answers):
        first, again = part[part.repeat_of.isna()], part[part.repeat_of.notna()]
        people = list(dict.fromkeys(part.person))
        if len(people) > 1:
            rows.append({"relation": relation, "between": "everybody", **_everybody(first, resamples, seed)})
        by_person = {person: first[first.person == person].set_index("item").verdict for person in people}
        for a, b in combinations(people, 2):
            rows.append({"relation": relation, "between": f"{a} and {b}", **_two(by_person[a], by_person[b])})
        for person in people:
            later = again[again.person == person].set_index("repeat_of").verdict
            rows.append(
                {"relation": relation, "between": f"{person} and {person} again", **_two(by_person[person], later)}
            )
    return pd.DataFrame(rows)


def _per_relation(answers: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    names = list(dict.fromkeys(answers.relation))
    return [("all", answers), *((name, answers[answers.relation == name]) for name in names)]


def _everybody(answers: pd.DataFrame, resamples: int, seed: int) -> dict[str, float | int]:
    counts = pd.crosstab(answers.item, answers.verdict).to_numpy()
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return {"n": 0}
    times = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
    return {"n": len(counts), **pairwise(counts, times)}


def _two(a: pd.Series, b: pd.Series) -> dict[str, float | int]:
    both = pd.concat({"a": a, "b": b}, axis=1, join="inner")
    return {"n": len(both), "agreement": 100 * float((both.a == both.b).mean()), "kappa": cohen(both.a, both.b)}


def by_rules(answers: pd.DataFrame, tables: Sequence[BoxTable]) -> pd.DataFrame:
    """What each rule set says of a kit's photos: the distinct items with a bool column per rule set that defines their
    relation (missing elsewhere), for :func:`with_rules`."""
    items = answers.drop_duplicates("item").reset_index(drop=True)
    said = {}
    for rules, about in RULES.items():
        defined = items[items.relation.isin(about.defines)]
        said[rules] = judge_like_people(defined, tables, rules).reindex(items.index)
    return items[["item"]].assign(**said)


def by_verdicts(answers: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """What scoring says of a kit's generated pictures: the distinct items with a bool column per rule set.

    Args:
        verdicts: of :func:`verdicts.verdicts`, with model and rules.
    """
    where = ["model", "prompt_id", "image_index"]
    items = answers.drop_duplicates("item")[["item", *where]]
    wide = verdicts.pivot(index=where, columns="rules", values="correct").reset_index()
    return items.merge(wide, on=where, how="left").drop(columns=where)


def with_rules(answers: pd.DataFrame, said: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far each rule set agrees with each person and with the majority, over all relations and per relation.

    A kit of photos draws as many questions from rare strata as from common ones; its answers are weighted back, so that
    the numbers are of the pairs it was drawn from. "Undecidable" counts as not true, and so does a tie.

    Args:
        answers: of :func:`read`.
        said: of :func:`by_rules` or :func:`by_verdicts`.

    Returns:
        Columns relation, rules, person ("majority" first, if there are several), n, then accuracy, precision, recall
        and kappa, each with ``_low`` and ``_high``: 95 % bootstrap over questions.
    """
    first = answers[answers.repeat_of.isna()]
    weights = _weights(first)
    votes = first.assign(true=first.verdict == "true").groupby("item").true.mean() > 0.5
    views = {"majority": votes} | {
        person: part.set_index("item").verdict == "true" for person, part in first.groupby("person", sort=False)
    }
    rows, relations = [], first.drop_duplicates("item").set_index("item").relation
    if len(views) == 2:
        del views["majority"]  # of one person
    for rules in said.columns.drop("item"):
        verdict = said.set_index("item")[rules].dropna().astype(bool)
        for person, view in views.items():
            items = verdict.index.intersection(view.index)
            for relation in ("all", *dict.fromkeys(relations)):
                of = items if relation == "all" else items[relations[items] == relation]
                if len(of):
                    hits = (
                        outcomes(verdict[of].to_numpy(bool), view[of].to_numpy(bool)) * weights[of].to_numpy()[:, None]
                    )
                    rows.append({"relation": relation, "rules": rules, "person": person, "n": len(of)}
                                | _weighted(of, hits, resamples, seed))  # fmt: skip
    return pd.DataFrame(rows)


def _weights(answers: pd.DataFrame) -> pd.Series:
    """How many of the pairs it was drawn from each question stands for, up to a factor; 1 without strata."""
    items = answers.drop_duplicates("item").set_index("item")
    if "stratum" not in items:
        return pd.Series(1.0, index=items.index)
    asked = items.groupby(["relation", "stratum"])["share"].transform("size")
    return items["share"] / asked


def _weighted(items: pd.Index, hits: np.ndarray, resamples: int, seed: int) -> dict[str, float | int]:
    ids = pd.Series(items)
    return with_labels(hits.sum(axis=0), Clusters(ids, resamples, seed).sums(ids, hits))
