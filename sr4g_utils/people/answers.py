"""Answers to a kit: people's CSV files, and how far people agree with themselves, with each other and with the rules.

Shares get the interval of :func:`statistics.ratio`, over questions: it has a width also at 0 and 100 %, and there is
none below eight questions.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ..dataset.boxes import BoxTable
from ..dataset.names import amount
from ..dataset.prompt_files import read_cells
from ..evaluation.detections import read_detections
from ..evaluation.statistics import AGREEMENT, Clusters, cohen, outcomes, pairwise, ratio, with_labels
from ..evaluation.verdicts import verdicts
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
    table = pd.concat([_read_file(Path(path), name, set(key.item)) for path in answers], ignore_index=True)
    if (repeated := table[table.duplicated(["person", "item"])]).size:
        raise ValueError(
            f"{repeated.file.iloc[0]}: {repeated.person.iloc[0]!r} answered {repeated['item'].iloc[0]} in another "
            "file, too; give each person's last file only, and let people take different names"
        )
    table = table.assign(verdict=table.answer.map(VERDICTS), both=table.answer != "missing")
    columns = ["person", *key.columns, "answer", "verdict", "both", "seconds"]
    return table.merge(key, on="item", how="left")[columns]


def _read_file(path: Path, kit: str, items: set[str]) -> pd.DataFrame:
    table = read_cells(path).rename(columns=str.lower)
    if missing := [name for name in _COLUMNS if name not in table]:
        raise ValueError(f"{path}: the column {missing[0]!r} is missing; the kit's page saves {', '.join(_COLUMNS)}")
    table["answer"] = table.answer.str.lower()
    for row in table.itertuples():
        where = f"{path}, line {row.Index}"
        if row.kit != kit:
            raise ValueError(f"{where}: an answer to the kit {row.kit!r}, not to {kit!r}; give that kit's page")
        if row.item not in items:
            raise ValueError(f"{where}: the kit has no item {row.item!r}; was the file changed?")
        if row.answer not in VERDICTS:
            raise ValueError(f"{where}: answer {row.answer!r} is none of {', '.join(VERDICTS)}")
        if not row.person:
            raise ValueError(f"{where}: the person has no name")
    if not len(table):
        raise ValueError(f"{path}: holds no answer")
    seconds = pd.to_numeric(table.seconds.str.replace(",", "."), errors="coerce")  # 1,5 where commas are decimal
    return table[list(_COLUMNS)].assign(seconds=seconds, file=str(path))


def among(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far people agree, over all relations and per relation; of a repeated question the first answer counts.

    Returns:
        Columns relation ("all" first), between ("everybody", "A and B", or "A and A again" of the repeated questions),
        n (questions), agreement (percent) and kappa (Fleiss' for everybody, else Cohen's) with ``_low`` and ``_high``:
        95 % intervals over questions, for everybody only.
    """
    rows = []
    for relation in ("all", *dict.fromkeys(answers.relation)):
        part = answers if relation == "all" else answers[answers.relation == relation]
        first, again = part[part.repeat_of.isna()], part[part.repeat_of.notna()]
        people = list(dict.fromkeys(part.person))
        if len(people) > 1:
            rows.append({"relation": relation, "between": "everybody", **_everybody(first, resamples, seed)})
        verdicts = {person: first[first.person == person].set_index("item").verdict for person in people}
        for a, b in combinations(people, 2):
            rows.append({"relation": relation, "between": f"{a} and {b}", **_pair(verdicts[a], verdicts[b])})
        for person in people:
            later = again[again.person == person].set_index("repeat_of").verdict
            between = f"{person} and {person} again"
            rows.append({"relation": relation, "between": between, **_pair(verdicts[person], later)})
    return pd.DataFrame(rows)


def _everybody(answers: pd.DataFrame, resamples: int, seed: int) -> dict[str, float | int]:
    counts = pd.crosstab(answers.item, answers.verdict).to_numpy()
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return {"n": 0}
    n = counts.sum(axis=1)
    same = (counts * (counts - 1)).sum(axis=1) / (n * (n - 1))  # of each question, the share of pairs that agree
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    times = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
    row = pairwise(counts, times)
    (low,), (high,) = ratio(same[:, None], np.ones((len(counts), 1)))
    row |= {"agreement_low": 100 * low, "agreement_high": 100 * high}
    return {"n": len(counts), **row, **_kappa_ends(row, low, high, chance)}


def _pair(a: pd.Series, b: pd.Series) -> dict[str, float | int]:
    both = pd.concat({"a": a, "b": b}, axis=1, join="inner")
    return {"n": len(both), "agreement": 100 * float((both.a == both.b).mean()), "kappa": cohen(both.a, both.b)}


def by_rules(answers: pd.DataFrame, tables: Sequence[BoxTable]) -> pd.DataFrame:
    """The rule sets' verdicts on a kit's photos, for :func:`with_rules`: the distinct items with a bool column per rule
    set, missing where it does not define the relation."""
    items = answers.drop_duplicates("item").reset_index(drop=True)
    verdicts = {}
    for rules, about in RULES.items():
        defined = items[items.relation.isin(about.defines)]
        verdicts[rules] = judge_like_people(defined, tables, rules).reindex(items.index)
    return items[["item"]].assign(**verdicts)


def by_detections(answers: pd.DataFrame, paths: Mapping[str, str], threshold: float, pairs: str) -> pd.DataFrame:
    """The rule sets' verdicts on a kit's generated images, for :func:`with_rules`: the distinct items with a bool
    column per rule set, missing where it does not define the relation. ``paths``: each model's file of detections.
    Raises ValueError if one of the kit's models has none."""
    if missing := [name for name in answers.model.unique() if name not in paths]:
        raise ValueError(f"--detections: the model {missing[0]!r} of the kit has no file; write {missing[0]}=FILE")
    prompts = answers.drop_duplicates("prompt_id")[["prompt_id", "subject", "relation", "object"]]
    tables = []
    for model, path in paths.items():
        boxes = read_detections(path)
        images = int(max(boxes.image_index.max(), answers.image_index.max())) + 1
        for rules, about in RULES.items():
            if len(able := prompts[prompts.relation.isin(about.defines)]):
                records = verdicts(able, boxes, images, threshold, pairs, rules)
                tables.append(records.assign(model=model, rules=rules))
    where = ["model", "prompt_id", "image_index"]
    items = answers.drop_duplicates("item")[["item", *where]]
    wide = pd.concat(tables).pivot(index=where, columns="rules", values="correct").reset_index()
    return items.merge(wide, on=where, how="left").drop(columns=where)


def with_rules(answers: pd.DataFrame, verdicts: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far each rule set agrees with each person and with the majority, over all relations and per relation.

    A kit of photos draws as many questions from rare strata as from common ones. Its answers are weighted, so that the
    numbers describe the pairs that it was drawn from. "Undecidable" counts as not true. Questions on which people tie
    have no majority.

    Args:
        answers, verdicts: from :func:`read`, and from :func:`by_rules` or :func:`by_detections`.

    Returns:
        Columns relation, rules, person ("majority" first, if there are several), n, then accuracy, precision, recall
        and kappa, each with ``_low`` and ``_high``: 95 % intervals over questions.
    """
    first = answers[answers.repeat_of.isna()]
    weights = _weights(first)
    views = {person: part.set_index("item").verdict == "true" for person, part in first.groupby("person", sort=False)}
    if len(views) > 1:
        share = first.assign(true=first.verdict == "true").groupby("item").true.mean()
        views = {"majority": share[share != 0.5] > 0.5, **views}
    rows, relations = [], first.drop_duplicates("item").set_index("item").relation
    for rules in verdicts.columns.drop("item"):
        verdict = verdicts.set_index("item")[rules].dropna().astype(bool)
        for person, view in views.items():
            both = verdict.index.intersection(view.index)
            for relation in ("all", *dict.fromkeys(relations)):
                items = both if relation == "all" else both[relations[both] == relation]
                if len(items):
                    hits = outcomes(verdict[items].to_numpy(bool), view[items].to_numpy(bool))
                    hits = hits * weights[items].to_numpy()[:, None]
                    about = {"relation": relation, "rules": rules, "person": person, "n": len(items)}
                    rows.append(about | _measures(hits, resamples, seed))
    return pd.DataFrame(rows)


def _weights(answers: pd.DataFrame) -> pd.Series:
    """How many of the pairs it was drawn from each question stands for, up to a factor; 1 without strata."""
    items = answers.drop_duplicates("item").set_index("item")
    if "stratum" not in items:
        return pd.Series(1.0, index=items.index)
    return items["share"] / items.groupby(["relation", "stratum"])["share"].transform("size")


def _measures(hits: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """The measures of ``AGREEMENT`` from each question's weight as true or false positive, false or true negative."""
    questions = pd.Series(range(len(hits)))
    row = with_labels(hits.sum(axis=0), Clusters(questions, resamples, seed).sums(questions, hits))
    tp, fp, fn, tn = hits.T
    below = np.stack([tp + fp + fn + tn, tp + fp, tp + fn], axis=1)
    low, high = ratio(np.stack([tp + tn, tp, tp], axis=1), below)
    for i, name in enumerate(AGREEMENT[:3]):
        row |= {f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    yes, true = below.sum(axis=0)[1:] / hits.sum()
    return row | _kappa_ends(row, low[0], high[0], yes * true + (1 - yes) * (1 - true))


def _kappa_ends(row: dict[str, float], low: float, high: float, chance: float) -> dict[str, float]:
    """Kappa's interval is the bootstrap's. Where all resamples are alike it would have no width: then it is that of the
    agreement, low to high, beyond chance. Too few questions have none."""
    ends = row["kappa_low"], row["kappa_high"]
    if ends[0] == ends[1] or np.isnan(low):
        ends = (low - chance) / (1 - chance), (high - chance) / (1 - chance)
    return {"kappa_low": float(ends[0]), "kappa_high": float(ends[1])}


def summary(among: pd.DataFrame, with_rules: pd.DataFrame | None = None) -> str:
    """The tables of :func:`among` and :func:`with_rules`, over all relations, in a few sentences."""
    sentences = []
    for row in among[(among.relation == "all") & (among.n > 0)].itertuples():
        if row.between == "everybody":
            share = _percent(row.agreement, row.agreement_low, row.agreement_high)
            sentences.append(f"Two people agree on {share} of {amount(row.n, 'question')}.")
        elif row.between.endswith(" again"):
            person = row.between.partition(" and ")[0]
            share = f"{row.agreement:.0f} % of {amount(row.n, 'question')}"
            sentences.append(f"{person} gives the same answer again on {share}.")
    if with_rules is not None and len(with_rules):
        rows = with_rules[with_rules.relation == "all"]
        rows = rows[rows.person == rows.person.iloc[0]].sort_values("accuracy", ascending=False, kind="stable")
        shares = [
            f"{row.rules} on {_percent(100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high)} of {row.n}"
            for row in rows.itertuples()
        ]
        person = "the majority" if rows.person.iloc[0] == "majority" else rows.person.iloc[0]
        sentences.append(f"The rule sets agree with {person}: {', '.join(shares)}.")
    return " ".join(sentences)


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.0f} %" + (f" [{low:.0f}, {high:.0f}]" if low == low else "")
